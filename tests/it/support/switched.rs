//! A kloset in memory that can be made to fail, and a source tree of everything a file system has.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kloset_mount::backup::{BackupOptions, BackupReport, backup};
use kloset_mount::cpu::Cpu;
use kloset_mount::env::{Clock, Env};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::id::SnapshotId;
use kloset_mount::repo::keyslot::SlotSecret;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::snapshot::{ByteText, Manifest, SourceError};
use kloset_mount::repo::writer::{Writer, WriterOptions};
use kloset_mount::repo::{CreateOptions, Repo};
use kloset_mount::store::Store;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// A store in memory that can be switched off.
#[derive(Debug, Default)]
pub(crate) struct Switched {
    inner: InMemory,
    is_off: AtomicBool,
}

impl Switched {
    fn check(&self) -> Result<()> {
        match self.is_off.load(Ordering::SeqCst) {
            true => Err(object_store::Error::Generic { store: "test", source: "switched off".into() }),
            false => Ok(()),
        }
    }
}

impl fmt::Display for Switched {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("switched")
    }
}

#[async_trait]
impl ObjectStore for Switched {
    async fn put_opts(&self, at: &ObjectPath, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.check()?;
        self.inner.put_opts(at, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        at: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn get_opts(&self, at: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.check()?;
        self.inner.get_opts(at, options).await
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<ObjectPath>>) -> BoxStream<'static, Result<ObjectPath>> {
        self.inner.delete_stream(at)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.check() {
            Ok(()) => self.inner.list(prefix),
            Err(error) => futures::stream::iter([Err(error)]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A kloset with what drives it.
pub(crate) struct Kloset {
    pub(crate) repo: Repo,
    pub(crate) runtime: tokio::runtime::Runtime,
    objects: Arc<Switched>,
    clock: Arc<AtomicI64>,
}

impl Kloset {
    pub(crate) fn new() -> Kloset {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let objects = Arc::new(Switched::default());
        let store = Store::new(objects.clone(), "memory".to_owned());
        let env = Env::seeded(7, 1_795_355_880_000); // 2026-11-22 13:58:00 UTC
        let Clock::Manual(clock) = env.clock.clone() else { unreachable!("seeded") };
        let secret = SlotSecret::parse_key_file(&"ab".repeat(32)).unwrap();
        let options = CreateOptions::default();
        let repo = runtime.block_on(Repo::create(store, &secret, &options, env, Cpu::new(2))).unwrap();
        Kloset { repo, runtime, objects, clock }
    }

    /// Lets time pass.
    pub(crate) fn pass(&self, seconds: i64) {
        self.clock.fetch_add(seconds * 1000, Ordering::SeqCst);
    }

    /// Backs up a folder as the host "h", a minute after what was before.
    pub(crate) fn backup(&self, source: &Path) -> BackupReport {
        self.backup_as(source, "h", &[])
    }

    pub(crate) fn backup_as(&self, source: &Path, host: &str, tags: &[&str]) -> BackupReport {
        let minute = 60_000 - self.clock.load(Ordering::SeqCst) % 60_000;
        self.clock.fetch_add(minute, Ordering::SeqCst);
        let options = BackupOptions {
            paths: vec![source.to_owned()],
            host: host.to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..BackupOptions::default()
        };
        backup(&self.repo, self.runtime.handle(), &options, &Arc::new(Monitor::default())).unwrap()
    }

    /// Makes a snapshot of what another has, that says of itself that it lacks something, a minute after it.
    pub(crate) fn lacking(&self, report: &BackupReport) -> SnapshotName {
        self.pass(60);
        let env = &self.repo.env;
        let name = SnapshotName { unix_ms: env.clock.unix_ms(), id: SnapshotId(env.entropy.bytes()) };
        let error = SourceError { path: ByteText(b"/etc/a\nb".to_vec()), message: "Permission denied".to_owned() };
        let (id, errors) = (name.id, vec![error]);
        let manifest = Manifest { id, incomplete: true, errors, errors_total: 3, ..report.manifest.clone() };
        let mut writer = Writer::new(&self.repo, self.runtime.handle().clone(), WriterOptions::default());
        writer.commit(name, &manifest).unwrap();
        name
    }

    /// Switches the store off or on again.
    pub(crate) fn switch_off(&self, is_off: bool) {
        self.objects.is_off.store(is_off, Ordering::SeqCst);
    }

    /// Flips a bit in the middle of every pack of file content: the packs that are `bytes` long or more.
    pub(crate) fn damage_packs(&self, bytes: u64) {
        self.damage("packs", |pack| pack.size >= bytes);
    }

    /// Flips a bit in the middle of the manifest of the snapshot made last.
    pub(crate) fn damage_newest_manifest(&self) {
        let listed = self.objects.inner.list(Some(&ObjectPath::from("snapshots"))).try_collect();
        let listed: Vec<ObjectMeta> = self.runtime.block_on(listed).unwrap();
        let newest = listed.into_iter().map(|object| object.location).max().unwrap();
        self.damage("snapshots", |object| object.location == newest);
    }

    fn damage(&self, folder: &str, is_meant: impl Fn(&ObjectMeta) -> bool) {
        self.runtime.block_on(async {
            let objects: Vec<ObjectMeta> =
                self.objects.inner.list(Some(&ObjectPath::from(folder))).try_collect().await.unwrap();
            for object in objects.into_iter().filter(is_meant) {
                let content = self.objects.inner.get(&object.location).await.unwrap().bytes().await.unwrap();
                let mut content = content.to_vec();
                let middle = content.len() / 2;
                content[middle] ^= 1;
                self.objects.inner.put(&object.location, content.into()).await.unwrap();
            }
        });
    }

    /// Deletes every pack that is `bytes` long or more.
    pub(crate) fn delete_packs(&self, bytes: u64) {
        self.runtime.block_on(async {
            let packs: Vec<ObjectMeta> =
                self.objects.inner.list(Some(&ObjectPath::from("packs"))).try_collect().await.unwrap();
            for pack in packs.into_iter().filter(|pack| pack.size >= bytes) {
                self.objects.inner.delete(&pack.location).await.unwrap();
            }
        });
    }

    /// The packs that there are.
    pub(crate) fn packs(&self) -> Vec<ObjectPath> {
        let packs = self.objects.inner.list(Some(&ObjectPath::from("packs"))).map_ok(|pack| pack.location);
        self.runtime.block_on(packs.try_collect()).unwrap()
    }

    /// Deletes every pack but these.
    pub(crate) fn delete_packs_but(&self, kept: &[ObjectPath]) {
        for pack in self.packs().iter().filter(|pack| !kept.contains(pack)) {
            self.runtime.block_on(self.objects.inner.delete(pack)).unwrap();
        }
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        let counts = self.repo.store.counts();
        counts.gets + counts.lists + counts.puts
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut out);
    out
}

/// Fills a folder with one of everything.
pub(crate) fn fill(folder: &Path) {
    let at = |name: &str| folder.join(name);
    fs::create_dir_all(at("deep/er")).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("small"), "hello\n").unwrap();
    fs::write(at("deep/er/file with blanks"), "deep").unwrap();
    fs::write(at("big"), noise(9 << 20)).unwrap();
    fs::hard_link(at("small"), at("deep/small too")).unwrap();
    symlink("../small", at("deep/link")).unwrap();
    symlink("/nowhere/at all", at("dangling")).unwrap();
    fs::write(at("setuid"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at("setuid"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at("deep/er"), fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.write_all_at(&[1; 8192], 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    use std::os::unix::ffi::OsStrExt;
    fs::write(folder.join(std::ffi::OsStr::from_bytes(b"not\xffutf8")), "x").unwrap();
}
