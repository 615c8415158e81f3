//! What `docs/semantics.md` promises of the view, held without a kernel; each test's comment is the paragraph it proves.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use futures::FutureExt;
use kloset_mount::fs::attr::Kind;
use kloset_mount::fs::view::{FIXED_TTL, ROOT, TOP_TTL};
use kloset_mount::fs::{FsError, ViewOptions};
use rustix::io::Errno;

use crate::support::switched::{Kloset, fill, noise};

fn source() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    folder
}

/// The root holds `latest`, a link to the newest snapshot, and six folders. `snapshots/` has one folder a snapshot,
/// named by its time in UTC without colons: `2026-11-22_13-58-00`. `hosts/HOST/`, `tags/TAG/` and `ids/` hold links to
/// them, and each host and tag has a `latest` of its own. `incomplete/` holds links to the snapshots that lack something,
/// because it could not be read when they were made, and beside each a text with the paths and the reasons, one a line:
/// `2026-11-22_13-58-00.txt`.
#[test]
fn names_lead_to_snapshots() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    kloset.backup_as(folder.path(), "anna's/pc", &[".hidden"]);
    let second = kloset.backup_as(folder.path(), "server", &["daily", "daily"]);
    let looked = kloset.look();
    assert_eq!(looked.names(""), ["hosts", "ids", "incomplete", "latest", "snapshots", "tags", "versions"]);
    assert_eq!(looked.names("snapshots"), ["2026-11-22_13-59-00", "2026-11-22_14-00-00"]);
    assert_eq!(looked.names("hosts"), ["anna's_pc", "server"]);
    assert_eq!(looked.names("hosts/server"), ["2026-11-22_14-00-00", "latest"]);
    assert_eq!(looked.names("tags"), ["_hidden", "daily"]);
    assert_eq!(looked.names("ids").len(), 2);
    for folder in ["hosts/anna's_pc", "hosts/server", "tags/_hidden", "tags/daily"] {
        let names = looked.names(folder);
        assert_eq!(names.last().map(String::as_str), Some("latest"));
        let is_link = |name| looked.find(&format!("{folder}/{name}")).unwrap().kind == Kind::Symlink;
        assert!(names.iter().all(is_link), "{folder}: {names:?}");
    }
    let target =
        |path: &str| String::from_utf8(looked.run(looked.view.readlink(looked.find(path).unwrap().number)).unwrap());
    assert_eq!(target("latest").unwrap(), "snapshots/2026-11-22_14-00-00");
    assert_eq!(target("hosts/anna's_pc/latest").unwrap(), "../../snapshots/2026-11-22_13-59-00");
    assert_eq!(target(&format!("ids/{}", second.name.id.short())).unwrap(), "../snapshots/2026-11-22_14-00-00");
    let root = looked.find("snapshots/2026-11-22_13-59-00").unwrap();
    assert_eq!((root.mode, root.mtime.seconds), (0o755, 1_795_355_940));
    assert_eq!(looked.find("snapshots/2026-11-22_15-00-00"), None);
    assert_eq!(looked.names("incomplete"), Vec::<String>::new());
    kloset.lacking(&second);
    let looked = kloset.look();
    assert_eq!(looked.names("incomplete"), ["2026-11-22_14-01-00", "2026-11-22_14-01-00.txt"]);
    let list = looked.find("incomplete/2026-11-22_14-01-00.txt").unwrap();
    let expected = "/etc/a\\nb: Permission denied\n2 more, which the snapshot does not name\n";
    assert_eq!((list.kind, list.mode, list.bytes), (Kind::File, 0o444, expected.len() as u64));
    assert_eq!(looked.read_all(list.number, list.bytes).unwrap(), expected.as_bytes());
    assert_eq!(looked.run(looked.view.read(list.number, 5, 3)).unwrap(), &expected[5..8]);
    assert!(looked.run(looked.view.read(list.number, list.bytes, 9)).unwrap().is_empty());
    let link = looked.find("incomplete/2026-11-22_14-01-00").unwrap();
    assert_eq!(looked.run(looked.view.readlink(link.number)).unwrap(), b"../snapshots/2026-11-22_14-01-00");
    let lacking = looked.find("snapshots/2026-11-22_14-01-00").unwrap().number;
    assert_eq!(looked.run(looked.view.getxattr(lacking, b"user.kloset.incomplete")).unwrap(), b"1");
}

