//! Bytes under names: the only door to a bucket or a folder.
//!
//! Promises that an object is put once and whole or not at all, that what `put_new` reported as
//! done survives a power cut, that a listing is complete and sorted, and that no answer is larger
//! than its caller allows. What is read may come through a cache on disk, if the caller gave one.
//! It does not know what the bytes mean, and it reads no environment.

mod ambient;
mod answer;
mod aws_http;
pub mod bucket;
mod bulk;
mod cache;
mod client;
mod counts;
pub mod doctor;
mod error;
mod fetch;
mod folder;
mod http;
mod keys;
mod limit;
mod location;
mod paced;
mod providers;
mod retry;
mod s3;
mod secret;
mod sign;
mod sse;
mod window;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutMode, PutOptions};

use answer::{classify, refuses_condition};
use bulk::{BULK_NAMES_MAX, Bulk};
use counts::Counters;
use limit::Limits;
use retry::Retries;
use sign::Signer;

pub use ambient::Ambient;
pub use bucket::Bucket;
pub use cache::{CacheKey, CacheOptions, DiskCache, DiskCacheCounts};
pub use client::Network;
pub use counts::StoreCounts;
pub use error::{Outage, Place, StoreError};
pub use keys::{KeyPair, ReadAgain};
pub use limit::{RATE_MIN, Rates};
pub use location::{LocationError, StoreLocation};
/// What is put, in pieces that follow one another: nobody has to copy them together.
pub use object_store::PutPayload as Pieces;
pub use retry::RetryOptions;
pub use s3::{Addressing, S3Options, ambient_keys_from};
pub use secret::Secret;
pub use sse::{Encryption, KINDS as ENCRYPTION_KINDS};

/// Objects deleted at once.
const DELETIONS: usize = 16;

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
    /// Objects that are not listed.
    hidden: Arc<HashSet<String>>,
    limits: Limits,
    retries: Arc<Retries>,
    /// Objects are put whole, so that what is put has to wait here.
    puts_whole: bool,
    /// Signs what is sent to a bucket.
    signer: Option<Arc<Signer>>,
    /// Class of storage for packs of content.
    content_class: Option<Arc<str>>,
    /// Deletes many objects at once.
    bulk: Option<Arc<Bulk>>,
}

/// How far a deletion of several objects came.
#[derive(Debug)]
pub struct Deleted {
    /// Whether each is gone, in their order.
    pub gone: Vec<bool>,
    /// The first failure; nothing was begun after it.
    pub failure: Option<StoreError>,
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
    /// Wraps an object store that is asked everything once; `description` is shown in errors, e.g. `s3://host/bucket/prefix`.
    pub fn new(inner: Arc<dyn ObjectStore>, description: String) -> Store {
        Store::with_counters(inner, description.into(), Arc::default())
    }

    fn with_counters(inner: Arc<dyn ObjectStore>, description: Arc<str>, counters: Arc<Counters>) -> Store {
        let (plain_puts, limits) = (Arc::default(), Limits::default());
        let retries = Arc::new(Retries::never(counters.clone()));
        Store {
            inner,
            description,
            counters,
            plain_puts,
            cache: None,
            is_dry: false,
            hidden: Arc::default(),
            limits,
            retries,
            puts_whole: false,
            signer: None,
            content_class: None,
            bulk: None,
        }
    }

    /// The same store, asked again where it fails; so is a bucket that is opened.
    #[must_use]
    pub fn with_retries(self, options: RetryOptions) -> Store {
        Store { retries: Arc::new(Retries::new(options, self.counters.clone())), ..self }
    }

