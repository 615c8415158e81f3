//! The kernel's side: decodes a request, hands it to the view, replies.
//!
//! Promises that no thread of fuser ever waits for the store, that every request is answered within the deadline or once
//! its asker is killed, and that everything which would change something is answered `EROFS`. Each operation is polled once in fuser's thread:
//! what is in memory is answered there; the rest goes on as a task of the runtime, with the reply. It decides nothing
//! about files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    AccessFlags, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, Notifier, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;

use super::attr::{Attr, Kind};
use super::deny::Deny;
use super::errno::{FsError, Reporter};
use super::status::{Kind as Asked, Status};
use super::view::{Found, Line, View};
use super::wait::wait;
use crate::repo::tree::Time;

/// No request waits longer for the store, unless told otherwise; a program that hangs keeps a machine from sleeping.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// Requests that the kernel sends ahead of its readers: with readahead raised to 4 MiB, a few files' worth.
const BACKGROUND_MAX: u16 = 64;
/// The longest read: what the kernel takes at most in one request.
const REQUEST_BYTES: u32 = 1 << 20;
/// Inodes are never used for anything else, so there is one generation.
const GENERATION: Generation = Generation(0);
/// `whence` of lseek(2).
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

/// The filesystem that fuser serves.
pub struct Fuse {
    view: View,
    runtime: Handle,
    reporter: Arc<Reporter>,
    timeout: Duration,
    deny: Deny,
    status: Arc<Status>,
    /// Whether the kernel wants every folder opened.
    opens_folders: bool,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Fuse {
    /// Serves `view`; what waits for the store waits on `runtime`, for `timeout` at most.
    #[must_use]
    pub fn new(view: View, runtime: Handle, reporter: Reporter, timeout: Duration) -> Self {
        let status = view.status();
        let (deny, notifier) = (Deny::new(&[]), Arc::default());
        Self { view, runtime, reporter: Arc::new(reporter), timeout, deny, status, opens_folders: true, notifier }
    }

    /// Returns where to put what tells the kernel that something changed, once there is a kernel to tell.
    #[must_use]
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        self.notifier.clone()
    }

    /// Gives no content to some programs.
    #[must_use]
    pub fn denying(self, deny: Deny) -> Self {
        Self { deny, ..self }
    }

    /// Replies with the outcome of `work`, now if it is ready, else when it is.
    fn answer<T: Send + 'static>(
        &self,
        (kind, request): (Asked, &Request),
        work: impl Future<Output = Result<T, FsError>> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.status.request(kind);
        let _context = self.runtime.enter();
        let reporter = self.reporter.clone();
        let finish = move |result: Result<T, FsError>| {
            reply(result.map_err(|error| Errno::from_i32(reporter.errno(&error).raw_os_error())));
        };
        let mut work = Box::pin(work);
        let mut context = Context::from_waker(Waker::noop());
        // A panic must not take fuser's thread with it; the reply, dropped, says EIO.
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(&mut context))) {
            Ok(Poll::Ready(result)) => finish(result),
            Ok(Poll::Pending) => {
                let (timeout, asker) = (self.timeout, request.pid());
                tokio::spawn(async move { finish(wait(work, timeout, asker).await) });
            }
            Err(_) => {}
        }
    }

    /// Returns what ends a listing: at its end, the kernel is told to forget it, unless it can never change.
    ///
    /// Where folders are not opened, the kernel keeps every listing for as long as it likes.
    fn end_of_listing(&self, inode: INodeNo) -> impl FnOnce() + Send + 'static {
        let notifier =
            if self.opens_folders || self.view.is_fixed(inode.0) { None } else { self.notifier.get().cloned() };
        let runtime = self.runtime.clone();
        move || {
            if let Some(notifier) = notifier {
                runtime.spawn_blocking(move || {
                    if let Err(error) = notifier.inval_inode(inode, 0, 0) {
                        tracing::debug!("the kernel keeps the listing of inode {inode}: {error}");
                    }
                });
            }
        }
    }
}

