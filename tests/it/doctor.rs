//! `store doctor`: against servers of every kind, keys with few rights, and a folder; each peculiarity is told.

use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use kloset_mount::env::Env;
use kloset_mount::store::doctor::{Report, Verdict, examine};
use kloset_mount::store::{Bucket, RetryOptions, S3Options, Store, StoreLocation};
use serde_json::Value;

use crate::support::guard::{Asked, Guard, refusal};
use crate::support::kloset::runtime;
use crate::support::quirky::{Fault, Quirks, Quirky};
use crate::support::rights;
use crate::support::s3::{S3Server, S3ServerOptions};
use crate::support::stores::Operation;

fn diagnosed(location: &StoreLocation, options: &S3Options) -> Report {
    runtime().block_on(examine(location, options, &Env::system())).unwrap()
}

fn of(server: &Quirky) -> Report {
    diagnosed(&server.location(), &server.options())
}

#[track_caller]
fn check(report: &Report, what: &str, verdict: Verdict, text: &str) {
    let finding = report.findings.iter().find(|finding| finding.what == what);
    let finding = finding.unwrap_or_else(|| panic!("no {what:?} in {report:#?}"));
    assert!(finding.verdict == verdict && finding.text.contains(text), "{finding:?} in {report:#?}");
}

/// Everything below the prefix of a server.
fn all(server: &Quirky) -> Vec<String> {
    let mut keys = Vec::new();
    let listed = runtime().block_on(server.bucket().list(|object| {
        keys.push(object.key);
        true
    }));
    listed.unwrap();
    keys
}

#[test]
fn a_server_without_peculiarities_is_found_good_in_few_requests_and_left_as_it_was() {
    let home = tempfile::tempdir().unwrap();
    let s3 = S3ServerOptions { folder: home.path(), bucket: "bucket", access_key: "K", secret_key: "S", port: 0 };
    let server = S3Server::start(&s3).unwrap();
    let location: StoreLocation = format!("s3://127.0.0.1:{}/bucket/kloset", server.port).parse().unwrap();
    let store = Store::open(&location, &options()).unwrap();
    runtime().block_on(store.put_new("packs/1", Bytes::from_static(b"x"))).unwrap();
    let report = diagnosed(&location, &options());
    for what in
        ["reachable", "TLS", "region", "addressing", "clock", "writing", "create-if-absent", "reading", "ranges"]
    {
        check(&report, what, Verdict::Ok, "");
    }
    for what in ["listing", "multipart", "throughput", "deleting"] {
        check(&report, what, Verdict::Ok, "");
    }
    check(&report, "create-if-absent", Verdict::Ok, "enforced");
    check(&report, "versions", Verdict::Note, "none are kept");
    check(&report, "object lock", Verdict::Note, "");
    assert!(report.holds() && report.left.is_empty(), "{report:#?}");
    assert!((18..=30).contains(&report.requests), "{}", report.requests);
    let left = runtime().block_on(store.list("")).unwrap();
    assert_eq!(left.iter().map(|object| object.name.as_str()).collect::<Vec<_>>(), ["packs/1"]);
}

#[test]
fn each_peculiarity_of_a_server_is_told_and_is_no_failure() {
    let plain = Quirks::default();
    let server = Quirky::serve(Quirks { ignores_conditions: true, ..plain });
    let report = of(&server);
    check(&report, "create-if-absent", Verdict::Note, "not enforced, the store overwrites");
    assert!(report.holds() && all(&server).is_empty(), "{report:#?}");

    let report = of(&Quirky::serve(Quirks { refuses_new_headers: true, ..plain }));
    check(&report, "create-if-absent", Verdict::Note, "puts look first");
    assert!(report.holds(), "{report:#?}");

    let report = of(&Quirky::serve(Quirks { page_keys: Some(2), refuses_trailers: true, wrong_etags: true, ..plain }));
    assert!(report.holds(), "{report:#?}");
}

