//! A store that fails makes errors that name the object, never wrong bytes and never a broken kloset.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kloset_mount::backup::{BackupError, BackupReport};
use kloset_mount::store::{RetryOptions, Store, StoreError};
use object_store::memory::InMemory;

use crate::support::kloset::{Kloset, SMALL, patient, runtime, secret};
use crate::support::random::{Random, size};
use crate::support::stores::{Fault, Faulty, Operation, Rule};
use crate::support::tree::{Dump, Source, assert_same};

const PREFIXES: [&str; 7] = ["", "packs", "index", "snapshots", "keys", "kloset.json", "pending"];

/// Draws one to three rules.
fn rules(random: &mut Random, faults: &[(Operation, Fault)], one_in: u64) -> Vec<Rule> {
    let count = 1 + random.below(3);
    let rule = |random: &mut Random| {
        let prefix: &&str = random.one(&PREFIXES);
        let &(operation, fault) = random.one(faults);
        let first = usize::try_from(random.below(4)).unwrap();
        let calls = first..first + *random.one(&[1, 2, usize::MAX - 10]);
        Rule { operation, prefix, calls, one_in: 1 + random.below(one_in), fault }
    };
    (0..count).map(|_| rule(random)).collect()
}

const TRANSIENT: &[(Operation, Fault)] = &[
    (Operation::Put, Fault::Before),
    (Operation::Put, Fault::After),
    (Operation::Put, Fault::Delay),
    (Operation::Put, Fault::Burst),
    (Operation::Get, Fault::Before),
    (Operation::Get, Fault::Delay),
    (Operation::Get, Fault::Burst),
    (Operation::Get, Fault::ShortBody),
    (Operation::Get, Fault::BreakOff),
    (Operation::List, Fault::Before),
    (Operation::List, Fault::Burst),
    (Operation::List, Fault::BreakOff),
];

const PERMANENT: &[(Operation, Fault)] = &[
    (Operation::Put, Fault::Before),
    (Operation::Put, Fault::After),
    (Operation::Put, Fault::Burst),
    (Operation::Get, Fault::Before),
    (Operation::Get, Fault::ShortBody),
    (Operation::Get, Fault::FlipBit),
    (Operation::Get, Fault::Burst),
    (Operation::Get, Fault::BreakOff),
    (Operation::List, Fault::Before),
    (Operation::List, Fault::BreakOff),
    (Operation::List, Fault::StaleList),
];

/// Fails unless an error tells which object it is about.
#[track_caller]
fn assert_names_an_object(error: &dyn std::fmt::Display) {
    let told = error.to_string();
    let named = PREFIXES[1..].iter().any(|prefix| told.contains(prefix));
    assert!(named || told.contains("listing \"memory\""), "this names no object: {told}");
}

/// What fails for a while is asked again by the store itself, the same layer that asks buckets again.
#[test]
fn with_transient_faults_the_result_is_the_faultless_one() {
    let (mut broken, mut retries) = (0, 0);
    for seed in 0..size(200, 10_000) {
        let mut random = Random::new(seed);
        let mut rules = rules(&mut random, TRANSIENT, 4);
        rules.iter_mut().for_each(|rule| rule.one_in += 1); // a fault each time is no transient one
        eprintln!("seed {seed}: {rules:?}");
        let faulty = Faulty::new(Arc::new(InMemory::new()), seed);
        faulty.set(&rules);
        let kloset = Kloset::create_in(patient(faulty.clone()), SMALL).unwrap();
        let source = Source::random(seed, 12);
        for round in 0..2 {
            let report = kloset.backup(source.path());
            assert_same(&source.scan(), &kloset.dump(report.name, source.path()).unwrap());
            source.grow(seed + 1000 * round, 5);
        }
        let reopened = Kloset::open_in(patient(faulty.clone()), &secret()).unwrap();
        reopened.assert_whole();
        assert_eq!(reopened.snapshots().unwrap().len(), 2);
        broken += faulty.take_broken().len() as u64;
        retries += [&kloset, &reopened].map(|kloset| kloset.0.store.counts().http_retries).iter().sum::<u64>();
    }
    assert!(broken > 200 && retries > 200, "only {broken} requests were broken, {retries} asked again");
}

