//! A kloset in a folder that goes away with its test.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kloset_mount::backup::{BackupOptions, backup};
use kloset_mount::cpu::Cpu;
use kloset_mount::env::Env;
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::check::{CheckOptions, CheckReport, check};
use kloset_mount::repo::keyslot::SlotSecret;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::{CreateOptions, Repo, RepoError};
use kloset_mount::restore::{Overwrite, RestoreError, RestoreOptions, RestoreReport, restore};
use kloset_mount::store::{S3Options, Store, StoreLocation};

const KEY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// A kloset, a source folder beside it, and what drives them.
pub(crate) struct Scratch {
    pub(crate) home: tempfile::TempDir,
    pub(crate) runtime: tokio::runtime::Runtime,
    pub(crate) repo: Repo,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("source")).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
        let store = open_store(&home.path().join("kloset"));
        let (secret, options) = (secret(), CreateOptions::default());
        let create = Repo::create(store, &secret, &options, Env::system(), Cpu::new(2));
        let repo = runtime.block_on(create).unwrap();
        Scratch { home, runtime, repo }
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.home.path().join("source")
    }

    pub(crate) fn kloset(&self) -> PathBuf {
        self.home.path().join("kloset")
    }

    /// A path in the home that is not there yet.
    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        (0..).map(|n| self.home.path().join(format!("{name}-{n}"))).find(|path| !path.exists()).unwrap()
    }

    pub(crate) fn backup(&self) -> SnapshotName {
        let options = BackupOptions { paths: vec![self.source()], host: "h".into(), ..BackupOptions::default() };
        backup(&self.repo, self.runtime.handle(), &options, &Arc::new(Monitor::default())).unwrap().name
    }

    /// Opens the kloset in a folder, with the secret that it was created with.
    pub(crate) fn open(&self, folder: &Path) -> Result<Repo, RepoError> {
        self.runtime.block_on(Repo::open(open_store(folder), &secret(), Env::system(), Cpu::new(2)))
    }

    pub(crate) fn check(&self, repo: &Repo, read_data: bool) -> CheckReport {
        self.runtime.block_on(check(repo, CheckOptions { read_data, ..CheckOptions::default() }, &|_| {})).unwrap()
    }

    /// Restores the source folder of a snapshot into `target`.
    pub(crate) fn restore(
        &self,
        repo: &Repo,
        snapshot: SnapshotName,
        target: &Path,
        overwrite: Overwrite,
    ) -> Result<RestoreReport, RestoreError> {
        let path = Some(self.source().into_os_string().into_encoded_bytes());
        self.restore_with(repo, RestoreOptions { snapshot, path, target: target.to_owned(), overwrite, dry_run: false })
    }

    pub(crate) fn restore_with(&self, repo: &Repo, options: RestoreOptions) -> Result<RestoreReport, RestoreError> {
        restore(repo, self.runtime.handle(), &options, &Arc::new(Monitor::default()))
    }

    /// Every object of the kloset.
    pub(crate) fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let mut out = BTreeMap::new();
        collect(&self.kloset(), "", &mut out);
        out
    }

    /// Writes objects to a new folder.
    pub(crate) fn lay_out(&self, objects: &BTreeMap<String, Vec<u8>>) -> PathBuf {
        let folder = self.fresh("copy");
        for (name, content) in objects {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        folder
    }
}

fn secret() -> SlotSecret {
    SlotSecret::parse_key_file(KEY).unwrap()
}

fn open_store(folder: &Path) -> Store {
    Store::open_or_create_folder(&StoreLocation::Folder(folder.to_owned()), &S3Options::default()).unwrap()
}

fn collect(folder: &Path, prefix: &str, out: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            collect(&entry.path(), &format!("{name}/"), out);
        } else {
            out.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// Bytes that do not compress, the same for the same seed.
pub(crate) fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    let mut state =
        seed.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    for chunk in out.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes()[..chunk.len()]);
    }
    out
}

/// Makes a folder's content removable again, for when a test made it read-only.
pub(crate) fn writable(folder: &Path) {
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o700));
}
