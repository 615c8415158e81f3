//! The walk: folders in the order of their names, one thread, no content read.
//!
//! Emits steps in exactly the order in which the trees hold them, in batches; files that must be read go to the readers
//! at the same time. Everything is opened relative to its folder, so paths may be of any length and a folder swapped for
//! a link meanwhile is not followed. What cannot be read is noted and the walk goes on.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tokio::runtime::Handle;

use super::meta::{self, Owners, Xattrs};
use super::parent::{self, ParentDirectory};
use super::read::{self, Answer, LARGE_FILE_BYTES, ReadJob, ReadTask};
use super::rules::Rules;
use crate::monitor::Monitor;
use crate::repo::Reader;
use crate::repo::tree::{LINK_BYTES_MAX, Name, Node, NodeKind, TreeRef};

/// A batch is closed when its files have this many bytes.
const BATCH_BYTES: u64 = 1 << 20;
/// A batch is closed when it has this many steps.
const BATCH_STEPS: usize = 512;
/// A batch is closed when it holds this many folders open: descriptors are few.
const BATCH_FOLDERS: usize = 32;
/// The deepest folder that is entered.
const DEPTH_MAX: usize = 1024;

/// One step of the walk, in the order of the trees.
pub(super) enum Step {
    /// A folder begins; its tree in the parent snapshot.
    Enter(Node, Option<TreeRef>),
    /// The folder ends.
    Leave,
    /// A node that needs no reading.
    Node(Node),
    /// A file taken over from the parent snapshot.
    Unchanged(Node),
    /// A file that is being read: the next answer of the batch. Whether the parent snapshot had that name.
    Read { node: Node, path: Vec<u8>, known: bool },
    /// Another name of a file of this walk with several names.
    Link { node: Node, path: Vec<u8> },
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
    pub(super) targets: Vec<Vec<Vec<u8>>>,
    pub(super) rules: &'a Rules,
    pub(super) one_file_system: bool,
    /// Folders that are never entered: the kloset's own.
    pub(super) skip: HashSet<(u64, u64)>,
    pub(super) parent: Option<(Reader, TreeRef)>,
    pub(super) runtime: Handle,
    pub(super) monitor: Arc<Monitor>,
    pub(super) batches: Sender<Batch>,
    pub(super) jobs: Sender<ReadJob>,
}

/// The walk stops because nobody takes its steps any more.
pub(super) struct Stopped;

struct Walker<'a> {
    walk: Walk<'a>,
    owners: Owners,
    links: HashSet<(u64, u64)>,
    steps: Vec<Step>,
    tasks: Vec<ReadTask>,
    bytes: u64,
    folders: usize,
    path: Vec<u8>,
}

/// A folder being walked.
struct Folder {
    fd: Arc<OwnedFd>,
    parent: ParentDirectory,
    device: Option<u64>,
}

/// Names to take in a folder: all of them, or those on the way to the targets.
#[derive(Default)]
struct Selection {
    all: bool,
    below: BTreeMap<Vec<u8>, Selection>,
}

impl Walk<'_> {
    /// Walks everything.
    pub(super) fn run(self) -> Result<(), Stopped> {
        let mut selection = Selection::default();
        for target in &self.targets {
            selection.add(target);
        }
        let root = rustix::fs::open("/", folder_flags(), Mode::empty());
        let mut walker = Walker {
            walk: self,
            owners: Owners::default(),
            links: HashSet::new(),
            steps: Vec::new(),
            tasks: Vec::new(),
            bytes: 0,
            folders: 0,
            path: Vec::new(),
        };
        match root {
            Ok(fd) => {
                let reader = walker.walk.parent.clone();
                let parent = ParentDirectory::new(reader.as_ref().map(|(r, t)| (r, *t)), &walker.walk.runtime);
                let folder = Folder { fd: Arc::new(fd), parent, device: None };
                walker.folder(folder, &selection, 0)?;
            }
            Err(error) => walker.steps.push(Step::Unreadable(b"/".to_vec(), error)),
        }
        walker.end_batch()
    }
}

impl Selection {
    fn add(&mut self, components: &[Vec<u8>]) {
        match components.split_first() {
            None => (self.all, self.below) = (true, BTreeMap::new()),
            Some(_) if self.all => {}
            Some((first, rest)) => self.below.entry(first.clone()).or_default().add(rest),
        }
    }
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOCTTY
}

