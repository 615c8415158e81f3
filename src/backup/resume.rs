//! Going on where an interrupted backup was: the journal's files, and when an index run is put.
//!
//! Beside each other in a folder of this machine lie `STEM.old`, what earlier runs finished, and `STEM.new`, what this one
//! does. A run that begins joins the two, which are both in the order of the walk, and drops what the index does not
//! know; then the walk goes along the result. So it may be interrupted as often as it likes, and nobody holds the journal
//! in memory. A committed snapshot ends it. `STEM.new` is locked, so that two backups of the same do not share one.
//! What cannot be kept here never ends a backup: it only costs reading again.

use std::cmp::Ordering;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufReader, Write};
use std::iter::Peekable;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, OFlags, Stat};
use rustix::io::Errno;

use super::BackupOptions;
use super::journal::{Blocks, MAGIC, Record, Records, Seal, walk_order};
use super::read::FileRead;
use crate::env::Clock;
use crate::repo::snapshot::ByteText;
use crate::repo::writer::Writer;
use crate::repo::{Repo, RepoError};

/// Whole packs wait at least so long for an index run: a kill of a young backup costs no more than that,
const LIST_MS_MIN: i64 = 60_000;
/// then this part of what the backup has taken so far: runs stay few, 160 in the 28 hours of 1 TB at 10 MB/s,
const LIST_PART: i64 = 32;
/// but never longer: in the eleven days of 1 TB at 1 MB/s that makes 700.
const LIST_MS_MAX: i64 = 30 * 60_000;
/// A journal is not written further than this: about 20 million small files.
const JOURNAL_BYTES_MAX: u64 = 4 << 30;
/// What nobody has gone on with for so long is removed.
const FORGOTTEN_SECONDS: i64 = 90 * 24 * 3600;

/// What a backup has read, kept for the case that it is interrupted.
pub(super) struct Journal {
    seal: Seal,
    /// Where it is kept; `None` if nowhere.
    folder: Option<PathBuf>,
    /// `STEM.new`, locked; made when there is something to be written.
    file: Option<File>,
    blocks: Blocks,
    times: ListTimes,
}

/// When whole packs are to be listed by an index run.
struct ListTimes {
    clock: Clock,
    begun_ms: i64,
    unlisted_since: Option<i64>,
    /// What was asked for instead of the usual.
    every: Option<Duration>,
}

/// What earlier runs finished, along the walk.
pub(super) struct Finished(Peekable<Records<BufReader<File>>>);

impl Journal {
    /// Begins a journal in its folder, and makes that; nothing is read or written there yet.
    pub(super) fn new(repo: &Repo, options: &BackupOptions, paths: &[ByteText], begun_ms: i64) -> Self {
        // Lists are other ones each time.
        let paths = if options.listed.is_empty() { paths } else { &[] };
        let seal = Seal::new(repo.keys.journal_key(), &options.host, paths.iter().map(|path| &path.0[..]));
        let (clock, every) = (repo.env.clock.clone(), options.list_every);
        let times = ListTimes { clock, begun_ms, unlisted_since: None, every };
        let folder = options.journal_folder.clone().filter(|_| !options.dry_run && options.bucket.is_none());
        let mut journal = Self { blocks: Blocks::new(seal.clone()), seal, folder, file: None, times };
        if let Some(folder) = &journal.folder
            && let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(folder)
        {
            tracing::info!("no journal, should this backup be interrupted: {folder:?}: {error}");
            journal.folder = None;
        }
        journal
    }

    /// Takes over what earlier runs finished and the writer knows the chunks of; nothing if everything is to be read.
    ///
    /// # Errors
    /// [`RepoError`] if the index cannot be loaded.
    pub(super) fn take_over(&mut self, writer: &mut Writer, reads_all: bool) -> Result<Option<Finished>, RepoError> {
        let Some(folder) = self.folder.clone() else { return Ok(None) };
        forget_old(&folder, self.times.begun_ms);
        if !self.path("old").exists() && !self.path("new").exists() {
            return Ok(None);
        }
        let opened = self.open();
        if !self.keeps(opened) {
            return Ok(None);
        }
        if !reads_all {
            writer.load_index()?;
        }
        let joined = self.join(|record| !reads_all && writer.has_all(&record.chunks));
        if !self.keeps(joined) {
            return Ok(None);
        }
        Ok(records(&self.path("old"), &self.seal).map(|records| Finished(records.peekable())))
    }

    /// Notes that a file was read as it is, and its chunks were given to the writer.
    pub(super) fn note(&mut self, path: &[u8], read: &FileRead) {
        if self.folder.is_some()
            && self.blocks.bytes() < JOURNAL_BYTES_MAX
            && let Some(record) = Record::of(path, read)
            && self.blocks.push(&record)
        {
            self.write();
        }
    }

    /// Has whole packs listed if they have waited for long enough: from then on what is noted of their chunks counts.
    ///
    /// # Errors
    /// [`RepoError`].
    pub(super) fn list(&mut self, writer: &mut Writer) -> Result<(), RepoError> {
        if !writer.has_unlisted() {
            self.times.unlisted_since = None;
        } else if self.times.is_due() {
            self.sync();
            writer.put_run()?;
        }
        Ok(())
    }

    /// Writes what was noted last, before the last run is put; a backup that never came to a checkpoint is soon read again.
    pub(super) fn end(&mut self) {
        if self.file.is_some() {
            self.write();
        }
    }

    /// Writes what was noted and waits until it is on the disk.
    pub(super) fn sync(&mut self) {
        self.write();
        let synced = self.file.as_ref().map_or(Ok(()), File::sync_data);
        self.keeps(synced);
    }

