//! What `docs/semantics.md` promises of the mount, held on the real kernel; each test's comment is the paragraph it
//! proves. Needs root and /dev/fuse, and passes over itself without.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kloset_mount::fs::mountinfo;
use kloset_mount::fs::{self as kfs, MountOptions};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::support::mounted::{Guard, mounted_source, source};
use crate::support::program::{assert_dead, may_mount, until};
use crate::support::switched::Kloset;

fn walk(folder: &Path, below: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder.join(below)).unwrap() {
        let entry = entry.unwrap();
        let path = below.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            walk(folder, &path, out);
        }
        out.push(path);
    }
}

/// Type, mode with setuid, setgid and sticky, owner and group by number, size, times of change with nanoseconds, device
/// numbers and the number of hard links are those of the source.
///
/// `st_blocks` counts what is not in holes, so that `du` is right. Every folder is 4096 bytes long.
#[test]
fn a_mounted_tree_is_the_source() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let root = guard.latest(source.path());
    let (mut paths, mut shown) = (Vec::new(), Vec::new());
    walk(source.path(), Path::new(""), &mut paths);
    walk(&root, Path::new(""), &mut shown);
    paths.sort_unstable();
    shown.sort_unstable();
    assert_eq!(paths, shown);
    assert!(paths.len() >= 14, "{paths:?}");
    for path in &paths {
        let (was, is) =
            (source.path().join(path).symlink_metadata().unwrap(), root.join(path).symlink_metadata().unwrap());
        let stat =
            |m: &fs::Metadata| (m.mode(), m.uid(), m.gid(), m.nlink(), m.rdev(), m.mtime(), m.mtime_nsec(), m.ctime());
        assert_eq!(stat(&was), stat(&is), "{path:?}");
        if was.is_dir() {
            assert_eq!((is.len(), is.blocks()), (4096, 8), "{path:?}");
        } else {
            assert_eq!(was.len(), is.len(), "{path:?}");
            assert_eq!(was.blocks().div_ceil(8), is.blocks().div_ceil(8), "{path:?}");
        }
        if was.is_symlink() {
            assert_eq!(fs::read_link(source.path().join(path)).unwrap(), fs::read_link(root.join(path)).unwrap());
        }
        if was.is_file() {
            assert!(fs::read(source.path().join(path)).unwrap() == fs::read(root.join(path)).unwrap(), "{path:?}");
        }
    }
    let inode = |name: &str| root.join(name).metadata().unwrap().ino();
    assert_eq!(inode("small"), inode("deep/small too"));
    assert_ne!(inode("small"), inode("big"));
    assert!(root.join("device").symlink_metadata().unwrap().file_type().is_block_device());
}

/// Extended attributes are those of the source, ACLs among them.
///
/// The kernel checks modes and ACLs as on a disk, with the stored numbers: whom a mode or an ACL keeps out stays out.
#[test]
fn attributes_and_acls_are_the_source_s() {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), source());
    let small = source.path().join("small");
    // Read and write for the owner, nothing for user 1000, read for everybody else.
    let acl: [(u16, u16, u32); 5] = [(1, 6, !0), (2, 0, 1000), (4, 4, !0), (0x10, 4, !0), (0x20, 4, !0)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, rights, id) in acl {
        bytes.extend([&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&small, name, value, XattrFlags::empty());
    if set("user.origin", b"a\0b").is_err() || set("system.posix_acl_access", &bytes).is_err() {
        eprintln!("passed over: no extended attributes here");
        return;
    }
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    kloset.backup(source.path());
    let guard = Guard::with(&kloset, &MountOptions { allow_other: true, ..MountOptions::default() });
    let path = guard.latest(source.path()).join("small");
    let get = |name: &str| {
        let mut value = [0; 100];
        rustix::fs::getxattr(&path, name, &mut value[..]).map(|bytes| value[..bytes].to_vec())
    };
    assert_eq!(get("user.origin"), Ok(b"a\0b".to_vec()));
    assert_eq!(get("system.posix_acl_access"), Ok(bytes));
    assert_eq!(get("user.none"), Err(Errno::NODATA));
    assert_eq!(get("system.posix_acl_default"), Err(Errno::NODATA));
    let mut names = [0; 100];
    let listed = rustix::fs::listxattr(&path, &mut names[..]).unwrap();
    assert_eq!(&names[..listed], b"system.posix_acl_access\0user.origin\0");
    for (uid, may) in [(1000, false), (1001, true)] {
        let read = Command::new("cat").arg(&path).uid(uid).gid(uid).output().unwrap();
        assert_eq!(read.status.success(), may, "user {uid}: {}", String::from_utf8_lossy(&read.stderr));
    }
}

/// `SEEK_HOLE` and `SEEK_DATA` work, so that copying a sparse file makes a sparse file.
#[test]
fn holes_are_holes() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let sparse = fs::File::open(guard.latest(source.path()).join("sparse")).unwrap();
    assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(0)), Ok(1 << 20));
    assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Hole(1 << 20)), Ok((1 << 20) + 8192));
    assert_eq!(rustix::fs::seek(&sparse, rustix::fs::SeekFrom::Data(2 << 20)), Err(Errno::NXIO));
}

