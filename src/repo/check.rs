//! Checking: is everything there and whole that the snapshots need?
//!
//! Objects are listed in the order in which readers follow them (snapshots, index runs, packs), so that a backup which
//! runs meanwhile looks like nothing worse than packs that nobody names yet. Every tree that a snapshot reaches is read
//! once over all snapshots; with `read_data` every pack is fetched, its digest, footer, frames and chunk ids verified.
//! Damage never stops a check; a store that cannot be asked does. Nothing is changed.

mod objects;
mod packs;
mod report;
mod trees;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Repo;
use super::error::RepoError;
use super::id::{PackId, RunId};
use super::layout::SnapshotName;
use super::pack::PackKind;
use super::snapshot::Manifest;

pub use report::{Affected, CheckReport, Damage, Note, NoteKind};

/// Paths that are told of one damaged object; their number is told in full.
pub const PATHS_MAX: usize = 20;
/// Objects that are noted of one kind; their number is told in full.
pub const NOTES_MAX: usize = 1000;

/// What to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// Whether to fetch and open all content too.
    pub read_data: bool,
}

/// What a check is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckStage {
    /// Key slots, snapshots, index runs, listings.
    Objects,
    /// Packs that are fetched whole.
    Packs,
    /// Snapshots whose trees are followed.
    Snapshots,
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckProgress {
    /// What it is at.
    pub stage: CheckStage,
    /// How much of the stage is done.
    pub done: u64,
    /// How much there is.
    pub total: u64,
    /// Bytes of packs verified so far.
    pub bytes: u64,
}

/// What is told of the progress.
pub type Monitor<'a> = &'a (dyn Fn(CheckProgress) + Sync);

/// What is known of a pack.
#[derive(Default)]
struct Pack {
    /// Its length in the store, if it is there.
    listed: Option<u64>,
    /// What the index says of it.
    indexed: Option<Indexed>,
    /// Whether it awaits deletion.
    pending: bool,
    /// Whether a snapshot refers to it.
    used: bool,
    trouble: Option<Box<Trouble>>,
}

/// What the index says of a pack.
struct Indexed {
    kind: PackKind,
    bytes: u64,
    /// Offset and sealed length of its frames, sorted.
    frames: Vec<(u32, u32)>,
}

/// What is wrong with an object, and who suffers.
#[derive(Default)]
struct Trouble {
    missing: bool,
    problem: String,
    lost: Lost,
    paths: Vec<Affected>,
    /// Every path that suffers, hashed: a folder that changes often has the same file in many trees.
    paths_seen: HashSet<u64>,
    snapshots: BTreeSet<SnapshotName>,
}

/// What of a pack cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Lost {
    /// All of it can.
    #[default]
    Nothing,
    /// The frames at these offsets cannot.
    Frames(BTreeSet<u32>),
    /// Nothing can.
    All,
}

/// All that a check has found so far.
struct Findings {
    packs: HashMap<PackId, Pack>,
    /// Damaged objects that are no packs, by name.
    objects: BTreeMap<String, Trouble>,
    notes: report::Notes,
    /// Index runs that open.
    runs: Vec<RunId>,
    snapshots: Vec<(SnapshotName, Manifest)>,
    counts: report::Counts,
}

impl Findings {
    fn damaged(&mut self, name: &str, problem: impl std::fmt::Display) -> &mut Trouble {
        let trouble = self.objects.entry(name.to_owned()).or_default();
        trouble.problem = problem.to_string();
        trouble
    }

    fn missing(&mut self, name: &str, problem: impl std::fmt::Display) -> &mut Trouble {
        let trouble = self.damaged(name, problem);
        trouble.missing = true;
        trouble
    }
}

impl Pack {
    /// Tells whether the frame at `offset`, `bytes` long, can be there and be read.
    fn holds(&self, offset: u32, bytes: u32) -> Result<(), &'static str> {
        let Some(listed) = self.listed else { return Err("missing") };
        match self.trouble.as_ref().map(|t| &t.lost) {
            Some(Lost::All) => return Err("damaged"),
            Some(Lost::Frames(lost)) if lost.contains(&offset) => return Err("damaged"),
            _ => {}
        }
        if u64::from(offset) + u64::from(bytes) > listed {
            return Err("shorter than a snapshot's reference to it");
        }
        match &self.indexed {
            Some(known) if known.frames.binary_search(&(offset, bytes)).is_err() => {
                Err("a snapshot refers to a frame that it does not have")
            }
            _ => Ok(()),
        }
    }

    fn trouble(&mut self, problem: &str) -> &mut Trouble {
        let missing = self.listed.is_none();
        self.trouble.get_or_insert_with(|| {
            let lost = if missing { Lost::All } else { Lost::Nothing };
            Box::new(Trouble { missing, problem: problem.to_owned(), lost, ..Trouble::default() })
        })
    }
}

/// Checks a kloset.
///
/// # Errors
/// [`RepoError::WriteOnly`] with a key that cannot read; a store that cannot be asked. Damage is no error but a
/// finding.
pub async fn check(repo: &Repo, options: CheckOptions, monitor: Monitor<'_>) -> Result<CheckReport, RepoError> {
    if !repo.keys.can_read() {
        return Err(RepoError::WriteOnly);
    }
    let repo = &repo.without_cache();
    let mut findings = objects::look(repo, monitor).await?;
    packs::verify(repo, &mut findings, options, monitor).await?;
    trees::follow(repo, &mut findings, monitor).await?;
    Ok(report::sum_up(findings))
}
