//! Which packs a writer may refer to without asking the index: what it saw when it began.
//!
//! A parent snapshot is in the store, so all that it needs is, too; but a pack that it refers to may await deletion, or may
//! be gone with its chunks in another. Two listings tell: the pending lists, and the index, below which prunes say which
//! packs they emptied (`docs/format.md`, "A writer against prune"). No index run is read for that.

use std::collections::HashSet;

use bytes::Bytes;

use super::Repo;
use super::emptied::Emptied;
use super::error::RepoError;
use super::id::{PackId, RunId};
use super::{layout, lookup};

/// What a writer saw when it began.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// Packs that await deletion.
    pub pending: HashSet<PackId>,
    /// Packs that prunes emptied.
    emptied: HashSet<PackId>,
    /// The index runs that there were: as long as they are, no pack that one names is deleted.
    pub runs: HashSet<RunId>,
    /// The packs that index runs name, if these were read.
    named: Option<HashSet<PackId>>,
}

impl Standing {
    /// Looks; before the snapshots are listed that a parent is chosen from.
    ///
    /// # Errors
    /// [`RepoError`]; a write-only slot has no parent to look for.
    pub async fn look(repo: &Repo) -> Result<Self, RepoError> {
        let pending = lookup::load_pending(&repo.store, &repo.keys).await?;
        let index = repo.store.list(layout::INDEX).await?;
        let runs = index.iter().filter_map(|object| layout::parse_run(&object.name)).collect();
        match Emptied::of(&repo.cached, &repo.keys, &index).await {
            Ok(emptied) if emptied.damaged.is_empty() => {
                Ok(Self { pending, emptied: emptied.packs().collect(), runs, named: None })
            }
            // One was written anew meanwhile, or does not open: the index tells as well.
            Ok(_) | Err(RepoError::PruneAtWork) => {
                Ok(Self { pending, emptied: HashSet::new(), runs, named: Some(named(repo).await?) })
            }
            Err(error) => Err(error),
        }
    }

    /// Looks, and reads which packs the index names: for who was told that something it relied on is gone.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn read(repo: &Repo) -> Result<Self, RepoError> {
        let standing = Self::look(repo).await?;
        let named = match standing.named {
            Some(named) => named,
            None => named(repo).await?,
        };
        Ok(Self { named: Some(named), ..standing })
    }

    /// Tells whether what a snapshot refers to in that pack is there and stays.
    #[must_use]
    pub fn holds(&self, pack: PackId) -> bool {
        !self.pending.contains(&pack)
            && match &self.named {
                Some(named) => named.contains(&pack),
                None => !self.emptied.contains(&pack),
            }
    }

    /// Tells whether every pack holds that a snapshot refers to.
    #[must_use]
    pub fn holds_all(&self) -> bool {
        self.pending.is_empty() && self.emptied.is_empty() && self.named.is_none()
    }
}

/// Reads which packs the index names.
///
/// # Errors
/// [`RepoError`].
pub async fn named(repo: &Repo) -> Result<HashSet<PackId>, RepoError> {
    let mut named = HashSet::new();
    let take = |_, loaded: lookup::Loaded| named.extend(loaded.run.packs.iter().map(|pack| pack.id));
    lookup::for_each_run((&repo.store, &repo.cached), &repo.keys, take).await?;
    Ok(named)
}

/// From a look at what awaits deletion to a put that relies on it there must be less than any grace period, a day as a rule:
/// a machine may have slept.
const LATE_MS: i64 = 6 * 3_600_000;

/// Puts what relies on packs if `check` finds them standing; if the put was late, checks again, and takes it back.
///
/// # Errors
/// What `check` says; [`RepoError::Store`].
pub(crate) async fn put_checked(
    repo: &Repo,
    name: &str,
    object: Bytes,
    check: impl AsyncFn() -> Result<(), RepoError>,
) -> Result<(), RepoError> {
    if repo.store.is_dry() {
        return Ok(());
    }
    let looked_ms = repo.env.clock.glance_unix_ms();
    check().await?;
    repo.store.put_new(name, object).await?;
    if repo.env.clock.glance_unix_ms().saturating_sub(looked_ms) < LATE_MS {
        return Ok(());
    }
    let still = check().await;
    if let Err(RepoError::Pruned(_)) = still {
        repo.store.delete(name).await?;
    }
    still
}

/// Makes sure that packs are there and stay, before an index run names them: a prune may have taken them for left over,
/// and whoever finds a duplicate believes the run.
///
/// # Errors
/// [`RepoError::Pruned`].
pub(crate) async fn stand(repo: &Repo, packs: &[PackId]) -> Result<(), RepoError> {
    let Some(first) = packs.first() else { return Ok(()) };
    let pending = lookup::load_pending(&repo.store, &repo.keys).await?;
    let folder = match packs.iter().all(|pack| pack.session == first.session) {
        true => format!("{}/{}", layout::PACKS, first.session),
        false => layout::PACKS.to_owned(),
    };
    let there = repo.store.list(&folder).await?;
    let there: HashSet<PackId> = there.iter().filter_map(|object| layout::parse_pack(&object.name)).collect();
    let lost = packs.iter().filter(|pack| pending.contains(pack) || !there.contains(pack)).count();
    if lost == 0 { Ok(()) } else { Err(RepoError::Pruned(lost)) }
}

/// What the two listings show that come right before a snapshot is put.
pub(crate) struct LastLook {
    /// Packs that await deletion.
    pub(crate) pending: HashSet<PackId>,
    /// Whether a run is gone that was relied on.
    pub(crate) is_index_gone: bool,
}

impl LastLook {
    /// Looks, in the order that `docs/format.md` says, "A writer against prune"; `runs` were seen, or put.
    ///
    /// # Errors
    /// [`RepoError`].
    pub(crate) async fn look(repo: &Repo, mut runs: impl Iterator<Item = &RunId>) -> Result<Self, RepoError> {
        let pending = lookup::load_pending(&repo.store, &repo.keys).await?;
        let index = repo.store.list(layout::INDEX).await?;
        let there: HashSet<RunId> = index.iter().filter_map(|object| layout::parse_run(&object.name)).collect();
        Ok(Self { pending, is_index_gone: runs.any(|run| !there.contains(run)) })
    }

    /// Makes sure that these packs are there and stay.
    ///
    /// # Errors
    /// [`RepoError::Pruned`].
    pub(crate) async fn hold(&self, repo: &Repo, used: &HashSet<PackId>) -> Result<(), RepoError> {
        let mut lost: HashSet<PackId> = self.pending.intersection(used).copied().collect();
        if self.is_index_gone {
            let named = named(repo).await?;
            lost.extend(used.iter().filter(|pack| !named.contains(pack)));
        }
        if lost.is_empty() { Ok(()) } else { Err(RepoError::Pruned(lost.len())) }
    }
}
