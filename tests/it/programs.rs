//! Programs that people copy with take a mount for any other folder: tar, rsync, cp, find, gio. On the real kernel. Needs
//! root and /dev/fuse, and passes over itself without; so does a program that is not installed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::mounted::Guard;
use crate::support::program::may_mount;
use crate::support::switched::Kloset;
use crate::support::tree::{Source, rsync_differences};

/// Runs `work` with a source of everything and where it is in a mount.
fn with_everything(work: impl FnOnce(&Source, &Path)) {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), Source::everything());
    kloset.backup(source.path());
    let guard = Guard::new(&kloset);
    work(&source, &guard.latest(source.path()));
}

/// Runs a program and returns what it prints; `None` where it is not installed.
#[track_caller]
fn run<S: AsRef<OsStr>>(name: &str, words: &[S]) -> Option<Vec<u8>> {
    let mut command = Command::new(name);
    match command.args(words).stdin(Stdio::null()).stderr(Stdio::piped()).output() {
        Ok(output) => {
            assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            Some(output.stdout)
        }
        Err(_) => {
            eprintln!("passed over: {name} is not installed");
            None
        }
    }
}

/// tar makes the same archive of the mount as of the source, byte by byte: times, ACLs, holes and hard links with it.
/// Extended attributes are listed in the order of their names, so that an archive with them may hold them in another
/// order.
#[test]
fn tar_makes_the_same_archive_of_the_mount() {
    with_everything(|source, mounted| {
        let tar = |folder: &Path, with: &str| {
            // Headers are named by the process else, and so are sparse files of the newer form.
            let names = "--pax-option=exthdr.name=%d/pax/%f,delete=atime";
            let words = ["-c", "--sort=name", "--format=pax", names, "--sparse", "--sparse-version=0.0", with, "-C"];
            run("tar", &[&words.map(OsStr::new)[..], &[folder.as_os_str(), OsStr::new(".")]].concat())
        };
        for with in ["--acls", "--xattrs"] {
            let (Some(was), Some(is)) = (tar(source.path(), with), tar(mounted, with)) else { return };
            assert!(was.len() > 3_000_000, "{} bytes", was.len());
            let same = if with == "--acls" { was == is } else { was.len() == is.len() };
            assert!(same, "{with}: {} and {} bytes", was.len(), is.len());
        }
    });
}

/// `cp -a` and `rsync -aHAX` copy the mount as it is, and holes stay holes.
///
/// `rsync -naHAX` between the source and the mount prints nothing.
#[test]
fn rsync_copies_the_mount_as_it_is() {
    with_everything(|source, mounted| {
        if run("rsync", &["--version"]).is_none() {
            return;
        }
        assert_eq!(rsync_differences(source.path(), mounted), [""; 0]);
        let copy = tempfile::tempdir().unwrap();
        let (from, to) = (format!("{}/", mounted.display()), format!("{}/", copy.path().display()));
        run("rsync", &["-aHAX", "--sparse", &from, &to]);
        assert_eq!(rsync_differences(source.path(), copy.path()), [""; 0]);
    });
}

/// `cp -a` and `rsync -aHAX` copy the mount as it is, and holes stay holes.
#[test]
fn cp_copies_the_mount_as_it_is() {
    with_everything(|source, mounted| {
        for reflink in ["--reflink=auto", "--reflink=never"] {
            let copy = tempfile::tempdir().unwrap();
            let to = copy.path().join("copy");
            run("cp", &[OsStr::new("-a"), OsStr::new(reflink), mounted.as_os_str(), to.as_os_str()]);
            assert_eq!(rsync_differences(source.path(), &to), [""; 0], "{reflink}");
            let blocks = |folder: &Path| folder.join("sparse/all hole").metadata().unwrap().blocks();
            assert_eq!(blocks(&to), blocks(source.path()), "{reflink}");
        }
    });
}

/// `find` sees in the mount what it sees in the source, by kind, size, mode, links and time.
#[test]
fn find_sees_the_same_in_the_mount() {
    with_everything(|source, mounted| {
        let newer = source.at("attributes/later");
        let newer = newer.as_os_str();
        for test in [
            vec![OsStr::new("-true")],
            vec![OsStr::new("-newer"), newer],
            vec![OsStr::new("!"), OsStr::new("-newer"), newer],
            ["-type", "f", "-links", "+1"].map(OsStr::new).to_vec(),
            ["-perm", "/6000"].map(OsStr::new).to_vec(),
            ["-size", "+100k"].map(OsStr::new).to_vec(),
            ["-type", "f", "-empty"].map(OsStr::new).to_vec(),
            ["-newermt", "2000-01-01"].map(OsStr::new).to_vec(),
        ] {
            let find = |folder: &Path| {
                let format = ["-printf", "%P %y %m %n %u %T@ %l\\0"].map(OsStr::new);
                let found = run("find", &[&[folder.as_os_str()], &test[..], &format].concat());
                let found = found.unwrap_or_default();
                let mut found: Vec<_> = found.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
                found.sort();
                found
            };
            assert_eq!(find(source.path()), find(mounted), "{test:?}");
        }
        // The other way round: a file in the mount is as old as the source's.
        let same = run("find", &[mounted.join("attributes/later").as_os_str(), OsStr::new("-newer"), newer]);
        assert!(same.unwrap_or_default().is_empty());
    });
}

/// What desktops copy with, GIO, brings whole files.
#[test]
fn gio_copies_whole_files() {
    with_everything(|source, mounted| {
        for name in ["sizes/1500001", "sizes/0", "sparse/holes", "names/new\nline", "kinds/second name"] {
            let copy = tempfile::tempdir().unwrap();
            let to = copy.path().join("copy");
            let from = mounted.join(name);
            if run("gio", &[OsStr::new("copy"), from.as_os_str(), to.as_os_str()]).is_none() {
                return;
            }
            assert!(fs::read(&to).unwrap() == fs::read(source.at(name)).unwrap(), "{name}");
        }
    });
}
