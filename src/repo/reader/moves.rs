//! Where chunks went, and reading them there: what a prune said of a pack is asked for when the pack is not there.
//!
//! Where that does not tell, the index does. What was learnt is kept, so that the pack that is gone is not asked for again,
//! and readahead follows the new one. Which packs were emptied is listed when the first is not there, and again when one is
//! not among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::super::cache::{Cache, Weigh};
use super::super::crypto::Keys;
use super::super::emptied::Emptied;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId};
use super::super::index::{IndexEntry, IndexRun};
use super::super::pack::PackKind;
use super::super::tree::{ChunkRef, Location, Placed, TreeRef};
use super::{Reader, Wanted};
use crate::store::Store;

/// So many packs that prunes emptied are followed before the index is asked.
pub(super) const MOVES_MAX: usize = 8;
/// What was listed is read again at most so often because a prune wrote it anew.
const LOOKS_MAX: usize = 3;

/// What is known of packs that were not there; for those that nobody moved anything out of, that.
pub(super) struct Moves {
    store: Store,
    keys: Arc<Keys>,
    packs: Cache<PackId, Went>,
    emptied: Arc<Listed>,
}

/// The packs that were emptied, as they were listed last.
#[derive(Default)]
struct Listed {
    /// How many listings were begun.
    begun: AtomicU64,
    /// The last one that ended, and its number.
    last: tokio::sync::Mutex<(Arc<Emptied>, u64)>,
}

struct Went(Option<IndexRun>);

impl Weigh for Went {
    fn weight(&self) -> usize {
        64 + self.0.as_ref().map_or(0, |run| run.entries.len() * size_of::<IndexEntry>() + run.packs.len() * 64)
    }
}

impl Moves {
    pub(super) fn new(store: Store, keys: Arc<Keys>, memory_bytes: usize) -> Self {
        Self { store, keys, packs: Cache::new(memory_bytes), emptied: Arc::default() }
    }

    /// Returns where a chunk went that was in a pack, as far as that was asked before.
    pub(super) fn known(&self, pack: PackId, id: ChunkId, bytes: u32) -> Option<Placed> {
        let (mut found, mut at) = (None, pack);
        for _ in 0..MOVES_MAX {
            let Some(went) = self.packs.ready(&at) else { break };
            let is_there = |placed: &Placed| self.packs.ready(&placed.location.pack).is_none();
            let mut places = went.places(id, bytes);
            let Some(first) = places.next() else { break };
            let next = if is_there(&first) { first } else { places.find(is_there).unwrap_or(first) };
            (found, at) = (Some(next), next.location.pack);
        }
        found
    }

    /// Returns where a chunk may be that was in a pack: more than one place if two prunes moved it.
    ///
    /// # Errors
    /// [`RepoError::Store`]; what does not open says nothing, and the index is asked.
    pub(super) async fn of(&self, pack: PackId, id: ChunkId, bytes: u32) -> Result<Vec<Placed>, RepoError> {
        let (store, keys, emptied) = (self.store.clone(), self.keys.clone(), self.emptied.clone());
        let load = move || async move {
            match emptied.read(&store, &keys, pack).await {
                Err(RepoError::Store(error)) => Err(RepoError::Store(error)),
                run => Ok(Went(run.ok().flatten())),
            }
        };
        Ok(self.packs.get(pack, load).await?.places(id, bytes).collect())
    }
}

impl Listed {
    async fn read(&self, store: &Store, keys: &Keys, pack: PackId) -> Result<Option<IndexRun>, RepoError> {
        let (mut looks, mut is_stale) = (0, false);
        loop {
            looks += 1;
            let emptied = self.last(store, keys, |emptied| !is_stale && emptied.has(pack)).await?;
            match emptied.read(store, keys, [pack]).await {
                Err(RepoError::PruneAtWork) if looks < LOOKS_MAX => is_stale = true,
                runs => return Ok(runs?.remove(&pack)),
            }
        }
    }

    /// Returns the last listing if it does, else one that begins after this was asked: whoever asks meanwhile shares it.
    async fn last(
        &self,
        store: &Store,
        keys: &Keys,
        does: impl Fn(&Emptied) -> bool,
    ) -> Result<Arc<Emptied>, RepoError> {
        let before = self.begun.load(Ordering::SeqCst);
        let mut last = self.last.lock().await;
        if last.1 <= before && !does(&last.0) {
            let begun = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
            *last = (Emptied::load(store, keys).await?.into(), begun);
        }
        Ok(last.0.clone())
    }
}

impl Went {
    fn places(&self, id: ChunkId, bytes: u32) -> impl Iterator<Item = Placed> {
        self.0.iter().flat_map(move |run| run.places(id)).filter(move |placed| placed.bytes == bytes)
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
        let (mut tried, mut asked, mut index) = (vec![tried], 0, None);
        while asked < tried.len().min(MOVES_MAX) {
            let places = self.0.moves.of(tried[asked], wanted.id, wanted.bytes).await?;
            asked += 1;
            for placed in places {
                if tried.contains(&placed.location.pack) {
                    continue;
                }
                match self.chunk_placed(wanted, &placed).await {
                    Err(RepoError::Damaged { .. }) => tried.push(placed.location.pack),
                    outcome => return outcome,
                }
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
