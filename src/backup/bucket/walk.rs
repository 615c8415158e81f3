//! The walk of a bucket: its listing, in the order of the trees, beside the parent snapshot.
//!
//! Emits the steps that the walk of folders emits; what has to be read goes to the readers at the same time. A folder of
//! a bucket is there as long as there is a key below it: its time is that of the newest object in it.

use std::sync::Arc;

use crossbeam_channel::Sender;
use rustix::io::Errno;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::AHEAD_KIB;
use super::objects::{Entry, Objects, SEPARATOR};
use super::read::{FetchJob, LARGE_AHEAD_BYTES, Wanted};
use crate::backup::meta::Owners;
use crate::backup::parent::{self, Known, Parent, ParentDirectory};
use crate::backup::read::{self, LARGE_FILE_BYTES};
use crate::backup::select::Select;
use crate::backup::unsaid::{Unsaid, Walked};
use crate::backup::walk::{Batch, DEPTH_MAX, Step};
use crate::monitor::Monitor;
use crate::repo::bucket_names as names;
use crate::repo::tree::{FileContent, Identity, Name, Node, NodeKind, Owner, Time, TreeRef};

/// A batch is closed when its objects have this many bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// A batch is closed when it reads this many objects.
const BATCH_OBJECTS: usize = 16;
/// A batch is closed when it has this many steps.
const BATCH_STEPS: usize = 512;
/// Nobody knows what objects hold: they are their owner's.
const OBJECT_MODE: u32 = 0o600;
/// The mode of their folders.
const FOLDER_MODE: u32 = 0o755;

/// What the walk needs to know.
pub(super) struct Walk<'a> {
    pub(super) select: Select<'a>,
    pub(super) parent: Parent,
    /// The parent snapshot's root.
    pub(super) root: Option<TreeRef>,
    pub(super) monitor: Arc<Monitor>,
    /// KiB that may be under way.
    pub(super) ahead: Arc<Semaphore>,
    pub(super) batches: Sender<Batch>,
    pub(super) jobs: Sender<FetchJob>,
}

struct Walker<'a> {
    walk: Walk<'a>,
    walked: Walked,
    unsaid: Unsaid,
    owner: Owner,
    steps: Vec<Step>,
    wanted: Vec<Wanted>,
    bytes: u64,
    path: Vec<u8>,
}

impl Walk<'_> {
    /// Walks all objects; `None` if nobody takes the steps any more.
    pub(super) fn run(self, objects: &Objects, above: &[Vec<u8>]) -> Option<Walked> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let parent = self.parent.directory(self.root);
        let mut walker = Walker {
            walk: self,
            walked: Walked::default(),
            unsaid: Unsaid::default(),
            owner: Owners::default().owner(uid, gid),
            steps: Vec::new(),
            wanted: Vec::new(),
            bytes: 0,
            path: Vec::new(),
        };
        for key in &objects.nameless {
            let path = above.iter().flat_map(|name| [b"/", &name[..]].concat()).chain([b'/']);
            walker.step(Step::Unreadable(path.chain(key.bytes()).collect(), Errno::INVAL))?;
        }
        walker.above(&objects.entries, above, parent)?;
        walker.end_batch()?;
        Some(walker.walked)
    }
}

