//! Every tree that a snapshot reaches, once over all snapshots, and every chunk that these refer to.
//!
//! Trees are fetched a whole pack at a time, the packs put last first: whoever refers to a tree was put after it, so that a
//! pack comes up when all that is wanted of it is known, and is fetched once. References are believed, since each page's
//! id is checked up to its root, which the manifest's seal vouches for; the index is asked only for what lies nowhere where
//! a reference or a prune says, and what it says is read before it counts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::super::crypto::Keys;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId};
use super::super::lookup::Index;
use super::super::pack::{self, Footer, PACK_BYTES_MAX, PackKind};
use super::super::tree::{self, ChunkRef, Data, FileContent, NodeKind, Page, Placed, TreeRef};
use super::super::{Reader, Repo};
use super::choose::SMALL_TREE_BYTES;
use super::look::Look;
use super::moves::Moves;
use super::{Progress, Stage};
use crate::store::StoreError;

/// Packs of trees fetched at once,
const FETCHES: usize = 32;
/// as long as they are together not longer than this.
const FETCH_BYTES_MAX: u64 = 64 << 20;
/// So many packs that prunes emptied are followed for one chunk.
const MOVES_MAX: usize = 64;
/// Memory of the reader that looks whether a chunk is where the index says.
const READER_BYTES: usize = 16 << 20;

/// The first half of a tree's id: 2^64 trees before two are mistaken for one.
type TreeKey = [u8; 16];
/// Packs put last come first, and of those put together the ones with the highest number.
type Turn = (Reverse<i64>, Reverse<u32>, u32);

/// A tree, or a page of a file's chunks, that is to be gone through.
#[derive(Clone, Copy)]
struct Wanted {
    at: TreeRef,
    is_list: bool,
}

/// What a pack's trees refer to.
#[derive(Default)]
struct Found {
    trees: Vec<Wanted>,
    chunks: Vec<(ChunkId, u32, PackId)>,
}

struct Walk<'a> {
    repo: &'a Repo,
    look: &'a mut Look,
    queue: BTreeMap<Turn, Vec<Wanted>>,
    seen: HashSet<TreeKey>,
    moves: Moves,
    /// Loaded when something is not where it should be.
    fallback: Option<(Index, Reader)>,
}

/// Goes through all that the snapshots reach and notes what they need.
pub(super) async fn walk(repo: &Repo, look: &mut Look, progress: Progress<'_>) -> Result<Moves, RepoError> {
    let roots: Vec<_> = look.roots.iter().map(|(_, root)| *root).collect();
    let (queue, seen, moves) = (BTreeMap::new(), HashSet::new(), Moves::default());
    let mut walk = Walk { repo, look, queue, seen, moves, fallback: None };
    for at in roots {
        walk.want(Wanted { at, is_list: false }).await?;
    }
    let mut done = 0;
    while !walk.queue.is_empty() {
        let fetch = |turn: Turn, id: PackId| async move { Ok::<_, RepoError>((turn, id, fetch(repo, id).await?)) };
        let batch = walk.next_packs();
        let fetched: Vec<_> =
            futures::stream::iter(batch).map(|(turn, id)| fetch(turn, id)).buffered(FETCHES).try_collect().await?;
        for (turn, id, content) in fetched {
            progress(Stage::Trees, done, done + walk.queue.len() as u64);
            walk.go_through(turn, id, content).await?;
            done += 1;
        }
    }
    let Walk { moves, look, seen, .. } = walk;
    look.trees = seen.len() as u64;
    look.needed.settle();
    Ok(moves)
}

async fn fetch(repo: &Repo, id: PackId) -> Result<Bytes, RepoError> {
    match repo.store.get(&id.to_string(), PACK_BYTES_MAX).await {
        Err(StoreError::NotFound { .. }) => Err(RepoError::PruneAtWork), // it was there when it was listed
        Err(StoreError::TooLarge { .. }) => Err(RepoError::damaged(id, "longer than a pack can be")),
        content => Ok(content?),
    }
}

