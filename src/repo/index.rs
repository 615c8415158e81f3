//! Index runs: sorted tables from chunk id to location, one or more written by each session.
//!
//! A run is a table of packs and fixed-width entries sorted by id, sealed under the index key (`docs/format.md`,
//! "Index run"). Reading a snapshot never needs one: the index finds duplicates, and chunks that have moved.

use super::crypto::{self, NONCE_BYTES, SealingKey};
use super::id::{ChunkId, KlosetId, PackId, RunId, SessionId};
use super::layout;
use super::pack::{self, Footer, PACK_BYTES_MAX, PackKind};
use super::sealed::{self, SealedError};
use super::tree::{Location, Placed};

/// The first bytes of an index run.
pub const MAGIC: &[u8; 8] = b"KLOSET1I";
/// A session begins another run when one holds this many entries: about 14 MB.
pub const RUN_ENTRIES_MAX: usize = 1 << 18;
/// No run is longer, raw or sealed.
pub const RUN_BYTES_MAX: usize = 64 << 20;

const VERSION: u32 = 1;
const HEAD_BYTES: usize = 12;
const PACK_BYTES: usize = 32 + 4 + 4 + 8;
const ENTRY_BYTES: usize = 32 + 6 * 4;

const _: () = assert!(HEAD_BYTES + RUN_ENTRIES_MAX * (PACK_BYTES + ENTRY_BYTES) < RUN_BYTES_MAX);

/// Why an index run cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Its first bytes are not an index run's.
    #[error("it does not begin as an index run")]
    Magic,
    /// It does not open.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// It opens but is not a run.
    #[error("it is malformed: {0}")]
    Format(&'static str),
}

/// A pack as an index run knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexedPack {
    /// Which pack.
    pub id: PackId,
    /// What it holds.
    pub kind: PackKind,
    /// Its length in bytes.
    pub bytes: u64,
}

/// Where one chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IndexEntry {
    /// Which chunk.
    pub id: ChunkId,
    /// Its pack: a place in the run's table.
    pub pack: u32,
    /// Its frame's number in the pack.
    pub frame: u32,
    /// Its frame's offset in the pack.
    pub frame_offset: u32,
    /// Its frame's sealed length.
    pub frame_bytes: u32,
    /// Its offset in the raw frame.
    pub chunk_offset: u32,
    /// Its length.
    pub chunk_bytes: u32,
}

/// An index run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IndexRun {
    /// The packs that the entries speak of.
    pub packs: Vec<IndexedPack>,
    /// Entries sorted by id; an id may stand in several packs.
    pub entries: Vec<IndexEntry>,
}

impl IndexRun {
    /// Adds all that a finished pack holds.
    ///
    /// # Panics
    /// If there are over 2^32 packs.
    pub fn add_pack(&mut self, id: PackId, bytes: u64, footer: &Footer) {
        let pack = u32::try_from(self.packs.len()).expect("a run is closed long before");
        self.packs.push(IndexedPack { id, kind: footer.kind, bytes });
        for (frame, entry) in (0..).zip(&footer.frames) {
            let mut chunk_offset = 0;
            for &(id, chunk_bytes) in &entry.chunks {
                self.entries.push(IndexEntry {
                    id,
                    pack,
                    frame,
                    frame_offset: entry.offset,
                    frame_bytes: entry.bytes,
                    chunk_offset,
                    chunk_bytes,
                });
                chunk_offset += chunk_bytes;
            }
        }
    }

    /// Returns the places of a chunk.
    pub fn places(&self, id: ChunkId) -> impl Iterator<Item = Placed> {
        let from = self.entries.partition_point(|e| e.id < id);
        self.entries[from..].iter().take_while(move |e| e.id == id).map(|e| self.placed(e))
    }

    /// Returns where an entry's chunk lies.
    ///
    /// # Panics
    /// If the entry is of another run.
    #[must_use]
    pub fn placed(&self, entry: &IndexEntry) -> Placed {
        Placed {
            bytes: entry.chunk_bytes,
            frame: entry.frame,
            location: Location {
                pack: self.packs[entry.pack as usize].id,
                frame_offset: entry.frame_offset,
                frame_bytes: entry.frame_bytes,
                chunk_offset: entry.chunk_offset,
            },
        }
    }

