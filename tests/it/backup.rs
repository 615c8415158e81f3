//! A backup holds what the source held: on real folders, through the reader, with the store's log beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kloset_mount::backup::{BackupError, BackupOptions, BackupReport};
use kloset_mount::repo::path::{self, Found};
use kloset_mount::repo::snapshot::Summary;
use kloset_mount::repo::tree::{Data, FileContent, NodeKind, Page, TreeRef};

use crate::support::kloset::{Kloset, excludes, options, runtime};
use crate::support::random::{Random, noise, size};
use crate::support::stores::Recording;
use crate::support::tree::{Source, assert_same, is_root, rsync_differences, set_mode, set_mtime};

fn kloset() -> (Kloset, Recording) {
    let recording = Recording::in_memory();
    (Kloset::create(recording.clone()), recording)
}

/// Fails unless the snapshot holds what the source holds now.
#[track_caller]
fn assert_holds(kloset: &Kloset, report: &BackupReport, source: &Source) {
    assert_same(&source.scan(), &kloset.dump(report.name, source.path()).unwrap());
}

#[track_caller]
fn assert_complete(report: &BackupReport) {
    assert!(!report.manifest.incomplete && report.manifest.errors.is_empty(), "{:?}", report.manifest.errors);
}

/// Finds a path in a snapshot.
fn find(kloset: &Kloset, report: &BackupReport, at: &Path) -> Option<Found> {
    use std::os::unix::ffi::OsStrExt;
    let reader = kloset.0.reader(1 << 20);
    let root = report.manifest.root.into();
    runtime().block_on(path::resolve(&reader, root, at.as_os_str().as_bytes())).ok()
}

fn content(kloset: &Kloset, report: &BackupReport, at: &Path) -> FileContent {
    let Some(Found::Node(node)) = find(kloset, report, at) else { panic!("{at:?} is not there") };
    let NodeKind::File(content) = node.kind else { panic!("{at:?} is no file") };
    content
}

#[test]
fn a_tree_with_everything_comes_back_as_it_was() {
    let (kloset, _) = kloset();
    let source = Source::everything();
    let report = kloset.backup(source.path());
    assert_complete(&report);
    assert_holds(&kloset, &report, &source);
    kloset.assert_whole();
    assert_eq!(rsync_differences(source.path(), source.path()), [""; 0]);
}

#[test]
fn a_tree_with_everything_comes_back_with_chunks_of_the_default_sizes() {
    let recording = Recording::in_memory();
    let kloset = Kloset::try_create(recording, kloset_mount::repo::header::ChunkerSettings::default()).unwrap();
    let source = Source::everything();
    for bytes in [(256 << 10) - 1, 256 << 10, (256 << 10) + 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 20 << 20] {
        source.file(format!("large/{bytes}"), noise(bytes as u64, bytes));
    }
    source.file("large/zeros", vec![0; 30 << 20]);
    let report = kloset.backup(source.path());
    assert_complete(&report);
    assert_holds(&kloset, &report, &source);
}

#[test]
fn the_second_identical_backup_stores_one_snapshot_and_nothing_else() {
    let (kloset, recording) = kloset();
    let source = Source::everything();
    let (second, put) = source.quietly(|| {
        kloset.backup(source.path());
        let mark = recording.mark();
        (kloset.backup(source.path()), recording.put_since(mark, ""))
    });
    assert_holds(&kloset, &second, &source);
    assert!(put.len() == 1 && put[0].starts_with("snapshots/"), "{put:?}");
    assert_eq!(second.manifest.summary.files_unmodified, second.manifest.summary.files);
}

#[test]
fn an_identical_backup_without_a_parent_stores_nothing_again_either() {
    let (kloset, recording) = kloset();
    let source = Source::everything();
    let mut hosts = 0;
    let (again, put) = source.quietly(|| {
        kloset.backup(source.path());
        let mark = recording.mark();
        hosts += 1;
        let host = format!("another {hosts}");
        let again = kloset.backup_with(BackupOptions { host, ..options(source.path()) }).unwrap();
        (again, recording.put_since(mark, "packs/"))
    });
    assert_eq!(again.manifest.parent, None);
    assert_holds(&kloset, &again, &source);
    assert_eq!(put, [""; 0]);
}

