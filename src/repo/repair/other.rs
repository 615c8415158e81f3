//! What was lost, from another kloset that still has it.
//!
//! A copy of the same kloset has the same chunks under the same ids. One with other keys has the same files: its snapshot
//! of the same time is read where ours suffers, cut as ours, and folders are made again node by node. Every chunk that is
//! read from it is checked there, and stored here only if its id is one that was lost.

use std::collections::HashSet;

use bytes::{Buf, BytesMut};
use futures::StreamExt;
use tokio::runtime::Handle;

use super::super::builder::TreeBuilder;
use super::super::check::{Lost, key_of};
use super::super::chunker::Chunker;
use super::super::error::RepoError;
use super::super::id::ChunkId;
use super::super::layout::SnapshotName;
use super::super::path::{self, Found, Nodes, leaf};
use super::super::snapshot::Manifest;
use super::super::tree::{BranchEntry, Data, FileContent, Node, NodeKind, Page, TreeRef};
use super::super::writer::{Chunk, Writer};
use super::super::{READER_BYTES_DEFAULT, Reader, Repo};
use super::Wanted;

/// Chunks fetched at once: 16 MiB as a rule.
const CHUNKS_AT_ONCE: usize = 16;
/// How much of a file's list of chunks is looked at together.
const LIST_BYTES: u64 = 64 << 20;

/// Stores what was lost and `other` has; returns which of it.
///
/// # Errors
/// [`RepoError`]; that something is lost there as well is none.
pub fn heal_from(
    repo: &Repo,
    runtime: &Handle,
    other: &Repo,
    wanted: &Wanted<'_>,
) -> Result<HashSet<ChunkId>, RepoError> {
    if !other.keys.can_read() {
        return Err(RepoError::WriteOnly);
    }
    let mut writer = Writer::healing(repo, runtime.clone(), wanted.lost)?;
    let theirs = other.reader(READER_BYTES_DEFAULT / 2);
    if other.keys.kloset() == repo.keys.kloset() {
        copy(runtime, &theirs, wanted.lost, &mut writer)?;
    } else {
        let chunker = Chunker::new(repo.header.chunker, repo.keys.write_keys().chunker_seed);
        let ours = repo.reader(READER_BYTES_DEFAULT / 2);
        let mut healer = Healer { repo, runtime, wanted, ours, theirs, chunker, writer, path: Vec::new() };
        for (name, manifest) in wanted.snapshots {
            if let Some(root) = same_snapshot(runtime, other, *name, manifest)? {
                healer.snapshot(manifest.root.into(), root)?;
            }
        }
        writer = healer.writer;
    }
    writer.flush()?;
    Ok(writer.healed())
}

/// Copies chunks by their ids.
fn copy(runtime: &Handle, theirs: &Reader, lost: &Lost, writer: &mut Writer) -> Result<(), RepoError> {
    let content: Vec<_> = lost.content.values().collect();
    for part in content.chunks(CHUNKS_AT_ONCE) {
        let read = futures::future::join_all(part.iter().map(|at| theirs.chunk(at)));
        for (at, read) in part.iter().zip(runtime.block_on(read)) {
            if let Some(raw) = readable(read)? {
                writer.add(at.id, Chunk::Lent(&raw))?;
            }
        }
    }
    let trees: Vec<_> = lost.trees.values().collect();
    for part in trees.chunks(CHUNKS_AT_ONCE) {
        let read = futures::future::join_all(part.iter().map(|at| theirs.tree_chunk(at)));
        for raw in runtime.block_on(read) {
            if let Some(raw) = readable(raw)? {
                writer.add_tree(&raw, None)?;
            }
        }
    }
    Ok(())
}

/// Finds the snapshot in another kloset that is of the same: by its name, else by its time, host and paths.
fn same_snapshot(
    runtime: &Handle,
    other: &Repo,
    name: SnapshotName,
    manifest: &Manifest,
) -> Result<Option<TreeRef>, RepoError> {
    let names = runtime.block_on(other.snapshots())?;
    let mut candidates: Vec<_> = names.into_iter().filter(|theirs| theirs.unix_ms == name.unix_ms).collect();
    candidates.sort_unstable_by_key(|theirs| *theirs != name);
    for theirs in candidates {
        if let Some(found) = readable(runtime.block_on(other.manifest(theirs)))?
            && (theirs == name || found.host == manifest.host && found.paths == manifest.paths)
        {
            return Ok(Some(found.root.into()));
        }
    }
    Ok(None)
}

