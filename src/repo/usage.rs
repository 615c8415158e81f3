//! What snapshots take: how much is in them, what of it is stored, and what no other snapshot needs.
//!
//! Stored is counted in frames, since a frame is stored as one: it counts whole where any chunk of it is needed. Chunks
//! count where they were stored first; what a prune moved later is counted as if it still lay there. Memory is bounded by
//! what is distinct: about 45 bytes for a chunk, 60 for a frame, 80 for a page and 4 for each reference in it.

use std::collections::HashMap;

use super::distinct::{LOST, Visit, Walked, walk};
use super::error::RepoError;
use super::id::{ChunkId, PackId};
use super::reader::Reader;
use super::tree::{ChunkRef, Data, NodeKind, Page, TreeRef};
use super::wanted::Rooted;

/// What a snapshot takes, or several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Regular files.
    pub files: u64,
    /// Their bytes, holes included.
    pub bytes: u64,
    /// Bytes of distinct chunks, before they were compressed.
    pub distinct_bytes: u64,
    /// Bytes of the frames these lie in.
    pub content_stored: u64,
    /// Bytes of the frames that trees lie in.
    pub trees_stored: u64,
    /// Bytes of frames that no other snapshot needs.
    pub unique: u64,
}

impl Usage {
    /// Returns how many bytes are stored.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.content_stored + self.trees_stored
    }
}

/// What all snapshots take.
#[derive(Debug, Default)]
pub struct Usages {
    /// Each of them, in their order.
    pub snapshots: Vec<Usage>,
    /// All together.
    pub all: Usage,
    /// What the walk came to.
    pub walked: Walked,
}

/// Measures snapshots against each other.
///
/// # Errors
/// [`RepoError`], but damage, which is told in [`Usages::walked`].
pub async fn measure(reader: &Reader, snapshots: &[Rooted]) -> Result<Usages, RepoError> {
    let mut gather = Gather {
        reader,
        held: Held::default(),
        frames: Places::default(),
        chunks: Places::default(),
        lists: HashMap::new(),
    };
    let walked = walk(reader, snapshots, &mut gather).await?;
    let held = gather.held;
    let mut count = Count::new(&held);
    let mut out = Usages::default();
    for (number, root) in walked.roots.iter().enumerate() {
        let usage = count.snapshot(u32::try_from(number).expect("memory ends before") + 1, *root);
        (out.all.files, out.all.bytes) = (out.all.files + usage.files, out.all.bytes + usage.bytes);
        out.snapshots.push(usage);
    }
    count.finish(&mut out);
    out.walked = walked;
    Ok(out)
}

/// A chunk: its frame and its length.
struct Chunk {
    frame: u32,
    bytes: u32,
}

/// A frame: its sealed length, and whether it holds trees.
struct Frame {
    bytes: u32,
    is_tree: bool,
}

/// A page, of a directory or of a file's list of chunks.
#[derive(Default)]
struct HeldPage {
    chunks: Box<[u32]>,
    frames: Box<[u32]>,
    below: Box<[u32]>,
    files: u64,
    bytes: u64,
}

/// Everything that is distinct.
#[derive(Default)]
struct Held {
    chunks: Vec<Chunk>,
    frames: Vec<Frame>,
    pages: Vec<HeldPage>,
}

/// Numbers of things by the pack they lie in, and two places in it.
#[derive(Default)]
struct Places {
    packs: HashMap<PackId, u32>,
    numbers: HashMap<(u32, u32, u32), u32>,
}

impl Places {
    /// Returns the number of a place, and whether it is a new one.
    fn number(&mut self, pack: PackId, place: (u32, u32)) -> (u32, bool) {
        let packs = u32::try_from(self.packs.len()).expect("memory ends before");
        let pack = *self.packs.entry(pack).or_insert(packs);
        let numbers = u32::try_from(self.numbers.len()).expect("memory ends before");
        let number = *self.numbers.entry((pack, place.0, place.1)).or_insert(numbers);
        (number, number == numbers)
    }
}

/// Collects what is distinct.
struct Gather<'a> {
    reader: &'a Reader,
    held: Held,
    frames: Places,
    chunks: Places,
    /// Chunks and frames of lists outside their nodes, by the lists' ids.
    lists: HashMap<ChunkId, (Box<[u32]>, u32)>,
}

impl Visit for Gather<'_> {
    async fn page(&mut self, at: &TreeRef, page: &Page, below: &[u32]) -> Result<(), RepoError> {
        let mut held = HeldPage { below: below.into(), ..HeldPage::default() };
        let (mut chunks, mut frames) = (Vec::new(), vec![self.tree_frame(at).await]);
        if let Page::Leaf(nodes) = page {
            for node in nodes {
                let NodeKind::File(file) = &node.kind else { continue };
                (held.files, held.bytes) = (held.files + 1, held.bytes + file.bytes);
                match &file.data {
                    Data::Chunks(of_file) => chunks.extend(of_file.iter().map(|chunk| self.chunk(chunk))),
                    Data::Pages(pages) => {
                        for (bytes, list) in pages {
                            self.list(*bytes, list).await?;
                            if let Some((of_list, frame)) = self.lists.get(&list.id) {
                                chunks.extend_from_slice(of_list);
                                frames.push(*frame);
                            }
                        }
                    }
                }
            }
        }
        for number in below.iter().filter(|number| **number != LOST) {
            let below = &self.held.pages[*number as usize];
            (held.files, held.bytes) = (held.files + below.files, held.bytes + below.bytes);
        }
        for numbers in [&mut chunks, &mut frames] {
            numbers.sort_unstable();
            numbers.dedup();
        }
        (held.chunks, held.frames) = (chunks.into(), frames.into());
        self.held.pages.push(held);
        Ok(())
    }
}

