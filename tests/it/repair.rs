//! Repairing: whatever happens to whichever object, a repair names it, and with somebody who still has what is lost
//! everything is whole again. Without, what is left gets a corrected snapshot. A crash at any moment makes nothing worse.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kloset_mount::backup::{self, BackupOptions};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::id::{ChunkId, PendingId};
use kloset_mount::repo::layout::{self, SnapshotName};
use kloset_mount::repo::lookup;
use kloset_mount::repo::pack::PACK_BYTES_MAX;
use kloset_mount::repo::pending::PendingList;
use kloset_mount::repo::repair::{CORRECTED_TAG, Outcome, RepairOptions, RepairReport, Wanted, other, repair};
use kloset_mount::repo::{Repo, RepoError};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;

use crate::crash::subsets;
use crate::prune::{World, prune_often, try_prune};
use crate::support::kloset::{Kloset, options, runtime};
use crate::support::random::{noise, size, slow};
use crate::support::stores::Recording;
use crate::support::tree::{Dump, Source, assert_same};

/// A kloset with two snapshots of two sessions: the second one added files.
pub(crate) struct Case {
    store: InMemory,
    source: Source,
    dumps: Vec<(SnapshotName, Dump)>,
}

/// Where lost content is looked for.
pub(crate) enum From<'a> {
    Nobody,
    Copy(&'a Case),
    Kloset(&'a Kloset),
    Folder(&'a Source),
}

impl Case {
    fn new() -> Case {
        let recording = Recording::in_memory();
        let kloset = Kloset::create(recording.clone());
        let source = Source::new();
        for n in 0..8 {
            source.file(format!("d{}/f{n}", n % 3), noise(n, 9000));
        }
        source.file("d1/deep/er/tiny", "tiny");
        let first = kloset.backup(source.path()).name;
        let before = source.scan();
        source.file("d1/added", noise(100, 20_000));
        source.file("new/added", noise(101, 5000));
        let second = kloset.backup(source.path()).name;
        let dumps = vec![(first, before), (second, source.scan())];
        Case { store: recording.rebuild(recording.mark(), &[]), source, dumps }
    }

    fn copy(&self) -> InMemory {
        self.store.fork()
    }

    fn named(&self, folder: &str) -> Vec<String> {
        let kloset = Kloset::open(self.copy()).unwrap();
        runtime().block_on(kloset.0.store.list(folder)).unwrap().into_iter().map(|object| object.name).collect()
    }

    fn packs(&self, of_data: bool) -> Vec<String> {
        let kloset = Kloset::open(self.copy()).unwrap();
        self.named("packs").into_iter().filter(|name| kloset.is_data_pack(name) == of_data).collect()
    }

    /// Every snapshot that was readable before reads as it was.
    #[track_caller]
    fn assert_reads(&self, kloset: &Kloset, which: &[SnapshotName]) {
        for (name, dump) in self.dumps.iter().filter(|(name, _)| which.contains(name)) {
            let found = kloset.dump(*name, self.source.path()).unwrap();
            assert_same(dump, &found);
        }
    }

    fn names(&self) -> Vec<SnapshotName> {
        self.dumps.iter().map(|(name, _)| *name).collect()
    }

    /// Which snapshots read wholly.
    fn readable(&self, kloset: &Kloset) -> Vec<SnapshotName> {
        let reads = |name: &SnapshotName| kloset.dump(*name, self.source.path()).is_ok();
        self.names().into_iter().filter(reads).collect()
    }
}

fn change(store: &InMemory, name: &str, damage: impl FnOnce(&mut Vec<u8>)) {
    let path = Path::parse(name).unwrap();
    futures::executor::block_on(async {
        let mut content = store.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        damage(&mut content);
        store.put(&path, Bytes::from(content).into()).await.unwrap();
    });
}

fn delete(store: &InMemory, name: &str) {
    futures::executor::block_on(store.delete(&Path::parse(name).unwrap())).unwrap();
}

fn damages() -> Vec<(&'static str, fn(&InMemory, &str))> {
    vec![
        ("delete", delete),
        ("truncate", |store, name| change(store, name, |content| content.truncate(content.len() / 2))),
        ("flip in the middle", |store, name| change(store, name, |content| *middle(content) ^= 1)),
        ("flip in the footer", |store, name| {
            change(store, name, |content| {
                let at = content.len() - 60;
                content[at] ^= 1;
            });
        }),
        ("flip in the last byte", |store, name| change(store, name, |content| *content.last_mut().unwrap() ^= 1)),
        ("grow", |store, name| change(store, name, |content| content.push(0))),
    ]
}

/// Every second one, the others with the next object; all of them if there is time.
fn some<T>(all: Vec<T>, number: usize) -> Vec<T> {
    let is_due = |at: usize| slow() || at % 2 == number % 2;
    all.into_iter().enumerate().filter(|(at, _)| is_due(*at)).map(|(_, damage)| damage).collect()
}

fn middle(content: &mut [u8]) -> &mut u8 {
    let at = content.len() / 2;
    &mut content[at]
}

pub(crate) fn run(kloset: &Kloset, apply: bool, from: &From<'_>) -> RepairReport {
    let handle = runtime().handle();
    let mut heal = |repo: &Repo, wanted: &Wanted<'_>| -> Result<HashSet<ChunkId>, _> {
        match from {
            From::Nobody => Ok(HashSet::new()),
            From::Copy(case) => other::heal_from(repo, handle, &Kloset::open(case.copy())?.0, wanted),
            From::Kloset(kloset) => other::heal_from(repo, handle, &kloset.0, wanted),
            From::Folder(source) => {
                let paths: [PathBuf; 1] = [source.path().to_owned()];
                let healed = backup::heal(repo, handle, (&paths, None), wanted.lost, &Arc::new(Monitor::default()));
                Ok(healed.unwrap())
            }
        }
    };
    repair(&kloset.0, handle, RepairOptions { read_data: true, apply }, &mut heal, &|_| {}).unwrap()
}

/// Damages an object, looks at the plan, applies it, and expects the object to be named and everything to be whole.
#[track_caller]
fn expect_whole_again(case: &Case, what: &str, name: &str, damage: impl FnOnce(&InMemory, &str), from: &From<'_>) {
    let store = case.copy();
    damage(&store, name);
    let recording = Recording::new(store);
    let kloset = Kloset::open(recording.clone()).unwrap();
    let plan = run(&kloset, false, from);
    assert_eq!(recording.mark(), 0, "{what}: a plan changes nothing");
    let report = run(&kloset, true, from);
    let named: Vec<_> = report.check.damaged.iter().map(|damage| damage.object.as_str()).collect();
    assert_eq!(named, [name], "{what}");
    assert!(report.is_whole() && plan.is_whole() && plan.is_needed(), "{what} {name}: {plan:#?} {report:#?}");
    let kloset = Kloset::open(recording.clone()).unwrap();
    case.assert_reads(&kloset, &case.names());
    assert_eq!(kloset.check().unwrap().damaged, [], "{what} {name}: {report:#?}");
    let mark = recording.mark();
    assert!(!run(&kloset, true, from).is_needed(), "{what}");
    assert_eq!(recording.mark(), mark, "{what}: a repair of what is whole puts nothing");
}

#[test]
fn with_a_copy_every_damaged_object_is_named_and_made_good() {
    let case = Case::new();
    let packs = case.named("packs");
    assert_eq!(packs.len(), 4);
    for (number, name) in packs.into_iter().enumerate() {
        for (what, damage) in some(damages(), number) {
            expect_whole_again(&case, what, &name, damage, &From::Copy(&case));
        }
    }
}

#[test]
fn with_the_source_lost_content_is_made_good() {
    let case = Case::new();
    for (number, name) in case.packs(true).into_iter().enumerate() {
        for (what, damage) in some(damages(), number) {
            expect_whole_again(&case, what, &name, damage, &From::Folder(&case.source));
        }
    }
}

#[test]
fn index_runs_are_made_again_without_anybody() {
    let case = Case::new();
    for (number, name) in case.named("index").into_iter().enumerate() {
        for (what, damage) in some(damages(), number) {
            expect_whole_again(&case, what, &name, damage, &From::Nobody);
        }
    }
    let store = case.copy();
    case.named("index").iter().for_each(|name| delete(&store, name));
    let kloset = Kloset::open(store).unwrap();
    assert_eq!(run(&kloset, true, &From::Nobody).packs_listed, 4);
    kloset.assert_whole();
    assert_eq!(kloset.backup(case.source.path()).manifest.summary.chunks_new, 0);
}

#[test]
fn folders_come_back_from_an_unchanged_source_and_from_a_kloset_with_other_keys() {
    let source = Source::new();
    for n in 0..4 {
        source.file(format!("a/b{}/f{n}", n % 2), noise(n, 9000));
    }
    source.sparse("a/sparse", &[(0, b"x"), (1 << 20, b"y")], 2 << 20);
    std::os::unix::fs::symlink("f0", source.at("a/link")).unwrap();
    source.file("large", noise(77, 400_000)); // more chunks than stand in a node
    let dump = source.scan();
    let without = |recording: &Recording, of_data: Option<bool>| {
        let store = recording.rebuild(recording.mark(), &[]);
        let kloset = Kloset::open(store.clone()).unwrap();
        for pack in runtime().block_on(kloset.0.store.list("packs")).unwrap() {
            if of_data.is_none_or(|of_data| kloset.is_data_pack(&pack.name) == of_data) {
                delete(&store, &pack.name);
            }
        }
        kloset
    };
    let expect = |name: SnapshotName, kloset: &Kloset, report: &RepairReport| {
        assert!(report.is_whole(), "{report:#?}");
        assert_same(&dump, &kloset.dump(name, source.path()).unwrap());
        kloset.assert_whole();
    };
    // The folders above the source are in the snapshot, too, and others make folders beside it.
    let (name, recording, other, (kloset, report)) = source.quietly(|| {
        let recording = Recording::in_memory();
        let same = || BackupOptions { time_unix_ms: Some(1_790_000_000_000), ..options(source.path()) };
        let name = Kloset::create(recording.clone()).backup_with(same()).unwrap().name;
        let other = Kloset::create(InMemory::new());
        other.backup_with(same()).unwrap();
        let kloset = without(&recording, None);
        let report = run(&kloset, true, &From::Folder(&source));
        (name, recording, other, (kloset, report))
    });
    expect(name, &kloset, &report);
    for of_data in [None, Some(true), Some(false)] {
        let kloset = without(&recording, of_data);
        assert!(!run(&kloset, false, &From::Nobody).is_whole());
        let report = run(&kloset, true, &From::Kloset(&other));
        expect(name, &kloset, &report);
    }
}

#[test]
fn what_nobody_has_is_left_out_of_a_corrected_snapshot_beside_the_damaged_one() {
    let case = Case::new();
    let (first, second) = (case.dumps[0].0, case.dumps[1].0);
    let store = case.copy();
    let added = case.packs(true).into_iter().find(|name| {
        let store = case.copy();
        delete(&store, name);
        case.readable(&Kloset::open(store).unwrap()) == [first]
    });
    delete(&store, &added.unwrap());
    let recording = Recording::new(store);
    let kloset = Kloset::open(recording.clone()).unwrap();
    let report = run(&kloset, true, &From::Nobody);
    assert!(!report.is_whole());
    let [verdict] = &report.snapshots[..] else { panic!("{report:#?}") };
    let Outcome::Corrected(by) = verdict.outcome else { panic!("{report:#?}") };
    assert_eq!((verdict.snapshot, verdict.paths_total), (second.id, 2));

    let corrected = SnapshotName { id: by, ..second };
    assert_eq!(kloset.snapshots().unwrap().len(), 3, "the damaged one stays");
    let manifest = runtime().block_on(kloset.0.manifest(corrected)).unwrap();
    assert!(manifest.incomplete && manifest.errors_total == 2 && manifest.parent == Some(second.id));
    assert_eq!((manifest.host.as_str(), &manifest.tags[..]), ("host", &[CORRECTED_TAG.to_owned()][..]));
    let told: Vec<_> = manifest.errors.iter().map(|error| error.path.0.clone()).collect();
    let at = |name| case.source.at(name).into_os_string().into_encoded_bytes();
    assert_eq!(told, [at("d1/added"), at("new/added")]);
    let mut left = case.dumps[1].1.clone();
    left.retain(|path, _| !path.ends_with(b"added"));
    assert_same(&left, &kloset.dump(corrected, case.source.path()).unwrap());
    case.assert_reads(&kloset, &[first]);

    let mark = recording.mark();
    let again = run(&kloset, true, &From::Nobody);
    assert_eq!(again.snapshots, report.snapshots, "one corrected snapshot is enough");
    assert_eq!(recording.put_since(mark, ""), Vec::<String>::new());
    // The damaged pack is marked: the next backup relies on nothing in it and stores it again, which heals.
    let rerun = kloset.backup_with(BackupOptions { force: true, ..options(case.source.path()) }).unwrap();
    assert!(rerun.manifest.summary.chunks_new > 0);
    case.assert_reads(&kloset, &case.names());
    kloset.assert_whole();
}

#[test]
fn a_snapshot_that_does_not_open_and_a_key_slot_are_named_with_what_to_do() {
    let case = Case::new();
    let (store, name) = (case.copy(), case.dumps[0].0);
    change(&store, &name.object(), |content| *middle(content) ^= 1);
    let kloset = Kloset::open(store).unwrap();
    let report = run(&kloset, true, &From::Nobody);
    assert_eq!(report.left[0].object, name.object());
    assert!(report.left[0].advice.contains(&format!("forget {}", name.id.short())), "{report:#?}");
    assert_eq!(report.snapshots[0].outcome, Outcome::Unreadable);
    case.assert_reads(&kloset, &case.names()[1..]);
}

#[test]
fn what_does_not_open_is_moved_aside_with_a_copy_and_what_is_not_understood_stays() {
    let case = Case::new();
    let (store, name) = (case.copy(), case.named("index")[0].clone());
    let kloset = Kloset::open(store.clone()).unwrap();
    let (keys, id) = (&kloset.0.keys, PendingId([7; 16]));
    let newer = PendingList { version: 2, created: String::new(), packs: Vec::new() };
    let newer = newer.seal(&keys.index_key(), keys.kloset(), id, [7; 24]);
    runtime().block_on(kloset.0.store.put_new(&layout::pending_name(id), newer.into())).unwrap();
    change(&store, &name, |content| *middle(content) ^= 1);
    let get = |name: &str| runtime().block_on(kloset.0.store.get(name, PACK_BYTES_MAX));
    let damaged = get(&name).unwrap();
    let report = run(&kloset, true, &From::Nobody);
    assert_eq!(report.set_aside, std::slice::from_ref(&name));
    assert_eq!(get(&format!("damaged/{name}")).unwrap(), damaged);
    assert!(get(&name).is_err());
    assert_eq!(report.left.iter().map(|left| &left.object).collect::<Vec<_>>(), [&layout::pending_name(id)]);
    assert!(get(&layout::pending_name(id)).is_ok() && !report.is_whole());
}

/// What a prune said of moved chunks is damaged: readers and backups do without it, a prune stops, and a repair sets it aside.
#[test]
fn a_damaged_list_of_moved_chunks_is_named_and_set_aside_and_nothing_is_lost_meanwhile() {
    let world = World::new(51);
    prune_often(&Kloset::open(world.recording.clone()).unwrap(), 2);
    let store = world.state();
    let objects = |store: &InMemory| {
        let found = runtime().block_on(Kloset::open(store.clone()).unwrap().0.store.list(layout::MOVED)).unwrap();
        found.into_iter().map(|object| object.name).collect::<Vec<_>>()
    };
    let [name] = &objects(&store)[..] else { panic!("{:?}", objects(&store)) };
    for damage in
        [&(|content: &mut Vec<u8>| *middle(content) ^= 1) as &dyn Fn(&mut Vec<u8>), &|content| content.truncate(70)]
    {
        let store = world.state();
        change(&store, name, damage);
        let kloset = Kloset::open(store.clone()).unwrap();
        let damaged: Vec<_> = kloset.check().unwrap().damaged.into_iter().map(|damage| damage.object).collect();
        assert_eq!(damaged, std::slice::from_ref(name));
        for (name, dump) in &world.kept {
            assert_same(dump, &kloset.dump(*name, world.source.path()).unwrap());
        }
        let now = world.source.scan();
        assert_same(&now, &kloset.dump(kloset.backup(world.source.path()).name, world.source.path()).unwrap());
        assert!(matches!(try_prune(&kloset), Err(RepoError::Damaged { object, .. }) if object == *name));
        let report = run(&kloset, true, &From::Nobody);
        assert_eq!(report.set_aside, std::slice::from_ref(name));
        prune_often(&kloset, 3);
        world.assert_kept(&kloset, "after the repair and three prunes");
        assert!(kloset.check().unwrap().damaged.is_empty());
    }
}

#[test]
fn a_damaged_joined_run_is_named_and_set_aside_and_the_runs_say_what_it_said() {
    let (store, source) = (Arc::new(InMemory::new()), Source::random(7, 8));
    Kloset::create(store.clone());
    let mut kloset = Kloset::open(store.clone()).unwrap();
    kloset.0.join_runs = 2;
    for day in 0..3 {
        source.file(format!("day {day}"), noise(day, 3000));
        kloset.backup(source.path());
    }
    let joined = runtime().block_on(kloset.0.store.list(layout::JOINED)).unwrap().remove(0).name;
    assert!(kloset.check().unwrap().damaged.is_empty());
    change(&store, &joined, |content| *middle(content) ^= 1);
    let damaged: Vec<_> = kloset.check().unwrap().damaged.into_iter().map(|damage| damage.object).collect();
    assert_eq!(damaged, std::slice::from_ref(&joined));
    let report = kloset.backup_with(BackupOptions { force: true, ..options(source.path()) }).unwrap();
    assert_eq!(report.manifest.summary.chunks_new, 0);
    let report = run(&kloset, true, &From::Nobody);
    assert_eq!(report.set_aside, [joined]);
    assert!(kloset.check().unwrap().damaged.is_empty());
}

/// Every prefix of a repair's mutations, with what was in flight: what read before reads, and the next repair ends it.
#[test]
fn a_crash_at_any_moment_of_a_repair_loses_nothing() {
    let case = Case::new();
    let (data, trees, runs) = (case.packs(true), case.packs(false), case.named("index"));
    let all = case.names();
    let cases: [(&str, &dyn Fn(&InMemory), From<'_>); 4] = [
        ("content, healed", &|store| delete(store, &data[0]), From::Copy(&case)),
        (
            "trees and an index run, healed",
            &|store| {
                change(store, &trees[1], |content| *middle(content) ^= 1);
                change(store, &runs[0], |content| content.truncate(100));
            },
            From::Copy(&case),
        ),
        (
            "content, salvaged and corrected",
            &|store| {
                change(store, &data[1], |content| content.truncate(content.len() / 2));
            },
            From::Nobody,
        ),
        ("no index", &|store| runs.iter().for_each(|name| delete(store, name)), From::Nobody),
    ];
    for (what, damage, from) in cases {
        let store = case.copy();
        damage(&store);
        let before = case.readable(&Kloset::open(store.fork()).unwrap());
        let recording = Recording::over(&store);
        let from_mark = recording.mark();
        let whole = run(&Kloset::open(recording.clone()).unwrap(), true, &from).is_whole();
        assert!(recording.mark() > from_mark, "{what}");
        for prefix in from_mark..=recording.mark() {
            for also in subsets(&recording, prefix).into_iter().take(size(2, 16) as usize) {
                let kloset = Kloset::open(recording.rebuild(prefix, &also)).unwrap();
                case.assert_reads(&kloset, &before);
                let report = run(&kloset, true, &from);
                assert_eq!(report.is_whole(), whole, "{what} after {prefix} and {also:?}: {report:#?}");
                case.assert_reads(&kloset, if whole { &all } else { &before });
                if whole {
                    kloset.assert_whole();
                }
            }
        }
    }
}

#[test]
fn a_prune_after_a_repair_keeps_what_was_stored_anew_and_deletes_the_damaged_pack() {
    let case = Case::new();
    for name in case.named("packs") {
        let store = case.copy();
        change(&store, &name, |content| *middle(content) ^= 1);
        let kloset = Kloset::open(store).unwrap();
        assert!(run(&kloset, true, &From::Copy(&case)).is_whole());
        prune_often(&kloset, 3);
        case.assert_reads(&kloset, &case.names());
        assert_eq!(kloset.check().unwrap().damaged, [], "{name}");
        let packs = runtime().block_on(kloset.0.store.list("packs")).unwrap();
        assert!(packs.iter().all(|object| object.name != name), "{name} is gone");
        assert!(!run(&kloset, true, &From::Nobody).is_needed(), "{name}");
    }
}

#[test]
fn a_damaged_pack_that_is_still_needed_stays_marked_whatever_is_pruned() {
    let case = Case::new();
    for name in case.packs(true) {
        let store = case.copy();
        change(&store, &name, |content| *middle(content) ^= 1);
        let kloset = Kloset::open(store).unwrap();
        assert!(!run(&kloset, true, &From::Nobody).is_whole());
        prune_often(&kloset, 3);
        let pending = runtime().block_on(lookup::load_pending(&kloset.0.store, &kloset.0.keys)).unwrap();
        assert!(pending.contains(&layout::parse_pack(&name).unwrap()), "{name}");
        let report = kloset.backup(case.source.path());
        assert!(report.manifest.summary.chunks_new > 0, "{name}: what is lost is stored anew");
        case.assert_reads(&kloset, &case.names());
        prune_often(&kloset, 3);
        case.assert_reads(&kloset, &case.names());
    }
}
