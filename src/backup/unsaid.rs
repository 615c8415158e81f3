//! Folders in which nothing has changed so far.
//!
//! As long as the entries of a folder are those of the parent snapshot, one after another and none left out, nothing is
//! said of them: at the end the folder is the parent's tree, and nobody has encoded it again. With the first difference
//! all that was held back is said at once. Only folders of one page take part; the pages of a larger one are many.

use std::collections::HashSet;
use std::sync::Arc;

use super::parent::Known;
use super::walk::Step;
use crate::repo::id::PackId;
use crate::repo::path::leaf;
use crate::repo::snapshot::Summary;
use crate::repo::tree::{Node, NodeKind, Page, TreeRef};

/// What a walk found that no step tells.
#[derive(Default)]
pub(super) struct Walked {
    pub(super) directories: u64,
    /// Neither directories nor regular files.
    pub(super) others: u64,
    /// Files taken over from the parent snapshot.
    pub(super) unmodified: u64,
    /// Their bytes.
    pub(super) unmodified_bytes: u64,
    /// Packs that folders taken over from the parent snapshot need.
    pub(super) packs: HashSet<PackId>,
    /// Pages of chunks that these need, and the bytes of each.
    pub(super) lists: HashSet<(u64, TreeRef)>,
}

impl Walked {
    /// Adds what nobody had to read to a backup's summary.
    pub(super) fn add_to(&self, summary: &mut Summary) {
        summary.directories += self.directories;
        summary.others += self.others;
        summary.files += self.unmodified;
        summary.files_unmodified += self.unmodified;
        summary.bytes += self.unmodified_bytes;
    }
}

/// The innermost folders of a walk, as far out as nothing had to be said of them yet.
#[derive(Default)]
pub(super) struct Unsaid(Vec<Folder>);

struct Folder {
    node: Node,
    tree: TreeRef,
    page: Arc<Page>,
    /// How many entries were as in the page.
    kept: usize,
}

impl Unsaid {
    /// Tells whether there is nothing to be said.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Enters a folder that the parent snapshot has in one page.
    pub(super) fn enter(&mut self, node: Node, tree: TreeRef, page: Arc<Page>) {
        self.0.push(Folder { node, tree, page, kept: 0 });
    }

    /// Notes that the next entry of the folder entered last is as it was; `false` if that has to be said.
    pub(super) fn keep(&mut self, known: &Known) -> bool {
        match self.0.last_mut() {
            Some(folder) if known.is(&folder.page, folder.kept) => {
                folder.kept += 1;
                true
            }
            _ => false,
        }
    }

    /// Leaves a folder and returns its node if all of it is as it was; `None` if that is not so or was said already.
    pub(super) fn leave(&mut self, walked: &mut Walked) -> Option<Node> {
        let folder = self.0.pop_if(|folder| folder.kept == leaf(&folder.page).len())?;
        let mut last = None;
        folder.page.for_each_pack(|pack| {
            if last.replace(pack) != Some(pack) {
                walked.packs.insert(pack);
            }
        });
        folder.page.for_each_list(|bytes, at| {
            walked.lists.insert((bytes, at));
        });
        walked.packs.insert(folder.tree.pack);
        Some(Node { kind: NodeKind::Directory(folder.tree), ..folder.node })
    }

    /// Returns what was held back, in the order of the walk.
    pub(super) fn steps(self) -> impl Iterator<Item = Step> {
        self.0.into_iter().flat_map(|Folder { node, tree, page, kept }| {
            let entries = (0..kept).map(move |at| Step::Node(leaf(&page)[at].clone()));
            std::iter::once(Step::Enter(node, Some(tree))).chain(entries)
        })
    }
}
