//! What there is, as one prune saw it: packs, pending lists, index runs, snapshots, and the store's time.
//!
//! The order of the listings is part of the safety (`docs/format.md`, "Deleting"): pending lists, then the index, then
//! snapshots, then packs, so that whatever a snapshot names has been put before the packs are listed. The time is the
//! store's: that of a list just put, or for a mere plan that of its last answer.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::super::Repo;
use super::super::emptied::Emptied;
use super::super::error::RepoError;
use super::super::id::{PackId, PendingId, RunId};
use super::super::index::IndexRun;
use super::super::layout::{self, SnapshotName};
use super::super::lookup::{Listed, Source};
use super::super::pack::PackKind;
use super::super::pending::{PENDING_BYTES_MAX, PendingList};
use super::super::tree::TreeRef;
use super::needed::Needed;
use super::{Progress, PruneOptions, Stage};
use crate::store::{ObjectInfo, StoreError};

/// Small objects fetched at once.
const FETCHES: usize = 32;

/// Whether a pack awaits deletion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// It is on no list.
    Free,
    /// It is on a list that is younger than the grace period.
    Waiting,
    /// It is on a list that is older.
    Due,
}

/// What is known of a pack.
pub(super) struct Pack {
    pub(super) id: PackId,
    /// Its length, if it is in the store.
    pub(super) listed: Option<u64>,
    /// When it was put, by the store's clock.
    pub(super) put_ms: i64,
    pub(super) mark: Mark,
    /// What it holds; nothing if no index run names it.
    pub(super) kind: Option<PackKind>,
    /// Raw bytes of its chunks by the index,
    pub(super) raw: u64,
    /// and of those that a snapshot needs there.
    pub(super) raw_needed: u64,
    /// Whether a snapshot needs something in it.
    pub(super) is_needed: bool,
    /// Whether a snapshot needs what an earlier prune said of where its chunks went.
    pub(super) moved_used: bool,
}

impl Pack {
    /// Tells whether its chunks count as there: for readers, for writers, and for the next prune.
    pub(super) fn stays(&self) -> bool {
        self.listed.is_some() && self.mark == Mark::Free
    }
}

/// All packs that were listed, marked, or named by the index or by a snapshot.
#[derive(Default)]
pub(super) struct Packs {
    places: HashMap<PackId, u32>,
    pub(super) all: Vec<Pack>,
}

impl Packs {
    /// Returns the place of a pack, which is entered if it is not known.
    pub(super) fn place(&mut self, id: PackId) -> u32 {
        let next = u32::try_from(self.all.len()).expect("fewer than 2^32 packs fit in memory");
        let place = *self.places.entry(id).or_insert(next);
        if place == next {
            self.all.push(Pack {
                id,
                listed: None,
                put_ms: 0,
                mark: Mark::Free,
                kind: None,
                raw: 0,
                raw_needed: 0,
                is_needed: false,
                moved_used: false,
            });
        }
        place
    }

    /// Returns the place of a pack, if it is known.
    pub(super) fn find(&self, id: PackId) -> Option<u32> {
        self.places.get(&id).copied()
    }

    pub(super) fn at(&self, place: u32) -> &Pack {
        &self.all[place as usize]
    }

    pub(super) fn at_mut(&mut self, place: u32) -> &mut Pack {
        &mut self.all[place as usize]
    }

    /// Returns the places of those for which `is_wanted` holds.
    pub(super) fn filter(&self, is_wanted: impl Fn(&Pack) -> bool) -> Vec<u32> {
        (0..).zip(&self.all).filter(|(_, pack)| is_wanted(pack)).map(|(place, _)| place).collect()
    }
}

/// Packs that are kept at most, together.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// Packs in memory, by their places.
#[derive(Default)]
pub(super) struct KeptPacks {
    packs: HashMap<u32, Bytes>,
    bytes: usize,
}

impl KeptPacks {
    /// Keeps a pack if there is room.
    pub(super) fn keep(&mut self, place: u32, content: &Bytes) {
        if self.bytes + content.len() <= KEPT_BYTES_MAX {
            self.bytes += content.len();
            self.packs.insert(place, content.clone());
        }
    }

    pub(super) fn get(&self, place: u32) -> Option<Bytes> {
        self.packs.get(&place).cloned()
    }
}

/// A pending list.
pub(super) struct List {
    pub(super) id: PendingId,
    pub(super) put_ms: i64,
    pub(super) is_due: bool,
    pub(super) packs: Vec<PackId>,
}

/// An index run, or several that were read at once.
pub(super) struct Run {
    pub(super) ids: Vec<RunId>,
    pub(super) source: Source,
    /// The length of what was read.
    pub(super) bytes: u64,
    /// When the last of them was put.
    pub(super) put_ms: i64,
    pub(super) entries: usize,
    /// The places of the packs it names.
    pub(super) packs: Vec<u32>,
    /// The run itself, if it is a small one.
    pub(super) kept: Option<IndexRun>,
}

impl Run {
    /// Returns the names of all objects that say what it says.
    pub(super) fn names(&self) -> Vec<String> {
        let joined = match self.source {
            Source::Run(_) => None,
            Source::Joined(id) => Some(layout::joined_name(id)),
        };
        self.ids.iter().map(|id| layout::run_name(*id)).chain(joined).collect()
    }
}

