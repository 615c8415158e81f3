//! Restoring, held on real folders.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use kloset_mount::restore::{LossKind, Overwrite, RestoreError, RestoreOptions};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};

use crate::support::scratch::{Scratch, noise, writable};

/// All that can be seen of what is at and below a path, by relative path.
fn shape(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut out = BTreeMap::new();
    describe(root, root, &mut out);
    out
}

fn describe(root: &Path, path: &Path, out: &mut BTreeMap<Vec<u8>, String>) {
    let meta = fs::symlink_metadata(path).unwrap();
    let kind = meta.file_type();
    let mut xattrs: Vec<_> = xattr::list(path).unwrap().map(|n| (n.clone(), xattr::get(path, n).unwrap())).collect();
    xattrs.sort();
    let size = if kind.is_dir() { 0 } else { meta.len() };
    let links = if kind.is_dir() { 0 } else { meta.nlink() };
    let mut text = format!(
        "{:o} {}:{} {size} {}.{:09} x{links} {xattrs:?}",
        meta.mode(),
        meta.uid(),
        meta.gid(),
        meta.mtime(),
        meta.mtime_nsec()
    );
    if kind.is_symlink() {
        text += &format!(" -> {:?}", fs::read_link(path).unwrap());
    } else if kind.is_file() {
        text += &format!(" {}", blake3::hash(&fs::read(path).unwrap()));
    } else if kind.is_char_device() || kind.is_block_device() {
        text += &format!(" {}", meta.rdev());
    }
    out.insert(path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec(), text);
    if kind.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            describe(root, &entry.unwrap().path(), out);
        }
    }
}

/// Tells whether a described path is a regular file: its type and mode are 10 and four digits.
fn is_file(text: &str) -> bool {
    text.starts_with("10") && text.split(' ').next().unwrap().len() == 6
}