/// Inside a snapshot nothing ever changes. The kernel may keep attributes, names, the absence of names, listings and
/// content as long as it has memory: a second read of a file reaches neither the store nor this program, and neither does a
/// second walk (Linux 5.1).
///
/// What was read before an outage goes on to be answered.
#[test]
fn a_second_read_is_the_kernel_s() {
    let Some((kloset, source, guard)) = mounted_source() else { return };
    let root = guard.latest(source.path());
    let content = fs::read(root.join("big")).unwrap();
    let walked = || {
        let mut found = Vec::new();
        walk(&root, Path::new(""), &mut found);
        found
    };
    let listed = walked();
    kloset.switch_off(true);
    let before = (kloset.requests(), guard.requests());
    assert!(fs::read(root.join("big")).unwrap() == content);
    assert_eq!(walked(), listed);
    assert!(!root.join("nothing").exists());
    assert_eq!((kloset.requests(), guard.requests()), before);
}

#[test]
fn a_listing_of_many_parts_brings_all_that_is_known_of_its_names() {
    if !may_mount() {
        return;
    }
    const FILES: usize = 500; // with such names the kernel takes them in a dozen parts
    let (kloset, source) = (Kloset::new(), tempfile::tempdir().unwrap());
    (0..FILES).for_each(|n| fs::write(source.path().join(format!("{n:0200}")), "").unwrap());
    kloset.backup(source.path());
    let guard = Guard::new(&kloset);
    let root = guard.latest(source.path());
    assert!(root.is_dir());
    let before = (guard.asked("lookup"), guard.asked("getattr"));
    // All names first: who looks at each one between two parts has the kernel ask for attributes by itself.
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(names.iter().filter(|entry| entry.metadata().unwrap().len() == 0).count(), FILES);
    assert_eq!((guard.asked("lookup"), guard.asked("getattr")), before);
}

/// Whatever is damaged or out of reach is `EIO`: never wrong bytes, never a short file, never a name that is not there.
#[test]
fn damage_is_eio() {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    kloset.damage_packs(4 << 20);
    let guard = Guard::new(&kloset);
    let error = fs::read(guard.latest(source.path()).join("big")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::IO.raw_os_error()));
}

/// `df` and a look at the root need no store, so an outage cannot freeze them.
#[test]
fn df_and_the_root_need_no_store() {
    let Some((kloset, _source, guard)) = mounted_source() else { return };
    kloset.switch_off(true);
    kloset.pass(60);
    let begun = Instant::now();
    let space = rustix::fs::statvfs(guard.path()).unwrap();
    assert!(space.f_blocks > 0 && space.f_bfree == 0 && space.f_namemax == 255);
    assert!(guard.path().metadata().unwrap().is_dir());
    assert_eq!(fs::read_dir(guard.path()).unwrap().count(), 7);
    assert!(begun.elapsed() < Duration::from_secs(10));
}

