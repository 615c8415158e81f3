//! A mount follows what happens to the kloset: new snapshots appear, `latest` moves, forgotten ones vanish. On the real
//! kernel, with the program itself. Needs root and /dev/fuse, and passes over itself without.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Signal, kill_process};

use crate::support::program::{Program, may_mount, until};
use crate::support::random::noise;

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Where a link leads, without the folders before it.
fn target(link: &Path) -> Option<String> {
    fs::read_link(link).ok()?.file_name().map(|name| name.to_str().unwrap().to_owned())
}

/// The objects of the snapshots, oldest first.
fn objects(program: &Program) -> Vec<PathBuf> {
    let folder = program.at("s3/bucket/kloset/snapshots");
    names(&folder).into_iter().map(|name| folder.join(name)).collect()
}

/// A backup in a second of its own, so that names are times alone.
fn backup_later(program: &Program, options: &[&str]) {
    std::thread::sleep(Duration::from_millis(1100));
    program.backup(options);
}

/// A new snapshot appears in every folder when somebody looks, and every `latest` moves. One that is forgotten vanishes
/// from every folder, and a file in it that is open goes on to be read as long as its packs are there.
#[test]
fn new_snapshots_appear_latest_moves_and_forgotten_ones_vanish() {
    if !may_mount() {
        return;
    }
    let content = noise(9, 8 << 20);
    let program = Program::new(&[("big", &content)]);
    let _serving = program.serve(&["--refresh", "1", "--memory-limit", "1MiB"]);
    let at = |name: &str| program.mountpoint().join(name);
    let host = names(&at("hosts")).pop().unwrap();
    let first = target(&at("latest")).unwrap();
    let looked = ["snapshots", "ids"].map(|folder| names(&at(folder)).len());
    assert_eq!(looked, [1, 1], "what the kernel might keep");
    let held = File::open(at(&format!("snapshots/{first}{}/big", program.source().display()))).unwrap();
    let mut read = vec![0; 4096];
    held.read_exact_at(&mut read, 0).unwrap();

    backup_later(&program, &["--tag", "daily"]);
    until("moved", || target(&at("latest")).is_some_and(|name| name != first));
    let second = target(&at("latest")).unwrap();
    assert_eq!(names(&at("snapshots")), [&*first, &*second]);
    assert_eq!(names(&at("ids")).len(), 2);
    for folder in [format!("hosts/{host}"), "tags/daily".to_owned()] {
        until("moved", || target(&at(&folder).join("latest")).as_deref() == Some(&*second));
        assert!(names(&at(&folder)).contains(&second), "{folder}");
    }

    fs::remove_file(&objects(&program)[0]).unwrap();
    until("forgotten", || !at(&format!("snapshots/{first}")).exists());
    assert_eq!(names(&at("snapshots")), [&*second]);
    assert_eq!(names(&at("ids")).len(), 1);
    assert_eq!(names(&at(&format!("hosts/{host}"))), [&*second, "latest"]);
    let version = at(&format!("versions{}/big", program.source().display()));
    until("moved", || names(&version) == [&*second]);
    let mut rest = vec![0; (8 << 20) - 4096];
    held.read_exact_at(&mut rest, 4096).unwrap();
    assert!(rest == content[4096..]);

    fs::remove_file(&objects(&program)[0]).unwrap();
    let folders = ["hosts", "ids", "incomplete", "snapshots", "tags", "versions"];
    until("empty", || names(&program.mountpoint()) == folders);
    assert!(names(&at("snapshots")).is_empty() && names(&at("tags")).is_empty() && names(&at("versions")).is_empty());
    // The kernel hears of it a moment later.
    until("gone", || fs::read_link(at("latest")).is_err());
}

/// With `refresh=never` nothing but SIGHUP has the list read.
///
/// SIGHUP has the list read again at once, and ends nothing.
#[test]
fn sighup_shows_new_snapshots_and_never_means_never() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&[("file", b"content\n")]);
    let mut serving = program.serve(&["-o", "refresh=never"]);
    let snapshots = program.mountpoint().join("snapshots");
    let first = target(&program.mountpoint().join("latest")).unwrap();
    backup_later(&program, &[]);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(names(&snapshots), [&*first]);
    assert_eq!(target(&program.mountpoint().join("latest")).as_deref(), Some(&*first));
    kill_process(serving.pid(), Signal::HUP).unwrap();
    until("seen", || names(&snapshots).len() == 2);
    assert_ne!(target(&program.mountpoint().join("latest")).as_deref(), Some(&*first));
    assert!(serving.is_running());
    kill_process(serving.pid(), Signal::TERM).unwrap();
    assert!(serving.ends_well());
}
