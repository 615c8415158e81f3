//! Freeing space: nothing that a snapshot needs is lost, whatever runs beside a prune and wherever it is cut off; what
//! nobody needs is gone after the grace period, which is zero here unless said: each run deletes what the one before marked.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use kloset_mount::backup::BackupOptions;
use kloset_mount::env::Clock;
use kloset_mount::repo::RepoError;
use kloset_mount::repo::crypto::Keys;
use kloset_mount::repo::forget::forget;
use kloset_mount::repo::layout::{self, SnapshotName};
use kloset_mount::repo::prune::{PruneOptions, PruneReport, apply, plan};
use kloset_mount::store::StoreError;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support::kloset::{Kloset, options, runtime};
use crate::support::program::Program;
use crate::support::random::{noise, size};
use crate::support::stores::{Fault, Faulty, Mutation, Operation, Recording, Rule};
use crate::support::tree::{Dump, Source, assert_same};

type Hook = Box<dyn FnOnce() + Send>;

/// Does something before the n-th request; others see the same objects through [`Hooked::beside`].
#[derive(Clone)]
pub(crate) struct Hooked {
    inner: Arc<InMemory>,
    state: Arc<Mutex<HookState>>,
}

#[derive(Default)]
struct HookState {
    requests: Vec<(Operation, String)>,
    hook: Option<(usize, Hook)>,
}

impl Hooked {
    pub(crate) fn new(inner: InMemory) -> Self {
        Self { inner: inner.into(), state: Arc::default() }
    }

    pub(crate) fn beside(&self) -> Self {
        Self { inner: self.inner.clone(), state: Arc::default() }
    }

    pub(crate) fn set(&self, nth: usize, hook: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.requests.clear();
        state.hook = Some((nth, Box::new(hook)));
    }

    pub(crate) fn requests(&self) -> Vec<(Operation, String)> {
        self.state.lock().unwrap().requests.clone()
    }

