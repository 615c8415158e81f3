//! The damage matrix: whatever happens to whichever object, `check` names exactly that object, tells whose files are
//! lost, and everything else still reads.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use kloset_mount::env::Entropy;
use kloset_mount::repo::check::{CheckReport, NoteKind};
use kloset_mount::repo::id::{PackId, RunId, SnapshotId};
use kloset_mount::repo::index::IndexRun;
use kloset_mount::repo::keyslot::{ARGON2_RECOMMENDED, KeySlot, NewSlot, SlotSecret};
use kloset_mount::repo::layout::{self, SnapshotName};
use kloset_mount::repo::pack::{self, PackBuilder, PackKind};
use kloset_mount::repo::{Repo, RepoError};
use kloset_mount::restore::Overwrite;

use crate::support::kloset::footer_of;
use crate::support::scratch::{Scratch, noise};

type Objects = BTreeMap<String, Vec<u8>>;

/// A kloset with two snapshots of two sessions, each with packs and an index run of its own, and two key slots.
struct Matrix {
    scratch: Scratch,
    snapshots: Vec<SnapshotName>,
    objects: Objects,
    data: Vec<String>,
    trees: Vec<String>,
    /// The key slot that the tests do not use.
    slot: String,
}

impl Matrix {
    fn new() -> Matrix {
        let scratch = Scratch::new();
        let source = scratch.source();
        for n in 0..6 {
            fs::create_dir(source.join(format!("d{n}"))).unwrap();
            fs::write(source.join(format!("d{n}/first")), noise(&format!("first {n}"), 400_000)).unwrap();
            fs::write(source.join(format!("d{n}/tiny")), format!("tiny {n}")).unwrap();
        }
        let mut snapshots = vec![scratch.backup()];
        let mut known: BTreeSet<String> = scratch.objects().into_keys().collect();
        let (data, trees) = packs_of(&scratch.repo, &scratch, &known);
        let (mut data, mut trees) = (data, trees);
        fs::write(source.join("d3/second"), noise("second", 1_300_000)).unwrap();
        snapshots.push(scratch.backup());
        let now: BTreeSet<String> = scratch.objects().into_keys().collect();
        let new = now.difference(&known).cloned().collect();
        let (more_data, more_trees) = packs_of(&scratch.repo, &scratch, &new);
        data.extend(more_data);
        trees.extend(more_trees);
        known.extend(now);
        let slot = add_slot(&scratch);
        let objects = scratch.objects();
        Matrix { scratch, snapshots, objects, data, trees, slot }
    }

    fn named(&self, folder: &str) -> Vec<String> {
        self.objects.keys().filter(|name| name.starts_with(folder)).cloned().collect()
    }

    fn open(&self, objects: &Objects) -> Result<Repo, RepoError> {
        self.scratch.open(&self.scratch.lay_out(objects))
    }

    /// Damages objects and expects the check to name exactly `expected`; then restores each snapshot and holds what
    /// was lost against what the check said.
    #[track_caller]
    fn check(&self, case: &str, damage: impl FnOnce(&mut Objects), expected: &[&str]) -> CheckReport {
        let mut objects = self.objects.clone();
        damage(&mut objects);
        let repo = self.open(&objects).unwrap_or_else(|error| panic!("{case}: {error}"));
        let report = self.scratch.check(&repo, true);
        let found: Vec<_> = report.damaged.iter().map(|d| d.object.as_str()).collect();
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected, "{case}: {report:?}");
        self.hold_against_restore(case, &repo, &report);
        report
    }

    #[track_caller]
    fn hold_against_restore(&self, case: &str, repo: &Repo, report: &CheckReport) {
        let affected = report.snapshots_affected();
        for snapshot in &self.snapshots {
            let target = self.scratch.fresh("target");
            let restored = self.scratch.restore(repo, *snapshot, &target, Overwrite::Never);
            if !affected.contains(&snapshot.id) {
                if let Err(kloset_mount::restore::RestoreError::Repo(RepoError::NoSnapshot(_))) = restored {
                    continue; // it was deleted: nobody can tell that from a forget
                }
                assert_eq!(restored.expect(case).failures_total, 0, "{case}");
                continue;
            }
            let Ok(restored) = restored else { continue };
            assert!(restored.failures_total > 0 && restored.damaged > 0, "{case}: {restored:?}");
            let told: BTreeSet<_> = report.damaged.iter().flat_map(|d| &d.paths).map(|p| p.path.clone()).collect();
            for failure in &restored.failures {
                assert!(told.contains(&failure.path), "{case}: {failure:?} not in {told:?}");
            }
        }
    }
}

