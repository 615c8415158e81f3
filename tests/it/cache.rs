//! The cache on disk, through readers and the program: right bytes whatever happens to it, and hardly a request.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kloset_mount::repo::RepoError;
use kloset_mount::restore::Overwrite;
use kloset_mount::store::CacheOptions;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::support::kloset::{Kloset, options};
use crate::support::random::noise;
use crate::support::scratch::Scratch;
use crate::support::stores::{Fault, Faulty, Operation, Recording, Rule};
use crate::support::tree::{Dump, Source};

const LONG: Duration = Duration::from_secs(60);

/// Opens a kloset as a new process would, with a cache in `folder`.
fn open(store: impl ObjectStore, folder: &Path) -> Kloset {
    let options = CacheOptions { folder: folder.to_owned(), bytes_max: 1 << 30 };
    Kloset(Kloset::open(store).unwrap().0.with_cache(&options).unwrap())
}

/// Reads the newest snapshot as a new process would.
fn dump(store: impl ObjectStore, folder: &Path, source: &Path) -> Result<Dump, RepoError> {
    let kloset = open(store, folder);
    let name = *kloset.snapshots()?.last().unwrap();
    let dump = kloset.dump(name, source);
    kloset.0.cache().unwrap().finish(LONG);
    dump
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut out) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { out.push(path) }
        }
    }
    out.retain(|path| path.file_name().unwrap().len() >= 32);
    out.sort();
    out
}

fn source() -> Source {
    let source = Source::random(11, 120);
    source.file("large", noise(5, 3 << 20));
    source
}

fn gets(recording: &Recording) -> Vec<String> {
    let requests = recording.take_requests().into_iter();
    requests.filter(|(operation, _)| *operation == Operation::Get).map(|(_, name)| name).collect()
}

#[test]
fn a_second_process_asks_for_the_header_the_key_slots_and_the_list_only() {
    let (recording, folder, source) = (Recording::in_memory(), tempfile::tempdir().unwrap(), source());
    Kloset::create(recording.clone()).backup(source.path());
    let first = dump(recording.clone(), folder.path(), source.path()).unwrap();
    recording.take_requests();
    let second = dump(recording.clone(), folder.path(), source.path()).unwrap();
    assert!(first == second);
    let asked = gets(&recording);
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!(asked.iter().all(|name| name == "kloset.json" || name.starts_with("keys/")), "{asked:?}");
}

#[test]
fn what_is_in_the_cache_is_sealed() {
    let (recording, folder, source) = (Recording::in_memory(), tempfile::tempdir().unwrap(), Source::new());
    source.file("a-name-to-look-for", b"a content to look for".repeat(100));
    Kloset::create(recording.clone()).backup(source.path());
    dump(recording, folder.path(), source.path()).unwrap();
    let entries = entries(folder.path());
    assert!(entries.len() >= 3, "a manifest, trees, content: {entries:?}");
    for entry in entries {
        let bytes = fs::read(entry).unwrap();
        for open in [&b"a-name-to-look-for"[..], b"a content to look for", b"packs/"] {
            assert!(!bytes.windows(open.len()).any(|window| window == open));
        }
    }
}

#[test]
fn a_damaged_cache_never_shows() {
    let (recording, folder, source) = (Recording::in_memory(), tempfile::tempdir().unwrap(), source());
    Kloset::create(recording.clone()).backup(source.path());
    let expected = dump(recording.clone(), folder.path(), source.path()).unwrap();
    type Harm = fn(&Path, &Path);
    let harms: [Harm; 5] = [
        |file, _| {
            let mut bytes = fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).unwrap();
        },
        |file, _| fs::write(file, &fs::read(file).unwrap()[..30]).unwrap(),
        |file, _| fs::write(file, "").unwrap(),
        |file, other| assert!(fs::copy(other, file).is_ok()),
        |file, _| fs::remove_file(file).unwrap(),
    ];
    for harm in harms {
        let all = entries(folder.path());
        assert!(all.len() >= 3);
        for (n, file) in all.iter().enumerate() {
            harm(file, &all[(n + 1) % all.len()]);
        }
        assert!(dump(recording.clone(), folder.path(), source.path()).unwrap() == expected);
        recording.take_requests();
        assert!(dump(recording.clone(), folder.path(), source.path()).unwrap() == expected);
        let asked = gets(&recording);
        assert_eq!(asked.len(), 2, "kept again: {asked:?}");
    }
}

