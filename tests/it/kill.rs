//! `kill -9` of the program at random moments, of a backup into a folder and of a mount that is read, loses nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kloset_mount::fs::mountinfo;
use kloset_mount::repo::keyslot::SlotSecret;
use rustix::mount::UnmountFlags;

use crate::resume::listed_files;
use crate::support::kloset::Kloset;
use crate::support::program::{assert_dead, may_mount, until};
use crate::support::random::{Random, noise, size};
use crate::support::tree::{Source, assert_same};

/// New bytes before each backup: long enough to be hit in the middle.
const ROUND_BYTES: usize = 12 << 20;
/// Files of the source of a first backup that is killed.
const SMALL_FILES: u64 = 220;
/// Programs that read a mount while it is killed.
const READERS: usize = 3;

struct Home(Source);

impl Drop for Home {
    fn drop(&mut self) {
        let _ = kloset_mount::fs::unmount(&self.0.at("mnt"), true);
    }
}

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
            .env("XDG_STATE_HOME", self.0.at("state"))
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
fn kill_after(home: &Home, backup: &[&str], wait: Duration) -> bool {
    let mut child = home.command(backup).spawn().unwrap();
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
        killed += u64::from(kill_after(&home, &backup, wait));
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

/// Makes a source of nearly three packs, in files of which none is like another.
fn source_of_packs() -> Source {
    let source = Source::new();
    for number in 0..SMALL_FILES {
        source.file(format!("{}/{number}", number % 10), noise(number, 200 << 10));
    }
    source
}

/// Runs a backup to its end and returns how many files it took over from those that were interrupted, and how many it read.
#[track_caller]
fn resume(home: &Home, backup: &[&str]) -> (u64, u64) {
    let output = home.command(&[backup, &["--json"]].concat()).stdout(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let printed = String::from_utf8(output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let count = |name: &str| summary[name].as_u64().unwrap();
    (count("files_resumed"), count("files_new") - count("files_resumed"))
}

#[track_caller]
fn assert_saved(home: &Home, source: &Source) {
    let after = home.open();
    let name = *after.snapshots().unwrap().last().unwrap();
    assert_same(&source.scan(), &after.dump(name, source.path()).unwrap());
    home.done(&["check", "--read-data"]);
    assert_eq!(fs::read_dir(home.0.at("state/kloset-mount/journals")).unwrap().count(), 0);
}

#[test]
fn a_first_backup_killed_at_any_moment_goes_on_with_what_is_listed() {
    let source = source_of_packs();
    let backup = ["backup", source.path().to_str().unwrap(), "--checkpoint", "0"];
    let start = Instant::now();
    Home::new().done(&backup);
    let whole = start.elapsed();
    let (mut random, mut killed, mut went_on) = (Random::new(22), 0, 0);
    for chain in 0..size(4, 20) {
        let home = Home::new();
        let mut listed = 0;
        for _ in 0..5 {
            let wait = whole.mul_f64(random.below(800) as f64 / 1000.0);
            let running = kill_after(&home, &backup, wait);
            let now = listed_files(&home.open(), source.path());
            eprintln!("chain {chain}: {now} files are listed after {wait:?} of about {whole:?}");
            assert!(now >= listed, "{listed} files were listed before");
            listed = now;
            killed += u64::from(running);
            // Enough to go on with, and enough left to do.
            if !running || listed > SMALL_FILES / 4 {
                break;
            }
        }
        let is_done = !home.open().snapshots().unwrap().is_empty();
        let (resumed, read) = resume(&home, &backup);
        if !is_done {
            // In flight is what no index run speaks of, and a file that was not noted before its last chunk was listed.
            assert!(resumed + 1 >= listed && read <= SMALL_FILES - listed + 1, "{resumed} and {read} of {listed}");
            went_on += u64::from(resumed > 0);
        }
        assert_saved(&home, &source);
    }
    assert!(killed >= 2 && went_on >= 1, "only {killed} backups were killed, and {went_on} went on");
}

#[test]
fn sigterm_ends_a_backup_with_75_and_ctrl_c_with_130_and_nothing_is_read_twice() {
    let (home, source) = (Home::new(), source_of_packs());
    // A command in the midst of the folders, so that it is known how far the backup is.
    let folders: Vec<_> = (0..10).map(|n| source.at(n.to_string()).to_str().unwrap().to_owned()).collect();
    let line = |command: &str| {
        let command = format!("{}=exec {command}", source.at("4x").to_str().unwrap());
        [&["backup".to_owned()], &folders[..], &["--command".to_owned(), command]].concat()
    };
    let mut listed = 0;
    for (signal, code) in [(rustix::process::Signal::TERM, 75), (rustix::process::Signal::INT, 130)] {
        let begun = home.0.at("begun");
        let words = line(&format!("sh -c 'echo > {}; exec sleep 60'", begun.to_str().unwrap()));
        let child = home.command(&words.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
        until("half way", || begun.exists());
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains("no snapshot was made; the next backup goes on"), "{told}");
        let now = listed_files(&home.open(), source.path());
        assert!(now > 0 && now >= listed, "{now} files are listed, {listed} were before");
        listed = now;
        fs::remove_file(begun).unwrap();
    }
    let words = line("true");
    let (resumed, read) = resume(&home, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!((resumed, read), (listed, SMALL_FILES - listed + 1), "the command is the one that is read anyhow");
    home.done(&["check", "--read-data"]);
}

/// Mounts in the foreground and waits until the mount can be used.
fn serve(home: &Home) -> Child {
    let at = home.0.at("mnt");
    let child = home.command(&["mount", "-f", at.to_str().unwrap()]).stderr(Stdio::null()).spawn().unwrap();
    until("mounted", || mountinfo::at(&mountinfo::read().unwrap(), &at).is_some_and(mountinfo::MountInfo::is_ours));
    until("usable", || at.join("latest").exists());
    child
}

/// Reads every file of the newest snapshot, over and over, until something fails.
fn start_reader(folder: &Path) -> Child {
    let line = "while find \"$0\" -type f -exec cat {} + ; do :; done";
    let mut command = Command::new("sh");
    command.args(["-c", line]).arg(folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

fn wait_all(readers: Vec<Child>) {
    for mut reader in readers {
        until("ended by the death of the mount", || reader.try_wait().unwrap().is_some());
    }
}

// Who waits for the mount that it serves itself is not gone when it is killed, and the mount stays for ever.
#[test]
fn a_mount_killed_in_its_first_moment_is_gone() {
    if !may_mount() {
        return;
    }
    let (home, mut random) = (Home::new(), Random::new(22));
    let at = home.0.folder("mnt").canonicalize().unwrap();
    for round in 0..size(600, 6000) {
        let mut child = home.command(&["mount", "-f", at.to_str().unwrap()]).spawn().unwrap();
        let (begun, wait) = (Instant::now(), Duration::from_micros(random.below(1500)));
        while mountinfo::at(&mountinfo::read().unwrap(), &at).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(60), "not mounted after a minute");
        }
        std::thread::sleep(wait);
        child.kill().unwrap();
        let killed = Instant::now();
        let is_gone = loop {
            match child.try_wait().unwrap() {
                Some(_) => break true,
                None if killed.elapsed() > Duration::from_secs(10) => break false,
                None => std::thread::sleep(Duration::from_millis(1)),
            }
        };
        if !is_gone {
            let _ = rustix::mount::unmount(&*at, UnmountFlags::FORCE); // lets it go
        }
        assert!(is_gone, "round {round}: killed {wait:?} after it was mounted, it is still there");
        kloset_mount::fs::unmount(&at, true).unwrap();
    }
}

/// A mount that is killed while programs read from it leaves a dead mount point, whose users get an error and do not
/// hang; the kloset is as it was.
#[test]
fn a_mount_killed_at_any_moment_is_dead_at_once_and_cleared_and_harms_nothing() {
    if !may_mount() {
        return;
    }
    let (home, source) = (Home::new(), Source::random(2, 60));
    change(&source, 7);
    let at: PathBuf = home.0.folder("mnt").canonicalize().unwrap();
    home.done(&["backup", source.path().to_str().unwrap()]);
    let mut random = Random::new(21);
    for round in 0..size(20, 300) {
        let mut child = serve(&home);
        let folder = at.join("latest").join(source.path().strip_prefix("/").unwrap());
        let readers = (0..READERS).map(|_| start_reader(&folder)).collect();
        let wait = Duration::from_millis(random.below(300));
        eprintln!("round {round}: killed after {wait:?}");
        std::thread::sleep(wait);
        assert!(child.try_wait().unwrap().is_none(), "the mount ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_dead(&at);
        wait_all(readers);
        home.done(&["umount", at.to_str().unwrap()]);
    }
    let mut child = serve(&home);
    let name = *home.open().snapshots().unwrap().last().unwrap();
    assert_same(&source.scan(), &home.open().dump(name, source.path()).unwrap());
    home.done(&["umount", at.to_str().unwrap()]);
    assert!(child.wait().unwrap().success());
    home.done(&["check", "--read-data"]);
}
