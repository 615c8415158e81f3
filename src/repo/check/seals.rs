//! The seals of packs, looked at without any key: for the server's own cron.
//!
//! A pack ends in a digest of all before it (`docs/format.md`, "Pack"), which tells bit rot and truncation from what was
//! written. It proves nothing against who can write to the store. Index runs, snapshots, key slots and pending lists are
//! sealed under keys and cannot be looked at here; neither can it be told what is missing.

use std::collections::HashSet;

use futures::StreamExt;
use tokio::sync::Semaphore;

use super::super::error::RepoError;
use super::super::header::{HEADER_BYTES_MAX, Header};
use super::super::id::PackId;
use super::super::layout;
use super::super::pack::{self, PACK_BYTES_MAX};
use super::objects::{Fetched, fetch, is_ours};
use super::packs::{PACKS_AT_ONCE, UNDER_WAY_KIB, room_kib};
use super::report::{CheckReport, Counts, Notes, damage};
use super::{CheckProgress, CheckStage, Monitor, NoteKind, Subset, Trouble};
use crate::cpu::Cpu;
use crate::store::{Store, StoreError};

/// Which packs are looked at.
#[derive(Clone, Debug, Default)]
pub struct SealsOptions {
    /// The part of the packs that this is about; without, all of them.
    pub subset: Option<Subset>,
    /// Packs that were found whole before and are not fetched again.
    pub whole: HashSet<PackId>,
    /// The time by which the part is chosen, milliseconds since 1970.
    pub unix_ms: i64,
}

/// Verifies the digests of packs.
///
/// # Errors
/// [`RepoError::NoKloset`]; a store that cannot be asked. Damage is no error but a finding.
pub async fn check_seals(
    store: &Store,
    cpu: &Cpu,
    options: &SealsOptions,
    monitor: Monitor<'_>,
) -> Result<CheckReport, RepoError> {
    let (mut report, mut packs) = list(store).await?;
    report.part = options.subset.map(|subset| subset.part(options.unix_ms, report.counts.bytes));
    packs.retain(|(id, _)| !options.whole.contains(id) && report.part.is_none_or(|part| part.holds(*id)));
    let total = packs.len() as u64;
    let under_way = Semaphore::new(UNDER_WAY_KIB as usize);
    let verdicts = futures::stream::iter(packs).map(|(id, bytes)| {
        let room = under_way.acquire_many(room_kib(bytes));
        async move { (id, room.await, look_at(store, cpu, id).await) }
    });
    let mut verdicts = verdicts.buffer_unordered(PACKS_AT_ONCE);
    let (mut done, mut bytes) = (0, 0);
    while let Some((id, room, verdict)) = verdicts.next().await {
        let (length, problem) = verdict?;
        drop(room);
        (done, bytes) = (done + 1, bytes + length);
        let whole = problem.is_none().then_some(id);
        monitor(CheckProgress { stage: CheckStage::Packs, done, total, bytes, whole });
        report.damaged.extend(problem.map(|p| damage(id.to_string(), Trouble { problem: p, ..Trouble::default() })));
    }
    (report.counts.packs_read, report.counts.bytes_read) = (done, bytes);
    report.damaged.sort_unstable_by(|a, b| a.object.cmp(&b.object));
    Ok(report)
}

/// Lists the packs with their lengths, and begins the report with what else is there.
async fn list(store: &Store) -> Result<(CheckReport, Vec<(PackId, u64)>), RepoError> {
    match store.get(layout::HEADER, HEADER_BYTES_MAX).await {
        Err(StoreError::NotFound { .. } | StoreError::NoFolder { .. }) => {
            return Err(RepoError::NoKloset(store.description().to_owned()));
        }
        header => drop(Header::decode(&header?)?),
    }
    let (mut notes, mut counts, mut packs) = (Notes::default(), Counts::default(), Vec::new());
    for object in store.list("").await? {
        if let Some(id) = layout::parse_pack(&object.name) {
            (counts.packs, counts.bytes) = (counts.packs + 1, counts.bytes + object.bytes);
            packs.push((id, object.bytes));
        } else if layout::parse_slot(&object.name).is_some() {
            counts.key_slots += 1;
        } else if !is_ours(&object.name) {
            notes.add(NoteKind::Foreign, &object.name, object.bytes);
        }
    }
    Ok((CheckReport { counts, notes: notes.into_list(), ..CheckReport::default() }, packs))
}

/// Fetches a pack; returns its length and what is wrong with it.
async fn look_at(store: &Store, cpu: &Cpu, id: PackId) -> Result<(u64, Option<String>), RepoError> {
    Ok(match fetch(store, &id.to_string(), PACK_BYTES_MAX).await? {
        Fetched::Missing => (0, None), // deleted by a prune meanwhile, as far as can be told from here
        Fetched::TooLong => (0, Some("longer than a pack can be".to_owned())),
        Fetched::Content(content) => {
            let bytes = content.len() as u64;
            let verdict = cpu.run(move || pack::verify_digest(&content).err()).await;
            (bytes, verdict.map(|error| error.to_string()))
        }
    })
}
