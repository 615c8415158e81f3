//! A host with a write-only key: it adds backups for ever, stores nothing twice, and holds nothing that opens them.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Stdio;

use kloset_mount::repo::keyslot::{KeySlot, SlotSecret};
use serde_json::Value;

use crate::support::local::Local;
use crate::support::program::until;
use crate::support::random::noise;

fn summary(local: &Local, words: &[&str]) -> Value {
    let output = local.run("writer", &[&["backup", "source", "--json", "-q"], words].concat());
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(output.stdout.split(|b| *b == b'\n').rev().nth(1).unwrap()).unwrap()
}

fn with_writer() -> Local {
    let local = Local::new();
    local.says("full", &["key", "add", "--write-only", "--new-key-file", "writer"], 0, "added key slot");
    local
}

#[test]
fn three_backups_by_a_write_only_host_store_nothing_twice_and_the_full_key_restores_each() {
    let local = with_writer();
    for file in 0..20 {
        local.home.file(format!("source/{file:02}"), noise(file, 40_000));
    }
    let mut shapes = Vec::new();
    for round in 0..3 {
        if round > 0 {
            local.home.file(format!("source/{round:02}"), noise(100 + round, 40_000));
            local.home.file(format!("source/new {round}"), noise(200 + round, 40_000));
            local.home.file("source/copy", noise(7, 40_000));
        }
        if round == 2 {
            // All that the host remembers is lost.
            for state in [".local", ".cache"] {
                let _ = fs::remove_dir_all(local.home.at(state));
            }
        }
        let added = summary(&local, &[])["data_added"].as_u64().unwrap();
        let new = [800_000, 80_000, 80_000][usize::try_from(round).unwrap()];
        assert!(added >= new && added < new + 20_000, "round {round}: {added} bytes of content were new, not {new}");
        let kept = local.home.at(format!("kept {round}"));
        assert!(
            std::process::Command::new("cp")
                .arg("-a")
                .args([local.home.at("source"), kept.clone()])
                .status()
                .unwrap()
                .success()
        );
        shapes.push(kept);
    }
    for (round, kept) in shapes.iter().enumerate() {
        let from = format!("latest~{}:{}", 2 - round, local.home.at("source").display());
        let to = format!("out {round}");
        local.says("full", &["restore", &from, "--to", &to], 0, "restored");
        assert_eq!(crate::support::tree::compare(kept, &local.home.at(&to)), [""; 0]);
    }
}

/// Returns the memory of a process that it can write to: heap, stacks, its own variables.
fn memory(pid: u32) -> Vec<u8> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut out = Vec::new();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|may| may.starts_with("rw"))) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|address| u64::from_str_radix(address, 16).unwrap());
        let mut part = vec![0; usize::try_from(to - from).unwrap()];
        // What was never touched or is the kernel's own cannot be read.
        if memory.seek(SeekFrom::Start(from)).is_ok() && memory.read_exact(&mut part).is_ok() {
            part.chunks(4096)
                .filter(|page| page.iter().any(|byte| *byte != 0))
                .for_each(|page| out.extend_from_slice(page));
        }
    }
    out
}

fn holds(memory: &[u8], key: &[u8; 32]) -> bool {
    // The first bytes are enough: half a key is too much.
    memory.windows(16).any(|window| window == &key[..16])
}

/// Begins a backup that waits for its input, and reads the memory of the program meanwhile.
fn memory_while_backing_up(local: &Local, key: &str) -> Vec<u8> {
    let words = ["backup", "--stdin", "stream"];
    let mut child =
        local.command(key, &words).stdin(Stdio::piped()).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&noise(9, 3_000_000)).unwrap();
    // More than a pipe holds has been taken: the kloset is open. A pack is put when enough has come.
    input.write_all(&noise(10, 45_000_000)).unwrap();
    let packs = local.home.at("kloset/packs");
    until("a pack is stored", || fs::read_dir(&packs).is_ok_and(|mut all| all.next().is_some()));
    let memory = memory(child.id());
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    memory
}

#[test]
fn the_memory_of_a_write_only_host_holds_neither_the_master_key_nor_the_private_key() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("passed over: only root reads the memory of a program that forbids it");
        return;
    }
    let local = with_writer();
    // format.md, "Keys"
    let key_of = |secret: &[u8; 32], context: &str| blake3::derive_key(context, secret);
    let master = master_key(&local.home.at("kloset"), &SlotSecret::parse_key_file(&"ab".repeat(32)).unwrap());
    let private = key_of(&master, "kloset-mount v1 x25519 private key");
    let chunk_id = key_of(&master, "kloset-mount v1 chunk id key");
    let full = memory_while_backing_up(&local, "full");
    assert!(holds(&full, &private), "the search finds a key that is there");
    let writer = memory_while_backing_up(&local, "writer");
    assert!(holds(&writer, &chunk_id), "and finds what a writer has");
    assert!(!holds(&writer, &private), "the private key opens every frame");
    assert!(!holds(&writer, &master), "all keys are made from the master key");
    let opened = key_of(&[0xab; 32], "kloset-mount v1 key file");
    assert!(!holds(&writer, &opened), "the full slot's wrapping key");
}

/// Opens the full slot of a kloset, to know the master key.
fn master_key(kloset: &Path, key_file: &SlotSecret) -> [u8; 32] {
    let slots = fs::read_dir(kloset.join("keys")).unwrap().map(|slot| fs::read(slot.unwrap().path()).unwrap());
    let masters = slots.filter_map(|slot| KeySlot::decode(&slot).unwrap().open_master(key_file).ok());
    *masters.last().unwrap().bytes()
}
