//! Which packs a snapshot needs: its trees are read, and what no longer lies where they say is sought in the index.
//!
//! Trees that another snapshot needed are not read again. It reads one kloset and knows no other.

use std::collections::{BTreeSet, HashMap, HashSet};

use tokio::runtime::Handle;

use crate::monitor::Monitor;
use crate::repo::id::{ChunkId, PackId};
use crate::repo::lookup::Index;
use crate::repo::pack::PackKind;
use crate::repo::path::leaf;
use crate::repo::tree::{Data, FileContent, NodeKind, Page, TreeRef};
use crate::repo::{Reader, Repo, RepoError};

/// How much of a large file's list of chunks is looked at together.
const LIST_BYTES: u64 = 256 << 20;

/// Reads the trees of one kloset.
pub(super) struct Needs<'a> {
    repo: &'a Repo,
    runtime: &'a Handle,
    reader: Reader,
    /// Packs that are in the store.
    there: HashSet<PackId>,
    /// Trees all of whose packs were copied.
    known: HashSet<ChunkId>,
    index: Option<Index>,
}

/// What one snapshot needs beyond those before it.
#[derive(Default)]
pub(super) struct Needed {
    /// Packs of content, then packs of trees.
    pub(super) packs: BTreeSet<PackId>,
    trees: HashSet<ChunkId>,
    /// Chunks that are no longer where a tree says.
    moved: HashMap<ChunkId, PackKind>,
}

impl<'a> Needs<'a> {
    pub(super) fn new(repo: &'a Repo, runtime: &'a Handle, reader: Reader, there: HashSet<PackId>) -> Self {
        Self { repo, runtime, reader, there, known: HashSet::new(), index: None }
    }

    /// Finds the packs that a snapshot needs and those before it did not; `None` if it was stopped.
    pub(super) fn of(&mut self, root: TreeRef, monitor: &Monitor) -> Result<Option<Needed>, RepoError> {
        let (mut needed, mut pages) = (Needed::default(), vec![root]);
        self.note(&mut needed, (root.pack, root.id, PackKind::Tree));
        while let Some(at) = pages.pop() {
            if monitor.stopped() {
                return Ok(None);
            }
            if self.known.contains(&at.id) || !needed.trees.insert(at.id) {
                continue;
            }
            let page = self.runtime.block_on(self.reader.page(&at))?;
            self.follow(&page, &mut needed, &mut pages)?;
            monitor.pieces.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
        self.find_moved(&mut needed)?;
        Ok(Some(needed))
    }

    /// Notes that all that a snapshot needs was copied.
    pub(super) fn done(&mut self, needed: Needed) {
        self.known.extend(needed.trees);
    }

    fn follow(&self, page: &Page, needed: &mut Needed, pages: &mut Vec<TreeRef>) -> Result<(), RepoError> {
        let mut trees = Vec::new();
        if let Page::Branch(entries) = page {
            trees.extend(entries.iter().map(|entry| entry.page));
        }
        for node in leaf(page) {
            match &node.kind {
                NodeKind::Directory(tree) => trees.push(*tree),
                NodeKind::File(content) => self.follow_file(content, needed)?,
                _ => {}
            }
        }
        for tree in trees {
            self.note(needed, (tree.pack, tree.id, PackKind::Tree));
            pages.push(tree);
        }
        Ok(())
    }

    fn follow_file(&self, content: &FileContent, needed: &mut Needed) -> Result<(), RepoError> {
        let pages = match &content.data {
            Data::Chunks(chunks) => {
                for chunk in chunks {
                    self.note(needed, (chunk.location.pack, chunk.id, PackKind::Data));
                }
                return Ok(());
            }
            Data::Pages(pages) => pages,
        };
        if pages.iter().all(|(_, page)| self.known.contains(&page.id) || needed.trees.contains(&page.id)) {
            return Ok(());
        }
        let (mut at, end) = (0, content.data_bytes());
        while at < end {
            let until = (at + LIST_BYTES).min(end);
            for (_, chunk) in self.runtime.block_on(self.reader.chunks_in(&content.data, at..until))? {
                self.note(needed, (chunk.location.pack, chunk.id, PackKind::Data));
            }
            at = until;
        }
        for (_, page) in pages {
            self.note(needed, (page.pack, page.id, PackKind::Tree));
            needed.trees.insert(page.id);
        }
        Ok(())
    }

    fn note(&self, needed: &mut Needed, (pack, id, kind): (PackId, ChunkId, PackKind)) {
        match self.there.contains(&pack) {
            true => drop(needed.packs.insert(pack)),
            false => drop(needed.moved.insert(id, kind)),
        }
    }

    /// Adds the packs that the index names for what is no longer where a tree says.
    fn find_moved(&mut self, needed: &mut Needed) -> Result<(), RepoError> {
        let moved = std::mem::take(&mut needed.moved);
        if moved.is_empty() {
            return Ok(());
        }
        let index = match &self.index {
            Some(index) => index,
            None => self.index.insert(self.runtime.block_on(Index::load(&self.repo.store, &self.repo.keys))?),
        };
        let kinds: HashMap<_, _> =
            index.runs.iter().flat_map(|run| &run.packs).map(|pack| (pack.id, pack.kind)).collect();
        for (id, kind) in moved {
            let packs = index.places(id).map(|placed| placed.location.pack);
            let mut packs = packs.filter(|pack| self.there.contains(pack) && kinds.get(pack) == Some(&kind));
            match packs.next() {
                Some(pack) => drop(needed.packs.insert(pack)),
                None => {
                    return Err(RepoError::damaged(format!("chunk {}", id.short()), "it is in no pack that is there"));
                }
            }
        }
        Ok(())
    }
}