/// An empty kloset shows the six folders, empty, and no `latest`.
#[test]
fn an_empty_kloset_has_folders_and_no_latest() {
    let kloset = Kloset::new();
    let looked = kloset.look();
    assert_eq!(looked.names(""), ["hosts", "ids", "incomplete", "snapshots", "tags", "versions"]);
    assert!(
        looked.names("snapshots").is_empty() && looked.names("hosts").is_empty() && looked.names("versions").is_empty()
    );
}

/// From start to the first listing there is one request besides those that open the kloset, whatever the number of
/// snapshots and the amount of data. `hosts/`, `tags/` and `incomplete/` open every manifest the first time somebody looks
/// into them.
#[test]
fn the_first_listing_is_one_request_whatever_the_size() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    for count in [1, 5] {
        (0..count).for_each(|_| drop(kloset.backup(folder.path())));
        let before = kloset.requests();
        let looked = kloset.look();
        looked.names("");
        assert_eq!(looked.names("snapshots").len(), looked.names("ids").len());
        assert_eq!(kloset.requests() - before, 1);
        assert!(looked.view.lookup(ROOT, b"snapshots").now_or_never().is_some());
        let (snapshots, before) = (looked.names("snapshots").len() as u64, kloset.requests());
        assert_eq!((looked.names("hosts"), kloset.requests() - before), (vec!["h".to_owned()], snapshots));
        assert_eq!((looked.names("tags").len(), kloset.requests() - before), (0, snapshots));
        assert_eq!((looked.names("incomplete").len(), kloset.requests() - before), (0, snapshots));
    }
}

/// A new snapshot is seen within ten seconds: the listing is read again when it is older than that and somebody looks.
///
/// While the store does not answer, the last listing stands.
#[test]
fn new_snapshots_appear_and_an_outage_changes_nothing() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    kloset.backup(folder.path());
    let looked = kloset.look();
    let before = looked.find("latest").unwrap();
    kloset.switch_off(true);
    kloset.pass(11);
    assert_eq!(looked.names("snapshots").len(), 1);
    assert_eq!(looked.find("latest").unwrap(), before);
    kloset.switch_off(false);
    kloset.backup(folder.path());
    kloset.pass(11);
    assert_eq!(looked.names("snapshots").len(), 2);
    // The kernel keeps what a link says as long as its inode lives: where it leads elsewhere, it is another one.
    assert_ne!(looked.find("latest").unwrap().number, before.number);
    assert_eq!(looked.find("latest").map(|_| TOP_TTL.as_secs()), Some(1));
}

/// Who asks for it by its name sees it after a second.
///
/// `refresh=N` makes the ten seconds N.
#[test]
fn a_new_snapshot_is_found_by_its_name_before_it_is_listed() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    kloset.backup(folder.path());
    let refresh = Some(std::time::Duration::from_secs(1000));
    let looked = kloset.look_with(ViewOptions { refresh, ..ViewOptions::default() });
    for (count, name) in [(2, "2026-11-22_14-00-00"), (3, "2026-11-22_14-01-00")] {
        kloset.backup(folder.path());
        kloset.pass(2);
        assert_eq!(looked.names("snapshots").len(), count - 1);
        assert!(looked.find(&format!("snapshots/{name}")).is_some());
        assert_eq!(looked.names("snapshots").len(), count);
    }
    kloset.backup(folder.path());
    kloset.pass(1000);
    assert_eq!(looked.names("snapshots").len(), 4);
}

/// Hosts or tags that become the same name share a folder.
#[test]
fn hosts_that_become_one_name_share_a_folder() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    for host in ["a/b", "a_b"] {
        kloset.backup_as(folder.path(), host, &[&host.replace('a', ".")]);
    }
    let looked = kloset.look();
    assert_eq!((looked.names("hosts"), looked.names("tags")), (vec!["a_b".to_owned()], vec!["__b".to_owned()]));
    for shared in ["hosts/a_b", "tags/__b"] {
        assert_eq!(looked.names(shared), ["2026-11-22_13-59-00", "2026-11-22_14-00-00", "latest"]);
    }
}

