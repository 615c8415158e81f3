//! Reading past the cache on disk, where what came through it does not open.
//!
//! The cache returns what the store returned once. Had the store, or the way from it, bad bytes on that day, they must
//! not outlive it: what is kept of the pack is removed and the store asked again.

use super::{PackId, Reader, RepoError};

/// Memory of the reader that does it: damage is rare.
const AFRESH_BYTES: usize = 8 << 20;

impl Reader {
    /// Returns a reader without a cache on disk, after damage in a pack that may have come from there.
    pub(super) async fn afresh(&self, pack: PackId, error: &RepoError) -> Option<&Self> {
        let cache = self.0.store.cache()?;
        if !matches!(error, RepoError::Damaged { .. }) {
            return None;
        }
        cache.forget(&pack.to_string()).await;
        let store = self.0.store.without_cache();
        let with = (self.0.keys.clone(), self.0.cpu.clone());
        let new = || Self::over(store, with, (self.0.moved.clone(), self.0.moves.clone()), AFRESH_BYTES);
        Some(self.0.afresh.get_or_init(new))
    }
}
