//! Freeing space: packs that no snapshot needs are marked, and deleted once they were marked for long enough.
//!
//! There is no lock. What was marked is deleted only after the grace period, by the store's clock, and after another look
//! at all snapshots; writers avoid what is marked (`docs/format.md`, "Deleting"). One [`apply`] finishes what earlier ones
//! marked and marks anew; it may be cut off at any point, and the next one goes on. [`plan`] changes nothing. What cannot
//! be read ends a prune before anything is deleted: what it does not see it must not take for unneeded.

mod census;
mod choose;
mod look;
mod moves;
mod needed;
mod repack;
mod runs;
mod walk;

use std::time::Duration;

use super::Repo;
use super::emptied::Tidy;
use super::error::RepoError;
use super::id::{PackId, PendingId};
use super::layout;
use super::pack::{self, PACK_BYTES_MAX};
use super::pending::PendingList;
use crate::store::{Store, StoreCounts, StoreError};
use choose::Choice;
use look::{Look, Mark};

pub use repack::Repacked;

/// The grace period unless told otherwise: longer than a backup takes between its last look and its snapshot, and than
/// mounts take to notice.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(24 * 3600);
/// Packs on one pending list: about 8 MB of JSON.
const LIST_PACKS_MAX: usize = 100_000;
/// A look is taken anew at most so often because another prune rewrote the index meanwhile.
const LOOKS_MAX: usize = 3;

/// How to prune.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneOptions {
    /// How long a pack stays marked, and how long a young one is left alone.
    pub grace: Duration,
    /// What may stay unneeded in packs that are kept, in thousandths of their bytes.
    pub max_unused_permille: u32,
    /// Bytes of packs that are fetched at most to be repacked.
    pub max_repack_bytes: Option<u64>,
    /// After this time no other pack is repacked.
    pub max_time: Option<Duration>,
    /// What is deleted sooner than this after it was put is told: some stores bill it all the same.
    pub min_storage: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        let (max_repack_bytes, max_time, min_storage) = (None, None, Duration::ZERO);
        Self { grace: GRACE_DEFAULT, max_unused_permille: 50, max_repack_bytes, max_time, min_storage }
    }
}

impl PruneOptions {
    fn grace_ms(&self) -> i64 {
        i64::try_from(self.grace.as_millis()).unwrap_or(i64::MAX)
    }
}

/// What a prune is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Listings, manifests, pending lists.
    Listing,
    /// Packs of trees.
    Trees,
    /// Index runs.
    Index,
    /// Deletions.
    Delete,
    /// Packs that are emptied.
    Repack,
}

/// What is told of the progress: the stage, how much of it is done, how much there is so far.
pub type Progress<'a> = &'a (dyn Fn(Stage, u64, u64) + Sync);

/// Packs and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Requests of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Listings, of one page each.
    pub lists: u64,
    /// Objects read.
    pub gets: u64,
    /// Objects put.
    pub puts: u64,
    /// Objects deleted.
    pub deletes: u64,
}

/// What there is, and what [`apply`] would do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrunePlan {
    /// Snapshots that are kept.
    pub snapshots: u64,
    /// Distinct trees that were read.
    pub trees: u64,
    /// Distinct chunks that they need, trees included.
    pub chunks: u64,
    /// All packs there are.
    pub total: Amount,
    /// Marked long enough ago and not needed: to be deleted.
    pub delete: Amount,
    /// Marked long enough ago, and needed: not to be deleted.
    pub spare: Amount,
    /// Marked not long enough ago, and not needed.
    pub waiting: Amount,
    /// When the last of these may be deleted, milliseconds since 1970 by the store's clock.
    pub due_unix_ms: Option<i64>,
    /// Not needed: to be marked.
    pub mark: Amount,
    /// Needed in part, or small: to be emptied into others and marked.
    pub repack: Amount,
    /// About how many bytes are written for these.
    pub repack_bytes_written: u64,
    /// Bytes that nobody needs in packs that are kept as they are.
    pub unused_bytes: u64,
    /// Of what is to be deleted or marked: put more recently than the store bills for at least.
    pub early: Amount,
    /// Index runs that there are, that are to be written anew, and that these become.
    pub runs: (u64, u64, u64),
    /// Emptied packs that no snapshot refers to any more: where their chunks went need not be told.
    pub moved_gone: u64,
    /// About what it takes; what the plan took is not in it, though an `apply` looks again.
    pub requests: Requests,
}

/// What an [`apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// What it had planned when it had looked.
    pub plan: PrunePlan,
    /// Packs deleted.
    pub deleted: Amount,
    /// Packs marked, those that were emptied included.
    pub marked: u64,
    /// What was repacked.
    pub repacked: Repacked,
}

/// What a prune saw and decided.
struct Decision {
    look: Look,
    choice: Choice,
    rewritten: Vec<usize>,
    /// What becomes of the objects that say where chunks went.
    tidy: Tidy,
    plan: PrunePlan,
}

