//! Where chunks went that a prune moved: what it says of each pack that it emptied, of many packs in one object.
//!
//! An object is a table of packs and a block for each, which says of every chunk that was moved out of the pack where it
//! lies now, as an index run does (`docs/format.md`, "Moved chunks"). Each block is sealed by itself, so that one is read
//! without the others and goes into another object as it is. All is sealed with a key that a write-only slot does not
//! hold: what it says was said by a prune that had read and checked the chunk.

use std::ops::Range;

use bytes::Bytes;

use super::crypto::{self, Keys, NONCE_BYTES};
use super::error::RepoError;
use super::id::{MovedId, PackId, SessionId};
use super::index::{IndexRun, RUN_BYTES_MAX};
use super::layout;
use super::sealed::{self, SealedError};

/// The first bytes of such an object.
pub const MAGIC: &[u8; 8] = b"KLOSET1M";
/// An object speaks of at most so many packs,
pub const PACKS_MAX: usize = 1024;
/// and gets no other block once it would be longer than this.
pub const FULL_BYTES: usize = 32 << 20;
/// No object is longer.
pub const OBJECT_BYTES_MAX: usize = FULL_BYTES + RUN_BYTES_MAX;
/// What comes before the blocks is not longer than this.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// Magic and length of the table.
const PREFIX_BYTES: usize = 12;
const TABLE_VERSION: u32 = 1;
const ROW_BYTES: usize = 32 + 4 + 4;
const TABLE_BYTES_MAX: usize = 8 + PACKS_MAX * ROW_BYTES;

const _: () = assert!(PREFIX_BYTES + TABLE_BYTES_MAX + 1024 < HEAD_BYTES_MAX);

/// Why an object cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MovedError {
    /// Its first bytes are not those of such an object.
    #[error("it does not begin as a list of moved chunks")]
    Magic,
    /// Its length is not what it says.
    #[error("it is not as long as it says")]
    Length,
    /// It does not open.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// It opens but is not understood.
    #[error("it is malformed: {0}")]
    Format(&'static str),
}

/// What is said of one pack, sealed.
pub type Block = (PackId, Bytes);

/// Seals where the chunks of `old` went; sorts the entries.
///
/// # Errors
/// [`RepoError::WriteOnly`] without the right to read.
pub fn seal_block(keys: &Keys, old: PackId, run: &mut IndexRun, nonce: [u8; NONCE_BYTES]) -> Result<Block, RepoError> {
    run.entries.sort_unstable();
    let key = keys.moved_key().map_err(|_| RepoError::WriteOnly)?;
    Ok((old, sealed::seal(&key, nonce, &block_aad(keys, old), 3, &run.encode()).into()))
}

/// Opens what says where the chunks of `old` went.
pub(super) fn open_block(keys: &Keys, old: PackId, sealed: &[u8]) -> Result<IndexRun, MovedError> {
    let raw = sealed::open(&moved_key(keys)?, &block_aad(keys, old), sealed, RUN_BYTES_MAX)?;
    IndexRun::decode(&raw).map_err(|_| MovedError::Format("what it says of a pack"))
}

/// Makes an object of blocks: of [`PACKS_MAX`] packs at most; sorts them, and drops what is there twice.
///
/// # Errors
/// [`RepoError::WriteOnly`] without the right to read.
///
/// # Panics
/// If a block is of 4 GiB.
pub fn seal(keys: &Keys, id: MovedId, mut blocks: Vec<Block>, nonce: [u8; NONCE_BYTES]) -> Result<Vec<u8>, RepoError> {
    blocks.sort_unstable();
    blocks.dedup();
    let count = |n: usize| u32::try_from(n).expect("blocks are far under 4 GiB").to_le_bytes();
    let mut table = [TABLE_VERSION.to_le_bytes(), count(blocks.len())].concat();
    for (pack, block) in &blocks {
        table.extend_from_slice(pack.session.as_bytes());
        table.extend_from_slice(&pack.number.to_le_bytes());
        table.extend_from_slice(&count(block.len()));
    }
    let key = keys.moved_key().map_err(|_| RepoError::WriteOnly)?;
    let table = sealed::seal(&key, nonce, &table_aad(keys, id), 3, &table);
    let bytes = PREFIX_BYTES + table.len() + blocks.iter().map(|(_, block)| block.len()).sum::<usize>();
    let mut object = Vec::with_capacity(bytes);
    object.extend_from_slice(MAGIC);
    object.extend_from_slice(&count(table.len()));
    object.extend_from_slice(&table);
    blocks.iter().for_each(|(_, block)| object.extend_from_slice(block));
    Ok(object)
}

