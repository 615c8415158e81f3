//! What servers do to their clients: each fault and each peculiarity, over real HTTP, and what a kloset makes of it.

use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::StreamExt;
use kloset_mount::store::{Rates, RetryOptions, S3Options, Store, StoreError};

use crate::support::kloset::{Kloset, SMALL, runtime, secret};
use crate::support::quirky::{Fault, Quirks, Quirky};
use crate::support::random::noise;
use crate::support::stores::Operation;
use crate::support::tree::{Source, assert_same, set_mode};

#[test]
fn a_kloset_lives_on_servers_of_every_kind() {
    let plain = Quirks::default();
    let kinds = [
        Quirks { page_keys: Some(2), ..plain },
        Quirks { ignores_conditions: true, ..plain },
        Quirks { refuses_new_headers: true, ..plain },
        Quirks { refuses_trailers: true, ..plain },
        Quirks { refuses_bulk: true, ..plain },
        Quirks { wrong_etags: true, ..plain },
        Quirks { at_once_max: Some(2), ..plain },
    ];
    for quirks in kinds {
        eprintln!("{quirks:?}");
        let server = Quirky::serve(quirks);
        let kloset = Kloset::create_in(server.store(), SMALL).unwrap();
        let source = Source::random(1, 6);
        for round in 0..3 {
            let report = kloset.backup(source.path());
            let opened = Kloset::open_in(server.store(), &secret()).unwrap();
            assert_same(&source.scan(), &opened.dump(report.name, source.path()).unwrap());
            source.grow(round, 2);
        }
        let opened = Kloset::open_in(server.store(), &secret()).unwrap();
        opened.assert_whole();
        assert_eq!(opened.snapshots().unwrap().len(), 3);
    }
}

/// A store of some objects, `x` among them.
async fn filled(server: &Quirky) -> Store {
    let store = server.store();
    store.put_new("packs/x", noise(1, 100_000).into()).await.unwrap();
    for number in 0..8 {
        store.put_new(&format!("packs/y{number}"), Bytes::from_static(b"y")).await.unwrap();
    }
    store
}

/// 300 names go with two requests; a server that does not take them so is asked so once.
#[test]
fn many_objects_are_deleted_with_few_requests() {
    const NAMES: usize = 300;
    let names: Vec<_> = (0..NAMES).map(|number| format!("packs/z{number}")).collect();
    for (refuses_bulk, asked) in [(false, [2, 2]), (true, [NAMES as u64 + 1, NAMES as u64])] {
        let server = Quirky::serve(Quirks { refuses_bulk, ..Quirks::default() });
        runtime().block_on(async {
            let store = filled(&server).await;
            for asked in asked {
                for name in &names[..3] {
                    store.put_new(name, Bytes::from_static(b"z")).await.unwrap();
                }
                server.asked();
                let deleted = store.delete_each(&names).await;
                assert_eq!((deleted.gone, deleted.failure.is_none()), (vec![true; NAMES], true));
                assert_eq!(server.asked(), asked, "{refuses_bulk}");
                assert_eq!(store.list("packs").await.unwrap().len(), 9);
            }
        });
    }
}

/// What a request for many does not bring about is done one by one, and what fails then is told.
#[test]
fn a_deletion_of_many_that_breaks_is_finished_and_one_that_is_refused_is_told() {
    let server = Quirky::serve(Quirks::default());
    runtime().block_on(async {
        let store = filled(&server).await;
        let names: Vec<_> = (0..8).map(|number| format!("packs/y{number}")).collect();
        for fault in [Fault::Reset, Fault::ResetAfter, Fault::SlowDown] {
            for name in &names {
                store.put_new(name, Bytes::from_static(b"y")).await.unwrap();
            }
            server.order(Operation::Get, "?delete", fault, 1); // a POST
            store.delete_all(&names).await.unwrap();
            assert_eq!(store.list("packs").await.unwrap().len(), 1, "{fault:?}");
        }
        for name in &names {
            store.put_new(name, Bytes::from_static(b"y")).await.unwrap();
        }
        server.order(Operation::Get, "?delete", Fault::Reset, 1);
        server.order(Operation::Delete, "y3", Fault::Internal, usize::MAX);
        let deleted = store.delete_each(&names).await;
        assert!(!deleted.gone[3] && deleted.gone[0], "{:?}", deleted.gone);
        assert!(deleted.failure.unwrap().to_string().contains("packs/y3"));
        server.heal();
        let left = store.list("packs").await.unwrap().len();
        assert_eq!(left, 1 + deleted.gone.iter().filter(|is_gone| !**is_gone).count());
    });
}

