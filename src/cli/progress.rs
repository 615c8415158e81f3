//! Progress of a long command: a line that moves on a terminal, a line now and then elsewhere, one whenever SIGUSR1 asks.
//!
//! Looks at the counters of a [`Monitor`] from a thread of its own and ends with its owner. With `--json` a line a second
//! goes to standard output in restic's shape, which is where its readers look for it.

use std::io::{IsTerminal, Write};
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

/// How often who reads JSON gets one.
const JSON_EVERY: Duration = Duration::from_secs(1);

/// Progress being shown.
pub(crate) struct Progress {
    state: State,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What there is to tell at any time; cheap to clone.
#[derive(Clone)]
pub(crate) struct State {
    what: &'static str,
    json: bool,
    begun: Instant,
    monitor: Arc<Monitor>,
}

impl Progress {
    /// Begins to show what `monitor` counts, unless the output is to be quiet.
    pub(crate) fn start(monitor: &Arc<Monitor>, out: &Output, what: &'static str) -> Self {
        let state = State { what, json: out.is_json(), begun: Instant::now(), monitor: monitor.clone() };
        if out.is_quiet() {
            return Self { state, end: None, thread: None };
        }
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let shown = state.clone();
        let thread = std::thread::spawn(move || {
            let terminal = std::io::stderr().is_terminal() && !shown.json;
            let bar = terminal.then(|| {
                let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
                bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template"));
                bar
            });
            let every = match terminal {
                true => TERMINAL_EVERY,
                false if shown.json => JSON_EVERY,
                false => LOG_EVERY,
            };
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                match &bar {
                    Some(bar) => {
                        bar.set_message(shown.text());
                        bar.tick();
                    }
                    // Nobody may be reading any more: the result will notice.
                    None if shown.json => drop(writeln!(std::io::stdout(), "{}", shown.status())),
                    None => shown.tell(),
                }
            }
            if let Some(bar) = bar {
                bar.finish_and_clear();
            }
        });
        Self { state, end: Some(end), thread: Some(thread) }
    }

    /// Returns what tells how far it is.
    pub(crate) fn state(&self) -> State {
        self.state.clone()
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

impl State {
    /// Tells on standard error how far it is.
    pub(crate) fn tell(&self) {
        let line = if self.json { self.status().to_string() } else { self.text() };
        let _ = writeln!(std::io::stderr(), "{line}"); // nobody is left to be told
    }

    /// Returns a number that is another one whenever something was done.
    pub(super) fn pulse(&self) -> u64 {
        self.monitor.pulse()
    }

    /// How far it is, for people.
    pub(super) fn text(&self) -> String {
        let (files, bytes) = (self.monitor.files.load(Ordering::Relaxed), self.monitor.bytes.load(Ordering::Relaxed));
        let expected = match self.monitor.files_expected.load(Ordering::Relaxed) {
            0 => String::new(),
            files => format!(" of about {}", HumanCount(files)),
        };
        let elapsed = self.begun.elapsed().as_secs();
        format!("{}: {}{expected} files, {} in {elapsed} s", self.what, HumanCount(files), HumanBytes(bytes))
    }

    /// How far it is, in restic's words. What there will be in all is what there was the last time.
    fn status(&self) -> serde_json::Value {
        let (files, bytes) = (self.monitor.files.load(Ordering::Relaxed), self.monitor.bytes.load(Ordering::Relaxed));
        let files_expected = self.monitor.files_expected.load(Ordering::Relaxed).max(files);
        let bytes_expected = self.monitor.bytes_expected.load(Ordering::Relaxed);
        let elapsed = self.begun.elapsed();
        let mut status = serde_json::json!({
            "message_type": "status",
            "seconds_elapsed": elapsed.as_secs(),
            "percent_done": 0.0,
            "total_files": files_expected,
            "files_done": files,
            "total_bytes": bytes_expected.max(bytes),
            "bytes_done": bytes,
            "error_count": self.monitor.troubles_total.load(Ordering::Relaxed),
        });
        if let Some(done) = share(bytes, bytes_expected) {
            status["percent_done"] = done.into();
            if done > 0.0 {
                let remaining = elapsed.as_secs_f64() * (1.0 - done) / done;
                status["seconds_remaining"] = Duration::from_secs_f64(remaining).as_secs().into();
            }
        }
        status
    }
}

/// Returns how much of what is expected is done, 0 to 1; `None` if nothing is expected.
#[allow(clippy::cast_precision_loss)] // for a display
fn share(done: u64, expected: u64) -> Option<f64> {
    (expected > 0).then(|| (done as f64 / expected as f64).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_restics_and_expects_what_there_was() {
        let monitor = Arc::new(Monitor::default());
        let state = State { what: "backing up", json: true, begun: Instant::now(), monitor: monitor.clone() };
        monitor.file(10);
        let status = state.status();
        assert_eq!((&status["message_type"], &status["percent_done"]), (&"status".into(), &0.0.into()));
        monitor.expect(4, 40);
        monitor.trouble(b"/x", "no".into());
        let status = state.status();
        for (name, value) in [("total_files", 4), ("files_done", 1), ("total_bytes", 40), ("bytes_done", 10)] {
            assert_eq!(status[name], value, "{name}");
        }
        assert_eq!((&status["percent_done"], &status["error_count"]), (&0.25.into(), &1.into()));
        monitor.file(100);
        assert_eq!((&state.status()["percent_done"], &state.status()["total_bytes"]), (&1.0.into(), &110.into()));
        assert!(state.text().starts_with("backing up: 2 of about 4 files, 110 B in "), "{}", state.text());
    }
}
