//! The target: folders held open, and entries made in them without ever following a link.
//!
//! An entry whose name is free is made there; where something may be replaced the new one is made beside it and renamed
//! over it once it is whole. A folder is finished (owner, mode, attributes, times) when nobody needs it any more: when
//! the last of its entries lets go of it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::context::Context;
use super::item::Item;
use super::{Overwrite, RestoreError, meta};

/// A folder of the target.
pub(super) struct Dir {
    context: Arc<Context>,
    above: Option<Arc<Dir>>,
    name: Vec<u8>,
    fd: OwnedFd,
    /// Whether it was made by this restore, so that nothing else is in it.
    fresh: bool,
    /// Whose owner, mode, attributes and times it takes in the end.
    node: Option<Item>,
}

/// Dropping finishes the folder, so that no way out of a restore can forget one; the fields drop after this, its own
/// parent's hold last, so that folders are finished from below.
impl Drop for Dir {
    fn drop(&mut self) {
        if let Some(item) = self.node.take() {
            meta::apply_to_fd(&self.context, &self.fd, item.node(), || self.path());
        }
    }
}

impl Dir {
    /// Opens the folder restored into, made if it is not there; a new one takes the metadata of `node`.
    pub(super) fn open_root(
        context: &Arc<Context>,
        path: &Path,
        node: Option<Item>,
    ) -> Result<Arc<Self>, RestoreError> {
        use std::os::unix::ffi::OsStrExt;
        let failed = |source| RestoreError::Target { path: path.as_os_str().as_bytes().to_vec(), source };
        let fresh = !path.exists();
        std::fs::create_dir_all(path).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|e| failed(e.into()))?;
        let node = node.filter(|_| fresh);
        Ok(Arc::new(Self { context: context.clone(), above: None, name: Vec::new(), fd, fresh, node }))
    }

    /// Makes a folder in this one, or opens it if it is there.
    pub(super) fn make(self: &Arc<Self>, item: Item) -> Result<Arc<Self>, Errno> {
        let name = item.name();
        let fresh = match rustix::fs::mkdirat(&self.fd, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => self.may_merge(name)?,
            Err(error) => return Err(error),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty())?;
        let keeps = !fresh && self.context.overwrite == Overwrite::Never;
        Ok(Arc::new(Self {
            context: self.context.clone(),
            above: Some(self.clone()),
            name: name.to_vec(),
            fd,
            fresh,
            node: (!keeps).then_some(item),
        }))
    }

    /// Looks at what stands where a folder should: another folder is merged, anything else replaced if it may be.
    fn may_merge(&self, name: &[u8]) -> Result<bool, Errno> {
        let stat = self.stat(name)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Ok(false);
        }
        if self.context.overwrite == Overwrite::Never {
            return Err(Errno::EXIST);
        }
        rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU)?;
        Ok(true)
    }

    /// Returns what an entry is, without following it.
    pub(super) fn stat(&self, name: &[u8]) -> Result<Stat, Errno> {
        rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Tells whether this restore made the folder.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Returns the path below the root.
    pub(super) fn path(&self) -> Vec<u8> {
        let mut out = match &self.above {
            Some(above) => above.path(),
            None => return Vec::new(),
        };
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(&self.name);
        out
    }

    /// Returns the path below the root of an entry.
    pub(super) fn path_of(&self, name: &[u8]) -> Vec<u8> {
        let mut out = self.path();
        if !out.is_empty() {
            out.push(b'/');
        }
        out.extend_from_slice(name);
        out
    }

    /// Opens the folder that holds what is at `path` below the root, links not followed; returns it and the name.
    pub(super) fn open_above<'p>(&self, path: &'p [u8]) -> Result<(OwnedFd, &'p [u8]), Errno> {
        let root = self.root();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut fd = rustix::fs::openat(&root.fd, c".", flags, Mode::empty())?;
        let mut components = path.split(|b| *b == b'/');
        let name = components.next_back().unwrap_or_default();
        for component in components {
            fd = rustix::fs::openat(&fd, component, flags, Mode::empty())?;
        }
        Ok((fd, name))
    }

    fn root(&self) -> &Self {
        let mut at = self;
        while let Some(above) = &at.above {
            at = above;
        }
        at
    }

    /// Makes an entry by `make`, which is given the name to use: the free one, or one to be renamed.
    pub(super) fn put<T>(
        &self,
        name: &[u8],
        make: impl Fn(&OwnedFd, &[u8]) -> Result<T, Errno>,
    ) -> Result<(T, Made), Errno> {
        match make(&self.fd, name) {
            Ok(value) => return Ok((value, Made(None))),
            Err(Errno::EXIST) if self.context.overwrite != Overwrite::Never => {}
            Err(error) => return Err(error),
        }
        loop {
            let temporary = self.context.temporary_name();
            match make(&self.fd, &temporary) {
                Ok(value) => return Ok((value, Made(Some(temporary)))),
                Err(Errno::EXIST) => {} // left over from a run that was killed
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives what was made its name, over what had it before.
    pub(super) fn keep(&self, name: &[u8], made: Made) -> Result<(), Errno> {
        let Made(Some(temporary)) = made else { return Ok(()) };
        let renamed = rustix::fs::renameat(&self.fd, &*temporary, &self.fd, name);
        // If both are names of one file the rename does nothing, and if it failed there is something to take away.
        let _ = rustix::fs::unlinkat(&self.fd, &*temporary, AtFlags::empty());
        renamed
    }

    /// Takes away what was made.
    pub(super) fn discard(&self, name: &[u8], made: &Made) {
        let made = made.0.as_deref().unwrap_or(name);
        let _ = rustix::fs::unlinkat(&self.fd, made, AtFlags::empty());
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Under which name something was made, if not its own.
pub(super) struct Made(Option<Vec<u8>>);

impl Made {
    /// Returns the name it has now.
    pub(super) fn name<'n>(&'n self, own: &'n [u8]) -> &'n [u8] {
        self.0.as_deref().unwrap_or(own)
    }
}

/// Makes a regular file.
pub(super) fn create(fd: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(fd, name, flags, Mode::RUSR | Mode::WUSR)
}
