//! The files of a cache: read, written whole or not at all, removed.
//!
//! ```text
//! TOP/CACHEDIR.TAG           what backup programs look for
//! TOP/ledger                 its length says how much the cache takes, see `sweep`
//! TOP/SPACE/whole/STEM       whole objects          (SPACE: a folder for each kloset)
//! TOP/SPACE/parts/STEM-N     pieces of objects
//! TOP/SPACE/new/...          files under construction
//! ```
//!
//! Nothing here is synced: a file that a power cut tore is noticed by its digest. Any of it may vanish at any time. All
//! calls block.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Timespec, Timestamps, UTIME_NOW};

/// The folder of whole objects.
pub(super) const WHOLE: &str = "whole";
/// The folder of pieces.
pub(super) const PARTS: &str = "parts";
/// The folder of files under construction.
pub(super) const NEW: &str = "new";
/// What is in a cache's tag, as <https://bford.info/cachedir/> says.
const TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This folder is a cache of kloset-mount: it may be deleted at any time, also while it is in use.\n";
/// One part in this many of a filesystem is left free, so that a cache is never what fills a disk.
const FREE_PART: u64 = 20;

/// Where one kloset's entries are.
#[derive(Debug)]
pub(super) struct Folder {
    /// The cache's folder, which klosets share.
    pub(super) top: PathBuf,
    space: PathBuf,
}

impl Folder {
    pub(super) fn new(top: &Path, space: &str) -> Self {
        Self { top: top.to_owned(), space: top.join(space) }
    }

    /// Returns the file's bytes, or `None` where there is none or a longer one than `bytes_max`; it counts as used now.
    pub(super) fn read(&self, name: &str, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        // Never waits for the other end of a pipe that somebody put there.
        let flags = i32::try_from((rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW).bits()).unwrap_or(0);
        let file = match OpenOptions::new().read(true).custom_flags(flags).open(self.path(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() > bytes_max {
            return Ok(None);
        }
        let mut content = Vec::with_capacity(usize::try_from(meta.len()).unwrap_or(0) + 1);
        (&file).take(bytes_max).read_to_end(&mut content)?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        // In a folder that is not ours to change, entries grow old unnoticed.
        let _ = rustix::fs::futimens(&file, &Timestamps { last_access: now, last_modification: now });
        Ok(Some(content))
    }

    /// Writes a file beside its place and renames it when it is whole.
    pub(super) fn write(&self, name: &str, content: &[u8], trailer: &[u8]) -> io::Result<()> {
        static WRITTEN: AtomicU64 = AtomicU64::new(0);
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let new = self.space.join(NEW).join(format!("{}-{number}", std::process::id()));
        let put = || {
            let mut file = create(&new)?;
            write_both(&mut file, content, trailer)?;
            std::fs::rename(&new, self.path(name))
        };
        put().inspect_err(|_| {
            let _ = std::fs::remove_file(&new);
        })
    }

    /// Removes an entry; one that is not there is removed already.
    pub(super) fn remove(&self, name: &str) {
        let _ = std::fs::remove_file(self.path(name));
    }

    /// Removes all entries of an object, whose names have a stem in common.
    pub(super) fn remove_all(&self, stem: &str) {
        self.remove(stem);
        let Ok(entries) = std::fs::read_dir(self.space.join(PARTS)) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(stem.as_bytes()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Tells whether the folders are there.
    pub(super) fn is_prepared(&self) -> bool {
        self.space.join(NEW).exists() && self.space.join(PARTS).exists() && self.space.join(WHOLE).exists()
    }

    /// Makes the folders, readable by their owner only, and the tag where the whole folder is a cache.
    pub(super) fn prepare(&self) -> io::Result<()> {
        make(&self.top)?;
        // A folder that held other things before must not be left out of backups.
        if std::fs::read_dir(&self.top)?.next().is_none() {
            create(&self.top.join("CACHEDIR.TAG"))?.write_all(TAG.as_bytes())?;
        }
        make(&self.space)?;
        let meta = std::fs::symlink_metadata(&self.space)?;
        let owner = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != owner || meta.mode() & 0o022 != 0 {
            return Err(io::Error::other(format!("{:?} is not a folder that only we can write", self.space)));
        }
        for below in [WHOLE, PARTS, NEW] {
            make(&self.space.join(below))?;
        }
        Ok(())
    }

    /// Tells whether the disk has room for `bytes` and some to spare.
    pub(super) fn has_room(&self, bytes: u64) -> io::Result<bool> {
        let disk = rustix::fs::statvfs(&self.top)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        Ok(free.saturating_sub(bytes) > disk.f_blocks.saturating_mul(disk.f_frsize) / FREE_PART)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.space.join(if name.contains('-') { PARTS } else { WHOLE }).join(name)
    }
}

/// Creates a file that is not there, for its owner only.
pub(super) fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn write_both(file: &mut File, content: &[u8], trailer: &[u8]) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(content), IoSlice::new(trailer)])?;
    file.write_all(content.get(written..).unwrap_or_default())?;
    file.write_all(&trailer[written.saturating_sub(content.len()).min(trailer.len())..])
}
