//! The index as a whole: all runs of a kloset, joined.
//!
//! A writer asks it which chunks are stored, a reader where a chunk went that is not where its reference says. What
//! lies in packs that are about to be deleted counts as absent.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::crypto::Keys;
use super::error::RepoError;
use super::id::{ChunkId, JoinedId, PackId, RunId};
use super::index::{IndexRun, RUN_BYTES_MAX};
use super::joined::{self, JOINED_BYTES_MAX};
use super::layout;
use super::pending::{PENDING_BYTES_MAX, PendingList};
use super::tree::Placed;
use crate::env::Clock;
use crate::store::{ObjectInfo, Store, StoreError};

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
    /// The runs; several may be in one.
    pub runs: Vec<IndexRun>,
}

impl Index {
    /// Reads every index run.
    ///
    /// # Errors
    /// [`RepoError`]; a run that vanishes meanwhile was replaced by another and is passed over.
    pub async fn load(store: &Store, keys: &Keys) -> Result<Self, RepoError> {
        let mut index = Self::default();
        for_each_run((store, store), keys, |_, loaded| index.runs.push(loaded.run)).await?;
        Ok(index)
    }

    /// Returns every place where a chunk was stored, in the order of the runs.
    pub fn places(&self, id: ChunkId) -> impl Iterator<Item = Placed> {
        self.runs.iter().flat_map(move |run| run.places(id))
    }
}

/// What is read to know what index runs say: a run, or several at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// A run.
    Run(RunId),
    /// A joined run.
    Joined(JoinedId),
}

/// What was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The length of the object.
    pub bytes: u64,
    /// The runs,
    pub ids: Vec<RunId>,
    /// and what they say.
    pub run: IndexRun,
}

/// The index as it was listed, each object with its length.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// Runs, in the order of their names.
    pub runs: Vec<(RunId, u64)>,
    /// Joined runs.
    pub joined: Vec<(JoinedId, u64)>,
}

impl Listed {
    /// Takes from a listing what is of the index.
    #[must_use]
    pub fn of(objects: &[ObjectInfo]) -> Self {
        Self {
            runs: objects.iter().filter_map(|o| Some((layout::parse_run(&o.name)?, o.bytes))).collect(),
            joined: objects.iter().filter_map(|o| Some((layout::parse_joined(&o.name)?, o.bytes))).collect(),
        }
    }
}

/// Lists the index in the first store and reads it from the second, the same one through a cache maybe; hands each run over,
/// or several at once.
///
/// Memory is bounded: what is under way is 16 MiB of runs, or one run.
///
/// # Errors
/// [`RepoError`]; a run that vanishes meanwhile was replaced by another, which is sought by listing again.
pub async fn for_each_run(
    (listed, read): (&Store, &Store),
    keys: &Keys,
    mut take: impl FnMut(Source, Loaded),
) -> Result<(), RepoError> {
    let mut taken: HashSet<RunId> = HashSet::new();
    for _ in 0..LISTINGS_MAX {
        let mut new = Listed::of(&listed.list(layout::INDEX).await?);
        new.runs.retain(|(id, _)| !taken.contains(id));
        let vanished = for_each_listed(read, keys, new, |source, loaded| {
            taken.extend(&loaded.ids);
            take(source, loaded);
        })
        .await?;
        if vanished == 0 {
            break;
        }
    }
    Ok(())
}

/// Reads what was listed: joined runs of which all that they stand for was listed, and has not come yet, then the other
/// runs; returns how many of these have vanished.
///
/// # Errors
/// [`RepoError`].
pub async fn for_each_listed(
    read: &Store,
    keys: &Keys,
    listed: Listed,
    mut take: impl FnMut(Source, Loaded),
) -> Result<usize, RepoError> {
    let mut wanted: BTreeMap<RunId, u64> = listed.runs.into_iter().collect();
    if keys.can_read() {
        let joined = listed.joined.into_iter().map(|(id, bytes)| (Source::Joined(id), bytes)).collect();
        // One that has vanished or does not open says nothing: the runs do.
        for_each_of(read, keys, joined, |source, loaded| {
            if loaded.ids.iter().all(|id| wanted.contains_key(id)) {
                for id in &loaded.ids {
                    wanted.remove(id);
                }
                take(source, loaded);
            }
        })
        .await?;
    }
    let runs = wanted.into_iter().map(|(id, bytes)| (Source::Run(id), bytes)).collect();
    for_each_of(read, keys, runs, take).await
}

/// Reads runs, of which the lengths are known, and hands each over in their order; returns how many have vanished.
///
/// # Errors
/// [`RepoError`].
pub async fn for_each_of(
    read: &Store,
    keys: &Keys,
    sources: Vec<(Source, u64)>,
    mut take: impl FnMut(Source, Loaded),
) -> Result<usize, RepoError> {
    let (under_way, mut vanished) = (Semaphore::new(UNDER_WAY_KIB as usize), 0);
    let mut loads = futures::stream::iter(sources)
        .map(|(source, bytes)| {
            let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, UNDER_WAY_KIB);
            let room = under_way.acquire_many(kib);
            async move {
                let room = room.await;
                let loaded = match source {
                    Source::Run(id) => load_run(read, keys, id).await?,
                    Source::Joined(id) => load_joined(read, keys, id).await?,
                };
                Ok::<_, RepoError>((room, source, loaded))
            }
        })
        .buffered(FETCHES);
    while let Some((room, source, loaded)) = loads.try_next().await? {
        match loaded {
            Some(loaded) => take(source, loaded),
            None => vanished += 1,
        }
        drop(room);
    }
    Ok(vanished)
}

async fn load_run(store: &Store, keys: &Keys, id: RunId) -> Result<Option<Loaded>, RepoError> {
    let name = layout::run_name(id);
    let object = match store.get(&name, RUN_BYTES_MAX as u64).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        object => object?,
    };
    let run =
        IndexRun::open(&keys.index_key(), keys.kloset(), id, &object).map_err(|e| RepoError::damaged(&name, e))?;
    Ok(Some(Loaded { bytes: object.len() as u64, ids: vec![id], run }))
}

async fn load_joined(store: &Store, keys: &Keys, id: JoinedId) -> Result<Option<Loaded>, RepoError> {
    let object = match store.get(&layout::joined_name(id), JOINED_BYTES_MAX as u64).await {
        Err(StoreError::NotFound { .. } | StoreError::TooLarge { .. }) => return Ok(None),
        object => object?,
    };
    match joined::open(keys, id, &object) {
        Ok((ids, run)) => Ok(Some(Loaded { bytes: object.len() as u64, ids, run })),
        Err(error) => {
            tracing::debug!("{error}: the runs are read that it stands for");
            Ok(None)
        }
    }
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
pub struct Generation {
    /// The index.
    pub index: Arc<Index>,
    generation: u64,
}

#[derive(Default)]
struct State {
    loaded: Option<(Generation, i64)>,
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
    pub async fn newer(&self, tried: Option<&Generation>) -> Result<Option<Generation>, RepoError> {
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
            state.loaded = Some((Generation { index: index.clone(), generation }, unix_ms));
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
    let mut packs = HashSet::new();
    for object in store.list(layout::PENDING).await? {
        let Some(id) = layout::parse_pending(&object.name) else { continue };
        let content = match store.get(&object.name, PENDING_BYTES_MAX as u64).await {
            Err(StoreError::NotFound { .. }) => continue,
            content => content?,
        };
        let list = PendingList::open(&keys.index_key(), keys.kloset(), id, &content)
            .map_err(|e| RepoError::damaged(&object.name, e))?;
        packs.extend(list.packs());
    }
    Ok(packs)
}