#[test]
fn a_server_that_does_not_work_is_told_with_what_to_do() {
    let report = of(&Quirky::serve(Quirks { skew_seconds: 3600, ..Quirks::default() }));
    check(&report, "listing", Verdict::Fail, "the clock of this machine is wrong: set it");
    assert!(!report.holds() && report.requests == 1, "{report:#?}");

    let server = Quirky::serve(Quirks::default());
    let unknown = S3Options { access_key: Some("X".to_owned()), ..server.options() };
    check(&diagnosed(&server.location(), &unknown), "listing", Verdict::Fail, "check the keys");
    let none = format!("s3://127.0.0.1:{}/none", server.port).parse().unwrap();
    check(&diagnosed(&none, &server.options()), "bucket", Verdict::Fail, "the bucket does not exist");
    check(
        &diagnosed(&"s3://127.0.0.1:1/b".parse().unwrap(), &options()),
        "reachable",
        Verdict::Fail,
        "nothing listens",
    );

    // As a proxy with a limit on bodies does it: everything small works.
    server.order(Operation::Put, "/pack", Fault::Internal, usize::MAX);
    let report = of(&server);
    check(&report, "throughput", Verdict::Fail, "as packs are, was not taken");
    assert!(!report.holds() && all(&server).is_empty(), "{report:#?}");
}

fn options() -> S3Options {
    S3Options {
        access_key: Some("K".to_owned()),
        secret_access_key: Some("S".into()),
        use_tls: false,
        retry: RetryOptions { times_max: 1, ..RetryOptions::default() },
        ..S3Options::default()
    }
}

fn may_back_up(operation: &str, _: &str) -> bool {
    ["GetObject", "HeadObject", "PutObject", "ListObjectsV2"].contains(&operation)
}

/// The program, and a server whose key may do what it needs for backups.
struct Case {
    server: S3Server,
    home: tempfile::TempDir,
}

impl Case {
    fn new() -> Case {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("s3");
        let s3 = S3ServerOptions { folder: &folder, bucket: "bucket", access_key: "K", secret_key: "S", port: 0 };
        let server = rights::start(&s3, may_back_up).unwrap();
        Case { server, home }
    }

    #[track_caller]
    fn run(&self, words: &[&str], code: i32) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(words).env_clear().env("HOME", self.home.path()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
        (out, err)
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.home.path().join(".config/kloset-mount/config.toml")).unwrap()
    }

    /// Files of the bucket that are objects.
    fn objects(&self) -> usize {
        fn count(folder: &Path) -> usize {
            let entries = folder.read_dir().unwrap().map(|entry| entry.unwrap().path());
            entries.map(|at| if at.is_dir() { count(&at) } else { 1 }).sum()
        }
        count(&self.home.path().join("s3/bucket"))
    }
}

#[test]
fn a_key_that_may_not_delete_is_a_note_with_what_is_left_and_exit_0() {
    let case = Case::new();
    let at = format!("s3://localhost:{}/bucket/k", case.server.port);
    case.run(&["store", "add", "s3", &at, "access_key=K", "secret_access_key=S"], 0);
    // TLS was not said to be off: on this machine that is found out.
    let (out, _) = case.run(&["store", "doctor", "s3", "--write"], 0);
    assert!(out.contains("note  deleting") && out.contains("not with this key"), "{out}");
    assert!(out.contains("left there: k/doctor-") && case.objects() >= 3, "{out}");
    assert!(out.contains("note  multipart"), "{out}");
    let config = case.config();
    for setting in ["use_tls = false", "addressing = \"path\"", "region = \"us-east-1\""] {
        assert!(config.contains(setting), "{config}");
    }
    let (json, _) = case.run(&["store", "doctor", "s3", "--json"], 0);
    let value: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&value["works"], &value["written"]), (&true.into(), &Value::Null), "{json}");
    assert_eq!(value["settings"]["use_tls"], "false");
    assert!(value["left"].as_array().unwrap().len() >= 3, "{json}");
    assert!(!json.contains("secret"), "{json}");
}

