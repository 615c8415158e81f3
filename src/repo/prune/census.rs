//! The index held against what is needed: how much of each pack is, and what a pack that is to be deleted holds a copy of.
//!
//! Index runs pass by one after another and are not kept. Of a run only what it claims is known; so before the pack of a
//! copy goes, the chunk was read where the snapshots have it, or a prune moved it there, which is as good.

use std::collections::{HashMap, HashSet};

use futures::{StreamExt, TryStreamExt};

use super::super::Repo;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId};
use super::super::index::IndexRun;
use super::super::lookup::{self, Loaded};
use super::super::pack::PackKind;
use super::super::tree::Placed;
use super::look::{Look, Mark, Run};
use super::moves::Moves;
use super::{Progress, Stage};

/// Chunks read at once.
const READS: usize = 16;
/// Entries of runs that are kept at most, about 30 MB, so that small runs are not fetched again to be joined.
const KEPT_ENTRIES_MAX: usize = 1 << 19;
/// Memory of the reader that reads them.
const READER_BYTES: usize = 32 << 20;

/// Chunks that snapshots have elsewhere, with the places of the packs that hold another copy.
pub(super) type Copies = HashMap<ChunkId, Vec<u32>>;

/// Reads all index runs; returns what packs that are due hold copies of.
///
/// # Errors
/// [`RepoError::PruneAtWork`] if a run has vanished: what it named is not known.
pub(super) async fn take(
    repo: &Repo,
    look: &mut Look,
    moves: &mut Moves,
    progress: Progress<'_>,
) -> Result<Copies, RepoError> {
    let due = look.packs.filter(|pack| pack.mark == Mark::Due);
    moves.fetch(repo, look, due).await?;
    let (index, total, mut done) = (look.index.clone(), look.index.runs.len() as u64, 0);
    let (mut copies, mut counted, mut kept) = (Copies::new(), HashSet::new(), 0);
    let vanished = lookup::for_each_listed(&repo.store, &repo.keys, index, |source, Loaded { bytes, ids, run }| {
        progress(Stage::Index, done, total);
        done += ids.len() as u64;
        let packs = learn(look, &run, (&*moves, &mut counted, &mut copies));
        let put_ms = ids.iter().map(|id| look.runs_put_ms[id]).max().unwrap_or(look.now_ms);
        let entries = run.entries.len();
        let is_kept = kept + entries <= KEPT_ENTRIES_MAX;
        kept += if is_kept { entries } else { 0 };
        look.runs.push(Run { ids, source, bytes, put_ms, entries, packs, kept: is_kept.then_some(run) });
    })
    .await?;
    if vanished > 0 { Err(RepoError::PruneAtWork) } else { Ok(copies) }
}

/// Learns what a run says; returns the places of its packs.
fn learn(
    look: &mut Look,
    run: &IndexRun,
    (moves, counted, copies): (&Moves, &mut HashSet<u32>, &mut Copies),
) -> Vec<u32> {
    let places: Vec<u32> = run.packs.iter().map(|pack| look.packs.place(pack.id)).collect();
    // A crash between a new run and the deletion of an old one leaves packs that two name.
    let counts: Vec<bool> = places.iter().map(|place| counted.insert(*place)).collect();
    for (pack, place) in run.packs.iter().zip(&places) {
        look.packs.at_mut(*place).kind = Some(pack.kind);
    }
    for entry in &run.entries {
        let place = places[entry.pack as usize];
        let pack = look.packs.at_mut(place);
        if counts[entry.pack as usize] {
            pack.raw += u64::from(entry.chunk_bytes);
            if look.needed.has(entry.id, place) {
                pack.raw_needed += u64::from(entry.chunk_bytes);
            }
        }
        let is_copy = pack.mark == Mark::Due && !pack.is_needed && look.needed.has_any(entry.id);
        if is_copy && !was_moved(look, moves, place, entry.id) {
            copies.entry(entry.id).or_default().push(place);
        }
    }
    places
}

/// Tells whether a prune moved a chunk out of a pack to where the snapshots have it.
fn was_moved(look: &mut Look, moves: &Moves, place: u32, id: ChunkId) -> bool {
    moves.places(look.packs.at(place).id, id).any(|placed| {
        let to = look.packs.place(placed.location.pack);
        look.packs.at(to).stays() && look.needed.has(id, to)
    })
}

/// Reads the chunks where the snapshots have them; the packs of those that the index does not show there are spared.
///
/// # Errors
/// [`RepoError::Damaged`] if one is not there.
pub(super) async fn verify(repo: &Repo, look: &mut Look, copies: Copies) -> Result<(), RepoError> {
    if copies.is_empty() {
        return Ok(());
    }
    let mut homes: HashMap<ChunkId, (PackKind, Placed)> = HashMap::new();
    let runs = look.runs.iter().map(|run| (run.source, run.bytes)).collect();
    let vanished = lookup::for_each_of(&repo.store, &repo.keys, runs, |_, Loaded { run, .. }| {
        for entry in run.entries.iter().filter(|entry| copies.contains_key(&entry.id)) {
            let pack = &run.packs[entry.pack as usize];
            let place = look.packs.place(pack.id);
            if look.packs.at(place).stays() && look.needed.has(entry.id, place) {
                homes.insert(entry.id, (pack.kind, run.placed(entry)));
            }
        }
    })
    .await?;
    if vanished > 0 {
        return Err(RepoError::PruneAtWork);
    }
    for (id, places) in &copies {
        if !homes.contains_key(id) {
            places.iter().for_each(|place| look.packs.at_mut(*place).is_needed = true);
        }
    }
    let mut homes: Vec<_> = homes.into_iter().collect();
    homes.sort_unstable_by_key(|(_, (_, placed))| order(placed));
    let reader = &repo.reader(READER_BYTES);
    let read = |(id, (kind, placed)): (ChunkId, (PackKind, Placed))| async move {
        reader.is_there((kind, id, placed.bytes), &placed.location).await
    };
    futures::stream::iter(homes).map(read).buffered(READS).try_collect().await
}

fn order(placed: &Placed) -> (PackId, u32, u32) {
    (placed.location.pack, placed.location.frame_offset, placed.location.chunk_offset)
}