#[test]
fn what_was_changed_renamed_and_removed_is_so_in_the_next_snapshot_only() {
    let (kloset, recording) = kloset();
    let source = Source::random(1, 60);
    let moved = source.file("moved/file", noise(77, 200_000));
    source.file("changed", noise(1, 100_000));
    source.file("same length", noise(2, 10_000));
    source.file("removed/file", "x");
    source.file("becomes a folder", "x");
    source.file("becomes a file/inside", "x");
    let before = source.scan();
    let first = kloset.backup(source.path());

    fs::rename(&moved, source.at("renamed")).unwrap();
    source.file("changed", [&noise(1, 50_000)[..], b"inserted", &noise(1, 100_000)[50_000..]].concat());
    source.file("same length", noise(3, 10_000));
    fs::remove_dir_all(source.at("removed")).unwrap();
    fs::remove_file(source.at("becomes a folder")).unwrap();
    source.file("becomes a folder/inside", "y");
    fs::remove_dir_all(source.at("becomes a file")).unwrap();
    source.file("becomes a file", "y");
    set_mode(&source.at("moved"), 0o700);
    let mark = recording.mark();
    let second = kloset.backup(source.path());

    assert_holds(&kloset, &second, &source);
    assert_same(&before, &kloset.dump(first.name, source.path()).unwrap());
    assert_eq!(second.manifest.parent, Some(first.name.id));
    let new = second.manifest.summary.bytes_new;
    assert!(new < 40_000, "{new} bytes were stored for 18,000 that are new");
    assert!(!recording.put_since(mark, "packs/").is_empty());
}

/// Unchanged folders are taken over whole: whatever differs in them, at any place, must still be seen.
#[test]
fn the_smallest_difference_in_an_unchanged_folder_is_seen() {
    let (kloset, _) = kloset();
    let source = Source::new();
    for folder in ["a", "b", "b/deep", "b/deep/er", "b/empty", "c"] {
        source.folder(folder);
        for name in ["1", "2", "3"] {
            source.file(format!("{folder}/{name}"), folder);
        }
    }
    std::os::unix::fs::symlink("1", source.at("b/link")).unwrap();
    kloset.backup(source.path());
    let changes: [&dyn Fn(); 8] = [
        &|| {},
        &|| fs::remove_file(source.at("b/deep/er/3")).unwrap(),
        &|| drop(source.file("b/deep/0", "new")),
        &|| set_mode(&source.at("b/deep/er/1"), 0o600),
        &|| set_mode(&source.at("b/empty"), 0o700),
        &|| set_mtime(&source.at("c"), 5, 5),
        &|| fs::remove_dir_all(source.at("b/empty")).unwrap(),
        &|| fs::rename(source.at("b/link"), source.at("b/nk")).unwrap(),
    ];
    for change in changes {
        change();
        let report = kloset.backup(source.path());
        assert_holds(&kloset, &report, &source);
        let whole = kloset.backup_with(BackupOptions { force: true, ..options(source.path()) }).unwrap();
        let counts = |report: &BackupReport| {
            let Summary { directories, files, others, bytes, .. } = report.manifest.summary;
            (directories, files, others, bytes)
        };
        assert_eq!(counts(&report), counts(&whole));
    }
    let excludes = excludes(&["deep/er/2"]);
    let report = kloset.backup_with(BackupOptions { excludes, ..options(source.path()) }).unwrap();
    fs::remove_file(source.at("b/deep/er/2")).unwrap();
    let mut expected = source.scan();
    let mut found = kloset.dump(report.name, source.path()).unwrap();
    for dump in [&mut expected, &mut found] {
        dump.remove(&b"b/deep/er"[..]); // its times are not those from before the removal
    }
    assert_same(&expected, &found);
}

