//! The director: begins, lets time go by, and holds every snapshot against its model after each change.
//!
//! What a reading of a snapshot asked the store for is remembered: it is read again once something of that has changed, so
//! "after each step" costs little.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kloset_mount::cpu::Cpu;
use kloset_mount::env::{Clock, Env};
use kloset_mount::repo::check::{CheckOptions, check};
use kloset_mount::repo::header::ChunkerSettings;
use kloset_mount::repo::keyslot::SlotSecret;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::lookup::load_pending;
use kloset_mount::repo::prune::PruneOptions;
use kloset_mount::repo::{CreateOptions, Repo};
use kloset_mount::store::Store;
use tokio::runtime::{Builder, Runtime};

use crate::actors::{Actor, Looked, Task, Trouble};
use crate::bucket::{Bucket, Change, Habits};
use crate::gate::{DIRECTOR, Gate, Rates};
use crate::random::Random;
use crate::reading::by_reader;
use crate::source::{Model, Source};
use crate::store::{Asked, SimStore};

const HOUR_MS: i64 = 3_600_000;
/// The grace period of the simulated prunes.
pub(crate) const GRACE_MS: i64 = 24 * HOUR_MS;
/// How far the clock of a host may be wrong.
const SKEW_MS_MAX: i64 = 40 * HOUR_MS;
/// Prunes that may be needed in the end.
const PRUNES_MAX: usize = 8;
/// So many index runs are joined: few, so that it happens.
const JOIN_RUNS: usize = 3;
/// Changes that a prune makes before it falls asleep.
const CHANGES_MAX: u64 = 14;
/// Actors at once.
const ACTORS_MAX: usize = 6;
/// Operations that are told of a seed that goes wrong.
const LOG_LINES_TOLD: usize = 400;
const READER_BYTES: usize = 1 << 20;
/// The smallest chunks that a header allows.
const SMALL: ChunkerSettings = ChunkerSettings { min_bytes: 1024, avg_bytes: 2048, max_bytes: 8192 };

/// What a simulation came through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) committed: u64,
    pub(crate) forgotten: u64,
    pub(crate) begun_again: u64,
    pub(crate) failed: u64,
    pub(crate) read_whole: u64,
    pub(crate) packs_deleted: u64,
    pub(crate) steps: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: Self) {
        self.committed += other.committed;
        self.forgotten += other.forgotten;
        self.begun_again += other.begun_again;
        self.failed += other.failed;
        self.read_whole += other.read_whole;
        self.packs_deleted += other.packs_deleted;
        self.steps += other.steps;
    }

    /// Fails if something that the simulation is for never happened.
    pub(crate) fn assert_all_happened(&self) {
        let Self { committed, forgotten, begun_again, failed, read_whole, packs_deleted, steps } = *self;
        for count in [committed, forgotten, begun_again, failed, read_whole, packs_deleted, steps] {
            assert!(count > 0, "{self:#?}");
        }
    }
}

struct Snapshot {
    looked: Looked,
    /// What was asked for when it was read last; nothing if it has to be read.
    asked: Option<Asked>,
}

/// One seed's world.
pub(crate) struct World {
    seed: u64,
    gate: Gate,
    store: SimStore,
    repo: Repo,
    runtime: Runtime,
    random: Random,
    pub(crate) sources: Vec<Source>,
    actors: Vec<Actor>,
    /// What each backup that was begun is to hold.
    meant: BTreeMap<usize, (PathBuf, Model)>,
    snapshots: BTreeMap<SnapshotName, Snapshot>,
    put_by: BTreeMap<SnapshotName, usize>,
    forgotten: BTreeSet<SnapshotName>,
    pub(crate) counts: Counts,
}

fn secret() -> SlotSecret {
    SlotSecret::parse_key_file(&"07".repeat(32)).unwrap()
}

fn rates(random: &mut Random) -> Rates {
    Rates {
        crash: *random.one(&[0, 25, 80, 300]),
        fault: *random.one(&[0, 0, 40, 200]),
        repeat: *random.one(&[0, 20]),
        director: *random.one(&[3, 8, 20]),
        stays: *random.one(&[0, 50, 90, 97]),
        sleep: *random.one(&[0, 12, 12, 40]),
    }
}

