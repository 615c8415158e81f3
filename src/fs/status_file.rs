//! The file that shows the counters of a mount: one text at a time.
//!
//! Promises that each text is another file for the kernel, which keeps what it has read of one that did not change, and
//! that all are of one length, so that who reads while another one looks does not meet an end that moves. It does not
//! know what the text says.

use std::sync::Mutex;

use bytes::Bytes;

use super::attr::Attr;
use crate::repo::tree::Time;

/// The length of a text is a multiple of this.
const STEP_BYTES: usize = 4096;
/// Texts that can be told apart within one millisecond of the clock.
const NUMBERS: u32 = 1_000_000;

/// The file; made anew whenever its name is looked up, which the kernel does each time it is opened.
#[derive(Debug, Default)]
pub(super) struct StatusFile(Mutex<Text>);

#[derive(Debug, Default)]
struct Text {
    bytes: Bytes,
    number: u32,
    unix_ms: i64,
}

impl StatusFile {
    /// Shows `value` from now on.
    pub(super) fn renew(&self, value: &serde_json::Value, unix_ms: i64) {
        let text = format!("{value:#}");
        let bytes = format!("{text:width$}\n", width = text.len().next_multiple_of(STEP_BYTES) - 1).into();
        let mut shown = self.lock();
        *shown = Text { bytes, number: (shown.number + 1) % NUMBERS, unix_ms };
    }

    /// Returns its attributes; `of_root` makes those of a file of the virtual top at a time.
    pub(super) fn attr(&self, of_root: impl FnOnce(i64) -> Attr) -> Attr {
        let (bytes, nanos, unix_ms) = {
            let shown = self.lock();
            (shown.bytes.len() as u64, shown.number, shown.unix_ms)
        };
        let attr = of_root(unix_ms);
        let mtime = Time { nanos: attr.mtime.nanos + nanos, ..attr.mtime };
        Attr { mtime, ctime: mtime, ..attr.as_file(bytes) }
    }

    /// Reads a part of it.
    pub(super) fn read(&self, offset: u64, size: u32) -> Bytes {
        let text = self.lock().bytes.clone();
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
        text.slice(at(offset)..at(offset.saturating_add(u64::from(size))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Text> {
        self.0.lock().expect("no panic while held")
    }
}
