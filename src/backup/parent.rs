//! The parent snapshot beside the walk: which entries are unchanged.
//!
//! A directory's nodes in the parent are read page by page in the order of their names, which is the order of the walk.
//! A file is unchanged if size, mtime, ctime and inode number are (as restic and rustic have it); a parent that cannot
//! be read only costs reading files again.

use std::ops::Deref;
use std::sync::Arc;

use rustix::fs::Stat;
use tokio::runtime::Handle;

use super::meta;
use crate::repo::Reader;
use crate::repo::path::{Nodes, leaf};
use crate::repo::standing::Standing;
use crate::repo::tree::{Data, FileContent, Node, NodeKind, Page, TreeRef};

/// The parent snapshot, or none; cheap to clone.
#[derive(Clone)]
pub(super) struct Parent {
    pub(super) reader: Option<Reader>,
    pub(super) runtime: Handle,
    /// Which packs it may refer to.
    pub(super) standing: Arc<Standing>,
}

impl Parent {
    /// Begins with a directory's tree, or with nothing; its first page is read at once.
    pub(super) fn directory(&self, tree: Option<TreeRef>) -> ParentDirectory {
        let nodes = self.reader.as_ref().zip(tree).map(|(reader, tree)| Nodes::new(reader, tree));
        let mut directory = ParentDirectory { nodes, page: None, at: 0, parent: self.clone() };
        directory.next_page();
        directory
    }

    /// Tells whether all that a file refers to is there and stays; if not, it is read again, and stored where it is gone.
    fn holds(&self, node: &Node) -> bool {
        let NodeKind::File(FileContent { data, .. }) = &node.kind else { return true };
        if self.standing.holds_all() {
            return true;
        }
        match (data, &self.reader) {
            (Data::Chunks(chunks), _) => chunks.iter().all(|chunk| self.standing.holds(chunk.location.pack)),
            (Data::Pages(pages), Some(reader)) => {
                let chunks = self.runtime.block_on(reader.chunks_in(data, 0..u64::MAX));
                pages.iter().all(|(_, at)| self.standing.holds(at.pack))
                    && chunks.is_ok_and(|all| all.iter().all(|(_, chunk)| self.standing.holds(chunk.location.pack)))
            }
            (Data::Pages(_), None) => false,
        }
    }
}

/// A directory of the parent snapshot.
pub(super) struct ParentDirectory {
    nodes: Option<Nodes>,
    page: Option<Arc<Page>>,
    at: usize,
    parent: Parent,
}

/// A node of the parent snapshot, in its page.
pub(super) struct Known {
    page: Arc<Page>,
    at: usize,
    /// Whether all that it refers to is there and stays.
    pub(super) holds: bool,
}

impl Deref for Known {
    type Target = Node;

    fn deref(&self) -> &Node {
        &leaf(&self.page)[self.at]
    }
}

impl Known {
    /// Tells whether this is the node at that place of that page.
    pub(super) fn is(&self, page: &Arc<Page>, at: usize) -> bool {
        self.at == at && Arc::ptr_eq(&self.page, page)
    }
}

impl ParentDirectory {
    /// Returns the node of that name; names must be asked for in ascending order.
    pub(super) fn find(&mut self, name: &[u8]) -> Option<Known> {
        loop {
            let page = self.page.as_ref()?;
            match leaf(page).get(self.at).map(|node| node.name.as_bytes().cmp(name)) {
                Some(std::cmp::Ordering::Less) => self.at += 1,
                Some(std::cmp::Ordering::Equal) => {
                    let holds = self.parent.holds(&leaf(page)[self.at]);
                    return Some(Known { page: page.clone(), at: self.at, holds });
                }
                Some(std::cmp::Ordering::Greater) => return None,
                None => self.next_page(),
            }
        }
    }

    /// Returns the tree of the subdirectory of that name if it is in the page at hand: for what is read ahead.
    pub(super) fn tree_ahead(&self, name: &[u8]) -> Option<TreeRef> {
        let nodes = leaf(self.page.as_ref()?);
        let at = nodes.binary_search_by(|node| node.name.as_bytes().cmp(name)).ok()?;
        tree_of(&nodes[at])
    }

    /// Returns the only page of a directory that has one, before the first name was asked for, if it can be taken over as it
    /// is.
    pub(super) fn only_page(&self) -> Option<Arc<Page>> {
        let whole = self.page.clone().filter(|_| self.at == 0 && self.nodes.as_ref().is_some_and(Nodes::is_at_end));
        whole.filter(|page| self.parent.standing.holds_all() || self.is_held(page))
    }

    fn is_held(&self, page: &Page) -> bool {
        let mut all = true;
        page.for_each_pack(|pack| all &= self.parent.standing.holds(pack));
        all && leaf(page).iter().all(|node| self.parent.holds(node))
    }

    fn next_page(&mut self) {
        self.at = 0;
        self.page = match self.nodes.as_mut().map(|nodes| self.parent.runtime.block_on(nodes.next_page())) {
            Some(Ok(page)) => page,
            None => None,
            Some(Err(error)) => {
                tracing::warn!("the parent snapshot cannot be read, its files are read again: {error}");
                None
            }
        };
        if self.page.is_none() {
            self.nodes = None;
        }
    }
}

/// Returns a directory's tree.
pub(super) fn tree_of(node: &Node) -> Option<TreeRef> {
    match node.kind {
        NodeKind::Directory(tree) => Some(tree),
        _ => None,
    }
}

/// Tells whether a file's content is what the parent's node says, and can be taken over.
pub(super) fn unchanged(node: &Known, stat: &Stat) -> bool {
    let NodeKind::File(content) = &node.kind else { return false };
    node.holds
        && content.bytes == u64::try_from(stat.st_size).unwrap_or(0)
        && same_inode(node, stat)
        && node.mtime == meta::mtime(stat)
}

/// Tells whether nothing about the inode changed, its attributes and a link's target included.
pub(super) fn same_inode(node: &Node, stat: &Stat) -> bool {
    node.identity.inode == stat.st_ino && node.ctime == meta::ctime(stat)
}