/// Returns what a party needs to open the kloset.
fn outfit(gate: &Gate, party: usize, seed: u64) -> (SimStore, Store, Env) {
    let (blocks, clock) = {
        let party = &gate.lock().parties[party];
        (party.blocks, Clock::Manual(party.clock.clone()))
    };
    let store = SimStore { gate: gate.clone(), party, blocks, asked: Arc::default() };
    let env = Env { clock, parallelism: 1, ..Env::seeded(seed * 1000 + party as u64, 0) };
    (store.clone(), Store::new(Arc::new(store), "simulated".to_owned()), env)
}

impl World {
    /// Makes a bucket with an empty kloset and two empty sources below `folder`.
    pub(crate) fn new(seed: u64, folder: &Path) -> Self {
        let mut random = Random::new(seed);
        let habits = Habits {
            page: *random.one(&[2, 1000]),
            ignores_condition: random.below(4) == 0,
            misses_deleted: random.below(2) == 0,
        };
        let rates = rates(&mut random);
        let gate = Gate::new(Bucket::new(habits), Random::new(random.next()), 1_790_000_000_000, rates);
        let (sim, store, env) = outfit(&gate, DIRECTOR, seed);
        let runtime = Builder::new_current_thread().build().unwrap();
        let options = CreateOptions { chunker: SMALL, ..CreateOptions::default() };
        let repo = runtime.block_on(Repo::create(store, &secret(), &options, env, Cpu::inline())).unwrap();
        let sources = ["A", "B"].map(|host| Source::new(folder.join(host))).into();
        Self {
            seed,
            gate,
            store: sim,
            repo,
            runtime,
            random,
            sources,
            actors: Vec::new(),
            meant: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            put_by: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            counts: Counts::default(),
        }
    }

    /// Lets all happen; the log of all operations, or the end of it and what went wrong.
    pub(crate) fn run(&mut self) -> Result<Vec<String>, String> {
        let played = self.play();
        let log = std::mem::take(&mut self.gate.lock().log);
        self.counts.steps = log.len() as u64;
        played.map_err(|wrong| {
            self.stop();
            format!("{}\n{wrong}", log[log.len().saturating_sub(LOG_LINES_TOLD)..].join("\n"))
        })?;
        Ok(log)
    }

    fn play(&mut self) -> Result<(), String> {
        let rates = self.gate.lock().rates;
        if self.random.below(3) > 0 {
            self.warm_up()?;
        }
        self.gate.lock().rates = rates;
        for _ in 0..10 + self.random.below(30) {
            self.act();
            self.rest()?;
        }
        self.finish_all()?;
        let deleted = self.counts.packs_deleted;
        self.tidy_up()?;
        self.counts.packs_deleted = deleted;
        Ok(())
    }

    /// Comes, one thing after another and undisturbed, to where a prune deletes packs that another marked, and falls asleep
    /// in the middle of that; what it deletes is backed up again, perhaps by one that began before and slept all the time.
    fn warm_up(&mut self) -> Result<(), String> {
        self.gate.lock().rates = Rates::default();
        for _ in 0..3 + self.random.below(4) {
            if let Some(task) = self.new_backup() {
                self.run_alone(task)?;
            }
        }
        let names = self.all_but_the_last();
        self.run_alone(Task::Forget(names))?;
        if let Some(task) = self.old_backup(0).filter(|_| self.random.below(2) == 0) {
            self.run_to_sleep(task, 0)?;
        }
        self.let_time_go(GRACE_MS + HOUR_MS);
        let options = self.prune_options();
        self.run_alone(Task::Prune(options))?;
        self.let_time_go(GRACE_MS + HOUR_MS);
        let options = self.prune_options();
        let changes = self.random.below(CHANGES_MAX);
        self.run_to_sleep(Task::Prune(options), changes)?;
        for host in 0..self.sources.len() {
            if let Some(task) = self.old_backup(host) {
                self.start(task);
            }
        }
        Ok(())
    }

