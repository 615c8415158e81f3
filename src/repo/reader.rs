//! Reading: from a reference to checked bytes.
//!
//! References carry locations, so nothing here loads the index until a location no longer holds; then it is asked where
//! the chunk is now, and loaded again when it does not know, since a reader may outlive many prunes. Whatever is returned
//! has passed its seal and its keyed id. Packs of trees are fetched whole; packs of data in blocks with readahead along
//! the pack. Clones share the caches.

mod afresh;
mod ahead;
mod counts;
mod moves;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{Bytes, BytesMut};

use super::Repo;
use super::blocks::Blocks;
use super::cache::{Cache, Limit, Share, Weigh};
use super::crypto::Keys;
use super::error::RepoError;
use super::id::{ChunkId, PackId};
use super::lookup::Relocations;
use super::pack::{self, Footer, PACK_BYTES_MAX, PackKind};
use super::sealed::SealedError;
use super::tree::{self, ChunkRef, Data, FileContent, Location, Page, TREE_BYTES_MAX, TreeRef};
use crate::cpu::Cpu;
use crate::store::Store;
use moves::Moves;

/// Reads what a kloset holds; cheap to clone.
#[derive(Clone)]
pub struct Reader(Arc<Inner>);

struct Inner {
    store: Store,
    keys: Arc<Keys>,
    cpu: Cpu,
    /// What the caches may hold together.
    limit: Arc<Limit>,
    blocks: Blocks,
    frames: Cache<(PackId, u32), Frame>,
    tree_packs: Cache<PackId, TreePack>,
    pages: Cache<TreeRef, Page>,
    lists: Cache<TreeRef, ContentList>,
    moved: Arc<Relocations>,
    /// Where the chunks of packs went that were not there.
    moves: Arc<Moves>,
    /// Reads past the cache on disk, made when something in it was bad.
    afresh: OnceLock<Reader>,
}

/// A part of a frame that may be a chunk: of what kind, from where, how many bytes.
type Part = (PackKind, u32, u32);

/// An opened frame and the ids of those of its parts that were asked for.
struct Frame {
    raw: Bytes,
    named: Mutex<HashMap<Part, ChunkId>>,
}

/// A whole pack of trees, sealed, and its footer.
struct TreePack {
    content: Bytes,
    footer: Footer,
}

/// A chunk to be found: what it is, its name and its length.
#[derive(Clone, Copy)]
struct Wanted {
    kind: PackKind,
    id: ChunkId,
    bytes: u32,
}

/// The chunks of a content page, with the offset of each from the start of the page.
struct ContentList(Vec<ChunkRef>);

impl Weigh for Frame {
    fn weight(&self) -> usize {
        self.raw.len() + 256
    }
}

impl Weigh for TreePack {
    fn weight(&self) -> usize {
        self.content.len() + self.footer.frames.iter().map(|f| 64 + 40 * f.chunks.len()).sum::<usize>()
    }
}

impl Weigh for Page {
    fn weight(&self) -> usize {
        match self {
            Self::Branch(entries) => entries.len() * 200,
            Self::Leaf(nodes) => nodes.iter().map(node_weight).sum::<usize>() + 64,
        }
    }
}

impl Weigh for ContentList {
    fn weight(&self) -> usize {
        self.0.len() * size_of::<ChunkRef>()
    }
}

fn node_weight(node: &tree::Node) -> usize {
    let kind = match &node.kind {
        tree::NodeKind::File(content) => {
            let data = match &content.data {
                Data::Chunks(chunks) => chunks.len() * size_of::<ChunkRef>(),
                Data::Pages(pages) => pages.len() * 128,
            };
            data + content.holes.len() * 16
        }
        tree::NodeKind::Symlink(target) => target.len(),
        _ => 0,
    };
    let xattrs: usize = node.xattrs.iter().map(|(n, v)| n.len() + v.len() + 64).sum();
    size_of::<tree::Node>()
        + node.name.as_bytes().len()
        + node.owner.user.len()
        + node.owner.group.len()
        + kind
        + xattrs
}

