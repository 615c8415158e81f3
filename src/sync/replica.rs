//! Copying a snapshot between stores of one kloset: sealed packs as they are, then an index run, then the snapshot.
//!
//! What a snapshot needs is found by reading its trees, so that nothing else is copied and nothing is missing. A pack is
//! verified before it is put: its digest, its footer. The runs of the other side name packs that are not copied, so new
//! ones are written. Where the target is about to delete a needed pack, whose name cannot be given again, the snapshot is
//! copied chunk by chunk instead.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::needs::{Needed, Needs};
use super::transfer::Transfer;
use super::{Sides, SyncError};
use crate::monitor::Monitor;
use crate::repo::id::{PackId, RunId};
use crate::repo::index::{IndexRun, RUN_ENTRIES_MAX};
use crate::repo::layout::{self, SnapshotName};
use crate::repo::lookup::Loaded;
use crate::repo::pack::{self, Footer, PACK_BYTES_MAX};
use crate::repo::snapshot::{MANIFEST_BYTES_MAX, Manifest};
use crate::repo::standing::{self, LastLook};
use crate::repo::{READER_BYTES_DEFAULT, Repo, RepoError, lookup};
use crate::store::StoreError;

/// Packs on their way at once: 16 MiB each as a rule.
const PACKS_AT_ONCE: usize = 4;

/// Copies snapshots.
pub(super) struct Replica<'a> {
    sides: Sides<'a>,
    needs: Needs<'a>,
    /// Packs that the target has, and whose chunks its index names.
    there: HashSet<PackId>,
    pending: HashSet<PackId>,
    /// Index runs of the target that say so, and those that were put.
    runs: HashSet<RunId>,
    /// Packs that the snapshots need that were copied.
    used: HashSet<PackId>,
    /// Names packs that were put and are not named yet.
    run: IndexRun,
    monitor: &'a Monitor,
    list_every: Duration,
    listed_ms: i64,
    /// Where packs cannot be copied as they are.
    transfer: Option<Transfer<'a>>,
}

impl<'a> Replica<'a> {
    pub(super) async fn new(sides: Sides<'a>, list_every: Duration, monitor: &'a Monitor) -> Result<Self, SyncError> {
        let packs = packs_in(sides.from).await.map_err(SyncError::From)?;
        let packs = packs.into_keys().collect();
        let needs = Needs::new(sides.from, sides.runtime, sides.from.reader(READER_BYTES_DEFAULT), packs);
        let pending = lookup::load_pending(&sides.to.store, &sides.to.keys).await.map_err(SyncError::To)?;
        let (runs, there) = usable_packs(sides.to).await.map_err(SyncError::To)?;
        let (used, run, transfer) = (HashSet::new(), IndexRun::default(), None);
        let listed_ms = sides.to.env.clock.unix_ms();
        Ok(Self { sides, needs, there, pending, runs, used, run, monitor, list_every, listed_ms, transfer })
    }

    /// Copies one snapshot.
    pub(super) fn copy(&mut self, name: SnapshotName) -> Result<(), SyncError> {
        let (object, manifest) = self.sides.runtime.block_on(snapshot(self.sides.from, name))?;
        let needed = self.needs.of(manifest.root.into(), self.monitor).map_err(SyncError::From)?;
        let needed = needed.ok_or(SyncError::Stopped)?;
        if needed.packs.iter().any(|pack| self.pending.contains(pack)) {
            return self.transfer(name);
        }
        let copied = self.copy_packs(&needed);
        if !matches!(copied, Err(SyncError::To(_))) {
            self.put_run()?;
        }
        copied?;
        self.used.extend(&needed.packs);
        let stand =
            async || LastLook::look(self.sides.to, self.runs.iter()).await?.hold(self.sides.to, &self.used).await;
        let snapshot = name.object();
        let put = standing::put_checked(self.sides.to, &snapshot, object, stand);
        self.sides.runtime.block_on(put).map_err(SyncError::To)?;
        self.needs.done(needed);
        self.monitor.files.fetch_add(manifest.summary.files, Ordering::Relaxed);
        Ok(())
    }

    fn transfer(&mut self, name: SnapshotName) -> Result<(), SyncError> {
        let transfer = match self.transfer.take() {
            Some(transfer) => transfer,
            None => Transfer::new(self.sides, self.list_every, self.monitor)?,
        };
        self.transfer.insert(transfer).copy(name)
    }

