//! Sequential reading of big files: what to fetch before it is asked for.
//!
//! Blocks of a pack are read ahead by the reader itself; this looks further, along the file and so from pack to pack.
//! The kernel asks for 128 KiB to 1 MiB with a few requests in flight, slightly out of order; a link of 1 Gbit/s and
//! 100 ms holds 12 MiB. So the window doubles from 1 MiB to 32 MiB while a reader goes on, and whoever jumps gets
//! nothing that he did not ask for. A large file that is read in sequence passes through: what it brings would only push out of
//! the cache on disk what is worth keeping there (bcache's `sequential_cutoff` says the same). Since files are not opened
//! here, streams are kept by inode, the latest few. Pure: it says what to fetch, the view fetches.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Mutex;

use lru::LruCache;

/// The first window.
const WINDOW_BYTES_MIN: u64 = 1 << 20;
/// The largest window.
pub const WINDOW_BYTES_MAX: u64 = 32 << 20;
/// How far off the expected place a read may fall and still belong to the stream: requests overtake one another.
const SLACK_BYTES: u64 = 2 << 20;
/// How far ahead chunks are also opened, so that the processor works while the network does.
const OPEN_BYTES: u64 = 4 << 20;
/// A file of this length, a sixteenth of the default cache on disk, passes through,
const PASSING_FILE_BYTES: u64 = 64 << 20;
/// once so much of it was read in sequence: who looks at its head again, or here and there, finds that, and what is read
/// ahead of him.
const PASSING_BYTES: u64 = 32 << 20;
/// Files whose reading is remembered.
const STREAMS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// The streams that are being read.
pub struct Readahead {
    streams: Mutex<LruCache<u64, Stream>>,
    window_bytes_max: u64,
}

#[derive(Clone, Copy)]
struct Stream {
    /// Where the reader began.
    begun: u64,
    /// Where the reader is: the end of his furthest read.
    end: u64,
    /// Up to where has been fetched for him.
    fetched: u64,
    /// Up to where has been opened for him.
    opened: u64,
    window: u64,
}

/// What to do ahead of a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    /// Bytes of the file to begin fetching.
    pub fetch: Option<Range<u64>>,
    /// Bytes of the file to open as well.
    pub open: Option<Range<u64>>,
    /// Whether that is not worth keeping on disk.
    pub is_passing: bool,
}

impl Readahead {
    /// Returns a table of no streams whose windows grow to at most `window_bytes_max`.
    #[must_use]
    pub fn new(window_bytes_max: u64) -> Self {
        let window_bytes_max = window_bytes_max.clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
        Self { streams: Mutex::new(LruCache::new(STREAMS_MAX)), window_bytes_max }
    }

    /// Notes a read of a file of `bytes` and returns what to do ahead of the next ones.
    pub fn note(&self, inode: u64, read: Range<u64>, bytes: u64) -> Ahead {
        let mut streams = self.streams.lock().expect("no panic while held");
        let begun = Stream { begun: read.start, end: read.end, fetched: read.end, opened: read.end, window: 0 };
        let Some(stream) = streams.get_mut(&inode) else {
            streams.put(inode, begun);
            return Ahead::default();
        };
        if read.start > stream.end + SLACK_BYTES || read.end + SLACK_BYTES < stream.end {
            *stream = begun;
            return Ahead::default();
        }
        if read.end <= stream.end {
            return Ahead::default();
        }
        stream.end = read.end;
        let is_passing = bytes >= PASSING_FILE_BYTES && stream.end.saturating_sub(stream.begun) >= PASSING_BYTES;
        let ahead = Ahead { fetch: stream.fetch(self.window_bytes_max, bytes), open: stream.open(bytes), is_passing };
        if read.end >= bytes {
            streams.pop(&inode);
        }
        ahead
    }
}

impl Stream {
    /// Extends what is fetched once a quarter of the window is used up.
    fn fetch(&mut self, window_bytes_max: u64, bytes: u64) -> Option<Range<u64>> {
        if self.window > 0 && self.fetched > self.end + self.window / 4 * 3 {
            return None;
        }
        self.window = (self.window * 2).clamp(WINDOW_BYTES_MIN, window_bytes_max);
        let from = self.fetched.max(self.end);
        let to = (self.end + self.window).min(bytes);
        (from < to).then(|| {
            self.fetched = to;
            from..to
        })
    }

    fn open(&mut self, bytes: u64) -> Option<Range<u64>> {
        let from = self.opened.max(self.end);
        let to = (self.end + OPEN_BYTES.min(self.window)).min(bytes);
        (from < to).then(|| {
            self.opened = to;
            from..to
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    /// Reads in steps of 128 KiB and returns the ranges that were to be fetched, in MiB.
    fn fetches(readahead: &Readahead, until: u64) -> Vec<(u64, u64)> {
        let step = 128 << 10;
        let reads = (0..until / step).map(|n| n * step..(n + 1) * step);
        reads.filter_map(|read| readahead.note(1, read, GIB).fetch).map(|f| (f.start / MIB, f.end / MIB)).collect()
    }

    #[test]
    fn the_window_doubles_to_its_limit_and_nothing_is_fetched_twice() {
        let fetches = fetches(&Readahead::new(WINDOW_BYTES_MAX), 200 * MIB);
        assert!(fetches.windows(2).all(|pair| pair[0].1 == pair[1].0), "{fetches:?}");
        let (from, to) = fetches[fetches.len() - 1];
        assert!((7..=9).contains(&(to - from)) && to > 200 && to <= 233, "{fetches:?}");
        assert!(fetches.len() <= 30, "{fetches:?}");
    }

    #[test]
    fn random_reads_fetch_nothing() {
        let readahead = Readahead::new(WINDOW_BYTES_MAX);
        for at in [500, 3, 900, 77, 20, 400] {
            assert_eq!(readahead.note(1, at * MIB..at * MIB + 4096, GIB), Ahead::default());
        }
    }

    #[test]
    fn a_large_file_passes_through_once_32_mib_were_read_in_sequence() {
        let readahead = Readahead::new(WINDOW_BYTES_MAX);
        let passing = |at: u64, bytes: u64| readahead.note(1, at..at + MIB, bytes).is_passing;
        let begun = 100 * MIB;
        let first = (0..200).find(|n| passing(begun + n * MIB, GIB));
        assert_eq!(first, Some(31));
        assert!(!passing(500 * MIB, GIB) && !passing(501 * MIB, GIB), "who jumps begins anew");
        assert!((0..63).all(|n| !passing(n * MIB, 64 * MIB - 1)), "what is not large is kept whole");
    }

    #[test]
    fn overtaking_reads_are_still_a_stream() {
        let readahead = Readahead::new(WINDOW_BYTES_MAX);
        let order = [0, 2, 1, 3, 5, 4, 7, 6];
        let fetched = order.iter().filter_map(|n| readahead.note(1, n * MIB / 2..(n + 1) * MIB / 2, GIB).fetch);
        assert!(fetched.last().is_some_and(|f| f.end >= 7 * MIB));
    }

    #[test]
    fn nothing_is_fetched_behind_the_end_and_the_stream_ends_there() {
        let readahead = Readahead::new(WINDOW_BYTES_MAX);
        let bytes = 3 * MIB + 5;
        for n in 0..3 {
            let ahead = readahead.note(1, n * MIB..(n + 1) * MIB, bytes);
            assert!(ahead.fetch.is_none_or(|f| f.end <= bytes) && ahead.open.is_none_or(|o| o.end <= bytes));
        }
        readahead.note(1, 3 * MIB..bytes, bytes);
        assert!(readahead.streams.lock().unwrap().is_empty());
    }
}
