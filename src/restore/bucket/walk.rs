//! The walk of what is restored into a bucket: each file with its key, what a bucket cannot hold counted.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::runtime::Handle;

use super::super::report::{Tally, Unheld, count};
use super::{Places, RestoreError, Start, first_nodes};
use crate::monitor::Monitor;
use crate::repo::path::{Nodes, leaf};
use crate::repo::tree::{Node, NodeKind, TreeRef};
use crate::repo::{Reader, RepoError};

/// The deepest folder that is entered.
const DEPTH_MAX: usize = 4096;

/// Takes a file, its key and its path in the snapshot.
type Take<'t> = dyn FnMut(&Node, &str, &[u8]) -> Result<(), RestoreError> + 't;

/// A walk.
pub(super) struct Walk<'a> {
    pub(super) reader: &'a Reader,
    pub(super) runtime: &'a Handle,
    pub(super) places: &'a Places<'a>,
    pub(super) monitor: &'a Arc<Monitor>,
    /// Nothing is done yet: what goes wrong is told the next time.
    pub(super) is_plan: bool,
}

impl Walk<'_> {
    /// Walks all of it.
    pub(super) fn run(&self, start: &Start, tally: &Tally, take: &mut Take<'_>) -> Result<(), RestoreError> {
        let mut path = Vec::new();
        for node in first_nodes(start) {
            self.entry(node, &mut path, tally, take)?;
        }
        match start {
            Start::Folder(tree, _) => self.folder(*tree, &mut path, tally, take).map(drop),
            Start::Entry(_) => Ok(()),
        }
    }

    /// Walks a folder; tells whether there is anything in it.
    fn folder(
        &self,
        tree: TreeRef,
        path: &mut Vec<u8>,
        tally: &Tally,
        take: &mut Take<'_>,
    ) -> Result<bool, RestoreError> {
        let (mut nodes, mut has_any) = (Nodes::new(self.reader, tree), false);
        loop {
            if self.monitor.stopped() {
                return Err(RestoreError::Stopped);
            }
            match self.runtime.block_on(nodes.next_page()) {
                Ok(None) => return Ok(has_any),
                Ok(Some(page)) => {
                    for node in leaf(&page) {
                        has_any = true;
                        self.entry(node, path, tally, take)?;
                    }
                }
                // What is on the other pages can still be had.
                Err(RepoError::Damaged { object, problem }) => {
                    has_any = true;
                    self.fail(path, format!("{object}: {problem}"), true, tally);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn entry(&self, node: &Node, path: &mut Vec<u8>, tally: &Tally, take: &mut Take<'_>) -> Result<(), RestoreError> {
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(node.name.as_bytes());
        let done = self.take(node, path, tally, take);
        path.truncate(before);
        done
    }

    fn take(&self, node: &Node, path: &mut Vec<u8>, tally: &Tally, take: &mut Take<'_>) -> Result<(), RestoreError> {
        let unheld = |kind| tally.unhold(kind, || self.places.in_snapshot(path));
        match &node.kind {
            NodeKind::File(content) => match self.places.key(path) {
                Ok(Some(key)) => {
                    if !content.holes.is_empty() {
                        unheld(Unheld::Holes);
                    }
                    return take(node, &key, &self.places.in_snapshot(path));
                }
                Ok(None) => unheld(Unheld::Top),
                Err(problem) => self.fail(path, problem.to_owned(), false, tally),
            },
            NodeKind::Directory(tree) => {
                if path.iter().filter(|byte| **byte == b'/').count() >= DEPTH_MAX {
                    self.fail(path, "too many folders in each other".to_owned(), false, tally);
                    return Ok(());
                }
                if !self.is_plan {
                    self.monitor.directories.fetch_add(1, Ordering::Relaxed);
                    count(&tally.directories, 1);
                }
                if !self.folder(*tree, path, tally, take)? {
                    tally.unhold(Unheld::EmptyFolders, || self.places.in_snapshot(path));
                }
            }
            NodeKind::Symlink(_) => unheld(Unheld::Links),
            NodeKind::CharDevice(..) | NodeKind::BlockDevice(..) | NodeKind::Fifo | NodeKind::Socket => {
                unheld(Unheld::Specials);
            }
        }
        Ok(())
    }

    fn fail(&self, path: &[u8], message: String, damaged: bool, tally: &Tally) {
        tally.fail(self.places.in_snapshot(path), message, damaged);
    }
}

/// Returns the length of a file.
pub(super) fn bytes_of(node: &Node) -> Option<u64> {
    match &node.kind {
        NodeKind::File(content) => Some(content.bytes),
        _ => None,
    }
}