#[test]
fn a_file_changed_back_within_its_old_times_is_read_again() {
    let (kloset, _) = kloset();
    let source = Source::new();
    let file = source.file("file", noise(1, 5000));
    set_mtime(&file, 1_000_000, 5);
    kloset.backup(source.path());
    source.file("file", noise(2, 5000));
    set_mtime(&file, 1_000_000, 5);
    let second = kloset.backup(source.path());
    assert_holds(&kloset, &second, &source);
}

#[test]
fn a_file_written_right_after_it_was_read_is_read_again() {
    let (kloset, _) = kloset();
    let source = Source::new();
    for n in 0..50 {
        let file = source.file("file", noise(n, 3000));
        let report = kloset.backup(source.path());
        assert_holds(&kloset, &report, &source);
        fs::write(file, noise(n + 1000, 3000)).unwrap(); // the same length, at once
        let report = kloset.backup(source.path());
        assert_holds(&kloset, &report, &source);
    }
}

#[test]
fn a_change_of_attributes_alone_is_seen() {
    let (kloset, _) = kloset();
    let source = Source::everything();
    let first = kloset.backup(source.path());
    set_mode(&source.at("kinds/file"), 0o600);
    xattr::set(source.at("attributes/file"), "user.empty", b"no more").unwrap();
    xattr::remove(source.at("attributes/folder"), "user.long").unwrap();
    set_mtime(&source.at("kinds/fifo"), 5, 6);
    fs::hard_link(source.at("sizes/1"), source.at("sizes/one more")).unwrap();
    let second = kloset.backup(source.path());
    assert_holds(&kloset, &second, &source);
    assert_eq!(second.manifest.parent, Some(first.name.id));
    assert_eq!(second.manifest.summary.bytes_new, 0);
}

#[test]
fn excludes_leave_out_what_they_name() {
    let (kloset, _) = kloset();
    let source = Source::new();
    for name in ["keep/a", "keep/a.tmp", "keep/cache/b", "cache", "deep/x/y/z.tmp", "deep/keep.tmp", "only here/c"] {
        source.file(name, name);
    }
    let excludes = ["*.tmp", "cache/", "!keep.tmp", &format!("{}/only here", source.path().display())];
    let excludes = self::excludes(&excludes);
    let report = kloset.backup_with(BackupOptions { excludes, ..options(source.path()) }).unwrap();
    assert_complete(&report);
    let left: Vec<_> = kloset.dump(report.name, source.path()).unwrap().into_keys().collect();
    let left: Vec<_> = left.iter().map(|path| String::from_utf8(path.clone()).unwrap()).collect();
    assert_eq!(left, ["", "cache", "deep", "deep/keep.tmp", "deep/x", "deep/x/y", "keep", "keep/a"]);
}

#[test]
fn several_sources_one_inside_another_make_one_snapshot() {
    let (kloset, _) = kloset();
    let (source, other) = (Source::random(3, 20), Source::random(4, 20));
    let inner = source.file("inner/x", "x");
    let paths = vec![other.path().to_owned(), inner.clone(), source.path().to_owned(), source.at("./inner/../inner")];
    let report = kloset.backup_with(BackupOptions { paths, ..options(source.path()) }).unwrap();
    assert_complete(&report);
    assert_holds(&kloset, &report, &source);
    assert_holds(&kloset, &report, &other);
    let alone = kloset.backup(&inner);
    assert!(find(&kloset, &alone, &inner).is_some());
    assert!(find(&kloset, &alone, other.path()).is_none());
    let gone = kloset.backup_with(options(&source.at("gone")));
    assert!(matches!(gone, Err(BackupError::Source { .. })), "{gone:?}");
}

struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: PathBuf) -> Self {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&at).status().unwrap();
        assert!(mounted.success());
        Self(at)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn one_file_system_shows_a_mount_as_an_empty_folder() {
    if !is_root() {
        return eprintln!("needs root to mount");
    }
    let (kloset, _) = kloset();
    let source = Source::new();
    source.file("below", "x");
    let mounted = Tmpfs::mount(source.folder("mounted"));
    source.file("mounted/inside", "y");
    source.file("mounted/folder/inside", "y");
    let report = kloset.backup_with(BackupOptions { one_file_system: true, ..options(source.path()) }).unwrap();
    assert_complete(&report);
    let mut expected = source.scan();
    expected.retain(|path, _| !path.starts_with(b"mounted/"));
    assert_same(&expected, &kloset.dump(report.name, source.path()).unwrap());
    let across = kloset.backup(source.path());
    assert_holds(&kloset, &across, &source);
    let named = kloset.backup_with(BackupOptions { one_file_system: true, ..options(&mounted.0) }).unwrap();
    assert!(find(&kloset, &named, &source.at("mounted/folder/inside")).is_some());
}

#[test]
fn the_klosets_own_folder_is_not_entered() {
    let (kloset, _) = kloset();
    let source = Source::new();
    source.file("kloset/packs/x", "x");
    source.file("y", "y");
    let skip = Some(source.at("kloset"));
    let report = kloset.backup_with(BackupOptions { skip, ..options(source.path()) }).unwrap();
    assert!(find(&kloset, &report, &source.at("kloset")).is_some());
    assert!(find(&kloset, &report, &source.at("kloset/packs")).is_none());
}

/// Runs the program as a user who may not read everything.
fn run_as_nobody(line: &[&str], home: &Path) -> std::process::Output {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(home.join("kloset-mount"))
        .args(line)
        .env_clear()
        .env("XDG_STATE_HOME", home.join("state"))
        .env("KLOSET_KEY_FILE", home.join("key"))
        .env("KLOSET_REPOSITORY", home.join("kloset"))
        .stdin(Stdio::null())
        .output();
    output.expect("setpriv is part of util-linux")
}

#[test]
fn unreadable_files_end_with_3_and_the_snapshot_says_what_it_lacks() {
    if !is_root() {
        return eprintln!("needs root to become another user");
    }
    let (home, source) = (Source::new(), Source::new());
    for folder in [home.path(), source.path()] {
        set_mode(folder, 0o777);
    }
    fs::copy(env!("CARGO_BIN_EXE_kloset-mount"), home.at("kloset-mount")).unwrap();
    home.file("key", "ab".repeat(32));
    source.file("readable", "x");
    set_mode(&source.file("secret", "x"), 0o600);
    set_mode(source.file("closed/file", "x").parent().unwrap(), 0o700);

    let output = run_as_nobody(&["create"], home.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let backup = ["backup", source.path().to_str().unwrap(), "--json"];
    let output = run_as_nobody(&backup, home.path());
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{told}");
    assert!(told.contains("secret") && told.contains("closed") && !told.contains("readable"), "{told}");
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["incomplete"], &summary["errors"]), (&true.into(), &2.into()));
    let listed: Vec<_> = summary["error_list"].as_array().unwrap().iter().map(|error| &error["item"]).collect();
    assert_eq!(listed, [source.at("closed").to_str().unwrap(), source.at("secret").to_str().unwrap()]);

    let secret = kloset_mount::repo::keyslot::SlotSecret::parse_key_file(&"ab".repeat(32)).unwrap();
    let folder = object_store::local::LocalFileSystem::new_with_prefix(home.at("kloset")).unwrap();
    let kloset = Kloset::open_with(folder, &secret).unwrap();
    let name = *kloset.snapshots().unwrap().last().unwrap();
    let manifest = runtime().block_on(kloset.0.manifest(name)).unwrap();
    assert!(manifest.incomplete);
    let named: Vec<_> = manifest.errors.iter().map(|e| String::from_utf8_lossy(&e.path.0).into_owned()).collect();
    assert_eq!(named, [source.at("closed").display().to_string(), source.at("secret").display().to_string()]);
    let dump = kloset.dump(name, source.path()).unwrap();
    let paths: Vec<_> = dump.keys().map(|path| path.escape_ascii().to_string()).collect();
    assert_eq!(paths, ["", "closed", "readable"]);

    set_mode(&source.at("secret"), 0o644);
    set_mode(&source.at("closed"), 0o755);
    assert_eq!(run_as_nobody(&backup, home.path()).status.code(), Some(0));
    let name = *kloset.snapshots().unwrap().last().unwrap();
    assert_same(&source.scan(), &kloset.dump(name, source.path()).unwrap());
}