fn set_mtime(path: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// One of everything a file system can hold.
fn fill(source: &Path) {
    let at = |name: &str| source.join(name);
    fs::create_dir_all(at("deep/er/est")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    fs::write(at("none"), "").unwrap();
    fs::write(at("small"), "small\n").unwrap();
    fs::write(at("deep/er/est/medium"), noise("medium", 700_000)).unwrap();
    fs::write(at("large"), noise("large", 9_000_000)).unwrap();
    for n in 0..400 {
        fs::write(at(&format!("deep/er/{n:03}")), noise(&n.to_string(), n * 7)).unwrap();
    }
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all_at(&noise("sparse", 5 << 20), 3 << 20).unwrap();
    sparse.write_all_at(b"behind", 15 << 20).unwrap();
    File::create(at("all hole")).unwrap().set_len(1 << 20).unwrap();
    fs::hard_link(at("large"), at("deep/large again")).unwrap();
    fs::hard_link(at("small"), at("deep/er/est/small again")).unwrap();
    fs::hard_link(at("small"), at("zz")).unwrap();
    symlink("../nowhere", at("deep/dangling")).unwrap();
    symlink("small", at("link")).unwrap();
    symlink(OsStr::from_bytes(b"\xff/x"), source.join(OsStr::from_bytes(b"odd \xfe\n\x1b"))).unwrap();
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    rustix::fs::mknodat(CWD, at("socket"), FileType::Socket, Mode::from_raw_mode(0o600), 0).unwrap();
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        rustix::fs::mknodat(CWD, at("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).unwrap();
        std::os::unix::fs::chown(at("deep/er/007"), Some(1234), Some(4321)).unwrap();
        std::os::unix::fs::lchown(at("link"), Some(77), Some(78)).unwrap();
    }
    let _ = xattr::set(at("small"), "user.note", b"\0\xff"); // not every file system has them
    let _ = xattr::set(at("deep"), "user.folder", b"");
    chmod(&at("none"), 0o4711);
    chmod(&at("empty"), 0o1777);
    chmod(&at("deep/er/008"), 0o000);
    set_mtime(&at("none"), -5, 999_999_999);
    set_mtime(&at("link"), 86_400, 1);
    set_mtime(&at("deep/er/est/medium"), 4_102_444_800, 7);
    chmod(&at("deep/er/est"), 0o555);
    for folder in ["deep/er/est", "deep/er", "deep", "empty", ""] {
        set_mtime(&at(folder), 1_000_000, 123_456_789);
    }
}

#[test]
fn everything_comes_back_as_it_was() {
    let scratch = Scratch::new();
    fill(&scratch.source());
    let expected = shape(&scratch.source());
    let snapshot = scratch.backup();
    let target = scratch.fresh("target");
    let report = scratch.restore(&scratch.repo, snapshot, &target, Overwrite::Never).unwrap();
    assert_eq!((report.failures_total, report.losses), (0, vec![]));
    let restored = shape(&target);
    for (path, text) in &expected {
        assert_eq!(restored.get(path), Some(text), "{}", path.escape_ascii());
    }
    assert_eq!(restored.len(), expected.len());
    let of = |name: &str| fs::metadata(target.join(name)).unwrap();
    assert_eq!(of("small").ino(), of("deep/er/est/small again").ino());
    assert_eq!(of("large").ino(), of("deep/large again").ino());
    assert_eq!(of("all hole").blocks(), 0);
    assert!(of("sparse").blocks() * 512 < 7 << 20, "{} blocks", of("sparse").blocks());
    assert_eq!(report.files, expected.values().filter(|text| is_file(text)).count() as u64);
    writable(&target.join("deep/er/est"));
    writable(&scratch.source().join("deep/er/est"));
}

#[test]
fn copies_of_what_was_restored_long_before_come_back_whole() {
    let scratch = Scratch::new();
    let source = scratch.source();
    fs::write(source.join("a original"), noise("copied", 5000)).unwrap();
    fs::write(source.join("a private"), noise("private", 5000)).unwrap();
    for n in 0..40 {
        fs::write(source.join(format!("b {n:02}")), noise(&format!("far {n}"), 900_000)).unwrap();
    }
    fs::create_dir(source.join("c")).unwrap();
    for n in 0..5 {
        fs::write(source.join(format!("c/copy {n}")), noise("copied", 5000)).unwrap();
    }
    fs::write(source.join("c/private"), noise("private", 5000)).unwrap();
    let snapshot = scratch.backup();
    let target = scratch.fresh("target");
    // One original is not what the walk expects where it looks for it.
    fs::create_dir(&target).unwrap();
    let (size, time) = (5000, fs::metadata(source.join("a private")).unwrap());
    fs::write(target.join("a private"), vec![0; size]).unwrap();
    set_mtime(&target.join("a private"), time.mtime(), time.mtime_nsec());
    let report = scratch.restore(&scratch.repo, snapshot, &target, Overwrite::IfChanged).unwrap();
    assert_eq!((report.files, report.unchanged, report.failures_total), (47, 1, 0));
    for n in 0..5 {
        assert_eq!(fs::read(target.join(format!("c/copy {n}"))).unwrap(), noise("copied", 5000));
    }
    assert_eq!(fs::read(target.join("c/private")).unwrap(), noise("private", 5000));
}

#[test]
fn a_path_lands_in_the_folder_and_no_path_below_it() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.source().join("a")).unwrap();
    fs::write(scratch.source().join("a/b"), "b").unwrap();
    let snapshot = scratch.backup();
    let restore = |path: Option<&str>| {
        let path = path.map(|path| format!("{}/{path}", scratch.source().display()).into_bytes());
        let target = scratch.fresh("target");
        let options =
            RestoreOptions { snapshot, path, target: target.clone(), overwrite: Overwrite::Never, dry_run: false };
        scratch.restore_with(&scratch.repo, options).map(|_| target)
    };
    assert_eq!(fs::read(restore(Some("a/b")).unwrap().join("b")).unwrap(), b"b");
    assert_eq!(fs::read(restore(Some("a")).unwrap().join("b")).unwrap(), b"b");
    assert_eq!(fs::read(restore(Some("")).unwrap().join("a/b")).unwrap(), b"b");
    let whole = restore(None).unwrap();
    assert_eq!(fs::read(whole.join(scratch.source().strip_prefix("/").unwrap()).join("a/b")).unwrap(), b"b");
    assert!(restore(Some("a/c")).is_err());
}

#[test]
fn what_is_there_is_kept_unless_it_may_be_replaced() {
    let scratch = Scratch::new();
    for name in ["a", "b", "sub/c"] {
        let path = scratch.source().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let snapshot = scratch.backup();
    let target = scratch.fresh("target");
    fs::create_dir_all(target.join("sub")).unwrap();
    fs::write(target.join("sub/c"), "mine").unwrap();
    fs::write(target.join("other"), "other").unwrap();
    let restore = |overwrite| scratch.restore(&scratch.repo, snapshot, &target, overwrite);

    match restore(Overwrite::Never) {
        Err(RestoreError::InTheWay { paths, total: 1 }) => assert!(paths[0].0.ends_with(b"/source/sub/c")),
        other => panic!("{other:?}"),
    }
    assert!(!target.join("a").exists(), "nothing is written where something is in the way");

    let report = restore(Overwrite::IfChanged).unwrap();
    assert_eq!((report.files, report.unchanged, report.failures_total), (3, 0, 0));
    assert_eq!(fs::read(target.join("sub/c")).unwrap(), b"sub/c");
    assert_eq!(fs::read(target.join("other")).unwrap(), b"other");

    fs::write(target.join("a"), "A").unwrap();
    let report = restore(Overwrite::IfChanged).unwrap();
    assert_eq!((report.files, report.unchanged), (1, 2));
    assert_eq!(fs::read(target.join("a")).unwrap(), b"a");
    assert_eq!(restore(Overwrite::Always).unwrap().files, 3);
    assert_eq!(fs::read_dir(&target).unwrap().count(), 4, "nothing temporary is left");
}

#[test]
fn links_in_the_target_are_replaced_and_never_followed() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.source().join("dir")).unwrap();
    fs::write(scratch.source().join("dir/file"), "new").unwrap();
    fs::write(scratch.source().join("file"), "new").unwrap();
    let snapshot = scratch.backup();
    let (target, outside) = (scratch.fresh("target"), scratch.fresh("outside"));
    fs::create_dir(&target).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "old").unwrap();
    symlink(&outside, target.join("dir")).unwrap();
    symlink(outside.join("file"), target.join("file")).unwrap();
    assert!(scratch.restore(&scratch.repo, snapshot, &target, Overwrite::Never).is_err());
    let report = scratch.restore(&scratch.repo, snapshot, &target, Overwrite::Always).unwrap();
    assert_eq!(report.failures_total, 0);
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"old");
    assert!(target.join("dir").symlink_metadata().unwrap().is_dir());
    assert_eq!(fs::read(target.join("file")).unwrap(), b"new");
    assert_eq!(fs::read(target.join("dir/file")).unwrap(), b"new");
}

