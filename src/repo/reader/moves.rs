//! Where chunks went, and reading them there: one small object for each pack that a prune emptied, asked for when the pack is not there.
//!
//! Where that does not tell, the index does. What was learnt is kept, so that the pack that is gone is not asked for again, and readahead follows the new one.

use std::sync::Arc;

use bytes::Bytes;

use super::super::cache::{Cache, Weigh};
use super::super::crypto::Keys;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId};
use super::super::index::{IndexEntry, IndexRun};
use super::super::moved;
use super::super::pack::PackKind;
use super::super::tree::{ChunkRef, Location, Placed, TreeRef};
use super::{Reader, Wanted};
use crate::store::Store;

/// So often a chunk may have been moved, one prune after another, before the index is asked.
pub(super) const MOVES_MAX: usize = 8;

/// What is known of packs that were not there; for those that nobody moved anything out of, that.
pub(super) struct Moves {
    store: Store,
    keys: Arc<Keys>,
    packs: Cache<PackId, Went>,
}

struct Went(Option<IndexRun>);

impl Weigh for Went {
    fn weight(&self) -> usize {
        64 + self.0.as_ref().map_or(0, |run| run.entries.len() * size_of::<IndexEntry>() + run.packs.len() * 64)
    }
}

impl Moves {
    pub(super) fn new(store: Store, keys: Arc<Keys>, memory_bytes: usize) -> Self {
        Self { store, keys, packs: Cache::new(memory_bytes) }
    }

    /// Returns where a chunk went that was in a pack, as far as that was asked before.
    pub(super) fn known(&self, pack: PackId, id: ChunkId, bytes: u32) -> Option<Placed> {
        let mut found = None;
        for _ in 0..MOVES_MAX {
            let at = found.map_or(pack, |placed: Placed| placed.location.pack);
            let Some(next) = self.packs.ready(&at).and_then(|went| went.place(id, bytes)) else { break };
            found = Some(next);
        }
        found
    }

    /// Returns where a chunk went that was in a pack.
    ///
    /// # Errors
    /// [`RepoError::Store`]; what does not open says nothing, and the index is asked.
    pub(super) async fn of(&self, pack: PackId, id: ChunkId, bytes: u32) -> Result<Option<Placed>, RepoError> {
        let (store, keys) = (self.store.clone(), self.keys.clone());
        let load = move || async move {
            match moved::load(&store, &keys, pack).await {
                Err(RepoError::Store(error)) => Err(RepoError::Store(error)),
                run => Ok(Went(run.ok().flatten())),
            }
        };
        Ok(self.packs.get(pack, load).await?.place(id, bytes))
    }
}

impl Went {
    fn place(&self, id: ChunkId, bytes: u32) -> Option<Placed> {
        self.0.as_ref()?.places(id).find(|placed| placed.bytes == bytes)
    }
}

impl Reader {
    /// Tells whether a chunk is where that says, and nowhere else: by reading it.
    ///
    /// # Errors
    /// [`RepoError::Damaged`] if it is not.
    pub(in super::super) async fn is_there(
        &self,
        (kind, id, bytes): (PackKind, ChunkId, u32),
        at: &Location,
    ) -> Result<(), RepoError> {
        self.chunk_at(Wanted { kind, id, bytes }, at).await.map(drop)
    }

    /// Reads a chunk where it was moved to; of trees the whole pack is fetched, as ever.
    pub(super) async fn chunk_placed(&self, wanted: Wanted, placed: &Placed) -> Result<Bytes, RepoError> {
        match wanted.kind {
            PackKind::Data => self.chunk_at(wanted, &placed.location).await,
            PackKind::Tree => self.tree_chunk_at(&TreeRef::from_placed(wanted.id, placed), wanted).await,
        }
    }

    /// Returns where a chunk lies, as far as it is known to have been moved.
    pub(super) fn where_now(&self, at: &ChunkRef) -> Location {
        self.0.moves.known(at.location.pack, at.id, at.bytes).map_or(at.location, |placed| placed.location)
    }

    /// Looks a chunk up because its own location failed with `error`: where its pack's chunks went, then in the index. That
    /// error stands if none is better.
    pub(super) async fn elsewhere(&self, wanted: Wanted, tried: PackId, error: RepoError) -> Result<Bytes, RepoError> {
        if !matches!(error, RepoError::Damaged { .. }) {
            return Err(error);
        }
        let (mut tried, mut index) = (vec![tried], None);
        for _ in 0..MOVES_MAX {
            let pack = *tried.last().expect("one was tried");
            let Some(placed) = self.0.moves.of(pack, wanted.id, wanted.bytes).await? else { break };
            if tried.contains(&placed.location.pack) {
                break;
            }
            match self.chunk_placed(wanted, &placed).await {
                Err(RepoError::Damaged { .. }) => tried.push(placed.location.pack),
                outcome => return outcome,
            }
        }
        loop {
            let loaded = match self.0.moved.newer(index.as_ref()).await {
                Ok(Some(loaded)) => loaded,
                // It is not known that the chunk is lost: the index could not be asked.
                Err(outage @ RepoError::Store(_)) => return Err(outage),
                Ok(None) | Err(_) => return Err(error),
            };
            for placed in loaded.index.places(wanted.id).filter(|placed| placed.bytes == wanted.bytes) {
                if tried.contains(&placed.location.pack) {
                    continue;
                }
                match self.chunk_at(wanted, &placed.location).await {
                    Err(RepoError::Damaged { .. }) => tried.push(placed.location.pack),
                    outcome => return outcome,
                }
            }
            index = Some(loaded);
        }
    }
}
