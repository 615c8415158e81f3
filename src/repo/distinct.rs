//! Many snapshots walked as one: every distinct page of their trees once.
//!
//! Snapshots share most of their trees, and a tree's id tells. The walk goes through one snapshot after the other, the
//! oldest first, since what is new in a snapshot lies together in the packs that its backup wrote; the roots of the next
//! ones are on their way meanwhile, many at once, so that a thousand small packs do not cost a thousand waits. Pages are
//! numbered so that everything below a page has a smaller number than it. Memory is bounded by the number of distinct
//! pages, 36 bytes each. It does not know what is looked for.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::error::RepoError;
use super::id::ChunkId;
use super::layout::SnapshotName;
use super::path::leaf;
use super::reader::Reader;
use super::tree::{NodeKind, Page, TreeRef};
use super::wanted::Rooted;

/// Number of a page that could not be read.
pub(super) const LOST: u32 = u32::MAX;
/// Packs that are fetched ahead have about so many bytes together.
const AHEAD_BYTES: u64 = 8 << 20;
/// The fewest snapshots whose roots are fetched ahead.
const AHEAD_MIN: u64 = 4;
/// The most.
const AHEAD_MAX: u64 = 64;
/// What a pack is taken for until one has come.
const PACK_BYTES_GUESS: u64 = 256 << 10;
/// Unreadable folders that are named; the rest is counted.
const PROBLEMS_MAX: usize = 100;

/// The first half of a page's id: 2^64 pages before two are mistaken for one.
type PageKey = [u8; 16];

/// What is done with each distinct page.
pub(super) trait Visit {
    /// Takes the next page: where it is, and the numbers of what it refers to, in its order: pages of a branch, folders of
    /// a leaf.
    async fn page(&mut self, at: &TreeRef, page: &Page, below: &[u32]) -> Result<(), RepoError>;
}

/// A folder that could not be read.
#[derive(Clone, Debug)]
pub struct Problem {
    /// The first snapshot that has it.
    pub snapshot: SnapshotName,
    /// Its path there.
    pub path: Vec<u8>,
    /// Why not.
    pub error: RepoError,
}

/// What the walk came to.
#[derive(Debug, Default)]
pub struct Walked {
    /// The number of each snapshot's root.
    pub(super) roots: Vec<u32>,
    /// How many pages were read.
    pub pages: u64,
    /// Folders that could not be read, the first hundred.
    pub problems: Vec<Problem>,
    /// How many there are.
    pub problems_total: u64,
}

/// A page being gone through.
struct Open {
    at: TreeRef,
    page: Arc<Page>,
    slot: usize,
    /// Length of the path of the folder it is of.
    path_bytes: usize,
    below: Vec<u32>,
}

struct Walk<'a, V> {
    reader: &'a Reader,
    visit: &'a mut V,
    numbers: HashMap<PageKey, u32>,
    next: u32,
    snapshot: SnapshotName,
    path: Vec<u8>,
    walked: Walked,
}

/// Walks the trees of snapshots.
///
/// # Errors
/// [`RepoError`], but damage, which is told in [`Walked`].
pub(super) async fn walk(reader: &Reader, snapshots: &[Rooted], visit: &mut impl Visit) -> Result<Walked, RepoError> {
    let Some(first) = snapshots.first() else { return Ok(Walked::default()) };
    let (snapshot, path, walked) = (first.name, Vec::new(), Walked::default());
    let mut walk = Walk { reader, visit, numbers: HashMap::new(), next: 0, snapshot, path, walked };
    let mut ahead = Ahead::new(reader.clone());
    for (at, Rooted { name, root }) in snapshots.iter().enumerate() {
        ahead.reach(snapshots, at);
        walk.snapshot = *name;
        let number = walk.snapshot_from(*root).await?;
        walk.walked.roots.push(number);
    }
    Ok(walk.walked)
}

