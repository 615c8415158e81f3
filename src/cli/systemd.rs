//! What systemd is told by a service of `Type=notify`: ready, alive, ending.
//!
//! Of a mount it promises that "alive" is said only after the mount was asked through the kernel and has answered; the question needs
//! no store. It is asked by a process of its own: a thread of the program that serves the mount, once it waits for a
//! mount that does not answer, could not be ended, not even by systemd. Who does not listen misses nothing. See
//! sd_notify(3) and sd_watchdog_enabled(3).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;

use super::args::Global;
use super::exit::{CliError, Exit};
use crate::fs::mount::Unmounter;

/// This program, also after an upgrade has replaced its file.
const SELF: &str = "/proc/self/exe";
/// The command that asks a mount for an answer.
const ASK: &str = "ask-mount";

/// Asks a mount for an answer that needs no store; for the watchdog.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    /// The mount point.
    pub mountpoint: PathBuf,
}

/// Runs the command: it waits for as long as the mount does not answer.
pub(crate) fn run_ask(args: &AskArgs) -> Result<Exit, CliError> {
    // Never answered by the kernel itself, and by the mount from memory.
    let answer = rustix::fs::statvfs(&args.mountpoint);
    answer.map_err(|error| CliError::failed(format!("{:?}: {error}", args.mountpoint)))?;
    Ok(Exit::Done)
}

/// Where systemd listens, and whether it wants to hear that we are alive.
#[derive(Clone, Debug)]
pub(crate) struct Systemd {
    socket: Option<String>,
    watchdog: Option<Duration>,
}

impl Systemd {
    /// Reads what systemd has put into the environment.
    pub(crate) fn of(global: &Global) -> Systemd {
        let env = &global.env;
        let is_ours = env.text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let micros = env.text("WATCHDOG_USEC").and_then(|text| text.parse().ok()).filter(|micros| *micros > 0);
        let watchdog = micros.filter(|_| is_ours).map(Duration::from_micros);
        Systemd { socket: env.text("NOTIFY_SOCKET").map(str::to_owned), watchdog }
    }

    /// Says that the mount can be used or the work begins, and by which process.
    pub(crate) fn ready(&self) {
        self.tell(&format!("READY=1\nMAINPID={}\n", std::process::id()));
    }

    /// Says that the end has begun.
    pub(crate) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    /// Says that the mount is alive, at half the interval, as long as it is; returns never.
    pub(crate) async fn stay_alive(&self, mount: &Unmounter) {
        let (Some(watchdog), Some(_)) = (self.watchdog, &self.socket) else { return std::future::pending().await };
        loop {
            let mount = mount.clone();
            match tokio::task::spawn_blocking(move || answers(&mount)).await {
                Ok(true) => self.tell("WATCHDOG=1\n"),
                _ => tracing::warn!("the mount does not answer: systemd is not told that it is alive"),
            }
            tokio::time::sleep(watchdog / 2).await;
        }
    }

    /// How often to tell it how far the work is: four times in what the watchdog waits; `None` where nobody listens.
    pub(super) fn every(&self, at_least: Duration) -> Option<Duration> {
        self.socket.as_ref()?;
        Some(self.watchdog.map_or(at_least, |watchdog| at_least.min(watchdog / 4)))
    }

    pub(super) fn tell(&self, message: &str) {
        let Some(path) = &self.socket else { return };
        let Ok(socket) = UnixDatagram::unbound() else { return };
        let address = match path.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name),
            None => SocketAddr::from_pathname(path),
        };
        if let Err(error) = address.and_then(|address| socket.send_to_addr(message.as_bytes(), &address)) {
            tracing::warn!("telling systemd: {error}");
        }
    }
}

/// Waits until the mount has answered; one that is out of sight, with files still open, cannot be asked and is alive.
fn answers(mount: &Unmounter) -> bool {
    match mount.is_seen() {
        Ok(true) => ask(mount.mountpoint()),
        Ok(false) => true,
        Err(_) => false,
    }
}

fn ask(mountpoint: &Path) -> bool {
    let mut command = Command::new(SELF);
    command.arg(ASK).arg(mountpoint).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::super::env::Environment;
    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], expected: Option<u64>) {
        let env = Environment::of(variables.iter().copied());
        let global = Global { env, ..Global::default() };
        assert_eq!(Systemd::of(&global).watchdog, expected.map(Duration::from_micros), "{variables:?}");
    }

    #[test]
    fn the_watchdog_is_ours_only_if_systemd_means_this_process() {
        let own = std::process::id().to_string();
        check(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", &own)], Some(3_000_000));
        check(&[("WATCHDOG_USEC", "3000000")], Some(3_000_000));
        check(&[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")], None);
        check(&[("WATCHDOG_USEC", "0")], None);
        check(&[("WATCHDOG_USEC", "soon")], None);
        check(&[], None);
    }
}
