//! One node to be restored, without a copy of it: a place in a page that is in memory.

use std::sync::Arc;

use crate::repo::path::leaf;
use crate::repo::tree::{Node, Page};

/// A node in its page.
#[derive(Clone, Debug)]
pub(super) struct Item {
    page: Arc<Page>,
    slot: usize,
}

impl Item {
    /// Names the node at `slot` of a leaf page.
    pub(super) fn new(page: Arc<Page>, slot: usize) -> Self {
        debug_assert!(slot < leaf(&page).len(), "a node of the page");
        Self { page, slot }
    }

    /// Returns the node.
    pub(super) fn node(&self) -> &Node {
        &leaf(&self.page)[self.slot]
    }

    /// Returns its name.
    pub(super) fn name(&self) -> &[u8] {
        self.node().name.as_bytes()
    }
}
