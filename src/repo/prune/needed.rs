//! Which chunks the snapshots need, and in which packs: a compact set.
//!
//! It takes 15 bytes a chunk, and up to 22 while it grows: ten million chunks take at most 220 MB. Ids are kept to 12
//! bytes; they are keyed hashes, so nobody can choose them, and among 10^8 chunks the chance that two agree is 10^-13.

use super::super::id::ChunkId;

/// Bytes of an id in a row, behind the one that chooses the shard.
const KEY_BYTES: usize = 11;
/// A shard is sorted when so many rows wait,
const FRESH_MIN: usize = 256;
/// and this part of those that are sorted.
const FRESH_PART: usize = 4;

type Row = [u8; KEY_BYTES + 4];

/// The set; see the module.
pub(super) struct Needed(Vec<Shard>);

#[derive(Clone, Default)]
struct Shard {
    sorted: Vec<Row>,
    fresh: Vec<Row>,
}

impl Default for Needed {
    fn default() -> Self {
        Self(vec![Shard::default(); 256])
    }
}

impl Needed {
    /// Notes that a chunk is needed where it lies in a pack, by the pack's place in the table of packs.
    pub(super) fn insert(&mut self, id: ChunkId, pack: u32) {
        let shard = &mut self.0[usize::from(id.0[0])];
        shard.fresh.push(row(id, pack));
        if shard.fresh.len() >= FRESH_MIN.max(shard.sorted.len() / FRESH_PART) {
            shard.sort();
        }
    }

    /// Makes all that was noted known to the other functions.
    pub(super) fn settle(&mut self) {
        self.0.iter_mut().for_each(Shard::sort);
    }

    /// Tells whether a chunk is needed where it lies in that pack.
    pub(super) fn has(&self, id: ChunkId, pack: u32) -> bool {
        self.0[usize::from(id.0[0])].sorted.binary_search(&row(id, pack)).is_ok()
    }

    /// Tells whether a chunk is needed, wherever it lies.
    pub(super) fn has_any(&self, id: ChunkId) -> bool {
        let (rows, first) = (&self.0[usize::from(id.0[0])].sorted, row(id, 0));
        let at = rows.partition_point(|row| *row < first);
        rows.get(at).is_some_and(|row| row[..KEY_BYTES] == first[..KEY_BYTES])
    }

    /// Returns how many chunks are needed; one that is needed in two packs counts twice.
    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|shard| shard.sorted.len() as u64).sum()
    }
}

impl Shard {
    /// Merges from behind into the room that the waiting rows take, so that nothing is held twice.
    fn sort(&mut self) {
        self.fresh.sort_unstable();
        self.fresh.dedup();
        self.fresh.retain(|row| self.sorted.binary_search(row).is_err());
        let (mut old, mut new) = (self.sorted.len(), self.fresh.len());
        self.sorted.reserve_exact(new + self.fresh.len() / 2);
        self.sorted.extend_from_slice(&self.fresh);
        for at in (0..old + new).rev() {
            if new == 0 {
                break;
            }
            let take_old = old > 0 && self.sorted[old - 1] > self.fresh[new - 1];
            self.sorted[at] = if take_old { self.sorted[old - 1] } else { self.fresh[new - 1] };
            *(if take_old { &mut old } else { &mut new }) -= 1;
        }
        self.fresh.clear();
    }
}

fn row(id: ChunkId, pack: u32) -> Row {
    let mut row = [0; KEY_BYTES + 4];
    row[..KEY_BYTES].copy_from_slice(&id.0[1..=KEY_BYTES]);
    row[KEY_BYTES..].copy_from_slice(&pack.to_be_bytes());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ChunkId {
        ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    #[test]
    fn what_was_noted_is_there_in_its_pack_and_nothing_else_is() {
        const CHUNKS: u32 = 100_000;
        let mut needed = Needed::default();
        for n in (0..CHUNKS).chain(0..CHUNKS / 3) {
            needed.insert(id(n), n % 7);
        }
        needed.insert(id(5), 6);
        needed.settle();
        assert_eq!(needed.count(), u64::from(CHUNKS) + 1);
        for n in 0..CHUNKS {
            assert!(needed.has(id(n), n % 7) && needed.has_any(id(n)), "{n}");
            assert_eq!(needed.has(id(n), (n + 1) % 7), n == 5, "{n}");
            assert!(!needed.has_any(id(CHUNKS + n)), "{n}");
        }
    }

    #[test]
    fn a_chunk_takes_22_bytes_at_most() {
        let mut needed = Needed::default();
        (0..1_000_000).for_each(|n| needed.insert(id(n), n));
        let bytes: usize = needed.0.iter().map(|s| (s.sorted.capacity() + s.fresh.capacity()) * size_of::<Row>()).sum();
        assert!(bytes < 22_000_000, "{bytes}");
    }
}
