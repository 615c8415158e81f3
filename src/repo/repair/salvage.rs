//! What still opens in damaged packs, stored anew in whole ones.
//!
//! A frame opens by itself: where it lies is said by the footer, and by the index where the footer is gone. What comes out
//! has passed its seal and its keyed id. One pack is in memory at a time.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use super::super::check::{self, Fetched, fetch};
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId};
use super::super::index::{IndexEntry, IndexRun};
use super::super::lookup::Index;
use super::super::pack::{self, PACK_BYTES_MAX, PackKind};
use super::super::writer::{Chunk, Writer, WriterOptions};
use super::{State, Work};

/// What was got out of damaged packs.
#[derive(Default)]
pub(super) struct Salvaged {
    /// All chunks that open.
    pub(super) readable: HashSet<ChunkId>,
    /// How many of them had to be stored anew.
    pub(super) stored: u64,
}

/// Where chunks lie in a pack: by frame, its kind and its chunks.
type Frames = BTreeMap<(u32, u32), (PackKind, Vec<IndexEntry>)>;

/// Goes through the packs that cannot be relied on.
pub(super) fn salvage(
    work: &Work<'_>,
    state: &State,
    suspects: &[(PackId, Option<u64>)],
) -> Result<Salvaged, RepoError> {
    let mut salvaged = Salvaged::default();
    if suspects.iter().all(|(_, listed)| listed.is_none()) {
        return Ok(salvaged);
    }
    let index = work.runtime.block_on(check::readable_index(work.repo, &state.findings))?;
    let mut writer = Writer::new(work.repo, work.runtime.clone(), WriterOptions::default());
    writer.shun(state.shunned());
    for (id, _) in suspects.iter().filter(|(_, listed)| listed.is_some()) {
        let fetched = work.runtime.block_on(fetch(&work.repo.store, &id.to_string(), PACK_BYTES_MAX))?;
        if let Fetched::Content(content) = fetched {
            empty(work, (*id, content), &index, (&mut writer, &mut salvaged))?;
        }
    }
    writer.flush()?;
    Ok(salvaged)
}

/// Takes all that opens out of one pack.
fn empty(
    work: &Work<'_>,
    (id, content): (PackId, Bytes),
    index: &Index,
    (writer, salvaged): (&mut Writer, &mut Salvaged),
) -> Result<(), RepoError> {
    let keys = &work.repo.keys;
    let Ok(key) = keys.session_key(&id.session) else { return Ok(()) };
    for ((offset, bytes), (kind, chunks)) in frames(work, id, &content, index) {
        let sealed = content.get(offset as usize..offset as usize + bytes as usize);
        let opened = sealed.and_then(|sealed| pack::open_frame(&key, (keys.kloset(), id.session), sealed).ok());
        let Some(raw) = opened else { continue };
        for chunk in chunks {
            let (from, to) = (chunk.chunk_offset as usize, chunk.chunk_offset as usize + chunk.chunk_bytes as usize);
            let Some(content) = raw.get(from..to) else { continue };
            let (is_it, is_new) = match kind {
                PackKind::Data if keys.chunk_id(content) == chunk.id => {
                    (true, writer.add(chunk.id, Chunk::Lent(content))?)
                }
                PackKind::Tree if keys.tree_id(content) == chunk.id => (true, writer.copy_tree(content)?),
                _ => (false, false),
            };
            salvaged.stored += u64::from(is_new);
            if is_it {
                salvaged.readable.insert(chunk.id);
            }
        }
    }
    Ok(())
}

/// Returns where chunks lie in a pack, by its footer and by the index.
fn frames(work: &Work<'_>, id: PackId, content: &[u8], index: &Index) -> Frames {
    let keys = &work.repo.keys;
    let footer = keys.session_key(&id.session).ok().and_then(|key| {
        let sealed = pack::sealed_footer(content).ok()?;
        pack::open_footer(&key, keys.kloset(), id, sealed).ok()
    });
    let mut own = IndexRun::default();
    footer.iter().for_each(|footer| own.add_pack(id, content.len() as u64, footer));
    let mut frames = Frames::new();
    for run in index.runs.iter().chain([&own]) {
        for (number, pack) in (0..).zip(&run.packs).filter(|(_, pack)| pack.id == id) {
            for entry in run.entries.iter().filter(|entry| entry.pack == number) {
                let at = (entry.frame_offset, entry.frame_bytes);
                frames.entry(at).or_insert_with(|| (pack.kind, Vec::new())).1.push(*entry);
            }
        }
    }
    for (_, chunks) in frames.values_mut() {
        chunks.sort_unstable_by_key(|chunk| (chunk.chunk_offset, chunk.id));
        chunks.dedup_by_key(|chunk| (chunk.chunk_offset, chunk.id));
    }
    frames
}
