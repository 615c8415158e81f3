//! How a command ends: exit codes, and the one error type of the command line.
//!
//! The codes are an interface: scripts rely on them, and 3, 10, 12 and 130 mean what restic's
//! mean. They never change. It does not print.

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::store::{LocationError, StoreError};

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Everything was done.
    Done = 0,
    /// Something failed.
    Error = 1,
    /// The command line or the config is wrong; nothing was done.
    Usage = 2,
    /// Done, but some source files could not be read.
    Partial = 3,
    /// No kloset there.
    NoKloset = 10,
    /// The passphrase or key file opens no key slot.
    WrongPassphrase = 12,
    /// The store is not reachable or refuses.
    Store = 13,
    /// Damaged data was found.
    Damaged = 14,
    /// A backup is older than it may be.
    Stale = 15,
    /// A backup was stopped by SIGTERM, at a point where the next one goes on.
    Checkpoint = 75,
    /// Stopped by SIGINT, or by SIGTERM what is no backup.
    Interrupted = 130,
    /// The reader of our output went away, as other programs die of SIGPIPE.
    BrokenPipe = 141,
}

impl Exit {
    /// The number that the shell sees.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) struct CliError {
    /// What the shell gets.
    pub exit: Exit,
    /// What people get: lower case, no final stop, the thing quoted, and what to do.
    pub message: String,
}

impl CliError {
    /// An error with an exit code of its own.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> CliError {
        CliError { exit, message: message.into() }
    }

    /// The command line or the config is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Usage, message)
    }

    /// Anything else failed.
    pub(crate) fn failed(message: impl Into<String>) -> CliError {
        CliError::new(Exit::Error, message)
    }
}

impl fmt::Display for CliError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)
    }
}

impl std::error::Error for CliError {}

impl From<StoreError> for CliError {
    fn from(error: StoreError) -> CliError {
        CliError::new(exit_of(&error), error.to_string())
    }
}

/// How a failure of the store ends the program.
pub(crate) fn exit_of(error: &StoreError) -> Exit {
    match error {
        StoreError::NoFolder { .. } => Exit::NoKloset,
        StoreError::Denied { .. }
        | StoreError::NoSuchBucket { .. }
        | StoreError::WrongRegion { .. }
        | StoreError::Unreachable { .. } => Exit::Store,
        StoreError::Misconfigured { .. } => Exit::Usage,
        StoreError::TooLarge { .. } | StoreError::OutOfRange { .. } => Exit::Damaged,
        StoreError::NotFound { .. }
        | StoreError::AlreadyExists { .. }
        | StoreError::Full { .. }
        | StoreError::Other { .. } => Exit::Error,
    }
}

impl From<LocationError> for CliError {
    fn from(error: LocationError) -> CliError {
        CliError::usage(error.to_string())
    }
}

/// For writing results: a reader that went away is no failure of ours.
impl From<io::Error> for CliError {
    fn from(error: io::Error) -> CliError {
        match error.kind() {
            io::ErrorKind::BrokenPipe => CliError::new(Exit::BrokenPipe, "the reader went away"),
            _ => CliError::failed(format!("writing the result: {error}")),
        }
    }
}