/// Does one thing and holds it against what it has to be.
async fn ask(store: &Store, operation: Operation) -> Result<(), StoreError> {
    let content: Bytes = noise(1, 100_000).into();
    match operation {
        Operation::Put => store.put_new("packs/new", content).await,
        Operation::Get => {
            assert_eq!(store.get("packs/x", 100_000).await?, content);
            assert_eq!(store.get_range("packs/x", 10..90_000).await?, content.slice(10..90_000));
            Ok(())
        }
        Operation::List => {
            let names: Vec<_> = store.list("packs").await?.into_iter().map(|object| object.name).collect();
            assert!(names.len() >= 8 && names.is_sorted() && names.last().unwrap() == "packs/y7", "{names:?}");
            Ok(())
        }
        Operation::Delete => store.delete("packs/x").await,
    }
}

const FAULTS: &[(Operation, &[Fault])] = &[
    (Operation::Put, &[Fault::SlowDown, Fault::Internal, Fault::Reset, Fault::ResetAfter, Fault::Stall]),
    (
        Operation::Get,
        &[Fault::SlowDown, Fault::Internal, Fault::Reset, Fault::Stall, Fault::StallInBody, Fault::Truncate],
    ),
    (Operation::List, &[Fault::SlowDown, Fault::Reset, Fault::Stall, Fault::StallInBody, Fault::Truncate]),
    (Operation::Delete, &[Fault::SlowDown, Fault::Internal, Fault::Reset, Fault::ResetAfter, Fault::Stall]),
];

fn faults() -> impl Iterator<Item = (Operation, Fault)> {
    FAULTS.iter().flat_map(|(operation, faults)| faults.iter().map(|fault| (*operation, *fault)))
}

/// Nine listed by two are five requests.
fn two_a_page() -> Quirks {
    Quirks { page_keys: Some(2), ..Quirks::default() }
}

#[test]
fn what_fails_for_a_while_is_done_all_the_same_and_counted() {
    let trial = async |operation, fault| {
        let server = Quirky::serve(two_a_page());
        let store = filled(&server).await;
        let times = if matches!(fault, Fault::Stall | Fault::StallInBody) { 1 } else { 3 };
        server.order(operation, "", fault, times);
        ask(&store, operation).await.unwrap_or_else(|error| panic!("{operation:?} {fault:?}: {error}"));
        ask(&store, Operation::List).await.unwrap();
        let counts = store.counts();
        // What was lost after its effect is there already the next time.
        let expected = if fault == Fault::ResetAfter { 1.. } else { times as u64.. };
        assert!(expected.contains(&counts.http_retries), "{operation:?} {fault:?}: {counts:?}");
        assert_eq!(counts.slow_downs, if fault == Fault::SlowDown { 3 } else { 0 }, "{operation:?} {fault:?}");
    };
    runtime().block_on(futures::future::join_all(faults().map(|(operation, fault)| trial(operation, fault))));
}

#[test]
fn what_fails_for_good_is_told_with_its_object_and_nothing_hangs_past_its_limit() {
    let trial = async |operation, fault| {
        let server = Quirky::serve(two_a_page());
        let store = filled(&server).await;
        server.order(operation, "", fault, usize::MAX);
        let begun = Instant::now();
        let error = ask(&store, operation).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{operation:?} {fault:?}: {error}");
        let told = error.to_string();
        assert!(told.contains("packs") && told.contains("asked again"), "{operation:?} {fault:?}: {told}");
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(15), "{operation:?} {fault:?}: {took:?}");
        server.heal();
        ask(&store, Operation::List).await.unwrap();
    };
    runtime().block_on(futures::future::join_all(faults().map(|(operation, fault)| trial(operation, fault))));
}

