//! What a backup leaves out: rules, files of rules in folders, markers, sizes; also where nothing else changed.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use kloset_mount::backup::{BackupOptions, Excludes, Explanation, Marker, Reason, explain};
use kloset_mount::monitor::Monitor;

use crate::support::kloset::{Kloset, excludes, options};
use crate::support::random::Random;
use crate::support::stores::Recording;
use crate::support::tree::Source;

fn kloset() -> Kloset {
    Kloset::create(Recording::in_memory())
}

/// All that may leave something out but sizes.
fn everything() -> Excludes {
    let marker = Marker { name: b".nobackup".into(), header: Vec::new() };
    let markers = vec![Marker::cache(), marker];
    Excludes { ignore_files: true, git_ignore_files: true, markers, ..Excludes::default() }
}

/// Backs up, compares what explain says with what was taken, and returns the paths of the files.
#[track_caller]
fn taken(kloset: &Kloset, source: &Source, excludes: Excludes) -> Vec<String> {
    let options = BackupOptions { excludes, ..options(source.path()) };
    let report = kloset.backup_with(options.clone()).unwrap();
    assert!(!report.manifest.incomplete);
    let dump = kloset.dump(report.name, source.path()).unwrap();
    let text = |path: &[u8]| path.escape_ascii().to_string();
    for path in source.scan().into_keys() {
        let explained = explain(&options, &source.at(text(&path)), &Monitor::default()).unwrap();
        assert_eq!(explained.taken, dump.contains_key(&path), "{explained:?}");
    }
    let is_file = |path: &&Vec<u8>| source.at(text(path)).is_file();
    dump.keys().filter(is_file).map(|path| text(path)).collect()
}

#[track_caller]
fn check(files: &[(&str, &str)], excludes: Excludes, expected: &[&str]) {
    let (kloset, source) = (kloset(), Source::new());
    for (name, content) in files {
        source.file(name, content);
    }
    assert_eq!(taken(&kloset, &source, excludes), expected);
}

#[test]
fn a_folders_own_rules_hold_below_it_and_the_innermost_count_first() {
    let files = [
        (".klosetignore", "*.o\n/top\na/b\n!kept.o\ncache/\n"),
        ("a/.klosetignore", "!x.o\nnot here\n"),
        ("a/b", ""),
        ("a/top", ""),
        ("a/x.o", ""),
        ("a/y.o", ""),
        ("cache/x", ""),
        ("deep/a/b", ""),
        ("deep/not here", ""),
        ("kept.o", ""),
        ("top", ""),
    ];
    let left = [".klosetignore", "a/.klosetignore", "a/top", "a/x.o", "deep/a/b", "deep/not here", "kept.o"];
    check(&files, everything(), &left);
    check(&files, Excludes { ignore_files: false, ..everything() }, &files.map(|file| file.0));
}

#[test]
fn the_command_line_comes_before_the_rules_of_folders() {
    let files = [(".klosetignore", "a\n!b\n"), ("a", ""), ("b", ""), ("c", "")];
    let rules = excludes(&["b", "!a"]).rules;
    check(&files, Excludes { rules, ..everything() }, &[".klosetignore", "a", "c"]);
}

#[test]
fn gits_rules_end_at_a_repository_and_ours_come_first() {
    let files = [
        (".gitignore", "*\n"),
        (".klosetignore", "!*/\n!own\n"),
        ("home/x", ""),
        ("own", ""),
        ("repository/.git/HEAD", "ref"),
        ("repository/.gitignore", "build/\n"),
        ("repository/build/x", ""),
        ("repository/source", ""),
    ];
    let left = ["own", "repository/.git/HEAD", "repository/.gitignore", "repository/source"];
    check(&files, everything(), &left);
    let all = files.map(|file| file.0);
    check(&files, Excludes { git_ignore_files: false, ..everything() }, &all);
}

#[test]
fn marked_folders_are_empty_but_for_the_marker() {
    let tag = "Signature: 8a477f597d28d172789f06886806bc55\n# a cache";
    let files = [
        ("cache/CACHEDIR.TAG", tag),
        ("cache/deep/x", ""),
        ("cache/x", ""),
        ("marked/.nobackup", ""),
        ("marked/x", ""),
        ("unmarked/CACHEDIR.TAG", "something else of that name"),
        ("unmarked/x", ""),
    ];
    let left = ["cache/CACHEDIR.TAG", "marked/.nobackup", "unmarked/CACHEDIR.TAG", "unmarked/x"];
    check(&files, everything(), &left);
    check(&files, Excludes { markers: Vec::new(), ..everything() }, &files.map(|file| file.0));
}

#[test]
fn larger_files_are_left_out() {
    let files = [("folder/12345", "12345"), ("folder/123456", "123456"), ("kept/123456", "123456")];
    let limit = Excludes { larger_than: Some(5), ..excludes(&["!/x"]) };
    check(&files, limit, &["folder/12345"]);
}