    /// Returns a backup of what a source was long ago, unless another is under way.
    fn old_backup(&mut self, host: usize) -> Option<Task> {
        if self.is_busy(host) {
            return None;
        }
        self.sources[host].go_back(&mut self.random);
        Some(self.backup_of(host))
    }

    fn run_alone(&mut self, task: Task) -> Result<(), String> {
        let party = self.start(task);
        self.rest_while(|world| world.actors.iter().any(|actor| actor.party == party))
    }

    /// Begins something, and waits until it falls asleep after so many changes, or is over.
    fn run_to_sleep(&mut self, task: Task, changes: u64) -> Result<(), String> {
        let party = self.start(task);
        self.gate.lock().parties[party].sleeps_after = Some(changes);
        self.rest_while(|world| {
            let is_awake = world.gate.lock().parties[party].sleeps_after.is_some();
            is_awake && world.actors.iter().any(|actor| actor.party == party)
        })
    }

    fn rest_while(&mut self, holds: impl Fn(&Self) -> bool) -> Result<(), String> {
        while holds(self) {
            self.rest()?;
        }
        Ok(())
    }

    /// Waits for everybody, and begins nothing.
    fn finish_all(&mut self) -> Result<(), String> {
        self.gate.lock().rates.director = 0;
        self.rest_while(|world| !world.actors.is_empty())
    }

    /// Lets others go on until something changed or the director's turn has come, and looks at it.
    fn rest(&mut self) -> Result<(), String> {
        self.gate.rest();
        let changes = std::mem::take(&mut self.gate.lock().changes);
        changes.into_iter().try_for_each(|change| self.note(&change))?;
        self.check()?;
        self.reap()
    }

    /// Does something, or nothing.
    fn act(&mut self) {
        let task = match self.random.below(20) {
            0..8 => self.new_backup(),
            8..10 => self.choose().map(|names| Task::Forget(names.into_iter().collect())),
            10..13 => Some(Task::Prune(self.prune_options())),
            13 => self.choose_one().map(Task::Read),
            14 => self.choose_one().map(Task::Mount),
            _ => {
                let hours = *self.random.one(&[1, 13, 25, 25, 30]);
                self.let_time_go(hours * HOUR_MS);
                None
            }
        };
        if let Some(task) = task.filter(|_| self.actors.len() < ACTORS_MAX) {
            self.start(task);
        }
    }

    fn new_backup(&mut self) -> Option<Task> {
        let host = usize::try_from(self.random.below(2)).unwrap();
        if self.is_busy(host) || self.actors.len() >= ACTORS_MAX {
            return None;
        }
        if self.random.below(5) > 0 {
            self.sources[host].change(&mut self.random);
        }
        Some(self.backup_of(host))
    }

    fn is_busy(&self, host: usize) -> bool {
        self.actors.iter().any(|actor| matches!(actor.task, Task::Backup { host: other, .. } if other == host))
    }

    fn backup_of(&mut self, host: usize) -> Task {
        let (folder, force) = (self.sources[host].path().to_owned(), self.random.below(10) == 0);
        Task::Backup { host, folder, force }
    }

    fn choose(&mut self) -> Option<BTreeSet<SnapshotName>> {
        let most = 1 + self.random.below(4);
        let chosen: BTreeSet<_> = self.snapshots.keys().copied().filter(|_| self.random.below(4) < most).collect();
        Some(chosen).filter(|chosen| !chosen.is_empty())
    }

    /// Returns all snapshots but the one that was put last of each source: what only they hold is there, and needed no more.
    fn all_but_the_last(&self) -> Vec<SnapshotName> {
        let mut last = BTreeMap::new();
        for (name, snapshot) in &self.snapshots {
            let put = (self.put_by[name], *name);
            let newest = last.entry(&snapshot.looked.folder).or_insert(put);
            *newest = put.max(*newest);
        }
        let is_last = |name: &SnapshotName| last.values().any(|(_, last)| last == name);
        self.snapshots.keys().copied().filter(|name| !is_last(name)).collect()
    }

