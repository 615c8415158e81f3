//! What a backup is of, and whether it stores anything: lists, streams, dry runs, unchanged sources, times.

use std::fs;
use std::path::{Path, PathBuf};

use kloset_mount::backup::{BackupError, BackupOptions, BackupReport, Outcome, Stream, StreamSource};
use kloset_mount::repo::path::{self, Found};
use kloset_mount::repo::snapshot::TEXTS_BYTES_MAX;
use kloset_mount::repo::tree::NodeKind;

use crate::support::kloset::{Kloset, excludes, options, runtime};
use crate::support::random::noise;
use crate::support::stores::Recording;
use crate::support::tree::{Source, assert_same};

fn kloset() -> (Kloset, Recording) {
    let recording = Recording::in_memory();
    (Kloset::create(recording.clone()), recording)
}

fn base() -> BackupOptions {
    BackupOptions { host: "host".to_owned(), ..BackupOptions::default() }
}

fn command(path: &str, command: &str) -> Stream {
    Stream { path: path.into(), source: StreamSource::Command(command.to_owned()) }
}

/// Reads a file of a snapshot, and its mode.
fn read(kloset: &Kloset, report: &BackupReport, at: &Path) -> Option<(Vec<u8>, u32)> {
    let reader = kloset.0.reader(1 << 20);
    let root = report.manifest.root.into();
    runtime().block_on(async {
        let Found::Node(node) = path::resolve(&reader, root, at.as_os_str().as_encoded_bytes()).await.ok()? else {
            return None;
        };
        let NodeKind::File(content) = &node.kind else { panic!("{at:?} is no file") };
        Some((reader.read(content, 0..content.bytes).await.unwrap().to_vec(), node.mode))
    })
}

#[test]
fn lists_name_what_is_taken_and_what_of_them_is_gone_makes_it_incomplete() {
    let (kloset, _) = kloset();
    let source = Source::new();
    for name in ["a/1", "a/2", "b/1", "b/deep/2", "c", "not listed"] {
        source.file(name, name);
    }
    let listed = ["a/2", "c", "b", "a/2"].map(|name| source.at(name)).to_vec();
    let report = kloset.backup_with(BackupOptions { listed: listed.clone(), ..base() }).unwrap();
    assert!(!report.manifest.incomplete);
    let dump = kloset.dump(report.name, source.path()).unwrap();
    let names: Vec<_> = dump.keys().map(|path| path.escape_ascii().to_string()).collect();
    assert_eq!(names, ["", "a", "a/2", "b", "b/1", "b/deep", "b/deep/2", "c"]);

    let listed = [listed, vec![source.at("gone"), source.at("c/not a folder")]].concat();
    let report = kloset.backup_with(BackupOptions { listed, ..base() }).unwrap();
    assert!(report.manifest.incomplete);
    let lacking: Vec<_> = report.manifest.errors.iter().map(|error| error.path.0.clone()).collect();
    assert_eq!(lacking, ["gone", "c/not a folder"].map(|name| source.at(name).into_os_string().into_encoded_bytes()));
    assert_eq!((report.vanished, report.manifest.summary.files_unmodified), (0, 4), "another list, and still a parent");

    let listed = vec![source.at("gone")];
    let nothing = kloset.backup_with(BackupOptions { listed, ..base() });
    assert!(matches!(nothing, Err(BackupError::Nothing)), "{nothing:?}");
}

#[test]
fn a_list_too_long_to_be_noted_is_noted_as_the_folder_that_holds_all() {
    let (kloset, _) = kloset();
    let source = Source::new();
    let name = |n: usize| format!("folder/{n:0200}");
    let listed: Vec<PathBuf> = (0..TEXTS_BYTES_MAX / 200).map(|n| source.file(name(n), "")).collect();
    let files = listed.len() as u64;
    let report = kloset.backup_with(BackupOptions { listed, ..base() }).unwrap();
    assert_eq!(report.manifest.summary.files, files);
    let noted: Vec<_> = report.manifest.paths.iter().map(|path| path.0.clone()).collect();
    assert_eq!(noted, [source.at("folder").into_os_string().into_encoded_bytes()]);
}

#[test]
fn commands_are_stored_as_files_beside_folders() {
    let (kloset, _) = kloset();
    let source = Source::new();
    source.file("folder/x", "x");
    let inside = source.at("dump.sql").display().to_string();
    let streams = vec![
        command(&inside, "printf 'a dump'"),
        command("/made up/deep/1", "cat /dev/null"),
        command("relative", "seq 1 200000"),
    ];
    let paths = vec![source.at("folder")];
    let options = BackupOptions { streams, paths, ..base() };
    for known in [0, 3] {
        let report = kloset.backup_with(options.clone()).unwrap();
        assert!(!report.manifest.incomplete);
        assert_eq!(read(&kloset, &report, Path::new(&inside)), Some((b"a dump".to_vec(), 0o600)));
        assert_eq!(read(&kloset, &report, Path::new("/made up/deep/1")), Some((Vec::new(), 0o600)));
        let lines: String = (1..=200_000).map(|n| format!("{n}\n")).collect();
        assert_eq!(read(&kloset, &report, Path::new("/relative")).unwrap().0, lines.into_bytes());
        assert_eq!(read(&kloset, &report, &source.at("folder/x")).unwrap().0, b"x");
        let summary = report.manifest.summary;
        assert_eq!((summary.files_changed, summary.files), (known, 4));
        assert_eq!(report.manifest.paths.len(), 4);
    }
    kloset.assert_whole();
}

