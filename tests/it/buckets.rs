//! A bucket as the source of a backup and as the target of a restore, over a real S3 server.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use kloset_mount::backup::{BackupError, BackupOptions, BackupReport, BucketSource, Outcome};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::path::{self, Found};
use kloset_mount::restore::{BucketRestoreOptions, Overwrite, RestoreError, RestoreReport, Unheld, restore_to_bucket};
use kloset_mount::store::{Bucket, StoreError};
use s3s::S3ErrorCode;

use crate::support::buckets::Buckets;
use crate::support::kloset::{Kloset, excludes, options, runtime};
use crate::support::program::Program;
use crate::support::random::{noise, size};
use crate::support::stores::Recording;
use crate::support::tree::Source;

fn kloset() -> (Kloset, Recording) {
    let recording = Recording::in_memory();
    (Kloset::create(recording.clone()), recording)
}

fn of(bucket: Bucket) -> BackupOptions {
    let bucket = Some(BucketSource { bucket, skip: None });
    BackupOptions { bucket, host: "host".to_owned(), ..BackupOptions::default() }
}

fn into(report: &BackupReport, bucket: Bucket) -> BucketRestoreOptions {
    let (snapshot, overwrite) = (report.name, Overwrite::Never);
    BucketRestoreOptions { snapshot, path: None, bucket, keep_off: None, overwrite, dry_run: false }
}

fn restore(kloset: &Kloset, options: &BucketRestoreOptions) -> Result<RestoreReport, RestoreError> {
    restore_to_bucket(&kloset.0, runtime().handle(), options, &Arc::new(Monitor::default()))
}

/// Reads an attribute of what a snapshot has at a path.
fn attribute(kloset: &Kloset, report: &BackupReport, at: &str, name: &str) -> Option<String> {
    let reader = kloset.0.reader(1 << 20);
    let found = runtime().block_on(path::resolve(&reader, report.manifest.root.into(), at.as_bytes())).unwrap();
    let Found::Node(node) = found else { panic!("{at} is no node") };
    let (_, value) = node.xattrs.iter().find(|(found, _)| found == name.as_bytes())?;
    Some(String::from_utf8(value.clone()).unwrap())
}

fn problems(report: &BackupReport) -> BTreeMap<String, String> {
    let all = report.manifest.errors.iter();
    all.map(|error| (String::from_utf8_lossy(&error.path.0).into_owned(), error.message.clone())).collect()
}

const SAID: [(&str, &str); 8] = [
    ("content-type", "text/x-odd; charset=utf-8"),
    ("content-encoding", "gzip"),
    ("cache-control", "no-cache"),
    ("content-disposition", "attachment; filename=\"a  b\""),
    ("content-language", "de"),
    ("expires", "Sun, 22 Nov 2026 13:58:00 GMT"),
    ("x-amz-meta-owner", "anna & bert"),
    ("x-amz-meta-with-dash.and_dot", "=?UTF-8?Q?=C3=A9?="),
];

/// Keys of every kind that S3 knows.
fn odd_keys() -> Vec<String> {
    let mut keys: Vec<String> = [
        "a",
        "a/b",
        "a/",
        "a//",
        "a//b",
        "a-b",
        "a.txt",
        "/",
        "//",
        "/lead",
        "trail/",
        "blank here/ and there ",
        " ",
        "ключ/é/日本.txt",
        "plus+and%20percent%/%/%%/%empty",
        "%object",
        "a/%object",
        "&<>\"'?#=;:@,$!*()[]{}|\\^`~",
        "control\u{1}\n\tchars\u{7f}",
        ".hidden",
        "...",
        "a/.../b",
        "d/e/f/g/h",
        "d/e/f",
        "d",
    ]
    .map(str::to_owned)
    .into();
    keys.push(format!("long/{}/{}", "x".repeat(400), "é".repeat(200)));
    keys.push("s/".repeat(512));
    keys
}

fn fill(buckets: &Buckets, count: usize) {
    for (number, key) in odd_keys().iter().enumerate() {
        buckets.put("source", key, key.repeat(number % 3), if number % 2 == 0 { &SAID } else { &SAID[..1] });
    }
    for number in 0..count {
        let key = format!("photos/{}/{number:05} of many.jpg", number % 7);
        buckets.put("source", &key, noise(number as u64, number % 5000), &SAID[..number % SAID.len()]);
    }
}