/// Rules that cannot be used leave nothing out, and are told.
#[test]
fn rules_that_cannot_be_read_or_understood_are_told_and_leave_nothing_out() {
    let source = Source::new();
    source.file("long/.klosetignore", "x\n".repeat(200_000));
    source.file("long/x", "");
    source.file("elsewhere", "x\n");
    source.file("link/x", "");
    std::os::unix::fs::symlink(source.at("elsewhere"), source.at("link/.klosetignore")).unwrap();
    source.file("wrong/.klosetignore", "[z-a]\ny\n");
    source.file("wrong/x", "");
    source.file("wrong/y", "");
    source.folder("folder/.klosetignore");
    source.file("folder/x", "");
    let monitor = std::sync::Arc::new(Monitor::default());
    let options = BackupOptions { excludes: everything(), ..options(source.path()) };
    let kloset = kloset();
    let runtime = crate::support::kloset::runtime().handle();
    let report = kloset_mount::backup::backup(&kloset.0, runtime, &options, &monitor).unwrap();
    let dump = kloset.dump(report.name, source.path()).unwrap();
    let lacking: Vec<_> = source.scan().into_keys().filter(|path| !dump.contains_key(path)).collect();
    assert_eq!(lacking, [b"wrong/y".to_vec()]);
    let told: BTreeSet<_> = monitor.take_troubles().into_iter().map(|(path, _)| path).collect();
    let at = |name: &str| source.at(name).join(".klosetignore").into_os_string().into_encoded_bytes();
    assert_eq!(told, ["folder", "link", "long", "wrong"].map(at).into());
}

/// Unchanged folders are taken over whole from the parent snapshot: other rules must be seen all the same.
#[test]
fn other_rules_than_the_parents_count_where_nothing_else_changed() {
    let (kloset, source) = (kloset(), Source::new());
    let folders = ["a", "a/deep", "a/deep/er", "b", "b/empty"];
    for folder in folders {
        source.folder(folder);
        for name in ["1", "2", "3"] {
            source.file(format!("{folder}/{name}"), "12");
        }
    }
    source.file("a/deep/er/large", "123");
    let all = taken(&kloset, &source, Excludes::default());
    let without = |gone: &[&str]| -> Vec<String> {
        all.iter().filter(|path| !gone.iter().any(|gone| path.starts_with(gone))).cloned().collect()
    };
    let (last, first, folder) = (excludes(&["er/3"]), excludes(&["deep/1"]), excludes(&["deep/"]));
    for (excludes, gone) in [
        (last, &["a/deep/er/3"][..]),
        (Excludes::default(), &[]),
        (first, &["a/deep/1"]),
        (folder, &["a/deep/"]),
        (Excludes { larger_than: Some(2), ..Excludes::default() }, &["a/deep/er/large"]),
        (excludes(&["empty"]), &["b/empty"]),
        (Excludes::default(), &[]),
        (excludes(&["a", "b"]), &[""]),
        (Excludes::default(), &[]),
    ] {
        assert_eq!(taken(&kloset, &source, excludes), without(gone));
    }
}

#[test]
fn a_folders_own_rules_that_come_change_and_go_take_effect_at_once() {
    let (kloset, source) = (kloset(), Source::new());
    for name in ["a/deep/er/1", "a/deep/er/2", "a/deep/er/most/1", "b/1"] {
        source.file(name, name);
    }
    let backup = || taken(&kloset, &source, everything());
    assert_eq!(backup(), ["a/deep/er/1", "a/deep/er/2", "a/deep/er/most/1", "b/1"]);
    source.file("a/deep/.klosetignore", "er/2\n");
    assert_eq!(backup(), ["a/deep/.klosetignore", "a/deep/er/1", "a/deep/er/most/1", "b/1"]);
    source.file("a/deep/.klosetignore", "1\n");
    assert_eq!(backup(), ["a/deep/.klosetignore", "a/deep/er/2", "b/1"]);
    fs::rename(source.at("a/deep/.klosetignore"), source.at("a/.gitignore")).unwrap();
    assert_eq!(backup(), ["a/.gitignore", "a/deep/er/2", "b/1"]);
    source.file("a/deep/er/.nobackup", "");
    assert_eq!(backup(), ["a/.gitignore", "a/deep/er/.nobackup", "b/1"]);
    fs::remove_file(source.at("a/deep/er/.nobackup")).unwrap();
    fs::remove_file(source.at("a/.gitignore")).unwrap();
    assert_eq!(backup(), ["a/deep/er/1", "a/deep/er/2", "a/deep/er/most/1", "b/1"]);
}

