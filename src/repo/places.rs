//! Where stored chunks lie: the table by which a writer finds duplicates.
//!
//! It takes about 26 bytes a chunk, besides 16 a frame and 36 a pack, where a map of whole entries takes over 100: a kloset
//! has tens of millions of chunks, and a backup must not take memory by the gigabyte. There are 256 shards by the first
//! byte of the id. Each is a sorted array of rows, and a small map of what came last, which is merged into the array
//! when it has grown to a part of it: one shard at a time, so that merging takes no memory to speak of.
//!
//! Ids are kept to 14 bytes. They are keyed hashes, so nobody can choose them, and among 10^9 chunks the chance that two
//! agree in 112 bits is 10^-16. It does not know what is in the chunks.

use std::collections::HashMap;

use super::id::{ChunkId, PackId};
use super::index::IndexRun;
use super::pack::{FRAME_BYTES_MAX, TREE_FRAME_BYTES};
use super::tree::{Location, Placed, TREE_BYTES_MAX};

/// Bytes of an id in a row, behind the one that chooses the shard.
const KEY_BYTES: usize = 13;
/// Frame, and 25 bits each of length and offset.
const PLACE_BYTES: usize = 4 + 7;
/// Bits of a length or an offset.
const BITS: u32 = 25;
/// A shard's map is merged when it has this many entries at least,
const FRESH_MIN: usize = 512;
/// and this part of the array.
const FRESH_PART: usize = 16;

const _: () = assert!(FRAME_BYTES_MAX < 1 << BITS && TREE_FRAME_BYTES + TREE_BYTES_MAX < 1 << BITS && 2 * BITS <= 56);

type Key = [u8; KEY_BYTES];
type Place = [u8; PLACE_BYTES];

/// The table; see the module.
pub(super) struct Places {
    shards: Vec<Shard>,
    frames: Vec<Frame>,
    packs: Vec<PackId>,
}

#[derive(Clone, Default)]
struct Shard {
    rows: Vec<(Key, Place)>,
    fresh: HashMap<Key, Place>,
}

/// A frame: its pack is a place in the table of packs.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Frame {
    pack: u32,
    number: u32,
    offset: u32,
    bytes: u32,
}

impl Default for Places {
    fn default() -> Self {
        Self { shards: vec![Shard::default(); 256], frames: Vec::new(), packs: Vec::new() }
    }
}

impl Places {
    /// Tells whether a chunk has a place.
    #[must_use]
    pub(super) fn contains(&self, id: ChunkId) -> bool {
        self.shards[shard(id)].find(&key(id)).is_some()
    }

    /// Returns the place of a chunk.
    #[must_use]
    pub(super) fn get(&self, id: ChunkId) -> Option<Placed> {
        let place = self.shards[shard(id)].find(&key(id))?;
        let (frame, bytes, chunk_offset) = unpack(place);
        let frame = self.frames[frame as usize];
        let location = Location {
            pack: self.packs[frame.pack as usize],
            frame_offset: frame.offset,
            frame_bytes: frame.bytes,
            chunk_offset,
        };
        Some(Placed { bytes, frame: frame.number, location })
    }

    /// Notes the place of a chunk; one that has a place keeps that.
    ///
    /// Chunks of one frame that come one after another share what is known of it.
    pub(super) fn insert(&mut self, id: ChunkId, placed: &Placed) {
        if self.packs.last() != Some(&placed.location.pack) {
            self.packs.push(placed.location.pack);
        }
        let Location { frame_offset: offset, frame_bytes: bytes, chunk_offset, .. } = placed.location;
        let frame = Frame { pack: index(self.packs.len() - 1), number: placed.frame, offset, bytes };
        if self.frames.last() != Some(&frame) {
            self.frames.push(frame);
        }
        self.put(id, index(self.frames.len() - 1), placed.bytes, chunk_offset);
    }

    /// Notes the places of all chunks of a run, without those in packs that `take` refuses, by their place in the run.
    pub(super) fn insert_run(&mut self, run: &IndexRun, take: impl Fn(usize) -> bool) {
        let first = index(self.packs.len());
        self.packs.extend(run.packs.iter().map(|pack| pack.id));
        let mut frames = HashMap::new();
        for entry in run.entries.iter().filter(|entry| take(entry.pack as usize)) {
            let frame = *frames.entry((entry.pack, entry.frame, entry.frame_offset)).or_insert_with(|| {
                let (number, offset, bytes) = (entry.frame, entry.frame_offset, entry.frame_bytes);
                self.frames.push(Frame { pack: first + entry.pack, number, offset, bytes });
                index(self.frames.len() - 1)
            });
            self.put(entry.id, frame, entry.chunk_bytes, entry.chunk_offset);
        }
    }

    fn put(&mut self, id: ChunkId, frame: u32, bytes: u32, offset: u32) {
        let place = pack(frame, bytes, offset);
        let shard = &mut self.shards[shard(id)];
        shard.fresh.entry(key(id)).or_insert(place);
        if shard.fresh.len() >= FRESH_MIN.max(shard.rows.len() / FRESH_PART) {
            shard.merge();
        }
    }
}

impl Shard {
    fn find(&self, key: &Key) -> Option<&Place> {
        match self.rows.binary_search_by(|row| row.0.cmp(key)) {
            Ok(at) => Some(&self.rows[at].1),
            Err(_) => self.fresh.get(key),
        }
    }