#[test]
fn a_bucket_of_any_keys_comes_back_as_it_was() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    let count = usize::try_from(size(1100, 5000)).unwrap();
    fill(&buckets, count);
    let total = (count + odd_keys().len()) as u64;
    let first = kloset.backup_with(of(buckets.open("source"))).unwrap();
    assert!(!first.manifest.incomplete, "{:?}", first.manifest.errors);
    assert_eq!((first.manifest.summary.files, first.manifest.summary.files_new), (total, total));
    assert_eq!(buckets.asked(), [total.div_ceil(1000), total, 0, 0], "one request an object");
    kloset.assert_whole();

    let restored = restore(&kloset, &into(&first, buckets.open("other"))).unwrap();
    assert_eq!((restored.files, restored.failures_total, &restored.unheld[..]), (total, 0, &[][..]));
    assert_eq!(buckets.dump("other"), buckets.dump("source"));
    buckets.asked();

    // Nothing has changed: the listing says so, and nothing is read.
    let second = kloset.backup_with(BackupOptions { skip_if_unchanged: true, ..of(buckets.open("source")) }).unwrap();
    assert_eq!((second.outcome, second.manifest.summary.files_unmodified), (Outcome::Unchanged, total));
    assert_eq!(buckets.asked(), [total.div_ceil(1000), 0, 0, 0]);

    // One is new, one is another, one has other metadata only, one is gone.
    buckets.put("source", "photos/3/new", "new", &SAID);
    buckets.put("source", "a", "another", &SAID);
    buckets.put("source", "d/e/f", "d/e/f".repeat(2), &SAID[3..]);
    buckets.remove("source", "trail/");
    buckets.list_without_etags();
    let third = kloset.backup_with(of(buckets.open("source"))).unwrap();
    let summary = &third.manifest.summary;
    assert_eq!((summary.files_new, summary.files_changed, summary.files_unmodified), (1, 2, total - 3));
    assert_eq!(buckets.asked()[1], 3);
    kloset.backup_with(of(buckets.open("source"))).unwrap();
    assert_eq!(buckets.asked()[1], 0, "size and time are enough where the listing has no entity tags");
    restore(&kloset, &into(&third, buckets.open("third"))).unwrap();
    assert_eq!(buckets.dump("third"), buckets.dump("source"));
}

#[test]
fn objects_have_readable_paths_and_their_metadata_as_attributes() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    for key in ["photos/a.jpg", "photos//b", "photos"] {
        buckets.put("source", key, key, &SAID);
    }
    let report = kloset.backup_with(of(buckets.open("source"))).unwrap();
    let root = format!("/s3:/127.0.0.1:{}/source", buckets.port);
    assert_eq!(report.manifest.paths.iter().map(|path| path.0.clone()).collect::<Vec<_>>(), [root.as_bytes()]);
    let of = |key: &str, name: &str| attribute(&kloset, &report, &format!("{root}/{key}"), name);
    assert_eq!(of("photos/a.jpg", "user.s3.content-type").as_deref(), Some(SAID[0].1));
    assert_eq!(of("photos/a.jpg", "user.s3.meta.owner").as_deref(), Some("anna & bert"));
    assert_eq!(of("photos/a.jpg", "user.s3.etag").map(|etag| etag.len()), Some(32));
    assert_eq!(of("photos/a.jpg", "user.s3.key"), None);
    assert_eq!(of("photos/%empty/b", "user.s3.key").as_deref(), Some("photos//b"));
    assert_eq!(of("photos/%object", "user.s3.key").as_deref(), Some("photos"));

    // A part of it lands below the prefix of the target, as a part of a folder does.
    let part =
        BucketRestoreOptions { path: Some(format!("{root}/photos").into()), ..into(&report, buckets.open("target/p")) };
    let restored = restore(&kloset, &part).unwrap();
    assert_eq!(buckets.dump("target").keys().collect::<Vec<_>>(), ["p//b", "p/a.jpg"]);
    assert_eq!(
        restored.unheld.iter().map(|unheld| (unheld.kind, unheld.paths)).collect::<Vec<_>>(),
        [(Unheld::Top, 1)]
    );
}

#[test]
fn a_prefix_is_backed_up_alone_and_rules_leave_objects_out() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    for key in ["p/a", "p/x.log", "p/tmp/1", "p/tmp/2", "p/keep.log", "pq", "p", "q/a", "p/kloset/packs/1"] {
        buckets.put("source", key, key.repeat(10), &[]);
    }
    let rules = excludes(&["*.log", "!keep.log", "tmp/"]);
    let skip = Some("p/kloset/".to_owned());
    let bucket = Some(BucketSource { bucket: buckets.open("source/p"), skip });
    let report = kloset.backup_with(BackupOptions { excludes: rules, bucket, ..of(buckets.open("source")) }).unwrap();
    restore(&kloset, &into(&report, buckets.open("target"))).unwrap();
    assert_eq!(buckets.dump("target").keys().collect::<Vec<_>>(), ["p/a", "p/keep.log"]);
    let path = String::from_utf8(report.manifest.paths[0].0.clone()).unwrap();
    assert!(path.ends_with("/source/p"), "{path}");
}

