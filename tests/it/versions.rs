//! `versions/` of a mount: without a kernel, but for one look through the real one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use futures::FutureExt;
use kloset_mount::fs::attr::Kind;
use kloset_mount::fs::filter::Wanted;
use kloset_mount::fs::view::ROOT;
use kloset_mount::fs::{FsError, ViewOptions};
use rustix::io::Errno;

use crate::support::looked::Looked;
use crate::support::mounted::Guard;
use crate::support::program::may_mount;
use crate::support::switched::{Kloset, noise};

/// Where a path of the source is in `versions/`.
fn versions(path: &Path) -> String {
    format!("versions{}", path.display())
}

/// The names in a folder in the order in which they are listed.
fn listed(looked: &Looked<'_>, path: &str) -> Vec<String> {
    let number = looked.find(path).unwrap_or_else(|| panic!("{path} is not there")).number;
    let lines = looked.lines(number, 3).unwrap();
    lines.into_iter().map(|line| line.0).filter(|name| name != "." && name != "..").collect()
}

/// `versions/` has every path of the snapshots that are shown, and each is a folder there: `versions/etc/` holds the names
/// that `/etc` had in any of them, and `versions/etc/fstab/` what that file was, each content once, newest first. A version is
/// named by the time of the first snapshot that has it, and ends as its file does, so that programs know it:
/// `2026-11-22_13-58-00.txt`.
#[test]
fn each_content_of_a_path_is_there_once_newest_first() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let note = folder.path().join("note.txt");
    for content in ["one", "one", "two", "three"] {
        fs::write(&note, content).unwrap();
        if content == "two" {
            fs::write(folder.path().join("came"), "and went").unwrap();
        }
        kloset.backup(folder.path());
        let _ = fs::remove_file(folder.path().join("came"));
    }
    let looked = kloset.look();
    let mut names = listed(&looked, &versions(folder.path()));
    names.sort();
    assert_eq!(names, ["came", "note.txt"]);
    let at = versions(&note);
    let expected = ["2026-11-22_14-02-00.txt", "2026-11-22_14-01-00.txt", "2026-11-22_13-59-00.txt"];
    assert_eq!(listed(&looked, &at), expected);
    for (name, content) in expected.iter().zip(["three", "two", "one"]) {
        let attr = looked.find(&format!("{at}/{name}")).unwrap();
        assert_eq!((attr.kind, attr.bytes), (Kind::File, content.len() as u64));
        assert_eq!(looked.read_all(attr.number, attr.bytes).unwrap(), content.as_bytes());
    }
    assert_eq!(listed(&looked, &versions(&folder.path().join("came"))), ["2026-11-22_14-01-00"]);
    for none in ["2026-11-22_14-00-00.txt", "2026-11-22_14-02-00", "note.txt"] {
        assert_eq!(looked.find(&format!("{at}/{none}")), None, "{none}");
    }
}

/// A version is the file that its snapshot has: one inode, with the same attributes and extended attributes.
#[test]
fn a_version_is_the_inode_of_its_snapshot() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("file"), noise(3 << 20)).unwrap();
    fs::hard_link(folder.path().join("file"), folder.path().join("too")).unwrap();
    fs::write(folder.path().join("single"), "x").unwrap();
    let first = kloset.backup(folder.path());
    kloset.backup(folder.path());
    let looked = kloset.look();
    for name in ["file", "too", "single"] {
        let path = folder.path().join(name);
        let version = looked.find(&format!("{}/2026-11-22_13-59-00", versions(&path))).unwrap();
        assert_eq!(looked.find(&format!("snapshots/2026-11-22_13-59-00{}", path.display())), Some(version));
        let line = looked.list(looked.find(&versions(&path)).unwrap().number, 9)["2026-11-22_13-59-00"];
        assert_eq!(line, version, "a listing tells the same");
        let id = looked.run(looked.view.getxattr(version.number, b"user.kloset.snapshot")).unwrap();
        assert_eq!(id, first.name.id.to_string().into_bytes());
    }
}

/// Times, owners and modes make no version. A content that comes back is not there a second time.
#[test]
fn only_content_makes_a_version() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let file = folder.path().join("file");
    for content in ["one", "two", "one"] {
        fs::write(&file, content).unwrap();
        kloset.backup(folder.path());
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        kloset.backup(folder.path());
    }
    let looked = kloset.look();
    assert_eq!(listed(&looked, &versions(&file)), ["2026-11-22_14-01-00", "2026-11-22_13-59-00"]);
    assert_eq!(looked.find(&format!("{}/2026-11-22_13-59-00", versions(&file))).unwrap().mode, 0o644);
}