fn packs_of(repo: &Repo, scratch: &Scratch, names: &BTreeSet<String>) -> (Vec<String>, Vec<String>) {
    let packs = names.iter().filter_map(|name| layout::parse_pack(name));
    let objects = scratch.objects();
    packs.map(|id| id.to_string()).partition(|name| footer_of(repo, name, &objects[name]).kind == PackKind::Data)
}

fn add_slot(scratch: &Scratch) -> String {
    let secret = SlotSecret::parse_key_file(&"77".repeat(32)).unwrap();
    let new = NewSlot { secret: &secret, cost: ARGON2_RECOMMENDED, label: "writer" };
    let repo = &scratch.repo;
    let slot = KeySlot::write_only(repo.keys.kloset(), repo.keys.write_keys(), &new, &repo.env).unwrap();
    let name = layout::slot_name(slot.id);
    scratch.runtime.block_on(repo.store.put_new(&name, slot.encode().into())).unwrap();
    name
}

/// What can happen to one object by itself.
fn damages() -> Vec<(&'static str, fn(&mut Vec<u8>))> {
    fn flip(content: &mut [u8], at: impl Fn(usize) -> usize) {
        content[at(content.len())] ^= 0x10;
    }
    vec![
        ("truncate", |content| content.truncate(content.len() / 2)),
        ("cut the last byte", |content| content.truncate(content.len() - 1)),
        ("flip at the head", |content| flip(content, |_| 3)),
        ("flip in the middle", |content| flip(content, |n| n / 2)),
        ("flip in the footer", |content| flip(content, |n| n - 60)),
        ("flip in the last byte", |content| flip(content, |n| n - 1)),
        ("zero length", Vec::clear),
        ("grow", |content| content.push(0)),
    ]
}

fn swap(objects: &mut Objects, a: &str, b: &str) {
    let (first, second) = (objects[a].clone(), objects[b].clone());
    objects.insert(a.to_owned(), second);
    objects.insert(b.to_owned(), first);
}

#[test]
fn a_whole_kloset_has_nothing_to_tell() {
    let matrix = Matrix::new();
    assert_eq!((matrix.data.len(), matrix.trees.len()), (2, 2));
    let report = matrix.check("whole", |_| {}, &[]);
    assert!(report.notes.is_empty(), "{report:?}");
    let counts = report.counts;
    assert_eq!((counts.snapshots, counts.packs, counts.packs_read, counts.index_runs), (2, 4, 4, 2));
    assert_eq!((counts.key_slots, counts.moved), (2, 0));
}

#[test]
fn a_damaged_pack_is_named_and_so_are_the_files_it_costs() {
    let matrix = Matrix::new();
    for name in matrix.data.iter().chain(&matrix.trees) {
        let report = matrix.check("delete", |objects| drop(objects.remove(name)), &[name]);
        assert!(report.damaged[0].missing && report.damaged[0].paths_total > 0, "{report:?}");
        for (case, damage) in damages() {
            matrix.check(case, |objects| damage(objects.get_mut(name).unwrap()), &[name]);
        }
    }
    for packs in [&matrix.data, &matrix.trees] {
        matrix.check("swap", |objects| swap(objects, &packs[0], &packs[1]), &[&packs[0], &packs[1]]);
    }
    // The second session added one file: the first snapshot does not suffer.
    let report = matrix.check("delete", |objects| drop(objects.remove(&matrix.data[1])), &[&matrix.data[1]]);
    assert_eq!(report.damaged[0].snapshots, [matrix.snapshots[1].id]);
    assert_eq!(report.damaged[0].paths_total, 1);
    assert!(report.damaged[0].paths[0].path.0.ends_with(b"/source/d3/second"));
    // What the first session stored is in both.
    let report = matrix.check("delete", |objects| drop(objects.remove(&matrix.data[0])), &[&matrix.data[0]]);
    assert_eq!(report.damaged[0].snapshots.len(), 2);
    assert_eq!(report.damaged[0].paths_total, 12);
}

