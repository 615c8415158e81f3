//! The index, made again from what packs say of themselves; and what it says is in packs that cannot be read.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};

use super::super::Repo;
use super::super::check::{self, Findings};
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId, RunId};
use super::super::index::{IndexRun, RUN_ENTRIES_MAX};
use super::super::layout;
use super::super::lookup::Index;
use super::super::pack::{self, FOOTER_BYTES_MAX, Footer, MAGIC, PackKind, SealedFooter, TRAILER_BYTES};
use super::super::tree::{ChunkRef, TreeRef};
use super::{RepairReport, State, Work};
use crate::store::StoreError;

/// Footers fetched at once: two small requests each.
const FETCHES: usize = 16;
/// No sealed footer is longer: zstd may lose a little on what it cannot shrink.
const SEALED_FOOTER_BYTES_MAX: u64 = FOOTER_BYTES_MAX as u64 + (1 << 20);

/// Lists packs that no index run names in runs of their own, as far as their footers open; tells whether there are any.
pub(super) async fn rebuild(repo: &Repo, findings: &mut Findings) -> Result<bool, RepoError> {
    let is_stray = |pack: &check::Pack| pack.indexed.is_none() && !pack.pending && pack.trouble.is_none();
    let mut stray: Vec<(PackId, u64)> = findings
        .packs
        .iter()
        .filter(|(_, pack)| is_stray(pack))
        .filter_map(|(id, pack)| Some((*id, pack.listed?)))
        .collect();
    stray.sort_unstable();
    let mut footers = futures::stream::iter(stray)
        .map(|(id, bytes)| async move { Ok::<_, RepoError>((id, bytes, footer(repo, id, bytes).await?)) })
        .buffered(FETCHES);
    let mut run = IndexRun::default();
    let mut runs = Vec::new();
    while let Some((id, bytes, footer)) = footers.try_next().await? {
        let Some(footer) = footer else { continue };
        let entries: usize = footer.frames.iter().map(|frame| frame.chunks.len()).sum();
        if run.entries.len() + entries > RUN_ENTRIES_MAX && !run.packs.is_empty() {
            runs.push(std::mem::take(&mut run));
        }
        run.add_pack(id, bytes, &footer);
    }
    drop(footers);
    runs.extend((!run.packs.is_empty()).then_some(run));
    for mut run in runs {
        run.entries.sort_unstable();
        check::learn(findings, &run);
        findings.rebuilt.push((RunId(repo.env.entropy.bytes()), run));
    }
    Ok(!findings.rebuilt.is_empty())
}

/// Fetches a pack's footer; nothing if it is gone or does not open: what needs it is told by who follows snapshots.
async fn footer(repo: &Repo, id: PackId, bytes: u64) -> Result<Option<Footer>, RepoError> {
    let name = id.to_string();
    let get = |from: u64, to: u64| {
        let name = &name;
        async move {
            match repo.store.get_range(name, from..to).await {
                Err(StoreError::NotFound { .. } | StoreError::OutOfRange { .. }) => Ok(None),
                content => Ok::<_, RepoError>(Some(content?)),
            }
        }
    };
    let Some(trailer_at) = bytes.checked_sub(TRAILER_BYTES as u64) else { return Ok(None) };
    let Some(trailer) = get(trailer_at, bytes).await? else { return Ok(None) };
    let Some(length) = trailer.first_chunk().map(|length| u64::from(u32::from_le_bytes(*length))) else {
        return Ok(None);
    };
    let Some(offset) = trailer_at.checked_sub(length).filter(|at| *at >= MAGIC.len() as u64) else { return Ok(None) };
    if length > SEALED_FOOTER_BYTES_MAX {
        return Ok(None);
    }
    let Some(sealed) = get(offset, trailer_at).await? else { return Ok(None) };
    let Ok(key) = repo.keys.session_key(&id.session) else { return Ok(None) };
    let footer = SealedFooter { offset, sealed: &sealed };
    Ok(pack::open_footer(&key, repo.keys.kloset(), id, footer).ok())
}

/// Puts the runs that were made again.
pub(super) fn put(work: &Work<'_>, state: &mut State, report: &mut RepairReport) -> Result<(), RepoError> {
    for (id, run) in &mut state.findings.rebuilt {
        report.packs_listed += run.packs.len() as u64;
        let (keys, nonce) = (&work.repo.keys, work.repo.env.entropy.bytes());
        run.entries.sort_unstable(); // it is asked for places later
        let object = run.clone().seal(&keys.index_key(), keys.kloset(), *id, nonce);
        work.runtime.block_on(work.repo.store.put_new(&layout::run_name(*id), object.into()))?;
    }
    Ok(())
}

/// Adds to what is lost what the index says is in frames that cannot be read, and is in no other.
///
/// A tree that is lost hides what is below it; the index knows of that, too.
pub(super) async fn add_lost(repo: &Repo, findings: &mut Findings) -> Result<(), RepoError> {
    if findings.packs.values().all(|pack| pack.trouble.is_none()) {
        return Ok(());
    }
    let index = check::readable_index(repo, findings).await?;
    let mut trees: HashMap<ChunkId, TreeRef> = HashMap::new();
    let mut content: HashMap<ChunkId, ChunkRef> = HashMap::new();
    let holds =
        |id: &PackId, offset, bytes| findings.packs.get(id).is_some_and(|pack| pack.holds(offset, bytes).is_ok());
    for run in &index.runs {
        let troubled = |id: &PackId| findings.packs.get(id).is_none_or(|pack| pack.trouble.is_some());
        let suspect: Vec<bool> = run.packs.iter().map(|pack| troubled(&pack.id)).collect();
        for entry in run.entries.iter().filter(|entry| suspect.get(entry.pack as usize) == Some(&true)) {
            let placed = run.placed(entry);
            let at = placed.location;
            let Some(pack) = run.packs.get(entry.pack as usize) else { continue };
            if holds(&pack.id, at.frame_offset, at.frame_bytes) {
                continue;
            }
            match pack.kind {
                PackKind::Data => {
                    content.insert(entry.id, ChunkRef { id: entry.id, bytes: placed.bytes, location: at });
                }
                PackKind::Tree => drop(trees.insert(entry.id, TreeRef::from_placed(entry.id, &placed))),
            }
        }
    }
    let is_elsewhere = |index: &Index, id: &ChunkId| {
        index.places(*id).any(|p| holds(&p.location.pack, p.location.frame_offset, p.location.frame_bytes))
    };
    content.retain(|id, _| !is_elsewhere(&index, id));
    trees.retain(|id, _| !is_elsewhere(&index, id));
    // What a snapshot refers to goes by the snapshot's reference.
    content.extend(findings.lost.content.drain());
    trees.extend(findings.lost.trees.drain());
    (findings.lost.content, findings.lost.trees) = (content, trees);
    Ok(())
}