/// What was a file in one snapshot and a folder in another is both: its versions come first, then the names below it. A name
/// below that is also a version's means what is below. Links, devices and pipes have versions as files have.
#[test]
fn a_name_may_have_been_a_file_and_a_folder() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let name = folder.path().join("name");
    fs::write(&name, "file").unwrap();
    kloset.backup(folder.path());
    fs::remove_file(&name).unwrap();
    symlink("nowhere", &name).unwrap();
    kloset.backup(folder.path());
    fs::remove_file(&name).unwrap();
    fs::create_dir(&name).unwrap();
    fs::write(name.join("below"), "").unwrap();
    kloset.backup(folder.path());
    let looked = kloset.look();
    let at = versions(&name);
    assert_eq!(listed(&looked, &at), ["2026-11-22_14-00-00", "2026-11-22_13-59-00", "below"]);
    let link = looked.find(&format!("{at}/2026-11-22_14-00-00")).unwrap();
    assert_eq!(looked.run(looked.view.readlink(link.number)).unwrap(), b"nowhere");
    assert_eq!(listed(&looked, &format!("{at}/below")), ["2026-11-22_14-01-00"]);
    fs::write(name.join("2026-11-22_14-00-00"), "").unwrap();
    kloset.backup(folder.path());
    let looked = kloset.look();
    let mut names = listed(&looked, &at);
    names.sort();
    assert_eq!(names, ["2026-11-22_13-59-00", "2026-11-22_14-00-00", "below"]);
    assert_eq!(looked.find(&format!("{at}/2026-11-22_14-00-00")).unwrap().kind, Kind::Directory);
}

/// A folder of `versions/` lets nobody in whom one of the folders that it stands for would keep out. Where these belong to
/// different users, only who has mounted goes in; where one has an ACL, only its owner.
#[test]
fn nobody_goes_in_who_was_kept_out_once() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let [private, given] = ["private", "given"].map(|name| folder.path().join(name));
    fs::create_dir(&private).unwrap();
    fs::create_dir(&given).unwrap();
    for (mode, uid) in [(0o755, 7), (0o2710, 7), (0o750, 9)] {
        fs::set_permissions(&private, fs::Permissions::from_mode(mode)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&given, Some(uid), None).unwrap();
        }
        kloset.backup(folder.path());
    }
    let owner = private.metadata().unwrap().uid();
    let looked = kloset.look_with(ViewOptions { owner: (4711, 4712), ..ViewOptions::default() });
    for _ in 0..2 {
        let of = |path: &Path| {
            let (found, above) =
                (looked.find(&versions(path)).unwrap(), looked.find(&versions(folder.path())).unwrap());
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(looked.list(above.number, 9)[name], found, "a listing tells the same");
            (found.uid, found.mode)
        };
        assert_eq!(of(&private), (owner, 0o710));
        if rustix::process::geteuid().is_root() {
            assert_eq!(of(&given), (4711, 0o700));
        }
    }
    let looked = kloset.look_with(ViewOptions { uid: Some(5), readable: true, ..ViewOptions::default() });
    let found = looked.find(&versions(&private)).unwrap();
    assert_eq!((found.uid, found.mode), (5, 0o710));
}

/// New snapshots appear in `versions/` as everywhere, and with `--host`, `--tag` and `--path` only what such snapshots have.
/// A mount of one snapshot alone has no `versions/`.
#[test]
fn versions_follow_the_snapshots_that_are_shown() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let file = folder.path().join("file");
    let backup = |content: &str, host: &str| {
        fs::write(&file, content).unwrap();
        kloset.backup_as(folder.path(), host, &[])
    };
    let first = backup("one", "a");
    let wanted = Wanted { hosts: vec!["a".to_owned()], ..Wanted::default() };
    let (looked, few) = (kloset.look(), kloset.look_with(ViewOptions { wanted, ..ViewOptions::default() }));
    let at = versions(&file);
    assert_eq!(listed(&looked, &at).len(), 1);
    let folder_number = looked.find(&versions(folder.path())).unwrap().number;
    backup("two", "b");
    kloset.pass(11);
    assert_eq!(listed(&looked, &at), ["2026-11-22_14-00-00", "2026-11-22_13-59-00"]);
    assert_eq!(listed(&few, &at), ["2026-11-22_13-59-00"]);
    fs::write(folder.path().join("new"), "").unwrap();
    backup("three", "a");
    kloset.pass(2);
    // Who asks by name sees it before it is listed.
    assert!(looked.find_below(folder_number, "new").is_some());
    kloset.pass(11);
    assert_eq!(listed(&few, &at), ["2026-11-22_14-01-00", "2026-11-22_13-59-00"]);
    let alone = kloset.look_with(ViewOptions { only: Some(first.name), ..ViewOptions::default() });
    assert_eq!(alone.find("versions"), None);
}

