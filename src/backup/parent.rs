//! The parent snapshot beside the walk: which files are unchanged.
//!
//! A directory's nodes in the parent are read page by page in the order of their names, which is the order of the walk.
//! A file is unchanged if size, mtime, ctime and inode number are (as restic and rustic have it); a parent that cannot
//! be read only costs reading files again.

use std::sync::Arc;

use rustix::fs::Stat;
use tokio::runtime::Handle;

use super::meta;
use crate::repo::Reader;
use crate::repo::path::{Nodes, leaf};
use crate::repo::tree::{Node, NodeKind, Page, TreeRef};

/// A directory of the parent snapshot.
pub(super) struct ParentDirectory {
    nodes: Option<Nodes>,
    page: Option<Arc<Page>>,
    at: usize,
    runtime: Handle,
}

impl ParentDirectory {
    /// Begins with a directory's tree, or with nothing.
    pub(super) fn new(parent: Option<(&Reader, TreeRef)>, runtime: &Handle) -> Self {
        let nodes = parent.map(|(reader, tree)| Nodes::new(reader, tree));
        Self { nodes, page: None, at: 0, runtime: runtime.clone() }
    }

    /// Returns the node of that name; names must be asked for in ascending order.
    pub(super) fn find(&mut self, name: &[u8]) -> Option<Node> {
        loop {
            if let Some(node) = self.page.as_ref().and_then(|page| leaf(page).get(self.at)) {
                match node.name.as_bytes().cmp(name) {
                    std::cmp::Ordering::Less => self.at += 1,
                    std::cmp::Ordering::Equal => return Some(node.clone()),
                    std::cmp::Ordering::Greater => return None,
                }
            } else {
                self.next_page()?;
            }
        }
    }

    fn next_page(&mut self) -> Option<()> {
        let nodes = self.nodes.as_mut()?;
        match self.runtime.block_on(nodes.next_page()) {
            Ok(Some(page)) => {
                (self.page, self.at) = (Some(page), 0);
                Some(())
            }
            Ok(None) => {
                self.nodes = None;
                None
            }
            Err(error) => {
                tracing::warn!("the parent snapshot cannot be read, its files are read again: {error}");
                self.nodes = None;
                None
            }
        }
    }
}

/// Tells whether a file is what the parent's node says.
pub(super) fn unchanged(node: &Node, stat: &Stat) -> bool {
    let NodeKind::File(content) = &node.kind else { return false };
    content.bytes == u64::try_from(stat.st_size).unwrap_or(0)
        && same_inode(node, stat)
        && node.mtime == meta::mtime(stat)
}

/// Tells whether nothing about the inode changed, its attributes included.
pub(super) fn same_inode(node: &Node, stat: &Stat) -> bool {
    node.identity.inode == stat.st_ino && node.ctime == meta::ctime(stat)
}
