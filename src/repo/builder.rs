//! Trees bottom-up: from the nodes of a walk to the root's reference.
//!
//! Nodes come in walk order: a directory is entered, its entries follow sorted by name, it is left. They wait here until
//! their content has a place, at most `WAITING_MAX` of them; a directory is encoded page by page when it is left.
//! Splitting follows the names, so that a change in a huge directory changes one page (`docs/format.md`, "Tree").

use std::collections::VecDeque;

use super::error::RepoError;
use super::id::ChunkId;
use super::tree::{
    self, BranchEntry, CONTENT_PAGE_CHUNKS, Data, FileContent, INLINE_CHUNKS_MAX, Node, NodeKind, Page, TreeRef,
};
use super::writer::Writer;

/// Nodes that may wait for places before the open frame is closed for their sake.
const WAITING_MAX: usize = 16_384;
/// A page is not closed before it has this many nodes.
const PAGE_NODES_MIN: usize = 1024;
/// A page is closed when it has this many nodes.
const PAGE_NODES_MAX: usize = 4096;
/// A page is closed when its nodes take about this many bytes.
const PAGE_BYTES_MAX: usize = 1 << 20;

const _: () = assert!(PAGE_BYTES_MAX + tree::XATTR_BYTES_MAX < tree::TREE_BYTES_MAX);

/// Builds the trees of one snapshot.
pub struct TreeBuilder {
    waiting: VecDeque<Step>,
    open: Vec<Directory>,
    root: Option<TreeRef>,
}

enum Step {
    Enter(Option<Box<Node>>, Option<TreeRef>),
    Node(Box<Node>),
    File(Box<Node>, Vec<(ChunkId, u32)>),
    Leave,
}

/// A directory whose entries are coming.
struct Directory {
    /// Its own node, without its tree; none for the root.
    node: Option<Box<Node>>,
    /// Its tree in the parent snapshot.
    parent: Option<TreeRef>,
    nodes: Vec<Node>,
    bytes: usize,
    pages: Vec<BranchEntry>,
}

impl TreeBuilder {
    /// Begins with the root directory; `parent` is its tree in the parent snapshot.
    #[must_use]
    pub fn new(parent: Option<TreeRef>) -> Self {
        let waiting = VecDeque::from([Step::Enter(None, parent)]);
        Self { waiting, open: Vec::new(), root: None }
    }

    /// Enters a directory; the tree in `node` is a placeholder.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn enter(&mut self, node: Node, parent: Option<TreeRef>, writer: &mut Writer) -> Result<(), RepoError> {
        self.push(Step::Enter(Some(Box::new(node)), parent), writer)
    }

    /// Adds a node that needs no place: no file, an empty one, or one taken over from the parent snapshot.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn node(&mut self, node: Node, writer: &mut Writer) -> Result<(), RepoError> {
        self.push(Step::Node(Box::new(node)), writer)
    }

    /// Adds a file whose chunks were added to the writer; the data in its node is a placeholder.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn file(&mut self, node: Node, chunks: Vec<(ChunkId, u32)>, writer: &mut Writer) -> Result<(), RepoError> {
        self.push(Step::File(Box::new(node), chunks), writer)
    }

    /// Leaves the directory entered last.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn leave(&mut self, writer: &mut Writer) -> Result<(), RepoError> {
        self.push(Step::Leave, writer)
    }

    /// Leaves the root and returns its reference.
    ///
    /// # Errors
    /// [`RepoError`].
    ///
    /// # Panics
    /// If a directory was entered and not left.
    pub fn finish(mut self, writer: &mut Writer) -> Result<TreeRef, RepoError> {
        self.waiting.push_back(Step::Leave);
        writer.flush_data()?;
        self.settle(writer)?;
        assert!(self.open.is_empty() && self.waiting.is_empty(), "every directory is left");
        Ok(self.root.expect("the root was left"))
    }

    fn push(&mut self, step: Step, writer: &mut Writer) -> Result<(), RepoError> {
        self.waiting.push_back(step);
        if self.waiting.len() >= WAITING_MAX {
            writer.flush_data()?;
        }
        self.settle(writer)
    }

    /// Takes the steps whose content has its place, in order.
    fn settle(&mut self, writer: &mut Writer) -> Result<(), RepoError> {
        while let Some(step) = self.waiting.front() {
            if let Step::File(_, chunks) = step
                && chunks.iter().rev().any(|(id, _)| writer.place(*id).is_none())
            {
                return Ok(());
            }
            match self.waiting.pop_front() {
                Some(Step::Enter(node, parent)) => {
                    self.open.push(Directory { node, parent, nodes: Vec::new(), bytes: 0, pages: Vec::new() });
                }
                Some(Step::Node(node)) => self.add(*node, writer)?,
                Some(Step::File(node, chunks)) => {
                    let node = with_data(*node, &chunks, writer)?;
                    self.add(node, writer)?;
                }
                Some(Step::Leave) => self.close(writer)?,
                None => {}
            }
        }
        Ok(())
    }

    fn add(&mut self, node: Node, writer: &mut Writer) -> Result<(), RepoError> {
        let directory = self.open.last_mut().expect("the root is open until the end");
        let ends_page =
            |nodes: usize, name: &[u8], writer: &Writer| nodes >= PAGE_NODES_MIN && writer.page_ends_after(name);
        directory.bytes += weight(&node);
        let ends = ends_page(directory.nodes.len() + 1, node.name.as_bytes(), writer);
        directory.nodes.push(node);
        if ends || directory.nodes.len() >= PAGE_NODES_MAX || directory.bytes >= PAGE_BYTES_MAX {
            directory.end_page(writer)?;
        }
        Ok(())
    }

    fn close(&mut self, writer: &mut Writer) -> Result<(), RepoError> {
        let directory = self.open.pop().expect("entered before left");
        let (node, tree) = directory.finish(writer)?;
        match node {
            Some(mut node) => {
                node.kind = NodeKind::Directory(tree);
                self.add(*node, writer)
            }
            None => {
                self.root = Some(tree);
                Ok(())
            }
        }
    }
}

