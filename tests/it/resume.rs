//! A backup that was interrupted goes on where it was: what an index run speaks of is not read again.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use kloset_mount::backup::{BackupError, BackupOptions, BackupReport, backup};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::chunker::Chunker;
use kloset_mount::repo::header::ChunkerSettings;
use kloset_mount::repo::id::ChunkId;
use kloset_mount::repo::layout;
use kloset_mount::repo::lookup::Index;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;

use crate::support::kloset::{Kloset, options, runtime};
use crate::support::program::may_mount;
use crate::support::random::noise;
use crate::support::stores::{Fault, Faulty, Operation, Rule};
use crate::support::tree::{Source, assert_same, set_mtime};

/// Bytes of a file, of which a pack holds 80.
const FILE_BYTES: usize = 200 << 10;

/// Returns how many files below a folder have nothing but chunks that an index run speaks of.
pub(crate) fn listed_files(kloset: &Kloset, folder: &Path) -> u64 {
    let index = runtime().block_on(Index::load(&kloset.0.store, &kloset.0.keys)).unwrap();
    let listed: HashSet<ChunkId> = index.runs.iter().flat_map(|run| run.entries.iter().map(|e| e.id)).collect();
    let chunker = Chunker::new(kloset.0.header.chunker, kloset.0.keys.write_keys().chunker_seed);
    let is_listed = |path: &Path| {
        let content = fs::read(path).unwrap();
        let mut rest = &content[..];
        while !rest.is_empty() {
            let chunk = &rest[..chunker.cut(&rest[..rest.len().min(chunker.window_bytes())])];
            if !listed.contains(&kloset.0.keys.chunk_id(chunk)) {
                return false;
            }
            rest = &rest[chunk.len()..];
        }
        true
    };
    files(folder).iter().filter(|path| is_listed(path)).count() as u64
}

/// Returns all regular files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut folders, mut out) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            match kind.is_dir() {
                true => folders.push(entry.path()),
                false if kind.is_file() => out.push(entry.path()),
                false => {}
            }
        }
    }
    out
}

/// A source of some packs, a kloset that can be made to fail, and a folder for the journal.
struct Trial {
    inner: Arc<InMemory>,
    faulty: Faulty,
    kloset: Kloset,
    source: Source,
    home: Source,
    journals: PathBuf,
}

impl Trial {
    fn new(files: u64) -> Self {
        let inner = Arc::new(InMemory::new());
        let faulty = Faulty::new(inner.clone(), 1);
        let kloset = Kloset::try_create(faulty.clone(), ChunkerSettings::default()).unwrap();
        let (source, home) = (Source::new(), Source::new());
        for number in 0..files {
            source.file(format!("{}/{number}", number % 7), noise(number, FILE_BYTES));
        }
        let journals = home.at("journals");
        Self { inner, faulty, kloset, source, home, journals }
    }

    fn options(&self) -> BackupOptions {
        let journal_folder = Some(self.journals.clone());
        BackupOptions { journal_folder, list_every: Some(Duration::ZERO), ..options(self.source.path()) }
    }

    fn run(&self) -> BackupReport {
        self.kloset.backup_with(self.options()).unwrap()
    }

    /// Runs a backup whose packs from that number on cannot be stored; returns how many files are listed then.
    #[track_caller]
    fn fail_at(&self, pack: usize) -> u64 {
        let (operation, fault) = (Operation::Put, Fault::Before);
        self.faulty.set(&[Rule { operation, prefix: "packs", calls: pack..usize::MAX, one_in: 1, fault }]);
        let failed = self.kloset.backup_with(self.options());
        self.faulty.set(&[]);
        assert!(matches!(failed, Err(BackupError::Repo(_))), "{failed:?}");
        listed_files(&self.kloset, self.source.path())
    }

    /// Fails unless the snapshot is the source, the kloset whole, and the journal gone.
    #[track_caller]
    fn assert_done(&self, report: &BackupReport) {
        assert_same(&self.source.scan(), &self.kloset.dump(report.name, self.source.path()).unwrap());
        self.kloset.assert_whole();
        assert_eq!(self.journals(), Vec::<PathBuf>::new());
    }

    fn journals(&self) -> Vec<PathBuf> {
        files(&self.journals)
    }
}

#[test]
fn what_is_listed_is_not_read_again_however_often_a_backup_fails() {
    let trial = Trial::new(400);
    trial.source.sparse("0/sparse", &[(1 << 20, b"part")], 2 << 20);
    fs::hard_link(trial.source.at("0/0"), trial.source.at("6/zz second name")).unwrap();
    symlink("0", trial.source.at("link")).unwrap();
    xattr::set(trial.source.at("0/0"), "user.mark", b"value").unwrap();
    let mut listed = 0;
    for round in 0..3 {
        let now = trial.fail_at(1);
        assert!(now >= listed + 60, "{now} files are listed after round {round}, {listed} were before");
        listed = now;
    }
    let report = trial.run();
    trial.assert_done(&report);
    // The second name of a listed file was never read, and a file may end in a pack that is listed before it is noted.
    assert!(report.resumed + 2 >= listed, "{} of {listed} listed files were taken over", report.resumed);
    assert_eq!(report.manifest.summary.files_new + 1, 402, "each is new, one is a second name");
    let again = trial.run();
    assert_eq!((again.resumed, again.manifest.summary.files_unmodified), (0, 402));
}

