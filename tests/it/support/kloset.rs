//! Klosets for tests: small chunks, no passphrase to stretch, clock and randomness from a seed.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kloset_mount::backup::{BackupError, BackupOptions, BackupReport, Excludes, Rule, backup};
use kloset_mount::cpu::Cpu;
use kloset_mount::env::{Entropy, Env};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::check::{CheckOptions, CheckReport, check};
use kloset_mount::repo::header::ChunkerSettings;
use kloset_mount::repo::keyslot::SlotSecret;
use kloset_mount::repo::layout::{self, SnapshotName};
use kloset_mount::repo::pack::{self, Footer, PACK_BYTES_MAX, PackKind};
use kloset_mount::repo::{CreateOptions, Repo, RepoError};
use kloset_mount::store::{RetryOptions, Store};
use object_store::ObjectStore;
use tokio::runtime::Runtime;

use super::tree::{Dump, dump_snapshot};

/// The smallest chunks that a header allows: many of them in small files.
pub(crate) const SMALL: ChunkerSettings = ChunkerSettings { min_bytes: 1024, avg_bytes: 2048, max_bytes: 8192 };
/// Memory of the readers of tests: small enough that caches give way.
const READER_BYTES: usize = 4 << 20;

/// Returns the runtime that all tests of a process share.
pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap())
}

fn cpu() -> Cpu {
    static CPU: OnceLock<Cpu> = OnceLock::new();
    CPU.get_or_init(|| Cpu::new(2)).clone()
}

/// Returns an environment that no other has: names are random, so two must not share a seed, and time goes on.
fn env() -> Env {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    let run = RUNS.fetch_add(1, Ordering::Relaxed);
    Env::seeded(run, 1_790_000_000_000 + i64::try_from(run).unwrap() * 100_000)
}

pub(crate) fn secret() -> SlotSecret {
    SlotSecret::parse_key_file(&"07".repeat(32)).unwrap()
}

fn store(inner: impl ObjectStore) -> Store {
    Store::new(Arc::new(inner), "memory".to_owned())
}

/// Returns a store that is asked again at once where it fails, as often as a bucket would in minutes.
pub(crate) fn patient(inner: impl ObjectStore) -> Store {
    let retry = RetryOptions {
        times_max: 200,
        pause_first: Duration::ZERO,
        entropy: Entropy::seeded(1),
        ..RetryOptions::default()
    };
    store(inner).with_retries(retry)
}

/// An opened kloset.
#[derive(Clone)]
pub(crate) struct Kloset(pub(crate) Repo);

impl Kloset {
    /// Makes a kloset of small chunks.
    pub(crate) fn create(inner: impl ObjectStore) -> Self {
        Self::try_create(inner, SMALL).unwrap()
    }

    pub(crate) fn try_create(inner: impl ObjectStore, chunker: ChunkerSettings) -> Result<Self, RepoError> {
        Self::create_in(store(inner), chunker)
    }

    /// Makes a kloset in a store.
    pub(crate) fn create_in(store: Store, chunker: ChunkerSettings) -> Result<Self, RepoError> {
        let options = CreateOptions { chunker, ..CreateOptions::default() };
        runtime().block_on(Repo::create(store, &secret(), &options, env(), cpu())).map(Self)
    }

    pub(crate) fn open(inner: impl ObjectStore) -> Result<Self, RepoError> {
        Self::open_with(inner, &secret())
    }

    pub(crate) fn open_with(inner: impl ObjectStore, secret: &SlotSecret) -> Result<Self, RepoError> {
        Self::open_in(store(inner), secret)
    }

    /// Opens the kloset in a store.
    pub(crate) fn open_in(store: Store, secret: &SlotSecret) -> Result<Self, RepoError> {
        runtime().block_on(Repo::open(store, secret, env(), cpu())).map(Self)
    }

    /// Backs up one folder.
    pub(crate) fn backup(&self, folder: &Path) -> BackupReport {
        self.backup_with(options(folder)).unwrap()
    }

    pub(crate) fn backup_with(&self, options: BackupOptions) -> Result<BackupReport, BackupError> {
        backup(&self.0, runtime().handle(), &options, &Arc::new(Monitor::default()))
    }

    /// Reads everything that a snapshot holds of `folder`, with a new reader.
    pub(crate) fn dump(&self, name: SnapshotName, folder: &Path) -> Result<Dump, RepoError> {
        runtime().block_on(async {
            let manifest = self.0.manifest(name).await?;
            dump_snapshot(&self.0.reader(READER_BYTES), manifest.root.into(), folder).await
        })
    }

    pub(crate) fn snapshots(&self) -> Result<Vec<SnapshotName>, RepoError> {
        runtime().block_on(self.0.snapshots())
    }

    /// Checks everything, content included.
    pub(crate) fn check(&self) -> Result<CheckReport, RepoError> {
        runtime().block_on(check(&self.0, CheckOptions { read_data: true, ..CheckOptions::default() }, &|_| {}))
    }

    /// Tells whether a pack holds content, and not trees.
    pub(crate) fn is_data_pack(&self, name: &str) -> bool {
        let content = runtime().block_on(self.0.store.get(name, PACK_BYTES_MAX)).unwrap();
        footer_of(&self.0, name, &content).kind == PackKind::Data
    }

    /// Fails unless a check finds nothing missing and nothing damaged.
    #[track_caller]
    pub(crate) fn assert_whole(&self) {
        let report = self.check().unwrap();
        assert_eq!(report.damaged, [], "{report:#?}");
    }
}

/// Opens a pack's footer.
pub(crate) fn footer_of(repo: &Repo, name: &str, content: &[u8]) -> Footer {
    let id = layout::parse_pack(name).unwrap();
    let key = repo.keys.session_key(&id.session).unwrap();
    pack::open_footer(&key, repo.keys.kloset(), id, pack::verify_digest(content).unwrap()).unwrap()
}

/// Returns the options of a backup of one folder.
pub(crate) fn options(folder: &Path) -> BackupOptions {
    BackupOptions { paths: vec![PathBuf::from(folder)], host: "host".to_owned(), ..BackupOptions::default() }
}

/// Returns rules of a command line.
pub(crate) fn excludes(rules: &[&str]) -> Excludes {
    let rule = |text: &&str| Rule { text: (*text).to_owned(), from: "--exclude".to_owned() };
    Excludes { rules: rules.iter().map(rule).collect(), ..Excludes::default() }
}
