//! Every call that would change something, and every way in which a name is not found: a table of call, target and errno,
//! held on the real kernel. Needs root and /dev/fuse, and passes over itself without.
//!
//! truncate(2) by path is missing: no safe wrapper of it exists. `O_TRUNC` and ftruncate(2) are the same request to us.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kloset_mount::fs::MountOptions;
use rustix::fs::{
    Access, AtFlags, CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::support::mounted::{Guard, mounted_source, source};
use crate::support::program::may_mount;
use crate::support::switched::Kloset;

/// What calls are made on: a file, a folder, a link to a file, nothing, and a name below a file.
const TARGETS: [&str; 5] = ["small", "deep", "deep/link", "nothing", "small/below"];

type Outcome = Result<(), Errno>;
/// The outcome on each of the targets.
type Outcomes = [Outcome; 5];

const DONE: Outcome = Ok(());
const ROFS: Outcome = Err(Errno::ROFS);
const EXIST: Outcome = Err(Errno::EXIST);
const NOENT: Outcome = Err(Errno::NOENT);
const NOTDIR: Outcome = Err(Errno::NOTDIR);
const ISDIR: Outcome = Err(Errno::ISDIR);
const PERM: Outcome = Err(Errno::PERM);
const OPNOTSUPP: Outcome = Err(Errno::OPNOTSUPP);

/// A call, its outcomes where the mount is read-only, as it is, and where root has made it writable.
struct Row {
    what: &'static str,
    call: Box<dyn Fn(&Path) -> Outcome>,
    is: Outcomes,
    writable: Outcomes,
}

fn row(what: &'static str, call: impl Fn(&Path) -> Outcome + 'static, (is, writable): (Outcomes, Outcomes)) -> Row {
    Row { what, call: Box::new(call), is, writable }
}

fn open(flags: OFlags) -> impl Fn(&Path) -> Outcome {
    move |at| rustix::fs::open(at, flags, Mode::RUSR).map(drop)
}

fn times() -> Timestamps {
    let time = Timespec { tv_sec: 1, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Of a folder Linux says first that it is one. A mount that was made writable lets files be opened for writing, since
/// opening does not reach us; what is then written is refused.
fn openings() -> Vec<Row> {
    let written = ([ROFS, ISDIR, ROFS, NOENT, NOTDIR], [DONE, ISDIR, DONE, NOENT, NOTDIR]);
    let made = ([ROFS, ISDIR, ROFS, ROFS, NOTDIR], [DONE, ISDIR, DONE, ROFS, NOTDIR]);
    vec![
        row("open for writing", open(OFlags::WRONLY), written),
        row("open for both", open(OFlags::RDWR), written),
        row("open to append", open(OFlags::WRONLY | OFlags::APPEND), written),
        row(
            "open to cut",
            open(OFlags::WRONLY | OFlags::TRUNC),
            ([ROFS, ISDIR, ROFS, NOENT, NOTDIR], [ROFS, ISDIR, ROFS, NOENT, NOTDIR]),
        ),
        row(
            "open to cut and read",
            open(OFlags::RDONLY | OFlags::TRUNC),
            ([ROFS, ISDIR, ROFS, NOENT, NOTDIR], [ROFS, ISDIR, ROFS, NOENT, NOTDIR]),
        ),
        row("open or create", open(OFlags::WRONLY | OFlags::CREATE), made),
        // What is there already can be opened to be read.
        row(
            "open or create to read",
            open(OFlags::RDONLY | OFlags::CREATE),
            ([DONE, ISDIR, DONE, ROFS, NOTDIR], [DONE, ISDIR, DONE, ROFS, NOTDIR]),
        ),
        row(
            "create",
            open(OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL),
            ([EXIST, EXIST, EXIST, ROFS, NOTDIR], [EXIST, EXIST, EXIST, ROFS, NOTDIR]),
        ),
        // A writable mount asks us for a nameless file, and we have no such call.
        row(
            "nameless file",
            open(OFlags::RDWR | OFlags::TMPFILE),
            ([NOTDIR, ROFS, NOTDIR, NOENT, NOTDIR], [NOTDIR, OPNOTSUPP, NOTDIR, NOENT, NOTDIR]),
        ),
    ]
}

/// Linux says of an existing name first that it exists.
fn makings() -> Vec<Row> {
    let new = ([EXIST, EXIST, EXIST, ROFS, NOTDIR], [EXIST, EXIST, EXIST, ROFS, NOTDIR]);
    let mknod = |kind| move |at: &Path| rustix::fs::mknodat(CWD, at, kind, Mode::RUSR, rustix::fs::makedev(1, 3));
    vec![
        row("mkdir", |at| rustix::fs::mkdir(at, Mode::RUSR), new),
        row("mkfifo", mknod(FileType::Fifo), new),
        row("mknod of a file", mknod(FileType::RegularFile), new),
        row("mknod of a device", mknod(FileType::CharacterDevice), new),
        row("mknod of a socket", mknod(FileType::Socket), new),
        row("symlink", |at| rustix::fs::symlink("x", at), new),
        row("link to it", |at| rustix::fs::link(at.ancestors().find_map(big).unwrap(), at), new),
        // Folders have one name.
        row(
            "link of it",
            |at| rustix::fs::link(at, beside(at)),
            ([ROFS, ROFS, ROFS, NOENT, NOTDIR], [ROFS, PERM, ROFS, NOENT, NOTDIR]),
        ),
    ]
}

/// Where nothing can be removed, Linux does not look whether there is something.
fn removals() -> Vec<Row> {
    let any = [ROFS, ROFS, ROFS, ROFS, NOTDIR];
    let rename = |flags| move |at: &Path| rustix::fs::renameat_with(CWD, at, CWD, beside(at), flags);
    vec![
        row("unlink", |at| rustix::fs::unlink(at), (any, [ROFS, ISDIR, ROFS, NOENT, NOTDIR])),
        row("rmdir", |at| rustix::fs::rmdir(at), (any, [NOTDIR, ROFS, NOTDIR, NOENT, NOTDIR])),
        row("rename", rename(RenameFlags::empty()), (any, [ROFS, ROFS, ROFS, NOENT, NOTDIR])),
        row("rename exclusively", rename(RenameFlags::NOREPLACE), (any, [ROFS, ROFS, ROFS, NOENT, NOTDIR])),
        row(
            "exchange",
            |at| {
                let other = at.ancestors().find_map(big).unwrap();
                rustix::fs::renameat_with(CWD, at, CWD, other, RenameFlags::EXCHANGE)
            },
            (any, [ROFS, ROFS, ROFS, NOENT, NOTDIR]),
        ),
        row(
            "replace",
            |at| rustix::fs::rename(at.ancestors().find_map(big).unwrap(), at),
            (any, [ROFS, ISDIR, ROFS, ROFS, NOTDIR]),
        ),
    ]
}

fn attributes() -> Vec<Row> {
    let there = ([ROFS, ROFS, ROFS, NOENT, NOTDIR], [ROFS, ROFS, ROFS, NOENT, NOTDIR]);
    // Links have no attributes of users, says Linux of a writable mount.
    let no_link = ([ROFS, ROFS, ROFS, NOENT, NOTDIR], [ROFS, ROFS, PERM, NOENT, NOTDIR]);
    let (uid, flags) = (Some(Uid::from_raw(1)), XattrFlags::empty());
    // Read for all and nobody else named.
    let acl: Vec<u8> = [2, 0x0004_0001, u32::MAX, 0x0004_0004, u32::MAX, 0x0004_0020, u32::MAX]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect();
    vec![
        row("chmod", |at| rustix::fs::chmod(at, Mode::RUSR), there),
        row("chown", move |at| rustix::fs::chown(at, uid, None), there),
        row("lchown", move |at| rustix::fs::chownat(CWD, at, uid, None, AtFlags::SYMLINK_NOFOLLOW), there),
        row("utimensat", |at| rustix::fs::utimensat(CWD, at, &times(), AtFlags::empty()), there),
        row("utimensat of a link", |at| rustix::fs::utimensat(CWD, at, &times(), AtFlags::SYMLINK_NOFOLLOW), there),
        row("setxattr", move |at| rustix::fs::setxattr(at, "user.x", b"y", flags), there),
        row("setxattr of root", move |at| rustix::fs::lsetxattr(at, "trusted.x", b"y", flags), there),
        row("lsetxattr", move |at| rustix::fs::lsetxattr(at, "user.x", b"y", flags), no_link),
        row("set an ACL", move |at| rustix::fs::setxattr(at, "system.posix_acl_access", &acl, flags), there),
        row("removexattr", |at| rustix::fs::removexattr(at, "user.x"), there),
        row("lremovexattr", |at| rustix::fs::lremovexattr(at, "user.x"), no_link),
        // Root may write wherever the kernel does not know better.
        row("access", |at| rustix::fs::access(at, Access::WRITE_OK), (there.0, [DONE, DONE, DONE, NOENT, NOTDIR])),
    ]
}

/// The other file, from a folder above the target.
fn big(folder: &Path) -> Option<PathBuf> {
    Some(folder.join("big")).filter(|at| at.exists())
}

/// A name beside the target that nothing has.
fn beside(at: &Path) -> PathBuf {
    at.with_file_name("beside")
}

#[track_caller]
fn check(folder: &Path, is_writable: bool) {
    let mut wrong = Vec::new();
    for row in openings().into_iter().chain(makings()).chain(removals()).chain(attributes()) {
        let expected = if is_writable { row.writable } else { row.is };
        for (target, expected) in TARGETS.iter().zip(expected) {
            let outcome = (row.call)(&folder.join(target));
            if outcome != expected {
                wrong.push(format!("{} on {target}: {outcome:?}, not {expected:?}", row.what));
            }
        }
    }
    assert!(wrong.is_empty(), "writable: {is_writable}\n{}", wrong.join("\n"));
}

/// Nothing can be changed: every call that would is refused with `EROFS`, also where root has made the mount writable
/// (`remount,rw`).
///
/// Where Linux has an answer before it asks, that one comes: `EEXIST` of a name that is to be made and is there,
/// `EISDIR` of a folder that is to be written, `EPERM` of a second name for a folder. A mount that was made writable
/// lets files be opened for writing, since no opening reaches the mount, and refuses each write; a file without a name
/// (`O_TMPFILE`) is `EOPNOTSUPP` there.
#[test]
fn nothing_can_be_changed() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let latest = guard.latest(source.path());
    check(&latest, false);
    check_top(&guard.path().join("snapshots"));
    check_top(&guard.path());
    rustix::mount::mount_remount(guard.path(), rustix::mount::MountFlags::empty(), "").unwrap();
    check(&latest, true);
    check_top(&guard.path().join("snapshots"));
    check_top(&guard.path());
    check_written(&latest.join("small"));
    // Nothing of all that has left a trace, in the kernel's memory neither.
    assert_eq!(fs::read_to_string(latest.join("small")).unwrap(), "hello\n");
    assert!(!latest.join("nothing").exists() && !latest.join("beside").exists());
}

/// Nothing can be made in the folders that no snapshot holds.
#[track_caller]
fn check_top(folder: &Path) {
    for row in makings().into_iter().filter(|row| !row.what.starts_with("link")) {
        assert_eq!((row.call)(&folder.join("nothing")), ROFS, "{} in {folder:?}", row.what);
    }
    assert_eq!(rustix::fs::chmod(folder, Mode::RUSR), ROFS);
}

/// What is open for writing in a mount that was made writable takes no byte.
#[track_caller]
fn check_written(at: &Path) {
    let file = rustix::fs::open(at, OFlags::RDWR, Mode::empty()).unwrap();
    assert_eq!(rustix::io::write(&file, b"x"), Err(Errno::ROFS));
    assert_eq!(rustix::fs::ftruncate(&file, 1), ROFS);
    assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 10), ROFS);
    assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4), ROFS);
    assert_eq!(rustix::fs::fchmod(&file, Mode::RUSR), ROFS);
    let read_only = fs::File::open(at).unwrap();
    assert_eq!(rustix::io::write(&read_only, b"x"), Err(Errno::BADF));
    assert_eq!(rustix::fs::ftruncate(&read_only, 1), Err(Errno::INVAL));
    assert_eq!(rustix::fs::fallocate(&read_only, FallocateFlags::empty(), 0, 10), Err(Errno::BADF));
}