/// A kloset under faults, and what must still be true of it.
struct Trial {
    faulty: Faulty,
    source: Source,
    whole: Vec<(kloset_mount::repo::layout::SnapshotName, Dump)>,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let faulty = Faulty::new(Arc::new(InMemory::new()), seed);
        let kloset = Kloset::create(faulty.clone());
        let source = Source::random(seed, 12);
        let first = kloset.backup(source.path());
        let whole = vec![(first.name, source.scan())];
        source.grow(seed + 500, 8);
        Self { faulty, source, whole }
    }

    /// Does what one does with a kloset; everything may fail, nothing may be wrong.
    #[track_caller]
    fn use_it(&mut self, kloset: &Kloset) {
        match kloset.backup_with(crate::support::kloset::options(self.source.path())) {
            Ok(BackupReport { name, .. }) => self.whole.push((name, self.source.scan())),
            Err(BackupError::Repo(error)) => assert_names_an_object(&error),
            Err(error) => panic!("{error}"),
        }
        self.read_all(kloset);
        match kloset.check() {
            // What the faults damage on the way looks damaged; that what is there is whole is seen without them.
            Ok(_) => {}
            Err(error) => assert_names_an_object(&error),
        }
    }

    fn read_all(&self, kloset: &Kloset) {
        for (name, dump) in &self.whole {
            match kloset.dump(*name, self.source.path()) {
                Ok(found) => assert_same(dump, &found),
                Err(error) => assert_names_an_object(&error),
            }
        }
    }

    /// Without faults everything that was reported as done is there, and the next backup succeeds.
    #[track_caller]
    fn recovers(mut self) {
        self.faulty.set(&[]);
        let kloset = Kloset::open(self.faulty.clone()).unwrap();
        let last = kloset.backup(self.source.path());
        self.whole.push((last.name, self.source.scan()));
        for (name, dump) in &self.whole {
            assert_same(dump, &kloset.dump(*name, self.source.path()).unwrap());
        }
        kloset.assert_whole();
    }
}

#[test]
fn with_permanent_faults_there_is_an_error_that_names_the_object_and_never_wrong_bytes() {
    let mut broken = 0;
    for seed in 0..size(300, 10_000) {
        let mut random = Random::new(seed ^ 0xfa17);
        let rules = rules(&mut random, PERMANENT, 6);
        eprintln!("seed {seed}: {rules:?}");
        let mut trial = Trial::new(seed);
        // With and without asking again: what is permanent stays so.
        let open = || match seed % 2 {
            0 => Kloset::open(trial.faulty.clone()),
            _ => Kloset::open_in(patient(trial.faulty.clone()), &secret()),
        };
        let opened = open().unwrap();
        trial.faulty.set(&rules);
        match open() {
            Ok(kloset) => trial.use_it(&kloset),
            Err(error) => assert_names_an_object(&error),
        }
        trial.use_it(&opened);
        broken += trial.faulty.take_broken().len();
        trial.recovers();
    }
    assert!(broken > 300, "only {broken} requests were broken");
}

#[test]
fn each_object_that_cannot_be_read_is_named() {
    for (prefix, named) in
        [("kloset.json", "kloset.json"), ("keys", "keys/"), ("snapshots", "snapshots/"), ("packs", "packs/")]
    {
        for fault in [Fault::Before, Fault::ShortBody, Fault::FlipBit] {
            let trial = Trial::new(1);
            trial.faulty.set(&[Rule { operation: Operation::Get, prefix, calls: 0..usize::MAX, one_in: 1, fault }]);
            let failed = match Kloset::open(trial.faulty.clone()) {
                Ok(kloset) => kloset.dump(trial.whole[0].0, trial.source.path()).map(drop),
                Err(error) => Err(error),
            };
            let told = failed.unwrap_err().to_string();
            assert!(told.contains(named), "{fault:?} of {prefix}: {told}");
            trial.recovers();
        }
    }
}

#[test]
fn a_put_whose_reply_was_lost_is_done_and_its_name_is_taken() {
    let put = |store: &Store, content: &'static [u8]| {
        runtime().block_on(store.put_new("packs/a", Bytes::from_static(content)))
    };
    let lost = Rule { operation: Operation::Put, prefix: "", calls: 0..1, one_in: 1, fault: Fault::After };
    let faulty = |retries| {
        let faulty = Faulty::new(Arc::new(InMemory::new()), 1);
        faulty.set(std::slice::from_ref(&lost));
        let store = Store::new(Arc::new(faulty), "memory".to_owned());
        let retry = RetryOptions { times_max: retries, pause_first: Duration::ZERO, ..RetryOptions::default() };
        store.with_retries(retry)
    };

    let without_retries = faulty(0);
    let error = put(&without_retries, b"x").unwrap_err();
    assert!(error.to_string().contains("packs/a"), "{error}");
    put(&without_retries, b"x").unwrap();
    let error = put(&without_retries, b"y").unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");

    let with_retries = faulty(1); // it meets its own object
    put(&with_retries, b"x").unwrap();
    let error = put(&with_retries, b"longer").unwrap_err();
    assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    assert_eq!(runtime().block_on(with_retries.get("packs/a", 10)).unwrap(), "x");
}

#[test]
fn a_kloset_created_twice_at_once_is_one_kloset() {
    for seed in 0..size(20, 500) {
        let faulty = Faulty::new(Arc::new(InMemory::new()), seed);
        let delay = Rule { operation: Operation::Put, prefix: "", calls: 0..9, one_in: 2, fault: Fault::Delay };
        faulty.set(&[delay]);
        let created = std::thread::scope(|scope| {
            let create = || scope.spawn(|| Kloset::try_create(faulty.clone(), SMALL));
            [create(), create()].map(|thread| thread.join().unwrap())
        });
        let done: Vec<_> = created.into_iter().flatten().collect();
        assert_eq!(done.len(), 1, "seed {seed}");
        let opened = Kloset::open(faulty).unwrap();
        assert_eq!(opened.0.header.id, done[0].0.header.id);
    }
}
