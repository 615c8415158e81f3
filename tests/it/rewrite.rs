//! Tags and taken-out files: a snapshot takes another's place, and a crash between leaves both, whole.

use std::sync::Arc;

use kloset_mount::backup::{PathRules, Rule};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::snapshot::Manifest;
use kloset_mount::rewrite::{Replaced, RewriteError, Rewriter, TagChange, delete_old, retag};
use kloset_mount::sync::{Sides, SyncOptions, plan, sync};
use object_store::memory::InMemory;

use crate::support::kloset::{Kloset, runtime};
use crate::support::random::noise;
use crate::support::stores::{Fault, Faulty, Operation, Recording, Rule as FaultRule};
use crate::support::tree::{Source, assert_same};

fn add(tag: &str) -> TagChange {
    TagChange { add: vec![tag.to_owned()], ..TagChange::default() }
}

fn tag(kloset: &Kloset, name: SnapshotName, change: &TagChange) -> Result<Option<Replaced>, RewriteError> {
    retag(&kloset.0, runtime().handle(), name, change)
}

fn manifest(kloset: &Kloset, name: SnapshotName) -> Manifest {
    runtime().block_on(kloset.0.manifest(name)).unwrap()
}

#[test]
fn a_crash_while_tags_change_leaves_one_or_both_and_the_same_again_ends_it() {
    let recording = Recording::in_memory();
    let kloset = Kloset::create(recording.clone());
    let source = Source::random(1, 8);
    let first = kloset.backup(source.path());
    let dump = kloset.dump(first.name, source.path()).unwrap();
    let from = recording.mark();
    let replaced = tag(&kloset, first.name, &add("kept")).unwrap().unwrap();
    assert_eq!(recording.mark() - from, 2, "a snapshot is put, then one is deleted");
    let is = manifest(&kloset, replaced.new);
    let expected =
        Manifest { id: is.id, original: Some(first.manifest.id), tags: vec!["kept".into()], ..first.manifest.clone() };
    assert_eq!(is, expected);
    for prefix in from..=recording.mark() {
        let left = Kloset::open(Recording::new(recording.rebuild(prefix, &[]))).unwrap();
        for name in left.snapshots().unwrap() {
            assert_same(&dump, &left.dump(name, source.path()).unwrap());
        }
        left.assert_whole();
        for name in left.snapshots().unwrap() {
            tag(&left, name, &add("kept")).unwrap();
        }
        let names = left.snapshots().unwrap();
        assert_eq!(names.len(), 1, "after {prefix}: {names:?}");
        assert_eq!(manifest(&left, names[0]).original, Some(first.manifest.id));
    }
    assert!(tag(&kloset, replaced.new, &add("kept")).unwrap().is_none(), "nothing to change");
    let again = tag(&kloset, replaced.new, &add("more")).unwrap().unwrap();
    assert_eq!(manifest(&kloset, again.new).original, Some(first.manifest.id), "the first one, not the last");
    let next = kloset.backup(source.path());
    assert_eq!(next.manifest.parent, Some(again.new.id), "the next backup is compared with it");
}

#[test]
fn where_nothing_may_be_deleted_both_stay_and_the_same_again_only_deletes() {
    let faulty = Faulty::new(Arc::new(InMemory::new()), 1);
    let kloset = Kloset::create(faulty.clone());
    let source = Source::random(2, 5);
    let name = kloset.backup(source.path()).name;
    let fault =
        FaultRule { operation: Operation::Delete, prefix: "snapshots/", calls: 0..1, one_in: 1, fault: Fault::Before };
    faulty.set(&[fault]);
    let error = tag(&kloset, name, &add("x")).unwrap_err();
    assert!(matches!(error, RewriteError::NotDeleted { replaced, .. } if replaced.old == name), "{error}");
    assert_eq!(kloset.snapshots().unwrap().len(), 2);
    tag(&kloset, name, &add("x")).unwrap().unwrap();
    let left = kloset.snapshots().unwrap();
    assert!(left.len() == 1 && left[0] != name, "{left:?}");
    kloset.assert_whole();
}