/// Where a snapshot cannot be read, what the others have is there, and every listing that may lack something ends with `EIO`.
/// Who asks for a name that may have been in it gets `EIO`, too.
#[test]
fn what_cannot_be_read_is_an_error_and_the_rest_is_there() {
    for is_manifest in [true, false] {
        let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
        let file = folder.path().join("file");
        fs::write(&file, "one").unwrap();
        kloset.backup(folder.path());
        let packs = kloset.packs();
        fs::write(&file, "two").unwrap();
        kloset.backup(folder.path());
        match is_manifest {
            true => kloset.damage_newest_manifest(),
            false => kloset.delete_packs_but(&packs),
        }
        let looked = kloset.look();
        for (path, name) in [(versions(folder.path()), "file"), (versions(&file), "2026-11-22_13-59-00")] {
            let number = looked.find(&path).unwrap().number;
            let (names, error) = looked.lines(number, 9).unwrap_err();
            assert_eq!(names, [".", "..", name], "{path}");
            assert_eq!(error.errno(), Errno::IO);
            let absent = looked.run(looked.view.lookup(number, b"absent")).unwrap_err();
            assert_eq!(absent.errno(), Errno::IO);
        }
        let version = looked.find(&format!("{}/2026-11-22_13-59-00", versions(&file))).unwrap();
        assert_eq!(looked.read_all(version.number, 3).unwrap(), b"one");
    }
}

#[test]
fn an_outage_is_an_error_and_nothing_is_remembered_of_it() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("file"), "one").unwrap();
    kloset.backup(folder.path());
    let looked = kloset.look();
    let number = looked.find("versions").unwrap().number;
    kloset.switch_off(true);
    assert_eq!(looked.lines(number, 9).unwrap_err().1.errno(), Errno::IO);
    assert_eq!(looked.run(looked.view.lookup(number, b"tmp")).unwrap_err().errno(), Errno::IO);
    assert_eq!(looked.find("versions").map(|attr| attr.number), Some(number));
    kloset.switch_off(false);
    assert_eq!(listed(&looked, &versions(&folder.path().join("file"))), ["2026-11-22_13-59-00"]);
}

/// The first look into `versions/` opens every manifest, once. After that a folder that did not change costs what it costs in
/// one snapshot, however many have it, and nothing is fetched before somebody looks.
#[test]
fn unchanged_folders_are_looked_into_once_however_many_snapshots_have_them() {
    const SNAPSHOTS: u64 = 100;
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    let at = |name: &str| folder.path().join(name);
    for n in 0..20 {
        fs::create_dir_all(at(&format!("still/{n}"))).unwrap();
        fs::write(at(&format!("still/{n}/file")), format!("{n}")).unwrap();
    }
    for n in 0..SNAPSHOTS {
        if n % 10 == 0 {
            fs::write(at("moving"), format!("{n}")).unwrap();
        }
        kloset.backup(folder.path());
    }
    // Folders above belong to others, who may have changed them meanwhile.
    let other = kloset.look();
    let id = |name: &String| {
        let root = other.find(&format!("snapshots/{name}")).unwrap().number;
        other.run(other.view.getxattr(root, b"user.kloset.id")).unwrap()
    };
    let distinct = other.names("snapshots").iter().map(id).collect::<BTreeSet<_>>().len() as u64;
    let looked = kloset.look();
    let before = kloset.requests();
    assert_eq!(listed(&looked, &versions(&at("moving"))).len(), 10);
    let asked = kloset.requests() - before;
    assert!((SNAPSHOTS..=SNAPSHOTS + distinct + 3).contains(&asked), "{asked} requests for {distinct} roots");
    let before = kloset.requests();
    for n in 0..20 {
        assert_eq!(listed(&looked, &versions(&at(&format!("still/{n}/file")))), ["2026-11-22_13-59-00"]);
    }
    assert!(kloset.requests() - before <= 1, "{}", kloset.requests() - before);
    let number = looked.find(&versions(&at("still"))).unwrap().number;
    assert!(looked.view.lookup(number, b"7").now_or_never().is_some(), "what is in memory needs no waiting");
}