/// Looks at everything and tells what there is to do; nothing is changed.
///
/// # Errors
/// [`RepoError::WriteOnly`] with a key that cannot read; [`RepoError::Damaged`] for whatever cannot be read.
pub async fn plan(repo: &Repo, options: &PruneOptions, progress: Progress<'_>) -> Result<PrunePlan, RepoError> {
    let repo = &reading(repo)?;
    Ok(decide(repo, options, None, progress).await?.plan)
}

/// Deletes what was marked long enough ago and is still not needed, then marks what is not needed, and repacks.
///
/// # Errors
/// As [`plan`]; a store that refuses to delete, before anything is changed; [`RepoError::PruneAtWork`].
pub async fn apply(repo: &Repo, options: &PruneOptions, progress: Progress<'_>) -> Result<PruneReport, RepoError> {
    let repo = &reading(repo)?;
    // A list of nothing, whose time is the store's.
    let probe = put_list(repo, Vec::new()).await?;
    let decided = decide(repo, options, Some(probe), progress).await;
    // A store that refuses to delete says so here.
    repo.store.delete(&layout::pending_name(probe)).await?;
    let Decision { look, choice, rewritten, tidy, plan } = decided?;
    progress(Stage::Delete, 0, plan.delete.packs);
    repo.store.delete_all(&runs::joined_in_vain(&look)).await?;
    let put = runs::rewrite(repo, &look, &rewritten, &choice.delete).await?;
    if !choice.delete.is_empty() {
        runs::none_is_named(repo, &look, &put, &choice.delete).await?;
    }
    let names: Vec<_> = choice.delete.iter().map(|place| look.packs.at(*place).id.to_string()).collect();
    repo.store.delete_all(&names).await?;
    look.emptied.apply(repo, &tidy, |pack| is_done_with(&look, &choice, pack)).await?;
    mark(repo, damaged(repo, &look, &choice.spare).await?).await?;
    let lists: Vec<_> = look.lists.iter().filter(|l| l.is_due).map(|l| layout::pending_name(l.id)).collect();
    repo.store.delete_all(&lists).await?;
    progress(Stage::Delete, plan.delete.packs, plan.delete.packs);
    mark(repo, choice.mark.iter().map(|place| look.packs.at(*place).id).collect()).await?;
    let repacked = repack::repack(repo, &look, &choice.repack, options, progress).await?;
    let marked = choice.mark.len() as u64 + repacked.packs;
    Ok(PruneReport { plan, deleted: plan.delete, marked, repacked })
}

