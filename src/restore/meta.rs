//! Owner, attributes, mode and times of what was restored, in this order.
//!
//! The owner comes first, since changing it clears setuid and capabilities; attributes before the mode, which may take
//! the right to write them away (an ACL's mask and the mode's group bits are one thing); the times last. What the system refuses is noted and does not end anything. Without the owner a file does not get
//! setuid or setgid either: it would run as somebody else than its owner.

use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use super::context::Context;
use super::report::LossKind;
use super::target::Dir;
use crate::repo::tree::{Node, NodeKind};

/// setuid and setgid.
const SET_ID: u32 = 0o6000;

/// Applies a node's metadata to an open file or folder.
pub(super) fn apply_to_fd(context: &Context, fd: &OwnedFd, node: &Node, path: impl Fn() -> Vec<u8>) {
    let lose = |kind, error| context.tally.lose(kind, || context.in_snapshot(&path()), error);
    let owned = own(context, node, |uid, gid| rustix::fs::fchown(fd, uid, gid));
    if let Err(error) = owned {
        lose(LossKind::Ownership, error);
    }
    for (name, value) in &node.xattrs {
        if let Err(error) = rustix::fs::fsetxattr(fd, &**name, value, XattrFlags::empty()) {
            lose(kind_of(name, error), error);
        }
    }
    if let Err(error) = rustix::fs::fchmod(fd, mode(node, owned.is_ok())) {
        lose(LossKind::Mode, error);
    }
    if let Err(error) = rustix::fs::futimens(fd, &times(node)) {
        lose(LossKind::Times, error);
    }
}

/// Applies a node's metadata to an entry that is no regular file and no folder, without following it.
pub(super) fn apply_to_entry(context: &Context, dir: &Dir, name: &[u8], node: &Node) {
    let own_name = node.name.as_bytes();
    let lose = |kind, error| context.tally.lose(kind, || context.in_snapshot(&dir.path_of(own_name)), error);
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    let owned = own(context, node, |uid, gid| rustix::fs::chownat(dir, name, uid, gid, nofollow));
    if let Err(error) = owned {
        lose(LossKind::Ownership, error);
    }
    if !node.xattrs.is_empty() {
        let path = [format!("/proc/self/fd/{}/", std::os::fd::AsFd::as_fd(dir).as_raw_fd()).as_bytes(), name].concat();
        for (name, value) in &node.xattrs {
            if let Err(error) = rustix::fs::lsetxattr(&*path, &**name, value, XattrFlags::empty()) {
                lose(kind_of(name, error), error);
            }
        }
    }
    if !matches!(node.kind, NodeKind::Symlink(_))
        && let Err(error) = change_mode(dir, name, mode(node, owned.is_ok()))
    {
        lose(LossKind::Mode, error);
    }
    if let Err(error) = rustix::fs::utimensat(dir, name, &times(node), nofollow) {
        lose(LossKind::Times, error);
    }
}

/// Changes the mode of an entry that is held by a descriptor meanwhile, so that no link can take its place.
fn change_mode(dir: &Dir, name: &[u8], mode: Mode) -> Result<(), Errno> {
    let held = rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    rustix::fs::chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), mode)
}

/// Changes the owner as far as the system lets us; spares the calls that cannot help.
fn own(
    context: &Context,
    node: &Node,
    chown: impl Fn(Option<Uid>, Option<Gid>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    let (me, uid, gid) = (context.me, node.owner.uid, node.owner.gid);
    if uid == u32::MAX || gid == u32::MAX {
        return Err(Errno::INVAL); // means "leave as it is" to the system
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    match (me.uid.is_root(), user == me.uid, group == me.gid) {
        (true, ..) => chown(Some(user), Some(group)),
        (false, true, true) => Ok(()),
        (false, true, false) => chown(None, Some(group)),
        (false, false, _) => Err(Errno::PERM),
    }
}

fn mode(node: &Node, owned: bool) -> Mode {
    Mode::from_raw_mode(if owned { node.mode } else { node.mode & !SET_ID })
}

fn kind_of(attribute: &[u8], error: Errno) -> LossKind {
    let privileged = [&b"trusted."[..], b"security."].iter().any(|space| attribute.starts_with(space));
    if privileged && matches!(error, Errno::PERM | Errno::ACCESS) {
        LossKind::PrivilegedAttributes
    } else {
        LossKind::Attributes
    }
}

/// Returns the times to set; when a file was last read is not known and stays.
fn times(node: &Node) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: node.mtime.seconds, tv_nsec: node.mtime.nanos.into() },
    }
}
