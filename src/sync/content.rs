//! Copying the content of a file: read, checked, and cut as the target cuts.
//!
//! Klosets with other keys cut at other places, since each has its own seed: content is cut anew, so that later backups
//! into the target find it. Between stores of one kloset chunks keep their cuts and ids, and what is there is not read.
//! Content that was copied in this run is not read again, whatever file it is in: copies, hard links, other hosts.

use std::collections::HashMap;
use std::sync::Arc;

use super::transfer::{AHEAD_BYTES, Transfer};
use super::{Sides, SyncError};
use crate::repo::chunker::Chunker;
use crate::repo::crypto::Keys;
use crate::repo::id::ChunkId;
use crate::repo::tree::{ChunkRef, Data, FileContent};
use crate::repo::writer::{Chunk, Writer};

/// How much of a large file's list of chunks is looked at together.
const LIST_BYTES: u64 = 256 << 20;
/// Chunks of files that were copied are remembered up to this many: about 40 MB.
const KNOWN_CHUNKS_MAX: usize = 1 << 18;

/// Chunks in the target, in their order.
type Chunks = Vec<(ChunkId, u32)>;

/// How content is cut, and what was copied.
pub(super) struct Contents {
    keys: Arc<Keys>,
    /// None where chunks keep their ids.
    chunker: Option<Chunker>,
    /// Chunks in the target by a hash of those in the source.
    known: HashMap<[u8; 32], Chunks>,
    known_chunks: usize,
}

/// Content on its way: what is not cut yet, and the chunks before it.
#[derive(Default)]
struct Window {
    raw: Vec<u8>,
    /// How much of it was looked through for the end of its first chunk.
    seen: usize,
    chunks: Chunks,
}

impl Contents {
    pub(super) fn new(sides: Sides<'_>) -> Self {
        let to = sides.to;
        let chunker = || Chunker::new(to.header.chunker, to.keys.write_keys().chunker_seed);
        let chunker = (!sides.from.is_same_kloset(to)).then(chunker);
        Self { keys: to.keys.clone(), chunker, known: HashMap::new(), known_chunks: 0 }
    }

    fn remember(&mut self, name: [u8; 32], chunks: &Chunks) {
        if self.known_chunks + chunks.len() <= KNOWN_CHUNKS_MAX {
            self.known_chunks += chunks.len();
            self.known.insert(name, chunks.clone());
        }
    }

    /// Cuts what is certain to be cut there, all of it at the end.
    fn cut(&self, window: &mut Window, is_end: bool, writer: &mut Writer) -> Result<(), SyncError> {
        let Some(chunker) = &self.chunker else { return Ok(()) };
        let mut at = 0;
        while let Some(bytes) = chunker.first(&window.raw[at..], is_end, &mut window.seen) {
            let content = &window.raw[at..at + bytes];
            let id = self.keys.chunk_id(content);
            writer.add(id, Chunk::Lent(content)).map_err(SyncError::To)?;
            window.chunks.push((id, u32::try_from(content.len()).expect("a chunk is at most 16 MiB")));
            at += content.len();
        }
        window.raw.drain(..at);
        Ok(())
    }
}

impl Transfer<'_> {
    /// Tells whether a chunk of the source has to be read.
    pub(super) fn has_to_read(&self, chunk: &ChunkRef) -> bool {
        self.contents.chunker.is_some() || !self.writer.has_all(&[(chunk.id, chunk.bytes)])
    }

    /// Copies a file's content and returns its chunks in the target.
    pub(super) fn copy_content(&mut self, content: &FileContent) -> Result<Chunks, SyncError> {
        let name = name(&content.data);
        if let Some(chunks) = self.contents.known.get(&name) {
            return Ok(chunks.clone());
        }
        let mut window = Window::default();
        match &content.data {
            Data::Chunks(chunks) => self.copy_chunks(chunks, &mut window)?,
            Data::Pages(_) => {
                let (mut at, end) = (0, content.data_bytes());
                while at < end {
                    let until = (at + LIST_BYTES).min(end);
                    let listed = self.runtime().block_on(self.reader.chunks_in(&content.data, at..until));
                    // A chunk that begins before this part was copied with the part before.
                    let listed = listed.map_err(SyncError::From)?.into_iter().filter(|(offset, _)| *offset >= at);
                    self.copy_chunks(&listed.map(|(_, chunk)| chunk).collect::<Vec<_>>(), &mut window)?;
                    at = until;
                }
            }
        }
        self.contents.cut(&mut window, true, &mut self.writer)?;
        self.contents.remember(name, &window.chunks);
        Ok(window.chunks)
    }

    fn copy_chunks(&mut self, chunks: &[ChunkRef], window: &mut Window) -> Result<(), SyncError> {
        let (mut ahead, mut ahead_bytes) = (0, 0_u64);
        for (at, chunk) in chunks.iter().enumerate() {
            if self.monitor.stopped() {
                return Err(SyncError::Stopped);
            }
            if ahead_bytes < AHEAD_BYTES / 2 && ahead < chunks.len() {
                let first = ahead.max(at);
                ahead = first;
                while ahead < chunks.len() && ahead_bytes < AHEAD_BYTES {
                    ahead_bytes += u64::from(chunks[ahead].bytes);
                    ahead += 1;
                }
                self.prefetch(chunks[first..ahead].iter().filter(|chunk| self.has_to_read(chunk)));
            }
            ahead_bytes = ahead_bytes.saturating_sub(u64::from(chunk.bytes));
            self.copy_chunk(chunk, window)?;
            self.list_packs()?;
        }
        Ok(())
    }

    fn copy_chunk(&mut self, chunk: &ChunkRef, window: &mut Window) -> Result<(), SyncError> {
        let is_read = self.has_to_read(chunk);
        let raw = match is_read {
            true => self.runtime().block_on(self.reader.chunk(chunk)).map_err(SyncError::From)?,
            false => bytes::Bytes::new(),
        };
        self.monitor.pieces.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.contents.chunker.is_some() {
            window.raw.extend_from_slice(&raw);
            return self.contents.cut(window, false, &mut self.writer);
        }
        if is_read {
            self.writer.add(chunk.id, Chunk::Lent(&raw)).map_err(SyncError::To)?;
        }
        window.chunks.push((chunk.id, chunk.bytes));
        Ok(())
    }
}

/// Names content by its chunks, or by the pages that list them.
fn name(data: &Data) -> [u8; 32] {
    let mut hash = blake3::Hasher::new();
    match data {
        Data::Chunks(chunks) => {
            for chunk in chunks {
                hash.update(chunk.id.as_bytes());
            }
        }
        Data::Pages(pages) => {
            for (_, page) in pages {
                hash.update(page.id.as_bytes()).update(b"page");
            }
        }
    }
    *hash.finalize().as_bytes()
}