/// Turns what is damaged or not there into nothing.
fn readable<T>(read: Result<T, RepoError>) -> Result<Option<T>, RepoError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(RepoError::Damaged { .. } | RepoError::NoSnapshot(_) | RepoError::NoPath(_) | RepoError::NotA { .. }) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A folder of ours being gone through.
struct Open {
    pages: Vec<TreeRef>,
    nodes: std::vec::IntoIter<Node>,
    path_bytes: usize,
}

struct Healer<'a> {
    repo: &'a Repo,
    runtime: &'a Handle,
    wanted: &'a Wanted<'a>,
    ours: Reader,
    theirs: Reader,
    chunker: Chunker,
    writer: Writer,
    path: Vec<u8>,
}

impl Healer<'_> {
    fn is_lost(&self, id: ChunkId) -> bool {
        self.wanted.lost.trees.contains_key(&id)
    }

    fn is_hurt(&self, id: ChunkId) -> bool {
        self.wanted.hurt.contains_key(&key_of(id))
    }

    /// Goes through what suffers in our snapshot, and takes from theirs what is lost.
    fn snapshot(&mut self, root: TreeRef, theirs: TreeRef) -> Result<(), RepoError> {
        self.path.clear();
        if self.is_lost(root.id) {
            return self.folder(theirs);
        }
        let mut stack = vec![Open { pages: vec![root], nodes: Vec::new().into_iter(), path_bytes: 0 }];
        while let Some(open) = stack.last_mut() {
            self.path.truncate(open.path_bytes);
            if let Some(node) = open.nodes.next() {
                stack.extend(self.node(&node, theirs)?);
            } else if let Some(page) = open.pages.pop() {
                if self.is_lost(page.id) {
                    self.path_of_theirs(theirs)?; // a part of a folder: all of it is made again
                } else if let Some(page) = readable(self.runtime.block_on(self.ours.page(&page)))? {
                    match &*page {
                        Page::Leaf(nodes) => open.nodes = nodes.clone().into_iter(),
                        Page::Branch(entries) => {
                            open.pages.extend(entries.iter().rev().map(|BranchEntry { page, .. }| *page));
                        }
                    }
                }
            } else {
                stack.pop();
            }
        }
        Ok(())
    }

    /// Looks at a node of ours; returns the folder that is to be gone through.
    fn node(&mut self, node: &Node, theirs: TreeRef) -> Result<Option<Open>, RepoError> {
        self.path.push(b'/');
        self.path.extend_from_slice(node.name.as_bytes());
        match &node.kind {
            NodeKind::Directory(tree) if self.is_lost(tree.id) => self.path_of_theirs(theirs)?,
            NodeKind::Directory(tree) if self.is_hurt(tree.id) => {
                let path_bytes = self.path.len();
                return Ok(Some(Open { pages: vec![*tree], nodes: Vec::new().into_iter(), path_bytes }));
            }
            NodeKind::File(content) if self.may_lack(content) => self.path_of_theirs(theirs)?,
            _ => {}
        }
        Ok(None)
    }

    fn may_lack(&self, content: &FileContent) -> bool {
        match &content.data {
            Data::Chunks(chunks) => chunks.iter().any(|chunk| self.wanted.lost.content.contains_key(&chunk.id)),
            Data::Pages(pages) => pages.iter().any(|(_, page)| self.is_hurt(page.id) || self.is_lost(page.id)),
        }
    }

    /// Takes what they have at the path where we are.
    fn path_of_theirs(&mut self, root: TreeRef) -> Result<(), RepoError> {
        let found = self.runtime.block_on(path::resolve(&self.theirs, root, &self.path));
        match readable(found)? {
            Some(Found::Root(tree)) => self.folder(tree),
            Some(Found::Node(node)) => match &node.kind {
                NodeKind::Directory(tree) => self.folder(*tree),
                NodeKind::File(content) => {
                    // Only the long list of a large file is made again by this.
                    let mut trees = TreeBuilder::new(None);
                    if let Some(chunks) = self.content(content)? {
                        trees.file(bare(&node, content), chunks, &mut self.writer)?;
                    }
                    trees.finish(&mut self.writer).map(drop)
                }
                _ => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Makes a folder of theirs again as it would be here.
    fn folder(&mut self, tree: TreeRef) -> Result<(), RepoError> {
        let mut trees = TreeBuilder::new(None);
        let mut stack = vec![(Nodes::new(&self.theirs, tree), Vec::new().into_iter())];
        while let Some((pages, nodes)) = stack.last_mut() {
            if let Some(node) = nodes.next() {
                let node: Node = node;
                match &node.kind {
                    NodeKind::Directory(tree) => {
                        let below = Nodes::new(&self.theirs, *tree);
                        trees.enter(node, None, &mut self.writer)?;
                        stack.push((below, Vec::new().into_iter()));
                    }
                    NodeKind::File(content) => {
                        if let Some(chunks) = self.content(content)? {
                            trees.file(bare(&node, content), chunks, &mut self.writer)?;
                        }
                    }
                    _ => trees.node(node, &mut self.writer)?,
                }
                continue;
            }
            match readable(self.runtime.block_on(pages.next_page()))?.flatten() {
                Some(page) => *nodes = leaf(&page).to_vec().into_iter(),
                None => {
                    stack.pop();
                    if !stack.is_empty() {
                        trees.leave(&mut self.writer)?;
                    }
                }
            }
        }
        trees.finish(&mut self.writer).map(drop)
    }

    /// Reads a file of theirs, cuts it as ours, and hands every chunk over; nothing if it cannot be read there.
    fn content(&mut self, content: &FileContent) -> Result<Option<Vec<(ChunkId, u32)>>, RepoError> {
        let (mut chunks, mut window, mut seen, mut at) = (Vec::new(), BytesMut::new(), 0, 0);
        let end = content.data_bytes();
        while at < end {
            let to = end.min(at + LIST_BYTES);
            let listed = self.runtime.block_on(self.theirs.chunks_in(&content.data, at..to));
            let Some(listed) = readable(listed)? else { return Ok(None) };
            // A chunk that reaches over the end of a part stands in the next part's list as well.
            let part: Vec<_> = listed.into_iter().filter(|(from, _)| *from >= at).map(|(_, chunk)| chunk).collect();
            at = to;
            let theirs = &self.theirs;
            let reads = futures::stream::iter(part).map(|chunk| async move { theirs.chunk(&chunk).await });
            let mut reads = std::pin::pin!(reads.buffered(CHUNKS_AT_ONCE));
            while let Some(read) = self.runtime.block_on(reads.next()) {
                let Some(raw) = readable(read)? else { return Ok(None) };
                window.extend_from_slice(&raw);
                chunks.extend(cut(self.repo, &self.chunker, (&mut window, &mut seen, false), &mut self.writer)?);
            }
        }
        chunks.extend(cut(self.repo, &self.chunker, (&mut window, &mut seen, true), &mut self.writer)?);
        Ok(Some(chunks))
    }
}

/// Cuts as much of a window as is certain, all of it at the end, and hands every chunk over.
fn cut(
    repo: &Repo,
    chunker: &Chunker,
    (window, seen, is_end): (&mut BytesMut, &mut usize, bool),
    writer: &mut Writer,
) -> Result<Vec<(ChunkId, u32)>, RepoError> {
    let mut chunks = Vec::new();
    while let Some(bytes) = chunker.first(window, is_end, seen) {
        let id = repo.keys.chunk_id(&window[..bytes]);
        writer.add(id, Chunk::Lent(&window[..bytes]))?;
        chunks.push((id, u32::try_from(bytes).expect("a chunk is at most 16 MiB")));
        window.advance(bytes);
    }
    Ok(chunks)
}

/// A file's node without its chunks.
fn bare(node: &Node, content: &FileContent) -> Node {
    let content = FileContent { bytes: content.bytes, holes: content.holes.clone(), data: Data::default() };
    Node { kind: NodeKind::File(content), ..node.clone() }
}
