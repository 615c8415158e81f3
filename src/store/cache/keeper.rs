//! The thread that writes to a cache, behind those who read.
//!
//! It takes what comes in order. What it cannot write it drops: a full disk, a folder that is read-only or not to be had
//! costs one line in the log, and is tried again a minute later.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};

use super::entry::{self, CacheKey, Entry, Slot, TRAILER_BYTES};
use super::folder::Folder;
use super::sweep;

/// After a failure, nothing is tried for so long.
pub(super) const PAUSE: Duration = Duration::from_secs(60);

/// What is to be done.
pub(super) enum Job {
    /// Write an entry.
    Keep(Slot, Entry),
    /// Remove all entries of an object.
    Forget(String),
    /// Tell when all before is done.
    Finish(Sender<()>),
}

/// What the thread owns.
pub(super) struct Keeper {
    pub(super) folder: Arc<Folder>,
    pub(super) key: CacheKey,
    /// The bound over all that share the folder.
    pub(super) bytes_max: u64,
    /// Bytes that wait to be written.
    pub(super) waiting: Arc<AtomicU64>,
    pub(super) paused_until: Option<Instant>,
    pub(super) has_told: bool,
}

impl Keeper {
    /// Works until nobody is left who could ask.
    pub(super) fn run(mut self, jobs: &Receiver<Job>) {
        for job in jobs {
            match job {
                Job::Keep(slot, entry) => {
                    self.keep(&slot, &entry);
                    self.waiting.fetch_sub(entry.content.len() as u64, Ordering::Relaxed);
                }
                Job::Forget(object) => self.folder.remove_all(&entry::stem(&self.key, &object)),
                Job::Finish(done) => drop(done.send(())),
            }
        }
    }

    fn keep(&mut self, slot: &Slot, entry: &Entry) {
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return;
        }
        self.paused_until = None;
        // Not found: the cache was deleted this very moment, which is no failure.
        if let Err(error) = self.write(slot, entry)
            && error.kind() != io::ErrorKind::NotFound
        {
            self.paused_until = Some(Instant::now() + PAUSE);
            if !self.has_told {
                tracing::info!("nothing is kept in the cache {:?}: {error}", self.folder.top);
                self.has_told = true;
            }
        }
    }

    fn write(&self, slot: &Slot, entry: &Entry) -> io::Result<()> {
        let bytes = (entry.content.len() + TRAILER_BYTES) as u64;
        // The first entry of all, or the cache was deleted while in use.
        if !self.folder.is_prepared() {
            self.folder.prepare()?;
        }
        if !self.folder.has_room(bytes)? {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the disk is nearly full"));
        }
        if !sweep::make_room(&self.folder.top, bytes, self.bytes_max)? {
            return Ok(());
        }
        let trailer = entry::seal(&self.key, slot, entry);
        self.folder.write(&entry::file_name(&self.key, slot), &entry.content, &trailer)
    }
}
