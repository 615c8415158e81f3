//! The walk: folders in the order of their names, no content read.
//!
//! Emits steps in exactly the order in which the trees hold them, in batches; files that must be read go to the readers
//! at the same time. A folder in which nothing changed is one step, the parent snapshot's tree, whatever is below it.
//! Everything is opened relative to its folder, so paths may be of any length and a folder swapped for a link meanwhile
//! is not followed. What cannot be read is noted and the walk goes on.

use std::collections::{HashSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::journal::Record;
use super::meta::{self, Owners, Xattrs};
use super::parent::{self, Known, Parent, ParentDirectory};
use super::read::{self, Answer, LARGE_FILE_BYTES, ReadContext, ReadJob, ReadTask};
use super::resume::Finished;
use super::scan::{self, Below, SCANS_MAX, STATS_MAX, Scan, ScanJob, Scanned, ToScan, is_folder};
use super::select::{Inside, Select};
use super::stream::{self, Stream, StreamError};
use super::targets::{EVERYTHING, Selection};
use super::unsaid::{Unsaid, Walked};
use crate::monitor::Monitor;
use crate::repo::tree::{LINK_BYTES_MAX, Name, Node, NodeKind, TreeRef};

/// A batch is closed when its files have this many bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// A batch is closed when it has this many steps.
const BATCH_STEPS: usize = 512;
/// A batch is closed when it holds this many folders open: descriptors are few.
const BATCH_FOLDERS: usize = 32;
/// The deepest folder that is entered.
pub(super) const DEPTH_MAX: usize = 1024;
/// Folders of one folder that are scanned ahead.
const AHEAD_MAX: usize = 32;
/// Folders that a scanning thread is given at once: waking it for each would cost as much as what it does.
const JOB_FOLDERS: usize = 8;

/// The mode of folders that are there for streams alone.
const FOLDER_MODE: u32 = 0o755;

/// One step of the walk, in the order of the trees.
pub(super) enum Step {
    /// A folder begins; its tree in the parent snapshot.
    Enter(Node, Option<TreeRef>),
    /// The folder ends.
    Leave,
    /// A node that needs no reading: no file, or taken over from the parent snapshot, whole folders among them.
    Node(Node),
    /// A file that is being read: the next answer of the batch. Whether the parent snapshot had that name.
    Read { node: Node, path: Vec<u8>, known: bool },
    /// A file that an interrupted backup had read, with its attributes. Whether the parent snapshot had that name.
    Finished { node: Node, known: bool, record: Box<Record> },
    /// Another name of a file of this walk with several names.
    Link { node: Node, path: Vec<u8> },
    /// A stream that is being read, by the answers of the batch. Whether the parent snapshot had that name.
    Stream { node: Node, known: bool },
    /// What is in the source and could not be read.
    Unreadable(Vec<u8>, Errno),
}

/// Steps, and the answers to those that read.
pub(super) struct Batch {
    pub(super) steps: Vec<Step>,
    pub(super) answers: Receiver<Answer>,
}

/// What the walk needs to know.
pub(super) struct Walk<'a> {
    pub(super) selection: Selection,
    pub(super) streams: Streams<'a>,
    pub(super) select: Select<'a>,
    pub(super) parent: Parent,
    /// The parent snapshot's root.
    pub(super) root: Option<TreeRef>,
    /// What an interrupted backup had read.
    pub(super) finished: Option<Finished>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) batches: Sender<Batch>,
    pub(super) jobs: Sender<ReadJob>,
    pub(super) scans: Sender<ScanJob>,
}

/// What the walk has to know of streams.
pub(super) struct Streams<'a> {
    pub(super) all: &'a [Stream],
    /// Cuts and hashes them.
    pub(super) context: ReadContext,
    /// A node of the user who makes the backup, of the time when it began.
    pub(super) node: Node,
}

/// The walk stops because nobody takes its steps any more, or because a stream failed.
pub(super) struct Stopped(pub(super) Option<StreamError>);

