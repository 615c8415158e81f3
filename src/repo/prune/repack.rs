//! Emptying packs: what is needed of them goes into new packs, and an object says where it went.
//!
//! Old packs are fetched whole and a few ahead, unless the walk kept them; only frames with something needed are opened,
//! each chunk's id is checked, and frames are laid out as a writer does. Work ends in steps: new packs, the index run that
//! names them, what says where chunks went, and the pending list of the emptied packs, in this order. A crash leaves packs
//! that nobody needs, or a pack that is emptied again.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use super::super::Repo;
use super::super::crypto::SealingKey;
use super::super::emptied;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId, SessionId};
use super::super::index::{IndexEntry, IndexRun, IndexedPack, RUN_ENTRIES_MAX};
use super::super::moved::{self, PACKS_MAX};
use super::super::pack::{
    self, DATA_FRAME_BYTES, DATA_PACK_BYTES, FRAME_CHUNKS_MAX, FrameEntry, LONE_CHUNK_BYTES, PACK_BYTES_MAX,
    PACK_CHUNKS_MAX, PackBuilder, PackKind, TREE_FRAME_BYTES, TREE_PACK_RAW_BYTES,
};
use super::super::sealed::Plain;
use super::look::Look;
use super::{Progress, PruneOptions, Stage, mark};
use crate::store::StoreError;

/// Packs fetched at once,
const FETCHES: usize = 32;
/// as long as they are together not longer than this, in KiB: about four of the usual length,
const FETCH_KIB: u32 = 64 << 10;
/// and put at once.
const PUTS_MAX: usize = 3;
/// So many packs are emptied at most before they are marked.
pub(super) const STEP_PACKS: usize = PACKS_MAX;

/// What was repacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repacked {
    /// Packs that were emptied.
    pub packs: u64,
    /// Bytes fetched of them.
    pub bytes_read: u64,
    /// Bytes of the packs that they went into.
    pub bytes_written: u64,
}

/// Frames and packs of one kind under construction.
struct Lane {
    kind: PackKind,
    raw: Plain,
    chunks: Vec<(ChunkId, u32)>,
    pack: Option<(PackId, PackBuilder)>,
    pack_raw: usize,
    pack_chunks: usize,
    /// The old pack of each chunk, in the order of the new pack's chunks and the open frame's.
    origins: Vec<u32>,
}

struct Repacker<'a> {
    repo: &'a Repo,
    look: &'a Look,
    session: SessionId,
    key: SealingKey,
    packs_begun: u32,
    lanes: [Lane; 2],
    run: IndexRun,
    /// Where the chunks of emptied packs went, by the places of these.
    moved: BTreeMap<u32, IndexRun>,
    emptied: Vec<u32>,
    puts: FuturesUnordered<futures::future::BoxFuture<'static, Result<(), StoreError>>>,
    done: Repacked,
}

/// Empties packs as long as there is time, and marks them.
pub(super) async fn repack(
    repo: &Repo,
    look: &Look,
    places: &[u32],
    options: &PruneOptions,
    progress: Progress<'_>,
) -> Result<Repacked, RepoError> {
    let mut repacker = Repacker::new(repo, look);
    let began_ms = repo.env.clock.unix_ms();
    let time_ms = options.max_time.map_or(i64::MAX, |time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX));
    let under_way = &Semaphore::new(FETCH_KIB as usize);
    let fetch = |place: u32| async move {
        let (name, bytes) = (look.packs.at(place).id.to_string(), look.packs.at(place).listed.unwrap_or(0));
        let kib = u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, FETCH_KIB);
        let room = under_way.acquire_many(kib).await;
        let content = match look.tree_packs.get(place) {
            Some(content) => Ok(content),
            None => repo.store.get(&name, PACK_BYTES_MAX).await,
        };
        (
            room,
            place,
            content.map_err(|e| match e {
                StoreError::NotFound { .. } => RepoError::PruneAtWork,
                StoreError::TooLarge { .. } => RepoError::damaged(name, "longer than a pack can be"),
                e => e.into(),
            }),
        )
    };
    let mut fetches = futures::stream::iter(places.iter().copied()).map(fetch).buffered(FETCHES);
    while let Some((room, place, content)) = fetches.next().await {
        progress(Stage::Repack, repacker.done.packs, places.len() as u64);
        repacker.empty(place, content?).await?;
        drop(room);
        if repacker.is_step_full() {
            repacker.end_step().await?;
        }
        if repo.env.clock.unix_ms().saturating_sub(began_ms) >= time_ms {
            break;
        }
    }
    repacker.end_step().await?;
    Ok(repacker.done)
}

impl Lane {
    fn new(kind: PackKind) -> Self {
        let (raw, chunks, origins) = (Plain::default(), Vec::new(), Vec::new());
        Self { kind, raw, chunks, pack: None, pack_raw: 0, pack_chunks: 0, origins }
    }