impl<V: Visit> Walk<'_, V> {
    /// Goes through all that is below `root` and not yet seen, and returns the root's number.
    async fn snapshot_from(&mut self, root: TreeRef) -> Result<u32, RepoError> {
        self.path.clear();
        let mut open: Vec<Open> = Vec::new();
        let mut entered = self.enter(root).await?;
        loop {
            let number = match entered {
                Entered::Opened(page) => {
                    open.push(page);
                    None
                }
                Entered::Known(number) => Some(number),
            };
            let Some(top) = open.last_mut() else { return Ok(number.unwrap_or(LOST)) };
            top.below.extend(number);
            self.path.truncate(top.path_bytes);
            entered = match next_below(top, &mut self.path) {
                Some(page) => self.enter(page).await?,
                None => Entered::Known(self.leave(open.pop().expect("there is a last one")).await?),
            };
        }
    }

    async fn enter(&mut self, at: TreeRef) -> Result<Entered, RepoError> {
        if let Some(number) = self.numbers.get(&key_of(at.id)) {
            return Ok(Entered::Known(*number));
        }
        match self.reader.page(&at).await {
            Ok(page) => Ok(Entered::Opened(Open { at, page, slot: 0, path_bytes: self.path.len(), below: Vec::new() })),
            Err(error @ RepoError::Damaged { .. }) => {
                self.numbers.insert(key_of(at.id), LOST);
                self.walked.problems_total += 1;
                if self.walked.problems.len() < PROBLEMS_MAX {
                    let (snapshot, path) = (self.snapshot, self.path.clone());
                    self.walked.problems.push(Problem { snapshot, path, error });
                }
                Ok(Entered::Known(LOST))
            }
            Err(error) => Err(error),
        }
    }

    async fn leave(&mut self, open: Open) -> Result<u32, RepoError> {
        self.visit.page(&open.at, &open.page, &open.below).await?;
        let number = self.next;
        self.next += 1;
        self.walked.pages += 1;
        self.numbers.insert(key_of(open.at.id), number);
        Ok(number)
    }
}

/// What became of a reference that was followed.
enum Entered {
    Opened(Open),
    Known(u32),
}

/// Returns what the next entry of a page refers to, and adds a folder's name to the path.
fn next_below(open: &mut Open, path: &mut Vec<u8>) -> Option<TreeRef> {
    if let Page::Branch(entries) = &*open.page {
        open.slot += 1;
        return entries.get(open.slot - 1).map(|entry| entry.page);
    }
    while let Some(node) = leaf(&open.page).get(open.slot) {
        open.slot += 1;
        if let NodeKind::Directory(tree) = node.kind {
            path.push(b'/');
            path.extend_from_slice(node.name.as_bytes());
            return Some(tree);
        }
    }
    None
}

/// Fetches the roots of the next snapshots.
struct Ahead {
    reader: Reader,
    under_way: JoinSet<usize>,
    /// The first snapshot that nothing was fetched for yet.
    next: usize,
    packs: u64,
    bytes: u64,
}

impl Ahead {
    fn new(reader: Reader) -> Self {
        Self { reader, under_way: JoinSet::new(), next: 0, packs: 0, bytes: 0 }
    }

    /// Fetches what comes behind snapshot `at`, which the walk has reached.
    fn reach(&mut self, snapshots: &[Rooted], at: usize) {
        while let Some(fetched) = self.under_way.try_join_next() {
            self.packs += 1;
            self.bytes += fetched.unwrap_or(0) as u64;
        }
        let bytes = self.bytes.checked_div(self.packs).map_or(PACK_BYTES_GUESS, |bytes| bytes.max(1));
        let window = (AHEAD_BYTES / bytes).clamp(AHEAD_MIN, AHEAD_MAX);
        let end = snapshots.len().min(at + 1 + usize::try_from(window).expect("a small number"));
        self.next = self.next.max(at + 1);
        while self.next < end {
            let (reader, root) = (self.reader.clone(), snapshots[self.next].root);
            self.under_way.spawn(async move { reader.page_ahead(&root).await });
            self.next += 1;
        }
    }
}

fn key_of(id: ChunkId) -> PageKey {
    *id.0.first_chunk().expect("32 bytes hold 16")
}