impl Walker<'_> {
    /// Walks the folders above the keys, and what is in the last.
    fn above(&mut self, entries: &[Entry], above: &[Vec<u8>], mut parent: ParentDirectory) -> Option<()> {
        match above.split_first() {
            None => self.folder(entries, 0, parent, names::ABOVE_KEYS),
            Some((name, below)) => {
                let known = parent.find(name);
                self.enter(name, entries, known, |walker, parent| walker.above(entries, below, parent))
            }
        }
    }

    /// Walks a folder of keys; `from` is where the names in it begin in their paths.
    fn folder(&mut self, entries: &[Entry], from: usize, mut parent: ParentDirectory, depth: usize) -> Option<()> {
        let mut left = entries;
        while let Some(entry) = left.first() {
            if self.walk.monitor.stopped() {
                return None;
            }
            let rest = &entry.path()[from..];
            let bytes = rest.iter().position(|byte| *byte == SEPARATOR);
            let name = &rest[..bytes.unwrap_or(rest.len())];
            let folder = &rest[..bytes.map_or(0, |bytes| bytes + 1)];
            let here = match bytes {
                None => 1,
                Some(_) => left.partition_point(|entry| entry.path()[from..].starts_with(folder)),
            };
            let (these, others) = left.split_at(here);
            left = others;
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(name);
            let left_out = self.walk.select.leaves_out_object(&self.path, bytes.is_none().then_some(entry.bytes));
            let known = parent.find(name);
            self.path.truncate(length);
            match bytes {
                _ if left_out => {}
                None => self.object(name, entry, known)?,
                Some(_) if depth >= DEPTH_MAX => {
                    let path = [&self.path[..], b"/", name].concat();
                    self.step(Step::Unreadable(path, Errno::NAMETOOLONG))?;
                }
                Some(_) => self.enter(name, these, known, |walker, parent| {
                    walker.folder(these, from + folder.len(), parent, depth + 1)
                })?,
            }
        }
        Some(())
    }

    /// Enters a folder, does what is to be done in it, and leaves it.
    fn enter(
        &mut self,
        name: &[u8],
        entries: &[Entry],
        known: Option<Known>,
        inside: impl FnOnce(&mut Self, ParentDirectory) -> Option<()>,
    ) -> Option<()> {
        let newest = entries.iter().map(|entry| entry.modified_unix_ms).max().unwrap_or_default();
        let mut node = self.node(name, newest);
        (node.mode, node.kind) = (FOLDER_MODE, NodeKind::Symlink(Vec::new())); // its tree is not known yet
        let tree = known.as_ref().and_then(|known| parent::tree_of(known));
        let directory = self.walk.parent.directory(tree);
        self.walked.directories += 1;
        self.walk.monitor.directories.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let held = tree.filter(|tree| self.walk.parent.standing.holds(tree.pack));
        match directory.only_page().zip(held) {
            Some((page, tree)) => self.unsaid.enter(node, tree, page),
            None => self.step(Step::Enter(node, tree))?,
        }
        let length = self.path.len();
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        inside(self, directory)?;
        self.path.truncate(length);
        match self.unsaid.leave(&mut self.walked) {
            None => self.step(Step::Leave),
            Some(node) => match known.filter(|known| **known == node) {
                Some(known) => self.take_over(&known),
                None => self.step(Step::Node(node)),
            },
        }
    }

    fn object(&mut self, name: &[u8], entry: &Entry, known: Option<Known>) -> Option<()> {
        if let Some(known) = known.as_ref().filter(|known| is_unchanged(known, entry)) {
            self.walked.unmodified += 1;
            self.walked.unmodified_bytes += entry.bytes;
            self.walk.monitor.file(entry.bytes);
            return self.take_over(known);
        }
        let large = entry.bytes >= LARGE_FILE_BYTES;
        if large {
            self.end_batch()?;
        }
        self.say()?;
        let (key, etag) = (entry.key(), String::from_utf8_lossy(entry.etag()).into_owned());
        let is_path =
            key.as_bytes().iter().map(|b| if *b == b'/' { SEPARATOR } else { *b }).eq(entry.path().iter().copied());
        let modified_unix_ms = entry.modified_unix_ms;
        self.wanted.push(Wanted { key, is_path, etag, bytes: entry.bytes, modified_unix_ms });
        self.bytes += entry.bytes;
        let path = [&self.path[..], b"/", name].concat();
        let node = self.node(name, entry.modified_unix_ms);
        self.step(Step::Read { node, path, known: known.is_some() })?;
        if large { self.end_batch() } else { Some(()) }
    }

    fn node(&self, name: &[u8], unix_ms: i64) -> Node {
        let time = time(unix_ms);
        Node {
            name: Name::new(name).expect("the names of keys were checked"),
            kind: NodeKind::File(FileContent::default()),
            mode: OBJECT_MODE,
            owner: self.owner.clone(),
            mtime: time,
            ctime: time,
            identity: Identity { device: 0, inode: 0, links: 1 },
            xattrs: Vec::new(),
        }
    }

    /// Takes a node over from the parent snapshot as it is.
    fn take_over(&mut self, known: &Known) -> Option<()> {
        if self.unsaid.keep(known) { Some(()) } else { self.step(Step::Node(Node::clone(known))) }
    }

    /// Emits a step, and before it what was not said of the folders it is in.
    fn step(&mut self, step: Step) -> Option<()> {
        self.say()?;
        self.push(step)
    }

    fn say(&mut self) -> Option<()> {
        if !self.unsaid.is_empty() {
            for step in std::mem::take(&mut self.unsaid).steps() {
                self.push(step)?;
            }
        }
        Some(())
    }

    fn push(&mut self, step: Step) -> Option<()> {
        self.steps.push(step);
        let full = self.wanted.len() >= BATCH_OBJECTS || self.steps.len() >= BATCH_STEPS;
        if full || self.bytes >= BATCH_BYTES { self.end_batch() } else { Some(()) }
    }

    fn end_batch(&mut self) -> Option<()> {
        if self.steps.is_empty() {
            return Some(());
        }
        let large = self.wanted.len() == 1 && self.bytes >= LARGE_FILE_BYTES;
        let (sender, answers) = read::answers(large);
        let (steps, wanted) = (std::mem::take(&mut self.steps), std::mem::take(&mut self.wanted));
        let bytes = std::mem::take(&mut self.bytes);
        if !wanted.is_empty() {
            let permits = self.permits(bytes);
            self.walk.jobs.send(FetchJob { wanted, large, answers: sender, _permits: permits }).ok()?;
        }
        self.walk.batches.send(Batch { steps, answers }).ok()
    }

    /// Waits for room. It is taken in the order of the batches, so who is waited for always has his.
    fn permits(&self, bytes: u64) -> OwnedSemaphorePermit {
        let kib = u32::try_from((2 * bytes).min(LARGE_AHEAD_BYTES) >> 10).expect("at most some GiB");
        let take = self.walk.ahead.clone().acquire_many_owned(kib.clamp(1, AHEAD_KIB));
        self.walk.parent.runtime.block_on(take).expect("the semaphore is never closed")
    }
}

/// Tells whether an object is what the parent snapshot has: by entity tag, size and time. A listing without entity tags
/// leaves the other two.
fn is_unchanged(node: &Known, entry: &Entry) -> bool {
    let NodeKind::File(content) = &node.kind else { return false };
    let etag = node.xattrs.iter().find(|(name, _)| name == names::ETAG.as_bytes());
    node.holds
        && content.bytes == entry.bytes
        && node.mtime == time(entry.modified_unix_ms)
        && (entry.etag().is_empty() || etag.is_some_and(|(_, etag)| etag == entry.etag()))
}

/// Returns a time of the store.
pub(super) fn time(unix_ms: i64) -> Time {
    let nanos = u32::try_from(unix_ms.rem_euclid(1000) * 1_000_000).expect("under a second");
    Time { seconds: unix_ms.div_euclid(1000), nanos }
}
