//! Progress of a long command: a line that moves on a terminal, a line now and then elsewhere.
//!
//! Looks at the counters of a [`Monitor`] from a thread of its own and ends with its owner.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender};
use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Output;
use crate::monitor::Monitor;

/// How often the terminal's line moves.
const TERMINAL_EVERY: Duration = Duration::from_millis(100);
/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Progress being shown.
pub(crate) struct Progress {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins to show what `monitor` counts, unless the output is to be quiet.
    pub(crate) fn start(monitor: &Arc<Monitor>, out: &Output, what: &'static str) -> Self {
        if out.is_quiet() {
            return Self { end: None, thread: None };
        }
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let (monitor, json) = (monitor.clone(), out.is_json());
        let thread = std::thread::spawn(move || {
            let terminal = std::io::stderr().is_terminal() && !json;
            let bar = terminal.then(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template"));
                bar
            });
            let (begun, every) = (Instant::now(), if terminal { TERMINAL_EVERY } else { LOG_EVERY });
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let (files, bytes) = (monitor.files.load(Ordering::Relaxed), monitor.bytes.load(Ordering::Relaxed));
                match &bar {
                    Some(bar) => {
                        bar.set_message(format!("{what}: {} files, {}", HumanCount(files), HumanBytes(bytes)));
                        bar.tick();
                    }
                    None => tell_plainly(what, json, (files, bytes), begun.elapsed()),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        });
        Self { end: Some(end), thread: Some(thread) }
    }

    /// Ends it; what follows on the terminal stands on a line of its own.
    pub(crate) fn finish(self) {}
}

impl Drop for Progress {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its only work was to show
        }
    }
}

#[allow(clippy::print_stderr)] // progress has a thread of its own and no result in it
fn tell_plainly(what: &str, json: bool, (files, bytes): (u64, u64), elapsed: Duration) {
    if json {
        let status = serde_json::json!({
            "message_type": "status",
            "seconds_elapsed": elapsed.as_secs(),
            "files_done": files,
            "bytes_done": bytes,
        });
        eprintln!("{status}");
    } else {
        eprintln!("{what}: {files} files, {} in {} s", HumanBytes(bytes), elapsed.as_secs());
    }
}
