//! Inode numbers: from a number to the place of its node, and back.
//!
//! A number is a keyless hash, so it is the same at every mount: of the directory's number and the name, or, where a
//! file has several names, of the snapshot and of what the file is, so that its names share one inode. An entry is the
//! place of its node, not the node: nodes are read again through the reader's cache. A million entries take about 40
//! bytes each, besides what their pages share. The kernel counts lookups; what it has forgotten is freed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use super::hash::number;
use crate::repo::cache::Limit;
use crate::repo::id::SnapshotId;
use crate::repo::tree::{Data, Node, NodeKind, TreeRef};

/// Set in the number of every node of a snapshot and of nothing else; the top bit stays free for programs that take
/// inode numbers as signed.
pub const NODE_BIT: u64 = 1 << 62;

/// What an entry takes: its 24 bytes in a tree whose nodes of 11 are two thirds full.
const ENTRY_BYTES: usize = 48;
/// What a page that entries stand in takes, in both tables.
const HOME_BYTES: usize = size_of::<Option<SharedHome>>() + 24;

/// What makes a node the same inode: 62 bits that become its number, and 32 more to notice when two numbers collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    number: u64,
    check: u32,
}

impl Identity {
    /// Returns the identity of a node in a directory.
    #[must_use]
    pub fn of(directory: u64, snapshot: SnapshotId, node: &Node) -> Self {
        let shared = node.identity.links > 1 && !matches!(node.kind, NodeKind::Directory(_));
        if !shared {
            return Self::below(directory, node.name.as_bytes());
        }
        let mut hash = blake3::Hasher::new();
        hash_file(&mut hash, snapshot, node);
        Self::from_hash(&hash)
    }

    /// Returns the identity of what has a name of its own in a directory, as every directory does.
    #[must_use]
    pub fn below(directory: u64, name: &[u8]) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&directory.to_le_bytes()).update(name);
        Self::from_hash(&hash)
    }

    fn from_hash(hash: &blake3::Hasher) -> Self {
        let hash = hash.finalize();
        let check = u32::from_le_bytes(*hash.as_bytes()[8..].first_chunk().expect("24 bytes hold 4"));
        Self { number: number(&hash) & (NODE_BIT - 1) | NODE_BIT, check }
    }
}

/// Hashes what all names of a file have in common.
///
/// Size, times and content are part of it: a file that changed while its names were backed up one after the other is
/// shown as two, since one inode can have one content only.
fn hash_file(hash: &mut blake3::Hasher, snapshot: SnapshotId, node: &Node) {
    hash.update(b"\0file").update(snapshot.as_bytes());
    hash.update(&node.identity.device.to_le_bytes()).update(&node.identity.inode.to_le_bytes());
    hash.update(&node.mtime.seconds.to_le_bytes()).update(&node.mtime.nanos.to_le_bytes());
    hash.update(&node.ctime.seconds.to_le_bytes()).update(&node.ctime.nanos.to_le_bytes());
    hash.update(&node.mode.to_le_bytes());
    match &node.kind {
        NodeKind::File(file) => {
            hash.update(b"f").update(&file.bytes.to_le_bytes());
            for (offset, bytes) in &file.holes {
                hash.update(&offset.to_le_bytes()).update(&bytes.to_le_bytes());
            }
            match &file.data {
                Data::Chunks(chunks) => {
                    for chunk in chunks {
                        hash.update(chunk.id.as_bytes());
                    }
                }
                Data::Pages(pages) => {
                    for (_, page) in pages {
                        hash.update(page.id.as_bytes());
                    }
                }
            }
        }
        NodeKind::Symlink(target) => {
            hash.update(b"l").update(target);
        }
        NodeKind::CharDevice(major, minor) => {
            hash.update(b"c").update(&major.to_le_bytes()).update(&minor.to_le_bytes());
        }
        NodeKind::BlockDevice(major, minor) => {
            hash.update(b"b").update(&major.to_le_bytes()).update(&minor.to_le_bytes());
        }
        NodeKind::Fifo => {
            hash.update(b"p");
        }
        NodeKind::Socket => {
            hash.update(b"s");
        }
        NodeKind::Directory(_) => unreachable!("directories have one name"),
    }
}

/// Where a page of nodes stands: its directory and where it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Home {
    /// Inode number of the directory.
    pub directory: u64,
    /// Which snapshot it is in, by the number of its root in the virtual top.
    pub snapshot: u32,
    /// The leaf page.
    pub page: TreeRef,
}

/// Where a node stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its page.
    pub home: Home,
    /// Its place in the page.
    pub slot: u32,
}

/// One inode that the kernel knows.
#[derive(Clone, Copy)]
struct Entry {
    check: u32,
    home: u32,
    slot: u32,
    lookups: u32,
}

/// A page that inodes stand in, shared by all of them.
struct SharedHome {
    home: Home,
    users: u32,
}

