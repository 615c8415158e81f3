//! Snapshots without some paths: first what would go, then trees that lack it.
//!
//! A directory below which nothing goes is taken over as it is, reference and all; the others are encoded anew, with the
//! same references to content. Content is neither read nor written. What is left out stays in its packs until a prune.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::{Replaced, RewriteError, put};
use crate::monitor::Monitor;
use crate::repo::builder::TreeBuilder;
use crate::repo::layout::SnapshotName;
use crate::repo::path::{Entries, leaf};
use crate::repo::snapshot::{ByteText, Manifest, Summary};
use crate::repo::tree::{Node, NodeKind, Page, TreeRef};
use crate::repo::writer::{AGAIN_MAX, Writer, WriterOptions};
use crate::repo::{READER_BYTES_DEFAULT, Reader, Repo, RepoError};

/// Paths that are told of one snapshot; their number is told in full.
pub const PATHS_MAX: usize = 20;
/// Directories that are remembered as having nothing to lose: about 50 MB.
const UNTOUCHED_MAX: usize = 1 << 20;

/// Tells whether an absolute path is to go; who is asked for a folder is not asked for what is in it.
pub type Leaves<'a> = &'a dyn Fn(&[u8], bool) -> bool;

/// A path that goes, with all below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The path.
    pub path: ByteText,
    /// What is in it.
    pub tally: CutTally,
}

/// What goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct CutTally {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Everything else.
    pub others: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

/// What would go from one snapshot.
#[derive(Clone, Debug)]
pub struct Cut {
    /// The snapshot.
    pub name: SnapshotName,
    /// Its manifest.
    pub manifest: Manifest,
    /// The first paths that go.
    pub dropped: Vec<Dropped>,
    /// How many they are.
    pub dropped_total: u64,
    /// All that goes.
    pub tally: CutTally,
    /// Directories that something goes from, or from below.
    touched: HashSet<Vec<u8>>,
}

impl Cut {
    /// Returns what is to be told, without what only [`Rewriter::apply`] needs.
    #[must_use]
    pub fn told(self) -> Self {
        Self { touched: HashSet::new(), ..self }
    }
}

