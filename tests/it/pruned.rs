//! After a prune: what every other command makes of a kloset whose chunks have moved, whether the old packs await deletion
//! or are gone.

use std::sync::Arc;

use kloset_mount::monitor::Monitor;
use kloset_mount::repo::RepoError;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::rewrite::{RewriteError, TagChange, delete_old, retag};
use kloset_mount::store::Store;
use kloset_mount::sync::{Sides, SyncOptions, plan, sync};
use object_store::memory::InMemory;

use crate::prune::{Hooked, World, forget_all, prune_often};
use crate::repair::{From, run};
use crate::rewrite::cut;
use crate::support::kloset::{Kloset, runtime};
use crate::support::stores::{Operation, Recording};
use crate::support::tree::assert_same;

/// After so many prunes the old packs await deletion, or are gone.
const PRUNES: std::ops::RangeInclusive<usize> = 1..=2;

fn copy_of(kloset: &Kloset) -> Kloset {
    let store = Store::new(Arc::new(InMemory::new()), "copy".to_owned());
    Kloset(runtime().block_on(kloset.0.create_replica(store)).unwrap())
}

/// Copies what `to` lacks, and fails unless that is all of it.
#[track_caller]
fn copy_all(from: &Kloset, to: &Kloset) -> Vec<SnapshotName> {
    let sides = Sides { from: &from.0, to: &to.0, runtime: runtime().handle() };
    let names = from.snapshots().unwrap();
    let missing = runtime().block_on(plan(sides, &names, false)).unwrap().missing;
    let report = sync(sides, &missing, SyncOptions::default(), &Arc::new(Monitor::default()));
    assert!(report.failure.is_none() && report.damaged.is_empty() && report.gone.is_empty(), "{report:?}");
    report.copied
}

fn tag(kloset: &Kloset, name: SnapshotName) -> Result<SnapshotName, RewriteError> {
    let change = TagChange { add: vec!["x".to_owned()], ..TagChange::default() };
    retag(&kloset.0, runtime().handle(), name, &change).map(|replaced| replaced.expect("it had no such tag").new)
}

#[test]
fn what_was_pruned_is_synced_whole_to_a_copy_and_to_other_keys_and_pruned_there() {
    for times in PRUNES {
        let world = World::new(31);
        let here = Kloset::open(world.recording.clone()).unwrap();
        prune_often(&here, times);
        for (what, there) in [("a copy", copy_of(&here)), ("other keys", Kloset::create(InMemory::new()))] {
            assert_eq!(copy_all(&here, &there).len(), 2, "{what}");
            world.assert_kept(&there, what);
            prune_often(&there, 3);
            world.assert_kept(&there, what);
        }
    }
}

#[test]
fn a_target_that_was_pruned_gets_what_it_lacks() {
    for times in PRUNES {
        let world = World::new(32);
        let here = Kloset::open(world.recording.clone()).unwrap();
        for (what, there) in [("a copy", copy_of(&here)), ("other keys", Kloset::create(InMemory::new()))] {
            copy_all(&here, &there);
            forget_all(&there, &[world.kept[0].0]);
            prune_often(&there, times);
            world.source.file(format!("since {what}"), "new");
            let new = here.backup(world.source.path()).name;
            let dump = here.dump(new, world.source.path()).unwrap();
            let copied = copy_all(&here, &there);
            assert!(copied.len() >= 2 && copied.contains(&world.kept[0].0), "{what}: {copied:?}");
            world.assert_kept(&there, what);
            assert_same(&dump, &there.dump(new, world.source.path()).unwrap());
            prune_often(&there, 3);
            world.assert_kept(&there, what);
            assert_same(&dump, &there.dump(new, world.source.path()).unwrap());
        }
    }
}

#[test]
fn tags_change_and_files_are_taken_out_after_a_prune_and_nothing_is_to_be_repaired() {
    for times in PRUNES {
        let mut world = World::new(33);
        let kloset = Kloset::open(world.recording.clone()).unwrap();
        prune_often(&kloset, times);
        assert!(!run(&kloset, false, &From::Nobody).is_needed(), "there is nothing to repair");
        let cut = cut(&kloset, world.kept[0].0, "changes").unwrap();
        delete_old(&kloset.0, runtime().handle(), cut).unwrap();
        world.kept[0].0 = cut.new;
        assert!(world.kept[0].1.remove(&b"changes"[..]).is_some());
        world.kept[1].0 = tag(&kloset, world.kept[1].0).unwrap();
        assert_eq!(kloset.snapshots().unwrap().len(), 2);
        world.assert_kept(&kloset, "rewritten");
        prune_often(&kloset, 3);
        world.assert_kept(&kloset, "pruned again");
    }
}

#[test]
fn a_snapshot_that_is_forgotten_while_another_takes_its_place_leaves_none_that_may_lack_something() {
    let recording = Recording::in_memory();
    let source = crate::support::tree::Source::random(34, 5);
    let name = Kloset::create(recording.clone()).backup(source.path()).name;
    let mut taken_back = 0;
    for nth in 0.. {
        let store = Hooked::new(recording.rebuild(recording.mark(), &[]));
        let kloset = Kloset::open(store.clone()).unwrap();
        let beside = Kloset::open(store.beside()).unwrap();
        store.set(nth, {
            let beside = beside.clone();
            move || forget_all(&beside, &[name])
        });
        let tagged = tag(&kloset, name);
        let requests = store.requests();
        let is_put =
            |(operation, at): &(Operation, String)| *operation == Operation::Put && at.starts_with("snapshots/");
        let (names, put) = (beside.snapshots().unwrap(), requests.iter().any(is_put));
        match tagged {
            Ok(new) => assert_eq!(names, [new], "{nth}"),
            Err(RewriteError::Repo(RepoError::NoSnapshot(_))) => {
                assert!(names.is_empty(), "{nth}: {names:?}");
                taken_back += usize::from(put);
            }
            Err(error) => panic!("{nth}: {error}"),
        }
        if requests.len() <= nth {
            break;
        }
    }
    assert!(taken_back > 0);
}