#[test]
fn a_command_that_fails_leaves_no_snapshot() {
    let (kloset, recording) = kloset();
    let source = Source::random(1, 10);
    for (line, expected) in [
        ("printf half; exit 7", "exit status: 7"),
        ("seq 1 1000000; kill -9 $$", "signal: 9"),
        ("this is no command 2>/dev/null", "exit status: 127"),
    ] {
        let streams = vec![command("first", "echo well"), command("stream", line)];
        let failed = kloset.backup_with(BackupOptions { streams, ..options(source.path()) });
        let Err(BackupError::Stream(error)) = failed else { panic!("{failed:?}") };
        let told = error.to_string();
        assert!(told.contains(expected) && told.contains(line) && told.contains("no snapshot"), "{told}");
    }
    assert!(recording.put_since(0, "snapshots/").is_empty());
}

#[test]
fn a_dry_run_tells_what_would_be_stored_and_puts_nothing() {
    let (kloset, recording) = kloset();
    let source = Source::new();
    for n in 0..20 {
        source.file(format!("folder/{n}"), noise(n, 5000));
    }
    let first = kloset.backup(source.path());
    source.file("folder/3", noise(100, 5000));
    source.file("folder/new", noise(101, 7000));
    source.file("folder/a copy", noise(4, 5000));
    let mark = recording.mark();
    let dry = kloset.backup_with(BackupOptions { dry_run: true, ..options(source.path()) }).unwrap();
    assert_eq!(recording.mark(), mark, "nothing is put and nothing deleted");
    assert_eq!((dry.outcome, kloset.snapshots().unwrap()), (Outcome::DryRun, vec![first.name]));
    let real = kloset.backup(source.path());
    assert_eq!(real.outcome, Outcome::Saved);
    let (dry, real) = (dry.manifest.summary, real.manifest.summary);
    assert_eq!((real.files_new, real.files_changed, real.bytes_new), (2, 1, 12_000));
    assert_eq!((dry.files_new, dry.files_changed, dry.files_unmodified), (2, 1, 19));
    assert_eq!((dry.chunks_new, dry.bytes_new), (real.chunks_new, real.bytes_new));
    assert!(dry.bytes_stored.abs_diff(real.bytes_stored) < 200, "{dry:?} {real:?}");
}

#[test]
fn an_unchanged_source_makes_no_snapshot_if_so_asked() {
    let (kloset, recording) = kloset();
    let source = Source::everything();
    let skipping = || BackupOptions { skip_if_unchanged: true, ..options(source.path()) };
    let first = kloset.backup_with(skipping()).unwrap();
    assert_eq!(first.outcome, Outcome::Saved, "there was no parent");
    let (again, put) = source.quietly(|| {
        kloset.backup(source.path());
        let mark = recording.mark();
        (kloset.backup_with(skipping()).unwrap(), recording.put_since(mark, ""))
    });
    assert_eq!((again.outcome, put), (Outcome::Unchanged, Vec::new()));
    let excludes = excludes(&["kinds/"]);
    let fewer = kloset.backup_with(BackupOptions { excludes, ..skipping() }).unwrap();
    assert_eq!(fewer.outcome, Outcome::Saved);
    source.file("one more", "x");
    let more = kloset.backup_with(skipping()).unwrap();
    assert_eq!(more.outcome, Outcome::Saved);
    assert_same(&source.scan(), &kloset.dump(more.name, source.path()).unwrap());
}

#[test]
fn a_snapshot_has_the_time_it_is_given() {
    let (kloset, _) = kloset();
    let source = Source::random(1, 5);
    let given = |unix_ms| BackupOptions { time_unix_ms: Some(unix_ms), ..options(source.path()) };
    let late = kloset.backup_with(given(1_700_000_000_123)).unwrap();
    let early = kloset.backup_with(given(1_600_000_000_000)).unwrap();
    assert_eq!((&*late.manifest.time, &*early.manifest.time), ("2023-11-14T22:13:20.123Z", "2020-09-13T12:26:40Z"));
    assert!(late.manifest.end > late.manifest.time && late.manifest.end[..17] == *"2023-11-14T22:13:");
    assert_eq!(kloset.snapshots().unwrap(), [early.name, late.name]);
    assert_eq!(kloset.backup(source.path()).manifest.parent, Some(late.name.id), "the newest is the parent");
}

#[test]
fn a_file_that_changes_all_the_time_is_stored_and_said_to_be_so() {
    let (kloset, _) = kloset();
    let source = Source::new();
    let at = source.file("busy", vec![0; 8 << 20]);
    source.file("calm", "x");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let report = std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::File::options().write(true).open(&at).unwrap();
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                std::os::unix::fs::FileExt::write_at(&file, b"change", 0).unwrap();
            }
        });
        let report = kloset.backup(source.path());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        report
    });
    assert_eq!((report.changed, report.vanished, report.manifest.incomplete), (1, 0, false));
    assert_eq!(report.manifest.errors.len(), 1);
    assert!(report.manifest.errors[0].message.contains("changed while it was read"));
    assert_eq!(report.manifest.summary.files, 2);
    let calm = kloset.backup(source.path());
    assert_eq!((calm.changed, calm.manifest.errors_total), (0, 0));
    assert_same(&source.scan(), &kloset.dump(calm.name, source.path()).unwrap());
}