/// A name that leads nowhere says why: `ENOENT`, `ENOTDIR` below what is no folder, `ELOOP` for links in a circle,
/// `ENAMETOOLONG` from 256 bytes on.
#[test]
fn a_name_that_leads_nowhere_says_why() {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), source());
    symlink("round", source.path().join("and")).unwrap();
    symlink("and", source.path().join("round")).unwrap();
    kloset.backup(source.path());
    let guard = Guard::new(&kloset);
    let latest = guard.latest(source.path());
    let stat = |at: &str| rustix::fs::stat(latest.join(at)).map(drop);
    let (longest, longer, longest_path) = ("x".repeat(255), "x".repeat(256), "deep/../".repeat(512));
    for (at, expected) in [
        ("small", DONE),
        ("nothing", NOENT),
        ("nothing/below", NOENT),
        ("dangling", NOENT),
        ("deep/dangling/below", NOENT),
        ("small/", NOTDIR),
        ("small/below", NOTDIR),
        ("deep/link/below", NOTDIR),
        ("fifo/below", NOTDIR),
        ("round", Err(Errno::LOOP)),
        ("round/below", Err(Errno::LOOP)),
        (&*longest, NOENT),
        (&*longer, Err(Errno::NAMETOOLONG)),
        (&*format!("deep/{longer}/below"), Err(Errno::NAMETOOLONG)),
        (&*longest_path, Err(Errno::NAMETOOLONG)),
    ] {
        assert_eq!(stat(at), expected, "{at}");
    }
    for folder in ["", "snapshots", "hosts", "tags", "ids", "hosts/h", "incomplete", "versions", "versions/tmp"] {
        let at = |name: &str| rustix::fs::stat(guard.path().join(folder).join(name)).map(drop);
        assert_eq!((at(&longest), at(&longer)), (NOENT, Err(Errno::NAMETOOLONG)), "{folder:?}");
    }
    let no_follow = rustix::fs::open(latest.join("deep/link"), OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty());
    assert_eq!(no_follow.map(drop), Err(Errno::LOOP));
    let folder = |name: &str| rustix::fs::open(latest.join(name), OFlags::DIRECTORY, Mode::empty()).map(drop);
    assert_eq!((folder("deep"), folder("small"), folder("device")), (DONE, NOTDIR, NOTDIR));
    let device = rustix::fs::open(latest.join("device"), OFlags::RDONLY, Mode::empty());
    assert_eq!(device.map(drop), Err(Errno::ACCESS), "devices do not work");
}