/// Folders without files of rules are not asked for any: what costs a backup nothing stays so.
#[test]
fn random_rules_in_random_places_mean_the_same_to_a_second_backup_and_to_one_that_reads_all() {
    let mut random = Random::new(7);
    let (kloset, source) = (kloset(), Source::new());
    let folders = ["", "a/", "a/a/", "a/b/", "b/", "b/a/", "b/b/"];
    for folder in folders {
        for name in ["1", "2", "x"] {
            source.file(format!("{folder}{name}"), name);
        }
    }
    let lines = ["1", "/1", "!1", "a/", "a/1", "!a/1", "*", "!*/", "x", "!x", "b/b", "[12]"];
    for _ in 0..40 {
        let at = source.at(format!("{}.klosetignore", random.one(&folders)));
        if at.exists() && random.below(2) == 0 {
            fs::remove_file(at).unwrap();
        } else {
            fs::write(at, format!("{}\n{}\n", random.one(&lines), random.one(&lines))).unwrap();
        }
        let parented = taken(&kloset, &source, everything());
        let options = BackupOptions { excludes: everything(), force: true, ..options(source.path()) };
        let report = kloset.backup_with(options).unwrap();
        let dump = kloset.dump(report.name, source.path()).unwrap();
        let files = dump.keys().map(|path| path.escape_ascii().to_string());
        let files: Vec<_> = files.filter(|path| source.at(path).is_file()).collect();
        assert_eq!(parented, files);
    }
}

#[track_caller]
fn check_explained(options: &BackupOptions, path: &Path, expected: (bool, &Path, Option<Reason>)) {
    let Explanation { taken, decided_at, reason, .. } = explain(options, path, &Monitor::default()).unwrap();
    let at = decided_at.escape_ascii().to_string();
    assert_eq!((taken, Path::new(&at), reason), expected, "{}", path.display());
}

#[test]
fn explain_names_the_rule_and_where_it_stands() {
    let source = Source::new();
    for name in ["a/b/c.o", "a/b/kept.o", "a/c", "big", "marked/.nobackup", "marked/deep/x", "kloset/packs"] {
        source.file(name, "12");
    }
    source.file("a/.klosetignore", "# objects\n*.o\n!kept.o\n");
    std::os::unix::fs::symlink("a", source.at("link")).unwrap();
    let rules = excludes(&["big"]).rules;
    let options = BackupOptions {
        excludes: Excludes { rules: rules.clone(), larger_than: Some(2), ..everything() },
        skip: Some(source.at("kloset")),
        ..options(source.path())
    };
    let rule = |text: &str, line: u32| {
        let from = format!("{}:{line}", source.at("a/.klosetignore").display());
        Some(Reason::Rule(kloset_mount::backup::Rule { text: text.to_owned(), from }))
    };
    let at = |name: &str| source.at(name);
    check_explained(&options, &at("a/b/c.o"), (false, &at("a/b/c.o"), rule("*.o", 2)));
    check_explained(&options, &at("a/b/kept.o"), (true, &at("a/b/kept.o"), rule("!kept.o", 3)));
    check_explained(&options, &at("a/c"), (true, &at("a/c"), None));
    check_explained(&options, &at("a/./b/../c"), (true, &at("a/c"), None));
    check_explained(&options, &at("big"), (false, &at("big"), Some(Reason::Rule(rules[0].clone()))));
    let marker = Some(Reason::Marker(b".nobackup".into()));
    check_explained(&options, &at("marked/deep/x"), (false, &at("marked/deep"), marker));
    check_explained(&options, &at("a/.klosetignore"), (false, &at("a/.klosetignore"), Some(Reason::LargerThan(2))));
    check_explained(&options, &at("kloset"), (true, &at("kloset"), None));
    check_explained(&options, &at("kloset/packs"), (false, &at("kloset"), Some(Reason::Kloset)));
    check_explained(&options, &at("link"), (true, &at("link"), None));
    check_explained(&options, &at("link/c"), (false, &at("link"), Some(Reason::BehindLink)));
    check_explained(&options, Path::new("/"), (false, Path::new("/"), Some(Reason::NotAsked)));
    let root = BackupOptions { paths: vec!["/".into()], one_file_system: true, ..BackupOptions::default() };
    let foreign = Some(Reason::OtherFileSystem);
    check_explained(&root, Path::new("/proc/self/stat"), (false, Path::new("/proc"), foreign));
    assert!(explain(&options, &at("gone"), &Monitor::default()).is_err());
}

/// `/` is a filesystem like any other path's.
#[test]
fn one_file_system_holds_for_the_root_folder() {
    let kloset = kloset();
    let excludes = excludes(&["/*", "!/proc"]);
    let paths = vec!["/".into()];
    let options = BackupOptions { paths, excludes, one_file_system: true, ..options(Path::new("/")) };
    let report = kloset.backup_with(options).unwrap();
    assert_eq!((report.manifest.summary.directories, report.manifest.summary.files), (1, 0));
}