#[test]
fn a_large_object_is_read_and_put_in_parts() {
    const BYTES: usize = (33 << 20) + 5;
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    buckets.put("source", "large//one", noise(1, BYTES), &SAID);
    let report = kloset.backup_with(of(buckets.open("source"))).unwrap();
    assert_eq!(buckets.asked(), [1, 9, 0, 0], "parts of 4 MiB");
    restore(&kloset, &into(&report, buckets.open("other"))).unwrap();
    assert_eq!(buckets.asked(), [1, 0, 0, 3], "parts of 16 MiB");
    assert!(buckets.dump("other") == buckets.dump("source"));

    // A bucket that refuses a part is not left with an upload that nobody finishes.
    buckets.refuse("large//one", S3ErrorCode::MethodNotAllowed);
    let again = restore(&kloset, &into(&report, buckets.open("third"))).unwrap();
    assert_eq!((again.files, again.failures_total, buckets.uploads()), (0, 1, 0));
}

#[test]
fn an_object_replaced_while_it_is_read_is_no_mixture() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    let (before, after) = (noise(1, 9 << 20), noise(2, 10 << 20));
    buckets.put("source", "large", before, &SAID);
    buckets.put("source", "small", "before", &SAID);
    buckets.put("source", "gone", "before", &SAID);
    buckets.then("large", Some(&after));
    let listed = of(buckets.open("source"));
    let report = kloset.backup_with(listed).unwrap();
    assert!(!report.manifest.incomplete, "{:?}", report.manifest.errors);
    restore(&kloset, &into(&report, buckets.open("other"))).unwrap();
    assert!(buckets.dump("other")["large"].content == after);
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_stored() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    for key in ["denied", "cold", "a/../b", "./c", "vanished", "good", "large"] {
        buckets.put("source", key, key, &[]);
    }
    buckets.put("source", "large", noise(1, 2 << 20), &[]);
    for (key, code) in [
        ("denied", S3ErrorCode::AccessDenied),
        ("large", S3ErrorCode::AccessDenied),
        ("cold", S3ErrorCode::InvalidObjectState),
        ("vanished", S3ErrorCode::NoSuchKey),
    ] {
        buckets.refuse(key, code);
    }
    let report = kloset.backup_with(of(buckets.open("source"))).unwrap();
    assert_eq!((report.manifest.incomplete, report.vanished, report.manifest.errors_total), (true, 1, 6));
    let (problems, root) = (problems(&report), format!("/s3:/127.0.0.1:{}/source", buckets.port));
    let why = |name: &str| problems[&format!("{root}/{name}")].clone();
    assert!(why("denied").contains("denied") && why("large").contains("denied"), "{problems:?}");
    assert!(why("cold").contains("in cold storage"), "{problems:?}");
    assert!(why("a/%dotdot/b").contains("which no URL can hold") && why("%dot/c").contains("no URL"), "{problems:?}");
    assert!(why("vanished").contains("vanished"), "{problems:?}");
    restore(&kloset, &into(&report, buckets.open("other"))).unwrap();
    assert_eq!(buckets.dump("other").keys().collect::<Vec<_>>(), ["good"]);
}

#[test]
fn a_bucket_that_cannot_be_listed_leaves_nothing_behind() {
    let (kloset, recording) = kloset();
    let mark = recording.mark();
    let buckets = Buckets::serve();
    buckets.refuse("", S3ErrorCode::AccessDenied);
    let denied = kloset.backup_with(of(buckets.open("source"))).unwrap_err();
    assert!(matches!(&denied, BackupError::Bucket(error) if matches!(**error, StoreError::Denied { .. })), "{denied}");
    let bucket = buckets.open("source");
    drop(buckets);
    let gone = kloset.backup_with(of(bucket)).unwrap_err();
    assert!(matches!(&gone, BackupError::Bucket(error) if matches!(**error, StoreError::Unreachable { .. })), "{gone}");
    assert_eq!(recording.mark(), mark, "nothing was put");
}

