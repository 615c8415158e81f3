//! A cache on disk below the store: what came from there is kept as it came.
//!
//! Promises that what it returns under a name is what the store returned under that name, or nothing: every entry has a
//! keyed digest over its name, place and content. Promises that it takes at most its bound, over all processes that
//! share it; that it never waits for a lock nor makes anybody wait for a write; and that without it everything works the
//! same, only slower. Whole objects are favoured over pieces. It does not know what the bytes mean; that an object never
//! changes is what makes it right.

mod entry;
mod folder;
mod keeper;
mod pieces;
mod sweep;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Sender, bounded};

use entry::{Entry, PIECE_BYTES, Slot, TRAILER_BYTES};
use folder::Folder;
use keeper::{Job, Keeper, PAUSE};

pub use entry::CacheKey;

use super::{Store, StoreError};

/// Bytes that wait to be written at most; what comes when the disk is so far behind is not kept.
const WAITING_BYTES_MAX: u64 = 32 << 20;
/// Entries that wait to be written at most.
const WAITING_MAX: usize = 1024;
/// A disk that has not answered after this is slower than any store.
const READ_WAIT: Duration = Duration::from_secs(2);

/// Where a cache is and how large it may become.
#[derive(Clone, Debug)]
pub struct CacheOptions {
    /// The folder, which several klosets and processes may share; made when something is first kept.
    pub folder: PathBuf,
    /// Bytes that it takes at most, over all who share it.
    pub bytes_max: u64,
}

/// What was looked for in a cache since it was opened; a piece of an object counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCacheCounts {
    /// What was there.
    pub hits: u64,
    /// What was not, or not to be believed.
    pub misses: u64,
    /// Bytes of what was there.
    pub bytes: u64,
}

/// A cache of one store's objects; cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskCache {
    inner: Arc<Inner>,
    keeps: bool,
}

#[derive(Debug)]
struct Inner {
    folder: Arc<Folder>,
    key: CacheKey,
    jobs: Sender<Job>,
    waiting: Arc<AtomicU64>,
    /// Reads are not tried before then: the disk hangs.
    stalled_until: Mutex<Option<Instant>>,
    has_warned: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    hit_bytes: AtomicU64,
}

impl DiskCache {
    /// Returns the cache of the store called `space`, whose entries are believed by `key`. Nothing is touched on disk.
    ///
    /// # Errors
    /// What the system says where it cannot start a thread.
    pub fn new(options: &CacheOptions, space: &str, key: CacheKey) -> std::io::Result<Self> {
        let folder = Arc::new(Folder::new(&options.folder, space));
        let (jobs, taken) = bounded(WAITING_MAX);
        let waiting = Arc::<AtomicU64>::default();
        let keeper = Keeper {
            folder: folder.clone(),
            key: key.clone(),
            bytes_max: options.bytes_max,
            waiting: waiting.clone(),
            paused_until: None,
            has_told: false,
        };
        std::thread::Builder::new().name("cache".to_owned()).spawn(move || keeper.run(&taken))?;
        let (stalled_until, has_warned) = (Mutex::default(), AtomicBool::new(false));
        let (hits, misses, hit_bytes) = Default::default();
        let inner = Inner { folder, key, jobs, waiting, stalled_until, has_warned, hits, misses, hit_bytes };
        Ok(Self { inner: Arc::new(inner), keeps: true })
    }