#[test]
fn without_reading_content_missing_and_cut_packs_are_found_too() {
    let matrix = Matrix::new();
    let cases: [(&str, fn(&mut Objects, &str)); 3] = [
        ("delete", |objects, name| drop(objects.remove(name))),
        ("truncate", |objects, name| objects.get_mut(name).unwrap().truncate(1000)),
        ("zero length", |objects, name| objects.get_mut(name).unwrap().clear()),
    ];
    for (case, damage) in cases {
        let mut objects = matrix.objects.clone();
        damage(&mut objects, &matrix.data[0]);
        let report = matrix.scratch.check(&matrix.open(&objects).unwrap(), false);
        let found: Vec<_> = report.damaged.iter().map(|d| d.object.as_str()).collect();
        assert_eq!(found, [&matrix.data[0]], "{case}");
        assert_eq!(report.damaged[0].paths_total, 12, "{case}");
    }
}

#[test]
fn a_damaged_index_run_is_named_and_costs_no_file() {
    let matrix = Matrix::new();
    let runs = matrix.named("index/");
    for name in &runs {
        matrix.check("delete", |objects| drop(objects.remove(name)), &[name]);
        for (case, damage) in damages() {
            let report = matrix.check(case, |objects| damage(objects.get_mut(name).unwrap()), &[name]);
            assert!(report.snapshots_affected().is_empty(), "{case}");
        }
    }
    matrix.check("swap", |objects| swap(objects, &runs[0], &runs[1]), &[&runs[0], &runs[1]]);
    let copy = format!("index/{}", "ab".repeat(16));
    let duplicate = |objects: &mut Objects| drop(objects.insert(copy.clone(), objects[&runs[0]].clone()));
    matrix.check("duplicate", duplicate, &[&copy]);
}

#[test]
fn a_damaged_snapshot_is_named_and_the_other_still_reads() {
    let matrix = Matrix::new();
    let names = matrix.named("snapshots/");
    matrix.check("delete", |objects| drop(objects.remove(&names[0])), &[]);
    for (case, damage) in damages() {
        let report = matrix.check(case, |objects| damage(objects.get_mut(&names[0]).unwrap()), &[&names[0]]);
        assert_eq!(report.damaged[0].snapshots, [matrix.snapshots[0].id], "{case}");
    }
    matrix.check("swap", |objects| swap(objects, &names[0], &names[1]), &[&names[0], &names[1]]);
    let copy = SnapshotName { unix_ms: 1, id: SnapshotId([1; 16]) }.object();
    let duplicate = |objects: &mut Objects| drop(objects.insert(copy.clone(), objects[&names[0]].clone()));
    matrix.check("duplicate", duplicate, &[&copy]);
}

#[test]
fn a_damaged_key_slot_is_named_where_it_can_be_told() {
    let matrix = Matrix::new();
    let slot = &matrix.slot;
    matrix.check("delete", |objects| drop(objects.remove(slot)), &[]); // as `key rm` does
    matrix.check("truncate", |objects| objects.get_mut(slot).unwrap().truncate(100), &[slot]);
    matrix.check("flip at the head", |objects| objects.get_mut(slot).unwrap()[0] ^= 1, &[slot]);
    matrix.check("zero length", |objects| objects.get_mut(slot).unwrap().clear(), &[slot]);
    let copy = format!("keys/{}.json", "ab".repeat(16));
    matrix.check("duplicate", |objects| drop(objects.insert(copy.clone(), objects[slot].clone())), &[&copy]);
    let slots = matrix.named("keys/");
    let mut objects = matrix.objects.clone();
    swap(&mut objects, &slots[0], &slots[1]);
    assert!(matches!(matrix.open(&objects), Err(RepoError::Damaged { object, .. }) if object.starts_with("keys/")));
}