    fn prune_options(&mut self) -> PruneOptions {
        let max_unused_permille = *self.random.one(&[0, 0, 50, 1000]);
        PruneOptions { grace: Duration::from_millis(GRACE_MS as u64), max_unused_permille, ..PruneOptions::default() }
    }

    fn choose_one(&mut self) -> Option<Looked> {
        let all: Vec<_> = self.snapshots.values().map(|snapshot| &snapshot.looked).collect();
        if all.is_empty() { None } else { Some((*self.random.one(&all)).clone()) }
    }

    fn start(&mut self, task: Task) -> usize {
        let number = self.gate.lock().parties.len();
        let skew = i64::try_from(self.random.below(SKEW_MS_MAX as u64 * 2)).unwrap() - SKEW_MS_MAX;
        let party = self.gate.join(format!("{} ({number})", task.name()), task.blocks(), skew);
        let (sim, store, env) = outfit(&self.gate, party, self.seed);
        let mut repo = self.runtime.block_on(Repo::open(store, &secret(), env, Cpu::inline())).unwrap();
        repo.join_runs = JOIN_RUNS;
        if let Task::Backup { host, folder, .. } = &task {
            self.meant.insert(party, (folder.clone(), self.sources[*host].model.clone()));
        }
        self.actors.push(Actor::start(&self.gate, sim, repo, task));
        party
    }

    /// Lets time go by: as much as a writer may take between its last look and its snapshot.
    // format.md, "A writer against prune"
    fn let_time_go(&mut self, ms: i64) {
        let mut state = self.gate.lock();
        let alive = state.parties.iter().filter(|party| !party.is_dead);
        let limit = alive.filter_map(|party| party.looked_ms).min().map_or(i64::MAX, |ms| ms + GRACE_MS - HOUR_MS);
        let ms = ms.min(limit - state.now_ms).max(0);
        state.advance(ms);
        let line = format!("{} {} hours went by", state.now_ms, ms / HOUR_MS);
        state.log.push(line);
    }

    /// Takes note of a change.
    fn note(&mut self, change: &Change) -> Result<(), String> {
        let Change { by, name, is_put } = change;
        if let Some(snapshot) = SnapshotName::parse(name) {
            return self.note_snapshot(snapshot, *by, *is_put);
        }
        if !is_put && name.starts_with("packs/") {
            self.counts.packs_deleted += 1;
        }
        for snapshot in self.snapshots.values_mut() {
            if snapshot.asked.as_ref().is_some_and(|asked| asked.depends_on(name)) {
                snapshot.asked = None;
            }
        }
        Ok(())
    }

    fn note_snapshot(&mut self, name: SnapshotName, by: usize, is_put: bool) -> Result<(), String> {
        let by_whom = self.actors.iter().find(|actor| actor.party == by).map(|actor| &actor.task);
        // A backup that was late takes its snapshot back if it cannot be sure of it.
        let may_delete = match by_whom {
            Some(Task::Forget(_)) => true,
            Some(Task::Backup { .. }) => self.put_by.get(&name) == Some(&by),
            _ => false,
        };
        match is_put {
            true => {
                let (folder, model) = self.meant.get(&by).cloned().ok_or("a snapshot of nobody's")?;
                let looked = Looked { name, folder, model };
                self.put_by.insert(name, by);
                if self.snapshots.insert(name, Snapshot { looked, asked: None }).is_none() {
                    self.counts.committed += 1;
                }
            }
            false if !may_delete => return Err(format!("snapshot {} was deleted by another than forget", name.id)),
            false => {
                self.counts.forgotten += 1;
                self.snapshots.remove(&name);
                self.forgotten.insert(name);
            }
        }
        Ok(())
    }

    /// Reads every snapshot whose reading may have changed.
    fn check(&mut self) -> Result<(), String> {
        for snapshot in self.snapshots.values_mut().filter(|snapshot| snapshot.asked.is_none()) {
            let Looked { name, folder, .. } = &snapshot.looked;
            *self.store.asked.lock().unwrap() = Asked::default();
            let reader = self.repo.reader(READER_BYTES);
            let found = self.runtime.block_on(by_reader(&self.repo, &reader, *name, folder));
            let found = found.map_err(|error| format!("snapshot {} cannot be read: {error}", name.id))?;
            snapshot.looked.compare(&found).map_err(|trouble| format!("{trouble:?}"))?;
            snapshot.asked = Some(std::mem::take(&mut self.store.asked.lock().unwrap()));
            self.counts.read_whole += 1;
        }
        Ok(())
    }

