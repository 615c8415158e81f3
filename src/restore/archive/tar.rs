//! tar: ustar headers, and before an entry an extended header (POSIX.1-2001, "pax") for what these have no room for.
//!
//! Extended attributes and ACLs are written as star, GNU tar and bsdtar do (`SCHILY.xattr.`, `SCHILY.acl.`). Holes are
//! written as zeros. Names are bytes.

use std::io::{self, Write};

use tar::{EntryType, Header};

use super::pack::Packed;
use super::{Form, Outcome, acl};
use crate::repo::tree::{Node, NodeKind, Time};

/// Everything is padded to blocks of so many bytes.
const BLOCK_BYTES: u64 = 512;
/// Room for a name or a link's target in a header.
const NAME_BYTES_MAX: usize = 100;
/// Room for the name of a user or a group, with the zero at its end.
const OWNER_BYTES_MAX: usize = 31;
/// The largest time in a header: 11 octal digits.
const SECONDS_MAX: u64 = (1 << 33) - 1;

/// An archive being written.
pub(super) struct Tar<'a, W: Write + 'a> {
    out: Packed<'a, W>,
    /// What is still to come of the entry.
    left: u64,
    padding: u64,
}

impl<'a, W: Write + 'a> Tar<'a, W> {
    pub(super) fn new(out: Packed<'a, W>) -> Self {
        Self { out, left: 0, padding: 0 }
    }

    fn pad(&mut self, bytes: u64) -> io::Result<()> {
        self.out.write_all(&vec![0; usize::try_from(bytes).expect("less than a block")])
    }
}

impl<'a, W: Write + 'a> Form for Tar<'a, W> {
    fn entry(&mut self, path: &[u8], node: &Node, link: Option<&[u8]>) -> io::Result<Outcome> {
        let (kind, bytes) = match &node.kind {
            NodeKind::Socket => return Ok(Outcome::Not("sockets")),
            _ if link.is_some() => (EntryType::Link, 0),
            NodeKind::File(file) => (EntryType::Regular, file.bytes),
            NodeKind::Directory(_) => (EntryType::Directory, 0),
            NodeKind::Symlink(_) => (EntryType::Symlink, 0),
            NodeKind::CharDevice(..) => (EntryType::Char, 0),
            NodeKind::BlockDevice(..) => (EntryType::Block, 0),
            NodeKind::Fifo => (EntryType::Fifo, 0),
        };
        let slash: &[u8] = if kind == EntryType::Directory { b"/" } else { b"" };
        let path = [path, slash].concat();
        let target = match (&node.kind, link) {
            (_, Some(link)) => link,
            (NodeKind::Symlink(to), None) => to,
            _ => b"",
        };
        let records = records(&path, target, node);
        if !records.is_empty() {
            let size = records.len() as u64;
            self.out.write_all(header(b"././@PaxHeader", EntryType::XHeader, size)?.as_bytes())?;
            self.out.write_all(&records)?;
            self.pad(padding(size))?;
        }
        let mut header = header(&path, kind, bytes)?;
        describe(&mut header, target, node)?;
        self.out.write_all(header.as_bytes())?;
        (self.left, self.padding) = (bytes, padding(bytes));
        Ok(Outcome::Held)
    }

    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| io::Error::other("a file is longer than its header says"))?;
        self.out.write_all(bytes)
    }

    fn end_content(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("a file is shorter than its header says"));
        }
        let padding = std::mem::take(&mut self.padding);
        self.pad(padding)
    }

    fn has_links(&self) -> bool {
        true
    }

    /// In the middle of a file its length tells. Between two entries tar programs take the end of the bytes for the end of
    /// the archive, so a header of content that does not come is written.
    fn break_off(&mut self) -> io::Result<()> {
        if self.left == 0 {
            self.end_content()?;
            self.out.write_all(header(b"THIS-ARCHIVE-IS-NOT-WHOLE", EntryType::Regular, BLOCK_BYTES)?.as_bytes())?;
        }
        self.out.flush()
    }

    fn finish(mut self: Box<Self>) -> io::Result<()> {
        self.pad(2 * BLOCK_BYTES)?;
        self.out.finish()
    }
}

fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES) - bytes
}

/// Begins a header; of a longer name the beginning.
fn header(path: &[u8], kind: EntryType, bytes: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(bytes);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let ustar = header.as_ustar_mut().ok_or_else(|| io::Error::other("no ustar header"))?;
    copy(path, &mut ustar.name);
    header.set_cksum();
    Ok(header)
}

fn copy(from: &[u8], to: &mut [u8]) {
    let bytes = from.len().min(to.len());
    to[..bytes].copy_from_slice(&from[..bytes]);
}