#[test]
fn a_damaged_header_is_told_when_the_kloset_is_opened() {
    let matrix = Matrix::new();
    let mut objects = matrix.objects.clone();
    objects.remove(layout::HEADER);
    assert!(matches!(matrix.open(&objects), Err(RepoError::NoKloset(_))));
    for (case, damage) in damages().into_iter().filter(|(case, _)| *case != "cut the last byte") {
        let mut objects = matrix.objects.clone();
        damage(objects.get_mut(layout::HEADER).unwrap());
        let error = matrix.open(&objects).err().unwrap_or_else(|| panic!("{case} is not noticed"));
        assert!(error.to_string().contains("kloset.json"), "{case}: {error}");
    }
}

#[test]
fn leftovers_and_foreign_objects_are_noted_and_no_damage() {
    let matrix = Matrix::new();
    let stray = format!("{}/0000ffff", matrix.data[0].rsplit_once('/').unwrap().0);
    let add = |objects: &mut Objects| {
        objects.insert(stray.clone(), objects[&matrix.data[0]].clone());
        objects.insert("kloset.json.bak".into(), b"x".to_vec());
        objects.insert("packs/readme.txt".into(), b"xyz".to_vec());
    };
    let report = matrix.check("leftovers", add, &[]);
    let notes: Vec<_> = report.notes.iter().map(|n| (n.kind, n.names.clone())).collect();
    let foreign = vec!["kloset.json.bak".to_owned(), "packs/readme.txt".to_owned()];
    assert_eq!(notes, [(NoteKind::Unreferenced, vec![stray]), (NoteKind::Foreign, foreign)]);
}

#[test]
fn chunks_that_moved_to_another_pack_are_found_and_no_damage() {
    let matrix = Matrix::new();
    let report = matrix.check("move", |objects| move_pack(&matrix.scratch.repo, objects, &matrix.data[0]), &[]);
    assert!(report.counts.moved > 0, "{report:?}");
    let report = matrix.check("move", |objects| move_pack(&matrix.scratch.repo, objects, &matrix.trees[0]), &[]);
    assert!(report.counts.moved > 0, "{report:?}");
}

/// Does as a prune would: stores a pack's chunks in a pack of another session, and replaces the index runs.
fn move_pack(repo: &Repo, objects: &mut Objects, name: &str) {
    let content = objects.remove(name).unwrap();
    let (old, footer) = (layout::parse_pack(name).unwrap(), footer_of(repo, name, &content));
    let old_key = repo.keys.session_key(&old.session).unwrap();
    let (session, key) = repo.keys.new_session(&Entropy::System);
    let new = PackId { session, number: 0 };
    let mut builder = PackBuilder::new(footer.kind);
    for frame in &footer.frames {
        let sealed = &content[frame.offset as usize..][..frame.bytes as usize];
        let raw = pack::open_frame(&old_key, (repo.keys.kloset(), old.session), sealed).unwrap();
        let nonce = Entropy::System.bytes();
        builder.push(
            pack::seal_frame(&key, (repo.keys.kloset(), session), nonce, 1, raw[..].into()),
            frame.chunks.clone(),
        );
    }
    let (object, footer) = builder.finish(&key, repo.keys.kloset(), new, Entropy::System.bytes());
    let mut run = IndexRun::default();
    run.add_pack(new, object.content_length() as u64, &footer);
    objects.insert(new.to_string(), bytes::Bytes::from(object).to_vec());
    let others: Vec<String> =
        objects.keys().filter(|n| layout::parse_pack(n).is_some_and(|id| id != new)).cloned().collect();
    for other in others {
        let footer = footer_of(repo, &other, &objects[&other]);
        run.add_pack(layout::parse_pack(&other).unwrap(), objects[&other].len() as u64, &footer);
    }
    objects.retain(|name, _| layout::parse_run(name).is_none());
    let id = RunId(Entropy::System.bytes());
    let sealed = run.seal(&repo.keys.index_key(), repo.keys.kloset(), id, Entropy::System.bytes());
    objects.insert(layout::run_name(id), sealed);
}