struct Walker<'a> {
    walk: Walk<'a>,
    walked: Walked,
    owners: Owners,
    links: HashSet<(u64, u64)>,
    unsaid: Unsaid,
    steps: Vec<Step>,
    tasks: Vec<ReadTask>,
    bytes: u64,
    /// What the records of finished files take in memory.
    records_bytes: u64,
    folders: usize,
    path: Vec<u8>,
    /// Scans under way.
    scans: usize,
}

/// A folder being walked.
struct Folder {
    fd: Arc<OwnedFd>,
    parent: ParentDirectory,
    /// The file system of what is in it, if it is to be walked whole.
    device: Option<u64>,
    /// What its own files say of what is in it.
    inside: Inside,
    /// What was looked at ahead: the name at `stats_at`, and those behind it.
    stats: VecDeque<Result<Stat, Errno>>,
    stats_at: usize,
    /// Folders in it that were scanned with it.
    below: VecDeque<Below>,
    ahead: VecDeque<Ahead>,
    /// Where to look for the next folder to scan ahead.
    next: usize,
}

/// A scan under way: the place of the folder's name, its tree in the parent snapshot.
struct Ahead {
    at: usize,
    tree: Option<TreeRef>,
    scanned: Receiver<Result<Scanned, Errno>>,
}

/// An entry of a folder: what the system says of it and the parent snapshot knew.
struct Entry<'a> {
    at: usize,
    below: &'a Selection,
    node: Node,
    stat: Stat,
    known: Option<Known>,
}

impl Folder {
    /// Says what the next name that may be a folder is; `None` at the end, and too far ahead of the walk.
    fn look_ahead(&mut self, names: &[Vec<u8>]) -> Option<Result<Stat, Errno>> {
        self.device?; // on the way to a target nothing is looked at but what leads there
        while self.next >= self.stats_at + self.stats.len() && self.stats.len() < STATS_MAX {
            let name = names.get(self.stats_at + self.stats.len())?;
            self.stats.push_back(rustix::fs::statat(&*self.fd, &name[..], AtFlags::SYMLINK_NOFOLLOW));
        }
        self.stats.get(self.next - self.stats_at).copied()
    }

    /// Takes what was found of the name at `at`, if it was looked at; names are asked for in their order.
    fn looked_at(&mut self, at: usize) -> Option<Result<Stat, Errno>> {
        let passed = (at - self.stats_at).min(self.stats.len());
        self.stats.drain(..passed);
        self.stats_at = at;
        self.stats.front().copied()
    }
}

impl Walk<'_> {
    /// Walks everything.
    pub(super) fn run(self) -> Result<Walked, Stopped> {
        let mut walker = Walker {
            walk: self,
            walked: Walked::default(),
            owners: Owners::default(),
            links: HashSet::new(),
            unsaid: Unsaid::default(),
            steps: Vec::new(),
            tasks: Vec::new(),
            bytes: 0,
            records_bytes: 0,
            folders: 0,
            path: Vec::new(),
            scans: 0,
        };
        let selection = std::mem::take(&mut walker.walk.selection);
        match scan::open(rustix::fs::CWD, b"/", OFlags::empty()) {
            Ok(fd) => {
                let scan = if selection.all { Scan::list(fd) } else { Scan::unlisted(fd) };
                let parent = walker.walk.parent.directory(walker.walk.root);
                let device =
                    if selection.all { rustix::fs::fstat(&*scan.fd).ok().map(|stat| stat.st_dev) } else { None };
                walker.folder(Scanned { scan, parent, below: VecDeque::new() }, device, &selection, 0)?;
            }
            Err(error) => walker.step(Step::Unreadable(b"/".to_vec(), error))?,
        }
        walker.end_batch()?;
        Ok(walker.walked)
    }
}