/// The kernel checks modes and ACLs as on a disk, with the stored numbers: whom a mode or an ACL keeps out stays out.
/// Only who has mounted can look in; with `allow_other` everybody can whom modes and ACLs let in.
#[test]
fn whom_a_mode_keeps_out_stays_out() {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), source());
    let set = |name: &str, mode| {
        fs::set_permissions(source.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (name, mode) in [("", 0o755), ("small", 0o640), ("empty", 0o644), ("deep", 0o711), ("deep/er", 0o700)] {
        set(name, mode);
    }
    std::os::unix::fs::chown(source.path().join("small"), Some(1000), Some(1001)).unwrap();
    kloset.backup(source.path());
    let guard = Guard::with(&kloset, &MountOptions { allow_other: true, ..MountOptions::default() });
    let latest = guard.latest(source.path());
    for (words, name, allowed) in [
        (["cat"].as_slice(), "small", [true, true, false]),
        (&["cat"], "empty", [true; 3]),
        (&["ls"], "deep", [false; 3]),
        (&["stat"], "deep/link", [true; 3]),
        (&["stat"], "deep/er/file with blanks", [false; 3]),
        (&["test", "-x"], "setuid", [true; 3]),
        (&["test", "-w"], "small", [false; 3]),
    ] {
        for (uid, may) in [1000, 1001, 1002].into_iter().zip(allowed) {
            let mut command = Command::new(words[0]);
            let outcome =
                command.args(&words[1..]).arg(latest.join(name)).env("LC_ALL", "C").uid(uid).gid(uid).output();
            let outcome = outcome.unwrap();
            let told = String::from_utf8_lossy(&outcome.stderr);
            assert_eq!(outcome.status.success(), may, "user {uid}: {words:?} {name}: {told}");
            assert!(may || words[0] == "test" || told.contains("Permission denied"), "{told}");
        }
    }
    drop(guard);
    let guard = Guard::new(&kloset);
    let mut ls = Command::new("ls");
    let outcome = ls.arg(guard.path()).env("LC_ALL", "C").uid(1000).gid(1000).output().unwrap();
    assert!(String::from_utf8_lossy(&outcome.stderr).contains("Permission denied"), "{outcome:?}");
}