impl Reader {
    /// Returns a reader whose caches hold at most about `memory_bytes`.
    #[must_use]
    pub fn new(repo: &Repo, memory_bytes: usize) -> Self {
        let moved = Relocations::new(repo.store.clone(), repo.keys.clone(), repo.env.clock.clone());
        let moves = Moves::new(repo.store.clone(), repo.keys.clone(), memory_bytes / 16);
        let with = (repo.keys.clone(), repo.cpu.clone());
        Self::over(repo.cached.clone(), with, (moved.into(), moves.into()), memory_bytes)
    }

    fn over(
        store: Store,
        (keys, cpu): (Arc<Keys>, Cpu),
        (moved, moves): (Arc<Relocations>, Arc<Moves>),
        memory_bytes: usize,
    ) -> Self {
        let limit = Limit::new(memory_bytes);
        let part = |eighths: usize| Share::of(&limit, eighths);
        Self(Arc::new(Inner {
            blocks: Blocks::new(store.clone(), part(2)),
            frames: Cache::new(part(2)),
            tree_packs: Cache::new(part(2)),
            pages: Cache::new(part(1)),
            lists: Cache::new(part(1)),
            moved,
            moves,
            afresh: OnceLock::new(),
            store,
            keys,
            cpu,
            limit,
        }))
    }

    /// Returns the limit of the caches, of which somebody else may take a part.
    #[must_use]
    pub fn limit(&self) -> &Arc<Limit> {
        &self.0.limit
    }

    /// Returns a page of a directory if it is in memory.
    #[must_use]
    pub fn ready_page(&self, at: &TreeRef) -> Option<Arc<Page>> {
        self.0.pages.ready(at)
    }

