//! The kloset in a simulated world: backups, readers, mounts, forget and prune at once, under every order that a seed
//! draws, with failures and crashes; time goes by in jumps.
//!
//! `KLOSET_SEED=n` runs one seed alone, `KLOSET_SLOW=1` many more.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr, reason = "tests are no library")]
#![allow(clippy::cast_possible_truncation, clippy::type_complexity, reason = "tests choose their own numbers")]

mod actors;
mod bucket;
mod gate;
#[path = "../it/support/random.rs"]
mod random;
mod reading;
mod source;
mod store;
mod world;

use std::ops::Range;
use std::path::Path;

use random::size;
use world::{Counts, World};

/// Returns the seed that is asked for.
fn only_seed() -> Option<u64> {
    std::env::var("KLOSET_SEED").ok().map(|seed| seed.parse().expect("KLOSET_SEED is a number"))
}

/// Returns a folder of our own: in memory if there is such, and where others change nothing above it.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("kloset-sim-").tempdir_in(base).unwrap()
}

/// Runs one seed in a new folder.
fn run(seed: u64, folder: &Path) -> (Counts, Vec<String>) {
    let below = folder.join(format!("{seed:08}"));
    let mut world = World::new(seed, &below);
    let log = world.run().unwrap_or_else(|wrong| {
        panic!("{wrong}\nseed {seed}; alone: KLOSET_SEED={seed} cargo test --test sim")
    });
    std::fs::remove_dir_all(below).unwrap();
    (world.counts, log)
}

fn run_all(seeds: Range<u64>) -> Counts {
    let folder = folder();
    let mut total = Counts::default();
    for seed in seeds {
        total.add(run(seed, folder.path()).0);
    }
    total
}

#[test]
fn every_snapshot_reads_as_it_was_whatever_happens_beside() {
    if let Some(seed) = only_seed() {
        println!("{:#?}", run_all(seed..seed + 1));
        return;
    }
    let total = run_all(0..size(500, 20_000));
    println!("{total:#?}");
}

#[test]
fn a_seed_gives_the_same_operations_twice() {
    let seeds = only_seed().map_or(0..30, |seed| seed..seed + 1);
    for seed in seeds {
        let folder = folder();
        let (first, second) = (run(seed, folder.path()).1, run(seed, folder.path()).1);
        for (number, (first, second)) in first.iter().zip(&second).enumerate() {
            assert_eq!(first, second, "operation {number} of seed {seed}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