#[test]
fn what_broke_off_goes_on_where_it_was() {
    const BYTES: usize = 1 << 20;
    let server = Quirky::serve(two_a_page());
    runtime().block_on(async {
        let store = filled(&server).await;
        store.put_new("packs/z", noise(2, BYTES).into()).await.unwrap();
        let before = store.counts().bytes_passed;
        server.order(Operation::Get, "", Fault::Truncate, 6);
        assert_eq!(store.get("packs/z", BYTES as u64).await.unwrap(), noise(2, BYTES));
        assert_eq!(store.counts().bytes_passed - before, BYTES as u64, "no byte comes twice");
        // Ten in pages of two, the second of which breaks off: five pages and that one.
        server.asked();
        server.order(Operation::List, "continuation-token", Fault::Truncate, 1);
        assert_eq!(store.list("packs").await.unwrap().len(), 10);
        assert_eq!(server.asked(), 6);
    });
}

#[test]
fn an_upload_that_nobody_reads_is_given_up_and_one_that_is_slow_is_not() {
    let server = Quirky::serve(Quirks::default());
    runtime().block_on(async {
        let store = server.store();
        server.order(Operation::Put, "", Fault::Stall, 1);
        let (begun, content) = (Instant::now(), Bytes::from(noise(3, 24 << 20)));
        store.put_new("packs/large", content.clone()).await.unwrap();
        assert!(begun.elapsed() > Duration::from_millis(500));
        assert_eq!((store.counts().http_retries, store.get("packs/large", 24 << 20).await.unwrap()), (1, content));

        let rates = Rates { up: Some(128 << 10), down: None };
        let slow = Store::open(&server.location(), &S3Options { rates, ..server.options() }).unwrap();
        let begun = Instant::now();
        slow.put_new("packs/slow", noise(4, 160 << 10).into()).await.unwrap();
        assert!(begun.elapsed() > Duration::from_millis(800) && slow.counts().http_retries == 0);
    });
}

#[test]
fn a_server_that_asks_for_fewer_requests_gets_fewer_and_all_is_done() {
    let server = Quirky::serve(Quirks { at_once_max: Some(4), ..Quirks::default() });
    let retry = RetryOptions { pause_first: Duration::from_millis(10), ..RetryOptions::default() };
    let store = Store::open(&server.location(), &S3Options { retry, ..server.options() }).unwrap();
    let put = |number: usize| {
        let store = store.clone();
        async move { store.put_new(&format!("packs/{number}"), Bytes::from_static(b"x")).await.unwrap() }
    };
    runtime().block_on(async {
        futures::stream::iter(0..256).for_each_concurrent(64, put).await;
        assert_eq!(store.list("packs").await.unwrap().len(), 256);
    });
    let counts = store.counts();
    // Without heeding it, two of three would be refused, each time again.
    assert!((1..=160).contains(&counts.slow_downs), "{counts:?}");
}

#[test]
fn a_clock_that_is_wrong_is_told_at_once() {
    let server = Quirky::serve(Quirks { skew_seconds: 3600, ..Quirks::default() });
    let error = runtime().block_on(server.store().list("")).unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("the clock of this machine is wrong"), "{error}");
    assert_eq!(server.asked(), 1);
}

