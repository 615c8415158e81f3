//! What can go wrong with a kloset.
//!
//! A variant for each thing a caller does differently; each names the object. Cheap to clone, since one failed read may
//! have many waiters.

use std::sync::Arc;

use super::header::HeaderError;
use super::keyslot::SlotError;
use crate::store::StoreError;

/// A failure of an operation on a kloset.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RepoError {
    /// The store failed.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// There is no header where a kloset should be.
    #[error("no kloset in \"{0}\": create one with `kloset-mount create`, or check the location")]
    NoKloset(String),
    /// There is a kloset where one should be made.
    #[error("there is a kloset in \"{0}\" already: choose another prefix or folder")]
    KlosetExists(String),
    /// The header cannot be used.
    #[error(transparent)]
    Header(Arc<HeaderError>),
    /// No key slot opens with the secret: it is a wrong one, or the slot was changed, which looks the same.
    #[error("wrong passphrase or key file, or a damaged key slot: it opens none of {slots}")]
    WrongSecret {
        /// The objects that were tried, the first of many, and what is wrong with one that could not be.
        slots: String,
    },
    /// A key slot cannot be made.
    #[error(transparent)]
    Slot(Arc<SlotError>),
    /// A key slot that was named cannot be removed.
    #[error("key slot \"{slot}\": {problem}")]
    KeySlot {
        /// As it was named.
        slot: String,
        /// Why not.
        problem: String,
    },
    /// An object is not what it should be, or not there.
    #[error("{object}: {problem}: run `kloset-mount check` to see what else is damaged")]
    Damaged {
        /// The object, and the chunk in it where one is known.
        object: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The key is of a write-only slot.
    #[error("this key can only write: use one that can read")]
    WriteOnly,
    /// No such snapshot.
    #[error("no snapshot \"{0}\": `kloset-mount ls` lists them")]
    NoSnapshot(String),
    /// Several snapshots fit.
    #[error("\"{0}\" begins the ids of several snapshots: give more characters")]
    AmbiguousSnapshot(String),
    /// No such path in a snapshot.
    #[error("no \"{0}\" in the snapshot")]
    NoPath(String),
    /// The path is there but is not what was asked for.
    #[error("\"{path}\" in the snapshot is not a {expected}")]
    NotA {
        /// The path.
        path: String,
        /// "directory" or "regular file".
        expected: &'static str,
    },
    /// Something would be written that no reader accepts.
    #[error("{object} would be {bytes} bytes long, at most {bytes_max} can be read")]
    TooLong {
        /// What would be written.
        object: String,
        /// Its length.
        bytes: usize,
        /// The largest that is read.
        bytes_max: usize,
    },
    /// Packs that this session relies on were marked for deletion while it ran.
    #[error("{0} packs in use were marked for deletion meanwhile: run the same again")]
    Pruned(usize),
    /// Another prune rewrote the index meanwhile.
    #[error("another prune is at work: what it does is not touched; run this one again later")]
    PruneAtWork,
}

impl RepoError {
    /// Returns a [`RepoError::Damaged`].
    pub fn damaged(object: impl std::fmt::Display, problem: impl std::fmt::Display) -> Self {
        Self::Damaged { object: object.to_string(), problem: problem.to_string() }
    }
}

impl From<StoreError> for RepoError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<HeaderError> for RepoError {
    fn from(error: HeaderError) -> Self {
        Self::Header(Arc::new(error))
    }
}

impl From<SlotError> for RepoError {
    fn from(error: SlotError) -> Self {
        Self::Slot(Arc::new(error))
    }
}
