//! `kill -9` of the program at random moments of a backup into a folder loses nothing.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kloset_mount::repo::keyslot::SlotSecret;

use crate::support::kloset::Kloset;
use crate::support::random::{Random, noise, size};
use crate::support::tree::{Source, assert_same};

/// New bytes before each backup: long enough to be hit in the middle.
const ROUND_BYTES: usize = 12 << 20;

struct Home(Source);

impl Home {
    fn new() -> Self {
        let home = Self(Source::new());
        home.0.file("key", "cd".repeat(32));
        assert!(home.run(&["create"]).status.success());
        home
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command
            .args(line)
            .env_clear()
            .env("KLOSET_KEY_FILE", self.0.at("key"))
            .env("KLOSET_REPOSITORY", self.0.at("kloset"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &[&str]) -> Output {
        self.command(line).output().unwrap()
    }

    #[track_caller]
    fn done(&self, line: &[&str]) {
        let output = self.run(line);
        assert!(output.status.success(), "{line:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn open(&self) -> Kloset {
        let secret = SlotSecret::parse_key_file(&fs::read_to_string(self.0.at("key")).unwrap()).unwrap();
        let folder = object_store::local::LocalFileSystem::new_with_prefix(self.0.at("kloset")).unwrap();
        Kloset::open_with(folder, &secret).unwrap()
    }
}

/// Changes a source so that a backup has something to do.
fn change(source: &Source, round: u64) {
    source.grow(round, 20);
    source.file(format!("round/{}", round % 3), noise(round, ROUND_BYTES));
}

/// Kills a backup after `wait`; tells whether it was still running.
fn kill_after(home: &Home, source: &Path, wait: Duration) -> bool {
    let mut child = home.command(&["backup", source.to_str().unwrap()]).spawn().unwrap();
    std::thread::sleep(wait);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn a_backup_killed_at_any_moment_leaves_a_whole_kloset_and_the_next_one_succeeds() {
    let (home, source) = (Home::new(), Source::random(1, 60));
    let backup = ["backup", source.path().to_str().unwrap()];
    change(&source, 100);
    let start = Instant::now();
    home.done(&backup);
    let whole = start.elapsed();
    let mut killed = 0;
    let mut random = Random::new(20);
    for round in 0..size(20, 300) {
        change(&source, round);
        let wait = whole.mul_f64(random.below(1000) as f64 / 1000.0);
        eprintln!("round {round}: killed after {wait:?} of about {whole:?}");
        let earlier = home.open();
        let names = earlier.snapshots().unwrap();
        let newest = *names.last().unwrap();
        let dump = earlier.dump(newest, source.path()).unwrap();
        killed += u64::from(kill_after(&home, source.path(), wait));
        let left = home.open();
        left.assert_whole();
        assert_same(&dump, &left.dump(newest, source.path()).unwrap());
        home.done(&backup);
        let after = home.open();
        let name = *after.snapshots().unwrap().last().unwrap();
        assert_same(&source.scan(), &after.dump(name, source.path()).unwrap());
    }
    assert!(killed >= 5, "only {killed} backups were still running when they were killed");
    home.done(&["check", "--read-data"]);
}
