//! Checking: is everything there and whole that the snapshots need?
//!
//! Objects are listed in the order in which readers follow them (snapshots, index runs, packs), so that a backup which
//! runs meanwhile looks like nothing worse than packs that nobody names yet. Every tree that a snapshot reaches is read
//! once over all snapshots; with `read_data` every pack, or a part of them, is fetched, its digest, footer, frames and
//! chunk ids verified. Damage never stops a check; a store that cannot be asked does. Nothing is changed.

mod objects;
mod packs;
mod report;
mod seals;
mod subset;
mod trees;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Repo;
use super::error::RepoError;
use super::id::{ChunkId, PackId, RunId};
use super::index::IndexRun;
use super::layout::SnapshotName;
use super::pack::PackKind;
use super::snapshot::Manifest;
use super::tree::{ChunkRef, TreeRef};

pub(super) use objects::{Fetched, fetch, learn, look};
pub(super) use packs::{Scope, verify};
pub(super) use report::sum_up;
pub(super) use trees::{Hurt, Start, follow, key_of, readable_index, roots};

pub use report::{Affected, CheckReport, Counts, Damage, Note, NoteKind};
pub use seals::{SealsOptions, check_seals};
pub use subset::{Every, PARTS_MAX, Part, Subset};

/// Paths that are told of one damaged object; their number is told in full.
pub const PATHS_MAX: usize = 20;
/// Objects that are noted of one kind; their number is told in full.
pub const NOTES_MAX: usize = 1000;

/// What to check.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckOptions {
    /// Whether to fetch and open content too.
    pub read_data: bool,
    /// The part of the packs that this is about; without, all of them.
    pub subset: Option<Subset>,
    /// Packs that were found whole before and are not fetched again.
    pub whole: HashSet<PackId>,
    /// Snapshots, and paths in them, that are followed, and whose content is read; without, all of them.
    pub only: Vec<(SnapshotName, Vec<u8>)>,
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
    /// The pack that was found whole just now.
    pub whole: Option<PackId>,
}

/// What is told of the progress.
pub type Monitor<'a> = &'a (dyn Fn(CheckProgress) + Sync);

/// What is known of a pack.
#[derive(Default)]
pub(super) struct Pack {
    /// Its length in the store, if it is there.
    pub(super) listed: Option<u64>,
    /// What the index says of it.
    pub(super) indexed: Option<Indexed>,
    /// Whether it awaits deletion.
    pub(super) pending: bool,
    /// Whether a snapshot refers to it.
    used: bool,
    pub(super) trouble: Option<Box<Trouble>>,
}

/// What the index says of a pack.
pub(super) struct Indexed {
    pub(super) kind: PackKind,
    bytes: u64,
    /// Offset and sealed length of its frames, sorted.
    frames: Vec<(u32, u32)>,
}

/// What is wrong with an object, and who suffers.
#[derive(Clone, Default)]
pub(super) struct Trouble {
    pub(super) missing: bool,
    problem: String,
    lost: Unreadable,
    paths: Vec<Affected>,
    /// Every path that suffers, hashed: a folder that changes often has the same file in many trees.
    paths_seen: HashSet<u64>,
    snapshots: BTreeSet<SnapshotName>,
}

/// What of a pack cannot be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Unreadable {
    /// All of it can.
    #[default]
    Nothing,
    /// The frames at these offsets cannot.
    Frames(BTreeSet<u32>),
    /// Nothing can.
    All,
}

/// Chunks that snapshots refer to and nobody can read, by id.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Of content.
    pub content: HashMap<ChunkId, ChunkRef>,
    /// Trees and content pages.
    pub trees: HashMap<ChunkId, TreeRef>,
}

/// All that a check has found so far.
pub(super) struct Findings {
    pub(super) packs: HashMap<PackId, Pack>,
    /// Damaged objects that are no packs, by name.
    pub(super) objects: BTreeMap<String, Trouble>,
    notes: report::Notes,
    /// Index runs that open.
    pub(super) runs: Vec<RunId>,
    /// Index runs that are not in the store yet.
    pub(super) rebuilt: Vec<(RunId, IndexRun)>,
    pub(super) snapshots: Vec<(SnapshotName, Manifest)>,
    pub(super) lost: Lost,
    /// The part of the packs that was read.
    part: Option<Part>,
    counts: Counts,
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
    pub(super) fn holds(&self, offset: u32, bytes: u32) -> Result<(), &'static str> {
        let Some(listed) = self.listed else { return Err("missing") };
        match self.trouble.as_ref().map(|t| &t.lost) {
            Some(Unreadable::All) => return Err("damaged"),
            Some(Unreadable::Frames(lost)) if lost.contains(&offset) => return Err("damaged"),
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
            let lost = if missing { Unreadable::All } else { Unreadable::Nothing };
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
    let mut findings = look(repo, monitor).await?;
    let roots = roots(repo, &findings, &options.only).await?;
    let used = match options.only.is_empty() {
        true => None,
        false => Some(used_by(repo, &mut findings, &roots, monitor).await?),
    };
    verify(repo, &mut findings, &Scope { options: &options, used }, monitor).await?;
    follow(repo, &mut findings, &roots, monitor).await?;
    Ok(sum_up(&mut findings))
}

/// Follows what was asked for once to learn which packs it needs; what this finds wrong is found again later.
async fn used_by(
    repo: &Repo,
    findings: &mut Findings,
    roots: &[Start],
    monitor: Monitor<'_>,
) -> Result<HashSet<PackId>, RepoError> {
    let before: HashMap<PackId, Box<Trouble>> =
        findings.packs.iter().filter_map(|(id, pack)| Some((*id, pack.trouble.clone()?))).collect();
    let counts = findings.counts;
    follow(repo, findings, roots, monitor).await?;
    for (id, pack) in &mut findings.packs {
        pack.trouble = before.get(id).cloned();
    }
    (findings.counts, findings.lost) = (counts, Lost::default());
    Ok(findings.packs.iter().filter(|(_, pack)| pack.used).map(|(id, _)| *id).collect())
}
