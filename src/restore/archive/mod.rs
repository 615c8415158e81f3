//! Archives: a snapshot, or a part of it, as one stream of bytes.
//!
//! One walk in the order of the trees; content is fetched by many tasks at once within a bound of bytes and written in its
//! order. An archive cannot be mended behind what was written, so the first file that cannot be read ends it, and it is
//! never ended as if it were whole. It does not know where the bytes go.

mod acl;
mod pack;
mod tar;
mod walk;
mod zip;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use tokio::runtime::Handle;

use super::item::Item;
use super::{READER_BYTES, Start, find_start};
use crate::monitor::Monitor;
use crate::repo::layout::SnapshotName;
use crate::repo::snapshot::ByteText;
use crate::repo::tree::{Node, NodeKind};
use crate::repo::{Repo, RepoError};
use walk::{Next, Walk};

/// What an archive is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// tar, with the extended headers of POSIX.1-2001 where the first form has no room.
    Tar,
    /// The same, compressed by gzip.
    TarGz,
    /// The same, compressed by zstd.
    TarZst,
    /// zip.
    Zip,
}

/// What to write, and as what.
#[derive(Clone, Debug)]
pub struct ArchiveOptions {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// What of it: a folder's content, or one entry; everything without.
    pub path: Option<Vec<u8>>,
    /// The form.
    pub format: ArchiveFormat,
}

/// What was written.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct ArchiveReport {
    /// Regular files.
    pub files: u64,
    /// Folders.
    pub directories: u64,
    /// Everything else.
    pub others: u64,
    /// Bytes of all files.
    pub bytes: u64,
    /// What the archive cannot hold by its nature, one entry a kind.
    pub unheld: Vec<NotArchived>,
}

/// Paths that an archive cannot hold as they are.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct NotArchived {
    /// What they are, in words.
    pub kind: &'static str,
    /// How many there are.
    pub paths: u64,
    /// The first of them, in the archive.
    pub first: ByteText,
}

/// Why an archive is not whole.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The kloset failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Something in the snapshot cannot be read.
    #[error("\"{}\" cannot be read, so the archive is not whole: {source}", path.escape_ascii())]
    Unreadable {
        /// The path.
        path: Vec<u8>,
        /// Why.
        source: RepoError,
    },
    /// What was written could not be.
    #[error("writing the archive: {0}")]
    Write(#[from] io::Error),
    /// Somebody asked it to stop.
    #[error("stopped: the archive is not whole")]
    Stopped,
}

/// A form of archive being written.
trait Form {
    /// Begins an entry; `link` is the path of the same file before, where there was one.
    fn entry(&mut self, path: &[u8], node: &Node, link: Option<&[u8]>) -> io::Result<Outcome>;
    /// Adds content to the entry.
    fn content(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Ends the entry's content.
    fn end_content(&mut self) -> io::Result<()>;
    /// Tells whether another name of a file is a link to the first one.
    fn has_links(&self) -> bool;
    /// Breaks the archive off, so that nobody takes what was written for whole.
    fn break_off(&mut self) -> io::Result<()>;
    /// Ends the archive.
    fn finish(self: Box<Self>) -> io::Result<()>;
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is as it was.
    Held,
    /// It is there, without something.
    Less(&'static str),
    /// It is not there.
    Not(&'static str),
}

/// Writes an archive. Blocks; call it from a thread that does not drive `runtime`.
///
/// # Errors
/// [`ArchiveError`]: then what was written is not whole.
pub fn archive<'a>(
    repo: &Repo,
    runtime: &Handle,
    options: &ArchiveOptions,
    out: impl Write + 'a,
    monitor: &Arc<Monitor>,
) -> Result<ArchiveReport, ArchiveError> {
    let reader = repo.reader(READER_BYTES);
    let (start, base) = runtime.block_on(find_start(repo, &reader, options.snapshot, options.path.as_deref()))?;
    let mut form: Box<dyn Form + 'a> = match options.format {
        ArchiveFormat::Tar => Box::new(tar::Tar::new(pack::Packed::plain(out))),
        ArchiveFormat::TarGz => Box::new(tar::Tar::new(pack::Packed::gzip(out))),
        ArchiveFormat::TarZst => Box::new(tar::Tar::new(pack::Packed::zstd(out)?)),
        ArchiveFormat::Zip => Box::new(zip::Zip::new(out)),
    };
    let begun = Writing { monitor, report: ArchiveReport::default(), unheld: BTreeMap::new() };
    let top = match &start {
        Start::Folder(_, top) => top.clone(),
        Start::Entry(_) => None,
    };
    let walk = Walk::new(reader, runtime.clone(), start, base, form.has_links());
    match begun.all(&mut *form, top, walk) {
        Ok(report) => {
            form.finish()?;
            Ok(report)
        }
        Err(error) => {
            let _ = form.break_off(); // the failure before is what is told
            Err(error)
        }
    }
}

struct Writing<'a> {
    monitor: &'a Monitor,
    report: ArchiveReport,
    unheld: BTreeMap<&'static str, NotArchived>,
}

impl Writing<'_> {
    fn all(mut self, form: &mut dyn Form, top: Option<Item>, mut walk: Walk) -> Result<ArchiveReport, ArchiveError> {
        if let Some(top) = top {
            self.entry(form, b".", top.node(), None)?;
            form.end_content()?;
        }
        while let Some(next) = walk.next()? {
            if self.monitor.stopped() {
                return Err(ArchiveError::Stopped);
            }
            match next {
                Next::Entry { path, item, link } => self.entry(form, &path, item.node(), link.as_deref())?,
                Next::Content(bytes) => form.content(&bytes)?,
                Next::End => form.end_content()?,
            }
        }
        self.report.unheld = self.unheld.into_values().collect();
        Ok(self.report)
    }

    fn entry(
        &mut self,
        form: &mut dyn Form,
        path: &[u8],
        node: &Node,
        link: Option<&[u8]>,
    ) -> Result<(), ArchiveError> {
        let outcome = form.entry(path, node, link)?;
        if let Outcome::Less(kind) | Outcome::Not(kind) = outcome {
            let first = || NotArchived { kind, paths: 0, first: ByteText(path.to_vec()) };
            self.unheld.entry(kind).or_insert_with(first).paths += 1;
        }
        if matches!(outcome, Outcome::Not(_)) {
            return Ok(());
        }
        match &node.kind {
            NodeKind::File(file) => {
                self.report.files += 1;
                let bytes = if link.is_none() { file.bytes } else { 0 };
                self.report.bytes += bytes;
                self.monitor.file(bytes);
            }
            NodeKind::Directory(_) => {
                self.report.directories += 1;
                self.monitor.directories.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
            _ => self.report.others += 1,
        }
        Ok(())
    }
}