    /// Removes the journal: there is a snapshot.
    pub(super) fn remove(mut self) {
        if self.file.is_some() {
            for end in ["old", "new"] {
                let _ = std::fs::remove_file(self.path(end)); // it may not be there
            }
        }
        self.folder = None;
    }

    fn path(&self, end: &str) -> PathBuf {
        self.folder.as_deref().unwrap_or(Path::new("")).join(format!("{}.{end}", self.seal.stem()))
    }

    /// Tells whether something was done; if not, no journal is kept any more.
    fn keeps(&mut self, done: io::Result<()>) -> bool {
        if let Err(error) = &done {
            tracing::warn!("no journal, should this backup be interrupted: {:?}: {error}", self.path("new"));
            (self.folder, self.file) = (None, None);
        }
        done.is_ok()
    }

    fn write(&mut self) {
        if self.folder.is_some()
            && let Some(block) = self.blocks.close()
        {
            let written = self.append(&block);
            self.keeps(written);
        }
    }

    fn append(&mut self, block: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.open()?;
            self.clear()?;
        }
        self.file.as_mut().expect("it was opened").write_all(block)
    }

    /// Opens and locks the file of this run, as it is.
    fn open(&mut self) -> io::Result<()> {
        loop {
            let file = options().read(true).append(true).create(true).open(self.path("new"))?;
            rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
                Errno::WOULDBLOCK => io::Error::other("another backup of the same is at work"),
                error => error.into(),
            })?;
            let meta = file.metadata()?;
            if !meta.is_file() {
                return Err(io::Error::other("it is no file"));
            }
            // Whoever had it locked may have been done with it and removed it.
            if meta.nlink() > 0 {
                self.file = Some(file);
                return Ok(());
            }
        }
    }

    /// Leaves nothing but the head in the file of this run.
    fn clear(&mut self) -> io::Result<()> {
        let file = self.file.as_mut().expect("it was opened");
        file.set_len(0)?;
        file.write_all(MAGIC)
    }

    /// Joins what both files hold, as far as it is to be kept, into the one of earlier runs.
    fn join(&mut self, keep: impl Fn(&Record) -> bool) -> io::Result<()> {
        let read = |end| records(&self.path(end), &self.seal).into_iter().flatten().peekable();
        let (mut old, mut new) = (read("old"), read("new"));
        let joined = self.path("joined");
        let mut out = io::BufWriter::new(options().write(true).create(true).truncate(true).open(&joined)?);
        out.write_all(MAGIC)?;
        let mut blocks = Blocks::new(self.seal.clone());
        while let Some(record) = next(&mut old, &mut new) {
            if keep(&record) && blocks.push(&record) {
                out.write_all(&blocks.close().unwrap_or_default())?;
            }
        }
        out.write_all(&blocks.close().unwrap_or_default())?;
        out.into_inner()?.sync_data()?;
        std::fs::rename(joined, self.path("old"))?;
        File::open(self.folder.as_deref().unwrap_or(Path::new("")))?.sync_all()?;
        self.clear()
    }
}

/// Returns the next of two journals' records in the order of the walk; of two for one path the newer one.
fn next(
    old: &mut Peekable<impl Iterator<Item = Record>>,
    new: &mut Peekable<impl Iterator<Item = Record>>,
) -> Option<Record> {
    let order = match (old.peek(), new.peek()) {
        (Some(old), Some(new)) => walk_order(&old.path, &new.path),
        (Some(_), None) => Ordering::Less,
        (None, _) => Ordering::Greater,
    };
    match order {
        Ordering::Less => old.next(),
        Ordering::Greater => new.next(),
        Ordering::Equal => old.next().and(new.next()),
    }
}

/// There is no snapshot: what was noted is for the next run.
impl Drop for Journal {
    fn drop(&mut self) {
        if self.folder.is_some() {
            self.sync();
        }
    }
}

impl ListTimes {
    fn is_due(&mut self) -> bool {
        let now = self.clock.unix_ms();
        let since = *self.unlisted_since.get_or_insert(now);
        let usual = ((now - self.begun_ms) / LIST_PART).clamp(LIST_MS_MIN, LIST_MS_MAX);
        let every = self.every.map_or(usual, |every| i64::try_from(every.as_millis()).unwrap_or(i64::MAX));
        let is_due = now - since >= every;
        if is_due {
            self.unlisted_since = None;
        }
        is_due
    }
}

impl Finished {
    /// Returns what an earlier run noted of the file at `path`, if it is still that; paths must be asked for in the order
    /// of the walk.
    pub(super) fn find(&mut self, path: &[u8], stat: &Stat) -> Option<Record> {
        while self.0.next_if(|record| walk_order(&record.path, path) == Ordering::Less).is_some() {}
        self.0.next_if(|record| record.path == path).filter(|record| record.describes(stat))
    }
}

/// Opens a journal's file; `None` if there is none of this layout.
fn records(path: &Path, seal: &Seal) -> Option<Records<BufReader<File>>> {
    let file = options().read(true).open(path).ok().filter(|file| file.metadata().is_ok_and(|meta| meta.is_file()))?;
    Records::new(BufReader::new(file), seal)
}

/// Opens files for their owner only, follows no link and does not wait for a pipe's other end.
fn options() -> OpenOptions {
    let flags = i32::try_from((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    options.mode(0o600).custom_flags(flags);
    options
}

/// Removes journals that nobody went on with.
fn forget_old(folder: &Path, unix_ms: i64) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let age_seconds = entry.metadata().map_or(0, |meta| unix_ms / 1000 - meta.mtime());
        if age_seconds > FORGOTTEN_SECONDS {
            let _ = std::fs::remove_file(entry.path()); // another time, or by somebody else
        }
    }
}
