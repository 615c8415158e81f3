//! A kloset mounted on the real kernel by the test's own process.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kloset_mount::fs::{self as kfs, MountOptions, Mounted};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, Uid};

use super::program::may_mount;
use super::switched::{Kloset, fill};

/// A kloset mounted in this process; unmounted when dropped.
pub(crate) struct Guard {
    mounted: Option<Mounted>,
    folder: tempfile::TempDir,
}

impl Guard {
    pub(crate) fn new(kloset: &Kloset) -> Guard {
        let source = "kloset:test, with a comma".to_owned();
        Guard::with(kloset, &MountOptions { source, ..MountOptions::default() })
    }

    pub(crate) fn with(kloset: &Kloset, options: &MountOptions) -> Guard {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (repo, runtime) = (kloset.repo.clone(), kloset.runtime.handle().clone());
        let mounted = kloset.runtime.block_on(kfs::mount(repo, options, folder.path(), runtime)).unwrap();
        Guard { mounted: Some(mounted), folder }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    /// How often the kernel asked for what it may keep, so far.
    pub(crate) fn requests(&self) -> u64 {
        ["open", "readdir", "read", "xattr"].iter().map(|kind| self.asked(kind)).sum()
    }

    /// How often the kernel asked a question of that kind, so far.
    pub(crate) fn asked(&self, kind: &str) -> u64 {
        self.mounted.as_ref().unwrap().view.status().shown()["requests"][kind].as_u64().unwrap()
    }

    /// Where a source path is in the newest snapshot.
    pub(crate) fn latest(&self, source: &Path) -> PathBuf {
        self.path().join("latest").join(source.strip_prefix("/").unwrap())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmounter().unmount(true).unwrap();
            mounted.wait().unwrap();
        }
    }
}

/// Backs up a source with everything that root can make, and mounts it; `None` where nobody may mount.
///
/// The mount comes last, so that it is the first to be dropped.
pub(crate) fn mounted_source() -> Option<(Kloset, tempfile::TempDir, Guard)> {
    if !may_mount() {
        return None;
    }
    let (kloset, source) = (Kloset::new(), source());
    kloset.backup(source.path());
    let guard = Guard::new(&kloset);
    Some((kloset, source, guard))
}

/// Has the kernel drop what it has read of a file, so that the next read reaches the mount.
pub(crate) fn drop_kernel_pages(file: &fs::File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
}

/// Makes a source with everything that root can make.
pub(crate) fn source() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let at = |name: &str| folder.path().join(name);
    let device = rustix::fs::makedev(259, 300);
    rustix::fs::mknodat(CWD, at("device"), FileType::BlockDevice, Mode::RUSR, device).unwrap();
    rustix::fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    let times = Timestamps {
        last_access: Timespec { tv_sec: -1_000_000, tv_nsec: 5 },
        last_modification: Timespec { tv_sec: -1_000_000, tv_nsec: 123_456_789 },
    };
    rustix::fs::utimensat(CWD, at("empty"), &times, AtFlags::empty()).unwrap();
    rustix::fs::chownat(CWD, at("dangling"), Some(Uid::from_raw(1234)), None, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    folder
}
