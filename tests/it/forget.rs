//! Forgetting: a crash or a failure at any moment leaves every snapshot whole or gone, and the program does what it says.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use kloset_mount::repo::forget::{Forgotten, Group, GroupBy, find_all, forget, plan};
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::policy::{Period, Rule};
use serde_json::Value;

use crate::support::kloset::{Kloset, runtime};
use crate::support::stores::{Fault, Faulty, Operation, Recording, Rule as FaultRule};
use crate::support::tree::{Dump, Source, assert_same};

/// Backs up a source that changes, so many times.
fn fill(kloset: &Kloset, source: &Source, times: usize) -> Vec<(SnapshotName, Dump)> {
    let one = |nth: usize| {
        source.file("changes", nth.to_string());
        let name = kloset.backup(source.path()).name;
        (name, kloset.dump(name, source.path()).unwrap())
    };
    (0..times).map(one).collect()
}

/// Forgets what is not among the newest `count`.
fn keep_last(kloset: &Kloset, count: u32) -> Forgotten {
    runtime().block_on(async {
        let found = find_all(&kloset.0).await.unwrap();
        let groups = plan(found.snapshots, GroupBy::default(), &[Rule::Count(Period::Each, count)]);
        let names: Vec<_> = groups.iter().flat_map(Group::forgotten).map(|snapshot| snapshot.name).collect();
        forget(&kloset.0, &names).await
    })
}

#[test]
fn a_crash_of_a_forget_leaves_every_snapshot_whole_or_gone() {
    let recording = Recording::in_memory();
    let kloset = Kloset::create(recording.clone());
    let source = Source::random(11, 10);
    let taken = fill(&kloset, &source, 5);
    let from = recording.mark();
    assert_eq!(keep_last(&kloset, 2).names.len(), 3);
    let mutations = recording.mutations();
    assert!(
        mutations[from..].iter().all(|m| m.content.is_none() && m.name.starts_with("snapshots/")),
        "no other change"
    );
    let mut states = 0;
    for prefix in from..=recording.mark() {
        let flying = recording.in_flight(prefix);
        for mask in 0..1_usize << flying.len() {
            let also: Vec<_> = (0..flying.len()).filter(|bit| mask >> bit & 1 == 1).map(|bit| flying[bit]).collect();
            let left = Kloset::open(Recording::new(recording.rebuild(prefix, &also))).unwrap();
            let listed: BTreeSet<_> = left.snapshots().unwrap().into_iter().collect();
            assert!(taken[3..].iter().all(|(name, _)| listed.contains(name)), "after {prefix} and {also:?}");
            for (name, dump) in taken.iter().filter(|(name, _)| listed.contains(name)) {
                assert_same(dump, &left.dump(*name, source.path()).unwrap());
            }
            left.assert_whole();
            assert!(keep_last(&left, 2).failure.is_none());
            assert_eq!(left.snapshots().unwrap(), [taken[3].0, taken[4].0], "the next run does the rest");
            states += 1;
        }
    }
    assert!(states >= 4, "three deletions make four states at least, not {states}");
}

#[test]
fn what_a_forget_reports_as_gone_is_gone_and_nothing_else() {
    let inner = Arc::new(object_store::memory::InMemory::new());
    let faulty = Faulty::new(inner.clone(), 1);
    let kloset = Kloset::create(faulty.clone());
    let source = Source::random(12, 3);
    let taken = fill(&kloset, &source, 14);
    let fault =
        FaultRule { operation: Operation::Delete, prefix: "snapshots/", calls: 2..3, one_in: 1, fault: Fault::Before };
    faulty.set(&[fault]);
    let forgotten = keep_last(&kloset, 1);
    assert!(forgotten.failure.is_some());
    let left: BTreeSet<_> = kloset.snapshots().unwrap().into_iter().collect();
    assert!(!forgotten.names.is_empty() && left.len() > 4, "it stopped in the middle: {left:?}");
    for (name, _) in &taken {
        assert_ne!(left.contains(name), forgotten.names.contains(name), "{name:?}");
    }
    assert!(keep_last(&kloset, 1).failure.is_none());
    assert_eq!(kloset.snapshots().unwrap(), [taken[13].0]);
    kloset.assert_whole();
}

/// A kloset in a folder with four snapshots of four days.
struct Local {
    home: Source,
    source: Source,
}

impl Local {
    fn new() -> Local {
        let local = Local { home: Source::new(), source: Source::new() };
        local.home.file("key", "ab".repeat(32));
        local.done(&["create"]);
        for day in 1..=4 {
            local.source.file("file", format!("day {day}"));
            local.done(&["backup", ".", "--host", "h", "--time", &format!("2026-01-0{day}T12:00:00Z")]);
        }
        local
    }