    /// Lets those go who are over, and judges how they ended.
    fn reap(&mut self) -> Result<(), String> {
        let (over, actors) = std::mem::take(&mut self.actors).into_iter().partition(Actor::is_over);
        self.actors = actors;
        for actor in over {
            self.judge(actor)?;
        }
        Ok(())
    }

    fn judge(&mut self, actor: Actor) -> Result<(), String> {
        let (party, task) = (actor.party, actor.task.clone());
        let (name, is_hurt) = {
            let state = self.gate.lock();
            let party = &state.parties[party];
            (party.name.clone(), party.is_hurt)
        };
        match actor.join() {
            Ok(()) => {}
            Err(Trouble::Wrong(wrong)) => return Err(format!("{name}: {wrong}")),
            Err(_) if is_hurt => self.counts.failed += 1,
            Err(Trouble::Again) => self.counts.begun_again += 1,
            Err(Trouble::Failed(error)) => {
                let is_gone = |looked: &Looked| self.forgotten.contains(&looked.name);
                match &task {
                    Task::Read(looked) | Task::Mount(looked) if is_gone(looked) => {}
                    _ => return Err(format!("{name} failed of nothing: {error}")),
                }
            }
        }
        Ok(())
    }

    /// Has all actors crash, so that their threads end.
    fn stop(&mut self) {
        self.gate.lock().rates = Rates { crash: 1, ..Rates::default() };
        while self.actors.iter().any(|actor| !actor.is_over()) {
            self.gate.rest();
            self.gate.lock().changes.clear();
        }
        self.actors.drain(..).for_each(|actor| drop(actor.join()));
    }

    /// Left alone, prunes come to an end: what is left is whole, and nobody does without any of it.
    fn tidy_up(&mut self) -> Result<(), String> {
        self.gate.lock().rates = Rates::default();
        for _ in 0..PRUNES_MAX {
            self.let_time_go(GRACE_MS + HOUR_MS);
            let options = PruneOptions { max_unused_permille: 0, ..self.prune_options() };
            self.run_alone(Task::Prune(options))?;
            if self.leftover()?.is_none() {
                return self.check_all();
            }
        }
        let left = self.leftover()?.unwrap_or_default();
        Err(format!("after {PRUNES_MAX} more prunes {left} is left, and nobody needs it"))
    }

    /// Returns something that no snapshot needs.
    fn leftover(&mut self) -> Result<Option<String>, String> {
        self.snapshots.values_mut().for_each(|snapshot| snapshot.asked = None);
        self.check()?;
        let is_asked = |name: &String| self.snapshots.values().any(|s| s.asked.iter().any(|a| a.names.contains(name)));
        let names = |folder| self.gate.lock().bucket.names(folder);
        // What was marked and is needed all the same stays marked: a list that holds nothing else may stay.
        let marked = self.runtime.block_on(load_pending(&self.repo.store, &self.repo.keys));
        let marked = marked.map_err(|error| format!("the pending lists cannot be read: {error}"))?;
        let may_stay = !marked.is_empty() && marked.iter().all(|pack| is_asked(&pack.to_string()));
        let lists = if may_stay { Vec::new() } else { names("pending/") };
        Ok([lists, names("packs/")].concat().into_iter().find(|name| !is_asked(name)))
    }

    fn check_all(&self) -> Result<(), String> {
        let report = self.runtime.block_on(check(
            &self.repo,
            CheckOptions { read_data: true, ..CheckOptions::default() },
            &|_| {},
        ));
        let damaged = report.map_err(|error| format!("the check fails: {error}"))?.damaged;
        if damaged.is_empty() { Ok(()) } else { Err(format!("{damaged:#?}")) }
    }
}
