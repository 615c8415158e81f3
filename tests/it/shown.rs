//! What a mount shows of a kloset, as whose, to whom, and of itself. On the real kernel, with the program itself, over
//! HTTP. Needs root and /dev/fuse, and passes over itself without.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde_json::Value;

use crate::support::gate::Mode;
use crate::support::program::{Program, may_mount, until};

const FILES: [(&str, &[u8]); 3] = [("file", b"content\n"), ("folder/a", b"a"), ("folder/b", b"bb")];

fn names(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn xattr(path: &Path, name: &str) -> Result<String, Errno> {
    let mut value = [0; 200];
    let bytes = rustix::fs::getxattr(path, name, &mut value[..])?;
    Ok(String::from_utf8_lossy(&value[..bytes]).into_owned())
}

/// With a folder of a snapshot (`mount latest:/etc /mnt`, or `-o snapshot=latest:/etc`) the mount shows that one alone, with
/// its mode and owner. A path that is not there, or no folder, is refused.
#[test]
fn a_folder_of_a_snapshot_can_be_all_that_is_shown() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    fs::set_permissions(program.source(), fs::Permissions::from_mode(0o710)).unwrap();
    program.backup(&[]);
    let (mountpoint, source) = (program.mountpoint(), program.source());
    let (at, source) = (mountpoint.to_str().unwrap(), source.to_str().unwrap());
    let given: [&[&str]; 2] =
        [&["mount", &format!("latest:{source}"), at], &["mount", at, "-o", &format!("snapshot=latest:{source}")]];
    for words in given {
        program.done(words);
        assert_eq!(names(&mountpoint), ["file", "folder"].map(str::to_owned).into());
        assert_eq!(mountpoint.metadata().unwrap().mode() & 0o7777, 0o710);
        assert_eq!(fs::read(mountpoint.join("folder/b")).unwrap(), b"bb");
        assert_eq!(xattr(&mountpoint, "user.kloset.snapshot").unwrap().len(), 32);
        program.done(&["umount", at]);
    }
    for wrong in ["none", "file"] {
        let refused = program.run(&["mount", &format!("latest:{source}/{wrong}"), at]);
        assert!(!refused.status.success());
        assert!(String::from_utf8_lossy(&refused.stderr).contains(wrong), "{refused:?}");
    }
    let refused = program.run(&["mount", "--host", "h", "latest", at]);
    assert_eq!(refused.status.code(), Some(2));
}

/// With `--host`, `--tag` and `--path` only such snapshots are there, `latest` is the newest of them, and what others add
/// does not appear.
#[test]
fn hosts_tags_and_paths_choose_what_is_shown() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    program.backup(&["--host", "a", "--tag", "x"]);
    program.backup(&["--host", "a", "--tag", "x", "--tag", "y"]);
    program.backup(&["--host", "b"]);
    let source = program.source();
    let shown = |options: &[&str]| {
        let _serving = program.serve(options);
        names(&program.mountpoint().join("ids")).len()
    };
    assert_eq!(shown(&[]), 4);
    assert_eq!(shown(&["--host", "a"]), 2);
    assert_eq!(shown(&["--host", "a", "--host", "b"]), 3);
    assert_eq!(shown(&["--tag", "x", "--tag", "y"]), 1);
    assert_eq!(shown(&["--path", source.join("folder").to_str().unwrap()]), 4);
    assert_eq!(shown(&["--path", "/nowhere"]), 0);
    assert_eq!(shown(&["-o", "host=b"]), 1);
    let _serving = program.serve(&["--host", "a", "--refresh", "1"]);
    program.backup(&["--host", "b"]);
    program.backup(&["--host", "a"]);
    until("the new one", || names(&program.mountpoint().join("ids")).len() == 3);
    assert_eq!(names(&program.mountpoint().join("hosts")), ["a".to_owned()].into());
}

