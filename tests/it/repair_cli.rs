//! `check` and `repair` as programs: parts, seals without a secret, going on after an interruption, plans and ends.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::random::noise;
use crate::support::tree::Source;

/// A kloset in a folder, and a source.
struct Local {
    home: Source,
    source: Source,
}

impl Local {
    fn new() -> Local {
        let local = Local { home: Source::new(), source: Source::new() };
        local.home.file("key", "ab".repeat(32));
        local.run(&["create"], true, 0);
        for n in 0..3 {
            local.source.file(format!("folder{n}/file"), noise(n, 300_000));
            local.run(&["backup", local.source.path().to_str().unwrap()], true, 0);
        }
        local
    }

    /// Runs the program, with or without the key, and returns what it printed.
    #[track_caller]
    fn run(&self, words: &[&str], with_key: bool, code: i32) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
        command.env("XDG_STATE_HOME", self.home.at("state")).env("KLOSET_REPOSITORY", self.home.at("kloset"));
        if with_key {
            command.env("KLOSET_KEY_FILE", self.home.at("key"));
        }
        let output = command.output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {text}");
        text
    }

    #[track_caller]
    fn json(&self, words: &[&str], with_key: bool, code: i32) -> Value {
        serde_json::from_str(&self.run(&[words, &["--json"]].concat(), with_key, code)).unwrap()
    }

    /// The largest packs are those of content.
    fn data_packs(&self) -> Vec<PathBuf> {
        let sessions = fs::read_dir(self.home.at("kloset/packs")).unwrap().map(|entry| entry.unwrap().path());
        let packs = sessions.flat_map(|session| fs::read_dir(session).unwrap().map(|entry| entry.unwrap().path()));
        let mut packs: Vec<_> = packs.filter(|pack| fs::metadata(pack).unwrap().len() > 250_000).collect();
        packs.sort();
        packs
    }
}

fn flip(file: &PathBuf) {
    let mut content = fs::read(file).unwrap();
    content[1000] ^= 1;
    fs::write(file, content).unwrap();
}

#[test]
fn parts_together_read_every_pack_once_and_find_what_rots() {
    let local = Local::new();
    let all = local.json(&["check", "--read-data"], true, 0);
    let trees = local.json(&["check"], true, 0)["packs_read"].as_u64().unwrap();
    let read = |part: u64| local.json(&["check", "--read-data-subset", &format!("{part}/3")], true, 0);
    let parts: Vec<_> = (1..=3).map(read).collect();
    let of_data: u64 = parts.iter().map(|part| part["packs_read"].as_u64().unwrap() - trees).sum();
    assert_eq!(of_data + trees, all["packs_read"].as_u64().unwrap());
    assert_eq!((parts[1]["part"]["part"].as_u64(), parts[1]["part"]["parts"].as_u64()), (Some(2), Some(3)));
    let told = local.run(&["check", "--read-data-subset", "daily/week"], true, 0);
    assert!(told.contains("part ") && told.contains(" of 7 of the content read"), "{told}");

    flip(&local.data_packs()[0]);
    local.run(&["check"], true, 0);
    let damaged = (1..=3).filter(|part| {
        let words = ["check", "--read-data-subset", &format!("{part}/3"), "--json"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(words).env("KLOSET_KEY_FILE", local.home.at("key"));
        command.env("KLOSET_REPOSITORY", local.home.at("kloset")).env("XDG_STATE_HOME", local.home.at("state"));
        command.output().unwrap().status.code() == Some(14)
    });
    assert_eq!(damaged.count(), 1);
}

#[test]
fn a_check_of_a_path_reads_what_that_path_needs() {
    let local = Local::new();
    let at = |n: u64| format!("latest:{}", local.source.at(format!("folder{n}/file")).to_str().unwrap());
    let of = |target: &str, code| local.json(&["check", "--read-data", target], true, code);
    let one = of(&at(0), 0);
    let all = of("latest", 0);
    assert!(one["packs_read"].as_u64() < all["packs_read"].as_u64(), "{one} {all}");
    let packs = local.data_packs();
    flip(&packs[0]);
    let codes: Vec<_> = (0..3).map(|n| local.run_code(&["check", "--read-data", &at(n)])).collect();
    assert_eq!(codes.iter().filter(|code| **code == 14).count(), 1, "{codes:?}");
    local.run(&["check", "--read-data", "latest:/not/there"], true, 1);
}

impl Local {
    fn run_code(&self, words: &[&str]) -> i32 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(words).env("KLOSET_KEY_FILE", self.home.at("key"));
        command.env("KLOSET_REPOSITORY", self.home.at("kloset")).env("XDG_STATE_HOME", self.home.at("state"));
        command.output().unwrap().status.code().unwrap()
    }
}

