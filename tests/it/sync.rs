//! Syncing: what comes over is what was there, once; a crash at any moment loses nothing on either side.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kloset_mount::monitor::Monitor;
use kloset_mount::repo::RepoError;
use kloset_mount::repo::id::{PendingId, SessionId};
use kloset_mount::repo::layout::{self, SnapshotName};
use kloset_mount::repo::pending::PendingList;
use kloset_mount::store::Store;
use kloset_mount::sync::{Plan, Sides, SyncOptions, SyncReport, plan, sync};
use object_store::ObjectStore;

use crate::support::kloset::{Kloset, runtime};
use crate::support::random::{noise, size};
use crate::support::stores::{Operation, Recording};
use crate::support::tree::{Dump, Source, assert_same};

/// A kloset with a few snapshots of a source that changes, and what they hold.
struct Filled {
    store: Recording,
    kloset: Kloset,
    source: Source,
    taken: Vec<(SnapshotName, Dump)>,
}

impl Filled {
    fn new(seed: u64, times: usize) -> Self {
        let store = Recording::in_memory();
        let (kloset, source) = (Kloset::create(store.clone()), Source::random(seed, 12));
        source.file("large", noise(seed, 40_000));
        source.file("large again", noise(seed, 40_000));
        let mut filled = Self { store, kloset, source, taken: Vec::new() };
        (0..times).for_each(|nth| filled.take(seed * 100 + nth as u64));
        filled
    }

    fn take(&mut self, seed: u64) {
        self.source.grow(seed, 4);
        self.source.file("deep/er/changes", noise(seed, 5000));
        let name = self.kloset.backup(self.source.path()).name;
        self.taken.push((name, self.kloset.dump(name, self.source.path()).unwrap()));
    }

    fn replica(&self, store: impl ObjectStore) -> Kloset {
        let store = Store::new(Arc::new(store), "replica".to_owned());
        Kloset(runtime().block_on(self.kloset.0.create_replica(store)).unwrap())
    }