    /// Tells whether the open frame is to be closed before a chunk of that length.
    fn is_full_for(&self, bytes: usize) -> bool {
        let alone = self.kind == PackKind::Data && bytes >= LONE_CHUNK_BYTES;
        !self.chunks.is_empty() && (alone || self.raw.content().len() + bytes > self.frame_bytes() + LONE_CHUNK_BYTES)
    }

    fn is_full(&self) -> bool {
        let alone =
            self.kind == PackKind::Data && self.chunks.len() == 1 && self.raw.content().len() >= LONE_CHUNK_BYTES;
        alone || self.raw.content().len() >= self.frame_bytes() || self.chunks.len() >= FRAME_CHUNKS_MAX
    }

    fn frame_bytes(&self) -> usize {
        if self.kind == PackKind::Data { DATA_FRAME_BYTES } else { TREE_FRAME_BYTES }
    }

    /// Tells whether the open pack takes no frame of that sealed length and so many chunks any more.
    fn is_pack_full_for(&self, sealed: usize, chunks: usize) -> bool {
        let bytes = self.pack.as_ref().map_or(0, |(_, pack)| pack.bytes());
        match self.kind {
            PackKind::Data => bytes + sealed > DATA_PACK_BYTES || self.pack_chunks + chunks > PACK_CHUNKS_MAX,
            PackKind::Tree => self.pack_raw >= TREE_PACK_RAW_BYTES || self.pack_chunks + chunks > PACK_CHUNKS_MAX,
        }
    }
}

impl<'a> Repacker<'a> {
    fn new(repo: &'a Repo, look: &'a Look) -> Self {
        let (session, key) = repo.keys.new_session(&repo.env.entropy);
        Self {
            repo,
            look,
            session,
            key,
            packs_begun: 0,
            lanes: [Lane::new(PackKind::Data), Lane::new(PackKind::Tree)],
            run: IndexRun::default(),
            moved: BTreeMap::new(),
            emptied: Vec::new(),
            puts: FuturesUnordered::new(),
            done: Repacked::default(),
        }
    }

    fn is_step_full(&self) -> bool {
        let waiting: usize = self.lanes.iter().map(|lane| lane.origins.len()).sum();
        self.run.entries.len() + waiting > RUN_ENTRIES_MAX - 2 * PACK_CHUNKS_MAX || self.emptied.len() >= STEP_PACKS
    }

    /// Copies what is needed of a pack.
    async fn empty(&mut self, place: u32, content: Bytes) -> Result<(), RepoError> {
        let id = self.look.packs.at(place).id;
        self.done.bytes_read += content.len() as u64;
        self.moved.entry(place).or_default();
        let keys = self.repo.keys.clone();
        let session = keys.session_key(&id.session).map_err(|e| RepoError::damaged(id, e))?;
        let footer = pack::sealed_footer(&content)
            .and_then(|sealed| pack::open_footer(&session, keys.kloset(), id, sealed))
            .map_err(|e| RepoError::damaged(id, e))?;
        for frame in footer.frames {
            if frame.chunks.iter().any(|(chunk, _)| self.look.needed.has(*chunk, place)) {
                let sealed = content.slice(frame.offset as usize..(frame.offset + frame.bytes) as usize);
                self.copy(place, footer.kind, frame, sealed).await?;
            }
        }
        self.emptied.push(place);
        self.done.packs += 1;
        Ok(())
    }

    async fn copy(&mut self, place: u32, kind: PackKind, frame: FrameEntry, sealed: Bytes) -> Result<(), RepoError> {
        let (id, keys) = (self.look.packs.at(place).id, self.repo.keys.clone());
        let bad = move |problem: &dyn std::fmt::Display| {
            RepoError::damaged(format!("{id}, frame at {}", frame.offset), problem)
        };
        let wanted: Vec<bool> = frame.chunks.iter().map(|(chunk, _)| self.look.needed.has(*chunk, place)).collect();
        let chunks = frame.chunks;
        let open = move || {
            let key = keys.session_key(&id.session).map_err(|e| bad(&e))?;
            let raw = pack::open_frame(&key, (keys.kloset(), id.session), &sealed).map_err(|e| bad(&e))?;
            let (mut rest, mut taken) = (raw, Vec::new());
            for ((chunk, bytes), wanted) in chunks.into_iter().zip(wanted) {
                if (bytes as usize) > rest.len() {
                    return Err(bad(&"it is shorter than its footer says"));
                }
                let content = rest.split_to(bytes as usize);
                let name = |content: &[u8]| match kind {
                    PackKind::Data => keys.chunk_id(content),
                    PackKind::Tree => keys.tree_id(content),
                };
                if wanted && name(&content) != chunk {
                    return Err(bad(&format!("the content of chunk {} is not what its id says", chunk.short())));
                }
                taken.extend(wanted.then_some((chunk, content)));
            }
            Ok(taken)
        };
        for (chunk, content) in self.repo.cpu.run(open).await? {
            self.add(place, kind, chunk, &content).await?;
        }
        Ok(())
    }

    fn lane(&mut self, kind: PackKind) -> &mut Lane {
        &mut self.lanes[usize::from(u8::from(kind))]
    }

