//! A crash at any moment of a backup loses nothing.
//!
//! For every prefix of a backup's mutations, with every subset of the uploads that were in flight: a check finds nothing
//! missing or damaged, earlier snapshots read as before, and the next backup succeeds and stores nothing that an index
//! run lists already.

use std::collections::HashSet;

use kloset_mount::repo::RepoError;
use kloset_mount::repo::id::ChunkId;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::lookup::{Loaded, for_each_run};

use crate::support::kloset::{Kloset, runtime};
use crate::support::random::{noise, size};
use crate::support::stores::Recording;
use crate::support::tree::{Dump, Source, assert_same};

/// The most subsets of the uploads in flight that are tried at one prefix.
const SUBSETS_MAX: usize = 16;

/// A backup that was recorded, and what must hold after a crash of it.
struct Recorded {
    recording: Recording,
    source: Source,
    /// What the source holds.
    now: Dump,
    earlier: Vec<(SnapshotName, Dump)>,
    last: SnapshotName,
}

/// Returns the states that a crash after `prefix` mutations can leave: which of the later ones took effect too.
pub(crate) fn subsets(recording: &Recording, prefix: usize) -> Vec<Vec<usize>> {
    let flying = recording.in_flight(prefix);
    let count = 1_usize.checked_shl(u32::try_from(flying.len()).unwrap()).unwrap_or(usize::MAX).min(SUBSETS_MAX);
    let chosen = |mask: usize| (0..flying.len()).filter(move |bit| mask >> bit & 1 == 1);
    (0..count).map(|mask| chosen(mask).map(|bit| flying[bit]).collect()).collect()
}

fn listed(kloset: &Kloset) -> Vec<(String, HashSet<ChunkId>)> {
    let (store, mut listed) = (&kloset.0.store, Vec::new());
    let take = |_, loaded: Loaded| {
        listed.push((format!("{:?}", loaded.ids), loaded.run.entries.iter().map(|entry| entry.id).collect()));
    };
    runtime().block_on(for_each_run((store, store), &kloset.0.keys, take)).unwrap();
    listed
}

impl Recorded {
    /// Holds one state against the rules; returns how many chunks an index run listed already.
    #[track_caller]
    fn check(&self, prefix: usize, also: &[usize]) -> usize {
        let again = Recording::new(self.recording.rebuild(prefix, also));
        let kloset = Kloset::open(again.clone()).unwrap_or_else(|e| panic!("after {prefix} and {also:?}: {e}"));
        kloset.assert_whole();
        for (name, dump) in &self.earlier {
            assert_same(dump, &kloset.dump(*name, self.source.path()).unwrap());
        }
        if kloset.snapshots().unwrap().contains(&self.last) {
            assert_same(&self.now, &kloset.dump(self.last, self.source.path()).unwrap());
        }
        let before = listed(&kloset);
        let rerun = kloset.backup(self.source.path());
        assert_same(&self.now, &kloset.dump(rerun.name, self.source.path()).unwrap());
        kloset.assert_whole();
        let known: HashSet<ChunkId> = before.iter().flat_map(|run| &run.1).copied().collect();
        for (run, ids) in listed(&kloset) {
            if before.iter().all(|(other, _)| *other != run) {
                let twice = ids.intersection(&known).count();
                assert_eq!(twice, 0, "after {prefix} and {also:?} {twice} chunks that were listed are stored again");
            }
        }
        known.len()
    }

    fn check_all(&self, from: usize) -> usize {
        let mut states = 0;
        for prefix in from..=self.recording.mark() {
            for also in subsets(&self.recording, prefix) {
                self.check(prefix, &also);
                states += 1;
            }
        }
        states
    }
}

/// Records a second backup of a source that has changed since the first.
fn record(seed: u64, files: u64, more: impl FnOnce(&Source)) -> (Recorded, usize) {
    let recording = Recording::slow();
    let kloset = Kloset::create(recording.clone());
    let source = Source::random(seed, files);
    let first = kloset.backup(source.path());
    let earlier = vec![(first.name, kloset.dump(first.name, source.path()).unwrap())];
    source.grow(seed + 1_000_000, files / 2);
    more(&source);
    let from = recording.mark();
    let last = kloset.backup(source.path()).name;
    let now = source.scan();
    (Recorded { recording, source, now, earlier, last }, from)
}

#[test]
fn a_crash_at_any_moment_of_a_backup_loses_nothing() {
    for seed in 0..size(12, 300) {
        eprintln!("seed {seed}");
        let (recorded, from) = record(seed, 30, |_| {});
        assert!(recorded.check_all(from) >= 4, "two packs, an index run and a snapshot make more states");
    }
}

#[test]
fn a_crash_with_several_uploads_in_flight_loses_nothing() {
    let (recorded, from) = record(1, 10, |source| {
        for part in 0..4 {
            source.file(format!("large/{part}"), noise(part, 12 << 20));
        }
    });
    let flying = (from..recorded.recording.mark()).map(|at| recorded.recording.in_flight(at).len()).max();
    assert!(flying >= Some(2), "{flying:?} uploads at once");
    recorded.check_all(from);
}

#[test]
fn a_crash_in_the_first_backup_leaves_a_kloset_that_takes_the_next() {
    let recording = Recording::slow();
    let kloset = Kloset::create(recording.clone());
    let source = Source::random(7, 40);
    let from = recording.mark();
    let last = kloset.backup(source.path()).name;
    let now = source.scan();
    Recorded { recording, source, now, earlier: Vec::new(), last }.check_all(from);
}

#[test]
fn what_an_interrupted_backup_put_and_listed_is_not_put_again() {
    let (recorded, _) = record(3, 40, |source| drop(source.file("new", noise(99, 300_000))));
    let end = recorded.recording.mark();
    let name = &recorded.recording.mutations()[end - 1].name;
    assert!(name.starts_with("snapshots/"), "the snapshot comes last, not {name}");
    let again = Recording::new(recorded.recording.rebuild(end - 1, &[]));
    let kloset = Kloset::open(again.clone()).unwrap();
    let rerun = kloset.backup(recorded.source.path());
    assert_eq!(rerun.manifest.summary.chunks_new, 0);
    let packs = again.put_since(0, "packs/");
    assert!(packs.len() <= 1, "at most the trees above the source, which others change: {packs:?}");
    assert!(recorded.check(end - 1, &[]) > 0);
}

#[test]
fn objects_are_put_in_the_order_in_which_nobody_misses_any() {
    let (recorded, from) = record(5, 40, |_| {});
    let order = |name: &str| ["packs/", "index/", "snapshots/"].iter().position(|prefix| name.starts_with(prefix));
    let names: Vec<_> = recorded.recording.mutations().into_iter().skip(from).map(|m| m.name).collect();
    assert!(names.is_sorted_by_key(|name| order(name).expect("nothing else is put")), "{names:?}");
}

#[test]
fn a_crash_of_create_leaves_no_kloset_or_a_whole_one() {
    let recording = Recording::in_memory();
    Kloset::create(recording.clone());
    for prefix in 0..=recording.mark() {
        let left = recording.rebuild(prefix, &[]);
        let again = Recording::new(left);
        match Kloset::open(again.clone()) {
            Ok(kloset) => assert!(prefix == recording.mark() && kloset.check().unwrap().damaged.is_empty()),
            Err(RepoError::NoKloset(_)) => {
                assert!(prefix < recording.mark());
                Kloset::create(again.clone()).assert_whole();
                Kloset::open(again).unwrap();
            }
            Err(error) => panic!("after {prefix}: {error}"),
        }
    }
}