impl Directory {
    fn end_page(&mut self, writer: &mut Writer) -> Result<(), RepoError> {
        let nodes = std::mem::take(&mut self.nodes);
        self.bytes = 0;
        let Some(first) = nodes.first().map(|n| n.name.clone()) else { return Ok(()) };
        let count = nodes.len() as u64;
        let page = store_page(&Page::Leaf(nodes), None, writer)?;
        self.pages.push(BranchEntry { first, nodes: count, page });
        Ok(())
    }

    fn finish(mut self, writer: &mut Writer) -> Result<(Option<Box<Node>>, TreeRef), RepoError> {
        if self.pages.is_empty() {
            let nodes = std::mem::take(&mut self.nodes);
            return Ok((self.node, store_page(&Page::Leaf(nodes), self.parent, writer)?));
        }
        self.end_page(writer)?;
        let mut entries = std::mem::take(&mut self.pages);
        while entries.len() > PAGE_NODES_MAX {
            let mut above = Vec::new();
            while !entries.is_empty() {
                let rest = entries.split_off(entries.len().min(PAGE_NODES_MAX));
                let nodes = entries.iter().map(|e| e.nodes).sum();
                let first = entries[0].first.clone();
                above.push(BranchEntry { first, nodes, page: store_page(&Page::Branch(entries), None, writer)? });
                entries = rest;
            }
            entries = above;
        }
        if let [only] = &entries[..] {
            return Ok((self.node, only.page));
        }
        Ok((self.node, store_page(&Page::Branch(entries), self.parent, writer)?))
    }
}

fn store_page(page: &Page, parent: Option<TreeRef>, writer: &mut Writer) -> Result<TreeRef, RepoError> {
    writer.use_page(page);
    writer.add_tree(&page.encode(), parent)
}

/// Gives a file its data: chunks in the node, or content pages where they are many.
fn with_data(mut node: Node, chunks: &[(ChunkId, u32)], writer: &mut Writer) -> Result<Node, RepoError> {
    let NodeKind::File(content) = &mut node.kind else { unreachable!("only files have data") };
    let placed = |part: &[(ChunkId, u32)], writer: &mut Writer| -> Vec<_> {
        part.iter().map(|(id, _)| writer.place(*id).expect("later chunks are placed later")).collect()
    };
    content.data = if chunks.len() <= INLINE_CHUNKS_MAX {
        Data::Chunks(placed(chunks, writer))
    } else {
        let mut pages = Vec::with_capacity(chunks.len() / CONTENT_PAGE_CHUNKS + 1);
        for part in chunks.chunks(CONTENT_PAGE_CHUNKS) {
            let page = tree::encode_content_page(&placed(part, writer));
            pages.push((part.iter().map(|c| u64::from(c.1)).sum(), writer.add_tree(&page, None)?));
        }
        Data::Pages(pages)
    };
    Ok(node)
}

/// Returns about how many bytes a node takes, encoded.
fn weight(node: &Node) -> usize {
    let kind = match &node.kind {
        NodeKind::File(FileContent { holes, data, .. }) => {
            let data = match data {
                Data::Chunks(chunks) => chunks.len() * 56,
                Data::Pages(pages) => pages.len() * 60,
            };
            data + holes.len() * 12
        }
        NodeKind::Symlink(target) => target.len(),
        _ => 50,
    };
    let xattrs: usize = node.xattrs.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
    80 + node.name.as_bytes().len() + kind + xattrs
}
