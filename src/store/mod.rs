//! Bytes under names: the only door to a bucket or a folder.
//!
//! Promises that an object is put once and whole or not at all, that what `put_new` reported as
//! done survives a power cut, that a listing is complete and sorted, and that no answer is larger
//! than its caller allows. What is read may come through a cache on disk, if the caller gave one.
//! It does not know what the bytes mean, and it reads no environment.

mod answer;
pub mod bucket;
mod cache;
mod counts;
mod error;
mod folder;
mod http;
mod limit;
mod location;
mod paced;
mod s3;
mod secret;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use answer::{classify, is_range_refusal, refuses_condition};
use counts::Counters;
use limit::Limits;

pub use bucket::Bucket;
pub use cache::{CacheKey, CacheOptions, DiskCache, DiskCacheCounts};
pub use counts::StoreCounts;
pub use error::{Outage, Place, StoreError};
pub use limit::{RATE_MIN, Rates};
pub use location::{LocationError, StoreLocation};
pub use s3::{AMBIENT_VARIABLES, Addressing, S3Options};
pub use secret::Secret;

/// A bucket with a prefix, or a folder. Clones share connections and counters.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    description: Arc<str>,
    counters: Arc<Counters>,
    /// Set once the store has refused create-if-absent: puts then look first.
    plain_puts: Arc<AtomicBool>,
    /// What is read is kept there.
    cache: Option<DiskCache>,
    /// Puts are said to be done and are not.
    is_dry: bool,
    limits: Limits,
    /// Objects are put whole, so that what is put has to wait here.
    puts_whole: bool,
}

/// One line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Name relative to the store's prefix.
    pub name: String,
    /// Length.
    pub bytes: u64,
    /// When it was put, by the clock of the store.
    pub modified_unix_ms: i64,
}

impl Store {
    /// Wraps an object store; `description` is shown in errors, e.g. `s3://host/bucket/prefix`.
    pub fn new(inner: Arc<dyn ObjectStore>, description: String) -> Store {
        Store::with_counters(inner, description.into(), Arc::default())
    }

    fn with_counters(inner: Arc<dyn ObjectStore>, description: Arc<str>, counters: Arc<Counters>) -> Store {
        let (plain_puts, limits) = (Arc::default(), Limits::default());
        Store { inner, description, counters, plain_puts, cache: None, is_dry: false, limits, puts_whole: false }
    }

    /// Opens a store for what is there already. Sends nothing to a bucket; a folder must exist.
    pub fn open(location: &StoreLocation, options: &S3Options) -> Result<Store, StoreError> {
        let description: Arc<str> = location.to_string().into();
        let counters: Arc<Counters> = Arc::default();
        let limits = Limits::new(options.rates);
        let inner = match location {
            StoreLocation::Folder(folder) => folder::open(folder, &description)?,
            StoreLocation::S3 { host, port, bucket, prefix } => {
                let at = s3::Bucket { host, port: *port, bucket, prefix };
                s3::open(&at, options, &description, &counters, &limits)?
            }
        };
        let puts_whole = matches!(location, StoreLocation::Folder(_));
        Ok(Store { limits, puts_whole, ..Store::with_counters(inner, description, counters) })
    }

    /// Opens a store to create a kloset in it: a missing folder is made, readable by its owner only.
    pub fn open_or_create_folder(location: &StoreLocation, options: &S3Options) -> Result<Store, StoreError> {
        if let StoreLocation::Folder(folder) = location {
            folder::create(folder, &location.to_string().into())?;
        }
        Store::open(location, options)
    }

    /// The same store, but what is put is not.
    #[must_use]
    pub fn without_puts(&self) -> Store {
        Store { is_dry: true, ..self.clone() }
    }

    /// Whether what is put is not.
    pub fn is_dry(&self) -> bool {
        self.is_dry
    }

    /// The store as shown to people, without secrets.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What the store's own clock said in its last answer, to the second; `None` for folders, which have none of their own.
    pub fn date_unix_ms(&self) -> Option<i64> {
        self.counters.date_unix_ms()
    }