    /// Fails unless `there` has all that was taken and nothing else, whole and the same.
    #[track_caller]
    fn assert_all_in(&self, there: &Kloset) {
        assert_eq!(there.snapshots().unwrap(), self.taken.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        self.assert_same_in(there);
    }

    /// Fails unless what `there` has is whole and the same.
    #[track_caller]
    fn assert_same_in(&self, there: &Kloset) {
        let names = there.snapshots().unwrap();
        for (name, dump) in self.taken.iter().filter(|(name, _)| names.contains(name)) {
            assert_same(dump, &there.dump(*name, self.source.path()).unwrap());
        }
        there.assert_whole();
    }
}

fn planned(from: &Kloset, to: &Kloset) -> Plan {
    let sides = Sides { from: &from.0, to: &to.0, runtime: runtime().handle() };
    runtime().block_on(async { plan(sides, &from.0.snapshots().await.unwrap(), false).await }).unwrap()
}

fn copy(from: &Kloset, to: &Kloset, names: &[SnapshotName]) -> SyncReport {
    let sides = Sides { from: &from.0, to: &to.0, runtime: runtime().handle() };
    sync(sides, names, SyncOptions { list_every: Some(Duration::ZERO) }, &Arc::new(Monitor::default()))
}

/// Copies all that is lacking, and fails unless that can be done.
#[track_caller]
fn copy_all(from: &Kloset, to: &Kloset) -> Vec<SnapshotName> {
    let report = copy(from, to, &planned(from, to).missing);
    assert!(report.failure.is_none() && report.damaged.is_empty() && report.gone.is_empty(), "{report:?}");
    report.copied
}

/// Which requests for content and trees were made since the last look.
fn packs_read(store: &Recording) -> Vec<String> {
    let requests = store.take_requests();
    requests.into_iter().filter(|(o, name)| *o == Operation::Get && name.starts_with("packs/")).map(|r| r.1).collect()
}

#[test]
fn a_sync_to_other_keys_copies_everything_once_and_back_again() {
    let mut here = Filled::new(1, 3);
    let there_store = Recording::in_memory();
    let there = Kloset::create(there_store.clone());
    let before = here.store.mark();
    assert_eq!(copy_all(&here.kloset, &there).len(), 3);
    here.assert_all_in(&there);
    assert_eq!(here.store.mark(), before, "the source is not written to");
    let manifest = |kloset: &Kloset, name| runtime().block_on(kloset.0.manifest(name)).unwrap();
    let (was, is) = (manifest(&here.kloset, here.taken[0].0), manifest(&there, here.taken[0].0));
    assert_ne!(was.root, is.root);
    let root_aside = |m| kloset_mount::repo::snapshot::Manifest { root: was.root, index: Vec::new(), ..m };
    assert_eq!(root_aside(is), root_aside(was.clone()), "id, time, host and all else stay");

    let at = there_store.mark();
    here.store.take_requests();
    assert!(copy_all(&here.kloset, &there).is_empty());
    let requests = here.store.take_requests();
    assert!(there_store.mark() == at && requests.len() == 1, "a second sync lists and moves nothing: {requests:?}");

    here.take(77);
    let whole: u64 = there_store.mutations().iter().filter_map(|m| Some(m.content.as_ref()?.len() as u64)).sum();
    copy_all(&here.kloset, &there);
    here.assert_all_in(&there);
    let put = there_store.mutations()[at..].iter().filter_map(|m| Some(m.content.as_ref()?.len() as u64)).sum::<u64>();
    assert!(put < whole / 2, "{put} of {whole} for what changed");

    let back = Kloset::create(Recording::in_memory());
    copy_all(&there, &back);
    here.assert_all_in(&back);
}

#[test]
fn what_both_sides_have_is_not_read_again() {
    let mut here = Filled::new(2, 1);
    let there = Kloset::create(Recording::in_memory());
    copy_all(&here.kloset, &there);
    let old: Vec<_> =
        here.store.put_since(0, "packs/").into_iter().filter(|name| here.kloset.is_data_pack(name)).collect();
    here.take(5);
    here.kloset = Kloset::open(here.store.clone()).unwrap(); // without what is in memory
    here.store.take_requests();
    copy_all(&here.kloset, &there);
    let read = packs_read(&here.store);
    assert!(!read.is_empty() && read.iter().all(|name| !old.contains(name)), "of {old:?} was read: {read:?}");
    here.assert_all_in(&there);
}

#[test]
fn a_backup_into_the_target_finds_what_was_synced() {
    let here = Filled::new(3, 1);
    let there = Kloset::create(Recording::in_memory());
    copy_all(&here.kloset, &there);
    let summary = there.backup_with(kloset_mount::backup::BackupOptions {
        force: true,
        ..crate::support::kloset::options(here.source.path())
    });
    assert_eq!(summary.unwrap().manifest.summary.chunks_new, 0, "content is cut as the target cuts");
}

#[test]
fn a_replica_gets_the_sealed_objects_that_it_lacks_and_no_others() {
    let mut here = Filled::new(4, 2);
    let store = Recording::in_memory();
    let there = here.replica(store.clone());
    copy_all(&here.kloset, &there);
    here.assert_all_in(&there);
    let objects = |store: &Recording, prefix: &str| -> BTreeMap<_, _> {
        let put = store.mutations().into_iter().filter(|m| m.name.starts_with(prefix));
        put.map(|m| (m.name, m.content)).collect()
    };
    for prefix in ["packs/", "snapshots/", "keys/", "kloset.json"] {
        assert_eq!(objects(&here.store, prefix), objects(&store, prefix), "{prefix}");
    }
    let at = store.mark();
    assert!(copy_all(&here.kloset, &there).is_empty() && store.mark() == at);
    let packs = here.store.put_since(0, "packs/").len();
    here.take(9);
    copy_all(&here.kloset, &there);
    let new = here.store.put_since(0, "packs/").len() - packs;
    assert_eq!(store.put_since(at, "packs/").len(), new);
    here.assert_all_in(&there);
    here.assert_all_in(&Kloset::open(store).unwrap());
}

#[test]
fn of_chosen_snapshots_a_replica_gets_what_they_need() {
    let here = Filled::new(5, 3);
    let store = Recording::in_memory();
    let there = here.replica(store.clone());
    assert!(copy(&here.kloset, &there, &[here.taken[1].0]).failure.is_none());
    assert_eq!(there.snapshots().unwrap(), [here.taken[1].0]);
    here.assert_same_in(&there);
    assert!(store.put_since(0, "packs/").len() < here.store.put_since(0, "packs/").len());
    let report = there.backup_with(crate::support::kloset::options(here.source.path())).unwrap();
    assert!(report.manifest.summary.chunks_new > 0, "the index names no pack that was not copied");
    there.assert_whole();
}

#[test]
fn packs_that_await_deletion_in_the_target_are_not_relied_on() {
    let here = Filled::new(6, 1);
    let store = Recording::in_memory();
    let there = here.replica(store.clone());
    copy_all(&here.kloset, &there);
    let name = here.taken[0].0;
    let packs: Vec<_> = store.put_since(0, "packs/").iter().map(|name| layout::parse_pack(name).unwrap()).collect();
    let mut packs: Vec<(SessionId, u32)> = packs.into_iter().map(|pack| (pack.session, pack.number)).collect();
    packs.sort_unstable();
    let list = PendingList { version: 1, created: "2026-11-22T13:58:00Z".into(), packs: packs.clone() };
    let (id, keys) = (PendingId([1; 16]), &there.0.keys);
    let list = list.seal(&keys.index_key(), keys.kloset(), id, [0; 24]);
    runtime().block_on(async {
        there.0.store.delete(&name.object()).await.unwrap();
        there.0.store.put_new(&layout::pending_name(id), list.into()).await.unwrap();
    });
    copy_all(&here.kloset, &there);
    runtime().block_on(async {
        for (session, number) in packs {
            let pack = kloset_mount::repo::id::PackId { session, number };
            there.0.store.delete(&pack.to_string()).await.unwrap();
        }
        there.0.store.delete(&layout::pending_name(id)).await.unwrap();
    });
    assert_same(&here.taken[0].1, &there.dump(name, here.source.path()).unwrap());
}

/// Which states a crash after `prefix` mutations can leave.
fn states(recording: &Recording, prefix: usize) -> Vec<Vec<usize>> {
    let flying = recording.in_flight(prefix);
    let chosen = |mask: usize| (0..flying.len()).filter(|bit| mask >> bit & 1 == 1).map(|bit| flying[bit]).collect();
    (0..(1_usize << flying.len().min(3))).map(chosen).collect()
}

/// Holds every crash of a sync of `here` to the store of `recording` against the rules, after `from` mutations.
#[track_caller]
fn assert_survives(here: &Filled, recording: &Recording, from: usize) -> usize {
    let mut count = 0;
    for prefix in from..=recording.mark() {
        for also in states(recording, prefix) {
            let store = Recording::new(recording.rebuild(prefix, &also));
            let there = Kloset::open(store.clone()).unwrap_or_else(|e| panic!("after {prefix} and {also:?}: {e}"));
            here.assert_same_in(&there);
            let before = here.store.mark();
            copy_all(&here.kloset, &there);
            here.assert_all_in(&there);
            assert_eq!(here.store.mark(), before);
            assert!(copy_all(&here.kloset, &there).is_empty());
            count += 1;
        }
    }
    here.assert_all_in(&here.kloset);
    count
}

#[test]
fn a_crash_of_a_sync_to_other_keys_leaves_both_sides_whole_and_the_next_completes() {
    for seed in 0..size(2, 40) {
        let here = Filled::new(10 + seed, 2);
        let recording = Recording::slow();
        let there = Kloset::create(recording.clone());
        let from = recording.mark();
        copy_all(&here.kloset, &there);
        let states = assert_survives(&here, &recording, from);
        assert!(states >= 6, "packs, runs and snapshots of two syncs make more states than {states}");
    }
}

#[test]
fn a_crash_of_a_sync_to_a_replica_leaves_both_sides_whole_and_the_next_completes() {
    for seed in 0..size(2, 40) {
        let here = Filled::new(20 + seed, 2);
        let recording = Recording::slow();
        let there = here.replica(recording.clone());
        let from = recording.mark();
        copy_all(&here.kloset, &there);
        let states = assert_survives(&here, &recording, from);
        assert!(states >= 6, "packs, runs and snapshots of two syncs make more states than {states}");
    }
}

#[test]
fn a_crash_while_a_replica_is_made_leaves_what_the_next_completes() {
    let here = Filled::new(30, 1);
    let recording = Recording::in_memory();
    here.replica(recording.clone());
    for prefix in 0..=recording.mark() {
        let there = here.replica(Recording::new(recording.rebuild(prefix, &[])));
        copy_all(&here.kloset, &there);
        here.assert_all_in(&there);
    }
    let another = Recording::in_memory();
    Kloset::create(another.clone());
    let made = here.kloset.0.create_replica(Store::new(Arc::new(another), "another".to_owned()));
    assert!(matches!(runtime().block_on(made), Err(RepoError::KlosetExists(_))));
}

#[test]
fn a_snapshot_whose_data_is_damaged_is_told_and_the_others_come_over() {
    let here = Filled::new(7, 2);
    let names: Vec<_> = here.store.put_since(0, "packs/");
    let last = names.iter().rfind(|name| here.kloset.is_data_pack(name)).unwrap();
    let inner = here.store.rebuild(here.store.mark(), &[]);
    let damaged = Recording::new(inner);
    runtime().block_on(async {
        let store = Store::new(Arc::new(damaged.clone()), "damaged".to_owned());
        let mut content = store.get(last, u64::MAX).await.unwrap().to_vec();
        content[20] ^= 1;
        store.delete(last).await.unwrap();
        store.put_new(last, content.into()).await.unwrap();
    });
    let from = Kloset::open(damaged).unwrap();
    for there in [Kloset::create(Recording::in_memory()), here.replica(Recording::in_memory())] {
        let report = copy(&from, &there, &planned(&from, &there).missing);
        assert!(report.failure.is_none(), "{report:?}");
        assert_eq!((report.copied, report.damaged.len()), (vec![here.taken[0].0], 1));
        assert_eq!(report.damaged[0].0, here.taken[1].0);
        here.assert_same_in(&there);
        assert_eq!(copy_all(&here.kloset, &there), [here.taken[1].0], "from a whole source it comes over later");
        here.assert_all_in(&there);
    }
}

#[test]
fn a_write_only_key_takes_snapshots_in_and_gives_none_out() {
    use kloset_mount::repo::keyslot::{NewSlot, SlotKind, SlotSecret};
    use kloset_mount::repo::slots::OpenSlots;
    let here = Filled::new(8, 2);
    let store = Recording::in_memory();
    let there = Kloset::create(store.clone());
    let full = SlotSecret::parse_key_file(&"07".repeat(32)).unwrap();
    let narrow = SlotSecret::parse_key_file(&"08".repeat(32)).unwrap();
    runtime().block_on(async {
        let Kloset(repo) = &there;
        let slots = OpenSlots::open(&repo.store, &full, &repo.env, &repo.cpu).await.unwrap();
        let cost = kloset_mount::repo::keyslot::ARGON2_RECOMMENDED;
        slots.add(SlotKind::WriteOnly, &NewSlot { secret: &narrow, cost, label: "w" }).await.unwrap();
    });
    let writer = Kloset::open_with(store.clone(), &narrow).unwrap();
    assert_eq!(copy_all(&here.kloset, &writer).len(), 2);
    here.assert_all_in(&Kloset::open(store).unwrap());
    let sides = Sides { from: &writer.0, to: &here.kloset.0, runtime: runtime().handle() };
    let refused = runtime().block_on(plan(sides, &[], false));
    assert!(refused.unwrap_err().to_string().contains("can only write"));
}
