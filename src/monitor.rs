//! How a long operation tells what it does.
//!
//! The library never prints: it counts here, and hands over what went wrong. Who shows it, and how often, is the
//! caller's business.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Counters of a running operation, and the wish to stop it.
#[derive(Debug, Default)]
pub struct Monitor {
    /// Files done.
    pub files: AtomicU64,
    /// Directories done.
    pub directories: AtomicU64,
    /// Bytes done, raw.
    pub bytes: AtomicU64,
    /// Pieces of large files done, which are not counted as files or bytes yet: what shows that something goes on.
    pub pieces: AtomicU64,
    /// Files that there were the last time, or zero: what may be expected.
    pub files_expected: AtomicU64,
    /// Their bytes.
    pub bytes_expected: AtomicU64,
    /// How often something went wrong so far.
    pub troubles_total: AtomicU64,
    /// What went wrong and did not end the operation: path and reason.
    troubles: Mutex<Vec<(Vec<u8>, String)>>,
    stop: AtomicBool,
}

impl Monitor {
    /// Counts a file and its bytes.
    pub fn file(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns a number that is another one whenever something was done.
    #[must_use]
    pub fn pulse(&self) -> u64 {
        let counters = [&self.files, &self.directories, &self.bytes, &self.pieces, &self.troubles_total];
        counters.iter().map(|counter| counter.load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }

    /// Says what there was the last time.
    pub fn expect(&self, files: u64, bytes: u64) {
        self.files_expected.store(files, Ordering::Relaxed);
        self.bytes_expected.store(bytes, Ordering::Relaxed);
    }

    /// Notes what went wrong at `path`.
    ///
    /// # Panics
    /// If a thread panicked while noting.
    pub fn trouble(&self, path: &[u8], message: String) {
        self.troubles_total.fetch_add(1, Ordering::Relaxed);
        let mut troubles = self.troubles.lock().expect("no panic while held");
        if troubles.len() < TROUBLES_MAX {
            troubles.push((path.to_vec(), message));
        }
    }

    /// Takes what went wrong since the last call.
    ///
    /// # Panics
    /// If a thread panicked while noting.
    pub fn take_troubles(&self) -> Vec<(Vec<u8>, String)> {
        std::mem::take(&mut self.troubles.lock().expect("no panic while held"))
    }

    /// Asks the operation to stop soon.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Tells whether the operation should stop.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Troubles kept between two looks: a disk full of unreadable files must not fill the memory.
const TROUBLES_MAX: usize = 100_000;
