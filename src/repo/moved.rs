//! Where chunks went that a prune moved: one small object for each pack that was emptied.
//!
//! It is named after the old pack and says of each chunk that was moved out of it where it lies now, as an index run
//! does (`docs/format.md`, "Moved chunks"). It is sealed with a key that a write-only slot does not hold: what it says was
//! said by a prune that had read and checked the chunk. It does not know which snapshots still refer to the old pack.

use super::crypto::{self, Keys, NONCE_BYTES};
use super::error::RepoError;
use super::id::PackId;
use super::index::{IndexRun, RUN_BYTES_MAX};
use super::layout;
use super::sealed;
use crate::store::{Store, StoreError};

/// The first bytes of such an object.
pub const MAGIC: &[u8; 8] = b"KLOSET1M";

/// Seals where the chunks of `old` went; sorts the entries.
///
/// # Errors
/// [`RepoError::WriteOnly`] without the right to read.
pub fn seal(keys: &Keys, old: PackId, run: &mut IndexRun, nonce: [u8; NONCE_BYTES]) -> Result<Vec<u8>, RepoError> {
    run.entries.sort_unstable();
    let key = keys.moved_key().map_err(|_| RepoError::WriteOnly)?;
    Ok([&MAGIC[..], &sealed::seal(&key, nonce, &aad(keys, old), 3, &run.encode())].concat())
}

/// Opens what says where the chunks of `old` went.
///
/// # Errors
/// [`RepoError::WriteOnly`] without the right to read, [`RepoError::Damaged`].
pub fn open(keys: &Keys, old: PackId, object: &[u8]) -> Result<IndexRun, RepoError> {
    let damaged = |problem: &dyn std::fmt::Display| RepoError::damaged(layout::moved_name(old), problem);
    let key = keys.moved_key().map_err(|_| RepoError::WriteOnly)?;
    let sealed = object.strip_prefix(MAGIC).ok_or_else(|| damaged(&"it does not begin as a list of moved chunks"))?;
    let raw = sealed::open(&key, &aad(keys, old), sealed, RUN_BYTES_MAX).map_err(|e| damaged(&e))?;
    IndexRun::decode(&raw).map_err(|e| damaged(&e))
}

/// Reads where the chunks of `old` went; `None` if nobody moved them.
///
/// # Errors
/// [`RepoError`].
pub async fn load(store: &Store, keys: &Keys, old: PackId) -> Result<Option<IndexRun>, RepoError> {
    let name = layout::moved_name(old);
    match store.get(&name, RUN_BYTES_MAX as u64).await {
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(StoreError::TooLarge { .. }) => Err(RepoError::damaged(name, "longer than a list of moved chunks can be")),
        object => open(keys, old, &object?).map(Some),
    }
}

fn aad(keys: &Keys, old: PackId) -> Vec<u8> {
    crypto::aad(keys.kloset(), "moved chunks", layout::moved_name(old).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::super::id::{ChunkId, KlosetId, SessionId};
    use super::super::pack::{Footer, FrameEntry, PackKind};
    use super::*;

    #[test]
    fn what_was_moved_opens_under_the_old_packs_name_and_with_a_full_key_only() {
        let keys = Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]));
        let pack = |number| PackId { session: SessionId([3; 32]), number };
        let mut run = IndexRun::default();
        let chunks = vec![(ChunkId([9; 32]), 10), (ChunkId([3; 32]), 20)];
        let footer =
            Footer { version: 1, kind: PackKind::Data, frames: vec![FrameEntry { offset: 8, bytes: 70, chunks }] };
        run.add_pack(pack(7), 500, &footer);
        let object = seal(&keys, pack(0), &mut run, [0; NONCE_BYTES]).unwrap();
        assert_eq!(open(&keys, pack(0), &object).unwrap(), run);
        assert!(matches!(open(&keys, pack(1), &object), Err(RepoError::Damaged { .. })));
        assert!(matches!(open(&keys, pack(0), b"KLOSET1I"), Err(RepoError::Damaged { .. })));
        let writer = Keys::write_only(KlosetId([1; 32]), keys.write_keys().clone());
        assert!(matches!(open(&writer, pack(0), &object), Err(RepoError::WriteOnly)));
        assert!(matches!(seal(&writer, pack(0), &mut run, [0; NONCE_BYTES]), Err(RepoError::WriteOnly)));
    }
}