/// Folders of any size are listed, each name once, and an offset stays good whatever snapshots come.
#[test]
fn large_folders_of_versions_are_listed_once_each_while_snapshots_come() {
    const COUNT: usize = 5000;
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let write = |n: usize| fs::write(folder.path().join(format!("file {n:05}")), "").unwrap();
    (0..COUNT).for_each(write);
    kloset.backup(folder.path());
    let looked = kloset.look();
    let number = looked.find(&versions(folder.path())).unwrap().number;
    for lines in [7, 1000, 100_000] {
        assert_eq!(looked.list(number, lines).len(), COUNT + 2);
    }
    let (mut names, mut offset, mut more) = (Vec::new(), 0, true);
    while more {
        let (before, from) = (names.len(), offset);
        let mut take = |line: &kloset_mount::fs::view::Line<'_>| {
            let is_full = names.len() == before + 1000;
            if !is_full {
                names.push(line.name.to_vec());
                offset = line.next;
            }
            is_full
        };
        looked.run(looked.view.readdir(number, from, false, &mut take)).unwrap();
        more = names.len() > before;
        if before == 1000 {
            fs::remove_file(folder.path().join("file 00000")).unwrap();
            (COUNT..COUNT + 500).for_each(write);
            kloset.backup(folder.path());
            kloset.pass(11);
        }
    }
    let distinct: BTreeSet<_> = names.iter().collect();
    assert_eq!(distinct.len(), names.len(), "listed twice");
    let old = (0..COUNT).map(|n| format!("file {n:05}").into_bytes());
    assert!(old.into_iter().all(|name| distinct.contains(&name)), "left out");
}

#[test]
fn folders_of_versions_are_freed_when_they_are_forgotten() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    for n in 0..50 {
        fs::write(folder.path().join(format!("{n}")), format!("{n}")).unwrap();
    }
    kloset.backup(folder.path());
    let looked = kloset.look();
    let mut known = Vec::new();
    let mut number = looked.run(looked.view.lookup(ROOT, b"versions")).unwrap().attr.unwrap().number;
    for part in folder.path().strip_prefix("/").unwrap() {
        let found = looked.run(looked.view.lookup(number, part.as_encoded_bytes())).unwrap();
        number = found.attr.unwrap().number;
        known.push(number);
    }
    let mut below = Vec::new();
    for _ in 0..2 {
        let mut take = |line: &kloset_mount::fs::view::Line<'_>| {
            below.extend((line.name != b"." && line.name != b"..").then_some(line.attr.number));
            false
        };
        looked.run(looked.view.readdir(number, 0, true, &mut take)).unwrap();
    }
    assert_eq!((below.len(), looked.view.inodes_len()), (100, 50 + known.len()));
    let file = below[0];
    let mut versions = Vec::new();
    let mut take = |line: &kloset_mount::fs::view::Line<'_>| {
        versions.push(line.attr.number);
        false
    };
    looked.run(looked.view.readdir(file, 2, true, &mut take)).unwrap();
    assert_eq!((versions.len(), looked.view.inodes_len()), (1, 51 + known.len()));
    // What is above is forgotten first: the kernel may do so.
    for number in known.into_iter().chain(below).chain(versions) {
        looked.view.forget(number, 1);
    }
    assert_eq!(looked.view.inodes_len(), 0);
    assert!(matches!(looked.run(looked.view.getattr(file)), Err(FsError::Stale)));
}

/// `cp` takes a version out as the file that it was.
#[test]
fn a_version_is_found_and_copied_through_the_kernel() {
    if !may_mount() {
        return;
    }
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let (file, target) = (folder.path().join("file.txt"), tempfile::tempdir().unwrap());
    for content in ["one", "two"] {
        fs::write(&file, content).unwrap();
        kloset.backup(folder.path());
    }
    let guard = Guard::new(&kloset);
    let at = guard.path().join(versions(&file));
    let mut names: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["2026-11-22_13-59-00.txt", "2026-11-22_14-00-00.txt"]);
    for (name, content) in names.iter().zip(["one", "two"]) {
        let (version, copy) = (at.join(name), target.path().join(name));
        fs::copy(&version, &copy).unwrap();
        assert_eq!(fs::read_to_string(&copy).unwrap(), content);
        let snapshot = guard.path().join("snapshots").join(version.file_stem().unwrap());
        let same = snapshot.join(file.strip_prefix("/").unwrap()).metadata().unwrap();
        assert_eq!((same.ino(), same.len()), (version.metadata().unwrap().ino(), 3));
    }
    let found =
        std::process::Command::new("find").arg(guard.path().join("versions")).args(["-type", "f"]).output().unwrap();
    assert!(found.status.success(), "{found:?}");
    assert_eq!(String::from_utf8_lossy(&found.stdout).lines().count(), 2);
    assert!(fs::remove_file(at.join(&names[0])).is_err() && fs::create_dir(at.join("x")).is_err());
    kloset.backup(folder.path());
    kloset.pass(11);
    fs::write(&file, "three").unwrap();
    kloset.backup(folder.path());
    kloset.pass(11);
    crate::support::program::until("there", || fs::read_dir(&at).unwrap().count() == 3);
}
