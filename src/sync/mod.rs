//! Syncing: the snapshots of one kloset that another one lacks, with their ids, times and hosts.
//!
//! A snapshot's name is its time and id, and it is put last: what one listing of each side shows in both is there, whole.
//! Between replicas (same kloset, same keys) sealed packs are copied as they are. Between klosets with other keys the
//! content is read, checked, cut and sealed anew, tree by tree; what a snapshot shares with one that both sides have is
//! taken over unread. Nothing is ever deleted. A run that was interrupted goes on: whole snapshots are there, and what
//! was stored of the next one is found by its index runs.

mod base;
mod content;
mod needs;
mod replica;
mod transfer;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::runtime::Handle;

use crate::monitor::Monitor;
use crate::repo::id::SnapshotId;
use crate::repo::layout::SnapshotName;
use crate::repo::writer::AGAIN_MAX;
use crate::repo::{Repo, RepoError};
use replica::Replica;
use transfer::Transfer;

/// Manifests looked at together.
const MANIFESTS_AT_ONCE: usize = 16;
/// Whole packs wait so long at most until an index run speaks of them.
const LIST_EVERY: Duration = Duration::from_secs(300);

/// The two klosets.
#[derive(Clone, Copy)]
pub struct Sides<'a> {
    /// Where the snapshots are.
    pub from: &'a Repo,
    /// Where they are wanted.
    pub to: &'a Repo,
    /// Network and timers.
    pub runtime: &'a Handle,
}

/// How to sync.
#[derive(Clone, Copy, Debug, Default)]
pub struct SyncOptions {
    /// How long whole packs wait at most until an index run speaks of them; without, five minutes.
    pub list_every: Option<Duration>,
}

/// What there is to be done.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Snapshots to be copied, oldest first.
    pub missing: Vec<SnapshotName>,
    /// How many of those that were asked for are there.
    pub there: usize,
    /// Snapshots in whose place the other side has others, with other tags or without some paths.
    pub replaced: Vec<SnapshotName>,
}

/// How far a sync came.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Snapshots that are there now.
    pub copied: Vec<SnapshotName>,
    /// Snapshots that cannot be read whole, and why.
    pub damaged: Vec<(SnapshotName, RepoError)>,
    /// Snapshots that were forgotten since they were listed.
    pub gone: Vec<SnapshotName>,
    /// What ended it before all was done.
    pub failure: Option<SyncError>,
}

/// Why a sync ends early.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The kloset that is read failed.
    #[error(transparent)]
    From(RepoError),
    /// The kloset that is written failed.
    #[error(transparent)]
    To(RepoError),
    /// A snapshot whose data is shared was forgotten while it was relied on.
    #[error("snapshot {0} was forgotten while another was built upon it: run the sync again")]
    BaseGone(String),
    /// Somebody asked it to stop.
    #[error("stopped: whole snapshots are kept, and the next sync goes on from here")]
    Stopped,
}

impl SyncError {
    /// Tells whether a prune or a forget took what a snapshot relied on: who looks anew finds what there is now.
    fn is_to_begin_again(&self) -> bool {
        matches!(self, Self::BaseGone(_) | Self::From(RepoError::Pruned(_)) | Self::To(RepoError::Pruned(_)))
    }
}

/// Finds what of `wanted` the other side lacks. What was `named` is copied even where the other side has put another
/// snapshot in its place.
///
/// # Errors
/// [`SyncError`]; [`RepoError::WriteOnly`] where the source's key cannot read.
pub async fn plan(sides: Sides<'_>, wanted: &[SnapshotName], named: bool) -> Result<Plan, SyncError> {
    if !sides.from.keys.can_read() {
        return Err(SyncError::From(RepoError::WriteOnly));
    }
    let there = sides.to.snapshots().await.map_err(SyncError::To)?;
    let mut missing: Vec<_> = wanted.iter().filter(|name| there.binary_search(name).is_err()).copied().collect();
    missing.sort_unstable();
    missing.dedup();
    let mut plan = Plan { there: wanted.len() - missing.len(), ..Plan::default() };
    if !named && !missing.is_empty() && sides.to.keys.can_read() {
        let originals = originals(sides.to, &there).await?;
        (plan.replaced, missing) = missing.into_iter().partition(|name| originals.contains(&name.id));
    }
    plan.missing = missing;
    Ok(plan)
}

/// Returns in whose place the snapshots of a kloset were put.
async fn originals(repo: &Repo, names: &[SnapshotName]) -> Result<HashSet<SnapshotId>, SyncError> {
    let mut manifests = futures::stream::iter(names)
        .map(|name| async move { repo.manifest(*name).await.map(|manifest| manifest.original) })
        .buffer_unordered(MANIFESTS_AT_ONCE);
    let mut out = HashSet::new();
    while let Some(original) = manifests.next().await {
        match original {
            Ok(original) => out.extend(original),
            Err(RepoError::Damaged { .. } | RepoError::NoSnapshot(_)) => {}
            Err(error) => return Err(SyncError::To(error)),
        }
    }
    Ok(out)
}

/// Copies snapshots, oldest first. Blocks; call it from a thread that does not drive the runtime.
#[must_use]
pub fn sync(sides: Sides<'_>, names: &[SnapshotName], options: SyncOptions, monitor: &Arc<Monitor>) -> SyncReport {
    let mut report = SyncReport::default();
    if let Err(error) = copy_all(sides, names, (options, monitor), &mut report) {
        report.failure = Some(error);
    }
    report
}

fn copy_all(
    sides: Sides<'_>,
    names: &[SnapshotName],
    (options, monitor): (SyncOptions, &Monitor),
    report: &mut SyncReport,
) -> Result<(), SyncError> {
    if names.is_empty() {
        return Ok(());
    }
    let list_every = options.list_every.unwrap_or(LIST_EVERY);
    let mut copier = Copier::new(sides, list_every, monitor)?;
    for name in names {
        let mut again = 0;
        let copied = loop {
            if monitor.stopped() {
                return Err(SyncError::Stopped);
            }
            match copier.copy(*name) {
                Err(error) if error.is_to_begin_again() && again < AGAIN_MAX => {
                    again += 1;
                    tracing::warn!("a prune or a forget took what snapshot {} relied on: it is begun again", name.id);
                    copier = Copier::new(sides, list_every, monitor)?;
                }
                copied => break copied,
            }
        };
        match copied {
            Ok(()) => report.copied.push(*name),
            Err(SyncError::From(RepoError::NoSnapshot(_))) => report.gone.push(*name),
            Err(SyncError::From(error @ RepoError::Damaged { .. })) => report.damaged.push((*name, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The two ways of copying a snapshot.
enum Copier<'a> {
    Replica(Box<Replica<'a>>),
    Transfer(Box<Transfer<'a>>),
}

impl<'a> Copier<'a> {
    fn new(sides: Sides<'a>, list_every: Duration, monitor: &'a Monitor) -> Result<Self, SyncError> {
        Ok(match sides.from.is_same_kloset(sides.to) {
            true => Self::Replica(Box::new(sides.runtime.block_on(Replica::new(sides, list_every, monitor))?)),
            false => Self::Transfer(Box::new(Transfer::new(sides, list_every, monitor)?)),
        })
    }

    fn copy(&mut self, name: SnapshotName) -> Result<(), SyncError> {
        match self {
            Self::Replica(replica) => replica.copy(name),
            Self::Transfer(transfer) => transfer.copy(name),
        }
    }
}
