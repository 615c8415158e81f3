//! The last look before a snapshot is put: is all that it refers to there, and does it stay?
//!
//! Two listings as a rule (`docs/format.md`, "A writer against prune").

use std::collections::HashSet;

use bytes::Bytes;

use super::super::error::RepoError;
use super::super::id::{PackId, RunId};
use super::super::tree::Data;
use super::super::{Repo, layout, lookup, standing};
use super::Writer;

/// Memory of the reader that looks into pages of chunks that were taken over.
const LISTS_READER_BYTES: usize = 16 << 20;

impl Writer {
    /// Puts the snapshot if all that it refers to is there and stays.
    pub(super) async fn put_snapshot(&self, name: &str, object: Bytes) -> Result<(), RepoError> {
        standing::put_checked(&self.repo, name, object, async || self.look_again().await).await
    }

    /// Makes sure that all that the snapshot refers to is there and stays, in the order that `docs/format.md` says, "A writer
    /// against prune".
    async fn look_again(&self) -> Result<(), RepoError> {
        let Repo { store, keys, .. } = &self.repo;
        let pending = lookup::load_pending(store, keys).await?;
        let index = store.list(layout::INDEX).await?;
        let runs: HashSet<RunId> = index.iter().filter_map(|object| layout::parse_run(&object.name)).collect();
        let is_index_gone = self.relied_on.iter().chain(&self.runs).any(|run| !runs.contains(run));
        let mut used = self.used.clone();
        if is_index_gone || !pending.is_subset(&self.standing.pending) {
            used.extend(self.packs_of_lists().await?);
        }
        let mut lost: HashSet<PackId> = pending.intersection(&used).copied().collect();
        if is_index_gone {
            let named = standing::named(&self.repo).await?;
            lost.extend(used.iter().filter(|pack| !named.contains(pack)));
        }
        if lost.is_empty() { Ok(()) } else { Err(RepoError::Pruned(lost.len())) }
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
