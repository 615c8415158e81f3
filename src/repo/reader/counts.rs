//! How often a reader found what it sought, cache by cache.

use super::super::cache::CacheCounts;
use super::Reader;
use crate::store::DiskCacheCounts;

impl Reader {
    /// Returns what was asked of each cache in memory so far, from the outermost to the innermost.
    #[must_use]
    pub fn counts(&self) -> [(&'static str, CacheCounts); 5] {
        [
            ("pages", self.0.pages.counts()),
            ("content_lists", self.0.lists.counts()),
            ("frames", self.0.frames.counts()),
            ("tree_packs", self.0.tree_packs.counts()),
            ("blocks", self.0.blocks.counts()),
        ]
    }

    /// Returns what was looked for in the cache on disk so far, if there is one.
    #[must_use]
    pub fn disk_counts(&self) -> Option<DiskCacheCounts> {
        self.0.store.cache().map(crate::store::DiskCache::counts)
    }
}