impl Walker<'_> {
    /// Walks what is selected in a folder.
    fn folder(
        &mut self,
        Scanned { scan, parent, below }: Scanned,
        device: Option<u64>,
        selection: &Selection,
        depth: usize,
    ) -> Result<(), Stopped> {
        self.folders += 1;
        let names = match scan.names {
            _ if !selection.all => selection.below.keys().cloned().collect(),
            Ok(names) => names,
            Err(error) => return self.step(Step::Unreadable(self.shown_path(), error)),
        };
        let inside = match selection.all {
            true => self.walk.select.enter(&scan.fd, &self.path, &names, &self.walk.monitor),
            false => Inside::default(),
        };
        let (fd, stats) = (scan.fd, scan.stats);
        let (stats, stats_at) = (stats.into(), 0);
        let mut folder = Folder { fd, parent, device, inside, stats, stats_at, below, ahead: VecDeque::new(), next: 0 };
        for (at, name) in names.iter().enumerate() {
            self.scan_ahead(&mut folder, &names, at)?;
            let below = if selection.all { &EVERYTHING } else { &selection.below[name] };
            let done = self.at(name, |walker| walker.entry(&mut folder, (at, name), below, depth));
            done?;
        }
        self.walk.select.leave(folder.inside);
        Ok(())
    }

    /// Does something with a name behind the path.
    fn at<T>(&mut self, name: &[u8], work: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        self.path.push(b'/');
        self.path.extend_from_slice(name);
        let done = work(self);
        self.path.truncate(length);
        done
    }

    /// Begins to scan the next folders behind the name at `at`, which the walk looks at itself meanwhile.
    fn scan_ahead(&mut self, folder: &mut Folder, names: &[Vec<u8>], at: usize) -> Result<(), Stopped> {
        folder.next = folder.next.max(at + 1);
        if folder.ahead.len() + JOB_FOLDERS > AHEAD_MAX {
            return Ok(());
        }
        let (answers, scanned) = crossbeam_channel::bounded(JOB_FOLDERS);
        let mut folders = Vec::new();
        while folders.len() < JOB_FOLDERS && self.scans < SCANS_MAX {
            let Some(stat) = folder.look_ahead(names) else { break };
            let (at, name) = (folder.next, &names[folder.next]);
            folder.next += 1;
            let Ok(stat) = &stat else { continue };
            if is_folder(stat)
                && !folder.below.iter().any(|below| below.at == at)
                && self.walk.select.fixed().enters(folder.device, stat)
                && !self.at(name, |walker| walker.excludes(&folder.inside, stat))
            {
                let tree = folder.parent.tree_ahead(name);
                folders.push(ToScan { name: name.clone(), tree, device: stat.st_dev });
                folder.ahead.push_back(Ahead { at, tree, scanned: scanned.clone() });
                self.scans += 1;
            }
        }
        if folders.is_empty() {
            return Ok(());
        }
        let (above, path, is_plain) = (folder.fd.clone(), self.path.clone(), self.walk.select.is_plain(&folder.inside));
        self.walk.scans.send(ScanJob { above, path, is_plain, folders, answers }).map_err(|_| Stopped(None))
    }

    /// Tells whether the entry at the path is left out.
    fn excludes(&self, inside: &Inside, stat: &Stat) -> bool {
        self.walk.select.ground(inside, &self.path, stat).is_some_and(|ground| ground.leaves_out())
    }

    fn entry(
        &mut self,
        folder: &mut Folder,
        (at, name): (usize, &[u8]),
        below: &Selection,
        depth: usize,
    ) -> Result<(), Stopped> {
        if self.walk.monitor.stopped() {
            return Err(Stopped(None));
        }
        if !below.is_on_disk {
            let known = folder.parent.find(name);
            return self.not_on_disk(name, known, below);
        }
        // On the way to a target links are followed, as the shell does; the target itself is what it is.
        let flags = if below.all { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        let stat = folder.looked_at(at).unwrap_or_else(|| rustix::fs::statat(&*folder.fd, name, flags));
        let stat = match stat {
            Ok(stat) => stat,
            Err(error) => return self.step(Step::Unreadable(self.path.clone(), error)),
        };
        if below.all && self.excludes(&folder.inside, &stat) {
            return Ok(());
        }
        let known = folder.parent.find(name);
        if let Some(known) = known.as_ref().filter(|known| self.owners.describe(known, &stat))
            && self.keep(known, &stat)?
        {
            return Ok(());
        }
        let Ok(checked) = Name::new(name) else {
            return self.step(Step::Unreadable(self.path.clone(), Errno::INVAL));
        };
        let entry = Entry { at, below, node: self.owners.node(checked, &stat), stat, known };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.enter(folder, entry, depth),
            FileType::RegularFile => self.file(folder, entry),
            _ => self.other(folder, entry),
        }
    }

    /// Takes a stream, or a folder that is there for streams alone.
    fn not_on_disk(&mut self, name: &[u8], known: Option<Known>, below: &Selection) -> Result<(), Stopped> {
        let Ok(name) = Name::new(name) else {
            return self.step(Step::Unreadable(self.path.clone(), Errno::INVAL));
        };
        let mut node = Node { name, ..self.walk.streams.node.clone() };
        if let Some(at) = below.stream {
            return self.stream(node, known.is_some(), at);
        }
        node.mode = FOLDER_MODE;
        let tree = known.and_then(|known| parent::tree_of(&known));
        let mut directory = self.walk.parent.directory(tree);
        self.walked.directories += 1;
        self.step(Step::Enter(node, tree))?;
        for (name, below) in &below.below {
            let known = directory.find(name);
            self.at(name, |walker| walker.not_on_disk(name, known, below))?;
        }
        self.step(Step::Leave)
    }

    /// Reads a stream in this thread: one after another, and nothing is walked meanwhile.
    fn stream(&mut self, node: Node, known: bool, at: usize) -> Result<(), Stopped> {
        self.say()?;
        self.end_batch()?;
        let (sender, answers) = read::answers(true);
        let steps = vec![Step::Stream { node, known }];
        self.walk.batches.send(Batch { steps, answers }).map_err(|_| Stopped(None))?;
        let Streams { all, context, .. } = &self.walk.streams;
        let read = stream::read(context, &all[at].source, &sender).map_err(|error| Stopped(Some(error)))?;
        let read = read.ok_or(Stopped(None))?;
        sender.send(Answer::End(Ok(read))).map_err(|_| Stopped(None))
    }

    /// Takes an entry over from the parent snapshot if it is no folder and nothing about it changed.
    fn keep(&mut self, known: &Known, stat: &Stat) -> Result<bool, Stopped> {
        match &known.kind {
            NodeKind::File(content) if parent::unchanged(known, stat) => {
                self.count_unmodified(content.bytes);
            }
            NodeKind::File(_) | NodeKind::Directory(_) => return Ok(false),
            kind if parent::same_inode(known, stat) && meta::is_kind(kind, stat) => self.walked.others += 1,
            _ => return Ok(false),
        }
        self.take_over(known)?;
        Ok(true)
    }

    fn count_unmodified(&mut self, bytes: u64) {
        self.walked.unmodified += 1;
        self.walked.unmodified_bytes += bytes;
        self.walk.monitor.file(bytes);
    }

    /// Takes a node over from the parent snapshot as it is.
    fn take_over(&mut self, known: &Known) -> Result<(), Stopped> {
        if self.unsaid.keep(known) { Ok(()) } else { self.step(Step::Node(Node::clone(known))) }
    }

    fn other(&mut self, folder: &Folder, Entry { mut node, stat, known, .. }: Entry<'_>) -> Result<(), Stopped> {
        let name = node.name.as_bytes();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            match target_of(&folder.fd, name) {
                Ok(target) => node.kind = NodeKind::Symlink(target),
                Err(error) => return self.step(Step::Unreadable(self.path.clone(), error)),
            }
        }
        node.xattrs = self.xattrs(known.as_ref(), &stat, || meta::xattrs_of_entry(&*folder.fd, name))?;
        self.walked.others += 1;
        self.step(Step::Node(node))
    }

    fn enter(&mut self, above: &mut Folder, entry: Entry<'_>, depth: usize) -> Result<(), Stopped> {
        let Entry { at, below, mut node, stat, known } = entry;
        let tree = known.as_ref().and_then(|known| parent::tree_of(known));
        let enters = self.walk.select.fixed().enters(above.device, &stat);
        let scanned = match self.take_scan(above, at, tree) {
            Some(scanned) => scanned,
            None => {
                let follow = if below.all { OFlags::NOFOLLOW } else { OFlags::empty() };
                let list = if below.all && enters { Scan::list } else { Scan::unlisted };
                let fd = scan::open(&above.fd, node.name.as_bytes(), follow);
                fd.map(|fd| Scanned {
                    scan: list(fd),
                    parent: self.walk.parent.directory(tree),
                    below: VecDeque::new(),
                })
            }
        };
        let scanned = scanned.and_then(|scanned| if depth < DEPTH_MAX { Ok(scanned) } else { Err(Errno::NAMETOOLONG) });
        let scanned = match scanned {
            Ok(scanned) => Some(scanned),
            Err(error) => {
                self.step(Step::Unreadable(self.path.clone(), error))?;
                None
            }
        };
        if let Some(scanned) = &scanned {
            node.xattrs = self.xattrs(known.as_ref(), &stat, || meta::xattrs_of_fd(&*scanned.scan.fd))?;
        }
        self.walked.directories += 1;
        self.walk.monitor.directories.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let held = tree.filter(|tree| self.walk.parent.standing.holds(tree.pack));
        match scanned.as_ref().and_then(|scanned| scanned.parent.only_page()).zip(held) {
            Some((page, tree)) => self.unsaid.enter(node, tree, page),
            None => self.step(Step::Enter(node, tree))?,
        }
        if let Some(scanned) = scanned.filter(|_| enters) {
            self.folder(scanned, below.all.then_some(stat.st_dev), below, depth + 1)?;
        }
        match self.unsaid.leave(&mut self.walked) {
            None => self.step(Step::Leave),
            Some(node) => match known.filter(|known| **known == node) {
                Some(known) => self.take_over(&known),
                None => self.step(Step::Node(node)),
            },
        }
    }

    /// Waits for the scan of the folder at `at`, if one was begun with that tree.
    fn take_scan(&mut self, above: &mut Folder, at: usize, tree: Option<TreeRef>) -> Option<Result<Scanned, Errno>> {
        while let Some(below) = above.below.pop_front_if(|below| below.at <= at) {
            if (below.at, below.tree) == (at, tree) {
                return Some(Ok(below.scanned));
            }
        }
        while let Some(ahead) = above.ahead.pop_front_if(|ahead| ahead.at <= at) {
            self.scans -= 1;
            let scanned = ahead.scanned.recv().ok()?;
            if (ahead.at, ahead.tree) == (at, tree) {
                return Some(scanned);
            }
        }
        None
    }

    fn file(&mut self, folder: &Folder, Entry { node, stat, known, .. }: Entry<'_>) -> Result<(), Stopped> {
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if let Some(known) = known.as_ref().filter(|known| parent::unchanged(known, &stat)) {
            self.count_unmodified(bytes);
            return self.step(Step::Node(Node { kind: known.kind.clone(), xattrs: known.xattrs.clone(), ..node }));
        }
        let path = self.path.clone();
        if stat.st_nlink > 1 && !self.links.insert((stat.st_dev, stat.st_ino)) {
            return self.step(Step::Link { node, path });
        }
        let finished = self.walk.finished.as_mut().and_then(|finished| finished.find(&path, &stat));
        if let Some(record) = finished {
            return self.finished((folder, node), (known.as_ref(), &stat), record);
        }
        let large = bytes >= LARGE_FILE_BYTES;
        if large {
            self.end_batch()?;
        }
        self.say()?;
        self.tasks.push(ReadTask { directory: folder.fd.clone(), name: node.name.as_bytes().to_vec() });
        self.bytes += bytes;
        self.step(Step::Read { node, path, known: known.is_some() })?;
        if large { self.end_batch() } else { Ok(()) }
    }

    /// Takes a file over that an interrupted backup had read.
    fn finished(
        &mut self,
        (folder, mut node): (&Folder, Node),
        (known, stat): (Option<&Known>, &Stat),
        record: Record,
    ) -> Result<(), Stopped> {
        let name = node.name.as_bytes();
        node.xattrs = self.xattrs(known, stat, || meta::xattrs_of_entry(&*folder.fd, name))?;
        self.walk.monitor.file(record.bytes);
        self.records_bytes += record.weight();
        self.step(Step::Finished { node, known: known.is_some(), record: Box::new(record) })
    }

    /// Returns an entry's attributes: the parent's if its inode has not changed, else what the system says.
    fn xattrs(
        &mut self,
        known: Option<&Known>,
        stat: &Stat,
        read: impl FnOnce() -> Result<Xattrs, Errno>,
    ) -> Result<Xattrs, Stopped> {
        if let Some(known) = known.filter(|known| parent::same_inode(known, stat)) {
            return Ok(known.xattrs.clone());
        }
        match read() {
            Ok(xattrs) => Ok(xattrs),
            Err(error) => {
                self.step(Step::Unreadable(self.path.clone(), error))?;
                Ok(Vec::new())
            }
        }
    }

    fn shown_path(&self) -> Vec<u8> {
        if self.path.is_empty() { b"/".to_vec() } else { self.path.clone() }
    }

    /// Emits a step, and before it what was not said of the folders it is in.
    fn step(&mut self, step: Step) -> Result<(), Stopped> {
        self.say()?;
        self.push(step)
    }

    fn say(&mut self) -> Result<(), Stopped> {
        if !self.unsaid.is_empty() {
            for step in std::mem::take(&mut self.unsaid).steps() {
                self.push(step)?;
            }
        }
        Ok(())
    }

    fn push(&mut self, step: Step) -> Result<(), Stopped> {
        self.steps.push(step);
        let bytes = self.bytes.max(self.records_bytes);
        if bytes >= BATCH_BYTES || self.steps.len() >= BATCH_STEPS || self.folders >= BATCH_FOLDERS {
            return self.end_batch();
        }
        Ok(())
    }

    fn end_batch(&mut self) -> Result<(), Stopped> {
        if self.steps.is_empty() {
            return Ok(());
        }
        let large = self.tasks.len() == 1 && self.bytes >= LARGE_FILE_BYTES;
        let (sender, answers) = read::answers(large);
        let (steps, tasks) = (std::mem::take(&mut self.steps), std::mem::take(&mut self.tasks));
        // Of a sparse file not all is read.
        let bytes = usize::try_from(self.bytes.min(2 * BATCH_BYTES)).expect("a few MiB");
        (self.bytes, self.records_bytes, self.folders) = (0, 0, 0);
        if !tasks.is_empty() {
            self.walk.jobs.send(ReadJob { tasks, bytes, large, answers: sender }).map_err(|_| Stopped(None))?;
        }
        self.walk.batches.send(Batch { steps, answers }).map_err(|_| Stopped(None))
    }
}

/// Reads a link's target; one that trees cannot hold, no kernel makes.
fn target_of(folder: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    let target = rustix::fs::readlinkat(folder, name, Vec::new())?.into_bytes();
    match target.len() {
        1..=LINK_BYTES_MAX => Ok(target),
        0 => Err(Errno::INVAL),
        _ => Err(Errno::NAMETOOLONG),
    }
}