/// A snapshot whose manifest is damaged is not in `hosts/`, `tags/` and `incomplete/`, since nobody knows whose it is; in
/// `snapshots/` it is, and looking into it is an error.
#[test]
fn a_snapshot_with_a_damaged_manifest_is_listed_and_an_error() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    kloset.backup_as(folder.path(), "whole", &["whole"]);
    kloset.backup_as(folder.path(), "damaged", &["damaged"]);
    kloset.damage_newest_manifest();
    let looked = kloset.look();
    assert_eq!((looked.names("hosts"), looked.names("tags")), (vec!["whole".to_owned()], vec!["whole".to_owned()]));
    assert!(looked.names("incomplete").is_empty());
    assert_eq!(looked.names("snapshots"), ["2026-11-22_13-59-00", "2026-11-22_14-00-00"]);
    let damaged = looked.find("snapshots/2026-11-22_14-00-00").unwrap();
    let error = looked.run(looked.view.lookup(damaged.number, b"tmp")).unwrap_err();
    assert_eq!(error.errno(), Errno::IO);
}

/// In a snapshot the paths are those of the source: `latest/etc/fstab`. Folders above what was backed up are as they
/// were on the source.
#[test]
fn folders_above_are_as_they_were() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let above = folder.path().join("above");
    fs::create_dir_all(above.join("source")).unwrap();
    fs::write(above.join("not backed up"), "").unwrap();
    fs::set_permissions(&above, fs::Permissions::from_mode(0o1705)).unwrap();
    kloset.backup(&above.join("source"));
    let (looked, was) = (kloset.look(), above.metadata().unwrap());
    let path = format!("snapshots/2026-11-22_13-59-00{}", above.display());
    let is = looked.find(&path).unwrap();
    assert_eq!((is.mode, is.mtime.seconds, is.uid), (0o1705, was.mtime(), was.uid()));
    assert_eq!(looked.names(&path), ["source"]);
}

/// The list of snapshots is asked for when somebody looks, not by a timer: a mount that nobody looks at asks nothing,
/// however long, and `df` is no look.
#[test]
fn an_idle_mount_asks_nothing() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    kloset.backup(folder.path());
    let looked = kloset.look();
    looked.names("snapshots");
    let before = kloset.requests();
    kloset.pass(3600);
    std::thread::sleep(std::time::Duration::from_millis(300));
    let _ = looked.view.statfs();
    looked.run(looked.view.getattr(ROOT)).unwrap();
    assert_eq!(kloset.requests(), before);
    looked.names("snapshots");
    assert_eq!(kloset.requests(), before + 1);
}

/// The kernel is told which names no longer hold; what it is not told of (a host or tag that came or went, what is in
/// `versions/`) it keeps for a second.
#[test]
fn names_that_no_longer_hold_are_told() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    kloset.backup(folder.path());
    let looked = kloset.look();
    let host = looked.find("hosts/h").unwrap().number;
    let _ = (looked.names("hosts/h"), looked.names("ids"));
    let (told, tell) = std::sync::mpsc::channel();
    looked.view.on_change(move |stale| told.send(stale).unwrap());
    looked.run(looked.view.renew());
    assert!(tell.try_recv().is_err(), "nothing has changed");
    kloset.backup(folder.path());
    looked.run(looked.view.renew());
    let stale: Vec<(u64, String)> =
        tell.recv().unwrap().into_iter().map(|stale| (stale.parent, stale.name.to_string())).collect();
    let snapshots = looked.find("snapshots").unwrap().number;
    for expected in [(ROOT, "latest"), (host, "latest"), (snapshots, "2026-11-22_14-00-00")] {
        assert!(stale.contains(&(expected.0, expected.1.to_owned())), "{expected:?} is not in {stale:?}");
    }
    assert!(!stale.contains(&(snapshots, "2026-11-22_13-59-00".to_owned())), "{stale:?}");
}

/// Inode numbers are the same at every mount of the same kloset.
///
/// Numbers need 63 bits.
#[test]
fn inode_numbers_are_stable_and_hard_links_share_them() {
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    let (one, two) = (kloset.look(), kloset.look());
    let root = format!("snapshots/2026-11-22_13-59-00{}", source.path().display());
    let _ = two.list(two.find(&format!("{root}/deep")).unwrap().number, 3);
    for name in ["big", "deep/er", "dangling", "small"] {
        let path = format!("{root}/{name}");
        assert_eq!(one.find(&path).unwrap(), two.find(&path).unwrap(), "{name}");
    }
    let (small, too) =
        (one.find(&format!("{root}/small")).unwrap(), one.find(&format!("{root}/deep/small too")).unwrap());
    assert_eq!(small, too);
    assert_eq!((small.links, small.number >> 63), (2, 0));
    let found = one.run(one.view.lookup(one.find(&root).unwrap().number, b"nothing")).unwrap();
    assert_eq!((found.attr, found.ttl), (None, FIXED_TTL));
}

