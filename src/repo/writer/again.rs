//! The last look before a snapshot is put: is all that it refers to there, and does it stay?
//!
//! Two listings as a rule, and that of the session's own packs if it put any (`docs/format.md`, "A writer against prune").

use std::collections::HashSet;

use bytes::Bytes;

use super::super::error::RepoError;
use super::super::id::{PackId, RunId};
use super::super::tree::Data;
use super::super::{Repo, layout, lookup, standing};
use super::Writer;

/// Memory of the reader that looks into pages of chunks that were taken over.
const LISTS_READER_BYTES: usize = 16 << 20;

/// From the look to the snapshot there must be less than any grace period, a day as a rule: a machine may have slept.
const LATE_MS: i64 = 6 * 3_600_000;

impl Writer {
    /// Looks again and puts the snapshot; if that took too long, looks once more, and takes it back if something is gone.
    pub(super) async fn put_snapshot(&self, name: &str, object: Bytes) -> Result<(), RepoError> {
        let Repo { store, env, .. } = &self.repo;
        if store.is_dry() {
            return Ok(());
        }
        let looked_ms = env.clock.unix_ms();
        self.look_again().await?;
        store.put_new(name, object).await?;
        if env.clock.unix_ms().saturating_sub(looked_ms) < LATE_MS {
            return Ok(());
        }
        let still = self.look_again().await;
        if let Err(RepoError::Pruned(_)) = still {
            store.delete(name).await?;
        }
        still
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
        // A prune may have taken what was put here for left over, before an index run named it.
        if self.packs_begun > 0 {
            let there = store.list(&format!("{}/{}", layout::PACKS, self.session)).await?;
            let there: HashSet<PackId> = there.iter().filter_map(|object| layout::parse_pack(&object.name)).collect();
            let own = used.iter().filter(|pack| pack.session == self.session);
            lost.extend(own.filter(|pack| !there.contains(pack)));
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
