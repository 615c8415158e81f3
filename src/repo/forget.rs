//! Forgetting snapshots: what there is, what a policy makes of it, and the deletion.
//!
//! Only snapshots are deleted, each one object: a crash leaves each whole or gone, and what it referred to stays until a
//! prune (`docs/format.md`, "Order of writes, reads, deletes"). A snapshot that cannot be opened belongs to no group: no
//! policy forgets it. Who may forget a kloset's snapshots is decided by the store's key, not here.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{self, SnapshotName};
use super::policy::{Candidate, Rule, decide};
use super::snapshot::{ByteText, Manifest};
use super::{Repo, RepoError};
use crate::store::{Deleted, StoreError};

/// Manifests held at once with the lists that are of no use here.
const MANIFESTS_AT_ONCE: usize = 64;

/// A snapshot that can be opened.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// When it was put, by the clock of the store.
    pub put_unix_ms: i64,
    /// Its manifest, without the lists of excludes and of errors.
    pub manifest: Manifest,
}

impl Snapshot {
    fn candidate(&self) -> Candidate {
        let (tags, incomplete) = (self.manifest.tags.clone(), self.manifest.incomplete);
        Candidate { name: self.name, put_unix_ms: self.put_unix_ms, tags, incomplete }
    }

    /// Tells whether its own time and the store's are more than a day apart.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.candidate().is_doubtful()
    }
}

/// What was found of the snapshots that were looked at.
#[derive(Debug, Default)]
pub struct Found {
    /// Those that can be opened, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// Those that are damaged, with what is wrong.
    pub damaged: Vec<(SnapshotName, RepoError)>,
}

/// By what snapshots are told apart: a policy is held for each group by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupBy {
    /// By host.
    pub host: bool,
    /// By source paths, in any order.
    pub paths: bool,
    /// By tags, in any order.
    pub tags: bool,
}

impl Default for GroupBy {
    fn default() -> Self {
        Self { host: true, paths: true, tags: false }
    }
}

/// What the snapshots of a group have in common; nothing where they are not told apart by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// The host.
    pub host: Option<String>,
    /// The source paths.
    pub paths: Option<BTreeSet<ByteText>>,
    /// The tags.
    pub tags: Option<BTreeSet<String>>,
}

impl GroupBy {
    fn key(self, manifest: &Manifest) -> GroupKey {
        GroupKey {
            host: self.host.then(|| manifest.host.clone()),
            paths: self.paths.then(|| manifest.paths.iter().cloned().collect()),
            tags: self.tags.then(|| manifest.tags.iter().cloned().collect()),
        }
    }
}

/// Snapshots of a group, and what is to become of each.
#[derive(Clone, Debug)]
pub struct Group {
    /// What they have in common.
    pub key: GroupKey,
    /// Each with why it is kept; without a reason it is to be forgotten.
    pub decisions: Vec<(Snapshot, Vec<String>)>,
}

impl Group {
    /// Returns the snapshots to be forgotten.
    pub fn forgotten(&self) -> impl Iterator<Item = &Snapshot> {
        self.decisions.iter().filter(|(_, reasons)| reasons.is_empty()).map(|(snapshot, _)| snapshot)
    }

    /// Tells whether nothing of it would be left.
    #[must_use]
    pub fn would_be_empty(&self) -> bool {
        self.forgotten().count() == self.decisions.len()
    }
}

/// Looks at all snapshots.
///
/// # Errors
/// [`RepoError::WriteOnly`] with a key that cannot read; a store that cannot be asked. Damage is no error but a finding.
pub async fn find_all(repo: &Repo) -> Result<Found, RepoError> {
    find(repo, |_| true).await
}

/// Looks at the snapshots of these names.
///
/// # Errors
/// As [`find_all`].
pub async fn find_named(repo: &Repo, names: &BTreeSet<SnapshotName>) -> Result<Found, RepoError> {
    find(repo, |name| names.contains(name)).await
}

async fn find(repo: &Repo, is_wanted: impl Fn(&SnapshotName) -> bool) -> Result<Found, RepoError> {
    if !repo.keys.can_read() {
        return Err(RepoError::WriteOnly);
    }
    let objects = repo.store.list(layout::SNAPSHOTS).await?;
    let named = objects.iter().filter_map(|o| Some((SnapshotName::parse(&o.name)?, o.modified_unix_ms)));
    let put: BTreeMap<_, _> = named.filter(|(name, _)| is_wanted(name)).collect();
    let names: Vec<_> = put.keys().copied().collect();
    let mut found = Found::default();
    for names in names.chunks(MANIFESTS_AT_ONCE) {
        for (name, manifest) in repo.manifests(names).await {
            match manifest {
                Ok(manifest) => {
                    let manifest = Manifest { errors: Vec::new(), excludes: Vec::new(), ..manifest };
                    found.snapshots.push(Snapshot { name, put_unix_ms: put[&name], manifest });
                }
                Err(error @ RepoError::Damaged { .. }) => found.damaged.push((name, error)),
                Err(RepoError::NoSnapshot(_)) => {} // forgotten since it was listed
                Err(error) => return Err(error),
            }
        }
    }
    Ok(found)
}

/// Holds a policy against each group.
#[must_use]
pub fn plan(snapshots: Vec<Snapshot>, by: GroupBy, rules: &[Rule]) -> Vec<Group> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for snapshot in snapshots {
        groups.entry(by.key(&snapshot.manifest)).or_default().push(snapshot);
    }
    let decided = |(key, snapshots): (_, Vec<Snapshot>)| {
        let candidates: Vec<_> = snapshots.iter().map(Snapshot::candidate).collect();
        Group { key, decisions: snapshots.into_iter().zip(decide(&candidates, rules)).collect() }
    };
    groups.into_iter().map(decided).collect()
}

/// How far a deletion came.
#[derive(Debug, Default)]
pub struct Forgotten {
    /// What is gone.
    pub names: Vec<SnapshotName>,
    /// The first failure; nothing was begun after it.
    pub failure: Option<StoreError>,
}

/// Deletes snapshots. One that is gone already counts as deleted. After a failure no other deletion is begun, and those
/// under way are waited for, so that what is reported is so.
pub async fn forget(repo: &Repo, names: &[SnapshotName]) -> Forgotten {
    let objects: Vec<_> = names.iter().map(SnapshotName::object).collect();
    let Deleted { gone, failure } = repo.store.delete_each(&objects).await;
    let names = names.iter().zip(gone).filter(|(_, is_gone)| *is_gone).map(|(name, _)| *name).collect();
    Forgotten { names, failure }
}