#[test]
fn bad_bytes_of_the_store_do_not_outlive_it() {
    let (recording, source) = (Recording::in_memory(), source());
    Kloset::create(recording.clone()).backup(source.path());
    let plain = tempfile::tempdir().unwrap();
    let expected = dump(recording.clone(), plain.path(), source.path()).unwrap();
    for fault in [Fault::FlipBit, Fault::ShortBody] {
        for prefix in ["packs/", "snapshots/"] {
            let folder = tempfile::tempdir().unwrap();
            let rule = Rule { operation: Operation::Get, prefix, calls: 0..usize::MAX, one_in: 1, fault };
            let faulty = Faulty::new(Arc::new(recording.clone()), 3);
            faulty.set(&[rule]);
            let bad = dump(faulty, folder.path(), source.path());
            assert!(bad.is_err(), "{fault:?} {prefix}");
            let good = dump(recording.clone(), folder.path(), source.path()).unwrap();
            assert!(good == expected, "{fault:?} {prefix}");
        }
    }
}

#[test]
fn what_the_store_has_lost_is_told_by_check_and_stored_again_by_force() {
    let (recording, folder, source) = (Recording::in_memory(), tempfile::tempdir().unwrap(), source());
    Kloset::create(recording.clone()).backup(source.path());
    dump(recording.clone(), folder.path(), source.path()).unwrap();
    let packs = recording.put_since(0, "packs/");
    for pack in &packs {
        let at = ObjectPath::from(pack.as_str());
        futures::executor::block_on(recording.delete(&at)).unwrap();
    }
    assert!(dump(recording.clone(), folder.path(), source.path()).is_ok(), "readers do not notice");
    let kloset = open(recording.clone(), folder.path());
    let report = kloset.check().unwrap();
    assert_eq!(report.damaged.len(), packs.len(), "{report:#?}");
    let mut forced = options(source.path());
    forced.force = true;
    let name = kloset.backup_with(forced).unwrap().name;
    let stored = Kloset::open(recording.clone()).unwrap().dump(name, source.path()).unwrap();
    assert!(stored == dump(recording, folder.path(), source.path()).unwrap(), "without the cache");
}

#[test]
fn a_backup_reads_its_parent_from_the_cache_and_restores_do_too() {
    let (recording, folder, source) = (Recording::in_memory(), tempfile::tempdir().unwrap(), source());
    Kloset::create(recording.clone()).backup(source.path());
    dump(recording.clone(), folder.path(), source.path()).unwrap();
    recording.take_requests();
    let report = open(recording.clone(), folder.path()).backup(source.path());
    assert!(report.manifest.parent.is_some());
    let asked = gets(&recording);
    assert!(!asked.iter().any(|name| name.starts_with("packs/")), "{asked:?}");
    let scratch = Scratch::new();
    fs::write(scratch.source().join("file"), noise(1, 100_000)).unwrap();
    let name = scratch.backup();
    let options = CacheOptions { folder: scratch.fresh("cache"), bytes_max: 1 << 30 };
    let repo = scratch.repo.with_cache(&options).unwrap();
    for _ in 0..2 {
        let target = scratch.fresh("target");
        scratch.restore(&repo, name, &target, Overwrite::Never).unwrap();
        assert_eq!(fs::read(target.join("file")).unwrap(), noise(1, 100_000));
        repo.cache().unwrap().finish(LONG);
        fs::remove_dir_all(scratch.kloset().join("packs")).ok(); // the second time they come from the cache
    }
}