    /// Reads a page of a directory.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn page(&self, at: &TreeRef) -> Result<Arc<Page>, RepoError> {
        let (reader, at) = (self.clone(), *at);
        let load = move || async move {
            let raw = reader.tree_chunk(&at).await?;
            // A small page is decoded sooner than a thread is woken.
            let page = if raw.len() < SMALL_PAGE_BYTES {
                Page::decode(&raw)
            } else {
                reader.0.cpu.run(move || Page::decode(&raw)).await
            };
            page.map_err(|e| RepoError::damaged(describe(at.pack, at.id), e))
        };
        self.0.pages.get(at, load).await
    }

    /// Reads the chunk that holds a tree or a content page.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn tree_chunk(&self, at: &TreeRef) -> Result<Bytes, RepoError> {
        if at.bytes as usize > TREE_BYTES_MAX {
            return Err(RepoError::damaged(describe(at.pack, at.id), "longer than a tree can be"));
        }
        let wanted = Wanted { kind: PackKind::Tree, id: at.id, bytes: at.bytes };
        if let Some(placed) = self.0.moves.known(at.pack, wanted.id, wanted.bytes)
            && let Ok(raw) = self.chunk_placed(wanted, &placed).await
        {
            return Ok(raw);
        }
        match self.tree_chunk_at(at, wanted).await {
            Ok(raw) => Ok(raw),
            Err(error)
                if let Some(reader) = self.afresh(at.pack, &error).await
                    && let Ok(raw) = reader.tree_chunk_at(at, wanted).await =>
            {
                Ok(raw)
            }
            Err(error) => self.elsewhere(wanted, at.pack, error).await,
        }
    }

    async fn tree_chunk_at(&self, at: &TreeRef, wanted: Wanted) -> Result<Bytes, RepoError> {
        let bad = |problem: &str| RepoError::damaged(describe(at.pack, at.id), problem);
        let pack = self.tree_pack(at.pack).await?;
        let entry = pack.footer.frames.get(at.frame as usize).ok_or_else(|| bad("its pack has no such frame"))?;
        let (from, to) = (entry.offset as usize, entry.offset as usize + entry.bytes as usize);
        let sealed = pack.content.get(from..to).ok_or_else(|| bad("its frame ends behind its pack"))?;
        let sealed = pack.content.slice_ref(sealed);
        let part = (wanted.kind, at.chunk_offset, wanted.bytes);
        let frame = self.frame((at.pack, entry.offset), part, async move { Ok(sealed) }).await?;
        if frame.raw.len() as u64 != entry.raw_bytes() {
            return Err(bad("its frame is not as long as its pack's footer says"));
        }
        self.checked(&frame, at.pack, at.chunk_offset, wanted).await
    }

    async fn tree_pack(&self, id: PackId) -> Result<Arc<TreePack>, RepoError> {
        let reader = self.clone();
        let load = move || async move {
            let content = reader.0.store.get(&id.to_string(), PACK_BYTES_MAX).await.map_err(|e| missing(id, e))?;
            let key = reader.session_key(id)?;
            let footer = pack::sealed_footer(&content)
                .and_then(|sealed| pack::open_footer(&key, reader.0.keys.kloset(), id, sealed))
                .map_err(|e| RepoError::damaged(id, e))?;
            if footer.kind != PackKind::Tree {
                return Err(RepoError::damaged(id, "a tree is sought in it and it holds content"));
            }
            Ok(TreePack { content, footer })
        };
        self.0.tree_packs.get(id, load).await
    }

    /// Reads a chunk of file content.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn chunk(&self, at: &ChunkRef) -> Result<Bytes, RepoError> {
        let wanted = Wanted { kind: PackKind::Data, id: at.id, bytes: at.bytes };
        if let Some(placed) = self.0.moves.known(at.location.pack, wanted.id, wanted.bytes)
            && let Ok(raw) = self.chunk_placed(wanted, &placed).await
        {
            return Ok(raw);
        }
        match self.chunk_at(wanted, &at.location).await {
            Ok(raw) => Ok(raw),
            Err(error)
                if let Some(reader) = self.afresh(at.location.pack, &error).await
                    && let Ok(raw) = reader.chunk_at(wanted, &at.location).await =>
            {
                Ok(raw)
            }
            Err(error) => self.elsewhere(wanted, at.location.pack, error).await,
        }
    }

    async fn chunk_at(&self, wanted: Wanted, at: &Location) -> Result<Bytes, RepoError> {
        let range = frame_range(at);
        let blocks = self.0.blocks.clone();
        let (pack, sealed_bytes) = (at.pack, at.frame_bytes as usize);
        let fetch = async move {
            let sealed = blocks.read(pack, range).await.map_err(|e| missing_repo(pack, e))?;
            if sealed.len() < sealed_bytes {
                return Err(RepoError::damaged(describe(pack, wanted.id), "its frame ends behind its pack"));
            }
            Ok(sealed)
        };
        let part = (wanted.kind, at.chunk_offset, wanted.bytes);
        let frame = self.frame((at.pack, at.frame_offset), part, fetch).await?;
        self.checked(&frame, at.pack, at.chunk_offset, wanted).await
    }

    /// Opens the frame at `offset` of a pack, whose sealed bytes `fetch` brings, and names the part that is asked for while
    /// it is in the processor's caches.
    async fn frame(
        &self,
        (pack, offset): (PackId, u32),
        part: Part,
        fetch: impl Future<Output = Result<Bytes, RepoError>> + Send + 'static,
    ) -> Result<Arc<Frame>, RepoError> {
        let reader = self.clone();
        let load = move || async move {
            let sealed = fetch.await?;
            let key = reader.session_key(pack)?;
            let (keys, place) = (reader.0.keys.clone(), (reader.0.keys.kloset(), pack.session));
            let open = move || {
                let raw = pack::open_frame(&key, place, &sealed)?;
                let named = part_of(&raw, part).map(|content| (part, name(&keys, part.0, &content)));
                Ok(Frame { raw, named: Mutex::new(named.into_iter().collect()) })
            };
            let frame: Result<_, SealedError> = reader.0.cpu.run(open).await;
            frame.map_err(|e| RepoError::damaged(format!("{pack}, frame at {offset}"), e))
        };
        self.0.frames.get((pack, offset), load).await
    }

    /// Cuts a chunk out of its frame and checks its id, once for each chunk of a frame in memory.
    async fn checked(
        &self,
        frame: &Arc<Frame>,
        pack: PackId,
        offset: u32,
        Wanted { kind, id, bytes }: Wanted,
    ) -> Result<Bytes, RepoError> {
        let bad = |problem: &str| RepoError::damaged(describe(pack, id), problem);
        let part = (kind, offset, bytes);
        let raw = part_of(&frame.raw, part).ok_or_else(|| bad("it ends behind its frame"))?;
        let known = frame.named.lock().expect("no panic while held").get(&part).copied();
        let found = match known {
            Some(found) => found,
            None => {
                let (keys, content) = (self.0.keys.clone(), raw.clone());
                let name = move || name(&keys, kind, &content);
                let found = if bytes < 64 << 10 { name() } else { self.0.cpu.run(name).await };
                frame.named.lock().expect("no panic while held").insert(part, found);
                found
            }
        };
        if found == id { Ok(raw) } else { Err(bad("its content is not what its id says")) }
    }

    /// Begins to fetch what a chunk needs, and returns at once.
    pub fn prefetch(&self, at: &ChunkRef) {
        let at = self.where_now(at);
        if self.0.frames.ready(&(at.pack, at.frame_offset)).is_none() {
            self.0.blocks.prefetch(at.pack, &frame_range(&at));
        }
    }

    /// Begins to fetch what chunks need that follow one another, neighbours in one request, and returns at once.
    ///
    /// With `is_passing`, neither that nor what is fetched of the same packs next is kept on disk.
    pub fn prefetch_all<'a>(&self, chunks: impl IntoIterator<Item = &'a ChunkRef>, is_passing: bool) {
        let fetch = |(pack, whole): (PackId, Range<u64>)| {
            if is_passing {
                self.0.blocks.pass_by(pack);
            }
            self.0.blocks.prefetch(pack, &whole);
        };
        let mut run: Option<(PackId, Range<u64>)> = None;
        for chunk in chunks {
            let at = self.where_now(chunk);
            let (pack, range) = (at.pack, frame_range(&at));
            if self.0.frames.ready(&(pack, at.frame_offset)).is_some() {
                continue;
            }
            match &mut run {
                Some((same, whole)) if *same == pack && whole.contains(&range.start) => {
                    whole.end = whole.end.max(range.end);
                }
                Some((same, whole)) if *same == pack && whole.end == range.start => whole.end = range.end,
                run => run.replace((pack, range)).into_iter().for_each(fetch),
            }
        }
        run.into_iter().for_each(fetch);
    }

    /// Returns the chunks of a file that lie in `range` of its data, each with its offset in the data.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn chunks_in(&self, data: &Data, range: Range<u64>) -> Result<Vec<(u64, ChunkRef)>, RepoError> {
        let mut out = Vec::new();
        match data {
            Data::Chunks(chunks) => overlapping(0, chunks, &range, &mut out),
            Data::Pages(pages) => {
                let mut at = 0;
                for (bytes, page) in pages {
                    if at < range.end && at + bytes > range.start {
                        overlapping(at, &self.content_page(page, *bytes).await?.0, &range, &mut out);
                    }
                    at += bytes;
                }
            }
        }
        Ok(out)
    }

    async fn content_page(&self, at: &TreeRef, bytes: u64) -> Result<Arc<ContentList>, RepoError> {
        let (reader, at) = (self.clone(), *at);
        let load = move || async move {
            let raw = reader.tree_chunk(&at).await?;
            let chunks =
                tree::decode_content_page(&raw).map_err(|e| RepoError::damaged(describe(at.pack, at.id), e))?;
            if chunks.iter().map(|c| u64::from(c.bytes)).sum::<u64>() != bytes {
                return Err(RepoError::damaged(describe(at.pack, at.id), "its length is not what its node says"));
            }
            Ok(ContentList(chunks))
        };
        self.0.lists.get(at, load).await
    }

    /// Reads `range` of a file, holes as zeros; less if the file ends before.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn read(&self, file: &FileContent, range: Range<u64>) -> Result<Bytes, RepoError> {
        let range = range.start.min(file.bytes)..range.end.min(file.bytes);
        if file.holes.is_empty() {
            return self.read_data(&file.data, range).await;
        }
        let mut out = BytesMut::new();
        for (hole, part) in pieces(&file.holes, range) {
            let bytes = usize::try_from(part.end - part.start).expect("a read is small");
            if hole {
                out.resize(out.len() + bytes, 0);
            } else {
                out.extend_from_slice(&self.read_data(&file.data, part).await?);
            }
        }
        Ok(out.freeze())
    }

    async fn read_data(&self, data: &Data, range: Range<u64>) -> Result<Bytes, RepoError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let chunks = self.chunks_in(data, range.clone()).await?;
        let single = chunks.len() == 1;
        let bytes = if single { 0 } else { usize::try_from(range.end - range.start).expect("a read is small") };
        let mut out = BytesMut::with_capacity(bytes);
        for (at, chunk) in chunks {
            let raw = self.chunk(&chunk).await?;
            let from = usize::try_from(range.start.saturating_sub(at)).expect("within a chunk");
            let to = usize::try_from((range.end - at).min(raw.len() as u64)).expect("within a chunk");
            if single {
                return Ok(raw.slice(from..to));
            }
            out.extend_from_slice(&raw[from..to]);
        }
        Ok(out.freeze())
    }

    fn session_key(&self, pack: PackId) -> Result<super::crypto::SealingKey, RepoError> {
        self.0.keys.session_key(&pack.session).map_err(|e| match e {
            super::crypto::CryptoError::WriteOnly => RepoError::WriteOnly,
            e => RepoError::damaged(pack, e),
        })
    }
}

