//! The names that several folders hold between them, in an order that does not change.
//!
//! They come in the order of their hashes, as ext4 lists a folder: so the place of a name follows from the name alone, and
//! a listing that was begun goes on rightly whatever snapshots come and go. Each distinct page is read once. At most
//! 65,536 names are held at a time; a folder of more is gone through again for the next.

use std::collections::{BTreeMap, HashSet};

use futures::StreamExt;

use super::guard::Guard;
use super::hash;
use super::history::History;
use crate::repo::RepoError;
use crate::repo::cache::Weigh;
use crate::repo::path::leaf;
use crate::repo::reader::Reader;
use crate::repo::tree::{BRANCH_DEPTH_MAX, Node, Page, TreeRef};

/// Set in the place of every name; below are the places of versions.
pub const NAME_BIT: u64 = 1 << 62;
/// Names held at a time: a few MiB.
const NAMES_MAX: usize = 1 << 16;
/// Pages fetched at once.
const FETCHES: usize = 16;
/// After so many pages others have their turn: what is in memory is gone through without ever waiting.
const TURN_PAGES: usize = 64;

/// Some of the names, without a gap.
pub struct Union {
    from: u64,
    /// Place, name, and whom its folder lets in.
    names: Vec<(u64, Box<[u8]>, Guard)>,
    /// Whether there are none behind.
    pub is_end: bool,
    /// Why names may be missing.
    pub problem: Option<RepoError>,
}

impl Union {
    /// Tells whether what follows `offset` begins in here.
    #[must_use]
    pub fn covers(&self, offset: u64) -> bool {
        offset >= self.from && (self.is_end || self.names.last().is_some_and(|last| offset < last.0))
    }

    /// Returns the names behind `offset`.
    pub fn behind(&self, offset: u64) -> impl Iterator<Item = &(u64, Box<[u8]>, Guard)> {
        self.names[self.names.partition_point(|name| name.0 <= offset)..].iter()
    }
}

impl Weigh for Union {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.names.iter().map(|name| size_of_val(name) + name.1.len() + 16).sum::<usize>()
    }
}

/// Returns the place of a name in every listing.
fn place(name: &[u8]) -> u64 {
    NAME_BIT + 1 + (hash::number(&blake3::hash(name)) & (NAME_BIT / 2 - 1))
}

/// Reads the first names behind `from`.
///
/// # Errors
/// [`RepoError::Store`].
pub async fn gather(reader: &Reader, history: &History, from: u64) -> Result<Union, RepoError> {
    let mut window = Window { from, most: NAMES_MAX, names: BTreeMap::new(), is_end: true };
    let mut problem = history.problem.clone();
    let mut level: Vec<TreeRef> = history.folders.iter().map(|folder| folder.0).collect();
    let (mut seen, mut read) = (HashSet::new(), 0);
    for _ in 0..=BRANCH_DEPTH_MAX {
        level.retain(|page| seen.insert(page.id));
        let mut next = Vec::new();
        let pages = std::mem::take(&mut level).into_iter().map(|at| async move { reader.page(&at).await });
        let mut pages = futures::stream::iter(pages).buffered(FETCHES);
        while let Some(page) = pages.next().await {
            match page {
                Ok(page) => match &*page {
                    Page::Branch(entries) => next.extend(entries.iter().map(|entry| entry.page)),
                    Page::Leaf(_) => leaf(&page).iter().for_each(|node| window.add(node)),
                },
                Err(error @ RepoError::Damaged { .. }) => drop(problem.get_or_insert(error)),
                Err(error) => return Err(error),
            }
            read += 1;
            if read % TURN_PAGES == 0 {
                tokio::task::yield_now().await;
            }
        }
        level = next;
    }
    if let Some(page) = level.first() {
        problem.get_or_insert(RepoError::damaged(page.pack, "a directory has too many levels of pages"));
    }
    let names = window.names.into_iter().map(|((place, name), guard)| (place, name, guard)).collect();
    Ok(Union { from, names, is_end: window.is_end, problem })
}

/// The first names behind a place, of those that were added.
struct Window {
    from: u64,
    most: usize,
    names: BTreeMap<(u64, Box<[u8]>), Guard>,
    is_end: bool,
}

impl Window {
    fn add(&mut self, node: &Node) {
        let name = node.name.as_bytes();
        let place = place(name);
        let is_full = self.names.len() >= self.most;
        if place <= self.from {
            return;
        }
        if is_full && self.names.last_key_value().is_some_and(|((last, _), _)| place > *last) {
            self.is_end = false;
            return;
        }
        let guard = self.names.entry((place, name.into())).or_default();
        *guard = guard.and(node);
        if self.names.len() > self.most {
            self.names.pop_last();
            self.is_end = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::tree::NodeKind;
    use crate::repo::tree::tests::{node, tree};

    #[test]
    fn windows_of_any_size_hold_every_name_once_and_in_order() {
        let names: Vec<String> = (0..100).map(|n| format!("name {n}")).collect();
        for most in [1, 7, 100, 1000] {
            let (mut from, mut all) = (NAME_BIT, Vec::new());
            loop {
                let mut window = Window { from, most, names: BTreeMap::new(), is_end: true };
                for name in names.iter().chain(&names[..50]) {
                    window.add(&node(name.as_bytes(), NodeKind::Directory(tree(1))));
                }
                assert!(window.names.len() <= most);
                assert!(window.names.values().all(|guard| *guard != Guard::Open));
                all.extend(window.names.into_keys());
                from = all.last().map_or(from, |last| last.0);
                if window.is_end {
                    break;
                }
            }
            assert!(all.is_sorted() && all[0].0 > NAME_BIT && all[99].0 < i64::MAX as u64, "{most}");
            let mut found: Vec<_> = all.into_iter().map(|name| String::from_utf8(name.1.into()).unwrap()).collect();
            found.sort();
            let mut expected = names.clone();
            expected.sort();
            assert_eq!(found, expected, "{most}");
        }
    }
}