    /// Merges what came last into the array; what was there before stays.
    fn merge(&mut self) {
        let mut fresh: Vec<_> = std::mem::take(&mut self.fresh).into_iter().collect();
        fresh.sort_unstable();
        let old = std::mem::take(&mut self.rows);
        let mut rows = Vec::with_capacity(old.len() + fresh.len());
        let (mut old, mut fresh) = (old.into_iter().peekable(), fresh.into_iter().peekable());
        while let Some(next) = fresh.peek() {
            match old.peek().map(|row| row.0.cmp(&next.0)) {
                Some(std::cmp::Ordering::Less) => rows.extend(old.next()),
                Some(std::cmp::Ordering::Equal) => drop(fresh.next()),
                _ => rows.extend(fresh.next()),
            }
        }
        rows.extend(old);
        self.rows = rows;
    }
}

fn shard(id: ChunkId) -> usize {
    usize::from(id.0[0])
}

fn key(id: ChunkId) -> Key {
    *id.0[1..].first_chunk().expect("an id is longer")
}

fn index(at: usize) -> u32 {
    u32::try_from(at).expect("fewer than 2^32 frames fit in memory")
}

fn pack(frame: u32, bytes: u32, offset: u32) -> Place {
    let mut place = [0; PLACE_BYTES];
    place[..4].copy_from_slice(&frame.to_le_bytes());
    let both = u64::from(bytes) | u64::from(offset) << BITS;
    place[4..].copy_from_slice(&both.to_le_bytes()[..PLACE_BYTES - 4]);
    place
}

/// Returns frame, length and offset.
fn unpack(place: &Place) -> (u32, u32, u32) {
    let (frame, rest) = place.split_first_chunk().expect("a place is longer");
    let mut both = [0; 8];
    both[..rest.len()].copy_from_slice(rest);
    let both = u64::from_le_bytes(both);
    let part = |at: u32| u32::try_from(both >> at & ((1 << BITS) - 1)).expect("25 bits");
    (u32::from_le_bytes(*frame), part(0), part(BITS))
}

#[cfg(test)]
mod tests {
    use super::super::id::SessionId;
    use super::super::index::{IndexEntry, IndexedPack};
    use super::super::pack::PackKind;
    use super::*;

    fn id(n: u32) -> ChunkId {
        ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn pack_id(number: u32) -> PackId {
        PackId { session: SessionId([7; 32]), number }
    }

    fn placed(n: u32) -> Placed {
        let location =
            Location { pack: pack_id(n / 1000), frame_offset: n / 100, frame_bytes: 70, chunk_offset: (n % 100) * 9 };
        Placed { bytes: 1 + n, frame: n / 100, location }
    }

    #[test]
    fn what_was_put_is_found_as_it_was_put_and_nothing_else() {
        let mut places = Places::default();
        const CHUNKS: u32 = 400_000; // each shard merges more than once
        for n in 0..CHUNKS {
            assert_eq!(places.get(id(n)), None);
            places.insert(id(n), &placed(n));
        }
        for n in 0..CHUNKS {
            assert_eq!(places.get(id(n)), Some(placed(n)), "{n}");
            assert!(places.contains(id(n)) && !places.contains(id(CHUNKS + n)));
        }
        assert_eq!((places.frames.len(), places.packs.len()), (4000, 400));
    }

    #[test]
    fn the_largest_numbers_fit() {
        for numbers in [(u32::MAX, (1 << BITS) - 1, 0), (0, 0, (1 << BITS) - 1), (7, 16 << 20, 17 << 20)] {
            assert_eq!(unpack(&pack(numbers.0, numbers.1, numbers.2)), numbers);
        }
    }

    #[test]
    fn the_first_place_of_a_chunk_stands() {
        let mut places = Places::default();
        for n in 0..1000 {
            places.insert(id(n), &placed(n));
        }
        places.shards.iter_mut().for_each(Shard::merge);
        (0..1000).for_each(|n| places.insert(id(n), &placed(n + 5000)));
        places.shards.iter_mut().for_each(Shard::merge);
        assert!((0..1000).all(|n| places.get(id(n)) == Some(placed(n))));
        assert_eq!(places.shards.iter().map(|shard| shard.rows.len()).sum::<usize>(), 1000);
    }

    #[test]
    fn a_run_is_taken_over_without_the_packs_that_are_refused() {
        let packs = (0..2).map(|number| IndexedPack { id: pack_id(number), kind: PackKind::Data, bytes: 1 << 20 });
        let mut run = IndexRun { packs: packs.collect(), entries: Vec::new() };
        let entry = |n: u32| IndexEntry {
            id: id(n),
            pack: n % 2,
            frame: n / 10,
            frame_offset: n / 10,
            frame_bytes: 70,
            chunk_offset: n % 10,
            chunk_bytes: 1 + n,
        };
        run.entries = (0..100).map(entry).collect();
        run.entries.sort_unstable();
        let mut places = Places::default();
        places.insert(id(1000), &placed(1000));
        places.insert_run(&run, |pack| pack == 1);
        for n in 0..100 {
            let found = run.entries.iter().find(|e| e.id == id(n) && e.pack == 1).map(|e| run.placed(e));
            assert_eq!(places.get(id(n)), found, "{n}");
        }
        assert_eq!(places.frames.len(), 1 + 10);
        assert_eq!(places.get(id(1000)), Some(placed(1000)));
    }

    #[test]
    fn a_chunk_takes_less_than_30_bytes() {
        let mut places = Places::default();
        let frame = placed(0);
        (0..1_000_000).for_each(|n| places.insert(id(n), &frame));
        let rows: usize = places.shards.iter().map(|shard| shard.rows.capacity() * size_of::<(Key, Place)>()).sum();
        let fresh: usize =
            places.shards.iter().map(|shard| shard.fresh.capacity() * (KEY_BYTES + PLACE_BYTES + 2)).sum();
        assert!(rows + fresh < 30_000_000, "{rows} {fresh}");
    }
}
