//! What the process does about itself before a command runs: no core dumps, log, panics, runtime.
//!
//! Secrets pass through this process, so it leaves no image of its memory on disk and lets no
//! other process of the same user read it. It does not know the commands.

use std::io::Write;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tracing_subscriber::EnvFilter;

use super::args::Global;
use super::exit::CliError;

/// Forbids core dumps and debuggers; what the system refuses is not worth stopping for.
pub(crate) fn harden() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let _ = setrlimit(Resource::Core, none);
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
}

/// Lets the process hold as many files open as the system allows; what it refuses is not worth stopping for.
pub(crate) fn raise_open_files() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Sends log events to standard error: `KLOSET_LOG`, else by the number of `-v`.
pub(crate) fn start_log(global: &Global) -> Result<(), CliError> {
    let by_flags = match global.args.verbose {
        0 => "error,kloset_mount=warn",
        1 => "warn,kloset_mount=info,object_store=info",
        _ => "info,kloset_mount=trace,object_store=debug",
    };
    let directives = global.env.text("KLOSET_LOG").unwrap_or(by_flags);
    let filter = EnvFilter::try_new(directives).map_err(|error| {
        let example = "kloset_mount=debug";
        CliError::usage(format!("KLOSET_LOG {directives:?}: {error}: write for example {example:?}"))
    })?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false);
    // A terminal and systemd know what time it is, a log file does not.
    let started = match super::background::is_child(global) {
        true => log.try_init(),
        false => log.without_time().try_init(),
    };
    started.map_err(|error| CliError::failed(format!("starting the log: {error}")))
}

/// Makes a panic one clear line; `KLOSET_BACKTRACE=1` adds where it came from.
pub(crate) fn tell_panics() {
    let wants_backtrace = super::env::Environment::of_process().text("KLOSET_BACKTRACE").is_some();
    std::panic::set_hook(Box::new(move |panic| {
        let payload = panic.payload();
        let text = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let mut stderr = std::io::stderr().lock();
        let _ = writeln!(
            stderr,
            "kloset-mount: internal error at {place}: {text}: please report this, with what \
             KLOSET_BACKTRACE=1 adds"
        );
        if wants_backtrace {
            let _ = writeln!(stderr, "{}", std::backtrace::Backtrace::force_capture());
        }
    }));
}

/// The runtime on which a command waits for network and timers.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::failed(format!("starting the runtime: {error}")))
}
