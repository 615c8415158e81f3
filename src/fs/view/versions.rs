//! `versions/`: every path of every snapshot as a folder, and in it what it was, newest first.
//!
//! ```text
//! versions/etc/fstab/2026-11-22_13-58-00   the file as it is in snapshots/2026-11-22_13-58-00/etc/fstab
//! ```
//!
//! Whatever has a name in a snapshot is a folder here: with the names that were in it where it was a folder, and with its
//! versions where it was something else, and with both where it was both. A version is the inode that it is in its
//! snapshot, so reads, attributes and what the kernel keeps of it are the same. Histories are made in
//! [`super::super::history`], when somebody looks.

use std::sync::Arc;

use super::super::attr::Attr;
use super::super::directory::Leaf;
use super::super::errno::FsError;
use super::super::guard::Guard;
use super::super::history::{History, Version};
use super::super::inodes::{Home, Identity, Place};
use super::super::listing::Need;
use super::super::names::{Names, of_version, time_of_version};
use super::super::union::NAME_BIT;
use super::{Found, Line, PathFolder, TOP_TTL, View};
use crate::repo::layout::SnapshotName;
use crate::repo::path::leaf;
use crate::repo::tree::Node;

impl View {
    /// Finds what a folder of `versions/` has under a name.
    pub(super) async fn lookup_path(&self, folder: &PathFolder, name: &[u8]) -> Result<Found, FsError> {
        let names = self.0.roots.names(Need::Known).await;
        let mut attr = self.find_in_path(folder, name, &names).await;
        // As in the virtual top: who asks for what is not known may mean what is new, but not every program's own files.
        if !name.starts_with(b".") && !matches!(attr, Ok(Some(_))) {
            let fresh = self.0.roots.names(Need::Missing).await;
            if fresh.digest != names.digest {
                attr = self.find_in_path(folder, name, &fresh).await;
            }
        }
        Ok(Found { attr: attr?, ttl: TOP_TTL })
    }

    async fn find_in_path(
        &self,
        folder: &PathFolder,
        name: &[u8],
        names: &Arc<Names>,
    ) -> Result<Option<Attr>, FsError> {
        let histories = &self.0.histories;
        let below = histories.of(names, &join(&folder.path, name)).await?;
        if !below.is_empty() {
            let number = self.0.paths.remember(folder.number, name);
            return Ok(Some(self.guarded(number, below.guard)));
        }
        let history = histories.of(names, &folder.path).await?;
        let snapshot = time_of_version(name, last(&folder.path)).and_then(|time| names.by_time(time));
        let snapshot = snapshot.map(|at| names.snapshots[at]);
        let version = history.versions.iter().find(|version| Some(version.snapshot) == snapshot);
        match (version, &below.problem) {
            (Some(version), _) => {
                let found = self.version(folder, version, names).await?;
                found.map(|found| self.take_version(&found)).transpose()
            }
            // It may be in what could not be read.
            (None, Some(problem)) => Err(problem.clone().into()),
            (None, None) => Ok(None),
        }
    }

    /// Lists a folder of `versions/` behind its dots: its versions, newest first, then the names below it.
    pub(super) async fn list_path(
        &self,
        folder: &PathFolder,
        offset: u64,
        counted: bool,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        let names = self.0.roots.names(Need::Fresh).await;
        let history = self.0.histories.of(&names, &folder.path).await?;
        for version in history.versions.iter().rev().filter(|version| place(version.snapshot) > offset) {
            let Some(found) = self.version(folder, version, &names).await? else { continue };
            // A name below that is the same means what is below.
            let same = join(&folder.path, &found.name);
            if !history.folders.is_empty() && !self.0.histories.of(&names, &same).await?.is_empty() {
                continue;
            }
            let attr = match counted {
                true => self.take_version(&found)?,
                false => self.attr(found.node()?, self.0.inodes.number(found.identity)),
            };
            let line = Line { name: &found.name, attr, ttl: TOP_TTL, next: place(version.snapshot) };
            if take(&line) {
                if counted {
                    self.forget(attr.number, 1);
                }
                return Ok(());
            }
        }
        self.list_names(folder, (&names, &history), offset.max(NAME_BIT), (counted, take)).await
    }