    /// What was asked of this store and its clones so far.
    pub fn counts(&self) -> StoreCounts {
        self.counters.read()
    }

    /// Puts an object under a name that is not taken.
    ///
    /// An object of that name with the same content counts as put: it is our own, whose answer was
    /// lost on the way. On return it is durable.
    pub async fn put_new(&self, name: &str, content: Bytes) -> Result<(), StoreError> {
        const ATTEMPTS_MAX: usize = 3; // one without the condition, one after a lost race
        let at = || self.place("writing", name);
        let path = self.path("writing", name)?;
        if self.is_dry {
            return Ok(());
        }
        let _slot = limit::slot(&self.limits.up).await;
        if self.puts_whole {
            limit::pass(&self.limits.up, content.len()).await;
        }
        self.counters.put(content.len());
        for _ in 0..ATTEMPTS_MAX {
            let plain = self.plain_puts.load(Ordering::Relaxed);
            if plain && let Some(same) = self.holds(name, &content).await? {
                return if same { Ok(()) } else { Err(self.taken(name)) };
            }
            let mode = if plain { PutMode::Overwrite } else { PutMode::Create };
            let options = PutOptions::from(mode);
            match self.inner.put_opts(&path, content.clone().into(), options).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. }) => {
                    match self.holds(name, &content).await? {
                        Some(true) => return Ok(()),
                        Some(false) => return Err(self.taken(name)),
                        None => {} // two puts met and neither won: once more
                    }
                }
                Err(error) if !plain && refuses_condition(&error) => {
                    tracing::debug!(store = %self.description, "no create-if-absent, putting plainly");
                    self.plain_puts.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(classify(at(), error)),
            }
        }
        Err(self.taken(name))
    }

    /// Reads a whole object of at most `bytes_max` bytes; a longer one is not buffered.
    pub async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        match &self.cache {
            Some(cache) => self.get_cached(cache, name, bytes_max).await,
            None => self.fetch(name, bytes_max).await,
        }
    }

    /// Reads a whole object from the store itself.
    async fn fetch(&self, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        let path = self.path("reading", name)?;
        let _slot = limit::slot(&self.limits.down).await;
        self.counters.get();
        let result = self.inner.get_opts(&path, GetOptions::default()).await;
        let result = result.map_err(|error| classify(self.place("reading", name), error))?;
        if result.meta.size > bytes_max {
            return Err(self.too_large(name, bytes_max));
        }
        self.collect(name, result, bytes_max).await
    }

    /// Reads a part of an object; a range over its end is cut there.
    ///
    /// An empty range gives no bytes and asks nothing; one that begins at or behind the end is
    /// [`StoreError::OutOfRange`].
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        match &self.cache {
            Some(cache) => self.get_range_cached(cache, name, range).await,
            None => self.fetch_range(name, range).await,
        }
    }

    /// Reads a part of an object from the store itself.
    async fn fetch_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = self.path("reading", name)?;
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        let _slot = limit::slot(&self.limits.down).await;
        self.counters.get();
        let options = GetOptions::new().with_range(Some(range.clone()));
        match self.inner.get_opts(&path, options).await {
            Ok(result) => self.collect(name, result, range.end - range.start).await,
            Err(error) if is_range_refusal(&error) => match self.inner.head(&path).await {
                Ok(meta) if meta.size <= range.start => Err(self.out_of_range(name, range.start, meta.size)),
                _ => Err(classify(self.place("reading", name), error)),
            },
            Err(error) => Err(classify(self.place("reading", name), error)),
        }
    }

    /// Lists all objects below a folder like `packs`, or everything for `""`, sorted by name.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let path = self.path("listing", prefix)?;
        self.counters.list();
        let folder = (!prefix.is_empty()).then_some(&path);
        let mut objects: Vec<ObjectInfo> = self
            .inner
            .list(folder)
            .map_ok(|meta| ObjectInfo {
                name: meta.location.to_string(),
                bytes: meta.size,
                modified_unix_ms: meta.last_modified.timestamp_millis(),
            })
            .try_collect()
            .await
            .map_err(|error| classify(self.place("listing", prefix), error))?;
        objects.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(objects)
    }

    /// Deletes an object; one that is not there is deleted already.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path("deleting", name)?;
        self.counters.delete();
        match self.inner.delete(&path).await {
            Ok(()) => Ok(()),
            Err(error) => match classify(self.place("deleting", name), error) {
                StoreError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
    }

    /// Deletes objects, several at once; those that are not there are deleted already.
    ///
    /// All are tried; a failure is told at the end.
    pub async fn delete_all(&self, names: &[String]) -> Result<(), StoreError> {
        let paths: Vec<_> = names.iter().map(|name| self.path("deleting", name)).collect::<Result<_, _>>()?;
        paths.iter().for_each(|_| self.counters.delete());
        let mut failure = None;
        let mut deleted = self.inner.delete_stream(futures::stream::iter(paths).map(Ok).boxed());
        while let Some(outcome) = deleted.next().await {
            if let Err(error) = outcome {
                match classify(self.place("deleting", ""), error) {
                    StoreError::NotFound { .. } => {}
                    error => drop(failure.get_or_insert(error)),
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Whether the object of that name has this content; `None` where there is none.
    async fn holds(&self, name: &str, content: &Bytes) -> Result<Option<bool>, StoreError> {
        match self.fetch(name, content.len() as u64).await {
            Ok(found) => Ok(Some(found == *content)),
            Err(StoreError::TooLarge { .. }) => Ok(Some(false)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn collect(&self, name: &str, result: GetResult, bytes_max: u64) -> Result<Bytes, StoreError> {
        let failed = |error| classify(self.place("reading", name), error);
        let length = result.range.end - result.range.start;
        if matches!(result.payload, GetResultPayload::File(..)) && length <= bytes_max {
            // One read: as a stream a file comes 8 KiB at a time, each by a thread of its own.
            let content = result.bytes().await.map_err(failed)?;
            self.arrived(content.len()).await;
            self.counters.received(content.len());
            return Ok(content);
        }
        let expected = usize::try_from(length).unwrap_or(0);
        let mut stream = result.into_stream();
        let first = stream.try_next().await.map_err(failed)?.unwrap_or_default();
        self.arrived(first.len()).await;
        let mut rest = BytesMut::new();
        while let Some(part) = stream.try_next().await.map_err(failed)? {
            self.arrived(part.len()).await;
            if rest.is_empty() {
                rest.reserve(expected);
                rest.extend_from_slice(&first);
            }
            if (rest.len() + part.len()) as u64 > bytes_max {
                return Err(self.too_large(name, bytes_max));
            }
            rest.extend_from_slice(&part);
        }
        let content = if rest.is_empty() { first } else { rest.freeze() };
        if content.len() as u64 > bytes_max {
            return Err(self.too_large(name, bytes_max));
        }
        self.counters.received(content.len());
        Ok(content)
    }

    /// Counts a part of an answer; waits until the next one may be taken.
    async fn arrived(&self, bytes: usize) {
        self.counters.passed(bytes);
        limit::pass(&self.limits.down, bytes).await;
    }

    fn path(&self, operation: &'static str, name: &str) -> Result<Path, StoreError> {
        let failed = |source| classify(self.place(operation, name), object_store::Error::InvalidPath { source });
        Path::parse(name).map_err(failed)
    }

    fn place(&self, operation: &'static str, name: &str) -> Place {
        Place { operation, name: name.to_owned(), store: self.description.clone() }
    }

    fn taken(&self, name: &str) -> StoreError {
        StoreError::AlreadyExists { name: name.to_owned(), store: self.description.clone() }
    }

    fn out_of_range(&self, name: &str, start: u64, bytes: u64) -> StoreError {
        let (name, store) = (name.to_owned(), self.description.clone());
        StoreError::OutOfRange { name, store, start, bytes }
    }

    fn too_large(&self, name: &str, bytes_max: u64) -> StoreError {
        let (name, store) = (name.to_owned(), self.description.clone());
        StoreError::TooLarge { name, store, bytes_max }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