/// What became of a part of a listing: whether anything was in it.
fn listed(outcome: Result<(), FsError>, any: bool) -> Result<bool, FsError> {
    match outcome {
        Err(error) if !any => Err(error),
        _ => Ok(any),
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            // What changes, which is status.json alone, is read again.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            // Modes alone would let in whom an ACL keeps out: the group bits of a file with an ACL are its mask.
            InitFlags::FUSE_POSIX_ACL,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel does not offer {flag:?}");
            }
        }
        self.opens_folders = config.add_capabilities(InitFlags::FUSE_NO_OPENDIR_SUPPORT).is_err();
        // Refused values are replaced by the nearest that is accepted; what is asked for here is always accepted.
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_max_write(REQUEST_BYTES);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (view, name) = (self.view.clone(), name.as_bytes().to_vec());
        let work = async move { view.lookup(parent.0, &name).await };
        self.answer((Asked::Lookup, request), work, |found| match found {
            Ok(Found { attr: Some(attr), ttl }) => reply.entry(&ttl, &file_attr(&attr), GENERATION),
            // Inode number 0 says: no such name, and that may be kept.
            Ok(Found { attr: None, ttl }) => reply.entry(&ttl, &absent(), GENERATION),
            Err(errno) => reply.error(errno),
        });
    }

    fn forget(&self, _request: &Request, inode: INodeNo, lookups: u64) {
        self.view.forget(inode.0, lookups);
    }

    fn getattr(&self, request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let view = self.view.clone();
        self.answer((Asked::Getattr, request), async move { view.getattr(inode.0).await }, |shown| match shown {
            Ok(shown) => reply.attr(&shown.ttl, &file_attr(&shown.attr)),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, request: &Request, inode: INodeNo, reply: ReplyData) {
        let view = self.view.clone();
        self.answer((Asked::Readlink, request), async move { view.readlink(inode.0).await }, |target| match target {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        });
    }

    /// Says once that files are not opened here: the kernel then never asks again and keeps what it has read.
    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.status.request(Asked::Open);
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _request: &Request, _inode: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if self.deny.is_denied(request.pid()) {
            self.status.denied();
            return reply.error(Errno::EACCES);
        }
        let view = self.view.clone();
        let work = async move { view.read(inode.0, offset, size).await };
        self.answer((Asked::Read, request), work, |bytes| match bytes {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        });
    }

    /// Says once that folders are not opened here: the kernel then never asks again and keeps what it has listed.
    fn opendir(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.status.request(Asked::Open);
        if !self.opens_folders {
            return reply.error(Errno::ENOSYS);
        }
        let flags = match self.view.is_fixed(inode.0) {
            true => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::empty(),
        };
        reply.opened(FileHandle(0), flags);
    }

    fn readdir(&self, request: &Request, inode: INodeNo, _handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let view = self.view.clone();
        let work = async move {
            let mut any = false;
            let mut take = |line: &Line<'_>| {
                let name = OsStr::from_bytes(line.name);
                let full = reply.add(INodeNo(line.attr.number), line.next, file_type(line.attr.kind), name);
                any |= !full;
                full
            };
            let outcome = view.readdir(inode.0, offset, false, &mut take).await;
            Ok((reply, listed(outcome, any)))
        };
        let (reporter, end) = (self.reporter.clone(), self.end_of_listing(inode));
        self.answer((Asked::Readdir, request), work, move |done| match done {
            Ok((reply, Ok(true))) => reply.ok(),
            Ok((reply, Ok(false))) => {
                reply.ok();
                end();
            }
            Ok((reply, Err(error))) => reply.error(errno(&reporter, &error)),
            Err(_) => {} // the reply went with the work that took too long, and says EIO
        });
    }

    fn readdirplus(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let view = self.view.clone();
        let work = async move {
            let mut any = false;
            let mut take = |line: &Line<'_>| {
                let (name, attr) = (OsStr::from_bytes(line.name), file_attr(&line.attr));
                let full = reply.add(attr.ino, line.next, name, &line.ttl, &attr, GENERATION);
                any |= !full;
                full
            };
            let outcome = view.readdir(inode.0, offset, true, &mut take).await;
            Ok((reply, listed(outcome, any)))
        };
        let (reporter, end) = (self.reporter.clone(), self.end_of_listing(inode));
        self.answer((Asked::Readdir, request), work, move |done| match done {
            Ok((reply, Ok(true))) => reply.ok(),
            Ok((reply, Ok(false))) => {
                reply.ok();
                end();
            }
            Ok((reply, Err(error))) => reply.error(errno(&reporter, &error)),
            Err(_) => {} // the reply went with the work that took too long, and says EIO
        });
    }

    /// Answered from memory: `df` must never hang.
    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        self.status.request(Asked::Statfs);
        let space = self.view.statfs();
        reply.statfs(space.blocks, 0, 0, space.files, 0, space.block_bytes, 255, space.block_bytes);
    }

    fn getxattr(&self, request: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (view, name) = (self.view.clone(), name.as_bytes().to_vec());
        let work = async move { view.getxattr(inode.0, &name).await };
        self.answer((Asked::Xattr, request), work, move |value| reply_xattr(value, size, reply));
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let view = self.view.clone();
        self.answer((Asked::Xattr, request), async move { view.listxattr(inode.0).await }, move |names| {
            reply_xattr(names, size, reply);
        });
    }

    fn lseek(
        &self,
        request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        if !matches!(whence, SEEK_DATA | SEEK_HOLE) {
            return reply.error(Errno::EINVAL);
        }
        let view = self.view.clone();
        self.answer(
            (Asked::Seek, request),
            async move { view.seek(inode.0, offset, whence == SEEK_HOLE).await },
            |at| match at {
                Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
                Err(errno) => reply.error(errno),
            },
        );
    }

    /// The kernel checks modes and ACLs itself; only a mount without `default_permissions` gets here.
    fn access(&self, _request: &Request, _inode: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        match mask.contains(AccessFlags::W_OK) {
            true => reply.error(Errno::EROFS),
            false => reply.ok(),
        }
    }

    fn setattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _device: u32,
        reply: ReplyEntry,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _parent: INodeNo, _name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, _target: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _inode: INodeNo, _new_parent: INodeNo, _new_name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _name: &OsStr,
        _value: &[u8],
        _flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _request: &Request, _inode: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }
}