impl Walker<'_> {
    /// Walks what is selected in a folder.
    fn folder(&mut self, mut folder: Folder, selection: &Selection, depth: usize) -> Result<(), Stopped> {
        self.folders += 1;
        let names = if selection.all {
            match list(&folder.fd) {
                Ok(names) => names,
                Err(error) => return self.step(Step::Unreadable(self.shown_path(), error)),
            }
        } else {
            selection.below.keys().cloned().collect()
        };
        let everything = Selection { all: true, below: BTreeMap::new() };
        for name in names {
            let length = self.path.len();
            self.path.push(b'/');
            self.path.extend_from_slice(&name);
            let below = if selection.all { &everything } else { &selection.below[&name] };
            let done = self.entry(&mut folder, &name, below, depth);
            self.path.truncate(length);
            done?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &mut Folder, name: &[u8], below: &Selection, depth: usize) -> Result<(), Stopped> {
        if self.walk.monitor.stopped() {
            return Err(Stopped);
        }
        // On the way to a target links are followed, as the shell does; the target itself is what it is.
        let flags = if below.all { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
        let stat = match rustix::fs::statat(&*folder.fd, name, flags) {
            Ok(stat) => stat,
            Err(error) => return self.step(Step::Unreadable(self.path.clone(), error)),
        };
        let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if below.all && self.walk.rules.exclude(&self.path, is_folder) {
            return Ok(());
        }
        let Ok(checked) = Name::new(name) else {
            return self.step(Step::Unreadable(self.path.clone(), Errno::INVAL));
        };
        let known = folder.parent.find(name);
        let mut node = self.owners.node(checked, &stat);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.enter(folder, (node, stat), known, (below, depth)),
            FileType::RegularFile => self.file(folder, (node, stat), known),
            kind => {
                if kind == FileType::Symlink {
                    match target_of(&folder.fd, name) {
                        Ok(target) => node.kind = NodeKind::Symlink(target),
                        Err(error) => return self.step(Step::Unreadable(self.path.clone(), error)),
                    }
                }
                node.xattrs = self.xattrs(known.as_ref(), &stat, || meta::xattrs_of_entry(&*folder.fd, name))?;
                self.step(Step::Node(node))
            }
        }
    }

    fn enter(
        &mut self,
        above: &Folder,
        (mut node, stat): (Node, Stat),
        known: Option<Node>,
        (below, depth): (&Selection, usize),
    ) -> Result<(), Stopped> {
        let follow = if below.all { OFlags::NOFOLLOW } else { OFlags::empty() };
        let fd = match rustix::fs::openat(&*above.fd, node.name.as_bytes(), folder_flags() | follow, Mode::empty()) {
            Ok(fd) if depth < DEPTH_MAX => Some(Arc::new(fd)),
            Ok(_) => {
                self.step(Step::Unreadable(self.path.clone(), Errno::NAMETOOLONG))?;
                None
            }
            Err(error) => {
                self.step(Step::Unreadable(self.path.clone(), error))?;
                None
            }
        };
        if let Some(fd) = &fd {
            node.xattrs = self.xattrs(known.as_ref(), &stat, || meta::xattrs_of_fd(fd))?;
        }
        let tree = known.and_then(|known| match known.kind {
            NodeKind::Directory(tree) => Some(tree),
            _ => None,
        });
        self.walk.monitor.directories.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.step(Step::Enter(node, tree))?;
        let foreign = self.walk.one_file_system && above.device.is_some_and(|device| device != stat.st_dev);
        let skipped = foreign || self.walk.skip.contains(&(stat.st_dev, stat.st_ino));
        if let Some(fd) = fd.filter(|_| !skipped) {
            let reader = self.walk.parent.as_ref().map(|p| p.0.clone());
            let parent = reader.as_ref().zip(tree);
            let parent = ParentDirectory::new(parent, &self.walk.runtime);
            let device = below.all.then_some(stat.st_dev);
            self.folder(Folder { fd, parent, device }, below, depth + 1)?;
        }
        self.step(Step::Leave)
    }

    fn file(&mut self, folder: &Folder, (node, stat): (Node, Stat), known: Option<Node>) -> Result<(), Stopped> {
        let is_known = known.is_some();
        if let Some(mut known) = known.filter(|known| parent::unchanged(known, &stat)) {
            (known.mode, known.owner, known.identity) = (node.mode, node.owner, node.identity);
            self.walk.monitor.file(u64::try_from(stat.st_size).unwrap_or(0));
            return self.step(Step::Unchanged(known));
        }
        let path = self.path.clone();
        if stat.st_nlink > 1 && !self.links.insert((stat.st_dev, stat.st_ino)) {
            return self.step(Step::Link { node, path });
        }
        let bytes = u64::try_from(stat.st_size).unwrap_or(0);
        let large = bytes >= LARGE_FILE_BYTES;
        if large {
            self.end_batch()?;
        }
        self.tasks.push(ReadTask { directory: folder.fd.clone(), name: node.name.as_bytes().to_vec() });
        self.bytes += bytes;
        self.step(Step::Read { node, path, known: is_known })?;
        if large { self.end_batch() } else { Ok(()) }
    }

    /// Returns an entry's attributes: the parent's if its inode has not changed, else what the system says.
    fn xattrs(
        &mut self,
        known: Option<&Node>,
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

    fn step(&mut self, step: Step) -> Result<(), Stopped> {
        self.steps.push(step);
        if self.bytes >= BATCH_BYTES || self.steps.len() >= BATCH_STEPS || self.folders >= BATCH_FOLDERS {
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
        (self.bytes, self.folders) = (0, 0);
        if !tasks.is_empty() {
            self.walk.jobs.send(ReadJob { tasks, large, answers: sender }).map_err(|_| Stopped)?;
        }
        self.walk.batches.send(Batch { steps, answers }).map_err(|_| Stopped)
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

/// Lists a folder's names in the order of their bytes.
fn list(folder: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
