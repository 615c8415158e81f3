//! Folders listed ahead of the walk, by threads of their own.
//!
//! The walk takes folders one after another; what it waits for are the system's answers and the parent snapshot's pages.
//! So the folders that it comes to next are opened, listed and looked up in the parent beforehand, side by side, and with
//! each the first folders below it: waiting for every small one costs more than the look. Never is a folder looked at that
//! the walk would not enter: where the files of a folder have a say, only the walk goes further. At most [`SCANS_MAX`] times
//! [`FOLDERS_MAX`] folders are open ahead of it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::parent::{Parent, ParentDirectory};
use super::select::Fixed;
use crate::repo::tree::TreeRef;

/// Scans that may be under way or wait for the walk.
pub(super) const SCANS_MAX: usize = 64;
/// Folders of one scan: the one asked for, and those that the walk enters from there. Descriptors are few.
const FOLDERS_MAX: usize = 4;
/// Names of a folder that are looked at ahead, those behind them by the walk itself as it comes on: 144 bytes each, in all
/// folders that may be open 10 MB.
pub(super) const STATS_MAX: usize = 256;

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

/// What a scan brings: the folder, the parent snapshot's beside it, and the first folders in it, in their order.
pub(super) struct Scanned {
    pub(super) scan: Scan,
    pub(super) parent: ParentDirectory,
    pub(super) below: VecDeque<Below>,
}

/// A folder in one that was scanned: the place of its name there, its tree in the parent snapshot.
pub(super) struct Below {
    pub(super) at: usize,
    pub(super) tree: Option<TreeRef>,
    pub(super) scanned: Scanned,
}

/// A folder to be scanned.
pub(super) struct ToScan {
    pub(super) name: Vec<u8>,
    /// Its tree in the parent snapshot.
    pub(super) tree: Option<TreeRef>,
    /// The file system that it is on.
    pub(super) device: u64,
}

/// Folders of one folder to be scanned by one thread.
pub(super) struct ScanJob {
    pub(super) above: Arc<OwnedFd>,
    pub(super) path: Vec<u8>,
    /// Whether what holds everywhere is all that decides there.
    pub(super) is_plain: bool,
    pub(super) folders: Vec<ToScan>,
    /// Takes the answers in the same order.
    pub(super) answers: Sender<Result<Scanned, Errno>>,
}

/// What every scanning thread shares.
pub(super) struct Scanner<'a> {
    pub(super) parent: Parent,
    pub(super) fixed: Arc<Fixed<'a>>,
}

impl Scanner<'_> {
    /// Scans until there are no more jobs.
    pub(super) fn work(&self, jobs: &Receiver<ScanJob>) {
        for ScanJob { above, mut path, is_plain, folders, answers } in jobs {
            for folder in folders {
                let mut room = if is_plain { FOLDERS_MAX - 1 } else { 0 };
                if answers.send(self.scan(&above, &folder, &mut path, &mut room)).is_err() {
                    break; // the walk has stopped
                }
            }
        }
    }

    /// Opens a folder, lists it, reads its first page in the parent snapshot, and goes on with `room` folders in it. `path`
    /// is that of the folder above, and is again.
    fn scan(&self, above: &OwnedFd, folder: &ToScan, path: &mut Vec<u8>, room: &mut usize) -> Result<Scanned, Errno> {
        let scan = Scan::list(open(above, &folder.name, OFlags::NOFOLLOW)?);
        let parent = self.parent.directory(folder.tree);
        let mut below = VecDeque::new();
        let names = scan.names.as_deref().unwrap_or_default();
        if *room > 0 && self.fixed.is_silent(names) {
            let above_bytes = append(path, &folder.name);
            for (at, (name, stat)) in names.iter().zip(&scan.stats).enumerate() {
                let Some(stat) = stat.as_ref().ok().filter(|stat| is_folder(stat)) else { continue };
                if *room == 0 {
                    break;
                }
                let folder_bytes = append(path, name);
                let walks = self.fixed.walks(Some(folder.device), path, stat);
                path.truncate(folder_bytes);
                if walks {
                    *room -= 1;
                    let next = ToScan { name: name.clone(), tree: parent.tree_ahead(name), device: stat.st_dev };
                    // What cannot be opened the walk asks for itself, and tells.
                    if let Ok(scanned) = self.scan(&scan.fd, &next, path, room) {
                        below.push_back(Below { at, tree: next.tree, scanned });
                    }
                }
            }
            path.truncate(above_bytes);
        }
        Ok(Scanned { scan, parent, below })
    }
}

/// Appends a name to a path and returns how long that was.
fn append(path: &mut Vec<u8>, name: &[u8]) -> usize {
    let bytes = path.len();
    path.push(b'/');
    path.extend_from_slice(name);
    bytes
}

/// Tells whether that is of a folder.
pub(super) fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
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

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;

    use super::super::rules::Rule;
    use super::super::select::{Excludes, Marker, Select};
    use super::*;

    /// The names of the folders in a scan, each with what is below it.
    fn shown(scanned: &Scanned) -> String {
        let names = scanned.scan.names.as_ref().unwrap();
        let each = scanned.below.iter().map(|below| {
            let inside = shown(&below.scanned);
            format!("{}{inside}", String::from_utf8_lossy(&names[below.at]))
        });
        let all = each.collect::<Vec<_>>().join(" ");
        if all.is_empty() { all } else { format!("({all})") }
    }

    #[test]
    fn folders_below_are_scanned_in_order_and_none_that_the_walk_may_not_enter() {
        let top = tempfile::tempdir().unwrap();
        let at = top.path();
        for folder in ["a/b/c", "a/d", "e/cache/x", "e/out/x", "e/rules/x", "e/kept", "f/1", "f/2", "f/3", "f/4", "f/5"]
        {
            fs::create_dir_all(at.join(folder)).unwrap();
        }
        fs::write(at.join("e/cache/CACHEDIR.TAG"), "").unwrap();
        fs::write(at.join("e/rules/.klosetignore"), "").unwrap();
        let rule = format!("{}/e/out", at.display());
        let excludes = Excludes {
            rules: vec![Rule { text: rule, from: String::new() }],
            ignore_files: true,
            markers: vec![Marker::cache()],
            ..Excludes::default()
        };
        let select = Select::new(&excludes, false, HashSet::new()).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let parent = Parent { reader: None, runtime: runtime.handle().clone(), standing: Arc::default() };
        let scanner = Scanner { parent, fixed: select.fixed().clone() };
        let above = fs::File::open(at).unwrap().into();
        let scan = |name: &str, mut room: usize| {
            let folder = ToScan { name: name.into(), tree: None, device: 0 };
            let mut path = at.as_os_str().as_encoded_bytes().to_vec();
            let scanned = scanner.scan(&above, &folder, &mut path, &mut room).unwrap();
            assert_eq!(path, at.as_os_str().as_encoded_bytes());
            shown(&scanned)
        };
        assert_eq!(scan("a", 3), "(b(c) d)");
        assert_eq!(scan("e", 9), "(cache kept rules)", "what stands in a folder may have a say below it");
        assert_eq!((scan("f", 3), scan("f", 0)), ("(1 2 3)".into(), String::new()));
    }
}