fn errno(reporter: &Reporter, error: &FsError) -> Errno {
    Errno::from_i32(reporter.errno(error).raw_os_error())
}

/// Asked with size 0, the kernel wants to know the length only.
fn reply_xattr(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Err(errno) => reply.error(errno),
        Ok(value) => match u32::try_from(value.len()) {
            Ok(bytes) if size == 0 => reply.size(bytes),
            Ok(bytes) if bytes <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let (mtime, ctime) = (system_time(attr.mtime), system_time(attr.ctime));
    FileAttr {
        ino: INodeNo(attr.number),
        size: attr.bytes,
        blocks: attr.blocks,
        atime: mtime,
        mtime,
        ctime,
        crtime: ctime,
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.device,
        blksize: 4096,
        flags: 0,
    }
}

/// Attributes of what is not there.
fn absent() -> FileAttr {
    file_attr(&Attr::of_root(0, None, 0, (0, 0)))
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
        Kind::Socket => FileType::Socket,
    }
}

/// Times that the system cannot express are shown as 1970.
fn system_time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = match time.seconds {
        0.. => UNIX_EPOCH.checked_add(seconds),
        _ => UNIX_EPOCH.checked_sub(seconds),
    };
    whole.and_then(|whole| whole.checked_add(Duration::from_nanos(time.nanos.into()))).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_beyond_all_measure_are_shown() {
        let at = |seconds, nanos| system_time(Time { seconds, nanos });
        assert_eq!(at(-5, 999_999_999), UNIX_EPOCH - Duration::from_nanos(4_000_000_001));
        assert_eq!(at(7, 1), UNIX_EPOCH + Duration::new(7, 1));
        let _ = (at(i64::MAX, 999_999_999), at(i64::MIN, 0));
    }
}
