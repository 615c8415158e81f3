//! What goes into an archive, in its order, with the content that comes next on its way.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::super::item::Item;
use super::super::{Start, below};
use super::ArchiveError;
use crate::repo::path::{Nodes, leaf};
use crate::repo::reader::pieces;
use crate::repo::tree::{ChunkRef, Data, FileContent, NodeKind, Page, TreeRef};
use crate::repo::{Reader, RepoError};

/// Content that is being fetched or waits to be written.
const AHEAD_BYTES: usize = 24 << 20;
/// Entries and chunks that wait.
const AHEAD_STEPS: usize = 2048;
/// How much of a file's list of chunks is looked at together.
const LIST_BYTES: u64 = 256 << 20;
/// Zeros that are written at once for a hole.
const ZEROS_BYTES: u64 = 256 << 10;

/// The next thing to be written.
pub(super) enum Next {
    /// An entry; of a regular file that is no link its content follows.
    Entry { path: Vec<u8>, item: Item, link: Option<Vec<u8>> },
    /// Content of the last entry.
    Content(Bytes),
    /// The end of the entry.
    End,
}

/// What waits to be written.
enum Step {
    Entry { path: Vec<u8>, item: Item, link: Option<Vec<u8>> },
    Chunk { fetch: JoinHandle<Result<Bytes, RepoError>>, bytes: usize, part: Range<usize> },
    Zeros(u64),
    End,
}

/// A folder being gone through.
struct Folder {
    nodes: Nodes,
    page: Arc<Page>,
    at: usize,
    path_bytes: usize,
}

/// A file whose content is being asked for.
struct Content {
    file: FileContent,
    parts: VecDeque<(bool, Range<u64>)>,
    chunks: VecDeque<(ChunkRef, Range<usize>)>,
}

/// The walk.
pub(super) struct Walk {
    reader: Reader,
    runtime: Handle,
    /// Path in the snapshot of what is at the top of the archive.
    base: Vec<u8>,
    path: Vec<u8>,
    open: Vec<Folder>,
    content: Option<Content>,
    steps: VecDeque<Step>,
    bytes: usize,
    /// Where files of several names are in the archive, if names can be linked.
    links: Option<HashMap<(u64, u64), Vec<u8>>>,
    zeros: Bytes,
    /// Path of the entry being written.
    current: Vec<u8>,
}

impl Walk {
    pub(super) fn new(reader: Reader, runtime: Handle, start: Start, base: Vec<u8>, has_links: bool) -> Self {
        let mut walk = Self {
            reader,
            runtime,
            base,
            path: Vec::new(),
            open: Vec::new(),
            content: None,
            steps: VecDeque::new(),
            bytes: 0,
            links: has_links.then(HashMap::new),
            zeros: Bytes::from(vec![0; usize::try_from(ZEROS_BYTES).expect("a small number")]),
            current: Vec::new(),
        };
        match start {
            Start::Folder(tree, _) => walk.enter(tree),
            Start::Entry(page) => walk.add(Item::new(page, 0)),
        }
        walk
    }

    /// Returns what is to be written next, `None` at the end.
    ///
    /// # Errors
    /// [`ArchiveError::Unreadable`], [`ArchiveError::Repo`].
    pub(super) fn next(&mut self) -> Result<Option<Next>, ArchiveError> {
        self.fill()?;
        let next = match self.steps.pop_front() {
            None => return Ok(None),
            Some(Step::Entry { path, item, link }) => {
                self.current.clone_from(&path);
                Next::Entry { path, item, link }
            }
            Some(Step::End) => Next::End,
            Some(Step::Zeros(bytes)) if bytes > ZEROS_BYTES => {
                self.steps.push_front(Step::Zeros(bytes - ZEROS_BYTES));
                Next::Content(self.zeros.clone())
            }
            Some(Step::Zeros(bytes)) => Next::Content(self.zeros.slice(..usize::try_from(bytes).expect("checked"))),
            Some(Step::Chunk { fetch, bytes, part }) => {
                self.bytes -= bytes;
                let raw = self.runtime.block_on(fetch).expect("the task neither panics nor is called off");
                let raw = raw.map_err(|error| self.unreadable(&self.current, error))?;
                Next::Content(raw.slice(part))
            }
        };
        Ok(Some(next))
    }