/// The table of inodes. What it takes, the caches that share its limit give up.
pub struct Inodes {
    state: Mutex<State>,
    limit: Arc<Limit>,
}

#[derive(Default)]
struct State {
    /// A tree, because a hash table of a million entries doubles and halves by tens of megabytes at once.
    entries: BTreeMap<u64, Entry>,
    homes: Vec<Option<SharedHome>>,
    free_homes: Vec<u32>,
    /// From the hash of a home to its number; two that collide are simply not shared.
    by_hash: HashMap<u64, u32>,
}

impl Inodes {
    /// Returns an empty table, which takes its part of `limit`.
    #[must_use]
    pub fn new(limit: Arc<Limit>) -> Self {
        Self { state: Mutex::default(), limit }
    }

    /// Returns the number of an inode without counting a lookup, as a listing without attributes wants it.
    #[must_use]
    pub fn number(&self, identity: Identity) -> u64 {
        self.lock().free_or_own(identity)
    }

    /// Counts a lookup of a node and returns its inode number.
    #[must_use]
    pub fn remember(&self, identity: Identity, place: Place) -> u64 {
        let mut state = self.lock();
        let number = state.free_or_own(identity);
        if let Some(entry) = state.entries.get_mut(&number) {
            entry.lookups = entry.lookups.saturating_add(1);
            return number;
        }
        let home = state.share(place.home);
        state.entries.insert(number, Entry { check: identity.check, home, slot: place.slot, lookups: 1 });
        self.limit.take(state.bytes());
        number
    }

    /// Returns where the node of an inode stands.
    #[must_use]
    pub fn place(&self, number: u64) -> Option<Place> {
        let state = self.lock();
        let entry = state.entries.get(&number)?;
        let home = state.homes[entry.home as usize].as_ref().expect("a home is kept while an entry names it").home;
        Some(Place { home, slot: entry.slot })
    }

    /// Takes back lookups; the last one frees the entry.
    pub fn forget(&self, number: u64, lookups: u64) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&number) else { return };
        if entry.lookups == u32::MAX {
            return; // no longer counted: kept for good
        }
        entry.lookups = u32::try_from(u64::from(entry.lookups).saturating_sub(lookups)).expect("it only shrinks");
        if entry.lookups == 0 {
            let home = entry.home;
            state.entries.remove(&number);
            state.release(home);
            self.limit.take(state.bytes());
        }
    }

    /// Returns how many inodes are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Tells whether no inode is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl State {
    /// Returns about how many bytes of memory the table takes.
    fn bytes(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + (self.homes.len() - self.free_homes.len()) * HOME_BYTES
    }

    /// Returns the number that belongs to the identity: the next one where another inode has taken it.
    fn free_or_own(&self, identity: Identity) -> u64 {
        let mut number = identity.number;
        while self.entries.get(&number).is_some_and(|entry| entry.check != identity.check) {
            number = (number + 1) & (NODE_BIT - 1) | NODE_BIT;
        }
        number
    }

    fn share(&mut self, home: Home) -> u32 {
        let hash = hash_home(&home);
        if let Some(&number) = self.by_hash.get(&hash)
            && let Some(shared) = &mut self.homes[number as usize]
            && shared.home == home
        {
            shared.users += 1;
            return number;
        }
        let shared = Some(SharedHome { home, users: 1 });
        let number = match self.free_homes.pop() {
            Some(number) => {
                self.homes[number as usize] = shared;
                number
            }
            None => {
                self.homes.push(shared);
                u32::try_from(self.homes.len() - 1).expect("memory ends before 2^32 pages")
            }
        };
        self.by_hash.entry(hash).or_insert(number);
        number
    }

    fn release(&mut self, number: u32) {
        let place = &mut self.homes[number as usize];
        let shared = place.as_mut().expect("a home is kept while an entry names it");
        shared.users -= 1;
        if shared.users > 0 {
            return;
        }
        let hash = hash_home(&shared.home);
        *place = None;
        self.free_homes.push(number);
        if self.by_hash.get(&hash) == Some(&number) {
            self.by_hash.remove(&hash);
        }
        if self.free_homes.len() == self.homes.len() {
            *self = Self::default();
        }
    }
}