/// Returns those of the spared packs that are damaged: a repair marked them, and no writer is to rely on them. The others
/// count as any pack again, or two that hold the same would spare each other for ever.
async fn damaged(repo: &Repo, look: &Look, spared: &[u32]) -> Result<Vec<PackId>, RepoError> {
    let mut damaged = Vec::new();
    for place in spared {
        let id = look.packs.at(*place).id;
        let is_whole = match repo.store.get(&id.to_string(), PACK_BYTES_MAX).await {
            Ok(content) => repo.cpu.run(move || pack::verify_digest(&content).is_ok()).await,
            Err(StoreError::NotFound { .. } | StoreError::TooLarge { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if !is_whole {
            damaged.push(id);
        }
    }
    Ok(damaged)
}

/// Returns the kloset as the store has it, if it can be read.
fn reading(repo: &Repo) -> Result<Repo, RepoError> {
    if repo.keys.can_read() { Ok(repo.without_cache()) } else { Err(RepoError::WriteOnly) }
}

async fn decide(
    repo: &Repo,
    options: &PruneOptions,
    probe: Option<PendingId>,
    progress: Progress<'_>,
) -> Result<Decision, RepoError> {
    let mut looks = 0;
    loop {
        looks += 1;
        match decide_once(repo, options, probe, progress).await {
            Err(RepoError::PruneAtWork) if looks < LOOKS_MAX => {}
            // What another prune moved meanwhile looks like damage once.
            Err(RepoError::Damaged { .. }) if looks == 1 => {}
            decided => return decided,
        }
    }
}

async fn decide_once(
    repo: &Repo,
    options: &PruneOptions,
    probe: Option<PendingId>,
    progress: Progress<'_>,
) -> Result<Decision, RepoError> {
    let before = repo.store.counts();
    let mut look = look::look(repo, options, probe, progress).await?;
    let mut moves = walk::walk(repo, &mut look, progress).await?;
    let copies = census::take(repo, &mut look, &mut moves, progress).await?;
    census::verify(repo, &mut look, copies).await?;
    let choice = choose::choose(&look, options);
    let rewritten = runs::to_rewrite(&look, options, &choice.delete);
    let tidy = look.emptied.tidy(|pack| is_done_with(&look, &choice, pack));
    let mut plan = sum_up(&look, &choice, options);
    let become_of = runs::become_of(&look, &rewritten) as u64;
    let runs_of = |at: &usize| look.runs[*at].ids.len() as u64;
    plan.runs = (look.index.runs.len() as u64, rewritten.iter().map(runs_of).sum(), become_of);
    plan.moved_gone = tidy.packs;
    plan.requests = requests(&look, &plan, (&choice.repack, &tidy), (&before, &repo.store));
    plan.requests.gets += rewritten.iter().filter(|at| look.runs[**at].kept.is_none()).count() as u64;
    Ok(Decision { look, choice, rewritten, tidy, plan })
}

/// Tells whether nobody asks any more where the chunks of a pack went: it is gone, or goes now, and what a snapshot still
/// needs of a pack that is gone was followed by the walk.
fn is_done_with(look: &Look, choice: &Choice, pack: PackId) -> bool {
    look.packs.find(pack).is_none_or(|place| {
        let pack = look.packs.at(place);
        !pack.moved_used && (pack.listed.is_none() || choice.delete.binary_search(&place).is_ok())
    })
}

fn sum_up(look: &Look, choice: &Choice, options: &PruneOptions) -> PrunePlan {
    let amount = |places: &[u32]| Amount {
        packs: places.len() as u64,
        bytes: places.iter().filter_map(|place| look.packs.at(*place).listed).sum(),
    };
    let min_ms = i64::try_from(options.min_storage.as_millis()).unwrap_or(i64::MAX);
    let goes = choice.delete.iter().chain(&choice.mark).chain(&choice.repack).copied();
    // What is marked now is deleted a grace period from now at the earliest.
    let early = goes.filter(|place| {
        let pack = look.packs.at(*place);
        let later_ms = if pack.mark == Mark::Due { 0 } else { options.grace_ms() };
        look.now_ms.saturating_add(later_ms).saturating_sub(pack.put_ms) < min_ms
    });
    let unused = |places: &[u32]| places.iter().map(|place| choose::unused(look.packs.at(*place))).sum::<u64>();
    let kept = look.packs.filter(|pack| pack.stays() && pack.is_needed);
    let repack = amount(&choice.repack);
    let waits = |pack: &look::Pack| pack.listed.is_some() && pack.mark == Mark::Waiting && !pack.is_needed;
    let is_for_some = |id: &PackId| look.packs.find(*id).is_some_and(|place| waits(look.packs.at(place)));
    let waiting = look.lists.iter().filter(|list| !list.is_due && list.packs.iter().any(is_for_some));
    PrunePlan {
        snapshots: look.roots.len() as u64,
        trees: look.trees,
        chunks: look.needed.count(),
        total: amount(&look.packs.filter(|pack| pack.listed.is_some())),
        delete: amount(&choice.delete),
        spare: amount(&choice.spare),
        waiting: amount(&look.packs.filter(waits)),
        due_unix_ms: waiting.map(|list| list.put_ms.saturating_add(options.grace_ms())).max(),
        mark: amount(&choice.mark),
        repack,
        repack_bytes_written: repack.bytes.saturating_sub(unused(&choice.repack)),
        unused_bytes: unused(&kept).saturating_sub(unused(&choice.repack)),
        early: amount(&early.collect::<Vec<_>>()),
        ..PrunePlan::default()
    }
}

/// Returns about what an `apply` takes: the look again, and what it does.
fn requests(
    look: &Look,
    plan: &PrunePlan,
    (repack, tidy): (&[u32], &Tidy),
    (before, store): (&StoreCounts, &Store),
) -> Requests {
    let after = store.counts();
    let due = look.lists.iter().filter(|list| list.is_due).count() as u64;
    let lists_put = [plan.mark, plan.spare, plan.repack].iter().filter(|amount| amount.packs > 0).count() as u64;
    let (moved_read, moved_put, moved_deleted) = tidy.objects();
    let moved_new = plan.repack.packs.div_ceil(repack::STEP_PACKS as u64);
    let kept = repack.iter().filter(|place| look.tree_packs.get(**place).is_some()).count() as u64;
    let joined = runs::joined_in_vain(look).len() as u64;
    let new_packs = plan.repack_bytes_written.div_ceil(pack::DATA_PACK_BYTES as u64);
    Requests {
        lists: after.lists - before.lists + u64::from(plan.runs.1 > 0) + u64::from(plan.delete.packs > 0),
        gets: after.gets - before.gets + plan.repack.packs - kept + moved_read,
        puts: 1 + plan.runs.2 + lists_put + new_packs + moved_put + 2 * moved_new,
        deletes: 1 + [plan.runs.1, joined, plan.delete.packs, moved_deleted, due]
            .map(|n| store.deletions_for(n))
            .iter()
            .sum::<u64>(),
    }
}

/// Puts lists of packs that await deletion from now on.
async fn mark(repo: &Repo, mut packs: Vec<PackId>) -> Result<(), RepoError> {
    packs.sort_unstable();
    for packs in packs.chunks(LIST_PACKS_MAX) {
        put_list(repo, packs.to_vec()).await?;
    }
    Ok(())
}

async fn put_list(repo: &Repo, packs: Vec<PackId>) -> Result<PendingId, RepoError> {
    let id = PendingId(repo.env.entropy.bytes());
    let created = layout::timestamp(repo.env.clock.unix_ms()).to_string();
    let packs = packs.iter().map(|pack| (pack.session, pack.number)).collect();
    let list = PendingList { version: 1, created, packs };
    let object = list.seal(&repo.keys.index_key(), repo.keys.kloset(), id, repo.env.entropy.bytes());
    repo.store.put_new(&layout::pending_name(id), object.into()).await?;
    Ok(id)
}