    fn unreadable(&self, path: &[u8], error: RepoError) -> ArchiveError {
        match error {
            RepoError::Damaged { .. } => ArchiveError::Unreadable { path: below(&self.base, path), source: error },
            error => error.into(),
        }
    }

    /// Goes on until enough waits.
    fn fill(&mut self) -> Result<(), ArchiveError> {
        while self.bytes < AHEAD_BYTES && self.steps.len() < AHEAD_STEPS {
            let more = match self.content.take() {
                Some(content) => self.ask(content)?,
                None => self.walk_on()?,
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Takes the next entry; false at the end.
    fn walk_on(&mut self) -> Result<bool, ArchiveError> {
        loop {
            let Some(folder) = self.open.last_mut() else { return Ok(false) };
            self.path.truncate(folder.path_bytes);
            if folder.at < leaf(&folder.page).len() {
                folder.at += 1;
                let item = Item::new(folder.page.clone(), folder.at - 1);
                self.add(item);
                return Ok(true);
            }
            match self.runtime.block_on(folder.nodes.next_page()) {
                Ok(Some(page)) => (folder.page, folder.at) = (page, 0),
                Ok(None) => drop(self.open.pop()),
                Err(error) => return Err(self.unreadable(&self.path, error)),
            }
        }
    }

    fn enter(&mut self, tree: TreeRef) {
        let nodes = Nodes::new(&self.reader, tree);
        let page = Arc::new(Page::Leaf(Vec::new()));
        self.open.push(Folder { nodes, page, at: 0, path_bytes: self.path.len() });
    }

    fn add(&mut self, item: Item) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(item.name());
        let (path, node) = (self.path.clone(), item.node());
        let mut link = None;
        if let (Some(links), true, false) =
            (&mut self.links, node.identity.links > 1, matches!(node.kind, NodeKind::Directory(_) | NodeKind::Socket))
        {
            let key = (node.identity.device, node.identity.inode);
            link = links.get(&key).cloned();
            links.entry(key).or_insert_with(|| path.clone());
        }
        let kind = node.kind.clone();
        let is_first = link.is_none();
        self.steps.push_back(Step::Entry { path, item, link });
        match kind {
            NodeKind::Directory(tree) => {
                self.steps.push_back(Step::End);
                self.enter(tree);
            }
            NodeKind::File(file) if is_first => {
                let parts = pieces(&file.holes, 0..file.bytes).into();
                self.content = Some(Content { file, parts, chunks: VecDeque::new() });
            }
            _ => self.steps.push_back(Step::End),
        }
    }

    /// Asks for the next chunk of a file.
    fn ask(&mut self, mut content: Content) -> Result<bool, ArchiveError> {
        if let Some((chunk, part)) = content.chunks.pop_front() {
            let (reader, bytes) = (self.reader.clone(), chunk.bytes as usize);
            let fetch = self.runtime.spawn(async move { reader.chunk(&chunk).await });
            self.bytes += bytes;
            self.steps.push_back(Step::Chunk { fetch, bytes, part });
            self.content = Some(content);
            return Ok(true);
        }
        match content.parts.pop_front() {
            None => self.steps.push_back(Step::End),
            Some((true, hole)) => {
                self.steps.push_back(Step::Zeros(hole.end - hole.start));
                self.content = Some(content);
            }
            Some((false, part)) => {
                let now = part.start..part.end.min(part.start + LIST_BYTES);
                if now.end < part.end {
                    content.parts.push_front((false, now.end..part.end));
                }
                let listed = self.runtime.block_on(list(&self.reader, &content.file.data, now));
                content.chunks = listed.map_err(|error| self.unreadable(&self.path, error))?;
                self.content = Some(content);
            }
        }
        Ok(true)
    }
}

/// Returns the chunks of a part of a file's data, and what of each belongs to the part.
async fn list(reader: &Reader, data: &Data, part: Range<u64>) -> Result<VecDeque<(ChunkRef, Range<usize>)>, RepoError> {
    let chunks = reader.chunks_in(data, part.clone()).await?;
    let cut = |(start, chunk): (u64, ChunkRef)| {
        let within =
            |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX).min(chunk.bytes as usize);
        (chunk, within(part.start)..within(part.end))
    };
    Ok(chunks.into_iter().map(cut).collect())
}
