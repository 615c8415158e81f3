//! Putting a snapshot in the place of another: with other tags, or without some paths.
//!
//! A manifest never changes, so a new one is put, with a new id, the old time and a note of which snapshot it first was;
//! then the old one is deleted, where that is wanted. A crash between the two leaves both, and the same command again
//! finds the new one and only deletes. What the new one refers to is what the old one does, wherever a prune moved it: so
//! the old one has to be there until the new one is. It knows the kloset only through [`crate::repo`].

mod cut;
mod tags;

use tokio::runtime::Handle;

use crate::repo::id::SnapshotId;
use crate::repo::layout::SnapshotName;
use crate::repo::snapshot::Manifest;
use crate::repo::writer::{Writer, WriterOptions};
use crate::repo::{Repo, RepoError};
use crate::store::StoreError;

pub use cut::{Cut, CutTally, Dropped, Leaves, PATHS_MAX, Rewriter};
pub use tags::TagChange;

/// A snapshot and what stands in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// As it was.
    pub old: SnapshotName,
    /// As it is.
    pub new: SnapshotName,
}

/// Why a snapshot is not replaced, or not wholly.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The kloset failed; nothing was changed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The new snapshot is there and the old one as well.
    #[error("snapshot {} is there in the place of {}, which cannot be deleted: {source}", replaced.new.id.short(), replaced.old.id.short())]
    NotDeleted {
        /// Which they are.
        replaced: Replaced,
        /// Why not.
        source: StoreError,
    },
    /// Somebody asked it to stop.
    #[error("stopped: every snapshot is as it was, or replaced")]
    Stopped,
}

/// Gives a snapshot other tags; `None` if it has them already. Blocks; call it from a thread that does not drive the runtime.
///
/// # Errors
/// [`RewriteError`].
pub fn retag(
    repo: &Repo,
    runtime: &Handle,
    old: SnapshotName,
    change: &TagChange,
) -> Result<Option<Replaced>, RewriteError> {
    let manifest = runtime.block_on(repo.manifest(old))?;
    let tags = change.apply(&manifest.tags);
    if tags == manifest.tags {
        return Ok(None);
    }
    let mut writer = Writer::new(repo, runtime.clone(), WriterOptions::default());
    writer.stand_on(Some(old));
    let new = Manifest { tags, ..manifest.clone() };
    let replaced = put(repo, runtime, &mut writer, (old, &manifest, new))?;
    delete_old(repo, runtime, replaced)?;
    Ok(Some(replaced))
}

/// Puts a snapshot that is to stand in the place of `old`, unless it is there.
fn put(
    repo: &Repo,
    runtime: &Handle,
    writer: &mut Writer,
    (old, was, mut manifest): (SnapshotName, &Manifest, Manifest),
) -> Result<Replaced, RewriteError> {
    let first = was.original.unwrap_or(was.id);
    let names = runtime.block_on(repo.snapshots())?;
    let of_its_time: Vec<_> =
        names.into_iter().filter(|name| name.unix_ms == old.unix_ms && name.id != old.id).collect();
    for (new, there) in runtime.block_on(repo.manifests(&of_its_time)) {
        let is_it = |there: &Manifest| {
            there.original == Some(first) && there.tags == manifest.tags && there.root.id == manifest.root.id
        };
        if there.is_ok_and(|there| is_it(&there)) {
            return Ok(Replaced { old, new });
        }
    }
    let new = SnapshotName { unix_ms: old.unix_ms, id: SnapshotId(repo.env.entropy.bytes()) };
    (manifest.id, manifest.original) = (new.id, Some(first));
    writer.commit(new, &manifest)?;
    Ok(Replaced { old, new })
}

/// Deletes the snapshot that another stands in the place of.
///
/// # Errors
/// [`RewriteError::NotDeleted`].
pub fn delete_old(repo: &Repo, runtime: &Handle, replaced: Replaced) -> Result<(), RewriteError> {
    let deleted = runtime.block_on(repo.store.delete(&replaced.old.object()));
    deleted.map_err(|source| RewriteError::NotDeleted { replaced, source })
}