    fn before(&self, operation: Operation, name: &str) {
        let due = {
            let mut state = self.state.lock().unwrap();
            state.requests.push((operation, name.to_owned()));
            let asked = state.requests.len();
            state.hook.take_if(|(nth, _)| *nth + 1 == asked)
        };
        if let Some((_, hook)) = due {
            std::thread::spawn(hook).join().unwrap(); // not in the runtime, which it drives
        }
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl fmt::Display for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

#[async_trait]
impl ObjectStore for Hooked {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.before(Operation::Put, at.as_ref());
        self.inner.put_opts(at, payload, options).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.before(Operation::Get, at.as_ref());
        self.inner.get_opts(at, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.before(Operation::List, prefix.map_or("", AsRef::as_ref));
        self.inner.list(prefix)
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        at.and_then(move |path| {
            let this = this.clone();
            async move {
                this.before(Operation::Delete, path.as_ref());
                this.inner.delete(&path).await?;
                Ok(path)
            }
        })
        .boxed()
    }

    async fn put_multipart_opts(&self, at: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, options).await
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// No grace, and nothing unneeded may stay.
fn at_once() -> PruneOptions {
    PruneOptions { grace: Duration::ZERO, max_unused_permille: 0, ..PruneOptions::default() }
}

pub(crate) fn try_prune(kloset: &Kloset) -> std::result::Result<PruneReport, RepoError> {
    runtime().block_on(apply(&kloset.0, &at_once(), &|_, _, _| {}))
}

#[track_caller]
fn prune(kloset: &Kloset) -> PruneReport {
    try_prune(kloset).unwrap()
}

#[track_caller]
pub(crate) fn prune_often(kloset: &Kloset, times: usize) {
    for _ in 0..times {
        prune(kloset);
    }
}

pub(crate) fn forget_all(kloset: &Kloset, names: &[SnapshotName]) {
    assert!(runtime().block_on(forget(&kloset.0, names)).failure.is_none());
}

fn listed(kloset: &Kloset, folder: &str) -> Vec<String> {
    let objects = runtime().block_on(kloset.0.store.list(folder)).unwrap();
    objects.into_iter().map(|object| object.name).collect()
}

/// A kloset whose packs are needed in part, not at all and wholly, with what its snapshots hold.
pub(crate) struct World {
    pub(crate) recording: Recording,
    pub(crate) source: Source,
    pub(crate) kept: Vec<(SnapshotName, Dump)>,
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        let (recording, source) = (Recording::in_memory(), Source::random(seed, 12));
        let kloset = Kloset::create(recording.clone());
        source.file("once", noise(1000 + seed, 30_000));
        let mut taken = Vec::new();
        for round in 0..4 {
            source.grow(seed + 100 * (round + 1), 6);
            source.file("changes", noise(2000 + round, 9_000));
            if round == 1 {
                std::fs::remove_file(source.at("once")).unwrap();
            }
            let kloset = Kloset::open(recording.clone()).unwrap();
            let name = kloset.backup(source.path()).name;
            taken.push((name, kloset.dump(name, source.path()).unwrap()));
        }
        forget_all(&kloset, &[taken[0].0, taken[2].0]);
        let kept = taken.into_iter().skip(1).step_by(2).collect();
        Self { recording, source, kept }
    }

    pub(crate) fn state(&self) -> InMemory {
        self.recording.rebuild(self.recording.mark(), &[])
    }

    #[track_caller]
    pub(crate) fn assert_kept(&self, kloset: &Kloset, what: &str) {
        let there: BTreeSet<_> = kloset.snapshots().unwrap().into_iter().collect();
        for (name, dump) in self.kept.iter().filter(|(name, _)| there.contains(name)) {
            assert_same(dump, &kloset.dump(*name, self.source.path()).unwrap_or_else(|e| panic!("{what}: {e}")));
        }
        let report = kloset.check().unwrap();
        assert_eq!(report.damaged, [], "{what}: {report:#?}");
    }
}

#[test]
fn what_is_kept_reads_as_before_and_what_is_not_needed_is_gone_after_the_grace_period() {
    for seed in 0..size(3, 50) {
        let world = World::new(seed);
        let kloset = Kloset::open(world.recording.clone()).unwrap();
        let before: BTreeSet<_> = listed(&kloset, "packs").into_iter().collect();
        let planned = runtime().block_on(plan(&kloset.0, &at_once(), &|_, _, _| {})).unwrap();
        assert!(planned.mark.packs + planned.repack.packs > 0, "{planned:?}");
        let first = prune(&kloset);
        assert_eq!(first.plan.mark, planned.mark);
        assert_eq!((first.deleted.packs, first.repacked.packs), (0, planned.repack.packs));
        world.assert_kept(&kloset, "marked");
        assert!(before.iter().all(|pack| listed(&kloset, "packs").contains(pack)), "nothing is deleted yet");
        let second = prune(&kloset);
        assert_eq!(second.deleted.packs, first.marked);
        world.assert_kept(&kloset, "deleted");
        let third = prune(&kloset);
        assert_eq!((third.marked, third.deleted.packs, third.plan.unused_bytes), (0, 0, 0), "{third:?}");
        assert_eq!(listed(&kloset, "pending"), [""; 0]);
        world.assert_kept(&kloset, "done");
        forget_all(&kloset, &kloset.snapshots().unwrap());
        prune_often(&kloset, 3);
        for folder in ["packs", "index", "pending"] {
            assert_eq!(listed(&kloset, folder), [""; 0], "{folder}");
        }
    }
}

#[test]
fn a_crash_at_any_moment_of_a_prune_loses_nothing_and_the_next_one_goes_on() {
    let world = World::new(7);
    let kloset = Kloset::open(world.recording.clone()).unwrap();
    prune(&kloset);
    forget_all(&kloset, &[world.kept[0].0]); // some packs are due, others are to be marked and repacked
    let from = world.recording.mark();
    let report = prune(&kloset);
    assert!(report.deleted.packs > 0 && report.marked > 0 && report.plan.runs.1 > 0, "{report:?}");
    let mutations = world.recording.mutations();
    let is = |m: &Mutation, folder: &str| m.content.is_none() && m.name.starts_with(folder);
    let last = |folder: &str| mutations.iter().rposition(|m| is(m, folder) && !m.name.contains("moved")).unwrap();
    let first = |folder: &str| mutations[from + 2..].iter().position(|m| is(m, folder)).unwrap() + from + 2;
    assert!(last("index/") < first("packs/") && last("packs/") < first("pending/"), "runs, then packs, then lists");
    let mut states = 0;
    for prefix in (from..=world.recording.mark()).step_by(usize::try_from(size(2, 1)).unwrap()) {
        let flying = world.recording.in_flight(prefix);
        for also in [vec![], flying].into_iter().take(usize::try_from(size(1, 2)).unwrap()) {
            let left = Kloset::open(world.recording.rebuild(prefix, &also)).unwrap();
            let what = format!("after {prefix} and {also:?}");
            world.assert_kept(&left, &what);
            prune_often(&left, 3);
            world.assert_kept(&left, &what);
            assert_eq!(prune(&left).marked, 0, "{what}");
            assert_eq!(listed(&left, "pending"), [""; 0], "{what}");
            states += 1;
        }
    }
    assert!(states > 5, "{states}");
}

/// Runs `actor` once for each of its requests, and does `beside` before that one.
fn interleave(
    world: &World,
    actor: impl Fn(&Kloset) -> std::result::Result<(), RepoError>,
    (beside, after): (fn(&Kloset, bool), impl Fn(&Kloset, &str)),
    offset: usize,
) {
    let open = |hooked: Hooked| Kloset::open(hooked).unwrap();
    let counting = Hooked::new(world.state());
    let kloset = open(counting.clone());
    counting.set(usize::MAX - 1, || {});
    actor(&kloset).unwrap();
    let requests = counting.requests();
    let step = usize::try_from(size(4, 1)).unwrap();
    let is_chosen = |nth: &usize| (nth + offset).is_multiple_of(step) || nth + 3 > requests.len();
    for nth in (0..requests.len()).filter(is_chosen) {
        let hooked = Hooked::new(world.state());
        let (kloset, other) = (open(hooked.clone()), open(hooked.beside()));
        let within = is_within_grace(&requests, nth);
        hooked.set(nth, move || beside(&other, within));
        let done = actor(&kloset);
        let what = format!("beside, before request {nth}, {:?}", requests[nth]);
        assert!(matches!(done, Ok(()) | Err(RepoError::PruneAtWork)), "{what}: {done:?}");
        let kloset = open(hooked.beside());
        prune_often(&kloset, 3);
        after(&kloset, &what);
    }
}

/// Tells whether a look at what awaits deletion came before, and what relies on it comes next: a grace period protects that.
fn is_within_grace(requests: &[(Operation, String)], nth: usize) -> bool {
    let looks = |(operation, name): &(Operation, String)| (*operation, &name[..]) == (Operation::List, "pending");
    let relies = |(operation, name): &(Operation, String)| {
        *operation == Operation::Put && (name.starts_with("index/") || name.starts_with("snapshots/"))
    };
    let next = requests[nth..].iter().position(relies);
    let look = requests[nth..].iter().position(looks);
    requests[..nth].iter().any(looks) && next.is_some_and(|next| look.is_none_or(|look| look > next))
}

#[test]
fn a_backup_beside_prunes_that_mark_and_delete_before_any_of_its_requests_is_whole() {
    for (seed, beside) in [(21, prunes as fn(&Kloset, bool)), (22, prunes_without_parent)] {
        let world = World::new(seed);
        world.source.file("again", noise(1000 + seed, 30_000)); // what nobody needs any more
        world.source.file("new", noise(seed, 20_000));
        let now = world.source.scan();
        let backup = |kloset: &Kloset| {
            kloset.backup(world.source.path());
            Ok(())
        };
        let after = |kloset: &Kloset, what: &str| {
            world.assert_kept(kloset, what);
            let newest = *kloset.snapshots().unwrap().last().unwrap();
            assert!(world.kept.iter().all(|(name, _)| *name != newest), "{what}");
            assert_same(&now, &kloset.dump(newest, world.source.path()).unwrap());
        };
        interleave(&world, backup, (beside, after), usize::try_from(seed).unwrap());
    }
}

/// Marks and deletes; only marks where the grace period would not be over.
fn prunes(kloset: &Kloset, within_grace: bool) {
    prune(kloset);
    if !within_grace {
        prune(kloset);
    }
}

/// The same after all snapshots were forgotten.
fn prunes_without_parent(kloset: &Kloset, within_grace: bool) {
    forget_all(kloset, &kloset.snapshots().unwrap());
    prunes(kloset, within_grace);
}

#[test]
fn a_backup_whose_machine_slept_before_its_snapshot_was_put_takes_it_back_and_begins_again() {
    let world = World::new(23);
    let now = world.source.scan();
    let counting = Hooked::new(world.state());
    let kloset = Kloset::open(counting.clone()).unwrap();
    counting.set(usize::MAX - 1, || {});
    kloset.backup(world.source.path());
    let requests = counting.requests();
    let put = requests.iter().position(|(operation, name)| *operation == Operation::Put && name.starts_with("snap"));
    let hooked = Hooked::new(world.state());
    let (kloset, other) = (Kloset::open(hooked.clone()).unwrap(), Kloset::open(hooked.beside()).unwrap());
    let Clock::Manual(clock) = kloset.0.env.clock.clone() else { unreachable!("it is seeded") };
    hooked.set(put.unwrap(), move || {
        clock.fetch_add(30 * 3_600_000, Ordering::SeqCst);
        prunes_without_parent(&other, false);
    });
    let report = kloset.backup(world.source.path());
    assert_eq!(kloset.snapshots().unwrap(), [report.name]);
    assert_same(&now, &kloset.dump(report.name, world.source.path()).unwrap());
    kloset.assert_whole();
}

#[test]
fn two_prunes_at_once_lose_nothing() {
    let mut world = World::new(31);
    let kloset = Kloset::open(world.recording.clone()).unwrap();
    prune(&kloset);
    forget_all(&kloset, &[world.kept.remove(0).0]);
    let after = |kloset: &Kloset, what: &str| world.assert_kept(kloset, what);
    interleave(&world, |kloset| try_prune(kloset).map(drop), (prunes, after), 0);
}

#[test]
fn a_backup_beside_any_request_of_a_prune_is_whole() {
    let world = World::new(41);
    let kloset = Kloset::open(world.recording.clone()).unwrap();
    prune(&kloset);
    let source = Source::new();
    source.file("again", noise(1041, 30_000)); // what nobody needs any more, and is marked
    let path = source.path().to_owned();
    let now = source.scan();
    let requests = {
        let counting = Hooked::new(world.state());
        let kloset = Kloset::open(counting.clone()).unwrap();
        counting.set(usize::MAX - 1, || {});
        prune(&kloset);
        counting.requests().len()
    };
    for nth in (0..requests).step_by(usize::try_from(size(4, 1)).unwrap()) {
        let hooked = Hooked::new(world.state());
        let (kloset, other) = (Kloset::open(hooked.clone()).unwrap(), Kloset::open(hooked.beside()).unwrap());
        let path = path.clone();
        hooked.set(nth, move || drop(other.backup(&path)));
        try_prune(&kloset).unwrap();
        let kloset = Kloset::open(hooked.beside()).unwrap();
        let newest = *kloset.snapshots().unwrap().last().unwrap();
        prune_often(&kloset, 3);
        assert_same(&now, &kloset.dump(newest, source.path()).unwrap());
        world.assert_kept(&kloset, &format!("a backup before request {nth}"));
    }
}

/// What a prune has moved is found by what it said of the pack that is gone: one listing and one small request, without the
/// index.
#[test]
fn a_reader_finds_a_moved_chunk_with_one_small_request_and_without_the_index() {
    let recording = Recording::in_memory();
    let (kloset, source) = (Kloset::create(recording.clone()), Source::new());
    source.file("goes", noise(1, 20_000));
    source.file("stays", noise(2, 20_000));
    let first = kloset.backup(source.path());
    std::fs::remove_file(source.at("goes")).unwrap();
    let kloset = Kloset::open(recording.clone()).unwrap();
    let second = kloset.backup(source.path());
    let dump = kloset.dump(second.name, source.path()).unwrap();
    forget_all(&kloset, &[first.name]);
    prune_often(&kloset, 2);
    recording.take_requests();
    assert_same(&dump, &kloset.dump(second.name, source.path()).unwrap());
    let requests = recording.take_requests();
    let of = |prefix: &str| requests.iter().filter(|(_, name)| name.starts_with(prefix)).count();
    assert_eq!((of("index/moved"), of("index/moved/")), (2, 1), "one listing, one object: {requests:?}");
    assert_eq!(of("index"), 2, "{requests:?}");
    assert_eq!(of("packs/"), 3, "trees, a pack that is gone, and the one that came: {requests:?}");
    assert_eq!(kloset.check().unwrap().notes, [], "what says where chunks went is no stranger");
}

#[test]
fn small_packs_and_runs_become_few_and_the_next_backup_takes_the_new_places() {
    let recording = Recording::in_memory();
    Kloset::create(recording.clone());
    let source = Source::new();
    for day in 0..10 {
        source.file(format!("day-{day}"), noise(day, 3000));
        Kloset::open(recording.clone()).unwrap().backup(source.path());
    }
    let kloset = Kloset::open(recording.clone()).unwrap();
    let dump = source.scan();
    assert!(listed(&kloset, "packs").len() >= 20 && listed(&kloset, "index").len() >= 10);
    prune_often(&kloset, 3);
    assert!(listed(&kloset, "packs").len() <= 4, "{:?}", listed(&kloset, "packs"));
    let runs = listed(&kloset, "index").into_iter().filter(|name| !name.contains("moved"));
    assert!(runs.count() <= 2);
    let third = Kloset::open(recording.clone()).unwrap();
    let report = third.backup(source.path());
    assert_eq!(report.manifest.summary.chunks_new, 0);
    assert_same(&dump, &third.dump(report.name, source.path()).unwrap());
    // What it refers to is where it says: the old packs are needed by older snapshots alone.
    let older: Vec<_> = third.snapshots().unwrap().into_iter().filter(|name| *name != report.name).collect();
    forget_all(&third, &older);
    prune_often(&third, 3);
    assert!(!listed(&third, "index").iter().any(|name| name.contains("moved")), "{:?}", listed(&third, "index"));
    assert_same(&dump, &third.dump(report.name, source.path()).unwrap());
}

#[test]
fn index_runs_that_backups_joined_are_read_at_once_and_go_with_what_they_join() {
    let recording = Recording::in_memory();
    Kloset::create(recording.clone());
    let source = Source::new();
    let open = || {
        let mut kloset = Kloset::open(recording.clone()).unwrap();
        kloset.0.join_runs = 4;
        kloset
    };
    for day in 0..10 {
        source.file(format!("day-{day}"), noise(day, 3000));
        open().backup(source.path());
    }
    let (kloset, dump) = (open(), source.scan());
    assert_eq!(listed(&kloset, layout::JOINED).len(), 2, "{:?}", listed(&kloset, "index"));
    recording.take_requests();
    let new = BackupOptions { host: "new".to_owned(), ..options(source.path()) };
    let report = kloset.backup_with(new).unwrap();
    let asked = recording.take_requests();
    let runs =
        asked.iter().filter(|(operation, name)| *operation == Operation::Get && name.starts_with("index/")).count();
    assert_eq!((report.manifest.summary.chunks_new, runs), (0, 2 + 10 - 2 * 4), "{asked:?}");
    prune_often(&kloset, 3);
    assert_eq!(listed(&kloset, layout::JOINED), [""; 0]);
    assert_same(&dump, &kloset.dump(report.name, source.path()).unwrap());
    let report = kloset.check().unwrap();
    assert!(report.damaged.is_empty() && report.notes.is_empty(), "{report:?}");
}

#[test]
fn what_cannot_be_read_ends_a_prune_before_anything_is_deleted() {
    let world = World::new(51);
    let kloset = Kloset::open(world.recording.clone()).unwrap();
    prune(&kloset);
    let trees = listed(&kloset, "packs").into_iter().find(|name| !kloset.is_data_pack(name)).unwrap();
    for name in [trees, world.kept[0].0.object(), listed(&kloset, "index")[0].clone()] {
        let state = Recording::new(world.state());
        let path = Path::parse(&name).unwrap();
        let content = runtime().block_on(async { state.get(&path).await.unwrap().bytes().await.unwrap() });
        let mut bad = content.to_vec();
        let middle = bad.len() / 2;
        bad[middle] ^= 1;
        runtime().block_on(async { state.put(&path, bad.into()).await.unwrap() });
        let kloset = Kloset::open(state.clone()).unwrap();
        let before = listed(&kloset, "");
        match try_prune(&kloset) {
            Err(RepoError::Damaged { .. }) => assert_eq!(listed(&kloset, ""), before, "{name}"),
            done => assert!(done.is_ok() && name.starts_with("packs/"), "a tree that nobody needs: {name}: {done:?}"),
        }
    }
}

#[test]
fn a_key_that_can_only_write_and_a_store_that_refuses_to_delete_change_nothing() {
    let world = World::new(61);
    let mut kloset = Kloset::open(world.recording.clone()).unwrap();
    let keys = Keys::write_only(kloset.0.keys.kloset(), kloset.0.keys.write_keys().clone());
    kloset.0.keys = Arc::new(keys);
    let before = listed(&kloset, "");
    assert!(matches!(try_prune(&kloset), Err(RepoError::WriteOnly)));
    assert_eq!(listed(&kloset, ""), before);

    let faulty = Faulty::new(Arc::new(world.state()), 1);
    let kloset = Kloset::open(faulty.clone()).unwrap();
    faulty.set(&[Rule { operation: Operation::Delete, prefix: "", calls: 0..1000, one_in: 1, fault: Fault::Before }]);
    let error = try_prune(&kloset).unwrap_err();
    assert!(matches!(&error, RepoError::Store(e) if !matches!(**e, StoreError::NotFound { .. })), "{error}");
    let new: Vec<_> = listed(&kloset, "").into_iter().filter(|name| !before.contains(name)).collect();
    assert!(new.len() == 1 && new[0].starts_with("pending/"), "{new:?}");
    world.assert_kept(&kloset, "refused");
}

#[test]
fn what_is_young_or_was_marked_lately_by_the_stores_clock_stays() {
    let world = World::new(71);
    let kloset = Kloset::open(world.recording.clone()).unwrap();
    let before = listed(&kloset, "");
    let report = runtime().block_on(apply(&kloset.0, &PruneOptions::default(), &|_, _, _| {})).unwrap();
    assert_eq!((report.marked, report.plan.mark.packs, listed(&kloset, "")), (0, 0, before), "all packs are young");
    prune(&kloset);
    let before = listed(&kloset, "");
    let report = runtime().block_on(apply(&kloset.0, &PruneOptions::default(), &|_, _, _| {})).unwrap();
    assert!(report.plan.waiting.packs > 0 && report.plan.due_unix_ms.is_some(), "{report:?}");
    assert_eq!(listed(&kloset, ""), before, "the local clock is years ahead, or behind");
}

#[test]
fn the_program_shows_a_plan_waits_and_frees_over_http() {
    let program = Program::new(&[("goes", &noise(1, 3 << 20)), ("stays", &noise(2, 10_000))]);
    std::fs::remove_file(program.source().join("goes")).unwrap();
    program.backup(&[]);
    program.done(&["forget", "--keep-last", "1", "--apply"]);
    let refused = program.run(&["prune", "--grace", "1s"]);
    assert_eq!(refused.status.code(), Some(2));
    let short = ["--grace", "1s", "--allow-short-grace", "--max-unused", "0"];
    std::thread::sleep(Duration::from_millis(2500)); // until what was put is old
    let planned = program.run(&[&["prune", "--json"], &short[..]].concat());
    let planned: serde_json::Value = serde_json::from_slice(&planned.stdout).unwrap();
    assert_eq!((&planned["applied"], &planned["delete"]["packs"]), (&false.into(), &0.into()), "{planned}");
    assert!(planned["mark"]["packs"].as_u64().unwrap() + planned["repack"]["packs"].as_u64().unwrap() > 0, "{planned}");
    program.done(&[&["prune", "--apply", "--wait"], &short[..]].concat());
    let after = program.run(&[&["prune"], &short[..]].concat());
    let text = String::from_utf8(after.stdout).unwrap();
    assert!(text.contains("would free 0 B now and 0 B in the end"), "{text}");
    program.done(&["check", "--read-data"]);
}
