//! Programs that get no file content: those that look into every file to draw a preview or to fill an index.
//!
//! One of them in a mount fetches and opens whole snapshots that nobody asked for. They may list and stat; a read is
//! answered `EACCES`. Since files are not opened here, it is the read that is judged, by the process behind it. What a
//! process is called is looked up once a second at most, in a few microseconds, so that reading is as fast as without.
//! This is for courtesy, not for safety: a program can call itself what it likes, and what the kernel has in its cache it
//! gives to everybody.

use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use lru::LruCache;

use super::holders::name_of;

/// Thumbnailers and indexers of desktops. `updatedb` reads names only, and is told to leave mounts out elsewhere.
pub const PROGRAMS: [&str; 14] = [
    "baloo_file",
    "baloo_file_extractor",
    "evince-thumbnailer",
    "ffmpegthumbnailer",
    "gdk-pixbuf-thumbnailer",
    "gnome-thumbnail-font",
    "localsearch-3",
    "localsearch-extractor-3",
    "recollindex",
    "totem-video-thumbnailer",
    "tracker-extract-3",
    "tracker-miner-fs-3",
    "tracker-store",
    "tumblerd",
];

/// The kernel keeps so many bytes of a program's name.
const NAME_BYTES_MAX: usize = 15;
/// A process is believed to be the same program for so long.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Processes that are known at once.
const KNOWN_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Who is denied.
pub struct Deny {
    names: Vec<String>,
    known: Mutex<LruCache<u32, (Instant, bool)>>,
}

impl Deny {
    /// Denies the programs of these names.
    #[must_use]
    pub fn new(programs: &[String]) -> Self {
        let names = programs.iter().map(|name| short(name).to_owned()).collect();
        Self { names, known: Mutex::new(LruCache::new(KNOWN_MAX)) }
    }

    /// Tells whether the process of this thread gets no content; one that cannot be seen from here is not denied.
    ///
    /// # Panics
    /// If a thread panicked while holding the table.
    pub fn is_denied(&self, thread: u32) -> bool {
        if self.names.is_empty() {
            return false;
        }
        let now = Instant::now();
        let known = self.known.lock().expect("no panic while held").get(&thread).copied();
        if let Some((since, is_denied)) = known
            && now.duration_since(since) < KNOWN_FOR
        {
            return is_denied;
        }
        let name = process_of(thread).and_then(name_of);
        let is_denied = name.is_some_and(|name| self.names.contains(&name));
        self.known.lock().expect("no panic while held").put(thread, (now, is_denied));
        is_denied
    }
}

/// Returns what the kernel keeps of a name.
fn short(name: &str) -> &str {
    (0..=NAME_BYTES_MAX).rev().find_map(|end| name.get(..end)).unwrap_or(name)
}

/// Returns the process of a thread: threads have names of their own.
fn process_of(thread: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_known_by_the_first_bytes_of_its_name() {
        assert_eq!(short("tracker-miner-fs-3"), "tracker-miner-f");
        assert_eq!(short("cat"), "cat");
        assert_eq!(short("ääääääääää"), "äääääää");
    }

    #[test]
    fn a_thread_is_judged_by_its_process() {
        let own = name_of(std::process::id()).unwrap();
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        assert!(Deny::new(std::slice::from_ref(&own)).is_denied(thread));
        assert!(!Deny::new(&["no such".to_owned()]).is_denied(thread));
        assert!(!Deny::new(&[]).is_denied(thread));
        assert!(!Deny::new(&[own]).is_denied(u32::MAX));
    }
}
