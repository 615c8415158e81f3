//! A cache bounded in bytes whose entries are loaded once however many ask at the same time.
//!
//! Nothing stale can be in it: objects are immutable. A failed load is forgotten, so the next read tries again; who had
//! joined a load that failed of the store tries again himself, since it began, and ended, on somebody else's time. A
//! load goes on as long as anybody waits for it.

use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;

use super::error::RepoError;

/// What a cached value weighs.
pub trait Weigh {
    /// Returns about how many bytes of memory the value takes.
    fn weight(&self) -> usize;
}

/// A limit of bytes that caches share, and of which somebody else may take a part.
#[derive(Debug)]
pub struct Limit {
    bytes: usize,
    taken: AtomicUsize,
}

impl Limit {
    /// Returns a limit of which nothing is taken.
    #[must_use]
    pub fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self { bytes, taken: AtomicUsize::new(0) })
    }

    /// Says how many bytes somebody else holds now; half of the limit stays with the caches.
    pub fn take(&self, bytes: usize) {
        self.taken.store(bytes.min(self.bytes / 2), Ordering::Relaxed);
    }

    /// Returns how many bytes are left to the caches.
    #[must_use]
    pub fn left(&self) -> usize {
        self.bytes - self.taken.load(Ordering::Relaxed)
    }
}

/// How much a cache may hold: eighths of a limit.
#[derive(Clone, Debug)]
pub struct Share(Arc<Limit>, usize);

impl Share {
    /// Returns `eighths` of what is left of a limit.
    #[must_use]
    pub fn of(limit: &Arc<Limit>, eighths: usize) -> Self {
        Self(limit.clone(), eighths)
    }

    /// Returns how many bytes that are now.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.left() / 8 * self.1
    }
}

impl From<usize> for Share {
    /// A cache that shares with nobody.
    fn from(bytes: usize) -> Self {
        Self::of(&Limit::new(bytes.saturating_mul(8)), 1)
    }
}

/// What was asked of a cache since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Answered from what was there or on its way.
    pub hits: u64,
    /// Loaded for who asked.
    pub misses: u64,
}

/// Counts what is asked of a cache.
#[derive(Debug, Default)]
pub(super) struct Tally {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Tally {
    /// Counts one question.
    pub(super) fn note(&self, is_hit: bool) {
        let counter = if is_hit { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> CacheCounts {
        CacheCounts { hits: self.hits.load(Ordering::Relaxed), misses: self.misses.load(Ordering::Relaxed) }
    }
}

type Loading<V> = Shared<BoxFuture<'static, Result<Arc<V>, RepoError>>>;

enum Slot<V> {
    Ready(Arc<V>),
    Loading(Loading<V>),
}

struct State<K: Hash + Eq, V> {
    slots: LruCache<K, Slot<V>>,
    bytes: usize,
}

/// The cache.
pub struct Cache<K: Hash + Eq, V> {
    state: Mutex<State<K, V>>,
    bytes_max: Share,
    tally: Tally,
}

impl<K: Hash + Eq + Clone, V: Weigh + Send + Sync + 'static> Cache<K, V> {
    /// Returns an empty cache of at most `bytes_max` bytes.
    #[must_use]
    pub fn new(bytes_max: impl Into<Share>) -> Self {
        let state = Mutex::new(State { slots: LruCache::unbounded(), bytes: 0 });
        Self { state, bytes_max: bytes_max.into(), tally: Tally::default() }
    }

    /// Returns what was asked of it so far.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        self.tally.read()
    }

    /// Returns the value if it is there.
    ///
    /// # Panics
    /// If a thread panicked while holding the cache.
    pub fn ready(&self, key: &K) -> Option<Arc<V>> {
        match self.state.lock().expect("no panic while held").slots.get(key) {
            Some(Slot::Ready(value)) => Some(value.clone()),
            _ => None,
        }
    }

    /// Returns the value, loading it if need be.
    ///
    /// # Errors
    /// What `load` returns.
    ///
    /// # Panics
    /// If a thread panicked while holding the cache.
    pub async fn get<F>(&self, key: K, load: impl FnOnce() -> F) -> Result<Arc<V>, RepoError>
    where
        F: Future<Output = Result<V, RepoError>> + Send + 'static,
    {
        let mut load = Some(load);
        loop {
            let (loading, joined) = {
                let mut state = self.state.lock().expect("no panic while held");
                match state.slots.get(&key) {
                    Some(Slot::Ready(value)) => {
                        self.tally.note(true);
                        return Ok(value.clone());
                    }
                    Some(Slot::Loading(loading)) => (loading.clone(), true),
                    None => {
                        let future = load.take().expect("a load of one's own is the last round")();
                        let loading = async move { future.await.map(Arc::new) }.boxed().shared();
                        state.slots.put(key.clone(), Slot::Loading(loading.clone()));
                        (loading, false)
                    }
                }
            };
            let result = loading.clone().await;
            self.settle(&key, &loading, &result);
            match result {
                // Begun before he asked, and given up when its own time was over: not yet his answer.
                Err(RepoError::Store(_)) if joined => {}
                result => {
                    self.tally.note(joined);
                    return result;
                }
            }
        }
    }