/// Adds to a header what the node is.
fn describe(header: &mut Header, target: &[u8], node: &Node) -> io::Result<()> {
    header.set_mode(node.mode);
    header.set_uid(node.owner.uid.into());
    header.set_gid(node.owner.gid.into());
    header.set_mtime(u64::try_from(node.mtime.seconds).unwrap_or(0).min(SECONDS_MAX));
    if let NodeKind::CharDevice(major, minor) | NodeKind::BlockDevice(major, minor) = node.kind {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    let ustar = header.as_ustar_mut().ok_or_else(|| io::Error::other("no ustar header"))?;
    copy(target, &mut ustar.linkname);
    copy(node.owner.user.as_bytes(), &mut ustar.uname[..OWNER_BYTES_MAX]);
    copy(node.owner.group.as_bytes(), &mut ustar.gname[..OWNER_BYTES_MAX]);
    header.set_cksum();
    Ok(())
}

/// Returns the records of an extended header: what has no room in the other, nothing if everything has.
fn records(path: &[u8], target: &[u8], node: &Node) -> Vec<u8> {
    let mut out = Vec::new();
    let long =
        [(&b"path"[..], path), (b"linkpath", target)].into_iter().filter(|(_, name)| name.len() > NAME_BYTES_MAX);
    for (key, name) in long {
        if out.is_empty() && std::str::from_utf8(name).is_err() {
            record(&mut out, b"hdrcharset", b"BINARY");
        }
        record(&mut out, key, name);
    }
    for (key, name) in [(b"uname", &node.owner.user), (b"gname", &node.owner.group)] {
        if name.len() > OWNER_BYTES_MAX {
            record(&mut out, key, name.as_bytes());
        }
    }
    let seconds = u64::try_from(node.mtime.seconds);
    if node.mtime.nanos > 0 || seconds.is_err() || seconds.is_ok_and(|seconds| seconds > SECONDS_MAX) {
        record(&mut out, b"mtime", decimal(node.mtime).as_bytes());
    }
    for (name, value) in &node.xattrs {
        let acl = match &name[..] {
            b"system.posix_acl_access" => acl::text(value).map(|text| (&b"SCHILY.acl.access"[..], text)),
            b"system.posix_acl_default" => acl::text(value).map(|text| (&b"SCHILY.acl.default"[..], text)),
            _ => None,
        };
        match acl {
            Some((key, text)) => record(&mut out, key, text.as_bytes()),
            None => record(&mut out, &xattr_key(name), value),
        }
    }
    out
}

/// Returns the key of an attribute: `=` ends a key, so GNU tar writes it, and `%`, by their numbers.
fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut out = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'=' => out.extend_from_slice(b"%3D"),
            b'%' => out.extend_from_slice(b"%25"),
            byte => out.push(*byte),
        }
    }
    out
}

/// Adds a record: its own length in decimal, key and value.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3; // a space, `=` and a line's end
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

/// Returns a time in decimal; before 1970 it is a negative number, whose fraction counts down.
fn decimal(time: Time) -> String {
    let nanos = i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let (whole, part) = (nanos.abs() / 1_000_000_000, nanos.abs() % 1_000_000_000);
    format!("{sign}{whole}.{part:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for bytes in
            [0, 1, 85, 86, 87, 88, 89, 90, 91, 92, 980, 981, 982, 983, 984, 985, 986, 987, 988, 989, 990, 991, 992]
        {
            let mut out = Vec::new();
            record(&mut out, b"key", &vec![b'v'; bytes]);
            let said: usize = std::str::from_utf8(&out).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, out.len(), "{bytes}");
        }
        let mut out = Vec::new();
        record(&mut out, b"path", b"\xff");
        assert_eq!(out, b"9 path=\xff\n");
    }

    #[test]
    fn an_archive_that_is_broken_off_between_two_entries_ends_in_the_middle_of_one() {
        let mut out = Vec::new();
        let node = crate::repo::tree::tests::node(b"a", NodeKind::Fifo);
        let mut tar = Tar::new(Packed::plain(&mut out));
        tar.entry(b"a", &Node { xattrs: vec![], ..node }, None).unwrap();
        tar.end_content().unwrap();
        tar.break_off().unwrap();
        drop(tar);
        let last = Header::from_byte_slice(&out[out.len() - 512..]);
        assert_eq!(last.size().unwrap(), 512, "and nothing follows");
    }

    #[test]
    fn times_are_decimal_before_1970_too() {
        let check = |seconds, nanos, text: &str| assert_eq!(decimal(Time { seconds, nanos }), text);
        check(5, 1, "5.000000001");
        check(-5, 999_999_999, "-4.000000001");
        check(-1, 500_000_000, "-0.500000000");
        check(-5, 0, "-5.000000000");
    }
}