    async fn add(&mut self, place: u32, kind: PackKind, chunk: ChunkId, content: &[u8]) -> Result<(), RepoError> {
        if self.lane(kind).is_full_for(content.len()) {
            self.close_frame(kind).await?;
        }
        let lane = self.lane(kind);
        lane.raw.push(content);
        lane.chunks.push((chunk, length(content)));
        lane.origins.push(place);
        if lane.is_full() {
            self.close_frame(kind).await?;
        }
        Ok(())
    }

    async fn close_frame(&mut self, kind: PackKind) -> Result<(), RepoError> {
        let lane = self.lane(kind);
        if lane.chunks.is_empty() {
            return Ok(());
        }
        let (raw, chunks) = (std::mem::take(&mut lane.raw), std::mem::take(&mut lane.chunks));
        let (key, nonce, place) = (self.key.clone(), self.repo.env.entropy.bytes(), self.place());
        let (level, raw_bytes) = (self.repo.header.compression.zstd_level, raw.content().len());
        let sealed = self.repo.cpu.run(move || pack::seal_frame(&key, place, nonce, level, raw)).await;
        if self.lane(kind).is_pack_full_for(sealed.len(), chunks.len()) {
            self.close_pack(kind, chunks.len()).await?;
        }
        let next = PackId { session: self.session, number: self.packs_begun };
        let lane = &mut self.lanes[usize::from(u8::from(kind))];
        if lane.pack.is_none() {
            (lane.pack_raw, lane.pack_chunks) = (0, 0);
            self.packs_begun += 1;
        }
        let (_, pack) = lane.pack.get_or_insert_with(|| (next, PackBuilder::new(kind)));
        lane.pack_raw += raw_bytes;
        lane.pack_chunks += chunks.len();
        pack.push(sealed, chunks);
        Ok(())
    }

    fn place(&self) -> (super::super::id::KlosetId, SessionId) {
        (self.repo.keys.kloset(), self.session)
    }

    /// Closes a pack and begins to put it; the last `open` of its lane's chunks are not in it.
    async fn close_pack(&mut self, kind: PackKind, open: usize) -> Result<(), RepoError> {
        let lane = self.lane(kind);
        let Some((id, pack)) = lane.pack.take() else { return Ok(()) };
        let rest = lane.origins.split_off(lane.origins.len() - open);
        let origins = std::mem::replace(&mut lane.origins, rest);
        let (object, footer) = pack.finish(&self.key, self.repo.keys.kloset(), id, self.repo.env.entropy.bytes());
        let mut new = IndexRun::default();
        new.add_pack(id, object.content_length() as u64, &footer);
        for (entry, old) in new.entries.iter().zip(origins) {
            note(self.moved.entry(old).or_default(), new.packs[0], entry);
        }
        self.run.add_pack(id, object.content_length() as u64, &footer);
        self.done.bytes_written += object.content_length() as u64;
        while self.puts.len() >= PUTS_MAX {
            self.puts.try_next().await?;
        }
        let (store, name) = (self.repo.store.clone(), id.to_string());
        self.puts.push(Box::pin(async move {
            match kind {
                PackKind::Data => store.put_content(&name, object).await,
                PackKind::Tree => store.put_new(&name, object.into()).await,
            }
        }));
        Ok(())
    }

    /// Puts what is under construction, then what speaks of it, and marks the packs that were emptied.
    async fn end_step(&mut self) -> Result<(), RepoError> {
        for kind in [PackKind::Data, PackKind::Tree] {
            self.close_frame(kind).await?;
            self.close_pack(kind, 0).await?;
        }
        while self.puts.try_next().await?.is_some() {}
        if self.emptied.is_empty() {
            return Ok(());
        }
        let run = std::mem::take(&mut self.run);
        if !run.packs.is_empty() {
            super::runs::put_new(self.repo, run).await?;
        }
        let (repo, look, mut blocks) = (self.repo, self.look, Vec::new());
        for (place, mut run) in std::mem::take(&mut self.moved) {
            let old = look.packs.at(place).id;
            let block = moved::seal_block(&repo.keys, old, &mut run, repo.env.entropy.bytes())?;
            emptied::add(repo, &mut blocks, block).await?;
        }
        emptied::put(repo, blocks).await?;
        let emptied: Vec<_> = self.emptied.drain(..).map(|place| look.packs.at(place).id).collect();
        mark(repo, emptied).await
    }
}

/// Adds a chunk's new place to what says where chunks went.
fn note(moved: &mut IndexRun, pack: IndexedPack, entry: &IndexEntry) {
    if moved.packs.last() != Some(&pack) {
        moved.packs.push(pack);
    }
    let place = u32::try_from(moved.packs.len() - 1).expect("a run is closed long before");
    moved.entries.push(IndexEntry { pack: place, ..*entry });
}

fn length(content: &[u8]) -> u32 {
    u32::try_from(content.len()).expect("chunks are far under 4 GiB")
}