/// With `--owner` everything is shown as of who mounts, or of two numbers. With `--readable` its owner can read everything,
/// whatever modes and ACLs say; nobody else can who could not before. The group bits of a file with an ACL are left out.
#[test]
fn whose_it_is_and_who_may_read_can_be_chosen() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    let at = |name: &str| program.source().join(name);
    // Nothing for the owner and his group; the mask, which a mode shows for the group, is read.
    let acl: [(u16, u16, u32); 5] = [(1, 0, !0), (2, 4, 1000), (4, 0, !0), (0x10, 4, !0), (0x20, 0, !0)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in acl {
        bytes.extend([&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    if rustix::fs::setxattr(at("file"), "system.posix_acl_access", &bytes, XattrFlags::empty()).is_err() {
        eprintln!("passed over: no ACLs here");
        return;
    }
    fs::set_permissions(at("folder"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(program.at("."), fs::Permissions::from_mode(0o711)).unwrap();
    program.backup(&[]);
    let (file, folder) = (program.latest().join("file"), program.latest().join("folder"));
    let reads = |uid: u32, gid: u32| {
        Command::new("cat").arg(&file).arg(folder.join("b")).uid(uid).gid(gid).output().unwrap().status.success()
    };
    {
        let _serving = program.serve(&["--owner", "7:8"]);
        let stat = file.metadata().unwrap();
        assert_eq!((stat.uid(), stat.gid(), stat.mode() & 0o777), (7, 8, 0o040));
    }
    {
        let _serving = program.serve(&["-o", "owner=me"]);
        assert_eq!(file.metadata().unwrap().uid(), 0);
    }
    {
        let _serving = program.serve(&["--owner", "7:8", "-o", "allow_other"]);
        assert!(!reads(7, 8) && !reads(9, 8));
    }
    let _serving = program.serve(&["--readable", "--owner", "7:8", "-o", "allow_other"]);
    let (stat, above) = (file.metadata().unwrap(), folder.metadata().unwrap());
    assert_eq!((stat.mode() & 0o777, above.mode() & 0o777), (0o400, 0o500));
    assert!(reads(7, 8));
    assert!(!reads(9, 8) && !reads(1000, 1000));
    assert_eq!(xattr(&file, "system.posix_acl_access"), Err(Errno::NODATA));
}

/// Whatever is in a snapshot has `user.kloset.snapshot`, the snapshot's id, and files and folders have `user.kloset.id`, which
/// is the same where the content is. They are answered but not listed, so that a copy is the source's.
#[test]
fn ids_are_answered_and_not_listed() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    fs::write(program.source().join("file"), "changed\n").unwrap();
    program.backup(&[]);
    let _serving = program.serve(&[]);
    let below = program.source().strip_prefix("/").unwrap().to_owned();
    let snapshots = names(&program.mountpoint().join("snapshots"));
    let roots: Vec<_> = snapshots.iter().map(|name| program.mountpoint().join("snapshots").join(name)).collect();
    let id = |root: &Path, name: &str| xattr(&root.join(&below).join(name), "user.kloset.id").unwrap();
    for (name, same) in [("file", false), ("folder/a", true), ("folder", true), ("", false)] {
        let ids: BTreeSet<String> = roots.iter().map(|root| id(root, name)).collect();
        assert_eq!(ids.len() == 1, same, "{name}: {ids:?}");
    }
    for root in &roots {
        let snapshot = xattr(root, "user.kloset.snapshot").unwrap();
        assert_eq!(xattr(&root.join(&below).join("folder/b"), "user.kloset.snapshot"), Ok(snapshot));
        assert_eq!(rustix::fs::listxattr(root.join(&below).join("file"), &mut [0; 200][..]), Ok(0));
    }
    assert_eq!(xattr(&roots[0].join(&below).join("file"), "user.kloset.blake3"), Err(Errno::NODATA));
}

/// `.kloset/status.json` in the root tells what the mount has done so far: requests, bytes, failures, how fresh the list of
/// snapshots is, memory, what was asked of the store and how often again, and of each cache what it had and what it had not.
/// It is there for who knows its name and not listed, so that no walk meets it; it is new whenever it
/// is read, and needs no store.
#[test]
fn the_status_is_fresh_and_needs_no_store() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    let _serving = program.serve(&["--timeout", "1"]);
    let path = program.mountpoint().join(".kloset/status.json");
    let status = || -> Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap() };
    assert!(!names(&program.mountpoint()).contains(".kloset"));
    assert_eq!(names(&program.mountpoint().join(".kloset")), ["status.json".to_owned()].into());
    let before = status();
    assert_eq!(
        (&before["bytes_read"], &before["errors"], &before["snapshots"]["known"]),
        (&0.into(), &0.into(), &1.into())
    );
    assert_eq!(fs::read(program.latest().join("file")).unwrap(), b"content\n");
    let after = status();
    assert_eq!(after["bytes_read"], 8);
    assert!(after["requests"]["lookup"].as_u64() > before["requests"]["lookup"].as_u64(), "{after}");
    assert!(after["store"]["gets"].as_u64() > before["store"]["gets"].as_u64(), "{after}");
    assert!(after["store"]["bytes_down"].as_u64() > before["store"]["bytes_down"].as_u64(), "{after}");
    for cache in ["pages", "frames", "tree_packs", "blocks", "disk"] {
        assert!(after["caches"][cache]["misses"].as_u64() > Some(0), "{cache}: {after}");
    }
    assert!(after["caches"]["pages"]["hits"].as_u64() > Some(0), "{after}");
    assert_eq!((&after["caches"]["content_lists"]["misses"], &after["store"]["http_retries"]), (&0.into(), &0.into()));
    program.gate.set(Mode::Frozen);
    assert!(after["memory_bytes"].as_u64().unwrap() > 0 && after["memory_limit_bytes"] == 128 << 20);
    assert!(after["caches_limit_bytes"].as_u64() < after["memory_limit_bytes"].as_u64(), "{after}");
    for _ in 0..3 {
        assert_eq!(status()["pid"], after["pid"]);
    }
    assert_eq!(fs::write(&path, "x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
}

#[test]
fn the_status_tells_what_the_caches_had_and_what_was_asked_again() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    let path = program.mountpoint().join(".kloset/status.json");
    let status = || -> Value { serde_json::from_slice(&fs::read(&path).unwrap()).unwrap() };
    let read = || assert_eq!(fs::read(program.latest().join("file")).unwrap(), b"content\n");
    {
        let mut serving = program.serve(&[]);
        read();
        program.done(&["umount", program.mountpoint().to_str().unwrap()]);
        assert!(serving.ends_well(), "its cache is written by then");
    }
    {
        let _serving = program.serve(&["--no-cache"]);
        read();
        assert_eq!(status()["caches"]["disk"], Value::Null);
    }
    let _serving = program.serve(&["--refresh", "1"]);
    read();
    let disk = &status()["caches"]["disk"];
    assert!(disk["hits"].as_u64() > Some(0) && disk["bytes"].as_u64() > Some(100), "{disk}");
    program.gate.set(Mode::Busy);
    until("asked again", || {
        assert!(!names(&program.mountpoint().join("snapshots")).is_empty());
        status()["store"]["http_retries"].as_u64() > Some(0)
    });
}

/// Programs that draw previews or fill an index see names and attributes and get no content (`EACCES`); `--deny` names
/// others, or none. Everybody else reads what they were denied.
#[test]
fn programs_that_read_everything_by_themselves_get_no_content() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&FILES);
    let file = program.latest().join("file");
    let run = |name: &str| {
        let copy = program.at(name);
        if !copy.exists() {
            fs::copy("/bin/cat", &copy).unwrap();
        }
        let output = Command::new(copy).arg(&file).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() || told.contains("Permission denied"), "{told}");
        output.status.success()
    };
    let given: [(&[&str], bool, bool); 4] = [
        (&[], false, true),
        (&["--deny", "none"], true, true),
        (&["--deny", "reader,other"], true, false),
        (&["-o", "deny=other:reader"], true, false),
    ];
    for (options, tumblerd, reader) in given {
        let _serving = program.serve(options);
        assert_eq!(file.metadata().unwrap().len(), 8);
        // What the kernel has it gives to everybody: who is denied comes first.
        let order = if tumblerd { ["reader", "tumblerd"] } else { ["tumblerd", "reader"] };
        let mut expected = [reader, tumblerd];
        expected.sort_unstable();
        assert_eq!(order.map(run), expected, "{options:?}");
        assert_eq!(fs::read(&file).unwrap(), b"content\n");
    }
}