/// Pages of fewer bytes are decoded where they are read: about 100 µs.
const SMALL_PAGE_BYTES: usize = 64 << 10;

/// Cuts a part out of an opened frame, if it is within.
fn part_of(raw: &Bytes, (_, offset, bytes): Part) -> Option<Bytes> {
    let end = (offset as usize).checked_add(bytes as usize).filter(|end| *end <= raw.len())?;
    Some(raw.slice(offset as usize..end))
}

/// Returns the id that content has as a chunk of that kind.
fn name(keys: &Keys, kind: PackKind, content: &[u8]) -> ChunkId {
    match kind {
        PackKind::Data => keys.chunk_id(content),
        PackKind::Tree => keys.tree_id(content),
    }
}

fn describe(pack: PackId, id: ChunkId) -> String {
    format!("chunk {} in {pack}", id.short())
}

fn missing(pack: PackId, error: crate::store::StoreError) -> RepoError {
    missing_repo(pack, error.into())
}

/// A pack that is not there is damage; a store that cannot be asked is not.
fn missing_repo(pack: PackId, error: RepoError) -> RepoError {
    use crate::store::StoreError::{NotFound, TooLarge};
    match &error {
        RepoError::Store(e) if matches!(**e, NotFound { .. }) => RepoError::damaged(pack, "missing"),
        RepoError::Store(e) if matches!(**e, TooLarge { .. }) => RepoError::damaged(pack, "longer than a pack can be"),
        _ => error,
    }
}