    /// Sorts and seals the run, which is given up on the way, so that it is not held three times at once.
    #[must_use]
    pub fn seal(mut self, key: &SealingKey, kloset: KlosetId, id: RunId, nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        self.entries.sort_unstable();
        let raw = self.encode();
        drop(self);
        let mut object = sealed::seal(key, nonce, &aad(kloset, id), 3, &raw);
        object.splice(..0, *MAGIC);
        object
    }

    /// Opens a run.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn open(key: &SealingKey, kloset: KlosetId, id: RunId, object: &[u8]) -> Result<Self, IndexError> {
        let sealed = object.strip_prefix(MAGIC).ok_or(IndexError::Magic)?;
        Self::decode(&sealed::open(key, &aad(kloset, id), sealed, RUN_BYTES_MAX)?)
    }

    // format.md, "Index run"
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + self.packs.len() * PACK_BYTES + self.entries.len() * ENTRY_BYTES);
        let count = |n: usize| u32::try_from(n).expect("a run is closed long before").to_le_bytes();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&count(self.packs.len()));
        out.extend_from_slice(&count(self.entries.len()));
        for pack in &self.packs {
            out.extend_from_slice(pack.id.session.as_bytes());
            out.extend_from_slice(&pack.id.number.to_le_bytes());
            out.extend_from_slice(&u32::from(u8::from(pack.kind)).to_le_bytes());
            out.extend_from_slice(&pack.bytes.to_le_bytes());
        }
        for e in &self.entries {
            out.extend_from_slice(e.id.as_bytes());
            for n in [e.pack, e.frame, e.frame_offset, e.frame_bytes, e.chunk_offset, e.chunk_bytes] {
                out.extend_from_slice(&n.to_le_bytes());
            }
        }
        out
    }

    /// Decodes an opened run: everything in it is checked, so that nobody checks again.
    pub(crate) fn decode(raw: &[u8]) -> Result<Self, IndexError> {
        let (head, rest) = raw.split_first_chunk::<HEAD_BYTES>().ok_or(IndexError::Format("no head"))?;
        let (version, packs, entries) = (word(head, 0), word(head, 4) as usize, word(head, 8) as usize);
        if version != VERSION {
            return Err(IndexError::Format("its version is not known to this program"));
        }
        if packs > RUN_BYTES_MAX || entries > RUN_BYTES_MAX || rest.len() != packs * PACK_BYTES + entries * ENTRY_BYTES
        {
            return Err(IndexError::Format("its length does not fit its counts"));
        }
        let (pack_rows, entry_rows) = rest.split_at(packs * PACK_BYTES);
        let packs = pack_rows.chunks_exact(PACK_BYTES).map(decode_pack).collect::<Result<Vec<_>, _>>()?;
        let entries: Vec<_> = entry_rows.chunks_exact(ENTRY_BYTES).map(decode_entry).collect();
        if !entries.is_sorted() {
            return Err(IndexError::Format("its entries are not sorted"));
        }
        entries.iter().try_for_each(|entry| check_entry(entry, &packs))?;
        Ok(Self { packs, entries })
    }
}

fn aad(kloset: KlosetId, id: RunId) -> Vec<u8> {
    crypto::aad(kloset, "index run", layout::run_name(id).as_bytes())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the row is long enough"))
}

fn decode_pack(row: &[u8]) -> Result<IndexedPack, IndexError> {
    let bytes = u64::from_le_bytes(*row[40..].first_chunk().expect("48 bytes"));
    if bytes > PACK_BYTES_MAX {
        return Err(IndexError::Format("a pack is longer than a pack can be"));
    }
    let kind = u8::try_from(word(row, 36)).ok().and_then(|kind| PackKind::try_from(kind).ok());
    Ok(IndexedPack {
        id: PackId { session: SessionId(*row.first_chunk().expect("48 bytes")), number: word(row, 32) },
        kind: kind.ok_or(IndexError::Format("an unknown kind of pack"))?,
        bytes,
    })
}