/// Opens an object and every block of it: packs, and where the chunks of each went.
///
/// # Errors
/// [`MovedError`].
pub fn open(keys: &Keys, id: MovedId, object: &[u8]) -> Result<Vec<(PackId, IndexRun)>, MovedError> {
    let rows = open_table(keys, id, object, object.len() as u64)?;
    let slice = |range: Range<u64>| &object[to_usize(range.start)..to_usize(range.end)];
    rows.into_iter().map(|(pack, range)| Ok((pack, open_block(keys, pack, slice(range))?))).collect()
}

/// Opens the table in an object's head: packs, sorted, and where their blocks lie in the object of that length.
pub(super) fn open_table(
    keys: &Keys,
    id: MovedId,
    head: &[u8],
    object_bytes: u64,
) -> Result<Vec<(PackId, Range<u64>)>, MovedError> {
    let rest = head.strip_prefix(MAGIC).ok_or(MovedError::Magic)?;
    let (length, rest) = rest.split_first_chunk().ok_or(MovedError::Length)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > HEAD_BYTES_MAX - PREFIX_BYTES || length > rest.len() {
        return Err(MovedError::Length);
    }
    let raw = sealed::open(&moved_key(keys)?, &table_aad(keys, id), &rest[..length], TABLE_BYTES_MAX)?;
    let (counts, rows) = raw.split_first_chunk::<8>().ok_or(MovedError::Format("its table has no head"))?;
    let word =
        |bytes: &[u8], at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("the row is long enough"));
    if word(counts, 0) != TABLE_VERSION {
        return Err(MovedError::Format("its version is not known to this program"));
    }
    if rows.len() != word(counts, 4) as usize * ROW_BYTES {
        return Err(MovedError::Format("its table is not as long as it says"));
    }
    let mut offset = (PREFIX_BYTES + length) as u64;
    let mut take = |row: &[u8]| {
        let from = offset;
        offset += u64::from(word(row, 36));
        let session = SessionId(*row.first_chunk().expect("40 bytes"));
        (PackId { session, number: word(row, 32) }, from..offset)
    };
    let rows: Vec<_> = rows.chunks_exact(ROW_BYTES).map(&mut take).collect();
    if offset != object_bytes || object_bytes > OBJECT_BYTES_MAX as u64 {
        return Err(MovedError::Length);
    }
    if !rows.is_sorted_by_key(|(pack, _)| *pack) {
        return Err(MovedError::Format("its packs are not sorted"));
    }
    Ok(rows)
}

fn moved_key(keys: &Keys) -> Result<crypto::SealingKey, MovedError> {
    keys.moved_key().map_err(|e| MovedError::Sealed(e.into()))
}

fn block_aad(keys: &Keys, old: PackId) -> Vec<u8> {
    crypto::aad(keys.kloset(), "moved chunks", old.to_string().as_bytes())
}