#[test]
fn nothing_in_a_bucket_is_overwritten_unless_that_is_said() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    for key in ["a", "b//c", "d"] {
        buckets.put("source", key, key, &SAID[..2]);
    }
    let report = kloset.backup_with(of(buckets.open("source"))).unwrap();
    buckets.put("target", "b//c", "mine", &[]);
    buckets.put("target", "d", "d", &[]);
    buckets.put("target", "other", "mine", &[]);
    let before = buckets.dump("target");
    let refused = restore(&kloset, &into(&report, buckets.open("target"))).unwrap_err();
    assert!(matches!(&refused, RestoreError::InTheWay { total: 2, .. }), "{refused}");
    let dry = BucketRestoreOptions { dry_run: true, ..into(&report, buckets.open("target")) };
    let would = restore(&kloset, &dry).unwrap();
    assert_eq!((would.files, would.in_the_way_total, would.in_the_way.len()), (3, 2, 2));
    assert!(buckets.dump("target") == before, "nothing was put");

    let changed = BucketRestoreOptions { overwrite: Overwrite::IfChanged, ..into(&report, buckets.open("target")) };
    let some = restore(&kloset, &changed).unwrap();
    assert_eq!((some.files, some.unchanged), (2, 1), "the entity tag of \"d\" is the same");
    let all = BucketRestoreOptions { overwrite: Overwrite::Always, ..into(&report, buckets.open("target")) };
    assert_eq!(restore(&kloset, &all).unwrap().files, 3);
    buckets.remove("target", "other");
    assert_eq!(buckets.dump("target"), buckets.dump("source"));

    // Who puts an object while the restore runs does not lose it either.
    buckets.asked();
    let race = buckets.open("race");
    assert!(runtime().block_on(race.put("a", &[], "mine".into(), true)).unwrap());
    assert!(!runtime().block_on(race.put("a", &[], "yours".into(), true)).unwrap());
    assert_eq!(buckets.dump("race")["a"].content, "mine");
}

#[test]
fn a_folder_is_restored_into_a_bucket_as_far_as_a_bucket_can_hold_it() {
    let (buckets, (kloset, _)) = (Buckets::serve(), kloset());
    let source = Source::new();
    source.file("a%/%empty", "content");
    fs::hard_link(source.at("a%/%empty"), source.at("again")).unwrap();
    std::os::unix::fs::symlink("a%", source.at("link")).unwrap();
    source.folder("nothing");
    source.sparse("holes", &[(1 << 20, b"data")], 2 << 20);
    source.file(b"not\xfftext", "content");
    let report = kloset.backup_with(options(source.path())).unwrap();
    let path = Some(source.path().as_os_str().as_bytes().to_vec());
    let to = BucketRestoreOptions { path, ..into(&report, buckets.open("target")) };
    let restored = restore(&kloset, &to).unwrap();
    let dump = buckets.dump("target");
    assert_eq!(dump.keys().collect::<Vec<_>>(), ["a%/%empty", "again", "holes"]);
    assert_eq!(dump["holes"].content, fs::read(source.at("holes")).unwrap());
    assert_eq!((restored.files, restored.failures_total, restored.is_complete()), (3, 1, false));
    let unheld: Vec<_> = restored.unheld.iter().map(|unheld| (unheld.kind, unheld.paths)).collect();
    assert_eq!(unheld, [(Unheld::Links, 1), (Unheld::EmptyFolders, 1), (Unheld::Holes, 1)]);
}

#[test]
fn the_words_of_the_connector_page_back_a_bucket_up_and_bring_it_back() {
    let (program, buckets) = (Program::new(&[("f", b"x")]), Buckets::serve());
    for key in ["a", "a//b", "c"] {
        buckets.put("source", key, key, &SAID);
    }
    for (name, bucket) in [("mys3", "source/"), ("other", "other/below"), ("gone", "x")] {
        let entry = buckets.entry(bucket);
        program.done(&[&["store", "add", name][..], &entry.each_ref().map(String::as_str)].concat());
    }
    program.done(&["at", "@s3", "backup", "@mys3"]);
    program.done(&["at", "@s3", "restore", "latest", "--to", "@other"]);
    assert_eq!(buckets.dump("other").keys().collect::<Vec<_>>(), ["below/a", "below/a//b", "below/c"]);
    let code = |words: &[&str]| {
        let output = program.run(words);
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (exit, said) = code(&["restore", "latest", "--to", "@other"]);
    assert!(exit == 1 && said.contains("3 paths are in the way"), "{exit} {said}");

    for words in [
        &["backup", "@mys3", "/etc"][..],
        &["backup", "@mys3", "@other"],
        &["backup", "@mys3", "--one-file-system"],
        &["backup", "@mys3", "--files-from", "/dev/null"],
        &["backup", "@mys3", "--explain", "/etc"],
        &["backup", "@nobody"],
        &["backup", "@s3"],
        &["restore", "latest", "--to", "@s3"],
    ] {
        let (exit, said) = code(words);
        assert_eq!(exit, 2, "{words:?}: {said}");
    }
    buckets.refuse("c", S3ErrorCode::AccessDenied);
    buckets.put("source", "c", "changed", &[]);
    let (exit, said) = code(&["backup", "@mys3"]);
    assert!(exit == 3 && said.contains("source/c\": ") && said.contains("denied"), "{exit} {said}");
    buckets.refuse("", S3ErrorCode::AccessDenied);
    assert_eq!(code(&["backup", "@mys3"]).0, 13);
}