    fn copy_packs(&mut self, needed: &Needed) -> Result<(), SyncError> {
        let sides = self.sides;
        let missing: Vec<_> = needed.packs.iter().filter(|pack| !self.there.contains(pack)).copied().collect();
        let mut copies = futures::stream::iter(missing)
            .map(|id| async move { copy_pack(sides, id).await.map(|copied| (id, copied)) })
            .buffer_unordered(PACKS_AT_ONCE);
        while let Some(copied) = sides.runtime.block_on(copies.next()) {
            let (id, (bytes, footer)) = copied?;
            let entries: usize = footer.frames.iter().map(|frame| frame.chunks.len()).sum();
            if self.run.entries.len() + entries > RUN_ENTRIES_MAX || self.is_due() {
                self.put_run()?;
            }
            self.run.add_pack(id, bytes, &footer);
            self.there.insert(id);
            self.monitor.bytes.fetch_add(bytes, Ordering::Relaxed);
            if self.monitor.stopped() {
                return Err(SyncError::Stopped);
            }
        }
        Ok(())
    }

    fn is_due(&self) -> bool {
        let waited_ms = self.sides.to.env.clock.unix_ms().saturating_sub(self.listed_ms);
        u128::try_from(waited_ms).is_ok_and(|waited| waited >= self.list_every.as_millis())
    }

    /// Puts the index run of the packs that were put.
    fn put_run(&mut self) -> Result<(), SyncError> {
        let Repo { keys, env, .. } = self.sides.to;
        self.listed_ms = env.clock.unix_ms();
        if self.run.packs.is_empty() {
            return Ok(());
        }
        let run = std::mem::take(&mut self.run);
        let packs: Vec<_> = run.packs.iter().map(|pack| pack.id).collect();
        let id = RunId(env.entropy.bytes());
        let object = run.seal(&keys.index_key(), keys.kloset(), id, env.entropy.bytes());
        let stand = async || standing::stand(self.sides.to, &packs).await;
        let name = layout::run_name(id);
        let put = standing::put_checked(self.sides.to, &name, object.into(), stand);
        self.sides.runtime.block_on(put).map_err(SyncError::To)?;
        self.runs.insert(id);
        Ok(())
    }
}

/// Reads a snapshot's object and opens it.
async fn snapshot(repo: &Repo, name: SnapshotName) -> Result<(Bytes, Manifest), SyncError> {
    let object = match repo.store.get(&name.object(), MANIFEST_BYTES_MAX as u64).await {
        Err(StoreError::NotFound { .. }) => Err(RepoError::NoSnapshot(name.id.to_string())),
        object => object.map_err(RepoError::from),
    };
    let object = object.map_err(SyncError::From)?;
    let manifest = Manifest::open(&repo.keys, name, &object);
    Ok((object, manifest.map_err(|error| SyncError::From(RepoError::damaged(name.object(), error)))?))
}

/// Copies a pack that is whole.
async fn copy_pack(Sides { from, to, .. }: Sides<'_>, id: PackId) -> Result<(u64, Footer), SyncError> {
    let damaged = |problem: String| SyncError::From(RepoError::damaged(id, problem));
    let content = match from.store.get(&id.to_string(), PACK_BYTES_MAX).await {
        // It was listed: a prune of the source has moved what is needed of it.
        Err(StoreError::NotFound { .. }) => return Err(SyncError::From(RepoError::Pruned(1))),
        content => content.map_err(|error| SyncError::From(error.into()))?,
    };
    let key = from.keys.session_key(&id.session).map_err(|error| damaged(error.to_string()))?;
    let footer = pack::verify_digest(&content)
        .and_then(|sealed| pack::open_footer(&key, from.keys.kloset(), id, sealed))
        .map_err(|error| damaged(error.to_string()))?;
    let bytes = content.len() as u64;
    to.store.put_new(&id.to_string(), content).await.map_err(|error| SyncError::To(error.into()))?;
    Ok((bytes, footer))
}

/// Returns the packs that are in a kloset's store, with their lengths.
async fn packs_in(repo: &Repo) -> Result<HashMap<PackId, u64>, RepoError> {
    let objects = repo.store.list(layout::PACKS).await?;
    Ok(objects.iter().filter_map(|object| Some((layout::parse_pack(&object.name)?, object.bytes))).collect())
}

/// Returns the packs of the target that are as long as its index says, and the runs that say it: others are copied again,
/// and then either named or refused.
async fn usable_packs(repo: &Repo) -> Result<(HashSet<RunId>, HashSet<PackId>), RepoError> {
    let (mut runs, mut indexed) = (HashSet::new(), Vec::new());
    let take = |_, loaded: Loaded| {
        runs.extend(loaded.ids);
        indexed.extend(loaded.run.packs.iter().map(|pack| (pack.id, pack.bytes)));
    };
    lookup::for_each_run((&repo.store, &repo.store), &repo.keys, take).await?;
    let listed = packs_in(repo).await?;
    let there = indexed.into_iter().filter(|(id, bytes)| listed.get(id) == Some(bytes)).map(|(id, _)| id).collect();
    Ok((runs, there))
}