    fn run(&self, line: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(line).current_dir(self.source.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("KLOSET_KEY_FILE", self.home.at("key"));
        command.env("KLOSET_REPOSITORY", self.home.at("kloset")).env("HOME", self.home.path()).output().unwrap()
    }

    #[track_caller]
    fn done(&self, line: &[&str]) {
        let output = self.run(line);
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Runs a `forget` that ends with `code`; returns what it printed and told.
    #[track_caller]
    fn forget(&self, words: &[&str], code: i32) -> (String, String) {
        let output = self.run(&[&["forget"], words].concat());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (printed, told) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {printed}{told}");
        (printed, told)
    }

    /// Days of the snapshots that are there.
    fn days(&self) -> Vec<String> {
        let folder = fs::read_dir(self.home.at("kloset/snapshots")).unwrap();
        let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut days: Vec<_> = names.map(|name| name["202601".len()..][..2].to_owned()).collect();
        days.sort();
        days
    }
}

#[test]
fn a_plan_changes_nothing_and_apply_does_what_it_says() {
    let local = Local::new();
    let (printed, _) = local.forget(&["--keep-last", "2"], 0);
    assert!(printed.contains("host h, paths ") && printed.contains("would forget 2 of 4 snapshots"), "{printed}");
    let lines: Vec<_> = printed.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(lines[0].contains("forget") && lines[0].contains("2026-01-01 12:00:00Z  no rule keeps it"), "{printed}");
    assert!(lines[3].contains("keep") && lines[3].contains("last snapshot (came to the store "), "{printed}");
    assert_eq!(local.days(), ["01", "02", "03", "04"]);
    let (printed, told) = local.forget(&["--keep-last", "2", "--apply"], 0);
    assert!(printed.contains("forgot 2 of 4 snapshots") && told.contains("prune"), "{printed}{told}");
    assert_eq!(local.days(), ["03", "04"]);
    local.forget(&["latest~1", "--apply"], 0);
    assert_eq!(local.days(), ["04"]);
    local.done(&["check", "--read-data"]);
}

#[test]
fn a_group_is_not_emptied_unless_that_is_said() {
    let local = Local::new();
    let (printed, told) = local.forget(&["--keep-tag", "none", "--apply"], 1);
    assert!(told.contains("keep no snapshot of host h, ") && printed.contains("forget"), "{printed}{told}");
    assert_eq!(local.days().len(), 4);
    for words in [&["--apply"][..], &["--keep-daily", "0", "--apply"], &["latest", "--keep-last", "1", "--apply"]] {
        local.forget(words, 2);
    }
    local.forget(&["nothing", "--apply"], 1);
    assert_eq!(local.days().len(), 4);
    local.forget(&["--keep-last", "1", "--host", "another", "--apply"], 0);
    assert_eq!(local.days().len(), 4);
    local.forget(&["--keep-tag", "none", "--unsafe-allow-remove-all", "--apply"], 0);
    assert_eq!(local.days().len(), 0);
}

#[test]
fn a_policy_of_the_config_is_used_by_its_name() {
    let local = Local::new();
    local.home.file(".config/kloset-mount/config.toml", "[policies.short]\nkeep_last = 1\ngroup_by = \"\"\n");
    assert!(local.forget(&["--policy", "long"], 2).1.contains("there is no [policies.long]"));
    local.forget(&["--policy", "short", "--keep-last", "2"], 2);
    let (printed, _) = local.forget(&["--policy", "short", "--apply", "--json"], 0);
    let value: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&value["applied"], value["forgotten"].as_array().unwrap().len()), (&true.into(), 3));
    let group = &value["groups"][0];
    assert_eq!((&group["host"], group["remove"].as_array().unwrap().len()), (&Value::Null, 3));
    assert_eq!(group["reasons"][0]["matches"][0], "last snapshot");
    assert_eq!(group["reasons"][0]["snapshot"]["time"], group["keep"][0]["time"]);
    assert_eq!(local.days(), ["04"]);
    local.home.file(".config/kloset-mount/config.toml", "[policies.short]\nkeep_lots = 1\n");
    assert!(local.forget(&["--policy", "short"], 2).1.contains("[policies.short]: key \"keep_lots\" is not known"));
}

#[test]
fn a_damaged_snapshot_is_forgotten_by_its_name_only() {
    let local = Local::new();
    let folder = local.home.at("kloset/snapshots");
    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let damaged = names.min().unwrap();
    let mut content = fs::read(folder.join(&damaged)).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(folder.join(&damaged), content).unwrap();
    let id = damaged.split_once('-').unwrap().1;
    let (_, told) = local.forget(&["--keep-last", "1", "--apply"], 14);
    assert!(told.contains(&damaged) && told.contains(&format!("kloset-mount forget {}", &id[..8])), "{told}");
    assert_eq!(local.days(), ["01", "04"]);
    let (printed, _) = local.forget(&[&id[..8], "--apply"], 0);
    assert!(printed.contains("damaged: ") && printed.contains("forgot 1 snapshots"), "{printed}");
    assert_eq!(local.days(), ["04"]);
}
