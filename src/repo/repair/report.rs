//! What a repair found and did, in words and as JSON.

use serde::Serialize;

use super::super::check::CheckReport;
use super::super::id::SnapshotId;
use super::super::snapshot::ByteText;

/// What a repair found and did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RepairReport {
    /// Whether it was done.
    pub applied: bool,
    /// What a check says before.
    pub check: CheckReport,
    /// Packs that no index run named and that are listed anew.
    pub packs_listed: u64,
    /// Chunks that still open in damaged packs and were stored anew.
    pub salvaged: u64,
    /// Chunks that were lost.
    pub lost: u64,
    /// How many of them were stored anew from a source.
    pub healed: u64,
    /// Snapshots that lacked something.
    pub snapshots: Vec<Verdict>,
    /// Damaged packs that no backup relies on any more; a prune deletes them once nothing needs them.
    pub marked: Vec<String>,
    /// Objects that nobody can open and that kept backups from beginning: moved below `damaged/`.
    pub set_aside: Vec<String>,
    /// What is left to be done by hand.
    pub left: Vec<Left>,
}

/// What became of a snapshot that lacked something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Which one.
    pub snapshot: SnapshotId,
    /// What became of it.
    pub outcome: Outcome,
    /// The first paths that are lost.
    pub paths: Vec<ByteText>,
    /// How many there are.
    pub paths_total: u64,
}

/// What became of a snapshot that lacked something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "by")]
pub enum Outcome {
    /// It is whole again.
    Healed,
    /// It has a corrected one beside it, without what is lost.
    Corrected(SnapshotId),
    /// Its root is lost, or it does not open at all: there is nothing to correct.
    Unreadable,
}

/// An object that a repair cannot put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// Its name.
    pub object: String,
    /// What can be done about it.
    pub advice: String,
}

impl RepairReport {
    /// Tells whether everything that snapshots hold can be read when this is done.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.left.is_empty() && self.snapshots.iter().all(|verdict| verdict.outcome == Outcome::Healed)
    }

    /// Tells whether there was anything to do.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        self.check.is_damaged() || self.packs_listed > 0 || !self.set_aside.is_empty() || !self.marked.is_empty()
    }
}
