//! What a restore did, what it could not, and what was lost of what it did.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use serde::Serialize;

use crate::repo::snapshot::ByteText;

/// Paths that a report names; their number is told in full.
pub(super) const PATHS_MAX: usize = 1000;

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RestoreReport {
    /// Regular files restored, further names of a file among them.
    pub files: u64,
    /// Folders made or merged.
    pub directories: u64,
    /// Links, devices, pipes and sockets.
    pub others: u64,
    /// Bytes of the files, holes included.
    pub bytes: u64,
    /// Files left alone because they were there already, unchanged.
    pub unchanged: u64,
    /// The first paths that could not be restored.
    pub failures: Vec<Failure>,
    /// How many there are.
    pub failures_total: u64,
    /// How many of them for the sake of damaged data.
    pub damaged: u64,
    /// What of the restored could not be set, one entry a kind.
    pub losses: Vec<Loss>,
    /// What the target cannot hold by its nature, one entry a kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unheld: Vec<UnheldPaths>,
    /// In a dry run: the first paths where something is already.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub in_the_way: Vec<ByteText>,
    /// How many there are.
    pub in_the_way_total: u64,
}

impl RestoreReport {
    /// Tells whether everything is as it was, but for what only the superuser may set.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failures_total == 0 && self.losses.iter().all(|loss| loss.kind.is_privileged())
    }
}

/// A path that could not be restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The path in the snapshot.
    pub path: ByteText,
    /// Why.
    pub message: String,
    /// Whether because of damaged data in the kloset.
    pub damaged: bool,
}

/// What could not be set of restored paths.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loss {
    /// What it is.
    pub kind: LossKind,
    /// Of how many paths.
    pub paths: u64,
    /// The first of them, in the snapshot.
    pub first: ByteText,
    /// What the system said of it.
    pub message: String,
}

/// Kinds of what could not be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Owner and group, and with them setuid and setgid.
    Ownership,
    /// Extended attributes that only the superuser may set.
    PrivilegedAttributes,
    /// Other extended attributes, ACLs among them.
    Attributes,
    /// Permission bits.
    Mode,
    /// Times.
    Times,
}

impl LossKind {
    /// Tells whether it is what somebody who is not the superuser cannot expect.
    #[must_use]
    pub fn is_privileged(self) -> bool {
        matches!(self, Self::Ownership | Self::PrivilegedAttributes)
    }
}

impl std::fmt::Display for LossKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ownership => "owner and group",
            Self::PrivilegedAttributes => "attributes that only the superuser may set",
            Self::Attributes => "extended attributes",
            Self::Mode => "permission bits",
            Self::Times => "times",
        })
    }
}

/// Paths that a bucket cannot hold as they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnheldPaths {
    /// What they are.
    pub kind: Unheld,
    /// How many there are.
    pub paths: u64,
    /// The first of them, in the snapshot.
    pub first: ByteText,
}

/// Kinds of what a bucket cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unheld {
    /// Symbolic links.
    Links,
    /// Devices, pipes and sockets.
    Specials,
    /// Folders without anything in them.
    EmptyFolders,
    /// Files with holes: they are put, with zeros in their place.
    Holes,
    /// Objects whose key is that of the folder which is restored.
    Top,
}

impl std::fmt::Display for Unheld {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Links => "symbolic links",
            Self::Specials => "devices, pipes and sockets",
            Self::EmptyFolders => "empty folders",
            Self::Holes => "holes of files (zeros were put)",
            Self::Top => "objects with the key of the restored folder itself",
        })
    }
}

/// A report in the making, shared by all threads.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) files: AtomicU64,
    pub(super) directories: AtomicU64,
    pub(super) others: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) unchanged: AtomicU64,
    troubles: Mutex<Troubles>,
}

#[derive(Default)]
struct Troubles {
    failures: Vec<Failure>,
    failures_total: u64,
    damaged: u64,
    losses: BTreeMap<LossKind, Loss>,
    unheld: BTreeMap<Unheld, UnheldPaths>,
}

/// Adds to a counter.
pub(super) fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

impl Tally {
    pub(super) fn fail(&self, path: Vec<u8>, message: String, damaged: bool) {
        let mut troubles = self.troubles.lock().expect("no panic while held");
        troubles.failures_total += 1;
        troubles.damaged += u64::from(damaged);
        if troubles.failures.len() < PATHS_MAX {
            troubles.failures.push(Failure { path: ByteText(path), message, damaged });
        }
    }

    pub(super) fn lose(&self, kind: LossKind, path: impl FnOnce() -> Vec<u8>, error: Errno) {
        let mut troubles = self.troubles.lock().expect("no panic while held");
        let first = || Loss { kind, paths: 0, first: ByteText(path()), message: error.to_string() };
        troubles.losses.entry(kind).or_insert_with(first).paths += 1;
    }

    pub(super) fn unhold(&self, kind: Unheld, path: impl FnOnce() -> Vec<u8>) {
        let mut troubles = self.troubles.lock().expect("no panic while held");
        let first = || UnheldPaths { kind, paths: 0, first: ByteText(path()) };
        troubles.unheld.entry(kind).or_insert_with(first).paths += 1;
    }

    pub(super) fn report(&self) -> RestoreReport {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut troubles = self.troubles.lock().expect("no panic while held");
        let troubles = std::mem::take(&mut *troubles);
        RestoreReport {
            files: read(&self.files),
            directories: read(&self.directories),
            others: read(&self.others),
            bytes: read(&self.bytes),
            unchanged: read(&self.unchanged),
            failures: troubles.failures,
            failures_total: troubles.failures_total,
            damaged: troubles.damaged,
            losses: troubles.losses.into_values().collect(),
            unheld: troubles.unheld.into_values().collect(),
            in_the_way: Vec::new(),
            in_the_way_total: 0,
        }
    }
}