#[test]
fn what_has_changed_or_gone_since_or_lies_in_lost_packs_is_read_again() {
    let trial = Trial::new(240);
    let listed = trial.fail_at(2);
    assert!(listed > 60);
    let journals: Vec<_> = trial.journals().iter().map(|at| (at.clone(), fs::read(at).unwrap())).collect();
    // Files of folder 0 are the first to be read.
    trial.source.file("0/0", noise(99, FILE_BYTES));
    set_mtime(&trial.source.at("0/7"), 7, 7);
    fs::remove_file(trial.source.at("0/14")).unwrap();
    fs::rename(trial.source.at("0/21"), trial.source.at("0/another name")).unwrap();
    let report = trial.run();
    trial.assert_done(&report);
    assert!((listed - 5..=listed - 4).contains(&report.resumed), "{} of {listed}", report.resumed);

    // What a journal says is no reason to believe that the store has it.
    for prefix in [layout::PACKS, layout::SNAPSHOTS] {
        for at in runtime().block_on(trial.kloset.0.store.list(prefix)).unwrap() {
            runtime().block_on(trial.inner.delete(&at.name.as_str().into())).unwrap();
        }
    }
    journals.iter().for_each(|(at, content)| fs::write(at, content).unwrap());
    let report = trial.run();
    assert_eq!(report.resumed, 0);
    assert_same(&trial.source.scan(), &trial.kloset.dump(report.name, trial.source.path()).unwrap());
}

#[test]
fn force_reads_everything_and_a_dry_run_leaves_the_journal_alone() {
    let trial = Trial::new(240);
    let listed = trial.fail_at(2);
    let before = trial.journals();
    assert!(!before.is_empty());
    let dry = trial.kloset.backup_with(BackupOptions { dry_run: true, ..trial.options() }).unwrap();
    assert_eq!((dry.resumed, trial.journals()), (0, before));
    let forced = trial.kloset.backup_with(BackupOptions { force: true, ..trial.options() }).unwrap();
    assert_eq!(forced.resumed, 0);
    assert!(listed > 60);
    trial.assert_done(&forced);
}

#[test]
fn a_journal_that_cannot_be_kept_or_belongs_to_a_backup_at_work_costs_no_backup() {
    let trial = Trial::new(240);
    trial.fail_at(2);
    let new = trial.journals().into_iter().find(|at| at.extension().unwrap() == "new").unwrap();
    let other = fs::OpenOptions::new().write(true).open(&new).unwrap();
    rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let report = trial.run();
    assert_eq!(report.resumed, 0);
    assert!(new.exists(), "the other's journal is not ours to remove");
    let in_the_way = trial.home.file("file", "");
    let folder = Some(in_the_way.join("journals"));
    let report = trial.kloset.backup_with(BackupOptions { journal_folder: folder, ..trial.options() }).unwrap();
    assert_same(&trial.source.scan(), &trial.kloset.dump(report.name, trial.source.path()).unwrap());
}

/// Returns how many bytes this process has read so far, of files and pipes: it runs one test only.
fn bytes_read() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_backup_that_is_stopped_has_read_nothing_in_vain() {
    let trial = Trial::new(400);
    trial.source.file("0/large", noise(1000, 3 << 20));
    let (mut listed, mut read) = (0, 0);
    for round in 0..2 {
        let enough = listed + 30;
        let monitor = Arc::new(Monitor::default());
        let stopper = monitor.clone();
        let stop = std::thread::spawn(move || {
            while stopper.files.load(Ordering::Relaxed) < enough {
                std::thread::yield_now();
            }
            stopper.stop();
        });
        let options = BackupOptions { list_every: None, ..trial.options() };
        let before = bytes_read();
        let stopped = backup(&trial.kloset.0, runtime().handle(), &options, &monitor);
        read += bytes_read() - before;
        stop.join().unwrap();
        assert!(matches!(stopped, Err(BackupError::Stopped)), "{stopped:?}");
        listed = listed_files(&trial.kloset, trial.source.path());
        assert_eq!(listed, monitor.files.load(Ordering::Relaxed), "round {round}");
    }
    let before = bytes_read();
    let report = trial.run();
    read += bytes_read() - before;
    trial.assert_done(&report);
    assert_eq!(report.resumed, listed);
    let (all, more) = (400 * FILE_BYTES as u64 + (3 << 20), FILE_BYTES as u64);
    assert!((all..all + more).contains(&read), "{read} bytes were read of a source of {all}, and journals");
}

#[test]
fn a_journal_in_the_source_is_not_backed_up() {
    let mut trial = Trial::new(200);
    trial.journals = trial.source.at("state/journals");
    trial.fail_at(1);
    assert_eq!(trial.journals().len(), 1);
    let report = trial.run();
    assert!(report.resumed > 0);
    assert_eq!((report.changed, report.manifest.errors_total), (0, 0));
    assert_eq!(trial.kloset.dump(report.name, &trial.journals).unwrap().len(), 1, "the folder alone");
}

/// A folder that is mounted elsewhere, where nobody can write to it.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn of(source: &Source, at: &Path) -> Self {
        let mount = |words: &[&str]| assert!(Command::new("mount").args(words).arg(at).status().unwrap().success());
        mount(&["--bind", source.path().to_str().unwrap()]);
        let mounted = Self(at.to_owned());
        mount(&["-o", "remount,bind,ro"]);
        mounted
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_source_that_cannot_be_written_to_is_resumed_as_well() {
    if !may_mount() {
        return;
    }
    let mut trial = Trial::new(240);
    let at = Source::new();
    let mounted = ReadOnly::of(&trial.source, at.path());
    assert!(fs::write(mounted.0.join("x"), "").is_err());
    let _kept = std::mem::replace(&mut trial.source, at);
    let listed = trial.fail_at(2);
    let report = trial.run();
    trial.assert_done(&report);
    assert!(listed > 60 && report.resumed + 1 >= listed, "{} of {listed}", report.resumed);
    drop(mounted);
}