#[test]
fn the_program_ends_with_13_where_a_kloset_does_not_work_and_writes_nothing() {
    let case = Case::new();
    let at = format!("s3://localhost:{}/none", case.server.port);
    case.run(&["store", "add", "s3", &at, "access_key=K", "secret_access_key=S", "use_tls=false"], 0);
    let before = case.config();
    let (out, _) = case.run(&["store", "doctor", "s3", "--write"], 13);
    assert!(out.contains("fail  bucket") && out.contains("does not work here"), "{out}");
    assert_eq!(case.config(), before);
    // With TLS put right, it is what fails then that is told.
    case.run(&["store", "set", "s3", "use_tls", "true"], 0);
    assert!(case.run(&["store", "doctor", "s3"], 13).0.contains("fail  bucket"));
    let (_, err) = case.run(&["store", "doctor", "--write", "-r", &at], 2);
    assert!(err.contains("--write takes a repository of the config"), "{err}");
    let folder = case.home.path().join("folder");
    std::fs::create_dir(&folder).unwrap();
    let (out, _) = case.run(&["store", "doctor", "-r", folder.to_str().unwrap()], 0);
    assert!(out.contains("everything that a kloset needs works"), "{out}");
    assert_eq!(folder.read_dir().unwrap().count(), 0);
    let (out, _) = case.run(&["store", "doctor", "-r", folder.join("none").to_str().unwrap()], 13);
    assert!(out.contains("fail  folder") && out.contains("does not exist"), "{out}");
}

/// Insists on the digest of what is put, as buckets with object lock do, in the words of AWS.
fn only_with_digest(asked: &Asked) -> Option<String> {
    let lacks = asked.method == "PUT" && asked.header("content-md5").is_empty();
    let more = "<Message>Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock \
        parameters</Message>";
    let answer = refusal("400 Bad Request", "InvalidRequest", "").unwrap();
    lacks.then(|| {
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body = body.replace("<Message>no</Message>", more);
        format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    })
}

/// What the bucket says that it does not have itself: a rule of object lock.
fn with_object_lock(asked: &Asked) -> Option<String> {
    let rules = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
        <Mode>COMPLIANCE</Mode><Days>30</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    match asked.target.contains("object-lock") {
        true => Some(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{rules}", rules.len())),
        false => only_with_digest(asked),
    }
}

#[test]
fn a_bucket_with_object_lock_that_wants_digests_gets_them_after_one_refusal() {
    let case = Case::new();
    let guard = Guard::before(case.server.port, with_object_lock);
    let location: StoreLocation = format!("s3://127.0.0.1:{}/bucket/k", guard.port).parse().unwrap();
    runtime().block_on(async {
        let store = Store::open(&location, &options()).unwrap();
        store.put_new("packs/1", Bytes::from_static(b"x")).await.unwrap();
        store.put_new("packs/2", Bytes::from_static(b"y")).await.unwrap();
        assert_eq!(store.get("packs/1", 10).await.unwrap(), "x");
        let bucket = Bucket::open(&location, &options()).unwrap();
        assert!(bucket.put("k/a", &[], Bytes::from_static(b"z"), true).await.unwrap());
    });
    let puts: Vec<_> = guard.asked().into_iter().filter(|asked| asked.method == "PUT").collect();
    let with: Vec<_> = puts.iter().map(|put| !put.header("content-md5").is_empty()).collect();
    assert_eq!(with, [false, true, true, false, true]);
    // What is put there by the trial goes along with digests, too.
    let report = diagnosed(&location, &options());
    check(&report, "object lock", Verdict::Ok, "COMPLIANCE for 30 days");
    check(&report, "deleting", Verdict::Note, "not with this key");
    assert!(report.holds(), "{report:#?}");
}
