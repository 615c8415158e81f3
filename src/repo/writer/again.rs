//! The last look before a snapshot is put: is all that it refers to there, and does it stay?
//!
//! Two listings as a rule (`docs/format.md`, "A writer against prune"). What is taken over from a base is there as long as the
//! base is: a prune spares what a snapshot needs, wherever it moved it. So of a base only that is asked, before the put and
//! after it.

use std::collections::HashSet;

use bytes::Bytes;

use super::super::error::RepoError;
use super::super::id::PackId;
use super::super::layout::SnapshotName;
use super::super::standing::{self, LastLook};
use super::super::tree::{Data, Page, TreeRef};
use super::Writer;

/// Memory of the reader that looks into pages of chunks that were taken over.
const LISTS_READER_BYTES: usize = 16 << 20;

impl Writer {
    /// Says which snapshot of this kloset all is taken over from that is not stored, for the next snapshot: as long as that one
    /// is there, what it refers to is.
    pub fn stand_on(&mut self, base: Option<SnapshotName>) {
        self.base = base;
    }

    /// Notes that a chunk's place was taken over from the parent snapshot.
    pub fn use_pack(&mut self, pack: PackId) {
        if self.base.is_none() {
            self.used.insert(pack);
        }
    }

    /// Notes that a page of a file's chunks was taken over from the parent snapshot, and the bytes of these.
    pub fn use_list(&mut self, bytes: u64, at: TreeRef) {
        if self.base.is_none() && at.pack.session != self.session {
            self.lists.insert((bytes, at));
        }
    }

    /// Notes all that a page refers to.
    pub fn use_page(&mut self, page: &Page) {
        page.for_each_pack(|pack| self.use_pack(pack));
        page.for_each_list(|bytes, at| self.use_list(bytes, at));
    }

    /// Puts the snapshot if all that it refers to is there and stays.
    pub(super) async fn put_snapshot(&self, name: &str, object: Bytes) -> Result<(), RepoError> {
        standing::put_checked(&self.repo, name, object, async || self.look_again().await).await?;
        if self.repo.store.is_dry() {
            return Ok(());
        }
        let still = self.base_is_there().await;
        if let Err(RepoError::NoSnapshot(_)) = still {
            self.repo.store.delete(name).await?;
        }
        still
    }

    /// Makes sure that all that the snapshot refers to is there and stays.
    async fn look_again(&self) -> Result<(), RepoError> {
        let last = LastLook::look(&self.repo, self.relied_on.iter().chain(&self.runs)).await?;
        let mut used = self.used.clone();
        if last.is_index_gone || !last.pending.is_subset(&self.standing.pending) {
            used.extend(self.packs_of_lists().await?);
        }
        last.hold(&self.repo, &used).await?;
        self.base_is_there().await
    }

    async fn base_is_there(&self) -> Result<(), RepoError> {
        let Some(base) = self.base else { return Ok(()) };
        match self.repo.snapshots().await?.binary_search(&base) {
            Ok(_) => Ok(()),
            Err(_) => Err(RepoError::NoSnapshot(base.id.to_string())),
        }
    }

    /// Reads which packs the pages of chunks refer to that were taken over.
    async fn packs_of_lists(&self) -> Result<HashSet<PackId>, RepoError> {
        let (reader, mut packs) = (self.repo.reader(LISTS_READER_BYTES), HashSet::new());
        for list in &self.lists {
            let chunks = reader.chunks_in(&Data::Pages(vec![*list]), 0..u64::MAX).await?;
            packs.extend(chunks.iter().map(|(_, chunk)| chunk.location.pack));
        }
        Ok(packs)
    }
}
