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
use crate::repo::tree::{Node, NodeKind, Page, TreeRef};

/// The parent snapshot, or none; cheap to clone.
#[derive(Clone)]
pub(super) struct Parent {
    pub(super) reader: Option<Reader>,
    pub(super) runtime: Handle,
}

impl Parent {
    /// Begins with a directory's tree, or with nothing; its first page is read at once.
    pub(super) fn directory(&self, tree: Option<TreeRef>) -> ParentDirectory {
        let nodes = self.reader.as_ref().zip(tree).map(|(reader, tree)| Nodes::new(reader, tree));
        let mut directory = ParentDirectory { nodes, page: None, at: 0, runtime: self.runtime.clone() };
        directory.next_page();
        directory
    }
}

/// A directory of the parent snapshot.
pub(super) struct ParentDirectory {
    nodes: Option<Nodes>,
    page: Option<Arc<Page>>,
    at: usize,
    runtime: Handle,
}

/// A node of the parent snapshot, in its page.
pub(super) struct Known {
    page: Arc<Page>,
    at: usize,
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
                Some(std::cmp::Ordering::Equal) => return Some(Known { page: page.clone(), at: self.at }),
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

    /// Returns the only page of a directory that has one, before the first name was asked for.
    pub(super) fn only_page(&self) -> Option<Arc<Page>> {
        self.page.clone().filter(|_| self.at == 0 && self.nodes.as_ref().is_some_and(Nodes::is_at_end))
    }

    fn next_page(&mut self) {
        self.at = 0;
        self.page = match self.nodes.as_mut().map(|nodes| self.runtime.block_on(nodes.next_page())) {
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

/// Tells whether a file's content is what the parent's node says.
pub(super) fn unchanged(node: &Node, stat: &Stat) -> bool {
    let NodeKind::File(content) = &node.kind else { return false };
    content.bytes == u64::try_from(stat.st_size).unwrap_or(0)
        && same_inode(node, stat)
        && node.mtime == meta::mtime(stat)
}

/// Tells whether nothing about the inode changed, its attributes and a link's target included.
pub(super) fn same_inode(node: &Node, stat: &Stat) -> bool {
    node.identity.inode == stat.st_ino && node.ctime == meta::ctime(stat)
}
