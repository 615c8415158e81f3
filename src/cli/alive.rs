//! What systemd is told of a long command: that the work begins, how far it is, that it goes on, that it ends.
//!
//! Promises that "alive" is said only when something was done since it was said last: a file, a folder, a piece of a
//! large file, a request, bytes to or from the store. So a service whose disk or store hangs is ended by the watchdog,
//! however well its threads are. A command of `--command` that is silent does nothing either. Where nobody listens,
//! there is no thread.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::progress::State;
use super::systemd::Systemd;
use crate::store::Store;

/// How often who asks `systemctl status` is told something new, at least.
const STATUS_EVERY: Duration = Duration::from_secs(10);

/// Tells until it is dropped.
pub(super) struct Alive(Option<(Sender<()>, JoinHandle<()>)>);

impl Alive {
    /// Tells that the work begins, and from then on how it goes.
    pub(super) fn start(systemd: Systemd, state: State, store: &Store) -> Alive {
        let Some(every) = systemd.every(STATUS_EVERY) else { return Alive(None) };
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let store = store.clone();
        systemd.ready();
        let thread = std::thread::spawn(move || {
            let mut last = None;
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let pulse = Some((state.pulse(), pulse(&store)));
                let alive = if std::mem::replace(&mut last, pulse) == pulse { "" } else { "WATCHDOG=1\n" };
                systemd.tell(&format!("STATUS={}\n{alive}", state.text()));
            }
            systemd.stopping();
        });
        Alive(Some((end, thread)))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if let Some((end, thread)) = self.0.take() {
            drop(end);
            let _ = thread.join(); // its only work was to tell
        }
    }
}

/// Another number whenever the store was asked or something moved.
fn pulse(store: &Store) -> u64 {
    let counts = store.counts();
    counts.requests().wrapping_add(counts.bytes_passed).wrapping_add(counts.bytes_up)
}
