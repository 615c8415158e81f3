//! Counters of requests and bytes: what a summary shows and a provider bills.
//!
//! One set is shared by all clones of a store. It does not know prices.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// What a store was asked for since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreCounts {
    /// Objects written.
    pub puts: u64,
    /// Whole objects and ranges read.
    pub gets: u64,
    /// Listings; one counts once, however many pages it has.
    pub lists: u64,
    /// Objects deleted.
    pub deletes: u64,
    /// Bytes of content sent, once however often repeated.
    pub bytes_up: u64,
    /// Bytes of content received.
    pub bytes_down: u64,
    /// Bytes that moved so far, repeated ones and those of objects under way too: what shows that something goes on.
    pub bytes_passed: u64,
    /// HTTP requests, pages and repeated ones included; zero for folders.
    pub http_requests: u64,
    /// Those of them that were sent again after a failure.
    pub http_retries: u64,
    /// How often the store asked for fewer requests.
    pub slow_downs: u64,
}

impl StoreCounts {
    /// Requests over the network, or what a folder was asked.
    #[must_use]
    pub fn requests(&self) -> u64 {
        match self.http_requests {
            0 => self.puts + self.gets + self.lists + self.deletes,
            requests => requests,
        }
    }

    /// Adds what another store was asked for.
    #[must_use]
    pub fn with(self, other: &Self) -> Self {
        Self {
            puts: self.puts + other.puts,
            gets: self.gets + other.gets,
            lists: self.lists + other.lists,
            deletes: self.deletes + other.deletes,
            bytes_up: self.bytes_up + other.bytes_up,
            bytes_down: self.bytes_down + other.bytes_down,
            bytes_passed: self.bytes_passed + other.bytes_passed,
            http_requests: self.http_requests + other.http_requests,
            http_retries: self.http_retries + other.http_retries,
            slow_downs: self.slow_downs + other.slow_downs,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// What the store's clock said in its last answer, zero before the first.
    date_unix_ms: AtomicI64,
    puts: AtomicU64,
    gets: AtomicU64,
    lists: AtomicU64,
    deletes: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    bytes_passed: AtomicU64,
    http_requests: AtomicU64,
    http_retries: AtomicU64,
    slow_downs: AtomicU64,
}

impl Counters {
    pub(crate) fn put(&self, bytes: usize) {
        self.puts.fetch_add(1, Ordering::Relaxed);
        self.bytes_up.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) {
        self.gets.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_down.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn passed(&self, bytes: usize) {
        self.bytes_passed.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn list(&self) {
        self.lists.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn delete(&self) {
        self.deletes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn http_request(&self) {
        self.http_requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dated(&self, unix_ms: i64) {
        self.date_unix_ms.store(unix_ms, Ordering::Relaxed);
    }

    pub(crate) fn date_unix_ms(&self) -> Option<i64> {
        Some(self.date_unix_ms.load(Ordering::Relaxed)).filter(|unix_ms| *unix_ms > 0)
    }

    pub(crate) fn retry(&self) {
        self.http_retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn slow_down(&self) {
        self.slow_downs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> StoreCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StoreCounts {
            puts: of(&self.puts),
            gets: of(&self.gets),
            lists: of(&self.lists),
            deletes: of(&self.deletes),
            bytes_up: of(&self.bytes_up),
            bytes_down: of(&self.bytes_down),
            bytes_passed: of(&self.bytes_passed),
            http_requests: of(&self.http_requests),
            http_retries: of(&self.http_retries),
            slow_downs: of(&self.slow_downs),
        }
    }
}
