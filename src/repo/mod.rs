//! The kloset: the format, and the files that join it to the store.
//!
//! [`Repo`] is an opened kloset. Pure files take bytes and return values: [`id`], [`layout`], [`crypto`], [`keyslot`],
//! [`bucket_names`], [`header`], [`compress`], [`chunker`], [`sealed`], [`pack`], [`index`], [`tree`], [`snapshot`],
//! [`pending`], [`moved`], [`policy`]. The others join them to the store: [`reader`], [`writer`], [`lookup`], [`check`],
//! [`repair`], [`forget`], [`prune`], [`emptied`], [`slots`], [`standing`]. Nothing here prints, mounts or walks folders.

mod aead;
pub mod blocks;
pub mod bucket_names;
pub mod builder;
pub mod cache;
pub mod check;
pub mod chunker;
pub mod compress;
pub mod content_id;
pub mod crypto;
pub mod diff;
pub mod distinct;
pub mod emptied;
pub mod error;
pub mod find;
pub mod forget;
pub mod header;
pub mod id;
pub mod index;
pub mod joined;
pub mod keyslot;
pub mod layout;
pub mod lookup;
mod merge;
mod messagepack;
pub mod moved;
pub mod pack;
pub mod paper;
pub mod path;
pub mod pattern;
pub mod pending;
mod places;
pub mod policy;
pub mod prune;
pub mod reader;
pub mod repair;
mod replica;
pub mod runs;
pub mod sealed;
pub mod slots;
pub mod snapshot;
pub mod standing;
pub mod tree;
mod tree_wire;
pub mod usage;
pub mod versions;
pub mod wanted;
pub mod writer;

use std::collections::HashSet;
use std::sync::Arc;

use crate::cpu::Cpu;
use crate::env::Env;
use crate::store::{CacheOptions, DiskCache, Store, StoreError};
use crypto::{Keys, Secret};
use futures::StreamExt;
use header::{ChunkerSettings, CompressionSettings, HEADER_BYTES_MAX, Header};
use id::KlosetId;
use joined::JOIN_RUNS_DEFAULT;
use keyslot::{ARGON2_RECOMMENDED, Argon2, KeySlot, NewSlot, SlotSecret};
use layout::SnapshotName;
use snapshot::{MANIFEST_BYTES_MAX, Manifest};

pub use error::RepoError;
pub use reader::Reader;

/// Bytes that the caches of a reader take unless told otherwise.
pub const READER_BYTES_DEFAULT: usize = 128 << 20;
/// Manifests fetched at once.
const FETCHES: usize = 16;

/// An opened kloset; cheap to clone.
#[derive(Clone)]
pub struct Repo {
    /// Its objects, as the store has them.
    pub store: Store,
    /// The same for readers, perhaps through a cache on disk.
    cached: Store,
    /// Its keys.
    pub keys: Arc<Keys>,
    /// Its header, believed.
    pub header: Arc<Header>,
    /// Clock, randomness, parallelism.
    pub env: Env,
    /// Where sealing and opening happen.
    pub cpu: Cpu,
    /// So many short index runs are joined by a writer that has read them.
    pub join_runs: usize,
}

/// How a new kloset is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// How files are cut.
    pub chunker: ChunkerSettings,
    /// How frames are compressed.
    pub compression: CompressionSettings,
    /// What a passphrase costs.
    pub argon2: Argon2,
    /// Label of the first key slot.
    pub label: String,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            chunker: ChunkerSettings::default(),
            compression: CompressionSettings::default(),
            argon2: ARGON2_RECOMMENDED,
            label: String::new(),
        }
    }
}