impl CutTally {
    fn count(&mut self, node: &Node) {
        match &node.kind {
            NodeKind::File(content) => {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(content.bytes);
            }
            NodeKind::Directory(_) => self.directories += 1,
            _ => self.others += 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.files += other.files;
        self.directories += other.directories;
        self.others += other.others;
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// Looks through snapshots and rewrites them. Blocks; use it from a thread that does not drive the runtime.
pub struct Rewriter<'a> {
    repo: &'a Repo,
    runtime: &'a Handle,
    reader: Reader,
    writer: Writer,
    leaves: Leaves<'a>,
    monitor: &'a Monitor,
    /// Directories, by tree and path, that nothing goes from: snapshots share most of them.
    untouched: HashSet<[u8; 32]>,
}

/// A directory that is being walked.
struct Level {
    entries: Entries,
    path: Vec<u8>,
    name: [u8; 32],
    is_touched: bool,
}

impl<'a> Rewriter<'a> {
    /// Begins; nothing is sent.
    #[must_use]
    pub fn new(repo: &'a Repo, runtime: &'a Handle, leaves: Leaves<'a>, monitor: &'a Monitor) -> Self {
        let writer = Writer::new(repo, runtime.clone(), WriterOptions::default());
        let reader = repo.reader(READER_BYTES_DEFAULT);
        Self { repo, runtime, reader, writer, leaves, monitor, untouched: HashSet::new() }
    }

    /// Finds what would go from a snapshot; `None` if nothing does.
    ///
    /// # Errors
    /// [`RewriteError`].
    pub fn look(&mut self, name: SnapshotName) -> Result<Option<Cut>, RewriteError> {
        let manifest = self.runtime.block_on(self.repo.manifest(name))?;
        let (dropped, tally, touched) = (Vec::new(), CutTally::default(), HashSet::new());
        let root = TreeRef::from(manifest.root);
        let mut cut = Cut { name, manifest, dropped, dropped_total: 0, tally, touched };
        let mut open = vec![self.level(root, Vec::new())];
        while let Some(level) = open.last_mut() {
            let Some((page, slot)) = self.next(&mut level.entries)? else {
                let is_root = open.len() == 1;
                let Some(level) = open.pop() else { break };
                self.leave(level, open.last_mut(), &mut cut);
                if is_root {
                    break;
                }
                continue;
            };
            let node = &leaf(&page)[slot];
            let (path, tree) = (join(&level.path, node), directory(node));
            if (self.leaves)(&path, tree.is_some()) {
                level.is_touched = true;
                self.take_out(path, node, &mut cut)?;
            } else if let Some(tree) = tree {
                let below = self.level(tree, path);
                if !self.untouched.contains(&below.name) {
                    open.push(below);
                }
            }
        }
        Ok((cut.dropped_total > 0).then_some(cut))
    }

    fn leave(&mut self, level: Level, above: Option<&mut Level>, cut: &mut Cut) {
        if level.is_touched {
            above.into_iter().for_each(|above| above.is_touched = true);
            cut.touched.insert(level.path);
        } else if self.untouched.len() < UNTOUCHED_MAX {
            self.untouched.insert(level.name);
        }
    }

    fn take_out(&self, path: Vec<u8>, node: &Node, cut: &mut Cut) -> Result<(), RewriteError> {
        let mut tally = CutTally::default();
        tally.count(node);
        let mut open: Vec<_> = directory(node).map(|tree| Entries::new(&self.reader, tree)).into_iter().collect();
        while let Some(entries) = open.last_mut() {
            match self.next(entries)? {
                None => drop(open.pop()),
                Some((page, slot)) => {
                    let node = &leaf(&page)[slot];
                    tally.count(node);
                    open.extend(directory(node).map(|tree| Entries::new(&self.reader, tree)));
                }
            }
        }
        cut.tally.add(&tally);
        cut.dropped_total += 1;
        if cut.dropped.len() < PATHS_MAX {
            cut.dropped.push(Dropped { path: ByteText(path), tally });
        }
        Ok(())
    }

    /// Puts a snapshot without those paths; the old one stays. `rules` are noted in it. If a prune took what it relied on it
    /// begins again.
    ///
    /// # Errors
    /// [`RewriteError`].
    pub fn apply(&mut self, cut: &Cut, rules: &[String]) -> Result<Replaced, RewriteError> {
        let mut again = 0;
        loop {
            match self.attempt(cut, rules) {
                Err(RewriteError::Repo(RepoError::Pruned(packs))) if again < AGAIN_MAX => {
                    again += 1;
                    tracing::warn!("a prune took {packs} packs that the new snapshot relied on: it is begun again");
                    self.writer = Writer::new(self.repo, self.runtime.clone(), WriterOptions::default());
                }
                done => return done,
            }
        }
    }

    fn attempt(&mut self, cut: &Cut, rules: &[String]) -> Result<Replaced, RewriteError> {
        self.writer.stand_on(Some(cut.name));
        let runs = self.writer.runs().len();
        let root = self.tree(cut)?;
        self.writer.flush()?;
        let mut manifest = without(&cut.manifest, &cut.tally, self.leaves);
        manifest.excludes.extend(rules.iter().map(|rule| ByteText(rule.clone().into_bytes())));
        manifest.root = root.into();
        manifest.index = self.writer.runs()[runs..].to_vec();
        put(self.repo, self.runtime, &mut self.writer, (cut.name, &cut.manifest, manifest))
    }

    fn tree(&mut self, cut: &Cut) -> Result<TreeRef, RewriteError> {
        let mut trees = TreeBuilder::new(None);
        let mut open = vec![self.level(cut.manifest.root.into(), Vec::new())];
        while let Some(level) = open.last_mut() {
            let Some((page, slot)) = self.next(&mut level.entries)? else {
                open.pop();
                if !open.is_empty() {
                    trees.leave(&mut self.writer)?;
                }
                continue;
            };
            let node = &leaf(&page)[slot];
            let (path, tree) = (join(&level.path, node), directory(node));
            if (self.leaves)(&path, tree.is_some()) {
                continue;
            }
            match tree.filter(|_| cut.touched.contains(&path)) {
                Some(tree) => {
                    trees.enter(node.clone(), None, &mut self.writer)?;
                    open.push(self.level(tree, path));
                }
                None => trees.node(node.clone(), &mut self.writer)?,
            }
        }
        Ok(trees.finish(&mut self.writer)?)
    }

    fn level(&self, tree: TreeRef, path: Vec<u8>) -> Level {
        let name = blake3::Hasher::new().update(tree.id.as_bytes()).update(&path).finalize().into();
        Level { entries: Entries::new(&self.reader, tree), path, name, is_touched: false }
    }

    fn next(&self, entries: &mut Entries) -> Result<Option<(Arc<Page>, usize)>, RewriteError> {
        if self.monitor.stopped() {
            return Err(RewriteError::Stopped);
        }
        Ok(self.runtime.block_on(entries.next())?)
    }
}

fn join(folder: &[u8], node: &Node) -> Vec<u8> {
    [folder, b"/", node.name.as_bytes()].concat()
}

fn directory(node: &Node) -> Option<TreeRef> {
    match &node.kind {
        NodeKind::Directory(tree) => Some(*tree),
        _ => None,
    }
}

/// Returns a manifest without what goes: its counts, and errors that name it.
fn without(manifest: &Manifest, tally: &CutTally, leaves: Leaves<'_>) -> Manifest {
    let mut out = manifest.clone();
    let goes = |path: &[u8]| {
        let mut ends = path.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        ends.any(|at| leaves(&path[..at], true)) || leaves(path, false) || leaves(path, true)
    };
    out.errors.retain(|error| !goes(&error.path.0));
    let named = (manifest.errors.len() - out.errors.len()) as u64;
    out.errors_total = manifest.errors_total.saturating_sub(named);
    let Summary { files, directories, others, bytes, .. } = manifest.summary;
    out.summary.files = files.saturating_sub(tally.files);
    out.summary.directories = directories.saturating_sub(tally.directories);
    out.summary.others = others.saturating_sub(tally.others);
    out.summary.bytes = bytes.saturating_sub(tally.bytes);
    out
}
