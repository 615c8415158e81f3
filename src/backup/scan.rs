//! Folders listed ahead of the walk, by threads of their own.
//!
//! The walk takes folders one after another; what it waits for are the system's answers and the parent snapshot's pages.
//! So the folders that it comes to next are opened, listed and looked up in the parent beforehand, side by side. At most
//! [`SCANS_MAX`] folders are open ahead of the walk.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{AtFlags, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::parent::{Parent, ParentDirectory};
use crate::repo::tree::TreeRef;

/// Folders that may be open ahead of the walk: descriptors are few.
pub(super) const SCANS_MAX: usize = 64;
/// Names of a folder that are looked at ahead, the others by the walk itself: 144 bytes each, in [`SCANS_MAX`] folders
/// 10 MB.
const STATS_MAX: usize = 1024;

/// Bytes of a listing asked for at once, as the C library does.
const LIST_BYTES: usize = 32 << 10;

/// An opened folder.
pub(super) struct Scan {
    pub(super) fd: Arc<OwnedFd>,
    /// Its names in the order of their bytes.
    pub(super) names: Result<Vec<Vec<u8>>, Errno>,
    /// What the first of the names are.
    pub(super) stats: Vec<Result<Stat, Errno>>,
}

/// What a scan brings: the folder, and beside it the parent snapshot's.
pub(super) type Scanned = Result<(Scan, ParentDirectory), Errno>;

/// Folders of one folder to be scanned by one thread.
pub(super) struct ScanJob {
    pub(super) above: Arc<OwnedFd>,
    /// Their names, and their trees in the parent snapshot.
    pub(super) folders: Vec<(Vec<u8>, Option<TreeRef>)>,
    /// Takes the answers in the same order.
    pub(super) answers: Sender<Scanned>,
}

/// Scans until there are no more jobs: opens each folder, lists it, and reads its first page in the parent snapshot.
pub(super) fn work(parent: &Parent, jobs: &Receiver<ScanJob>) {
    for ScanJob { above, folders, answers } in jobs {
        for (name, tree) in folders {
            let fd = open(&above, &name, OFlags::NOFOLLOW);
            let scanned = fd.map(|fd| (Scan::list(fd), parent.directory(tree)));
            if answers.send(scanned).is_err() {
                break; // the walk has stopped
            }
        }
    }
}

impl Scan {
    /// Lists a folder and looks at what is in it.
    pub(super) fn list(fd: OwnedFd) -> Self {
        let names = list(&fd);
        let first = names.iter().flatten().take(STATS_MAX);
        let stats = first.map(|name| rustix::fs::statat(&fd, &name[..], AtFlags::SYMLINK_NOFOLLOW)).collect();
        Self { fd: Arc::new(fd), names, stats }
    }

    /// Takes a folder as one whose names do not matter.
    pub(super) fn unlisted(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), names: Ok(Vec::new()), stats: Vec::new() }
    }
}

/// Opens a folder.
///
/// # Errors
/// What the system says.
pub(super) fn open(above: impl AsFd, name: &[u8], how: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOCTTY | how;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

/// Lists a folder's names in the order of their bytes.
fn list(folder: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    let mut buffer = Vec::with_capacity(LIST_BYTES);
    let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