#[test]
fn files_that_come_and_go_meanwhile_do_not_make_a_snapshot_incomplete() {
    let (kloset, _) = kloset();
    let source = Source::random(9, 40);
    let stop = std::sync::atomic::AtomicBool::new(false);
    let mut vanished = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random::new(1);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let name = format!("coming and going/{}", random.below(500));
                let _ = fs::remove_file(source.at(&name));
                let name = format!("coming and going/{}", random.below(500));
                source.file(&name, noise(random.below(9), 3000));
            }
        });
        for _ in 0..size(30, 300) {
            let report = kloset.backup_with(BackupOptions { force: true, ..options(source.path()) }).unwrap();
            assert!(!report.manifest.incomplete, "{:?}", report.manifest.errors);
            assert_eq!(report.manifest.errors_total, report.vanished + report.changed);
            vanished += report.vanished;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    eprintln!("{vanished} files vanished");
    kloset.assert_whole();
    let report = kloset.backup(source.path());
    assert_holds(&kloset, &report, &source);
}

#[test]
fn a_huge_directory_is_paged_and_one_change_rewrites_few_pages() {
    let entries = size(10_000, 200_000);
    let (kloset, recording) = kloset();
    let source = Source::new();
    for n in 0..entries {
        source.file(format!("huge/{:x}", n * 7919), format!("{}", n % 10));
    }
    let first = kloset.backup(source.path());
    assert_holds(&kloset, &first, &source);
    let Some(Found::Node(node)) = find(&kloset, &first, &source.at("huge")) else { panic!("not there") };
    let NodeKind::Directory(tree) = node.kind else { panic!("no directory") };
    let page = runtime().block_on(kloset.0.reader(1 << 20).page(&tree)).unwrap();
    let Page::Branch(before) = &*page else { panic!("a directory of {entries} entries is one page") };
    assert!(before.len() > 2 && before.iter().map(|e| e.nodes).sum::<u64>() == entries);

    source.file(format!("huge/{:x}", (entries / 2) * 7919), "changed");
    source.file("huge/~new", "new");
    let mark = recording.mark();
    let second = kloset.backup(source.path());
    assert_holds(&kloset, &second, &source);
    let Some(Found::Node(node)) = find(&kloset, &second, &source.at("huge")) else { panic!("not there") };
    let NodeKind::Directory(tree) = node.kind else { panic!("no directory") };
    let page = runtime().block_on(kloset.0.reader(1 << 20).page(&tree)).unwrap();
    let Page::Branch(after) = &*page else { panic!("no branch") };
    let known: std::collections::HashSet<TreeRef> = before.iter().map(|e| e.page).collect();
    let new = after.iter().filter(|e| !known.contains(&e.page)).count();
    assert!(new <= 2, "{new} of {} pages are new after two changes", after.len());
    assert_eq!(recording.put_since(mark, "packs/").len(), 2, "one pack of data, one of trees");
}

#[test]
fn a_file_of_very_many_chunks_keeps_their_list_in_content_pages() {
    let (kloset, recording) = kloset();
    let source = Source::new();
    let bytes = usize::try_from(size(40 << 20, 200 << 20)).unwrap();
    let huge = source.file("huge", noise(1, bytes));
    let first = kloset.backup(source.path());
    assert_holds(&kloset, &first, &source);
    let stored = content(&kloset, &first, &huge);
    let Data::Pages(pages) = &stored.data else { panic!("the list stands in the node") };
    assert!(pages.len() > 1, "{}", pages.len());

    let (whole, mut random, reader) = (fs::read(&huge).unwrap(), Random::new(5), kloset.0.reader(1 << 20));
    for _ in 0..200 {
        let from = random.below(bytes as u64 + 10);
        let to = from + random.below(100_000);
        let part = runtime().block_on(reader.read(&stored, from..to)).unwrap();
        let clamp = |at: u64| usize::try_from(at).unwrap().min(bytes);
        assert!(part == whole[clamp(from)..clamp(to)], "{from}..{to}");
    }

    let mut changed = whole;
    changed[bytes / 2] ^= 1;
    fs::write(&huge, changed).unwrap();
    let mark = recording.mark();
    let second = kloset.backup(source.path());
    assert_holds(&kloset, &second, &source);
    assert!(second.manifest.summary.bytes_new <= 3 * 8192, "{:?}", second.manifest.summary);
    assert_eq!(recording.put_since(mark, "packs/").len(), 2);
}

