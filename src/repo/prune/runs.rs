//! Index runs written anew: without the packs that go, and few where there were many.
//!
//! New runs are put before old ones are deleted, and old ones are deleted before packs are. Two prunes may do so at once:
//! each looks again after its new runs are put, and gives up if an old one is gone; and each looks again before it deletes
//! packs, and gives up if a run has come that names one. Of the two whoever came second sees the other.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::super::Repo;
use bytes::Bytes;

use super::super::error::RepoError;
use super::super::id::{PackId, RunId};
use super::super::index::{IndexEntry, IndexRun, RUN_ENTRIES_MAX};
use super::super::layout;
use super::super::lookup;
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
    let joins = look.runs.iter().filter(|run| small(run)).count() >= SMALL_RUNS_MIN;
    let is_chosen = |run: &Run| stale(run) || joins && small(run);
    (0..).zip(&look.runs).filter(|(_, run)| is_chosen(run)).map(|(at, _)| at).collect()
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
    let mut joined = Joined { is_kept: Box::new(|id| !gone.contains(id) && there(id)), ..Joined::default() };
    let old: Vec<_> = rewritten.iter().map(|at| look.runs[*at].id).collect();
    let mut put = Vec::new();
    for batch in batches(look, rewritten) {
        let fetched = batch.iter().filter(|run| run.kept.is_none()).map(|run| (run.id, run.bytes)).collect();
        batch.iter().filter_map(|run| run.kept.as_ref()).for_each(|run| joined.add(run));
        let vanished = lookup::for_each_of(&repo.store, &repo.keys, fetched, |_, run| joined.add(&run)).await?;
        for run in joined.full.drain(..) {
            put.push(put_run(repo, run).await?);
        }
        if vanished > 0 {
            return give_up(repo, &put).await;
        }
    }
    joined.close();
    for run in joined.full.drain(..) {
        put.push(put_run(repo, run).await?);
    }
    let now: BTreeSet<_> = listed(repo).await?.into_iter().map(|(id, _)| id).collect();
    if old.iter().any(|id| !now.contains(id)) {
        return give_up(repo, &put).await;
    }
    let names: Vec<_> = old.iter().map(|id| layout::run_name(*id)).collect();
    repo.store.delete_all(&names).await?;
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
    let known: HashSet<_> = look.runs.iter().map(|run| run.id).chain(put.iter().copied()).collect();
    let gone: HashSet<PackId> = gone.iter().map(|place| look.packs.at(*place).id).collect();
    let new: Vec<_> = listed(repo).await?.into_iter().filter(|(id, _)| !known.contains(id)).collect();
    let mut names_one = false;
    lookup::for_each_of(&repo.store, &repo.keys, new, |_, run| {
        names_one |= run.packs.iter().any(|pack| gone.contains(&pack.id));
    })
    .await?;
    if names_one { Err(RepoError::PruneAtWork) } else { Ok(()) }
}

async fn listed(repo: &Repo) -> Result<Vec<(RunId, u64)>, RepoError> {
    let objects = repo.store.list(layout::INDEX).await?;
    Ok(objects.iter().filter_map(|o| Some((layout::parse_run(&o.name)?, o.bytes))).collect())
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

/// Runs being joined.
struct Joined<'a> {
    is_kept: Box<dyn Fn(&PackId) -> bool + Send + 'a>,
    open: IndexRun,
    places: HashMap<PackId, u32>,
    full: Vec<IndexRun>,
}

impl Default for Joined<'_> {
    fn default() -> Self {
        let (open, places, full) = (IndexRun::default(), HashMap::new(), Vec::new());
        Self { is_kept: Box::new(|_| true), open, places, full }
    }
}

impl Joined<'_> {
    fn add(&mut self, run: &IndexRun) {
        if self.open.entries.len() + run.entries.len() > RUN_ENTRIES_MAX {
            self.close();
        }
        let mut places = Vec::with_capacity(run.packs.len());
        for pack in &run.packs {
            let kept = (self.is_kept)(&pack.id).then(|| {
                let next = u32::try_from(self.open.packs.len()).expect("a run is closed long before");
                *self.places.entry(pack.id).or_insert_with(|| {
                    self.open.packs.push(*pack);
                    next
                })
            });
            places.push(kept);
        }
        let kept = run.entries.iter().filter_map(|e| Some(IndexEntry { pack: places[e.pack as usize]?, ..*e }));
        self.open.entries.extend(kept);
    }

    fn close(&mut self) {
        let mut run = std::mem::take(&mut self.open);
        self.places.clear();
        run.entries.sort_unstable();
        run.entries.dedup();
        if !run.packs.is_empty() {
            self.full.push(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::id::{ChunkId, SessionId};
    use super::super::super::pack::{Footer, FrameEntry, PackKind};
    use super::*;

    fn pack(number: u32) -> PackId {
        PackId { session: SessionId([3; 32]), number }
    }

    fn run(packs: &[u32]) -> IndexRun {
        let mut run = IndexRun::default();
        for number in packs {
            let chunks = vec![(ChunkId([u8::try_from(*number).unwrap(); 32]), 10), (ChunkId([200; 32]), 20)];
            let frames = vec![FrameEntry { offset: 8, bytes: 70, chunks }];
            run.add_pack(pack(*number), 500, &Footer { version: 1, kind: PackKind::Data, frames });
        }
        run.entries.sort_unstable();
        run
    }

    #[test]
    fn joined_runs_say_what_all_said_once_and_nothing_of_packs_that_go() {
        let mut joined = Joined { is_kept: Box::new(|id| id.number != 2), ..Joined::default() };
        for packs in [&[1, 2, 3][..], &[3, 4], &[2]] {
            joined.add(&run(packs));
        }
        joined.close();
        joined.close();
        let [only] = &joined.full[..] else { panic!("{} runs", joined.full.len()) };
        assert_eq!(only.packs.iter().map(|p| p.id.number).collect::<Vec<_>>(), [1, 3, 4]);
        let places = |id| only.places(id).map(|p| p.location.pack.number).collect::<Vec<_>>();
        assert_eq!(places(ChunkId([200; 32])), [1, 3, 4]);
        assert_eq!((places(ChunkId([3; 32])), places(ChunkId([2; 32]))), (vec![3], vec![]));
        assert_eq!(only.entries.len(), 6);
    }
}