#[test]
fn a_folder_in_the_place_of_a_file_is_reported_and_kept() {
    let scratch = Scratch::new();
    fs::write(scratch.source().join("a"), "a").unwrap();
    fs::write(scratch.source().join("b"), "b").unwrap();
    let snapshot = scratch.backup();
    let target = scratch.fresh("target");
    fs::create_dir_all(target.join("a/kept")).unwrap();
    let report = scratch.restore(&scratch.repo, snapshot, &target, Overwrite::Always).unwrap();
    assert_eq!((report.files, report.failures_total, report.damaged), (1, 1, 0));
    assert!(target.join("a/kept").is_dir());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 2, "nothing temporary is left");
}

#[test]
fn a_dry_run_writes_nothing_and_tells_what_is_there() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.source().join("dir")).unwrap();
    fs::write(scratch.source().join("dir/a"), "12345").unwrap();
    fs::write(scratch.source().join("b"), "123").unwrap();
    symlink("b", scratch.source().join("c")).unwrap();
    let snapshot = scratch.backup();
    let target = scratch.fresh("target");
    let options = |overwrite| RestoreOptions {
        snapshot,
        path: Some(scratch.source().into_os_string().into_encoded_bytes()),
        target: target.clone(),
        overwrite,
        dry_run: true,
    };
    let report = scratch.restore_with(&scratch.repo, options(Overwrite::Never)).unwrap();
    assert_eq!((report.files, report.directories, report.others, report.bytes), (2, 1, 1, 8));
    assert_eq!(report.in_the_way_total, 0);
    assert!(!target.exists());
    fs::create_dir(&target).unwrap();
    fs::write(target.join("b"), "x").unwrap();
    let report = scratch.restore_with(&scratch.repo, options(Overwrite::Never)).unwrap();
    assert_eq!((report.files, report.in_the_way_total), (2, 1));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
}

#[test]
fn a_file_with_a_damaged_chunk_is_not_left_behind_and_the_others_come() {
    let scratch = Scratch::new();
    fs::write(scratch.source().join("large"), noise("large", 12_000_000)).unwrap();
    fs::hard_link(scratch.source().join("large"), scratch.source().join("other name")).unwrap();
    fs::write(scratch.source().join("small"), "small").unwrap();
    let snapshot = scratch.backup();
    let mut objects = scratch.objects();
    let pack = objects.values_mut().max_by_key(|content| content.len()).unwrap();
    let middle = pack.len() / 2;
    pack[middle] ^= 1;
    let repo = scratch.open(&scratch.lay_out(&objects)).unwrap();
    let target = scratch.fresh("target");
    let report = scratch.restore(&repo, snapshot, &target, Overwrite::Never).unwrap();
    assert_eq!((report.files, report.failures_total, report.damaged), (1, 2, 2));
    assert!(report.failures[0].message.contains("frame at"), "{:?}", report.failures);
    assert!(report.failures.iter().any(|f| f.path.0.ends_with(b"/source/large")));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    assert_eq!(fs::read(target.join("small")).unwrap(), b"small");
}

#[test]
fn without_the_right_owner_a_file_gets_no_setuid() {
    if rustix::process::geteuid().is_root() {
        return; // the superuser may set every owner
    }
    let scratch = Scratch::new();
    fs::write(scratch.source().join("a"), "a").unwrap();
    chmod(&scratch.source().join("a"), 0o4755);
    let snapshot = scratch.backup();
    let target = scratch.fresh("target");
    let report = scratch.restore(&scratch.repo, snapshot, &target, Overwrite::Never).unwrap();
    assert!(report.losses.iter().all(|loss| loss.kind != LossKind::Ownership));
    assert_eq!(fs::metadata(target.join("a")).unwrap().mode() & 0o7777, 0o4755);
}
