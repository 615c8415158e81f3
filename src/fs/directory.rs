//! Directories as they are stored: finding a node by name or by number, with the page it stands in.
//!
//! A directory is one page or a tree of pages. Every search touches one page a level, whatever the directory's size.

use std::sync::Arc;

use crate::repo::RepoError;
use crate::repo::path::leaf;
use crate::repo::reader::Reader;
use crate::repo::tree::{BRANCH_DEPTH_MAX, BranchEntry, Node, Page, TreeRef};

/// A leaf page and where it is stored.
#[derive(Clone)]
pub struct Leaf {
    /// Where it is stored.
    pub at: TreeRef,
    /// Its content.
    pub page: Arc<Page>,
}

impl Leaf {
    /// Returns its nodes.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        leaf(&self.page)
    }
}

/// Finds the node of that name: its page and its place there.
///
/// # Errors
/// [`RepoError`].
pub async fn find(reader: &Reader, directory: TreeRef, name: &[u8]) -> Result<Option<(Leaf, usize)>, RepoError> {
    let below = |entries: &[BranchEntry]| {
        let behind = entries.partition_point(|entry| entry.first.as_bytes() <= name);
        Some(entries[behind.checked_sub(1)?].page)
    };
    let Some(leaf) = descend(reader, directory, below).await? else { return Ok(None) };
    let slot = leaf.nodes().binary_search_by(|node| node.name.as_bytes().cmp(name)).ok();
    Ok(slot.map(|slot| (leaf, slot)))
}

/// Finds the `number`-th node: its page and its place there; `None` behind the last.
///
/// # Errors
/// [`RepoError`].
pub async fn seek(reader: &Reader, directory: TreeRef, number: u64) -> Result<Option<(Leaf, usize)>, RepoError> {
    let mut rest = number;
    let below = |entries: &[BranchEntry]| {
        for entry in entries {
            if rest < entry.nodes {
                return Some(entry.page);
            }
            rest -= entry.nodes;
        }
        None
    };
    let Some(leaf) = descend(reader, directory, below).await? else { return Ok(None) };
    let slot = usize::try_from(rest).ok().filter(|slot| *slot < leaf.nodes().len());
    Ok(slot.map(|slot| (leaf, slot)))
}

/// Goes down from a directory's first page, at each branch to the page that `below` chooses.
async fn descend(
    reader: &Reader,
    directory: TreeRef,
    mut below: impl FnMut(&[BranchEntry]) -> Option<TreeRef>,
) -> Result<Option<Leaf>, RepoError> {
    let mut at = directory;
    for _ in 0..=BRANCH_DEPTH_MAX {
        let page = reader.page(&at).await?;
        let Page::Branch(entries) = &*page else { return Ok(Some(Leaf { at, page })) };
        match below(entries) {
            Some(next) => at = next,
            None => return Ok(None),
        }
    }
    Err(RepoError::damaged(directory.pack, "a directory has too many levels of pages"))
}
