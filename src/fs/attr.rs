//! What stat(2) shows.
//!
//! Pure: from a node to its attributes. It does not know who asks.

use crate::repo::tree::{Node, NodeKind, Time};

/// Shown as the size of every directory: what most file systems show of a small one.
const DIRECTORY_BYTES: u64 = 4096;
/// The unit of `st_blocks`, fixed by POSIX practice whatever the block size.
const BLOCK_BYTES: u64 = 512;

/// The kind of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// The attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u16,
    /// How many names it has.
    pub links: u32,
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Length.
    pub bytes: u64,
    /// Units of 512 bytes that it would take, holes not counted.
    pub blocks: u64,
    /// When its content changed; the time of access is not kept.
    pub mtime: Time,
    /// When its inode changed.
    pub ctime: Time,
    /// Device number in the kernel's encoding.
    pub device: u32,
}

impl Attr {
    /// Returns the attributes of a node of a snapshot.
    #[must_use]
    pub fn of(node: &Node, number: u64) -> Self {
        let (kind, bytes, stored, device) = match &node.kind {
            NodeKind::File(file) => (Kind::File, file.bytes, file.data_bytes(), 0),
            NodeKind::Directory(_) => (Kind::Directory, DIRECTORY_BYTES, DIRECTORY_BYTES, 0),
            NodeKind::Symlink(target) => (Kind::Symlink, target.len() as u64, 0, 0),
            NodeKind::CharDevice(major, minor) => (Kind::CharDevice, 0, 0, encode_device(*major, *minor)),
            NodeKind::BlockDevice(major, minor) => (Kind::BlockDevice, 0, 0, encode_device(*major, *minor)),
            NodeKind::Fifo => (Kind::Fifo, 0, 0, 0),
            NodeKind::Socket => (Kind::Socket, 0, 0, 0),
        };
        Self {
            number,
            kind,
            mode: u16::try_from(node.mode & 0o7777).expect("twelve bits"),
            links: node.identity.links.max(1),
            uid: node.owner.uid,
            gid: node.owner.gid,
            bytes,
            blocks: stored.div_ceil(BLOCK_BYTES),
            mtime: node.mtime,
            ctime: node.ctime,
            device,
        }
    }

    /// Returns them as they are shown where the owner may read everything.
    ///
    /// The group bits of a file with an ACL are its mask; without the ACL they would let in whom it keeps out.
    #[must_use]
    pub fn readable(self, has_acl: bool) -> Self {
        let more = if self.kind == Kind::Directory { 0o500 } else { 0o400 };
        let less = if has_acl { 0o070 } else { 0 };
        Self { mode: self.mode & !less | more, ..self }
    }

    /// Returns the attributes of a directory or link of the virtual top.
    #[must_use]
    pub fn of_root(number: u64, link: Option<&str>, unix_ms: i64, (uid, gid): (u32, u32)) -> Self {
        let nanos = u32::try_from(unix_ms.rem_euclid(1000) * 1_000_000).expect("under 10^9");
        let time = Time { seconds: unix_ms.div_euclid(1000), nanos };
        let (kind, mode, bytes, blocks) = match link {
            Some(target) => (Kind::Symlink, 0o777, target.len() as u64, 0),
            None => (Kind::Directory, 0o755, DIRECTORY_BYTES, DIRECTORY_BYTES / BLOCK_BYTES),
        };
        // Of a directory, one link means that its number of folders is not known.
        Self { number, kind, mode, links: 1, uid, gid, bytes, blocks, mtime: time, ctime: time, device: 0 }
    }

    /// Returns them as those of a file that everybody who gets there may read.
    #[must_use]
    pub fn as_file(self, bytes: u64) -> Self {
        Self { kind: Kind::File, mode: 0o444, bytes, blocks: bytes.div_ceil(BLOCK_BYTES), ..self }
    }
}

/// Returns a device number as the kernel's `new_encode_dev` makes it: 12 bits of major, 20 of minor.
#[must_use]
fn encode_device(major: u32, minor: u32) -> u32 {
    minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

/// Finds the next data or the next hole from `offset` on, as lseek(2) does; `None` behind the end.
#[must_use]
pub fn seek_hole_or_data(holes: &[(u64, u64)], bytes: u64, offset: u64, wants_hole: bool) -> Option<u64> {
    if offset >= bytes {
        return None;
    }
    let mut at = offset;
    for &(start, length) in holes {
        let end = start + length;
        if end <= at {
            continue;
        }
        if wants_hole {
            return Some(at.max(start));
        }
        if at < start {
            return Some(at);
        }
        at = end;
    }
    // Behind the last hole is data up to the end, where every file has a hole.
    match wants_hole {
        true => Some(bytes),
        false => (at < bytes).then_some(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_encoded_as_the_kernel_reads_them() {
        for (major, minor) in [(1, 3), (8, 1), (259, 300), (4095, (1 << 20) - 1), (0, 256)] {
            let device = encode_device(major, minor);
            let decoded = ((device & 0xf_ff00) >> 8, device & 0xff | (device >> 12) & 0xf_ff00);
            assert_eq!(decoded, (major, minor));
        }
    }

    #[track_caller]
    fn check(offset: u64, data: Option<u64>, hole: Option<u64>) {
        let holes = [(0, 10), (40, 5), (90, 10)];
        assert_eq!(seek_hole_or_data(&holes, 100, offset, false), data, "data from {offset}");
        assert_eq!(seek_hole_or_data(&holes, 100, offset, true), hole, "hole from {offset}");
    }

    #[test]
    fn holes_and_data_are_found_as_lseek_finds_them() {
        check(0, Some(10), Some(0));
        check(9, Some(10), Some(9));
        check(10, Some(10), Some(40));
        check(42, Some(45), Some(42));
        check(45, Some(45), Some(90));
        check(90, None, Some(90));
        check(100, None, None);
        assert_eq!(seek_hole_or_data(&[], 7, 3, true), Some(7));
        assert_eq!(seek_hole_or_data(&[], 7, 3, false), Some(3));
    }
}