impl Walk<'_> {
    /// Returns the packs whose turn is next.
    fn next_packs(&self) -> Vec<(Turn, PackId)> {
        let (mut bytes, mut packs) = (0, Vec::new());
        for turn in self.queue.keys().take(FETCHES) {
            let pack = self.look.packs.at(turn.2);
            bytes += pack.listed.unwrap_or(0);
            if !packs.is_empty() && bytes > FETCH_BYTES_MAX {
                break;
            }
            packs.push((*turn, pack.id));
        }
        packs
    }

    /// Takes what is wanted of a pack, and what that wants of the same pack.
    async fn go_through(&mut self, turn: Turn, id: PackId, content: Bytes) -> Result<(), RepoError> {
        if (content.len() as u64) < SMALL_TREE_BYTES {
            self.look.tree_packs.keep(turn.2, &content);
        }
        let keys = self.repo.keys.clone();
        let mut open = self.repo.cpu.run(move || TreePack::open(&keys, id, content)).await?;
        while let Some(wanted) = self.queue.remove(&turn) {
            let keys = self.repo.keys.clone();
            let (found, opened) = self.repo.cpu.run(move || open.read(&keys, &wanted)).await?;
            open = opened;
            let named = found.trees.iter().map(|tree| tree.at.pack).chain(found.chunks.iter().map(|chunk| chunk.2));
            let places = named.filter_map(|pack| self.look.packs.find(pack));
            let asked = places.filter(|place| !self.look.packs.at(*place).stays());
            self.moves.fetch(self.repo, self.look, asked).await?;
            for tree in found.trees {
                self.want(tree).await?;
            }
            for (chunk, bytes, pack) in found.chunks {
                self.need((chunk, bytes, PackKind::Data), pack).await?;
            }
        }
        Ok(())
    }

    /// Notes that a tree is needed where it lies, and queues it unless it was seen.
    async fn want(&mut self, wanted: Wanted) -> Result<(), RepoError> {
        let at = wanted.at;
        let (place, moved) = self.need((at.id, at.bytes, PackKind::Tree), at.pack).await?;
        if !self.seen.insert(*at.id.0.first_chunk().expect("32 bytes hold 16")) {
            return Ok(());
        }
        let at = moved.map_or(at, |placed| TreeRef::from_placed(at.id, &placed));
        let pack = self.look.packs.at(place);
        let turn = (Reverse(pack.put_ms), Reverse(pack.id.number), place);
        self.queue.entry(turn).or_default().push(Wanted { at, ..wanted });
        Ok(())
    }

    /// Notes that a chunk is needed; returns in which pack it lies, and where if that is not what its reference says.
    async fn need(
        &mut self,
        chunk: (ChunkId, u32, PackKind),
        pack: PackId,
    ) -> Result<(u32, Option<Placed>), RepoError> {
        let first = self.look.packs.place(pack);
        if self.look.packs.at(first).stays() {
            self.note(chunk.0, first);
            return Ok((first, None));
        }
        let (mut ways, mut followed, mut held) = (vec![(first, None)], 0, Vec::new());
        while followed < ways.len().min(MOVES_MAX) {
            let (at, placed) = ways[followed];
            followed += 1;
            if self.look.packs.at(at).stays() {
                self.note(chunk.0, at);
                return Ok((at, placed));
            }
            if self.look.packs.at(at).listed.is_some() {
                held.push((at, placed));
            }
            for next in self.moved(chunk, at).await? {
                self.look.packs.at_mut(at).moved_used = true;
                let place = self.look.packs.place(next.location.pack);
                if !ways.iter().any(|(known, _)| *known == place) {
                    ways.push((place, Some(next)));
                }
            }
        }
        // It may have been marked because it is damaged, and what still opened of it, or was found, was stored anew.
        if let Some(found) = self.elsewhere(chunk, held.is_empty()).await? {
            return Ok(found);
        }
        // All of these await deletion, and each is spared: who deletes one may rely on none that another deletes.
        held.iter().for_each(|(at, _)| self.note(chunk.0, *at));
        let problem = || format!("missing, and chunk {} of it is nowhere else", chunk.0.short());
        held.first().copied().ok_or_else(|| RepoError::damaged(pack, problem()))
    }

    /// Returns where a chunk went that was in a pack.
    async fn moved(&mut self, chunk: (ChunkId, u32, PackKind), place: u32) -> Result<Vec<Placed>, RepoError> {
        self.moves.fetch(self.repo, self.look, [place]).await?;
        let places = self.moves.places(self.look.packs.at(place).id, chunk.0);
        Ok(places.filter(|placed| placed.bytes == chunk.1).collect())
    }

    fn note(&mut self, id: ChunkId, place: u32) {
        self.look.packs.at_mut(place).is_needed = true;
        self.look.needed.insert(id, place);
    }

    /// Seeks a chunk where the index says; what it says counts once the chunk was read there. Of several packs that stay, the
    /// one of the lowest name is taken, by every prune alike; packs that await deletion count only if there is nothing else,
    /// and then each of them.
    async fn elsewhere(
        &mut self,
        (id, bytes, kind): (ChunkId, u32, PackKind),
        is_last: bool,
    ) -> Result<Option<(u32, Option<Placed>)>, RepoError> {
        let (index, reader) = match self.fallback.take() {
            Some(loaded) => loaded,
            None => (Index::load(&self.repo.store, &self.repo.keys).await?, self.repo.reader(READER_BYTES)),
        };
        let mut places: Vec<_> = index.places(id).filter(|placed| placed.bytes == bytes).collect();
        places.sort_unstable_by_key(|placed| placed.location.pack);
        let place_of = |placed: Placed| (self.look.packs.place(placed.location.pack), placed);
        let places: Vec<_> = places.into_iter().map(place_of).collect();
        let packs = &self.look.packs;
        let (stay, mut held): (Vec<_>, Vec<_>) = places.into_iter().partition(|(place, _)| packs.at(*place).stays());
        held.retain(|(place, _)| is_last && packs.at(*place).listed.is_some());
        let mut found = None;
        for (place, placed) in stay.into_iter().chain(held) {
            if found.is_some_and(|(place, _)| self.look.packs.at(place).stays()) {
                break;
            }
            match reader.is_there((kind, id, bytes), &placed.location).await {
                Ok(()) => {
                    self.note(id, place);
                    found = found.or(Some((place, Some(placed))));
                }
                Err(RepoError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.fallback = Some((index, reader));
        Ok(found)
    }
}

/// A pack of trees and those of its frames that were opened.
struct TreePack {
    id: PackId,
    content: Bytes,
    footer: Footer,
    frames: HashMap<u32, Bytes>,
}

impl TreePack {
    fn open(keys: &Arc<Keys>, id: PackId, content: Bytes) -> Result<Self, RepoError> {
        let key = keys.session_key(&id.session).map_err(|e| RepoError::damaged(id, e))?;
        let footer = pack::sealed_footer(&content)
            .and_then(|sealed| pack::open_footer(&key, keys.kloset(), id, sealed))
            .map_err(|e| RepoError::damaged(id, e))?;
        if footer.kind != PackKind::Tree {
            return Err(RepoError::damaged(id, "a tree is sought in it and it holds content"));
        }
        Ok(Self { id, content, footer, frames: HashMap::new() })
    }

    /// Reads trees and returns what they refer to.
    fn read(mut self, keys: &Arc<Keys>, wanted: &[Wanted]) -> Result<(Found, Self), RepoError> {
        let (mut found, id) = (Found::default(), self.id);
        for Wanted { at, is_list } in wanted {
            let raw = self.tree(keys, at)?;
            let bad = |e: tree::TreeError| RepoError::damaged(format!("tree {} in {id}", at.id.short()), e);
            if *is_list {
                found.take_chunks(&tree::decode_content_page(&raw).map_err(bad)?);
            } else {
                found.take_page(&Page::decode(&raw).map_err(bad)?);
            }
        }
        Ok((found, self))
    }

    fn tree(&mut self, keys: &Arc<Keys>, at: &TreeRef) -> Result<Bytes, RepoError> {
        let bad = |problem: &str| RepoError::damaged(format!("tree {} in {}", at.id.short(), self.id), problem);
        let entry = self.footer.frames.get(at.frame as usize).ok_or_else(|| bad("its pack has no such frame"))?;
        let raw = match self.frames.get(&at.frame) {
            Some(raw) => raw.clone(),
            None => {
                let key = keys.session_key(&self.id.session).map_err(|e| RepoError::damaged(self.id, e))?;
                let sealed = &self.content[entry.offset as usize..(entry.offset + entry.bytes) as usize];
                let raw = pack::open_frame(&key, (keys.kloset(), self.id.session), sealed)
                    .map_err(|e| RepoError::damaged(format!("{}, frame at {}", self.id, entry.offset), e))?;
                if raw.len() as u64 != entry.raw_bytes() {
                    return Err(bad("its frame is not as long as its pack's footer says"));
                }
                self.frames.insert(at.frame, raw.clone());
                raw
            }
        };
        let from = at.chunk_offset as usize;
        let end = from.checked_add(at.bytes as usize).filter(|end| *end <= raw.len());
        let chunk = raw.slice(from..end.ok_or_else(|| bad("it ends behind its frame"))?);
        if keys.tree_id(&chunk) == at.id { Ok(chunk) } else { Err(bad("its content is not what its id says")) }
    }
}

impl Found {
    fn take_chunks(&mut self, chunks: &[ChunkRef]) {
        self.chunks.extend(chunks.iter().map(|chunk| (chunk.id, chunk.bytes, chunk.location.pack)));
    }

    fn take_page(&mut self, page: &Page) {
        let nodes = match page {
            Page::Branch(entries) => {
                self.trees.extend(entries.iter().map(|entry| Wanted { at: entry.page, is_list: false }));
                return;
            }
            Page::Leaf(nodes) => nodes,
        };
        for node in nodes {
            match &node.kind {
                NodeKind::Directory(at) => self.trees.push(Wanted { at: *at, is_list: false }),
                NodeKind::File(FileContent { data: Data::Chunks(chunks), .. }) => self.take_chunks(chunks),
                NodeKind::File(FileContent { data: Data::Pages(pages), .. }) => {
                    self.trees.extend(pages.iter().map(|(_, at)| Wanted { at: *at, is_list: true }));
                }
                _ => {}
            }
        }
    }
}