impl Repo {
    /// Makes a new kloset: a key slot, then the header.
    ///
    /// # Errors
    /// [`RepoError::KlosetExists`], or what the store says.
    pub async fn create(
        store: Store,
        secret: &SlotSecret,
        options: &CreateOptions,
        env: Env,
        cpu: Cpu,
    ) -> Result<Self, RepoError> {
        match store.get(layout::HEADER, HEADER_BYTES_MAX).await {
            Ok(_) => return Err(RepoError::KlosetExists(store.description().to_owned())),
            Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let (kloset, master) = (KlosetId(env.entropy.bytes()), Secret::random(&env.entropy));
        let keys = Keys::from_master(kloset, &master);
        let new = NewSlot { secret, cost: options.argon2, label: &options.label };
        let slot = KeySlot::full(kloset, &master, &new, &env)?;
        let header = Header::new(&keys, options.chunker, options.compression, &env)?;
        let slot_name = layout::slot_name(slot.id);
        store.put_new(&slot_name, slot.encode().into()).await?;
        if !put_header(&store, header.encode().into()).await? {
            store.delete(&slot_name).await?;
            return Err(RepoError::KlosetExists(store.description().to_owned()));
        }
        Ok(Self::of(store, (keys, header), env, cpu))
    }

    /// Opens a kloset: the header, the listing of key slots and the slots themselves.
    ///
    /// # Errors
    /// [`RepoError::NoKloset`], [`RepoError::WrongSecret`], [`RepoError::Header`], or what the store says.
    pub async fn open(store: Store, secret: &SlotSecret, env: Env, cpu: Cpu) -> Result<Self, RepoError> {
        let (header, fetched) = header_and_slots(&store).await?;
        let (_, keys) = slots::open(&slots::decode(&fetched, header.id), secret, &cpu).await?;
        header.verify(&keys)?;
        Ok(Self::of(store, (keys, header), env, cpu))
    }

    fn of(store: Store, (keys, header): (Keys, Header), env: Env, cpu: Cpu) -> Self {
        let (cached, keys, header) = (store.clone(), keys.into(), header.into());
        Self { store, cached, keys, header, env, cpu, join_runs: JOIN_RUNS_DEFAULT }
    }

    /// Returns this kloset with a cache on disk for what readers fetch: packs and manifests. Listings, the header and
    /// key slots always come from the store, and so does what a writer looks at.
    ///
    /// # Errors
    /// What the system says where it cannot start the cache's thread.
    pub fn with_cache(&self, options: &CacheOptions) -> std::io::Result<Self> {
        let cache = DiskCache::new(options, &self.header.id.to_string(), self.keys.cache_key())?;
        Ok(Self { cached: self.store.with_cache(cache), ..self.clone() })
    }

    /// Returns this kloset without a cache on disk: for who wants to know what the store has.
    #[must_use]
    pub fn without_cache(&self) -> Self {
        Self { cached: self.store.clone(), ..self.clone() }
    }

    /// Returns this kloset with a store that says it puts and does not: for who wants to know what would be put.
    #[must_use]
    pub fn without_puts(&self) -> Self {
        Self { store: self.store.without_puts(), ..self.clone() }
    }

    /// Returns this kloset without some objects: for who works although they cannot be read.
    #[must_use]
    fn hiding(&self, names: HashSet<String>) -> Self {
        let store = self.store.hiding(names);
        Self { cached: store.clone(), store, ..self.clone() }
    }

    /// Returns the cache on disk, if there is one.
    #[must_use]
    pub fn cache(&self) -> Option<&DiskCache> {
        self.cached.cache()
    }

    /// Returns a reader whose caches take at most about `memory_bytes`.
    #[must_use]
    pub fn reader(&self, memory_bytes: usize) -> Reader {
        Reader::new(self, memory_bytes)
    }

    /// Lists the snapshots, oldest first: one listing, nothing is opened.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn snapshots(&self) -> Result<Vec<SnapshotName>, RepoError> {
        let objects = self.store.list(layout::SNAPSHOTS).await?;
        Ok(objects.iter().filter_map(|o| SnapshotName::parse(&o.name)).collect())
    }

    /// Reads a snapshot's manifest.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn manifest(&self, name: SnapshotName) -> Result<Manifest, RepoError> {
        match (self.manifest_from(&self.cached, name).await, self.cache()) {
            // The store may have had bad bytes when they were kept, and better ones now.
            (Err(RepoError::Damaged { .. }), Some(cache)) => {
                cache.forget(&name.object()).await;
                self.manifest_from(&self.store, name).await
            }
            (manifest, _) => manifest,
        }
    }

    async fn manifest_from(&self, store: &Store, name: SnapshotName) -> Result<Manifest, RepoError> {
        let object = match store.get(&name.object(), MANIFEST_BYTES_MAX as u64).await {
            Err(StoreError::NotFound { .. }) => return Err(RepoError::NoSnapshot(name.id.to_string())),
            object => object?,
        };
        if !self.keys.can_read() {
            return Err(RepoError::WriteOnly);
        }
        Manifest::open(&self.keys, name, &object).map_err(|e| RepoError::damaged(name.object(), e))
    }

    /// Reads many manifests at once, in the order of `names`; each fails for itself.
    pub async fn manifests(&self, names: &[SnapshotName]) -> Vec<(SnapshotName, Result<Manifest, RepoError>)> {
        futures::stream::iter(names.iter().copied())
            .map(|name| async move { (name, self.manifest(name).await) })
            .buffered(FETCHES)
            .collect()
            .await
    }

    /// Finds the snapshot that `spec` means: `latest`, `latest~2`, or the first characters of an id.
    ///
    /// # Errors
    /// [`RepoError::NoSnapshot`], [`RepoError::AmbiguousSnapshot`], [`RepoError::Store`].
    pub async fn resolve(&self, spec: &str) -> Result<SnapshotName, RepoError> {
        resolve_in(&self.snapshots().await?, spec)
    }
}

/// Puts a new kloset's header and tells whether it is the one that stands: a store that ignores create-if-absent lets
/// the last of two creations win.
async fn put_header(store: &Store, header: bytes::Bytes) -> Result<bool, RepoError> {
    match store.put_new(layout::HEADER, header.clone()).await {
        Err(StoreError::AlreadyExists { .. }) => return Ok(false),
        put => put?,
    }
    match store.get(layout::HEADER, HEADER_BYTES_MAX).await {
        Err(StoreError::TooLarge { .. }) => Ok(false),
        standing => Ok(standing? == header),
    }
}