    /// Turns a finished load into a value; the first waiter to come does it, the others find it done.
    fn settle(&self, key: &K, loading: &Loading<V>, result: &Result<Arc<V>, RepoError>) {
        let mut state = self.state.lock().expect("no panic while held");
        if !matches!(state.slots.peek(key), Some(Slot::Loading(current)) if current.ptr_eq(loading)) {
            return;
        }
        match result {
            Err(_) => drop(state.slots.pop(key)),
            Ok(value) => {
                state.bytes += value.weight();
                state.slots.put(key.clone(), Slot::Ready(value.clone()));
                self.shrink(&mut state);
            }
        }
    }

    fn shrink(&self, state: &mut State<K, V>) {
        let mut loading = Vec::new();
        // What was loaded last stays even if it is over the bound by itself: somebody is about to use all of it.
        let bytes_max = self.bytes_max.bytes();
        while state.bytes > bytes_max && state.slots.len() > loading.len() + 1 {
            match state.slots.pop_lru() {
                Some((_, Slot::Ready(value))) => state.bytes -= value.weight(),
                Some((key, slot)) => loading.push((key, slot)),
                None => break,
            }
        }
        for (key, slot) in loading {
            state.slots.put(key, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    impl Weigh for Vec<u8> {
        fn weight(&self) -> usize {
            self.len()
        }
    }

    #[tokio::test]
    async fn many_askers_cause_one_load_and_a_failure_is_not_kept() {
        let cache = Cache::<u32, Vec<u8>>::new(100);
        let loads = Arc::new(AtomicUsize::new(0));
        let load = |ok: bool| {
            let loads = loads.clone();
            move || async move {
                loads.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                if ok { Ok(vec![1; 40]) } else { Err(RepoError::WriteOnly) }
            }
        };
        assert!(cache.get(1, load(false)).await.is_err());
        let all = futures::future::join_all((0..5).map(|_| cache.get(1, load(true)))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(loads.load(Ordering::Relaxed), 2);
        assert_eq!(cache.counts(), CacheCounts { hits: 4, misses: 2 });
    }

    #[tokio::test]
    async fn who_joined_a_load_that_the_store_failed_tries_himself() {
        let cache = Cache::<u32, Vec<u8>>::new(100);
        let first = cache.get(1, || async {
            tokio::task::yield_now().await;
            Err(crate::store::StoreError::NotFound { name: "x".into(), store: "s".into() }.into())
        });
        let second = cache.get(1, || async { Ok(vec![1]) });
        let (first, second) = futures::join!(first, second);
        assert!(first.is_err());
        assert_eq!(second.map(|value| value.len()).ok(), Some(1));
    }

    #[tokio::test]
    async fn the_least_recently_used_go_first_and_the_bound_holds() {
        let cache = Cache::<u32, Vec<u8>>::new(100);
        for key in [1, 2, 1, 3] {
            cache.get(key, || async { Ok(vec![0; 40]) }).await.unwrap();
        }
        assert!(cache.ready(&1).is_some() && cache.ready(&2).is_none() && cache.ready(&3).is_some());
        assert_eq!(cache.state.lock().unwrap().bytes, 80);
        cache.get(4, || async { Ok(vec![0; 400]) }).await.unwrap();
        assert!(cache.ready(&4).is_some() && cache.ready(&3).is_none());
    }

    #[tokio::test]
    async fn what_somebody_else_takes_of_a_limit_the_cache_gives_up_down_to_half() {
        let limit = Limit::new(160);
        let cache = Cache::<u32, Vec<u8>>::new(Share::of(&limit, 4));
        let load = || async { Ok(vec![0; 20]) };
        for (taken, bytes) in [(0, 80), (40, 60), (1000, 40), (0, 80)] {
            limit.take(taken);
            for key in 0..8 {
                cache.get(key, load).await.unwrap();
            }
            assert_eq!(cache.state.lock().unwrap().bytes, bytes, "{taken} taken");
        }
    }
}
