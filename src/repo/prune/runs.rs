//! Index runs written anew: without the packs that go, and few where there were many.
//!
//! New runs are put before old ones are deleted, and old ones are deleted before packs are. Two prunes may do so at once:
//! each looks again after its new runs are put, and gives up if an old one is gone; and each looks again before it deletes
//! packs, and gives up if a run has come that names one. Of the two whoever came second sees the other.

use std::collections::{BTreeSet, HashSet};

use super::super::Repo;
use bytes::Bytes;

use super::super::error::RepoError;
use super::super::id::{PackId, RunId};
use super::super::index::{IndexRun, RUN_ENTRIES_MAX};
use super::super::layout;
use super::super::lookup::{self, Listed, Source};
use super::super::merge::Merger;
use super::super::standing;
use super::PruneOptions;
use super::look::{Look, Run};

/// A run with fewer entries is joined with others,
const SMALL_ENTRIES: usize = RUN_ENTRIES_MAX / 4;
/// once there are so many of them.
const SMALL_RUNS_MIN: usize = 8;

/// Returns the places of the runs to be written anew when these packs go.
pub(super) fn to_rewrite(look: &Look, options: &PruneOptions, gone: &[u32]) -> Vec<usize> {
    let gone: HashSet<u32> = gone.iter().copied().collect();
    let stale = |run: &Run| run.packs.iter().any(|p| gone.contains(p) || look.packs.at(*p).listed.is_none());
    // Of a backup that is under way: it would load the whole index to see that nothing was lost.
    let is_old = |run: &Run| look.now_ms.saturating_sub(run.put_ms) >= options.grace_ms();
    let small = |run: &Run| run.entries < SMALL_ENTRIES && is_old(run);
    let joins = look.runs.iter().filter(|run| small(run)).map(|run| run.ids.len()).sum::<usize>() >= SMALL_RUNS_MIN;
    let is_chosen = |run: &Run| stale(run) || joins && small(run);
    (0..).zip(&look.runs).filter(|(_, run)| is_chosen(run)).map(|(at, _)| at).collect()
}

/// Returns the names of joined runs that say nothing: other joined runs say it, or not all is there that they stand for.
pub(super) fn joined_in_vain(look: &Look) -> Vec<String> {
    let used: HashSet<Source> = look.runs.iter().map(|run| run.source).collect();
    let all = look.index.joined.iter().map(|(id, _)| *id);
    all.filter(|id| !used.contains(&Source::Joined(*id))).map(layout::joined_name).collect()
}

/// Returns about how many runs they become.
pub(super) fn become_of(look: &Look, rewritten: &[usize]) -> usize {
    let entries: usize = rewritten.iter().map(|at| look.runs[*at].entries).sum();
    entries.div_ceil(RUN_ENTRIES_MAX)
}

/// Writes runs anew without these packs, and without those that are not there.
///
/// # Errors
/// [`RepoError::PruneAtWork`]; nothing is lost then.
pub(super) async fn rewrite(
    repo: &Repo,
    look: &Look,
    rewritten: &[usize],
    gone: &[u32],
) -> Result<Vec<RunId>, RepoError> {
    if rewritten.is_empty() {
        return Ok(Vec::new());
    }
    let gone: HashSet<PackId> = gone.iter().map(|place| look.packs.at(*place).id).collect();
    let there = |id: &PackId| look.packs.find(*id).is_some_and(|p| look.packs.at(p).listed.is_some());
    let mut merger = Merger::keeping(|id| !gone.contains(id) && there(id));
    let old: Vec<&Run> = rewritten.iter().map(|at| &look.runs[*at]).collect();
    let mut put = Vec::new();
    for batch in batches(look, rewritten) {
        let fetched = batch.iter().filter(|run| run.kept.is_none()).map(|run| (run.source, run.bytes)).collect();
        batch.iter().filter_map(|run| run.kept.as_ref()).for_each(|run| merger.add(run));
        let vanished =
            lookup::for_each_of(&repo.store, &repo.keys, fetched, |_, loaded| merger.add(&loaded.run)).await?;
        for run in merger.full.drain(..) {
            put.push(put_run(repo, run).await?);
        }
        if vanished > 0 {
            return give_up(repo, &put).await;
        }
    }
    merger.close();
    for run in merger.full.drain(..) {
        put.push(put_run(repo, run).await?);
    }
    let now: BTreeSet<_> = listed(repo).await?.into_iter().map(|(id, _)| id).collect();
    if old.iter().flat_map(|run| &run.ids).any(|id| !now.contains(id)) {
        return give_up(repo, &put).await;
    }
    repo.store.delete_all(&old.iter().flat_map(|run| run.names()).collect::<Vec<_>>()).await?;
    Ok(put)
}

