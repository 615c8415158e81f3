//! The end of a repair: what is damaged is marked, moved aside, or named with what can be done about it.

use std::collections::HashSet;

use super::super::check::{CheckReport, Findings};
use super::super::error::RepoError;
use super::super::id::{PackId, PendingId, SnapshotId};
use super::super::index::{IndexError, IndexRun, RUN_BYTES_MAX};
use super::super::joined;
use super::super::layout::{self, SnapshotName};
use super::super::moved::{self, MovedError};
use super::super::pending::{PENDING_BYTES_MAX, PendingError, PendingList};
use super::{Left, Outcome, RepairReport, Verdict, Work};
use crate::store::StoreError;

/// Where the copies of objects lie that nobody can open: no kloset's object has such a name.
const FOLDER: &str = "damaged";
/// No object that is moved there is longer.
const BYTES_MAX: usize = moved::OBJECT_BYTES_MAX;
const _: () = assert!(BYTES_MAX >= RUN_BYTES_MAX && BYTES_MAX >= PENDING_BYTES_MAX);

/// Returns the index runs, joined ones too, lists of moved chunks and pending lists that do not open.
pub(super) fn closed(findings: &Findings) -> Vec<String> {
    let is_of_the_index = |name: &str| {
        layout::parse_run(name).is_some() || layout::parse_joined(name).is_some() || layout::parse_moved(name).is_some()
    };
    let matters = |name: &str| is_of_the_index(name) || layout::parse_pending(name).is_some();
    let objects = findings.objects.iter().filter(|(name, trouble)| matters(name) && !trouble.missing);
    objects.map(|(name, _)| name.clone()).collect()
}

/// Marks packs as a prune does: no writer relies on them from now on, and a prune deletes what nothing needs any more.
pub(super) fn mark(
    work: &Work<'_>,
    suspects: &[(PackId, Option<u64>)],
    report: &mut RepairReport,
) -> Result<(), RepoError> {
    if suspects.is_empty() {
        return Ok(());
    }
    report.marked = suspects.iter().map(|(id, _)| id.to_string()).collect();
    let repo = work.repo;
    let created = layout::timestamp(repo.env.clock.unix_ms()).to_string();
    let packs = suspects.iter().map(|(id, _)| (id.session, id.number)).collect();
    let (id, nonce) = (PendingId(repo.env.entropy.bytes()), repo.env.entropy.bytes());
    let list = PendingList { version: 1, created, packs };
    let object = list.seal(&repo.keys.index_key(), repo.keys.kloset(), id, nonce);
    Ok(work.runtime.block_on(repo.store.put_new(&layout::pending_name(id), object.into()))?)
}

/// Moves objects aside that do not open: a copy is put before the object is deleted.
///
/// What opens under the kloset's key and is not understood is of a newer program perhaps, and stays.
pub(super) fn set_aside(work: &Work<'_>, closed: &[String], report: &mut RepairReport) -> Result<(), RepoError> {
    for name in closed {
        let store = &work.repo.store;
        let content = match work.runtime.block_on(store.get(name, BYTES_MAX as u64)) {
            Err(StoreError::NotFound { .. }) => continue,
            Err(StoreError::TooLarge { .. }) => {
                let advice = "it is too long to be one of this kloset's: delete it with the store's own tools";
                report.left.push(Left { object: name.clone(), advice: advice.to_owned() });
                continue;
            }
            content => content?,
        };
        if !is_sealed_to_nobody(work, name, &content) {
            let advice = "it is sealed by a key of this kloset and not understood: use a newer program";
            report.left.push(Left { object: name.clone(), advice: advice.to_owned() });
            continue;
        }
        report.set_aside.push(name.clone());
        if work.options.apply {
            work.runtime.block_on(async {
                store.put_new(&format!("{FOLDER}/{name}"), content).await?;
                store.delete(name).await
            })?;
        }
    }
    Ok(())
}

/// Tells whether an object does not open with the kloset's key.
fn is_sealed_to_nobody(work: &Work<'_>, name: &str, content: &[u8]) -> bool {
    let keys = &work.repo.keys;
    let (key, kloset) = (keys.index_key(), keys.kloset());
    if let Some(id) = layout::parse_run(name) {
        return matches!(IndexRun::open(&key, kloset, id, content), Err(IndexError::Magic | IndexError::Sealed(_)));
    }
    if let Some(id) = layout::parse_joined(name) {
        // Whatever it is, the runs say what it says.
        return joined::open(keys, id, content).is_err();
    }
    if let Some(id) = layout::parse_moved(name) {
        return matches!(
            moved::open(keys, id, content),
            Err(MovedError::Magic | MovedError::Length | MovedError::Sealed(_))
        );
    }
    layout::parse_pending(name).is_some_and(|id| {
        let opened = PendingList::open(&key, kloset, id, content);
        matches!(opened, Err(PendingError::Magic | PendingError::Sealed(_)))
    })
}

/// Names what a repair cannot put right, with what can be done.
pub(super) fn leave(check: &CheckReport, report: &mut RepairReport) {
    let told: HashSet<SnapshotId> = report.snapshots.iter().map(|verdict| verdict.snapshot).collect();
    for object in check.damaged.iter().map(|damage| &damage.object) {
        let advice = if let Some(name) = SnapshotName::parse(object) {
            if !told.contains(&name.id) {
                let outcome = Outcome::Unreadable;
                report.snapshots.push(Verdict { snapshot: name.id, outcome, paths: Vec::new(), paths_total: 0 });
            }
            format!("nothing of it can be read: `kloset-mount forget {} --apply` removes it", name.id.short())
        } else if layout::parse_slot(object).is_some() {
            "its secret opens nothing: add it anew with `kloset-mount key add`, and delete this object with the store's own \
             tools"
                .to_owned()
        } else if object == layout::HEADER {
            "put back a copy of it: without it nobody opens the kloset".to_owned()
        } else {
            continue;
        };
        report.left.push(Left { object: object.clone(), advice });
    }
}
