//! zip: files, folders and symbolic links with mode and time.
//!
//! It knows no owners, attributes, devices, pipes or sockets; another name of a file is a copy of it. Names are text: what
//! is none is escaped. The list at its end is held in memory meanwhile, about half a kilobyte an entry.

use std::io::{self, Write};
use std::mem::ManuallyDrop;

use jiff::tz::TimeZone;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::{Form, Outcome};
use crate::repo::tree::{Node, NodeKind, Time};

/// From here on a length needs the larger form.
const LARGE_BYTES: u64 = 0xF000_0000;

/// An archive being written.
pub(super) struct Zip<W: Write> {
    /// Would end the archive as if it were whole when it is dropped.
    out: ManuallyDrop<ZipWriter<StreamWriter<W>>>,
}

impl<W: Write> Zip<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out: ManuallyDrop::new(ZipWriter::new_stream(out)) }
    }
}

impl<W: Write> Form for Zip<W> {
    fn entry(&mut self, path: &[u8], node: &Node, _: Option<&[u8]>) -> io::Result<Outcome> {
        if path == b"." {
            return Ok(Outcome::Held); // every folder is below
        }
        let (name, is_text) = text(path);
        let options = SimpleFileOptions::default().unix_permissions(node.mode).last_modified_time(time(node.mtime));
        let mut less = if is_text { None } else { Some("names that are no text (escaped)") };
        match &node.kind {
            NodeKind::File(file) => {
                let method = if file.bytes == 0 { CompressionMethod::Stored } else { CompressionMethod::Deflated };
                let options = options.compression_method(method).large_file(file.bytes >= LARGE_BYTES);
                self.out.start_file(name, options)?;
                if node.identity.links > 1 {
                    less = less.or(Some("hard links (copies)"));
                }
            }
            NodeKind::Directory(_) => self.out.add_directory(name, options)?,
            NodeKind::Symlink(to) => {
                let (target, is_text) = text(to);
                if !is_text {
                    return Ok(Outcome::Not("links whose targets are no text"));
                }
                self.out.add_symlink(name, target, options)?;
            }
            _ => return Ok(Outcome::Not("devices, pipes and sockets")),
        }
        if !node.xattrs.is_empty() {
            less = less.or(Some("extended attributes"));
        }
        Ok(less.map_or(Outcome::Held, Outcome::Less))
    }

    fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    fn end_content(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn has_links(&self) -> bool {
        false
    }

    /// Without the list at its end it is no archive.
    fn break_off(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> io::Result<()> {
        ManuallyDrop::into_inner(self.out).finish()?.into_inner().flush()
    }
}

/// Returns bytes as text, and whether they are.
fn text(bytes: &[u8]) -> (String, bool) {
    let mut out = String::with_capacity(bytes.len());
    let mut is_text = true;
    for part in bytes.utf8_chunks() {
        out.push_str(part.valid());
        for byte in part.invalid() {
            is_text = false;
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    (out, is_text)
}

/// Returns a time as zip has it: local, in steps of two seconds, from 1980 to 2107; the nearest there is.
fn time(time: Time) -> DateTime {
    let known = || {
        let at = jiff::Timestamp::new(time.seconds, 0).ok()?.to_zoned(TimeZone::system());
        let small = |number: i8| u8::try_from(number).ok();
        let (year, month, day) = (u16::try_from(at.year()).ok()?, small(at.month())?, small(at.day())?);
        DateTime::from_date_and_time(year, month, day, small(at.hour())?, small(at.minute())?, small(at.second())?).ok()
    };
    known().unwrap_or_default()
}