#[test]
fn files_whose_content_is_a_tree_or_a_content_page_of_the_kloset_are_no_confusion() {
    let (kloset, _) = kloset();
    let source = Source::new();
    source.file("folder/a", "x");
    let big = source.file("big", noise(3, 1 << 20));
    let first = kloset.backup(source.path());
    let reader = kloset.0.reader(1 << 20);
    let tree = |at: &Path| match find(&kloset, &first, at).unwrap() {
        Found::Node(node) => match node.kind {
            NodeKind::Directory(tree) => tree,
            NodeKind::File(FileContent { data: Data::Pages(pages), .. }) => pages[0].1,
            other => panic!("{other:?}"),
        },
        Found::Root(tree) => tree,
    };
    let bytes_of = |at: &Path| runtime().block_on(reader.tree_chunk(&tree(at))).unwrap();
    source.file("a tree", bytes_of(&source.at("folder")));
    source.file("a page", bytes_of(&big));
    for force in [false, true] {
        let report = kloset.backup_with(BackupOptions { force, ..options(source.path()) }).unwrap();
        assert_holds(&kloset, &report, &source);
    }
    kloset.assert_whole();

    // In a new kloset with the same keys, content comes before the tree that has the same bytes.
    let fresh = Source::new();
    fresh.file("a/first", bytes_of(&source.at("folder")));
    fs::rename(source.at("folder"), fresh.at("folder")).unwrap();
    let report = kloset.backup(fresh.path());
    assert_holds(&kloset, &report, &fresh);
    kloset.assert_whole();
}

#[test]
fn force_stores_again_what_has_gone_and_older_snapshots_are_whole_again() {
    let (kloset, recording) = kloset();
    let source = Source::everything();
    let first = kloset.backup(source.path());
    let before = kloset.dump(first.name, source.path()).unwrap();
    // Packs are put side by side: the one of the trees may be there first.
    let pack = recording.put_since(0, "packs/").into_iter().find(|pack| kloset.is_data_pack(pack)).unwrap();
    runtime().block_on(kloset.0.store.delete(&pack)).unwrap();
    let damaged: Vec<_> = kloset.check().unwrap().damaged.into_iter().map(|d| d.object).collect();
    assert_eq!(damaged, [pack]);
    assert!(kloset.dump(first.name, source.path()).is_err());
    let healing = kloset.backup_with(BackupOptions { force: true, ..options(source.path()) }).unwrap();
    assert_holds(&kloset, &healing, &source);
    assert_same(&before, &kloset.dump(first.name, source.path()).unwrap());
}

/// A tree tells where what it names lies, so trees that are made again elsewhere are other trees.
#[test]
fn lost_trees_do_not_come_back_but_the_next_forced_backup_is_whole() {
    let source = Source::random(5, 50);
    let (kloset, recording) = kloset();
    let first = kloset.backup(source.path());
    for pack in recording.put_since(0, "packs/") {
        runtime().block_on(kloset.0.store.delete(&pack)).unwrap();
    }
    let healing = kloset.backup_with(BackupOptions { force: true, ..options(source.path()) }).unwrap();
    assert_holds(&kloset, &healing, &source);
    let error = kloset.dump(first.name, source.path()).unwrap_err();
    assert!(error.to_string().contains("packs/"), "{error}");
    let report = kloset.check().unwrap();
    assert_eq!(report.snapshots_affected().into_iter().collect::<Vec<_>>(), [first.name.id]);
}