    async fn list_names(
        &self,
        folder: &PathFolder,
        (names, history): (&Names, &Arc<History>),
        mut offset: u64,
        (counted, take): (bool, &mut (dyn FnMut(&Line<'_>) -> bool + Send)),
    ) -> Result<(), FsError> {
        let (paths, mut any) = (&self.0.paths, false);
        loop {
            let union = self.0.histories.union(names, &folder.path, history, offset).await?;
            for (place, name, guard) in union.behind(offset) {
                let number = match counted {
                    true => paths.remember(folder.number, name),
                    false => paths.number(folder.number, name),
                };
                let line = Line { name, attr: self.guarded(number, *guard), ttl: TOP_TTL, next: *place };
                if take(&line) {
                    if counted {
                        paths.forget(number, 1);
                    }
                    return Ok(());
                }
                (offset, any) = (*place, true);
            }
            match &union.problem {
                _ if !union.is_end && any => return Ok(()),
                _ if !union.is_end => {}
                // What is there was listed; that it is not all must be seen.
                Some(problem) => return Err(problem.clone().into()),
                None => return Ok(()),
            }
        }
    }

    /// Returns the attributes of a folder below `versions/`.
    pub(super) async fn path_attr(&self, number: u64, path: &[u8]) -> Result<Attr, FsError> {
        let names = self.0.roots.names(Need::Known).await;
        Ok(self.guarded(number, self.0.histories.of(&names, path).await?.guard))
    }

    fn guarded(&self, number: u64, guard: Guard) -> Attr {
        let options = &self.0.options;
        let attr = guard.guard(Attr::of_root(number, None, self.0.roots.newest_unix_ms(), options.owner));
        let attr = self.owned(attr);
        if options.readable { attr.readable(false) } else { attr }
    }

    /// Finds the node of a version as its snapshot shows it; `None` for one that is no longer listed.
    async fn version(
        &self,
        folder: &PathFolder,
        version: &Version,
        names: &Names,
    ) -> Result<Option<FoundVersion>, FsError> {
        let (roots, inodes) = (&self.0.roots, &self.0.inodes);
        let (Some(at), Some(root)) = (names.position(version.snapshot), roots.snapshot_root(names, version.snapshot))
        else {
            return Ok(None);
        };
        let page = self.0.reader.page(&version.page).await?;
        let mut directory = root.number;
        let mut parts: Vec<&[u8]> = folder.path.split(|b| *b == b'/').collect();
        let file = parts.pop().unwrap_or_default();
        for part in parts {
            directory = inodes.number(Identity::below(directory, part));
        }
        let leaf = Leaf { at: version.page, page };
        let node = leaf.nodes().get(version.slot).ok_or(FsError::Stale)?;
        let identity = Identity::of(directory, version.snapshot.id, node);
        let home = Home { directory, snapshot: root.sequence, page: leaf.at };
        let place = Place { home, slot: u32::try_from(version.slot).expect("a page is under 8 MiB") };
        Ok(Some(FoundVersion { name: of_version(&names.times[at], file), identity, place, leaf }))
    }

    fn take_version(&self, found: &FoundVersion) -> Result<Attr, FsError> {
        let number = self.0.inodes.remember(found.identity, found.place);
        Ok(self.attr(found.node()?, number))
    }
}

/// A version with its name and the node that it is.
struct FoundVersion {
    name: Vec<u8>,
    identity: Identity,
    place: Place,
    leaf: Leaf,
}

impl FoundVersion {
    fn node(&self) -> Result<&Node, FsError> {
        leaf(&self.leaf.page).get(self.place.slot as usize).ok_or(FsError::Stale)
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}

fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or_default()
}

/// Returns the place of a version in every listing: newer ones come first, and all before the names.
fn place(snapshot: SnapshotName) -> u64 {
    const TIME_BITS: u32 = 48;
    const ID_BITS: u32 = 13;
    let time = u64::try_from(snapshot.unix_ms).unwrap_or(0).min((1 << TIME_BITS) - 1);
    let id = u64::from(u16::from_be_bytes(*snapshot.id.as_bytes().first_chunk().expect("16 bytes hold 2")));
    let age = (1 << (TIME_BITS + ID_BITS)) - 1 - (time << ID_BITS | id >> (16 - ID_BITS));
    age + 3
}