    /// Opens a store for what is there already. Sends nothing to a bucket; a folder must exist.
    pub fn open(location: &StoreLocation, options: &S3Options) -> Result<Store, StoreError> {
        let description: Arc<str> = location.to_string().into();
        let counters: Arc<Counters> = Arc::default();
        let limits = Limits::new(options.rates);
        let store = match location {
            StoreLocation::Folder(folder) => {
                let inner = folder::open(folder, &description)?;
                Store { limits, puts_whole: true, ..Store::with_counters(inner, description, counters) }
            }
            StoreLocation::S3 { host, port, bucket, prefix } => {
                let at = s3::Bucket { host, port: *port, bucket, prefix };
                let s3::Opened { objects, deleting, signer } =
                    s3::open(&at, options, &description, &counters, &limits)?;
                let content_class = options.storage_class.as_deref().map(Into::into);
                let store = Store::with_counters(objects, description, counters);
                let bulk = Some(Arc::new(Bulk::new(deleting)));
                Store { limits, signer: Some(signer), content_class, bulk, ..store }
            }
        };
        Ok(store.with_retries(options.retry.clone()))
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

    /// The same store, but these objects are not listed.
    #[must_use]
    pub fn hiding(&self, names: HashSet<String>) -> Store {
        Store { hidden: Arc::new(names), ..self.clone() }
    }

    /// The store as shown to people, without secrets.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// What the store's own clock said in its last answer, to the second; `None` for folders, which have none of their own.
    pub fn date_unix_ms(&self) -> Option<i64> {
        self.counters.date_unix_ms()
    }

    /// The region that the bucket's server named, where it is another than was said.
    pub fn learned_region(&self) -> Option<String> {
        self.signer.as_ref()?.learned_region()
    }

    /// Tells whether an object is put whole and at once: written into a folder, not sent.
    pub fn puts_whole(&self) -> bool {
        self.puts_whole
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
        self.put(name, content.into(), Attributes::new()).await
    }

    /// Puts a pack of content as [`Store::put_new`] does, in the class of storage that is for these.
    pub async fn put_content(&self, name: &str, content: Pieces) -> Result<(), StoreError> {
        let class = self.content_class.as_deref();
        let class = class.map(|class| (Attribute::StorageClass, class.to_owned()));
        self.put(name, content, class.into_iter().collect()).await
    }

    async fn put(&self, name: &str, content: Pieces, attributes: Attributes) -> Result<(), StoreError> {
        let path = self.path("writing", name)?;
        if self.is_dry {
            return Ok(());
        }
        self.counters.put(content.content_length());
        let mut tries = self.retries.begin();
        loop {
            let outcome = {
                let _slot = limit::slot(&self.limits.up).await;
                let _turn = tries.turn().await;
                self.put_once((name, &path), &content, &attributes).await
            };
            if tries.judge(outcome).await?.is_some() {
                return Ok(());
            }
        }
    }

    async fn put_once(
        &self,
        (name, path): (&str, &Path),
        content: &Pieces,
        attributes: &Attributes,
    ) -> Result<(), StoreError> {
        if self.puts_whole {
            limit::pass(&self.limits.up, content.content_length()).await;
        }
        let mut have_met = false;
        loop {
            let plain = self.plain_puts.load(Ordering::Relaxed);
            if plain && let Some(same) = self.holds(name, content).await? {
                return if same { Ok(()) } else { Err(self.taken(name)) };
            }
            let mode = if plain { PutMode::Overwrite } else { PutMode::Create };
            let options = PutOptions { mode, attributes: attributes.clone(), ..PutOptions::default() };
            match self.inner.put_opts(path, content.clone(), options).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. }) => {
                    match self.holds(name, content).await? {
                        Some(true) => return Ok(()),
                        Some(false) => return Err(self.taken(name)),
                        None if have_met => return Err(self.contested(name)),
                        None => have_met = true, // two puts met and neither won: once more
                    }
                }
                Err(error) if !plain && refuses_condition(&error) => {
                    tracing::debug!(store = %self.description, "no create-if-absent, putting plainly");
                    self.plain_puts.store(true, Ordering::Relaxed);
                }
                Err(error) => return Err(classify(self.place("writing", name), error)),
            }
        }
    }

    /// Reads a whole object of at most `bytes_max` bytes; a longer one is not buffered.
    pub async fn get(&self, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        match &self.cache {
            Some(cache) => self.get_cached(cache, name, bytes_max).await,
            None => self.fetch(name, bytes_max).await,
        }
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

    /// Deletes an object; one that is not there is deleted already.
    pub async fn delete(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path("deleting", name)?;
        self.counters.delete();
        let mut tries = self.retries.begin();
        loop {
            let outcome = {
                let _turn = tries.turn().await;
                self.inner.delete(&path).await.map_err(|error| classify(self.place("deleting", name), error))
            };
            let outcome = match outcome {
                Err(StoreError::NotFound { .. }) => Ok(()),
                outcome => outcome,
            };
            if tries.judge(outcome).await?.is_some() {
                return Ok(());
            }
        }
    }

    /// Deletes objects, several at once; those that are not there are deleted already.
    ///
    /// # Errors
    /// The first failure: nothing was begun after it.
    pub async fn delete_all(&self, names: &[String]) -> Result<(), StoreError> {
        self.delete_each(names).await.failure.map_or(Ok(()), Err)
    }

    /// Deletes objects as [`Store::delete_all`] does, and tells how far it came; those under way at a failure are waited for,
    /// so that what it tells is so.
    pub async fn delete_each(&self, names: &[String]) -> Deleted {
        let mut gone = Vec::with_capacity(names.len());
        let mut failure = None;
        for names in names.chunks(BULK_NAMES_MAX) {
            let mut here = self.delete_in_bulk(names).await.unwrap_or_else(|| vec![false; names.len()]);
            failure = self.delete_singly(names, &mut here).await;
            gone.append(&mut here);
            if failure.is_some() {
                break;
            }
        }
        gone.resize(names.len(), false);
        Deleted { gone, failure }
    }

    /// Deletes those of the objects that are not gone yet, and notes which are then; returns the first failure.
    async fn delete_singly(&self, names: &[String], gone: &mut [bool]) -> Option<StoreError> {
        let left: Vec<usize> = (0..names.len()).filter(|at| !gone[*at]).collect();
        let has_failed = &AtomicBool::new(false);
        let deletions = left.into_iter().map(|at| async move {
            if has_failed.load(Ordering::Relaxed) {
                return (at, None);
            }
            let deleted = self.delete(&names[at]).await;
            has_failed.fetch_or(deleted.is_err(), Ordering::Relaxed);
            (at, Some(deleted))
        });
        let (mut deletions, mut failure) = (futures::stream::iter(deletions).buffered(DELETIONS), None);
        while let Some((at, deleted)) = deletions.next().await {
            match deleted {
                None => {}
                Some(Ok(())) => gone[at] = true,
                Some(Err(error)) => drop(failure.get_or_insert(error)),
            }
        }
        failure
    }

    /// About how many requests it takes to delete so many objects.
    pub fn deletions_for(&self, objects: u64) -> u64 {
        match self.bulk() {
            Some(_) => objects.div_ceil(BULK_NAMES_MAX as u64),
            None => objects,
        }
    }

    fn bulk(&self) -> Option<&Bulk> {
        self.bulk.as_deref().filter(|bulk| bulk.is_there())
    }

    /// Sends one request for all of these; tells which are gone, or nothing where it came to nothing.
    async fn delete_in_bulk(&self, names: &[String]) -> Option<Vec<bool>> {
        let bulk = self.bulk().filter(|_| names.len() > 1)?;
        let paths: Vec<Path> = names.iter().map(|name| self.path("deleting", name)).collect::<Result<_, _>>().ok()?;
        self.counters.delete();
        let answer = {
            let _turn = self.retries.begin().turn().await;
            bulk.delete(&paths).await
        };
        let failed = |error| {
            let error = classify(self.place("deleting", &names[0]), error);
            tracing::debug!("not deleted at once, but one by one: {error}");
            if error.outage().is_none() {
                bulk.refuse();
            }
        };
        answer.map_err(failed).ok()
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

    /// Two puts met and neither has won yet, or the store says so of what it does not show.
    fn contested(&self, name: &str) -> StoreError {
        let detail = "the store says that the object is there, and has none".to_owned();
        self.unreachable("writing", name, Outage::Failing, detail)
    }

    fn unreachable(&self, operation: &'static str, name: &str, why: Outage, detail: String) -> StoreError {
        let (at, source) = (Box::new(self.place(operation, name)), detail.clone().into());
        StoreError::Unreachable { at, why, detail, source }
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