/// What there is.
pub(super) struct Look {
    /// The store's time.
    pub(super) now_ms: i64,
    pub(super) lists: Vec<List>,
    /// Index runs, as they were listed,
    pub(super) index: Listed,
    /// when they were put,
    pub(super) runs_put_ms: HashMap<RunId, i64>,
    /// and as the census read them.
    pub(super) runs: Vec<Run>,
    pub(super) packs: Packs,
    pub(super) roots: Vec<(SnapshotName, TreeRef)>,
    /// The packs that earlier prunes emptied.
    pub(super) emptied: Emptied,
    /// What the snapshots need; filled by the walk.
    pub(super) needed: Needed,
    /// Distinct trees and content pages.
    pub(super) trees: u64,
    /// Short packs of trees as the walk fetched them, so that those to be emptied are not fetched again.
    pub(super) tree_packs: KeptPacks,
}

/// Looks at everything but trees and the content of index runs; `probe` is a list just put, whose time is the store's.
pub(super) async fn look(
    repo: &Repo,
    options: &PruneOptions,
    probe: Option<PendingId>,
    progress: Progress<'_>,
) -> Result<Look, RepoError> {
    progress(Stage::Listing, 0, 4);
    let mut lists = repo.store.list(layout::PENDING).await?;
    progress(Stage::Listing, 1, 4);
    let index = repo.store.list(layout::INDEX).await?;
    let snapshots = repo.store.list(layout::SNAPSHOTS).await?;
    progress(Stage::Listing, 2, 4);
    let packs = repo.store.list(layout::PACKS).await?;
    let now_ms = match probe {
        Some(id) => take_probe(&mut lists, id)?,
        None => {
            let newest = [&lists, &index, &snapshots, &packs].into_iter().flatten().map(|o| o.modified_unix_ms).max();
            repo.store.date_unix_ms().unwrap_or_else(|| newest.unwrap_or(0).max(repo.env.clock.unix_ms()))
        }
    };
    progress(Stage::Listing, 3, 4);
    let roots = roots(repo, &snapshots).await?;
    let lists = pending(repo, &lists, now_ms, options).await?;
    let mut emptied = Emptied::of(&repo.store, &repo.keys, &index).await?;
    if let Some(error) = emptied.damaged.pop() {
        return Err(error);
    }
    let runs_put_ms = index.iter().filter_map(|o| Some((layout::parse_run(&o.name)?, o.modified_unix_ms))).collect();
    let mut look = Look {
        now_ms,
        lists,
        index: Listed::of(&index),
        runs_put_ms,
        runs: Vec::new(),
        packs: Packs::default(),
        roots,
        emptied,
        needed: Needed::default(),
        trees: 0,
        tree_packs: KeptPacks::default(),
    };
    enter(&mut look, &packs);
    Ok(look)
}

/// Takes the list just put out of the listing and returns its time.
fn take_probe(lists: &mut Vec<ObjectInfo>, probe: PendingId) -> Result<i64, RepoError> {
    let name = layout::pending_name(probe);
    let found = lists.iter().position(|object| object.name == name);
    // Without it the store's listings are stale, or another prune has a shorter grace period and is done with it.
    let at = found.ok_or(RepoError::PruneAtWork)?;
    Ok(lists.remove(at).modified_unix_ms)
}

fn enter(look: &mut Look, packs: &[ObjectInfo]) {
    for object in packs {
        if let Some(id) = layout::parse_pack(&object.name) {
            let place = look.packs.place(id);
            let pack = look.packs.at_mut(place);
            (pack.listed, pack.put_ms) = (Some(object.bytes), object.modified_unix_ms);
        }
    }
    for list in &look.lists {
        let mark = if list.is_due { Mark::Due } else { Mark::Waiting };
        for id in &list.packs {
            let place = look.packs.place(*id);
            let pack = look.packs.at_mut(place);
            pack.mark = pack.mark.max(mark);
        }
    }
}

/// Reads the roots of all snapshots; one that vanishes was forgotten.
async fn roots(repo: &Repo, listed: &[ObjectInfo]) -> Result<Vec<(SnapshotName, TreeRef)>, RepoError> {
    let names: Vec<_> = listed.iter().filter_map(|o| SnapshotName::parse(&o.name)).collect();
    let read = |name: SnapshotName| async move {
        match repo.manifest(name).await {
            Err(RepoError::NoSnapshot(_)) => Ok(None),
            manifest => manifest.map(|manifest| Some((name, TreeRef::from(manifest.root)))),
        }
    };
    let read: Vec<_> = futures::stream::iter(names).map(read).buffered(FETCHES).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}

/// Reads the pending lists; one that vanishes was another prune's, which is done with it.
async fn pending(
    repo: &Repo,
    listed: &[ObjectInfo],
    now_ms: i64,
    options: &PruneOptions,
) -> Result<Vec<List>, RepoError> {
    let (grace_ms, keys) = (options.grace_ms(), &repo.keys);
    let known = listed.iter().filter_map(|o| Some((layout::parse_pending(&o.name)?, o.modified_unix_ms)));
    let read = |(id, put_ms): (PendingId, i64)| async move {
        let name = layout::pending_name(id);
        let object = match repo.store.get(&name, PENDING_BYTES_MAX as u64).await {
            Err(StoreError::NotFound { .. }) => return Ok(None),
            Err(StoreError::TooLarge { .. }) => {
                return Err(RepoError::damaged(name, "longer than a pending list can be"));
            }
            object => object?,
        };
        let list = PendingList::open(&keys.index_key(), keys.kloset(), id, &object);
        let packs: HashSet<_> = list.map_err(|e| RepoError::damaged(&name, e))?.packs().collect();
        let is_due = now_ms.saturating_sub(put_ms) >= grace_ms;
        Ok(Some(List { id, put_ms, is_due, packs: packs.into_iter().collect() }))
    };
    let lists: Vec<_> = futures::stream::iter(known).map(read).buffered(FETCHES).try_collect().await?;
    Ok(lists.into_iter().flatten().collect())
}
