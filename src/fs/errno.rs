//! From failures to the numbers that programs see.
//!
//! Every failure has exactly one errno, decided here. Damage and an unreachable store are never an empty file or a
//! missing name: they are `EIO`. What a person must know of is logged once, here, where the error ends. It does not
//! know which request failed.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lru::LruCache;
use rustix::io::Errno;

use super::status::Status;
use crate::env::Clock;
use crate::repo::RepoError;

/// Damaged objects that are remembered as told.
const TOLD_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// A store that fails is told of this often at most: an outage fails thousands of reads.
const STORE_LINE_MS: i64 = 10_000;

/// Why the view cannot answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// The kloset could not be read.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// Nothing has that name.
    #[error("no such entry")]
    NoEntry,
    /// Longer than any name.
    #[error("the name is too long")]
    NameTooLong,
    /// Only directories can be looked into.
    #[error("not a directory")]
    NotDirectory,
    /// A directory has no bytes.
    #[error("a directory")]
    IsDirectory,
    /// Not what this can be done to.
    #[error("not possible with this kind of file")]
    Invalid,
    /// No extended attribute of that name.
    #[error("no such extended attribute")]
    NoAttribute,
    /// Nothing lies behind that offset.
    #[error("behind the end")]
    BehindEnd,
    /// The inode was forgotten.
    #[error("the inode is not known")]
    Stale,
    /// The store did not answer in time.
    #[error("no answer from the store within {} s: whoever asked got an input/output error", .0.as_secs())]
    TimedOut(Duration),
    /// Who asked is being killed.
    #[error("the program that asked was killed")]
    Interrupted,
}

impl FsError {
    /// Returns the errno that programs get.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Repo(error) => repo_errno(error),
            Self::NoEntry => Errno::NOENT,
            Self::NameTooLong => Errno::NAMETOOLONG,
            Self::NotDirectory => Errno::NOTDIR,
            Self::IsDirectory => Errno::ISDIR,
            Self::Invalid => Errno::INVAL,
            Self::NoAttribute => Errno::NODATA,
            Self::BehindEnd => Errno::NXIO,
            Self::Stale => Errno::STALE,
            // As a disk that does not answer: ETIMEDOUT is not expected of read(2).
            Self::TimedOut(_) => Errno::IO,
            Self::Interrupted => Errno::INTR,
        }
    }
}

/// The one table from failures of a kloset to errno; a new variant must be decided here.
fn repo_errno(error: &RepoError) -> Errno {
    match error {
        // Whatever the store says, the bytes could not be had; EACCES would send people to look at file modes.
        RepoError::Store(_) => Errno::IO,
        // Never wrong bytes, never a short file.
        RepoError::Damaged { .. } => Errno::IO,
        // The key may list and write, but not look inside: the one case where rights are the matter.
        RepoError::WriteOnly => Errno::ACCESS,
        // A snapshot that was forgotten while it was looked at, a path that is not in it.
        RepoError::NoSnapshot(_) | RepoError::NoPath(_) => Errno::NOENT,
        RepoError::NotA { expected: "directory", .. } => Errno::NOTDIR,
        RepoError::NotA { .. } => Errno::INVAL,
        // Not of a mounted kloset; if it comes all the same, it is no answer.
        RepoError::NoKloset(_)
        | RepoError::KlosetExists(_)
        | RepoError::Header(_)
        | RepoError::WrongSecret { .. }
        | RepoError::Slot(_)
        | RepoError::KeySlot { .. }
        | RepoError::TooLong { .. }
        | RepoError::AmbiguousSnapshot(_)
        | RepoError::Pruned(_)
        | RepoError::PruneAtWork => Errno::IO,
    }
}

/// Tells people what they must know of, once.
pub struct Reporter {
    clock: Clock,
    status: Arc<Status>,
    told: Mutex<Told>,
}

struct Told {
    damaged: LruCache<String, ()>,
    store_unix_ms: Option<i64>,
}

impl Reporter {
    /// Returns a reporter that has told nothing yet.
    #[must_use]
    pub fn new(clock: Clock, status: Arc<Status>) -> Self {
        Self { clock, status, told: Mutex::new(Told { damaged: LruCache::new(TOLD_MAX), store_unix_ms: None }) }
    }

    /// Notes the failure, logs it if it is worth it and was not logged before; returns its errno.
    pub fn errno(&self, error: &FsError) -> Errno {
        self.status.failed(error);
        match error {
            FsError::Repo(RepoError::Damaged { object, .. }) => {
                if self.is_new_damage(object) {
                    tracing::error!("{error}");
                }
            }
            FsError::Repo(RepoError::Store(_)) | FsError::TimedOut(_) => {
                if self.is_store_line_due() {
                    tracing::warn!("{error}");
                }
            }
            error => tracing::debug!("{error}"),
        }
        error.errno()
    }

    fn is_new_damage(&self, object: &str) -> bool {
        self.told.lock().expect("no panic while held").damaged.put(object.to_owned(), ()).is_none()
    }

    fn is_store_line_due(&self) -> bool {
        let now = self.clock.unix_ms();
        let mut told = self.told.lock().expect("no panic while held");
        let due = told.store_unix_ms.is_none_or(|then| (now - then).abs() >= STORE_LINE_MS);
        if due {
            told.store_unix_ms = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::*;

    /// Damage is logged once for each object, an outage every ten seconds at most.
    #[test]
    fn damage_is_told_once_for_each_object() {
        let clock = Clock::Manual(Arc::new(AtomicI64::new(0)));
        let reporter = Reporter::new(clock.clone(), Arc::new(Status::new(clock)));
        assert!(reporter.is_new_damage("packs/a"));
        assert!(!reporter.is_new_damage("packs/a"));
        assert!(reporter.is_new_damage("packs/b"));
        assert!(reporter.is_store_line_due());
        assert!(!reporter.is_store_line_due());
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_never_absent() {
        assert_eq!(FsError::from(RepoError::damaged("packs/a", "gone")).errno(), Errno::IO);
        assert_eq!(FsError::from(RepoError::WriteOnly).errno(), Errno::ACCESS);
        assert_eq!(FsError::from(RepoError::NoPath("x".into())).errno(), Errno::NOENT);
    }
}