#[test]
fn buckets_of_others_are_asked_again_by_the_same_rule() {
    let server = Quirky::serve(two_a_page());
    runtime().block_on(async {
        let bucket = server.bucket();
        for (number, fault) in [Fault::SlowDown, Fault::Reset, Fault::ResetAfter, Fault::Stall].into_iter().enumerate()
        {
            server.order(Operation::Put, "", fault, 1);
            let (key, content) = (format!("kloset/a{number}"), Bytes::from_static(b"content"));
            assert!(bucket.put(&key, &[], content, true).await.unwrap(), "{fault:?}");
        }
        for fault in [Fault::SlowDown, Fault::Reset, Fault::Stall, Fault::StallInBody, Fault::Truncate] {
            server.order(Operation::Get, "", fault, 1);
            server.order(Operation::List, "", fault, 1);
            let object = bucket.get("kloset/a1", None, None, 100).await.unwrap().unwrap();
            assert_eq!(object.content, "content", "{fault:?}");
            let mut keys = 0;
            bucket
                .list(|_| {
                    keys += 1;
                    true
                })
                .await
                .unwrap();
            assert_eq!(keys, 4, "{fault:?}");
        }
        assert_eq!((bucket.counts().http_retries, bucket.counts().slow_downs), (14, 3));
        server.order(Operation::Get, "", Fault::SlowDown, usize::MAX);
        let error = bucket.get("kloset/a1", None, None, 100).await.unwrap_err().to_string();
        assert!(error.contains("kloset/a1") && error.contains("asked again"), "{error}");
    });
}

/// The program with a server.
struct Trial {
    server: Quirky,
    home: Source,
}

impl Trial {
    fn new() -> Trial {
        let (server, home) = (Quirky::serve(Quirks::default()), Source::new());
        home.file("source/file", noise(9, 50_000));
        set_mode(&home.file("key", "ab".repeat(32)), 0o600);
        let trial = Trial { server, home };
        let entry = trial.server.entry();
        let words: Vec<&str> = ["store", "add", "quirky"].into_iter().chain(entry.iter().map(String::as_str)).collect();
        trial.run(&words, 0);
        trial.run(&["create"], 0);
        trial
    }

    /// Runs the program; returns what it wrote on both ways.
    #[track_caller]
    fn run(&self, words: &[&str], code: i32) -> (String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(words).env_clear().env("HOME", self.home.path()).env("KLOSET_REPOSITORY", "@quirky");
        let output = command.env("KLOSET_KEY_FILE", self.home.at("key")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {out}{err}");
        (out, err)
    }
}

#[test]
fn the_program_tells_each_repetition_and_ends_with_13_when_its_time_is_over() {
    let trial = Trial::new();
    let source = trial.home.at("source").to_str().unwrap().to_owned();
    trial.server.order(Operation::Put, "packs/", Fault::SlowDown, 2);
    trial.server.order(Operation::Put, "index/", Fault::ResetAfter, 1);
    let (out, err) = trial.run(&["backup", &source, "--json", "-v"], 0);
    let last = out.lines().last().unwrap();
    let summary: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!((&summary["retries"], &summary["slow_downs"]), (&3.into(), &2.into()), "{last}{err}");
    let told: Vec<&str> = err.lines().filter(|line| line.contains("again in")).collect();
    assert_eq!(told.len(), 3, "{err}");
    assert!(told.iter().filter(|line| line.contains("packs/") && line.contains("SlowDown")).count() == 2, "{err}");

    trial.server.order(Operation::Get, "packs/", Fault::SlowDown, usize::MAX);
    let begun = Instant::now();
    let restored = trial.home.at("restored").to_str().unwrap().to_owned();
    let (_, err) = trial.run(&["restore", "latest", "--to", &restored, "--retry-budget", "1", "--no-cache"], 13);
    assert!(err.contains("packs/") && err.contains("asked again") && err.contains("SlowDown"), "{err}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    trial.run(&["config", "repository", "set", "quirky", "retry_budget", "soon"], 0);
    assert!(trial.run(&["ls"], 2).1.contains("retry_budget: write seconds"));
    trial.run(&["config", "repository", "set", "quirky", "retry_budget", "0"], 0);
    let (_, err) = trial.run(&["restore", "latest", "--to", &restored, "--no-cache"], 13);
    assert!(!err.contains("asked again"), "{err}");
    trial.server.heal();
    trial.run(&["restore", "latest", "--to", &restored, "--no-cache"], 0);
}