fn frame_range(at: &Location) -> Range<u64> {
    u64::from(at.frame_offset)..u64::from(at.frame_offset) + u64::from(at.frame_bytes)
}

/// Collects those of `chunks`, the first at `start`, that touch `range`.
fn overlapping(start: u64, chunks: &[ChunkRef], range: &Range<u64>, out: &mut Vec<(u64, ChunkRef)>) {
    let mut at = start;
    for chunk in chunks {
        let end = at + u64::from(chunk.bytes);
        if at >= range.end {
            break;
        }
        if end > range.start {
            out.push((at, *chunk));
        }
        at = end;
    }
}

/// Cuts `range` of a file into holes (`true`, in the file) and data (`false`, in the data between the holes).
#[must_use]
pub fn pieces(holes: &[(u64, u64)], range: Range<u64>) -> Vec<(bool, Range<u64>)> {
    let mut out = Vec::new();
    let (mut at, mut skipped) = (range.start, 0);
    for &(offset, bytes) in holes {
        let end = offset + bytes;
        if end <= range.start {
            skipped += bytes;
            continue;
        }
        if offset >= range.end {
            break;
        }
        if at < offset {
            out.push((false, at - skipped..offset - skipped));
            at = offset;
        }
        out.push((true, at..end.min(range.end)));
        at = end.min(range.end);
        skipped += bytes;
    }
    if at < range.end {
        out.push((false, at - skipped..range.end - skipped));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(range: Range<u64>, expected: &[(bool, Range<u64>)]) {
        assert_eq!(pieces(&[(10, 10), (40, 5)], range), expected);
    }

    #[test]
    fn a_range_is_cut_at_its_holes() {
        check(0..50, &[(false, 0..10), (true, 10..20), (false, 10..30), (true, 40..45), (false, 30..35)]);
        check(0..5, &[(false, 0..5)]);
        check(12..15, &[(true, 12..15)]);
        check(15..25, &[(true, 15..20), (false, 10..15)]);
        check(20..40, &[(false, 10..30)]);
        check(43..60, &[(true, 43..45), (false, 30..45)]);
        check(7..7, &[]);
    }
}
