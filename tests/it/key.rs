//! Key slots: a crash at any moment locks nobody out, and the program says what it does and refuses.

use std::sync::Arc;

use kloset_mount::repo::RepoError;
use kloset_mount::repo::id::SlotId;
use kloset_mount::repo::keyslot::{ARGON2_RECOMMENDED, NewSlot, SlotKind, SlotSecret};
use kloset_mount::repo::slots::OpenSlots;
use object_store::memory::InMemory;
use serde_json::Value;

use crate::support::kloset::{Kloset, runtime};
use crate::support::local::Local;
use crate::support::stores::{Fault, Faulty, Operation, Recording, Rule};

fn secret(byte: &str) -> SlotSecret {
    SlotSecret::parse_key_file(&byte.repeat(32)).unwrap()
}

/// The secret of every kloset of the tests.
fn first() -> SlotSecret {
    secret("07")
}

fn new<'a>(secret: &'a SlotSecret, label: &'a str) -> NewSlot<'a> {
    NewSlot { secret, cost: ARGON2_RECOMMENDED, label }
}

/// Changes the slots with the help of one secret.
fn change<T>(kloset: &Kloset, secret: &SlotSecret, change: impl AsyncFnOnce(OpenSlots<'_>) -> T) -> T {
    let repo = &kloset.0;
    runtime()
        .block_on(async { change(OpenSlots::open(&repo.store, secret, &repo.env, &repo.cpu).await.unwrap()).await })
}

fn add(kloset: &Kloset, kind: SlotKind, secret: &SlotSecret) -> SlotId {
    change(kloset, &first(), async |slots| slots.add(kind, &new(secret, "added")).await.unwrap())
}

fn opens(recording: &Recording, prefix: usize, secret: &SlotSecret) -> bool {
    match Kloset::open_with(recording.rebuild(prefix, &[]), secret) {
        Ok(kloset) => kloset.0.keys.can_read(),
        Err(RepoError::WrongSecret { .. }) => false,
        Err(error) => panic!("after {prefix}: {error}"),
    }
}

#[test]
fn a_crash_while_slots_change_locks_nobody_out() {
    let recording = Recording::in_memory();
    let kloset = Kloset::create(recording.clone());
    let (second, third) = (secret("08"), secret("09"));
    let created = recording.mark();
    let id = add(&kloset, SlotKind::Full, &second);
    let added = recording.mark();
    change(&kloset, &first(), async |slots| slots.replace(&new(&third, "third")).await.unwrap().1.unwrap());
    let replaced = recording.mark();
    change(&kloset, &third, async |slots| slots.remove(&id.to_string()[..6]).await.unwrap());
    let removed = recording.mark();
    assert_eq!((added - created, replaced - added, removed - replaced), (1, 2, 1), "one mutation a step");
    let opened = |prefix| [first(), second.clone(), third.clone()].map(|secret| opens(&recording, prefix, &secret));
    assert_eq!(opened(created), [true, false, false]);
    assert_eq!(opened(added), [true, true, false]);
    assert_eq!(opened(added + 1), [true, true, true], "between the put and the deletion of a change both open");
    assert_eq!(opened(replaced), [false, true, true]);
    assert_eq!(opened(removed), [false, false, true]);
}

#[test]
fn the_slot_that_opened_the_kloset_is_not_removed() {
    let kloset = Kloset::create(Recording::in_memory());
    let remove =
        |spec: &str| change(&kloset, &first(), async |slots| slots.remove(spec).await).unwrap_err().to_string();
    let own = change(&kloset, &first(), async |slots| slots.own.id.to_string());
    assert!(remove(&own).contains("it is the last one that can read"));
    let writer = secret("0a");
    let id = add(&kloset, SlotKind::WriteOnly, &writer);
    assert!(remove(&own).contains("it is the last one that can read"), "a write-only slot is no way in");
    add(&kloset, SlotKind::Full, &secret("08"));
    assert!(remove(&own).contains("use the secret of another one"));
    assert!(remove("").contains("there is none") && remove("zz").contains("there is none"));
    let refused = change(&kloset, &writer, async |slots| slots.remove(&own).await);
    assert!(matches!(refused, Err(RepoError::WriteOnly)));
    let refused = change(&kloset, &writer, async |slots| slots.add(SlotKind::WriteOnly, &new(&first(), "")).await);
    assert!(matches!(refused, Err(RepoError::WriteOnly)));
    let changed = change(&kloset, &writer, async |slots| slots.replace(&new(&secret("0b"), "w")).await.unwrap().0);
    let all = change(&kloset, &first(), async |slots| slots.all.slots);
    assert!(all.iter().all(|slot| slot.id != id) && all.len() == 3);
    assert!(all.iter().any(|slot| slot.id == changed && slot.kind == SlotKind::WriteOnly), "its kind stays");
}

#[test]
fn two_who_remove_each_others_slots_leave_both() {
    let recording = Recording::in_memory();
    let kloset = Kloset::create(recording.clone());
    let second = secret("08");
    let id = add(&kloset, SlotKind::Full, &second);
    let repo = &kloset.0;
    runtime().block_on(async {
        let secret = first();
        let one = OpenSlots::open(&repo.store, &secret, &repo.env, &repo.cpu).await.unwrap();
        let own = one.own.id.to_string();
        // The other has removed ours since we looked.
        repo.store.delete(&format!("keys/{own}.json")).await.unwrap();
        let refused = one.remove(&id.to_string()).await.unwrap_err();
        assert!(refused.to_string().contains("was removed meanwhile"), "{refused}");
    });
    assert!(Kloset::open_with(recording, &second).is_ok(), "and the way in that is left stays");
}

#[test]
fn a_change_whose_old_slot_cannot_be_deleted_says_so_and_both_open() {
    let faulty = Faulty::new(Arc::new(InMemory::new()), 1);
    let kloset = Kloset::create(faulty.clone());
    let rule = Rule { operation: Operation::Delete, prefix: "keys/", calls: 0..9, one_in: 1, fault: Fault::Before };
    faulty.set(&[rule]);
    let second = secret("08");
    let (_, deleted) = change(&kloset, &first(), async |slots| slots.replace(&new(&second, "")).await.unwrap());
    assert!(deleted.is_err());
    assert!(Kloset::open_with(faulty.clone(), &first()).is_ok() && Kloset::open_with(faulty, &second).is_ok());
}

#[test]
fn a_write_only_key_adds_backups_and_reads_nothing() {
    let local = Local::new();
    let add = ["key", "add", "--write-only", "--label", "host", "--new-key-file", "writer"];
    local.says("full", &add, 0, "added key slot");
    local.says("writer", &["backup", "source"], 0, "every file is read");
    let again = local.run("writer", &["backup", "source", "--json", "-q"]);
    let summary: Value = serde_json::from_slice(again.stdout.split(|b| *b == b'\n').rev().nth(1).unwrap()).unwrap();
    assert_eq!(summary["data_added"], 0, "duplicates are found: {summary}");
    let only = "this key can only write";
    for words in [
        &["ls"][..],
        &["ls", "latest"],
        &["cat", "latest:/x"],
        &["restore", "latest", "--to", "out"],
        &["check"],
        &["forget", "--keep-last", "1", "--apply"],
        &["forget", "latest", "--apply"],
        &["mount", "-f", "source"],
        &["backup", "source", "--parent", "latest"],
        &["backup", "source", "--skip-if-unchanged"],
        &["find", "*"],
        &["versions", "/x"],
        &["diff", "latest", "latest"],
        &["info"],
        &["archive", "latest"],
        &["key", "export", "--paper", "-o", "sheet"],
        &["key", "add", "--new-key-file", "other"],
        &["key", "rm", "0"],
    ] {
        local.says("writer", words, 1, only);
    }
    let path = format!("latest:{}", local.home.at("source/file").display());
    local.says("full", &["cat", &path], 0, "content");
    local.says("full", &["check", "--read-data"], 0, "no damage found: 2 snapshots");
    let listed = local.says("writer", &["key", "ls"], 0, "write-only");
    assert!(listed.lines().any(|line| line.starts_with('*') && line.ends_with("host")), "{listed}");
}

#[test]
fn secrets_are_added_changed_and_removed() {
    let local = Local::new();
    local.says("full", &["key", "passwd"], 2, "the new secret is not said");
    local.says("full", &["key", "add", "--new-key-file", "phrase"], 2, "64 hex digits");
    local.says("other", &["key", "passwd", "--new-key-file", "writer"], 12, "wrong passphrase or key file");
    local.home.file("weak", "secret");
    local.says("full", &["key", "passwd", "--new-passphrase-file", "weak"], 2, "easy to guess");
    local.says("full", &["create", "-r", "new", "--passphrase-file", "weak"], 2, "easy to guess");
    local.says("full", &["key", "passwd", "--new-passphrase-file", "phrase"], 0, "can open this kloset for ever");
    local.says("full", &["ls"], 12, "none of keys/");
    let added = local.says("phrase", &["key", "add", "--new-key-file", "other", "--json"], 0, "key_added");
    let id = serde_json::from_str::<Value>(added.lines().next().unwrap()).unwrap()["id"].as_str().unwrap().to_owned();
    local.says("other", &["key", "rm", &id], 1, "use the secret of another one");
    local.says("phrase", &["key", "rm", &id], 0, "removed key slot");
    let listed = local.run("phrase", &["key", "ls", "--json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["opened_by"]), (1, &"passphrase".into()));
    assert_eq!((&listed[0]["current"], &listed[0]["kind"]), (&true.into(), &"full".into()));
}

#[test]
fn a_damaged_slot_is_named_beside_those_that_a_secret_does_not_open() {
    let local = Local::new();
    let id = "0a".repeat(16);
    local.home.file(format!("kloset/keys/{id}.json"), "{}");
    let named = format!("; keys/{id}.json: ");
    local.says("other", &["ls"], 12, &named);
    local.says("full", &["key", "rm", &id], 0, "removed key slot");
    let told = local.says("other", &["ls"], 12, "none of keys/");
    assert!(!told.contains(&named), "{told}");
}