/// Fetches header and key slots side by side.
async fn header_and_slots(store: &Store) -> Result<(Header, slots::Fetched), RepoError> {
    let (header, slots) = futures::join!(store.get(layout::HEADER, HEADER_BYTES_MAX), slots::fetch(store));
    let header = match header {
        Err(StoreError::NotFound { .. } | StoreError::NoFolder { .. }) => {
            return Err(RepoError::NoKloset(store.description().to_owned()));
        }
        header => Header::decode(&header?)?,
    };
    Ok((header, slots?))
}

/// Finds among `names`, oldest first, the snapshot that `spec` means.
///
/// # Errors
/// As [`Repo::resolve`].
pub fn resolve_in(names: &[SnapshotName], spec: &str) -> Result<SnapshotName, RepoError> {
    let none = || RepoError::NoSnapshot(spec.to_owned());
    if let Some(rest) = spec.strip_prefix("latest") {
        let back = match rest.strip_prefix('~') {
            None if rest.is_empty() => 0,
            Some(n) => n.parse::<usize>().map_err(|_| none())?,
            None => return Err(none()),
        };
        return names.iter().rev().nth(back).copied().ok_or_else(none);
    }
    let plausible = !spec.is_empty() && spec.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut fitting = names.iter().filter(|n| plausible && n.id.to_string().starts_with(spec));
    match (fitting.next(), fitting.next()) {
        (Some(name), None) => Ok(*name),
        (Some(_), Some(_)) => Err(RepoError::AmbiguousSnapshot(spec.to_owned())),
        (None, _) => Err(none()),
    }
}

#[cfg(test)]
mod tests {
    use futures::stream::BoxStream;
    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{
        CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
        PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    };

    use super::id::SnapshotId;
    use super::*;

    /// A store that ignores create-if-absent, where another creation always puts its header last.
    #[derive(Debug, Default)]
    struct LostRace(InMemory);

    impl std::fmt::Display for LostRace {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("lost race")
        }
    }

    #[async_trait::async_trait]
    impl ObjectStore for LostRace {
        async fn put_opts(&self, at: &Path, content: PutPayload, mut options: PutOptions) -> Result<PutResult> {
            options.mode = PutMode::Overwrite;
            let put = self.0.put_opts(at, content, options).await?;
            if at.as_ref() == layout::HEADER {
                self.0.put(at, "another header".into()).await?;
            }
            Ok(put)
        }

        async fn put_multipart_opts(
            &self,
            at: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.0.put_multipart_opts(at, options).await
        }

        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            self.0.get_opts(at, options).await
        }

        fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            self.0.delete_stream(at)
        }

        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            self.0.list(prefix)
        }

        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.0.list_with_delimiter(prefix).await
        }

        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.0.copy_opts(from, to, options).await
        }
    }

    #[tokio::test]
    async fn of_two_creations_the_one_whose_header_does_not_stand_takes_its_slot_back() {
        let secret = SlotSecret::KeyFile(Secret([7; 32]));
        let create = |store: Store| {
            let (secret, env) = (secret.clone(), Env::seeded(1, 0));
            async move { Repo::create(store, &secret, &CreateOptions::default(), env, Cpu::new(1)).await }
        };
        let store = Store::new(Arc::new(LostRace::default()), "race".into());
        assert!(matches!(create(store.clone()).await, Err(RepoError::KlosetExists(_))));
        assert!(store.list(layout::KEYS).await.unwrap().is_empty());

        let store = Store::new(Arc::new(InMemory::new()), "memory".into());
        create(store.clone()).await.unwrap();
        assert!(matches!(create(store.clone()).await, Err(RepoError::KlosetExists(_))));
        assert!(Repo::open(store, &secret, Env::seeded(2, 0), Cpu::new(1)).await.is_ok());
    }

    #[test]
    fn a_snapshot_is_named_by_age_or_by_the_start_of_its_id() {
        let name = |n: u8| SnapshotName { unix_ms: i64::from(n), id: SnapshotId([n; 16]) };
        let names = [name(0x11), name(0x12), name(0x21)];
        assert_eq!(resolve_in(&names, "latest").unwrap(), names[2]);
        assert_eq!(resolve_in(&names, "latest~2").unwrap(), names[0]);
        assert_eq!(resolve_in(&names, "12").unwrap(), names[1]);
        assert!(matches!(resolve_in(&names, "1"), Err(RepoError::AmbiguousSnapshot(_))));
        for none in ["latest~3", "latest~", "latestx", "33", "", "zz"] {
            assert!(matches!(resolve_in(&names, none), Err(RepoError::NoSnapshot(_))), "{none}");
        }
    }
}
#[cfg(test)]
mod vectors;