fn check_entry(entry: &IndexEntry, packs: &[IndexedPack]) -> Result<(), IndexError> {
    let pack = packs.get(entry.pack as usize).ok_or(IndexError::Format("an entry names no pack"))?;
    if !pack::frame_fits(entry.frame_offset, entry.frame_bytes, pack.bytes) {
        return Err(IndexError::Format("an entry's frame cannot be in its pack"));
    }
    if !pack::chunk_fits(entry.chunk_offset, entry.chunk_bytes) {
        return Err(IndexError::Format("an entry's chunk cannot be in its frame"));
    }
    Ok(())
}

fn decode_entry(row: &[u8]) -> IndexEntry {
    IndexEntry {
        id: ChunkId(*row.first_chunk().expect("56 bytes")),
        pack: word(row, 32),
        frame: word(row, 36),
        frame_offset: word(row, 40),
        frame_bytes: word(row, 44),
        chunk_offset: word(row, 48),
        chunk_bytes: word(row, 52),
    }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::super::pack::FrameEntry;
    use super::*;

    fn example() -> IndexRun {
        let mut run = IndexRun::default();
        let chunks = vec![(ChunkId([9; 32]), 10), (ChunkId([3; 32]), 20)];
        let footer =
            Footer { version: 1, kind: PackKind::Data, frames: vec![FrameEntry { offset: 8, bytes: 70, chunks }] };
        run.add_pack(PackId { session: SessionId([1; 32]), number: 2 }, 500, &footer);
        run
    }

    #[test]
    fn a_run_round_trips_sorted() {
        let key = SealingKey::new(&Secret([1; 32]));
        let (kloset, id) = (KlosetId([1; 32]), RunId([2; 16]));
        let mut run = example();
        let object = run.clone().seal(&key, kloset, id, [0; NONCE_BYTES]);
        run.entries.sort_unstable();
        let opened = IndexRun::open(&key, kloset, id, &object).unwrap();
        assert_eq!(opened, run);
        assert_eq!(opened.entries[0].id, ChunkId([3; 32]));
        let placed = opened.placed(&opened.entries[0]);
        assert_eq!((placed.bytes, placed.location.chunk_offset, placed.location.frame_offset), (20, 10, 8));
        assert!(IndexRun::open(&key, kloset, RunId([3; 16]), &object).is_err());
    }

    #[test]
    fn malformed_runs_are_refused() {
        let mut run = example();
        run.entries.sort_unstable();
        let good = run.encode();
        assert!(IndexRun::decode(&good).is_ok());
        for cut in 0..good.len() {
            assert!(IndexRun::decode(&good[..cut]).is_err());
        }
        let changed = |at: usize, to: u8| {
            let mut bad = good.clone();
            bad[at] = to;
            IndexRun::decode(&bad).unwrap_err()
        };
        assert_eq!(changed(0, 2), IndexError::Format("its version is not known to this program"));
        assert_eq!(changed(11, 0xff), IndexError::Format("its length does not fit its counts"));
        assert_eq!(changed(48, 7), IndexError::Format("an unknown kind of pack"));
        assert_eq!(changed(60, 0xff), IndexError::Format("its entries are not sorted"));
        assert_eq!(changed(60 + 32, 1), IndexError::Format("an entry names no pack"));
        assert_eq!(changed(52 + 4, 1), IndexError::Format("a pack is longer than a pack can be"));
        for at in [60 + 40, 60 + 43, 60 + 44, 60 + 47] {
            assert_eq!(changed(at, 3), IndexError::Format("an entry's frame cannot be in its pack"), "{at}");
        }
        assert_eq!(changed(60 + 55, 2), IndexError::Format("an entry's chunk cannot be in its frame"));
        assert_eq!(changed(60 + 52, 0), IndexError::Format("an entry's chunk cannot be in its frame"));
    }
}
