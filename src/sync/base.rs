//! Which snapshot of both sides another one is compared with, so that what they share is taken over unread.
//!
//! Any will do: it is a matter of speed. The one in whose place a snapshot was put is the best, then its parent, then the
//! newest of the same host and paths. It does not know what is compared.

use super::{MANIFESTS_AT_ONCE, Sides, SyncError};
use crate::repo::RepoError;
use crate::repo::id::SnapshotId;
use crate::repo::layout::SnapshotName;
use crate::repo::snapshot::{ByteText, Manifest};
use crate::repo::tree::TreeRef;

/// So many of the newest snapshots of both sides are looked at.
const BASES_MAX: usize = 4 * MANIFESTS_AT_ONCE;

/// The same directory in the two klosets.
#[derive(Clone, Copy)]
pub(super) struct Pair {
    pub(super) from: TreeRef,
    pub(super) to: TreeRef,
}

/// A snapshot that both sides have.
pub(super) struct Base {
    pub(super) name: SnapshotName,
    pub(super) roots: Pair,
}

struct Known {
    name: SnapshotName,
    host: String,
    paths: Vec<ByteText>,
    root: TreeRef,
}

/// Snapshots that both sides have.
pub(super) struct Bases {
    /// All of them, sorted.
    common: Vec<SnapshotName>,
    /// What is known of some, the newest last.
    known: Vec<Known>,
}

impl Bases {
    /// Looks at what both sides have; nothing where the target cannot be read.
    pub(super) async fn find(sides: Sides<'_>) -> Result<Self, SyncError> {
        let mut bases = Self { common: Vec::new(), known: Vec::new() };
        if !sides.to.keys.can_read() {
            return Ok(bases);
        }
        bases.common = sides.from.snapshots().await.map_err(SyncError::From)?;
        let there = sides.to.snapshots().await.map_err(SyncError::To)?;
        bases.common.retain(|name| there.binary_search(name).is_ok());
        let newest = &bases.common[bases.common.len().saturating_sub(BASES_MAX)..];
        for (name, manifest) in sides.from.manifests(newest).await {
            match manifest {
                Ok(manifest) => bases.known.push(Known::new(name, &manifest)),
                Err(RepoError::Damaged { .. } | RepoError::NoSnapshot(_)) => {}
                Err(error) => return Err(SyncError::From(error)),
            }
        }
        Ok(bases)
    }

    /// Notes that both sides have a snapshot now.
    pub(super) fn add(&mut self, sides: Sides<'_>, name: SnapshotName, manifest: &Manifest) {
        if sides.to.keys.can_read() {
            self.known.push(Known::new(name, manifest));
        }
    }

    /// Chooses what to compare a snapshot with.
    pub(super) async fn choose(&self, sides: Sides<'_>, manifest: &Manifest) -> Result<Option<Base>, SyncError> {
        let of_id = |id: Option<SnapshotId>| self.known.iter().find(|known| Some(known.name.id) == id);
        let of_host = || self.known.iter().rev().filter(|known| known.host == manifest.host);
        let known = of_id(manifest.original)
            .or_else(|| of_id(manifest.parent))
            .or_else(|| of_host().find(|known| known.paths == manifest.paths))
            .or_else(|| of_host().next());
        let (name, from) = match known {
            Some(known) => (known.name, known.root),
            None => match self.older_relative(sides, manifest).await? {
                Some(found) => found,
                None => return Ok(None),
            },
        };
        match sides.to.manifest(name).await {
            Ok(there) => Ok(Some(Base { name, roots: Pair { from, to: there.root.into() } })),
            Err(RepoError::Damaged { .. } | RepoError::NoSnapshot(_)) => Ok(None),
            Err(error) => Err(SyncError::To(error)),
        }
    }

    /// Finds the snapshot in whose place this one was put, or its parent, among those that were too old to be looked at.
    async fn older_relative(
        &self,
        sides: Sides<'_>,
        manifest: &Manifest,
    ) -> Result<Option<(SnapshotName, TreeRef)>, SyncError> {
        let ids = [manifest.original, manifest.parent];
        let Some(name) = self.common.iter().find(|name| ids.contains(&Some(name.id))) else { return Ok(None) };
        match sides.from.manifest(*name).await {
            Ok(found) => Ok(Some((*name, found.root.into()))),
            Err(RepoError::Damaged { .. } | RepoError::NoSnapshot(_)) => Ok(None),
            Err(error) => Err(SyncError::From(error)),
        }
    }
}

impl Known {
    fn new(name: SnapshotName, manifest: &Manifest) -> Self {
        let (host, paths) = (manifest.host.clone(), manifest.paths.clone());
        Self { name, host, paths, root: manifest.root.into() }
    }
}