impl Gather<'_> {
    fn chunk(&mut self, chunk: &ChunkRef) -> u32 {
        let at = &chunk.location;
        let (frame, is_new) = self.frames.number(at.pack, (at.frame_offset, 0));
        if is_new {
            self.held.frames.push(Frame { bytes: at.frame_bytes, is_tree: false });
        }
        let (number, is_new) = self.chunks.number(at.pack, (at.frame_offset, at.chunk_offset));
        if is_new {
            self.held.chunks.push(Chunk { frame, bytes: chunk.bytes });
        }
        number
    }

    async fn tree_frame(&mut self, at: &TreeRef) -> u32 {
        let (number, is_new) = self.frames.number(at.pack, (at.frame, 1));
        if is_new {
            // Of a pack that has gone only the raw length is known.
            let bytes = self.reader.tree_frame_bytes(at).await.unwrap_or(at.bytes);
            self.held.frames.push(Frame { bytes, is_tree: true });
        }
        number
    }

    /// Reads a list of chunks unless it is known; one that is damaged counts as empty.
    async fn list(&mut self, bytes: u64, at: &TreeRef) -> Result<(), RepoError> {
        if self.lists.contains_key(&at.id) {
            return Ok(());
        }
        let listed = match self.reader.chunks_in(&Data::Pages(vec![(bytes, *at)]), 0..bytes).await {
            Ok(listed) => listed,
            Err(RepoError::Damaged { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let chunks = listed.iter().map(|(_, chunk)| self.chunk(chunk)).collect();
        let frame = self.tree_frame(at).await;
        self.lists.insert(at.id, (chunks, frame));
        Ok(())
    }
}

/// Counts snapshot by snapshot: what bears the snapshot's stamp has been counted for it.
struct Count<'a> {
    held: &'a Held,
    pages: Vec<u32>,
    chunks: Vec<u32>,
    /// The last snapshot that needs a frame, and whether another does.
    frames: Vec<(u32, bool)>,
    open: Vec<u32>,
}

impl<'a> Count<'a> {
    fn new(held: &'a Held) -> Self {
        let (pages, chunks) = (vec![0; held.pages.len()], vec![0; held.chunks.len()]);
        Self { held, pages, chunks, frames: vec![(0, false); held.frames.len()], open: Vec::new() }
    }

    fn snapshot(&mut self, stamp: u32, root: u32) -> Usage {
        let mut usage = Usage::default();
        if let Some(root) = self.held.pages.get(root as usize) {
            (usage.files, usage.bytes) = (root.files, root.bytes);
        }
        self.open.push(root);
        while let Some(number) = self.open.pop() {
            let Some(page) = self.held.pages.get(number as usize) else { continue };
            if std::mem::replace(&mut self.pages[number as usize], stamp) == stamp {
                continue;
            }
            for chunk in &page.chunks {
                if std::mem::replace(&mut self.chunks[*chunk as usize], stamp) != stamp {
                    let chunk = &self.held.chunks[*chunk as usize];
                    usage.distinct_bytes += u64::from(chunk.bytes);
                    self.frame(stamp, chunk.frame, &mut usage);
                }
            }
            for frame in &page.frames {
                self.frame(stamp, *frame, &mut usage);
            }
            self.open.extend_from_slice(&page.below);
        }
        usage
    }

    fn frame(&mut self, stamp: u32, number: u32, usage: &mut Usage) {
        let (last, is_shared) = &mut self.frames[number as usize];
        if *last == stamp {
            return;
        }
        *is_shared |= *last > 0;
        *last = stamp;
        let frame = &self.held.frames[number as usize];
        let stored = if frame.is_tree { &mut usage.trees_stored } else { &mut usage.content_stored };
        *stored += u64::from(frame.bytes);
    }

    fn finish(&self, out: &mut Usages) {
        out.all.distinct_bytes = self.held.chunks.iter().map(|chunk| u64::from(chunk.bytes)).sum();
        for ((last, is_shared), frame) in self.frames.iter().zip(&self.held.frames) {
            let bytes = u64::from(frame.bytes);
            let stored = if frame.is_tree { &mut out.all.trees_stored } else { &mut out.all.content_stored };
            *stored += bytes;
            if let (false, Some(at)) = (*is_shared, last.checked_sub(1)) {
                out.snapshots[at as usize].unique += bytes;
            }
        }
        out.all.unique = out.all.stored();
    }
}