#[test]
fn seals_are_checked_without_a_key_and_packs_found_whole_are_not_read_again() {
    let local = Local::new();
    let told = local.run(&["check", "--seals-only"], false, 0);
    assert!(told.contains("no damage found: 6 packs"), "{told}");
    assert!(told.contains("take a key to check"), "{told}");
    let packs = local.data_packs();
    flip(&packs[1]);
    let report = local.json(&["check", "--seals-only"], false, 14);
    assert_eq!(report["damaged"].as_array().unwrap().len(), 1);
    assert!(packs[1].ends_with(report["damaged"][0]["object"].as_str().unwrap()), "{report}");

    // What an interrupted check leaves: the packs that it found whole, and a line that was cut off.
    let note = fs::read_dir(local.home.at("state/kloset-mount/checks")).unwrap().next();
    assert!(note.is_none(), "a check that came to its end leaves nothing");
    local.run(&["check", "--resume"], true, 2);
    let name = packs[1].strip_prefix(local.home.at("kloset")).unwrap().to_str().unwrap();
    let stem = blake3::hash(local.home.at("kloset").to_str().unwrap().as_bytes()).to_hex()[..32].to_owned();
    local.home.file(format!("state/kloset-mount/checks/{stem}-seals"), format!("{name}\npacks/ab"));
    let report = local.json(&["check", "--seals-only", "--resume"], false, 0);
    assert_eq!((report["packs_known_whole"].as_u64(), report["packs_read"].as_u64()), (Some(1), Some(5)));
    local.run(&["check", "--seals-only"], false, 14);
}

#[test]
fn a_repair_is_planned_first_and_ends_with_0_once_everything_is_whole() {
    let local = Local::new();
    fs::remove_file(&local.data_packs()[1]).unwrap();
    let plan = local.run(&["repair"], true, 14);
    assert!(plan.contains("missing: \"packs/") && plan.contains("nothing is changed without --apply"), "{plan}");
    local.run(&["repair", "--source", "/not/there"], true, 2);
    let source = local.source.path().to_str().unwrap();
    let plan = local.json(&["repair", "--source", source], true, 14);
    assert_eq!((plan["is_whole"].as_bool(), plan["applied"].as_bool()), (Some(true), Some(false)));
    let done = local.run(&["repair", "--source", source, "--apply"], true, 0);
    assert!(done.contains("whole again") && done.contains("repaired: everything"), "{done}");
    local.run(&["check", "--read-data"], true, 0);
    assert!(local.run(&["repair"], true, 0).contains("nothing to repair"));
    let target = local.home.at("target");
    local.run(&["restore", &format!("latest:{source}"), "--to", target.to_str().unwrap()], true, 0);
    for n in 0..3 {
        assert!(fs::read(target.join(format!("folder{n}/file"))).unwrap() == noise(n, 300_000), "{n}");
    }
}

#[test]
fn another_kloset_with_a_secret_of_its_own_gives_what_is_lost() {
    let local = Local::new();
    let copy = local.home.at("copy");
    assert!(Command::new("cp").arg("-r").arg(local.home.at("kloset")).arg(&copy).status().unwrap().success());
    let packs = local.data_packs();
    packs.iter().for_each(|pack| fs::remove_file(pack).unwrap());
    let copy = copy.to_str().unwrap();
    let key = local.home.at("key");
    local.run(&["repair", "--other-key-file", key.to_str().unwrap()], true, 2);
    let words = ["repair", "--from", copy, "--other-key-file", key.to_str().unwrap(), "--apply"];
    let report = local.json(&words, true, 0);
    assert_eq!((report["lost"].as_u64(), report["is_whole"].as_bool()), (report["healed"].as_u64(), Some(true)));
    assert_eq!(report["marked"].as_array().unwrap().len(), 3);
    local.run(&["check", "--read-data"], true, 0);
}
