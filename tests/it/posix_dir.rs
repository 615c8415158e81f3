//! What listing folders and asking for numbers must show: each entry once, stable places, kinds and inodes that agree
//! with stat(2). On the real kernel. Needs root and /dev/fuse, and passes over itself without.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, RawDir, SeekFrom};
use rustix::io::Errno;

use crate::support::mounted::{Guard, mounted_source, source};
use crate::support::program::may_mount;
use crate::support::random::Random;
use crate::support::switched::Kloset;

/// More than one page of a tree holds.
const MANY: usize = 10_000;

/// An entry of a folder, with the place behind it.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    name: String,
    inode: u64,
    kind: FileType,
    next: u64,
}

/// Lists `most` entries from a place on.
fn list(folder: &File, from: u64, most: usize, buffer_bytes: usize) -> Vec<Entry> {
    rustix::fs::seek(folder, SeekFrom::Start(from)).unwrap();
    let mut buffer = vec![MaybeUninit::uninit(); buffer_bytes];
    let (mut lines, mut out) = (RawDir::new(folder, &mut buffer), Vec::new());
    while out.len() < most {
        let Some(line) = lines.next() else { return out };
        let line = line.unwrap();
        let name = String::from_utf8_lossy(line.file_name().to_bytes()).into_owned();
        out.push(Entry { name, inode: line.ino(), kind: line.file_type(), next: line.next_entry_cookie() });
    }
    out
}

/// Lists a folder by small buffers and by large ones, from its start and from any place: always the same.
#[track_caller]
fn check_listing(at: &Path, entries: usize) -> Vec<Entry> {
    let folder = File::open(at).unwrap();
    let all = list(&folder, 0, usize::MAX, 1 << 20);
    assert_eq!(all.len(), entries + 2, "{at:?}");
    assert_eq!(all.iter().map(|entry| (&entry.name, 1)).collect::<BTreeMap<_, _>>().len(), all.len(), "twice");
    assert_eq!(list(&folder, 0, usize::MAX, 400), all);
    assert_eq!(list(&File::open(at).unwrap(), 0, usize::MAX, 4096), all);
    let mut random = Random::new(1);
    for _ in 0..50 {
        let number = usize::try_from(random.below(all.len() as u64)).unwrap();
        let found = list(&folder, all[number].next, 3, 4096);
        assert_eq!(found, all[all.len().min(number + 1)..all.len().min(number + 4)], "behind {:?}", all[number]);
    }
    all
}

/// A folder of any size is listed page by page, each entry once, and `telldir` offsets stay good for as long as the
/// mount.
#[test]
fn ten_thousand_entries_are_listed_once_each_from_any_place() {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), source());
    fs::create_dir(source.path().join("many")).unwrap();
    for number in 0..MANY {
        fs::write(source.path().join(format!("many/file {number:05}")), "").unwrap();
    }
    kloset.backup(source.path());
    let guard = Guard::new(&kloset);
    let latest = guard.latest(source.path());
    let before = check_listing(&latest.join("many"), MANY);
    for (folder, entries) in [("snapshots", 1), ("hosts/h", 2), ("ids", 1), ("versions", 1), ("", 7)] {
        check_listing(&guard.path().join(folder), entries);
    }
    check_listing(&guard.path().join(format!("versions{}/many", source.path().display())), MANY);
    drop(guard);
    let again = Guard::new(&kloset);
    assert_eq!(check_listing(&again.latest(source.path()).join("many"), MANY), before);
}

/// A folder tells of each entry the kind and the inode number that stat(2) tells; `.` and `..` are the folder itself
/// and the one above. Above the root of the mount a listing knows of nothing, so its `..` is the root itself.
#[test]
fn a_listing_agrees_with_stat() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let latest = guard.latest(source.path());
    let snapshot = guard.path().join("latest").canonicalize().unwrap();
    let mut kinds = Vec::new();
    let versions = guard.path().join(format!("versions{}", source.path().display()));
    let small = versions.join("small");
    for folder in [guard.path(), guard.path().join("hosts/h"), snapshot, latest.join("deep"), latest, versions, small] {
        for entry in list(&File::open(&folder).unwrap(), 0, usize::MAX, 4096) {
            if entry.name.contains('\u{fffd}') {
                continue; // it is no text, and its name in the list is another one's
            }
            // Above the root of a mount is what lies around it, but a listing knows of none.
            let above_root = entry.name == ".." && folder == guard.path();
            let name = if above_root { "." } else { &entry.name };
            let stat = folder.join(name).symlink_metadata().unwrap();
            assert_eq!(entry.inode, stat.ino(), "{name} in {folder:?}");
            assert_eq!(entry.kind, FileType::from_raw_mode(stat.mode()), "{name} in {folder:?}");
            kinds.push(format!("{:?}", entry.kind));
        }
    }
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, ["BlockDevice", "Directory", "Fifo", "RegularFile", "Socket", "Symlink"]);
}

/// `df` shows the size of the largest snapshot that was looked into, and nothing free.
#[test]
fn df_shows_the_largest_snapshot() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let _ = guard.latest(source.path()).metadata().unwrap();
    let space = rustix::fs::statvfs(guard.path()).unwrap();
    let bytes = space.f_blocks * space.f_frsize;
    assert!((9 << 20..14 << 20).contains(&bytes), "{bytes} bytes");
    assert_eq!((space.f_bfree, space.f_bavail, space.f_ffree, space.f_namemax), (0, 0, 0, 255));
    assert!(space.f_files == 8 && space.f_frsize == space.f_bsize, "{} files", space.f_files);
}

/// The time of access is not stored; the time of change of content is shown for it.
///
/// No `access` times, no file locks beyond this machine's, no `ioctl`.
#[test]
fn what_there_is_not_says_so() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let small = guard.latest(source.path()).join("small");
    let file = File::open(&small).unwrap();
    let before = small.metadata().unwrap();
    assert_eq!((before.atime(), before.atime_nsec()), (before.mtime(), before.mtime_nsec()));
    fs::read(&small).unwrap();
    assert_eq!(small.metadata().unwrap().atime_nsec(), before.atime_nsec());
    assert_eq!(rustix::fs::ioctl_getflags(&file).map(drop), Err(Errno::NOTTY));
    // Locks are the kernel's own: they hold among the programs of this machine.
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    let other = File::open(&small).unwrap();
    assert_eq!(rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive), Err(Errno::WOULDBLOCK));
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
    rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
    rustix::fs::fsync(&file).unwrap();
}

/// `umount` takes away mounts of kloset-mount only, and none in which a file or folder is open.
#[test]
fn a_busy_mount_is_not_taken_away() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let take_away = || rustix::mount::unmount(guard.path(), rustix::mount::UnmountFlags::empty());
    for name in ["small", "deep"] {
        let held = File::open(guard.latest(source.path()).join(name)).unwrap();
        assert_eq!(take_away(), Err(Errno::BUSY), "{name}");
        assert!(guard.latest(source.path()).join(name).exists());
        drop(held);
        // What is closed is let go a moment later.
        std::thread::sleep(Duration::from_millis(100));
    }
}
