//! Signals to a long command: stop in order, end at once, tell how far it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::{Handle, Signals};

use super::exit::{CliError, Exit};
use super::progress::State;
use crate::monitor::Monitor;

/// Signals being watched.
pub(super) struct Watch {
    handle: Handle,
    terminated: Arc<AtomicBool>,
}

impl Watch {
    /// Ends the watch and tells whether it was SIGTERM that stopped the work.
    pub(super) fn close(self) -> bool {
        self.handle.close();
        self.terminated.load(Ordering::Relaxed)
    }
}

/// Lets the first SIGINT or SIGTERM stop the work in order, the second end the program, and SIGUSR1 tell how far it is.
pub(super) fn watch(monitor: &Arc<Monitor>, state: State) -> Result<Watch, CliError> {
    let failed = |error: std::io::Error| CliError::failed(format!("waiting for signals: {error}"));
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1]).map_err(failed)?;
    let (handle, monitor, terminated) = (signals.handle(), monitor.clone(), Arc::<AtomicBool>::default());
    let watch = Watch { handle, terminated: terminated.clone() };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            match signal {
                SIGUSR1 => state.tell(),
                _ if monitor.stopped() => std::process::exit(Exit::Interrupted.code().into()),
                signal => {
                    terminated.store(signal == SIGTERM, Ordering::Relaxed);
                    monitor.stop();
                }
            }
        }
    });
    Ok(watch)
}
