//! Whoever works on the kloset: each a thread that makes one real call of the product.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kloset_mount::backup::{BackupError, BackupOptions, backup};
use kloset_mount::fs::{View, ViewOptions};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::forget::forget;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::prune::{PruneOptions, apply, plan};
use kloset_mount::repo::{Repo, RepoError};
use tokio::runtime::{Builder, Runtime};

use crate::gate::Gate;
use crate::reading::{by_reader, by_view};
use crate::source::Model;
use crate::store::SimStore;

/// How often a reader or a mount reads all of its snapshot.
const READINGS: usize = 3;
/// Memory of a mount: so little that it has to fetch again.
const MEMORY_BYTES: usize = 4 << 10;

/// What an actor does.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    Backup { host: usize, folder: PathBuf, force: bool },
    Forget(Vec<SnapshotName>),
    Prune(PruneOptions),
    Read(Looked),
    Mount(Looked),
}

/// A snapshot that is read, and what it must show.
#[derive(Clone, Debug)]
pub(crate) struct Looked {
    pub(crate) name: SnapshotName,
    pub(crate) folder: PathBuf,
    pub(crate) model: Model,
}

/// Why an actor did not do what it was to do.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// It is told to begin anew.
    Again,
    /// It fails.
    Failed(String),
    /// It did something wrong: never right, whatever went on.
    Wrong(String),
}

type End = Arc<Mutex<Option<Result<(), Trouble>>>>;

/// An actor at work.
pub(crate) struct Actor {
    pub(crate) party: usize,
    pub(crate) task: Task,
    end: End,
    thread: std::thread::JoinHandle<()>,
}

impl Task {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Backup { host: 0, .. } => "backup A",
            Self::Backup { .. } => "backup B",
            Self::Forget(_) => "forget",
            Self::Prune(_) => "prune",
            Self::Read(_) => "reader",
            Self::Mount(_) => "mount",
        }
    }

    /// Tells whether its threads wait at the gate, not its futures.
    pub(crate) fn blocks(&self) -> bool {
        matches!(self, Self::Backup { .. })
    }

    fn runtime(&self, gate: &Gate, party: usize) -> Runtime {
        let gate = gate.clone();
        match self.blocks() {
            true => Builder::new_multi_thread().worker_threads(1).build(),
            false => Builder::new_current_thread().on_thread_park(move || gate.idle(party)).build(),
        }
        .unwrap()
    }

    fn run(&self, runtime: &Runtime, repo: &Repo, store: &SimStore) -> Result<(), Trouble> {
        match self {
            Self::Backup { host, folder, force } => {
                let options = BackupOptions {
                    paths: vec![folder.clone()],
                    host: format!("host {host}"),
                    force: *force,
                    ..BackupOptions::default()
                };
                match backup(repo, runtime.handle(), &options, &Arc::new(Monitor::default())) {
                    Ok(report) if report.manifest.incomplete => Err(Trouble::Wrong(format!("{report:?}"))),
                    Ok(_) => Ok(()),
                    Err(BackupError::Repo(RepoError::Pruned(_))) => Err(Trouble::Again),
                    Err(error) => Err(failed(error)),
                }
            }
            Self::Forget(names) => match runtime.block_on(forget(repo, names)).failure {
                Some(error) => Err(failed(error)),
                None => Ok(()),
            },
            Self::Prune(options) => runtime.block_on(prune(repo, options)),
            Self::Read(looked) => runtime.block_on(read(repo, store, looked)),
            Self::Mount(looked) => runtime.block_on(mount(repo, store, looked)),
        }
    }
}

/// Prunes as the command does: the plan comes first.
async fn prune(repo: &Repo, options: &PruneOptions) -> Result<(), Trouble> {
    let pruned = match plan(repo, options, &|_, _, _| {}).await {
        Ok(_) => apply(repo, options, &|_, _, _| {}).await.map(drop),
        Err(error) => Err(error),
    };
    pruned.map_err(|error| match error {
        RepoError::PruneAtWork => Trouble::Again,
        error => failed(error),
    })
}

async fn read(repo: &Repo, store: &SimStore, looked: &Looked) -> Result<(), Trouble> {
    let reader = repo.reader(MEMORY_BYTES);
    for _ in 0..READINGS {
        let found = by_reader(repo, &reader, looked.name, &looked.folder).await.map_err(failed)?;
        looked.compare(&found)?;
        store.pause().await;
    }
    Ok(())
}

async fn mount(repo: &Repo, store: &SimStore, looked: &Looked) -> Result<(), Trouble> {
    let options = ViewOptions { only: Some(looked.name), memory_bytes: MEMORY_BYTES, ..ViewOptions::default() };
    let view = View::new(repo.clone(), options).await.map_err(failed)?;
    for _ in 0..READINGS {
        looked.compare(&by_view(&view, &looked.folder).await.map_err(failed)?)?;
        store.pause().await;
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> Trouble {
    Trouble::Failed(error.to_string())
}

impl Looked {
    /// Holds what was read against what it must be.
    pub(crate) fn compare(&self, found: &Model) -> Result<(), Trouble> {
        let differs = |path: &&String| self.model.get(*path) != found.get(*path);
        match self.model.keys().chain(found.keys()).find(differs) {
            None => Ok(()),
            Some(path) => Err(Trouble::Wrong(format!("snapshot {}: \"{path}\" is not what it was", self.name.id))),
        }
    }
}

impl Actor {
    /// Starts an actor; it waits for its first turn.
    pub(crate) fn start(gate: &Gate, store: SimStore, repo: Repo, task: Task) -> Self {
        let (party, end) = (store.party, End::default());
        gate.start(party);
        let (task_there, gate, end_there) = (task.clone(), gate.clone(), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            gate.enter(party);
            let work = || {
                let runtime = task_there.runtime(&gate, party);
                task_there.run(&runtime, &repo, &store)
            };
            let result = catch_unwind(AssertUnwindSafe(work));
            *end_there.lock().unwrap() = Some(result.unwrap_or_else(|_| Err(Trouble::Wrong("it panicked".to_owned()))));
            gate.leave(party);
        });
        Self { party, task, end, thread }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.end.lock().unwrap().is_some()
    }

    /// Returns how it ended.
    pub(crate) fn join(self) -> Result<(), Trouble> {
        self.thread.join().expect("its panics are caught");
        self.end.lock().unwrap().take().expect("it is over")
    }
}