fn hash_home(home: &Home) -> u64 {
    let TreeRef { id, pack, frame, chunk_offset, .. } = home.page;
    let at = u64::from(frame) << 32 | u64::from(chunk_offset);
    let id = u64::from_le_bytes(*id.as_bytes().first_chunk().expect("32 bytes hold 8"));
    let session = u64::from_le_bytes(*pack.session.as_bytes().first_chunk().expect("32 bytes hold 8"));
    let parts = [home.directory, u64::from(home.snapshot), id, session, u64::from(pack.number), at];
    parts.iter().fold(0, |hash: u64, part| (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::id::{ChunkId, PackId, SessionId};
    use crate::repo::tree::{FileContent, Name, Owner, Time};

    const SNAPSHOT: SnapshotId = SnapshotId([7; 16]);

    fn node(name: &str, links: u32) -> Node {
        Node {
            name: Name::new(name.as_bytes()).unwrap(),
            kind: NodeKind::File(FileContent::default()),
            mode: 0o644,
            owner: Owner::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            identity: crate::repo::tree::Identity { device: 1, inode: 2, links },
            xattrs: vec![],
        }
    }

    fn place(page: u32, slot: u32) -> Place {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&page.to_le_bytes());
        let pack = PackId { session: SessionId([1; 32]), number: 0 };
        let page = TreeRef { id: ChunkId(id), bytes: 1, pack, frame: 0, chunk_offset: page };
        Place { home: Home { directory: 1, snapshot: 0, page }, slot }
    }

    fn table() -> Inodes {
        Inodes::new(Limit::new(1 << 20))
    }

    /// The names of a file with several hard links share one inode, with one exception: if the file was changed while
    /// its names were backed up one after the other, each shows what was read.
    #[test]
    fn names_of_one_file_share_an_inode_within_a_snapshot_and_as_long_as_they_agree() {
        let of = |directory, snapshot, node: &Node| Identity::of(directory, snapshot, node);
        assert_eq!(of(1, SNAPSHOT, &node("a", 2)), of(9, SNAPSHOT, &node("b", 2)));
        assert_ne!(of(1, SNAPSHOT, &node("a", 2)), of(1, SnapshotId([8; 16]), &node("a", 2)));
        assert_ne!(of(1, SNAPSHOT, &node("a", 1)), of(1, SNAPSHOT, &node("b", 1)));
        assert_ne!(of(1, SNAPSHOT, &node("a", 1)), of(2, SNAPSHOT, &node("a", 1)));
        let mut changed = node("b", 2);
        changed.mtime.nanos = 1;
        assert_ne!(of(1, SNAPSHOT, &node("a", 2)), of(1, SNAPSHOT, &changed));
    }

    #[test]
    fn numbers_do_not_depend_on_what_was_looked_at_before() {
        let identity = Identity::of(1, SNAPSHOT, &node("a", 1));
        let (first, second) = (table(), table());
        let _ = second.remember(Identity::of(1, SNAPSHOT, &node("z", 1)), place(3, 4));
        assert_eq!(first.remember(identity, place(1, 0)), second.remember(identity, place(1, 0)));
        assert_eq!(first.number(identity), identity.number);
    }

    #[test]
    fn colliding_numbers_go_to_the_next_and_stay_apart() {
        let inodes = table();
        let one = Identity { number: NODE_BIT | 5, check: 1 };
        let two = Identity { number: NODE_BIT | 5, check: 2 };
        assert_eq!(inodes.remember(one, place(1, 0)), NODE_BIT | 5);
        assert_eq!(inodes.remember(two, place(1, 1)), NODE_BIT | 6);
        assert_eq!(inodes.remember(one, place(1, 0)), NODE_BIT | 5);
        assert_eq!(inodes.number(two), NODE_BIT | 6);
        assert_eq!(inodes.place(NODE_BIT | 6), Some(place(1, 1)));
    }

    #[test]
    fn what_is_forgotten_as_often_as_it_was_looked_up_is_freed() {
        let inodes = table();
        let identity = Identity::of(1, SNAPSHOT, &node("a", 1));
        let number = inodes.remember(identity, place(1, 0));
        assert_eq!(inodes.remember(identity, place(1, 0)), number);
        inodes.forget(number, 1);
        assert_eq!(inodes.place(number), Some(place(1, 0)));
        inodes.forget(number, 1);
        assert_eq!(inodes.place(number), None);
        assert!(inodes.is_empty() && inodes.state.lock().unwrap().by_hash.is_empty());
        inodes.forget(number, 1);
    }

    #[test]
    fn a_million_inodes_take_under_100_bytes_each() {
        const COUNT: u32 = 1_000_000;
        let inodes = table();
        for n in 0..COUNT {
            let identity = Identity { number: NODE_BIT | u64::from(n) << 20, check: n };
            let _ = inodes.remember(identity, place(n / 10, n % 10));
        }
        let state = inodes.state.lock().unwrap();
        // Nodes of a B-tree are at least half full.
        let entries = state.entries.len() * 2 * (size_of::<(u64, Entry)>() + 1);
        let homes = state.homes.capacity() * size_of::<Option<SharedHome>>();
        let by_hash = state.by_hash.capacity() * 8 / 7 * (size_of::<(u64, u32)>() + 1);
        let each = (entries + homes + by_hash) / COUNT as usize;
        assert!(each < 100, "{each}");
    }
}