#[test]
fn a_tagged_snapshot_is_synced_without_its_content_and_the_old_one_does_not_come_back() {
    let (here, there) = (Kloset::create(Recording::in_memory()), Kloset::create(Recording::in_memory()));
    let source = Source::random(3, 20);
    source.file("large", noise(3, 200_000));
    let old = here.backup(source.path()).name;
    let copy = |from: &Kloset, to: &Kloset| {
        let sides = Sides { from: &from.0, to: &to.0, runtime: runtime().handle() };
        let plan = runtime().block_on(async { plan(sides, &from.0.snapshots().await.unwrap(), false).await }).unwrap();
        let report = sync(sides, &plan.missing, SyncOptions::default(), &Arc::new(Monitor::default()));
        assert!(report.failure.is_none() && report.damaged.is_empty(), "{report:?}");
        (report.copied, plan.replaced)
    };
    copy(&here, &there);
    let new = tag(&here, old, &add("x")).unwrap().unwrap().new;
    let before = there.0.store.counts().bytes_up;
    assert_eq!(copy(&here, &there), (vec![new], vec![]));
    let sent = there.0.store.counts().bytes_up - before;
    assert!(sent < 20_000, "{sent} bytes for a tag");
    assert_eq!(copy(&there, &here), (vec![], vec![old]), "it has one in its place");
    there.assert_whole();
}

/// Rewrites a snapshot without what fits `rule`.
pub(crate) fn cut(kloset: &Kloset, name: SnapshotName, rule: &str) -> Option<Replaced> {
    let rules = PathRules::new(&[Rule { text: rule.to_owned(), from: String::new() }]).unwrap();
    let leaves = |path: &[u8], is_directory: bool| rules.leaves_out(path, is_directory);
    let monitor = Monitor::default();
    let mut rewriter = Rewriter::new(&kloset.0, runtime().handle(), &leaves, &monitor);
    let found = rewriter.look(name).unwrap()?;
    Some(rewriter.apply(&found, &[rule.to_owned()]).unwrap())
}

#[test]
fn what_is_taken_out_is_gone_and_all_else_is_as_it_was() {
    let store = Recording::in_memory();
    let kloset = Kloset::create(store.clone());
    let source = Source::random(4, 30);
    source.file("a/secret/one", noise(1, 3000));
    source.file("a/secret/two", noise(2, 3000));
    source.file("a/kept", noise(3, 3000));
    let report = kloset.backup(source.path());
    let before = store.mark();
    assert!(cut(&kloset, report.name, "nowhere").is_none() && store.mark() == before);
    let replaced = cut(&kloset, report.name, "secret/").unwrap();
    let data = store.put_since(before, "packs/").into_iter().filter(|name| kloset.is_data_pack(name)).count();
    assert_eq!(data, 0, "no content is written");
    let mut expected = kloset.dump(report.name, source.path()).unwrap();
    expected.retain(|path, _| !path.starts_with(b"a/secret"));
    assert_same(&expected, &kloset.dump(replaced.new, source.path()).unwrap());
    kloset.assert_whole();
    let (was, is) = (report.manifest, manifest(&kloset, replaced.new));
    assert_eq!((is.summary.files, is.summary.bytes), (was.summary.files - 2, was.summary.bytes - 6000));
    assert_eq!((is.original, &is.host, &is.time), (Some(was.id), &was.host, &was.time));
    assert_eq!(is.summary.directories, was.summary.directories - 1);
    assert_eq!(cut(&kloset, report.name, "secret/").unwrap(), replaced, "the same again finds it");
    delete_old(&kloset.0, runtime().handle(), replaced).unwrap();
    assert_eq!(kloset.snapshots().unwrap(), [replaced.new]);
    kloset.assert_whole();
}

#[test]
fn a_crash_while_files_are_taken_out_leaves_every_snapshot_whole() {
    let recording = Recording::slow();
    let kloset = Kloset::create(recording.clone());
    let source = Source::random(5, 15);
    source.file("x/secret", noise(1, 3000));
    let name = kloset.backup(source.path()).name;
    let whole = kloset.dump(name, source.path()).unwrap();
    let from = recording.mark();
    let replaced = cut(&kloset, name, "secret").unwrap();
    delete_old(&kloset.0, runtime().handle(), replaced).unwrap();
    assert!(recording.mark() - from >= 4, "a pack, a run, a snapshot, a deletion");
    let mut less = whole.clone();
    less.retain(|path, _| path != b"x/secret");
    for prefix in from..=recording.mark() {
        let left = Kloset::open(Recording::new(recording.rebuild(prefix, &[]))).unwrap();
        left.assert_whole();
        for there in left.snapshots().unwrap() {
            let expected = if there == name { &whole } else { &less };
            assert_same(expected, &left.dump(there, source.path()).unwrap());
        }
        if left.snapshots().unwrap().contains(&name) {
            let replaced = cut(&left, name, "secret").unwrap();
            delete_old(&left.0, runtime().handle(), replaced).unwrap();
        }
        let names = left.snapshots().unwrap();
        assert_eq!(names.len(), 1, "after {prefix}");
        assert_same(&less, &left.dump(names[0], source.path()).unwrap());
    }
}
