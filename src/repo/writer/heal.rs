//! A writer that stores what was lost and nothing else, and one that keeps off packs that cannot be relied on.
//!
//! A healing writer is fed like any other, from a folder or another kloset. What it is given is stored if its id is among
//! those that were lost; what it returns as the place of a chunk is the place that the lost references name. So trees come
//! out byte by byte as they were, where the source is still what it was, and have the ids by which they are missed.

use std::collections::HashSet;

use tokio::runtime::Handle;

use super::super::Repo;
use super::super::check::Lost;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId, SessionId};
use super::super::tree::{ChunkRef, Data, FileContent, Location, Node, NodeKind, Placed, TreeRef};
use super::{Writer, WriterOptions};

/// What a healing writer is after.
pub(super) struct Healing {
    wanted: HashSet<ChunkId>,
    stored: HashSet<ChunkId>,
}

impl Healing {
    /// Tells whether a chunk is to be stored now: it was lost and did not come before.
    pub(super) fn take(&mut self, id: ChunkId) -> bool {
        self.wanted.remove(&id) && self.stored.insert(id)
    }
}

impl Writer {
    /// Begins a session that stores what was lost, and nothing else.
    ///
    /// # Errors
    /// [`RepoError`] if the index cannot be loaded.
    pub fn healing(repo: &Repo, runtime: Handle, lost: &Lost) -> Result<Self, RepoError> {
        let mut writer = Self::new(repo, runtime, WriterOptions::default());
        for at in lost.content.values() {
            writer.content_places.insert(at.id, &Placed { bytes: at.bytes, frame: 0, location: at.location });
        }
        for at in lost.trees.values() {
            writer.tree_places.insert(at.id, &placed(at));
        }
        let wanted = lost.content.keys().chain(lost.trees.keys()).copied().collect();
        writer.healing = Some(Healing { wanted, stored: HashSet::new() });
        writer.load_index()?;
        Ok(writer)
    }

    /// Returns what was stored of what was lost.
    #[must_use]
    pub fn healed(&self) -> HashSet<ChunkId> {
        self.healing.as_ref().map(|healing| healing.stored.clone()).unwrap_or_default()
    }

    /// Treats these packs as absent; call it before anything is added.
    pub fn shun(&mut self, packs: HashSet<PackId>) {
        self.shunned = packs;
    }

    /// Stores a tree as it is unless it is there, and tells whether it was new.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn copy_tree(&mut self, raw: &[u8]) -> Result<bool, RepoError> {
        self.load_index()?;
        let id = self.repo.keys.tree_id(raw);
        let is_new = self.tree_places.get(id).is_none();
        if is_new {
            self.append_tree(id, raw)?;
        }
        Ok(is_new)
    }

    /// Turns a node's references to packs that are shunned into such to other places, where there are any.
    ///
    /// # Errors
    /// [`RepoError`] if the index cannot be loaded.
    pub fn move_out(&mut self, node: &mut Node) -> Result<(), RepoError> {
        self.load_index()?;
        let tree = |at: &mut TreeRef| {
            if self.shunned.contains(&at.pack)
                && let Some(placed) = self.tree_places.get(at.id).filter(|placed| placed.bytes == at.bytes)
            {
                *at = TreeRef::from_placed(at.id, &placed);
            }
        };
        let chunk = |at: &mut ChunkRef| {
            if self.shunned.contains(&at.location.pack)
                && let Some(placed) = self.content_places.get(at.id).filter(|placed| placed.bytes == at.bytes)
            {
                at.location = placed.location;
            }
        };
        match &mut node.kind {
            NodeKind::Directory(at) => tree(at),
            NodeKind::File(FileContent { data: Data::Chunks(chunks), .. }) => chunks.iter_mut().for_each(chunk),
            NodeKind::File(FileContent { data: Data::Pages(pages), .. }) => {
                pages.iter_mut().for_each(|(_, page)| tree(page));
            }
            _ => {}
        }
        Ok(())
    }

    /// Stores a tree if it was lost, and returns where its references say that it is.
    pub(super) fn heal_tree(&mut self, id: ChunkId, raw: &[u8]) -> Result<TreeRef, RepoError> {
        if self.healing.as_mut().is_some_and(|healing| healing.take(id)) {
            self.append_tree(id, raw)?;
        }
        let bytes = super::length(raw);
        Ok(TreeRef::from_placed(id, &self.tree_places.get(id).unwrap_or_else(|| nowhere(bytes))))
    }

    /// Tells whether a chunk was lost and is to be stored. One that is neither lost nor stored is given a place, so that the
    /// trees above it can be made: they are not what was lost.
    pub(super) fn is_lost(&mut self, id: ChunkId, content: &[u8]) -> bool {
        let is_lost = self.healing.as_mut().is_some_and(|healing| healing.take(id));
        if !is_lost && !self.has_content(id) {
            self.content_places.insert(id, &nowhere(super::length(content)));
        }
        is_lost
    }
}

fn placed(at: &TreeRef) -> Placed {
    let location = Location { pack: at.pack, frame_offset: 0, frame_bytes: 0, chunk_offset: at.chunk_offset };
    Placed { bytes: at.bytes, frame: at.frame, location }
}

fn nowhere(bytes: u32) -> Placed {
    let pack = PackId { session: SessionId([0; 32]), number: 0 };
    Placed { bytes, frame: 0, location: Location { pack, frame_offset: 0, frame_bytes: 0, chunk_offset: 0 } }
}
