//! From what the system says of a file to a node.
//!
//! Takes metadata as the kernel gives it; what cannot be read is returned as an error for the caller to report. It does
//! not walk and does not read content.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use crate::repo::tree::{
    FileContent, Identity, Name, Node, NodeKind, OWNER_NAME_BYTES_MAX, Owner, Time, XATTR_BYTES_MAX,
    XATTR_NAME_BYTES_MAX,
};

/// The longest list of attribute names, and the longest value, that Linux allows.
const XATTR_VALUE_BYTES_MAX: usize = 64 << 10;

/// Extended attributes: names and values, sorted by name.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Names of users and groups, each asked for once.
#[derive(Default)]
pub(super) struct Owners {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Owners {
    fn names(&mut self, uid: u32, gid: u32) -> (&str, &str) {
        let user = self
            .users
            .entry(uid)
            .or_insert_with(|| uzers::get_user_by_uid(uid).map(|u| owner_name(u.name())).unwrap_or_default());
        let group = self
            .groups
            .entry(gid)
            .or_insert_with(|| uzers::get_group_by_gid(gid).map(|g| owner_name(g.name())).unwrap_or_default());
        (user, group)
    }

    pub(super) fn owner(&mut self, uid: u32, gid: u32) -> Owner {
        let (user, group) = self.names(uid, gid);
        Owner { uid, gid, user: user.to_owned(), group: group.to_owned() }
    }

    /// Tells whether a node made of `stat` would be `node`, given that its inode has not changed.
    pub(super) fn describe(&mut self, node: &Node, stat: &Stat) -> bool {
        let owner = &node.owner;
        node.mode == stat.st_mode & 0o7777
            && (owner.uid, owner.gid) == (stat.st_uid, stat.st_gid)
            && (owner.user.as_str(), owner.group.as_str()) == self.names(stat.st_uid, stat.st_gid)
            && node.mtime == mtime(stat)
            && node.identity == identity(stat)
    }

    /// Makes a node without content, target and attributes.
    pub(super) fn node(&mut self, name: Name, stat: &Stat) -> Node {
        Node {
            name,
            kind: of_stat(stat),
            mode: stat.st_mode & 0o7777,
            owner: self.owner(stat.st_uid, stat.st_gid),
            mtime: mtime(stat),
            ctime: ctime(stat),
            identity: identity(stat),
            xattrs: Vec::new(),
        }
    }
}

/// Tells whether a node of that kind, no regular file and no directory, is what the system says.
pub(super) fn is_kind(kind: &NodeKind, stat: &Stat) -> bool {
    match (kind, of_stat(stat)) {
        (NodeKind::Symlink(_), NodeKind::Symlink(_)) => FileType::from_raw_mode(stat.st_mode) == FileType::Symlink,
        (kind, now) => *kind == now,
    }
}

fn of_stat(stat: &Stat) -> NodeKind {
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match FileType::from_raw_mode(stat.st_mode) {
        // Placeholders until tree and target are known.
        FileType::Directory | FileType::Symlink => NodeKind::Symlink(Vec::new()),
        FileType::CharacterDevice => NodeKind::CharDevice(major, minor),
        FileType::BlockDevice => NodeKind::BlockDevice(major, minor),
        FileType::Fifo => NodeKind::Fifo,
        FileType::Socket => NodeKind::Socket,
        FileType::RegularFile | FileType::Unknown => NodeKind::File(FileContent::default()),
    }
}

/// Returns a name as trees hold it: one that is too long counts as not known.
fn owner_name(name: &std::ffi::OsStr) -> String {
    let name = name.to_string_lossy().into_owned();
    if name.len() > OWNER_NAME_BYTES_MAX { String::new() } else { name }
}

fn identity(stat: &Stat) -> Identity {
    Identity { device: stat.st_dev, inode: stat.st_ino, links: u32::try_from(stat.st_nlink).unwrap_or(u32::MAX) }
}

/// Returns when the content changed.
pub(super) fn mtime(stat: &Stat) -> Time {
    time(stat.st_mtime, stat.st_mtime_nsec)
}

/// Returns when the inode changed.
pub(super) fn ctime(stat: &Stat) -> Time {
    time(stat.st_ctime, stat.st_ctime_nsec)
}

#[allow(clippy::cast_lossless, trivial_numeric_casts)] // the field's type differs by platform
fn time(seconds: i64, nanos: impl TryInto<u32>) -> Time {
    Time { seconds, nanos: nanos.try_into().unwrap_or(0).min(999_999_999) }
}

/// Reads the extended attributes of an open file or directory, sorted by name.
///
/// # Errors
/// What the system says; a file system without attributes has none.
pub(super) fn xattrs_of_fd(file: impl AsFd) -> Result<Xattrs, Errno> {
    let file = file.as_fd();
    collect(
        || rustix::fs::flistxattr_query(file),
        |names| rustix::fs::flistxattr(file, names),
        |name, value| rustix::fs::fgetxattr(file, name, value),
    )
}

/// Reads the extended attributes of what `name` in `directory` is, links not followed.
///
/// # Errors
/// As [`xattrs_of_fd`].
pub(super) fn xattrs_of_entry(directory: impl AsFd, name: &[u8]) -> Result<Xattrs, Errno> {
    let mut path = format!("/proc/self/fd/{}/", directory.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    collect(
        || rustix::fs::llistxattr_query(&*path),
        |names| rustix::fs::llistxattr(&*path, names),
        |name, value| rustix::fs::lgetxattr(&*path, name, value),
    )
}

fn collect(
    list_bytes: impl Fn() -> Result<usize, Errno>,
    list: impl Fn(&mut [u8]) -> Result<usize, Errno>,
    read: impl Fn(&[u8], &mut [u8]) -> Result<usize, Errno>,
) -> Result<Xattrs, Errno> {
    match list_bytes() {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let mut names = vec![0; XATTR_VALUE_BYTES_MAX];
    let listed = list(&mut names)?;
    names.truncate(listed);
    let mut value = vec![0; XATTR_VALUE_BYTES_MAX];
    let mut out = Vec::new();
    let mut total = 0;
    for name in names.split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let bytes = match read(name, &mut value) {
            Err(Errno::NODATA) => continue, // removed since it was listed
            bytes => bytes?,
        };
        total += name.len() + bytes;
        if total > XATTR_BYTES_MAX || name.len() > XATTR_NAME_BYTES_MAX {
            return Err(Errno::TOOBIG);
        }
        out.push((name.to_vec(), value[..bytes].to_vec()));
    }
    out.sort_unstable();
    Ok(out)
}
