//! The index as a whole: all runs of a kloset, joined.
//!
//! A writer asks it which chunks are stored, a reader where a chunk went that is not where its reference says. What
//! lies in packs that are about to be deleted counts as absent.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};

use super::crypto::Keys;
use super::error::RepoError;
use super::id::{ChunkId, PackId, RunId};
use super::index::{IndexRun, RUN_BYTES_MAX};
use super::layout;
use super::pack::PackKind;
use super::pending::{PENDING_BYTES_MAX, PendingList};
use super::tree::Placed;
use crate::store::Store;

/// Index runs fetched at once.
const FETCHES: usize = 16;

/// All index runs of a kloset.
#[derive(Debug, Default)]
pub struct Index {
    /// The runs, in the order of their names.
    pub runs: Vec<(RunId, IndexRun)>,
}

impl Index {
    /// Reads every index run.
    ///
    /// # Errors
    /// [`RepoError`]; a run that vanishes meanwhile was replaced by another and is passed over.
    pub async fn load(store: &Store, keys: &Keys) -> Result<Self, RepoError> {
        let names = store.list(layout::INDEX).await?;
        let ids: Vec<_> = names.iter().filter_map(|o| layout::parse_run(&o.name)).collect();
        let runs: Vec<_> =
            futures::stream::iter(ids).map(|id| load_run(store, keys, id)).buffered(FETCHES).try_collect().await?;
        Ok(Self { runs: runs.into_iter().flatten().collect() })
    }

    /// Returns every place where a chunk was stored, in the order of the runs.
    pub fn places(&self, id: ChunkId) -> impl Iterator<Item = Placed> {
        self.runs.iter().flat_map(move |(_, run)| {
            let from = run.entries.partition_point(|e| e.id < id);
            run.entries[from..].iter().take_while(move |e| e.id == id).map(|e| run.placed(e))
        })
    }

    /// Joins what lies in packs of one kind to one table from chunk to place, without the packs of `absent`.
    #[must_use]
    pub fn table(&self, kind: PackKind, absent: &HashSet<PackId>) -> HashMap<ChunkId, Placed> {
        let mut table = HashMap::new();
        for (_, run) in &self.runs {
            for entry in &run.entries {
                let placed = run.placed(entry);
                if run.packs[entry.pack as usize].kind == kind && !absent.contains(&placed.location.pack) {
                    table.entry(entry.id).or_insert(placed);
                }
            }
        }
        table
    }
}

async fn load_run(store: &Store, keys: &Keys, id: RunId) -> Result<Option<(RunId, IndexRun)>, RepoError> {
    use crate::store::StoreError::NotFound;
    let name = layout::run_name(id);
    let object = match store.get(&name, RUN_BYTES_MAX as u64).await {
        Err(NotFound { .. }) => return Ok(None),
        object => object?,
    };
    let run =
        IndexRun::open(&keys.index_key(), keys.kloset(), id, &object).map_err(|e| RepoError::damaged(&name, e))?;
    Ok(Some((id, run)))
}

/// Reads which packs await deletion.
///
/// # Errors
/// [`RepoError`].
pub async fn load_pending(store: &Store, keys: &Keys) -> Result<HashSet<PackId>, RepoError> {
    use crate::store::StoreError::NotFound;
    let mut packs = HashSet::new();
    for object in store.list(layout::PENDING).await? {
        let Some(id) = layout::parse_pending(&object.name) else { continue };
        let content = match store.get(&object.name, PENDING_BYTES_MAX as u64).await {
            Err(NotFound { .. }) => continue,
            content => content?,
        };
        let list = PendingList::open(&keys.index_key(), keys.kloset(), id, &content)
            .map_err(|e| RepoError::damaged(&object.name, e))?;
        packs.extend(list.packs());
    }
    Ok(packs)
}
