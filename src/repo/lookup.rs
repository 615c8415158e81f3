//! The index as a whole: all runs of a kloset, joined.
//!
//! A writer asks it which chunks are stored, a reader where a chunk went that is not where its reference says. What
//! lies in packs that are about to be deleted counts as absent.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::crypto::Keys;
use super::error::RepoError;
use super::id::{ChunkId, PackId, RunId};
use super::index::{IndexRun, RUN_BYTES_MAX};
use super::layout;
use super::pending::{PENDING_BYTES_MAX, PendingList};
use super::tree::Placed;
use crate::env::Clock;
use crate::store::Store;

/// Index runs fetched at once.
const FETCHES: usize = 16;
/// KiB of index runs, sealed, that are fetched and not yet taken at most.
const UNDER_WAY_KIB: u32 = 16 << 10;
/// The index is listed again at most so often because a run vanished that was listed.
const LISTINGS_MAX: usize = 3;
/// A reader does not load the index again sooner: what it does not explain is mostly damage, and stays so.
const RELOAD_MS_MIN: i64 = 10_000;

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
        let mut index = Self::default();
        for_each_run((store, store), keys, |id, run| index.runs.push((id, run))).await?;
        Ok(index)
    }

    /// Returns every place where a chunk was stored, in the order of the runs.
    pub fn places(&self, id: ChunkId) -> impl Iterator<Item = Placed> {
        self.runs.iter().flat_map(move |(_, run)| run.places(id))
    }
}

/// Lists the index runs in the first store and reads them from the second, the same one through a cache maybe; hands each
/// over, mostly in the order of their names.
///
/// Memory is bounded: what is under way is 16 MiB of runs, or one run.
///
/// # Errors
/// [`RepoError`]; a run that vanishes meanwhile was replaced by another, which is sought by listing again.
pub async fn for_each_run(
    (listed, read): (&Store, &Store),
    keys: &Keys,
    mut take: impl FnMut(RunId, IndexRun),
) -> Result<(), RepoError> {
    let mut taken = HashSet::new();
    for _ in 0..LISTINGS_MAX {
        let objects = listed.list(layout::INDEX).await?;
        let runs = objects.iter().filter_map(|o| Some((layout::parse_run(&o.name)?, o.bytes)));
        let new: Vec<_> = runs.filter(|(id, _)| !taken.contains(id)).collect();
        let vanished = for_each_of(read, keys, new, |id, run| {
            taken.insert(id);
            take(id, run);
        })
        .await?;
        if vanished == 0 {
            break;
        }
    }
    Ok(())
}

/// Reads index runs, of which the lengths are known, and hands each over in their order; returns how many have vanished.
///
/// # Errors
/// [`RepoError`].
pub async fn for_each_of(
    read: &Store,
    keys: &Keys,
    runs: Vec<(RunId, u64)>,
    mut take: impl FnMut(RunId, IndexRun),
) -> Result<usize, RepoError> {
    let (under_way, mut vanished) = (Semaphore::new(UNDER_WAY_KIB as usize), 0);
    let mut runs = futures::stream::iter(runs)
        .map(|(id, bytes)| {
            let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, UNDER_WAY_KIB);
            let room = under_way.acquire_many(kib);
            async move { Ok::<_, RepoError>((room.await, load_run(read, keys, id).await?)) }
        })
        .buffered(FETCHES);
    while let Some((room, run)) = runs.try_next().await? {
        match run {
            Some((id, run)) => take(id, run),
            None => vanished += 1,
        }
        drop(room);
    }
    Ok(vanished)
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

/// The index as a reader wants it: loaded when a location fails, and again when a failure is not explained by it.
pub struct Relocations {
    store: Store,
    keys: Arc<Keys>,
    clock: Clock,
    state: Mutex<State>,
}

/// The index as it was at its `generation`-th loading.
#[derive(Clone)]
pub struct Loaded {
    /// The index.
    pub index: Arc<Index>,
    generation: u64,
}

#[derive(Default)]
struct State {
    loaded: Option<(Loaded, i64)>,
    loading: Option<Loading>,
}

type Loading = Shared<BoxFuture<'static, Result<Arc<Index>, RepoError>>>;

impl Relocations {
    /// Returns what has loaded nothing yet.
    #[must_use]
    pub fn new(store: Store, keys: Arc<Keys>, clock: Clock) -> Self {
        Self { store, keys, clock, state: Mutex::default() }
    }

    /// Returns the index, a newer one than `tried` if that has been given; `None` if it is too soon for another.
    ///
    /// It is loaded once however many ask.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn newer(&self, tried: Option<&Loaded>) -> Result<Option<Loaded>, RepoError> {
        loop {
            let now = self.clock.unix_ms();
            let (loading, joined) = {
                let mut state = self.lock();
                match &state.loaded {
                    Some((loaded, _)) if tried.is_none_or(|tried| tried.generation < loaded.generation) => {
                        return Ok(Some(loaded.clone()));
                    }
                    Some((_, unix_ms)) if (0..RELOAD_MS_MIN).contains(&now.saturating_sub(*unix_ms)) => {
                        return Ok(None);
                    }
                    _ => {}
                }
                let joined = state.loading.is_some();
                (state.loading.get_or_insert_with(|| self.load()).clone(), joined)
            };
            let result = loading.clone().await;
            self.settle(&loading, &result, now);
            match result {
                // Begun by somebody else, who may have given it up long ago.
                Err(RepoError::Store(_)) if joined => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
    }

    /// Keeps what was loaded; the first of those who waited does it, the others find it done.
    fn settle(&self, loading: &Loading, result: &Result<Arc<Index>, RepoError>, unix_ms: i64) {
        let mut state = self.lock();
        if !state.loading.as_ref().is_some_and(|current| current.ptr_eq(loading)) {
            return;
        }
        state.loading = None;
        if let Ok(index) = result {
            let generation = state.loaded.as_ref().map_or(0, |loaded| loaded.0.generation) + 1;
            state.loaded = Some((Loaded { index: index.clone(), generation }, unix_ms));
        }
    }

    fn load(&self) -> Loading {
        let (store, keys) = (self.store.clone(), self.keys.clone());
        async move { Index::load(&store, &keys).await.map(Arc::new) }.boxed().shared()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
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