/// Cuts runs into batches of about as many entries as one holds at most, so that they need not all be in memory.
fn batches<'a>(look: &'a Look, rewritten: &[usize]) -> Vec<Vec<&'a Run>> {
    let (mut batches, mut entries) = (vec![Vec::new()], 0);
    for run in rewritten.iter().map(|at| &look.runs[*at]) {
        entries += run.entries;
        if entries > RUN_ENTRIES_MAX {
            batches.push(Vec::new());
            entries = run.entries;
        }
        batches.last_mut().expect("there is one at least").push(run);
    }
    batches
}

/// Takes new runs back: another prune has written anew what they were made of.
async fn give_up(repo: &Repo, put: &[RunId]) -> Result<Vec<RunId>, RepoError> {
    let names: Vec<_> = put.iter().map(|id| layout::run_name(*id)).collect();
    repo.store.delete_all(&names).await?;
    Err(RepoError::PruneAtWork)
}

/// Fails if a run that was not there before names one of the packs that are to be deleted.
///
/// # Errors
/// [`RepoError::PruneAtWork`].
pub(super) async fn none_is_named(repo: &Repo, look: &Look, put: &[RunId], gone: &[u32]) -> Result<(), RepoError> {
    let known: HashSet<_> = look.runs.iter().flat_map(|run| &run.ids).chain(put).copied().collect();
    let gone: HashSet<PackId> = gone.iter().map(|place| look.packs.at(*place).id).collect();
    let new = listed(repo).await?.into_iter().filter(|(id, _)| !known.contains(id));
    let new = new.map(|(id, bytes)| (Source::Run(id), bytes)).collect();
    let mut names_one = false;
    lookup::for_each_of(&repo.store, &repo.keys, new, |_, loaded| {
        names_one |= loaded.run.packs.iter().any(|pack| gone.contains(&pack.id));
    })
    .await?;
    if names_one { Err(RepoError::PruneAtWork) } else { Ok(()) }
}

async fn listed(repo: &Repo) -> Result<Vec<(RunId, u64)>, RepoError> {
    Ok(Listed::of(&repo.store.list(layout::INDEX).await?).runs)
}

async fn put_run(repo: &Repo, run: IndexRun) -> Result<RunId, RepoError> {
    let (id, object) = seal(repo, run).await;
    repo.store.put_new(&layout::run_name(id), object).await?;
    Ok(id)
}

/// Puts a run that names new packs of one session.
pub(super) async fn put_new(repo: &Repo, run: IndexRun) -> Result<(), RepoError> {
    let packs: Vec<_> = run.packs.iter().map(|pack| pack.id).collect();
    let (id, object) = seal(repo, run).await;
    let stand = async || standing::stand(repo, &packs).await;
    match standing::put_checked(repo, &layout::run_name(id), object, stand).await {
        Err(RepoError::Pruned(_)) => Err(RepoError::PruneAtWork),
        put => put,
    }
}

async fn seal(repo: &Repo, run: IndexRun) -> (RunId, Bytes) {
    let (id, nonce) = (RunId(repo.env.entropy.bytes()), repo.env.entropy.bytes());
    let keys = repo.keys.clone();
    (id, repo.cpu.run(move || run.seal(&keys.index_key(), keys.kloset(), id, nonce)).await.into())
}
