//! Index runs made one: what all say, once, sorted.

use std::collections::HashMap;

use super::id::PackId;
use super::index::{IndexEntry, IndexRun, RUN_ENTRIES_MAX};

/// Runs being merged.
pub(super) struct Merger<'a> {
    /// Which packs are spoken of.
    is_kept: Box<dyn Fn(&PackId) -> bool + Send + 'a>,
    open: IndexRun,
    places: HashMap<PackId, u32>,
    /// Runs of about as many entries as one holds at most.
    pub(super) full: Vec<IndexRun>,
}

impl Default for Merger<'_> {
    fn default() -> Self {
        Self::keeping(|_| true)
    }
}

impl<'a> Merger<'a> {
    /// Returns what speaks only of the packs for which `is_kept` holds.
    pub(super) fn keeping(is_kept: impl Fn(&PackId) -> bool + Send + 'a) -> Self {
        let (open, places, full) = (IndexRun::default(), HashMap::new(), Vec::new());
        Self { is_kept: Box::new(is_kept), open, places, full }
    }

    /// Adds what a run says.
    pub(super) fn add(&mut self, run: &IndexRun) {
        if self.open.entries.len() + run.entries.len() > RUN_ENTRIES_MAX {
            self.close();
        }
        let mut places = Vec::with_capacity(run.packs.len());
        for pack in &run.packs {
            let kept = (self.is_kept)(&pack.id).then(|| {
                let next = u32::try_from(self.open.packs.len()).expect("a run is closed long before");
                *self.places.entry(pack.id).or_insert_with(|| {
                    self.open.packs.push(*pack);
                    next
                })
            });
            places.push(kept);
        }
        let kept = run.entries.iter().filter_map(|e| Some(IndexEntry { pack: places[e.pack as usize]?, ..*e }));
        self.open.entries.extend(kept);
    }

    /// Closes the run under construction.
    pub(super) fn close(&mut self) {
        let mut run = std::mem::take(&mut self.open);
        self.places.clear();
        run.entries.sort_unstable();
        run.entries.dedup();
        if !run.packs.is_empty() {
            self.full.push(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::{ChunkId, SessionId};
    use super::super::pack::{Footer, FrameEntry, PackKind};
    use super::*;

    fn pack(number: u32) -> PackId {
        PackId { session: SessionId([3; 32]), number }
    }

    fn run(packs: &[u32]) -> IndexRun {
        let mut run = IndexRun::default();
        for number in packs {
            let chunks = vec![(ChunkId([u8::try_from(*number).unwrap(); 32]), 10), (ChunkId([200; 32]), 20)];
            let frames = vec![FrameEntry { offset: 8, bytes: 70, chunks }];
            run.add_pack(pack(*number), 500, &Footer { version: 1, kind: PackKind::Data, frames });
        }
        run.entries.sort_unstable();
        run
    }

    #[test]
    fn merged_runs_say_what_all_said_once_and_nothing_of_packs_that_go() {
        let mut merger = Merger::keeping(|id| id.number != 2);
        for packs in [&[1, 2, 3][..], &[3, 4], &[2]] {
            merger.add(&run(packs));
        }
        merger.close();
        merger.close();
        let [only] = &merger.full[..] else { panic!("{} runs", merger.full.len()) };
        assert_eq!(only.packs.iter().map(|p| p.id.number).collect::<Vec<_>>(), [1, 3, 4]);
        let places = |id| only.places(id).map(|p| p.location.pack.number).collect::<Vec<_>>();
        assert_eq!(places(ChunkId([200; 32])), [1, 3, 4]);
        assert_eq!((places(ChunkId([3; 32])), places(ChunkId([2; 32]))), (vec![3], vec![]));
        assert_eq!(only.entries.len(), 6);
    }
}