fn table_aad(keys: &Keys, id: MovedId) -> Vec<u8> {
    crypto::aad(keys.kloset(), "moved packs", layout::moved_name(id).as_bytes())
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("objects are far under 4 GiB")
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::super::id::{ChunkId, KlosetId};
    use super::super::pack::{Footer, FrameEntry, PackKind};
    use super::*;

    const NONCE: [u8; NONCE_BYTES] = [0; NONCE_BYTES];
    const ID: MovedId = MovedId([5; 16]);

    fn pack(number: u32) -> PackId {
        PackId { session: SessionId([3; 32]), number }
    }

    fn run(to: u32) -> IndexRun {
        let mut run = IndexRun::default();
        let chunks = vec![(ChunkId([9; 32]), 10), (ChunkId([3; 32]), 20)];
        let footer =
            Footer { version: 1, kind: PackKind::Data, frames: vec![FrameEntry { offset: 8, bytes: 70, chunks }] };
        run.add_pack(pack(to), 500, &footer);
        run.entries.sort_unstable();
        run
    }

    fn keys() -> Keys {
        Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]))
    }

    fn example(keys: &Keys) -> Vec<u8> {
        let blocks = [1, 0, 1].map(|old| seal_block(keys, pack(old), &mut run(7 + old), NONCE).unwrap());
        seal(keys, ID, blocks.into(), NONCE).unwrap()
    }

    #[test]
    fn what_was_moved_opens_under_its_own_name_and_with_a_full_key_only() {
        let keys = keys();
        let object = example(&keys);
        assert_eq!(open(&keys, ID, &object).unwrap(), [(pack(0), run(7)), (pack(1), run(8))]);
        assert!(matches!(open(&keys, MovedId([6; 16]), &object), Err(MovedError::Sealed(_))));
        assert_eq!(open(&keys, ID, b"KLOSET1I"), Err(MovedError::Magic));
        let (old, block) = seal_block(&keys, pack(0), &mut run(7), NONCE).unwrap();
        assert_eq!(open_block(&keys, old, &block).unwrap(), run(7));
        assert!(open_block(&keys, pack(1), &block).is_err(), "it speaks of another pack");
        let writer = Keys::write_only(KlosetId([1; 32]), keys.write_keys().clone());
        assert!(open(&writer, ID, &object).is_err());
        assert!(matches!(seal_block(&writer, pack(0), &mut run(7), NONCE), Err(RepoError::WriteOnly)));
        assert!(matches!(seal(&writer, ID, vec![(old, block)], NONCE), Err(RepoError::WriteOnly)));
    }

    #[test]
    fn what_is_cut_longer_or_changed_is_refused() {
        let keys = keys();
        let good = example(&keys);
        for cut in 0..good.len() {
            assert!(open(&keys, ID, &good[..cut]).is_err(), "{cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(open(&keys, ID, &bad).is_err(), "{at}");
        }
        assert_eq!(open(&keys, ID, &[&good[..], &[0]].concat()), Err(MovedError::Length));
    }

    #[test]
    fn a_malformed_table_is_refused() {
        let keys = keys();
        let object = |raw: &[u8]| {
            let table = sealed::seal(&keys.moved_key().unwrap(), NONCE, &table_aad(&keys, ID), 3, raw);
            let length = u32::try_from(table.len()).unwrap().to_le_bytes();
            [&MAGIC[..], &length, &table].concat()
        };
        let row = |number: u32| [&[3; 32][..], &number.to_le_bytes(), &0_u32.to_le_bytes()].concat();
        let table = |version: u32, count: u32, rows: &[Vec<u8>]| {
            object(&[&version.to_le_bytes()[..], &count.to_le_bytes(), &rows.concat()].concat())
        };
        let refused = |object: &[u8]| match open_table(&keys, ID, object, object.len() as u64) {
            Err(MovedError::Format(problem)) => problem,
            other => panic!("{other:?}"),
        };
        assert!(open_table(&keys, ID, &table(1, 0, &[]), table(1, 0, &[]).len() as u64).unwrap().is_empty());
        assert_eq!(refused(&table(2, 0, &[])), "its version is not known to this program");
        assert_eq!(refused(&table(1, 1, &[])), "its table is not as long as it says");
        assert_eq!(refused(&table(1, u32::MAX, &[row(0)])), "its table is not as long as it says");
        assert_eq!(refused(&table(1, 2, &[row(1), row(0)])), "its packs are not sorted");
        assert_eq!(refused(&object(&[1, 0, 0, 0])), "its table has no head");
        let rows: Vec<_> = (0..1025).map(row).collect();
        let many = table(1, 1025, &rows);
        assert!(
            matches!(open_table(&keys, ID, &many, many.len() as u64), Err(MovedError::Sealed(_))),
            "over the bound"
        );
        let most = table(1, 1024, &rows[..1024]);
        assert_eq!(open_table(&keys, ID, &most, most.len() as u64).unwrap().len(), PACKS_MAX);
        assert!(most.len() < HEAD_BYTES_MAX);
    }
}