#[test]
fn forgotten_inodes_are_freed() {
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    let looked = kloset.look();
    let path = format!("snapshots/2026-11-22_13-59-00{}", source.path().display());
    let root = looked.find(&path).unwrap().number;
    let (before, room) = (looked.view.inodes_len(), looked.view.caches_bytes_max());
    let mut numbers = Vec::new();
    looked
        .run(looked.view.readdir(root, 2, true, &mut |line| {
            let full = numbers.len() == 5;
            if !full {
                numbers.push(line.attr.number);
            }
            full
        }))
        .unwrap();
    assert_eq!(
        looked.view.inodes_len(),
        before + 4 + usize::from(numbers.len() == 5) - usize::from(numbers.contains(&root))
    );
    // One limit of memory holds for the caches and for the table of inodes.
    assert!(looked.view.caches_bytes_max() < room, "{room}");
    numbers.iter().for_each(|number| looked.view.forget(*number, 1));
    assert_eq!((looked.view.inodes_len(), looked.view.caches_bytes_max()), (before, room));
    assert!(matches!(looked.run(looked.view.getattr(numbers[0])), Err(FsError::Stale)));
}

/// A folder of any size is listed page by page, each entry once, and `telldir` offsets stay good for as long as the
/// mount.
#[test]
fn large_directories_are_listed_once_each() {
    const COUNT: usize = 5000;
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    for n in 0..COUNT {
        fs::write(folder.path().join(format!("file {n:05}")), "").unwrap();
    }
    kloset.backup(folder.path());
    let looked = kloset.look();
    let root = looked.find(&format!("snapshots/2026-11-22_13-59-00{}", folder.path().display())).unwrap();
    for lines in [7, 1000, 100_000] {
        let listed = looked.list(root.number, lines);
        assert_eq!(listed.len(), COUNT + 2);
        assert_eq!(listed["."].number, root.number);
    }
    let last = format!("file {:05}", COUNT - 1);
    assert_eq!(looked.find_below(root.number, &last).map(|attr| attr.kind), Some(Kind::File));
    assert_eq!(looked.find_below(root.number, "file"), None);
}

/// Every file reads as it was, from any offset; holes read as zeros and take no blocks.
#[test]
fn files_read_as_they_were() {
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    let looked = kloset.look();
    let root = format!("snapshots/2026-11-22_13-59-00{}", source.path().display());
    for name in ["empty", "small", "big", "sparse", "deep/er/file with blanks"] {
        let attr = looked.find(&format!("{root}/{name}")).unwrap();
        let content = fs::read(source.path().join(name)).unwrap();
        assert_eq!(attr.bytes, content.len() as u64);
        assert!(looked.read_all(attr.number, attr.bytes).unwrap() == content, "{name}");
        let behind = looked.run(looked.view.read(attr.number, attr.bytes, 100)).unwrap();
        assert!(behind.is_empty());
    }
    let big = looked.find(&format!("{root}/big")).unwrap();
    let read = looked.run(looked.view.read(big.number, 5_000_001, 4096)).unwrap();
    assert!(read == noise(9 << 20)[5_000_001..][..4096]);
    let sparse = looked.find(&format!("{root}/sparse")).unwrap();
    assert_eq!(sparse.blocks, 16);
    assert_eq!(looked.run(looked.view.seek(sparse.number, 0, false)).unwrap(), 1 << 20);
    assert_eq!(looked.run(looked.view.seek(sparse.number, 1 << 20, true)).unwrap(), (1 << 20) + 8192);
    let error = looked.run(looked.view.seek(sparse.number, 3 << 20, true)).unwrap_err();
    assert_eq!(error.errno(), Errno::NXIO);
}

