//! What a mount has done so far, as `.kloset/status.json` shows it.
//!
//! Counters that cost an addition each, and the last failure that people should know of. It asks nobody: looking at it is
//! possible in any outage.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::errno::FsError;
use crate::env::Clock;
use crate::repo::RepoError;

/// What the kernel asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name in a folder.
    Lookup,
    /// Attributes.
    Getattr,
    /// A file or folder to be opened, which it is told not to ask for again.
    Open,
    /// Where a link leads.
    Readlink,
    /// A part of a folder's listing.
    Readdir,
    /// Content.
    Read,
    /// Extended attributes and their names.
    Xattr,
    /// Holes and data.
    Seek,
    /// How much there is.
    Statfs,
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Lookup, "lookup"),
    (Kind::Getattr, "getattr"),
    (Kind::Open, "open"),
    (Kind::Readlink, "readlink"),
    (Kind::Readdir, "readdir"),
    (Kind::Read, "read"),
    (Kind::Xattr, "xattr"),
    (Kind::Seek, "seek"),
    (Kind::Statfs, "statfs"),
];

/// The counters of a mount.
pub struct Status {
    clock: Clock,
    begun_unix_ms: i64,
    requests: [AtomicU64; KINDS.len()],
    bytes: AtomicU64,
    denied: AtomicU64,
    errors: AtomicU64,
    last_error: Mutex<Option<(i64, String)>>,
}

impl Status {
    /// Begins to count.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let begun_unix_ms = clock.unix_ms();
        let (bytes, denied, errors) = Default::default();
        let (requests, last_error) = (Default::default(), Mutex::default());
        Self { clock, begun_unix_ms, requests, bytes, denied, errors, last_error }
    }

    /// Returns the time.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        self.clock.unix_ms()
    }

    /// Counts a request.
    pub fn request(&self, kind: Kind) {
        self.requests[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts bytes of content that were handed out.
    pub fn handed_out(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a read of a program that gets no content.
    pub fn denied(&self) {
        self.denied.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a failure; one that is a plain answer, as that there is no such name, is none.
    ///
    /// # Panics
    /// If a thread panicked while holding the last one.
    pub fn failed(&self, error: &FsError) {
        let is_failure = match error {
            FsError::TimedOut(_) => true,
            FsError::Repo(error) => matches!(error, RepoError::Store(_) | RepoError::Damaged { .. }),
            _ => false,
        };
        if is_failure {
            self.errors.fetch_add(1, Ordering::Relaxed);
            *self.last_error.lock().expect("no panic while held") = Some((self.clock.unix_ms(), error.to_string()));
        }
    }

    /// Returns what was counted.
    ///
    /// # Panics
    /// If a thread panicked while holding the last failure.
    #[must_use]
    pub fn shown(&self) -> Value {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let requests: serde_json::Map<String, Value> =
            KINDS.iter().map(|(kind, name)| ((*name).to_owned(), of(&self.requests[*kind as usize]).into())).collect();
        let last = self.last_error.lock().expect("no panic while held").clone();
        let last = last.map(|(unix_ms, message)| json!({"time": time(unix_ms), "message": message}));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "time": time(self.clock.unix_ms()),
            "mounted": time(self.begun_unix_ms),
            "requests": requests,
            "bytes_read": of(&self.bytes),
            "denied": of(&self.denied),
            "errors": of(&self.errors),
            "last_error": last,
            "memory_bytes": resident_bytes(),
        })
    }
}

/// A moment as RFC 3339 in UTC.
fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).unwrap_or_default().to_string()
}

/// Memory of this process; nothing where the system does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicI64;

    use super::*;

    #[test]
    fn what_happens_is_counted_and_the_last_failure_is_shown() {
        assert!(KINDS.iter().enumerate().all(|(at, (kind, _))| at == *kind as usize));
        let status = Status::new(Clock::Manual(Arc::new(AtomicI64::new(1_795_355_880_000))));
        status.request(Kind::Read);
        status.request(Kind::Read);
        status.handed_out(7);
        status.failed(&FsError::NoEntry);
        assert_eq!(status.shown()["errors"], 0);
        status.failed(&RepoError::damaged("packs/a", "gone").into());
        let shown = status.shown();
        assert_eq!((&shown["requests"]["read"], &shown["bytes_read"]), (&json!(2), &json!(7)));
        assert!(shown["last_error"]["time"].as_str().unwrap().starts_with("2026-11-22T13:58:00"), "{shown}");
        assert!(shown["last_error"]["message"].as_str().unwrap().contains("packs/a"), "{shown}");
        assert!(shown["memory_bytes"].as_u64().unwrap() > 1 << 20, "{shown}");
    }
}