    /// Returns what was looked for in it by this process so far.
    #[must_use]
    pub fn counts(&self) -> DiskCacheCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskCacheCounts { hits: of(&self.inner.hits), misses: of(&self.inner.misses), bytes: of(&self.inner.hit_bytes) }
    }

    /// Waits until what was to be kept is written, but no longer than `wait`.
    pub fn finish(&self, wait: Duration) {
        let (done, is_done) = bounded(1);
        let until = Instant::now() + wait;
        if self.inner.jobs.send_timeout(Job::Finish(done), wait).is_ok() {
            let _ = is_done.recv_deadline(until);
        }
    }

    /// Removes what is kept of an object, before anything of it is kept again.
    pub async fn forget(&self, object: &str) {
        let (jobs, object) = (self.inner.jobs.clone(), object.to_owned());
        let sent = tokio::task::spawn_blocking(move || jobs.send_timeout(Job::Forget(object), READ_WAIT));
        let _ = sent.await;
    }

    /// Returns the whole object if it is kept.
    async fn whole(&self, object: &str, bytes_max: u64) -> Option<Bytes> {
        let slot = Slot { object: object.to_owned(), piece: None };
        let entry = self.off_thread(move |inner| inner.read(&slot, bytes_max)).await.flatten();
        self.count(entry.as_ref());
        Some(entry?.content)
    }

    /// Returns those of the pieces `first..=last` that are kept.
    async fn pieces(&self, object: &str, first: u32, last: u32) -> Vec<Option<Entry>> {
        let object = object.to_owned();
        let read = move |inner: &Inner| {
            let slot = |number| Slot { object: object.clone(), piece: Some(number) };
            (first..=last).map(|number| inner.read(&slot(number), PIECE_BYTES)).collect::<Vec<_>>()
        };
        let pieces = self.off_thread(read).await.unwrap_or_else(|| (first..=last).map(|_| None).collect());
        pieces.iter().for_each(|piece| self.count(piece.as_ref()));
        pieces
    }

    fn count(&self, found: Option<&Entry>) {
        let Some(entry) = found else {
            self.inner.misses.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.inner.hits.fetch_add(1, Ordering::Relaxed);
        self.inner.hit_bytes.fetch_add(entry.content.len() as u64, Ordering::Relaxed);
    }

    /// Keeps an entry when there is time for it; never waits.
    fn keep(&self, slot: Slot, entry: Entry) {
        if !self.keeps {
            return;
        }
        let bytes = entry.content.len() as u64;
        if self.inner.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes > WAITING_BYTES_MAX
            || self.inner.jobs.try_send(Job::Keep(slot, entry)).is_err()
        {
            self.inner.waiting.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// Looks at the disk in a thread that may wait for it; `None` where it does not answer.
    async fn off_thread<T: Send + 'static>(&self, look: impl FnOnce(&Inner) -> T + Send + 'static) -> Option<T> {
        let stalled_until = *self.inner.stalled_until.lock().expect("no panic while held");
        if stalled_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let inner = self.inner.clone();
        match tokio::time::timeout(READ_WAIT, tokio::task::spawn_blocking(move || look(&inner))).await {
            Ok(looked) => looked.ok(),
            Err(_) => {
                tracing::info!("the cache {:?} does not answer", self.inner.folder.top);
                *self.inner.stalled_until.lock().expect("no panic while held") = Some(Instant::now() + PAUSE);
                None
            }
        }
    }
}

impl Inner {
    /// Reads an entry; what is there and cannot be believed is removed.
    fn read(&self, slot: &Slot, bytes_max: u64) -> Option<Entry> {
        let name = entry::file_name(&self.key, slot);
        let file = match self.folder.read(&name, bytes_max.saturating_add(TRAILER_BYTES as u64)) {
            Ok(file) => file?,
            Err(error) => {
                tracing::debug!("the cache {:?} cannot be read: {error}", self.folder.top);
                return None;
            }
        };
        let opened = entry::open(&self.key, slot, file);
        if opened.is_none() {
            self.folder.remove(&name);
            if !self.has_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!("damaged entries in the cache {:?} are fetched again", self.folder.top);
            }
        }
        opened
    }
}

impl Store {
    /// Returns this store with a cache for what is read.
    #[must_use]
    pub fn with_cache(&self, cache: DiskCache) -> Store {
        Store { cache: Some(cache), ..self.clone() }
    }

    /// Returns this store without a cache: all that is read comes from there.
    #[must_use]
    pub fn without_cache(&self) -> Store {
        Store { cache: None, ..self.clone() }
    }

    /// Returns this store with a cache that is read as it is: what comes from the store now is not kept.
    #[must_use]
    pub fn keeping_nothing(&self) -> Store {
        let cache = self.cache.as_ref().map(|cache| DiskCache { keeps: false, ..cache.clone() });
        Store { cache, ..self.clone() }
    }

    /// Its cache, if it has one.
    pub fn cache(&self) -> Option<&DiskCache> {
        self.cache.as_ref()
    }

    /// Reads a whole object from the cache, else from the store, and keeps it.
    pub(super) async fn get_cached(&self, cache: &DiskCache, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        if let Some(content) = cache.whole(name, bytes_max).await {
            return Ok(content);
        }
        let content = self.fetch(name, bytes_max).await?;
        let entry = Entry { end: Some(content.len() as u64), content: content.clone() };
        cache.keep(Slot { object: name.to_owned(), piece: None }, entry);
        Ok(content)
    }
}

#[cfg(test)]
mod tests;