/// Whatever is damaged or out of reach is `EIO`: never wrong bytes, never a short file, never a name that is not there.
/// Every chunk is checked against its id before a byte of it is handed out.
///
/// What was read before an outage goes on to be answered.
#[test]
fn damage_and_outages_are_errors() {
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    let root = format!("snapshots/2026-11-22_13-59-00{}", source.path().display());
    let looked = kloset.look();
    let big = looked.find(&format!("{root}/big")).unwrap();
    kloset.switch_off(true);
    assert_eq!(looked.run(looked.view.read(big.number, 0, 10)).unwrap_err().errno(), Errno::IO);
    assert!(looked.find(&format!("{root}/small")).is_some());
    let fresh = looked.run(looked.view.lookup(big.number, b"x")).unwrap_err();
    assert_eq!(fresh.errno(), Errno::NOTDIR);
    kloset.switch_off(false);
    kloset.damage_packs(4 << 20);
    let (mut failed, content) = (0, noise(9 << 20));
    for (n, expected) in content.chunks(4096).enumerate() {
        match looked.run(looked.view.read(big.number, n as u64 * 4096, 4096)) {
            Ok(read) => assert!(read == expected),
            Err(error) => {
                assert_eq!(error.errno(), Errno::IO);
                failed += 1;
            }
        }
    }
    assert!(failed > 0 && failed < content.len() / 4096);
}

/// A snapshot's folder has `user.kloset.snapshot`, its id, and `user.kloset.incomplete` with the value `1` if something
/// could not be read when it was made.
#[test]
fn a_snapshot_tells_its_id() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let report = kloset.backup(folder.path());
    let looked = kloset.look();
    let root = looked.find("snapshots/2026-11-22_13-59-00").unwrap().number;
    assert_eq!(looked.run(looked.view.listxattr(root)).unwrap(), b"user.kloset.snapshot\0");
    let id = looked.run(looked.view.getxattr(root, b"user.kloset.snapshot")).unwrap();
    assert_eq!(id, report.name.id.to_string().into_bytes());
    let error = looked.run(looked.view.getxattr(root, b"user.kloset.incomplete")).unwrap_err();
    assert_eq!(error.errno(), Errno::NODATA);
}

/// With a snapshot's name (`kloset-mount mount latest /mnt`) the mount shows that one alone, its root as the root of
/// the mount.
///
/// With `uid=` and `gid=` everything belongs to whom you say.
#[test]
fn one_snapshot_can_be_shown_alone() {
    let (kloset, source) = (Kloset::new(), source());
    let report = kloset.backup(source.path());
    let (uid, gid) = (Some(4711), Some(4712));
    let looked = kloset.look_with(ViewOptions { only: Some(report.name), uid, gid, ..ViewOptions::default() });
    let found = looked.find(&source.path().join("small").display().to_string()).unwrap();
    assert_eq!((found.bytes, found.uid, found.gid), (6, 4711, 4712));
    assert_eq!(looked.list(ROOT, 10)[".."].number, ROOT);
}

#[test]
fn a_second_read_asks_nothing_and_random_reads_ask_little() {
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    let looked = kloset.look();
    let path = format!("snapshots/2026-11-22_13-59-00{}/big", source.path().display());
    let big = looked.find(&path).unwrap();
    looked.read_all(big.number, big.bytes).unwrap();
    let before = kloset.requests();
    looked.read_all(big.number, big.bytes).unwrap();
    assert_eq!(kloset.requests(), before);
}

/// Names are bytes; they need not be UTF-8. Nothing is normalised.
#[test]
fn names_need_not_be_text() {
    let (kloset, source) = (Kloset::new(), source());
    let composed = ["\u{e9}", "e\u{301}"];
    composed.iter().for_each(|name| fs::write(source.path().join(name), name).unwrap());
    kloset.backup(source.path());
    let looked = kloset.look();
    let root = looked.find(&format!("snapshots/2026-11-22_13-59-00{}", source.path().display())).unwrap();
    assert_eq!(composed.map(|name| looked.find_below(root.number, name).map(|attr| attr.bytes)), [Some(2), Some(3)]);
    let name = Path::new(std::ffi::OsStr::from_bytes(b"not\xffutf8"));
    let found = looked.run(looked.view.lookup(root.number, name.as_os_str().as_bytes())).unwrap();
    assert_eq!(found.attr.map(|attr| attr.bytes), Some(1));
    let top = looked.run(looked.view.lookup(ROOT, b"\xff")).unwrap();
    assert_eq!(top.attr, None);
}
