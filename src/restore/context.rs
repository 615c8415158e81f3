//! What every thread of a restore needs to know and to tell.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use tokio::runtime::Handle;

use super::item::Item;
use super::report::Tally;
use super::target::Dir;
use super::{Overwrite, RestoreError, RestoreOptions};
use crate::monitor::Monitor;
use crate::repo::crypto::Keys;
use crate::repo::{Reader, RepoError};

/// Where content comes from.
pub(super) struct Source {
    pub(super) reader: Reader,
    pub(super) runtime: Handle,
    pub(super) keys: Arc<Keys>,
}

/// Who we are to the system.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

/// How a file with several names stands.
pub(super) enum Link {
    /// Its first name is being restored; these wait for it.
    Waiting(Vec<(Arc<Dir>, Item)>),
    /// Its first name is at this path below the root.
    Done(Vec<u8>),
    /// Its first name could not be restored; whether because of damaged data.
    Failed(bool),
}

/// The restore as all its threads see it.
pub(super) struct Context {
    pub(super) overwrite: Overwrite,
    /// Path in the snapshot of the restored folder.
    base: Vec<u8>,
    pub(super) source: Source,
    pub(super) me: Identity,
    pub(super) tally: Tally,
    pub(super) monitor: Arc<Monitor>,
    /// Files with several names, by device and inode on the source machine.
    pub(super) links: Mutex<HashMap<(u64, u64), Link>>,
    temporary: AtomicU64,
    fatal: Mutex<Option<RestoreError>>,
    ended: AtomicBool,
}

impl Context {
    pub(super) fn new(options: &RestoreOptions, base: Vec<u8>, source: Source, monitor: Arc<Monitor>) -> Self {
        Self {
            overwrite: options.overwrite,
            base,
            source,
            me: Identity { uid: rustix::process::geteuid(), gid: rustix::process::getegid() },
            tally: Tally::default(),
            monitor,
            links: Mutex::default(),
            temporary: AtomicU64::new(0),
            fatal: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    /// Returns the path in the snapshot of what is at `path` below the root.
    pub(super) fn in_snapshot(&self, path: &[u8]) -> Vec<u8> {
        super::below(&self.base, path)
    }

    /// Returns a name for a file that is renamed when it is whole.
    pub(super) fn temporary_name(&self) -> Vec<u8> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        format!(".kloset-mount-{}-{number}.part", std::process::id()).into_bytes()
    }

    /// Tells whether to stop soon.
    pub(super) fn ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed) || self.monitor.stopped()
    }

    /// Ends the restore with an error; the first one counts.
    pub(super) fn end(&self, error: RestoreError) {
        self.fatal.lock().expect("no panic while held").get_or_insert(error);
        self.ended.store(true, Ordering::Relaxed);
    }

    pub(super) fn take_fatal(&self) -> Result<(), RestoreError> {
        self.fatal.lock().expect("no panic while held").take().map_or(Ok(()), Err)
    }

    /// Notes that a path could not be written; a target that takes nothing more ends the restore.
    pub(super) fn fail(&self, path: &[u8], error: Errno) {
        if matches!(error, Errno::NOSPC | Errno::DQUOT | Errno::ROFS) {
            self.end(RestoreError::Target { path: self.in_snapshot(path), source: error.into() });
        } else {
            self.tally.fail(self.in_snapshot(path), error.to_string(), false);
        }
    }

    /// Notes that a path could not be read; a store that cannot be asked ends the restore.
    pub(super) fn fail_to_read(&self, path: &[u8], error: RepoError) {
        match error {
            RepoError::Damaged { object, problem } => {
                self.tally.fail(self.in_snapshot(path), format!("{object}: {problem}"), true);
            }
            error => self.end(error.into()),
        }
    }
}