/// The program with a kloset in a folder.
struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        let home = Home(tempfile::tempdir().unwrap());
        fs::create_dir(home.at("mnt")).unwrap();
        fs::create_dir(home.at("source")).unwrap();
        fs::write(home.at("source/file"), "content\n").unwrap();
        home.done(&["create"]);
        home.done(&["backup", home.at("source").to_str().unwrap()]);
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn mountpoint(&self) -> String {
        self.at("mnt").to_str().unwrap().to_owned()
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.0.path())
            .env("KLOSET_REPOSITORY", self.at("kloset"))
            .env("KLOSET_KEY_FILE", self.key_file())
            .stdin(Stdio::null());
        command
    }

    fn key_file(&self) -> PathBuf {
        let path = self.at("key");
        if !path.exists() {
            fs::write(&path, "ab".repeat(32)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        }
        path
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn fails(&self, words: &[&str], code: i32, message: &str) {
        let output = self.run(words);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {told}");
        assert!(told.contains(message), "{words:?}: {told}");
    }

    fn is_mounted(&self) -> bool {
        mountinfo::at(&mountinfo::read().unwrap(), &self.at("mnt").canonicalize().unwrap()).is_some()
    }

    fn file(&self) -> PathBuf {
        self.at("mnt/latest").join(self.at("source/file").strip_prefix("/").unwrap())
    }

    /// Starts a mount in the foreground and waits until it can be used.
    fn serve(&self) -> Child {
        let child = self.command(&["mount", "-f", &self.mountpoint()]).stderr(Stdio::null()).spawn().unwrap();
        until("mounted", || self.file().exists());
        child
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = kfs::unmount(&self.at("mnt"), true);
    }
}

/// `mount` returns when the folder can be used, and goes on in the background; `umount` takes it away. A second mount
/// at the same place, a missing folder and a folder that holds the kloset are refused. `umount` takes away mounts of
/// kloset-mount only, and none in which a file or folder is open.
#[test]
fn mount_returns_when_usable_and_umount_ends_it() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    home.done(&["mount", &home.mountpoint()]);
    assert_eq!(fs::read_to_string(home.file()).unwrap(), "content\n");
    let mounts = mountinfo::read().unwrap();
    let mount = mountinfo::at(&mounts, &home.at("mnt").canonicalize().unwrap()).unwrap();
    assert!(mount.is_ours() && mount.source.starts_with("kloset:"), "{mount:?}");
    home.fails(&["mount", &home.mountpoint()], 2, "mounted there already");
    let held = fs::File::open(home.file()).unwrap();
    home.fails(&["umount", &home.mountpoint()], 1, "--lazy");
    home.done(&["umount", "--lazy", &home.mountpoint()]);
    assert!(!home.is_mounted());
    drop(held);
    home.fails(&["umount", &home.mountpoint()], 2, "nothing is mounted there");
    home.fails(&["umount", "/proc"], 2, "not one of kloset-mount");
    home.fails(&["mount", home.at("none").to_str().unwrap()], 2, "does not exist");
    home.fails(&["mount", home.at("source/file").to_str().unwrap()], 2, "not a folder");
    home.fails(&["mount", home.0.path().to_str().unwrap()], 2, "would hide it");
    home.fails(&["mount", "zzz", &home.mountpoint()], 1, "zzz");
    assert!(home.at(".local/state/kloset-mount/mount.log").exists());
}

/// SIGTERM, Ctrl-C and an unmount from outside end a mount well, with exit code 0. Where a program is still in it, it
/// goes out of sight at once and ends with the last file that is closed; a second signal ends it there and then.
#[test]
fn signals_end_a_mount_well() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut child = home.serve();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!home.is_mounted());
    }
    let mut child = home.serve();
    rustix::mount::unmount(home.at("mnt"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(child.wait().unwrap().success());

    let mut child = home.serve();
    let mut held = fs::File::open(home.file()).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    until("unmounted", || !home.is_mounted());
    let mut content = String::new();
    held.read_to_string(&mut content).unwrap();
    assert_eq!(content, "content\n");
    drop(held);
    assert!(child.wait().unwrap().success());

    let mut child = home.serve();
    let held = fs::File::open(home.file()).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let signal = || rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    signal().unwrap();
    until("unmounted", || !home.is_mounted());
    signal().unwrap();
    until("ended", || child.try_wait().unwrap().is_some());
    drop(held);
}

/// A mount whose program has died answers with an error (`Transport endpoint is not connected`) until `kloset-mount
/// umount` clears it, which the next `mount` says. It is not taken away by itself: a `rsync --delete` from it must not
/// find an empty folder.
#[test]
fn a_dead_mount_is_told_and_cleared() {
    if !may_mount() {
        return;
    }
    let home = Home::new();
    let mut child = home.serve();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_dead(Path::new(&home.mountpoint()));
    home.fails(&["mount", &home.mountpoint()], 2, "has died");
    home.done(&["umount", &home.mountpoint()]);
    home.done(&["mount", &home.mountpoint()]);
    home.done(&["umount", &home.mountpoint()]);
}
