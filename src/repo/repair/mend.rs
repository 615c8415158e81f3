//! Corrected snapshots: what is left of a damaged one, beside it.
//!
//! Folders that are whole are taken over as they are; a file or a folder that cannot be read is left out and stands among
//! the errors of the manifest, so that everybody who shows the snapshot says that it is incomplete. The damaged snapshot
//! stays. Memory is bounded by a page of each folder on the way down.

use std::collections::HashSet;

use super::super::builder::TreeBuilder;
use super::super::check::{PATHS_MAX, key_of};
use super::super::error::RepoError;
use super::super::id::{ChunkId, SnapshotId};
use super::super::layout::SnapshotName;
use super::super::snapshot::{ByteText, ERRORS_BYTES_MAX, ERRORS_MAX, Manifest, SourceError, Summary};
use super::super::tree::{self, BranchEntry, Data, FileContent, Node, NodeKind, Page, TreeRef};
use super::super::writer::{Writer, WriterOptions};
use super::super::{READER_BYTES_DEFAULT, Reader};
use super::{Outcome, RepairReport, State, Verdict, Work};

/// The tag of a corrected snapshot; its parent is the damaged one.
pub const CORRECTED_TAG: &str = "corrected";

/// Gives every snapshot that still lacks something a corrected one, unless it has one.
pub(super) fn mend_all(work: &Work<'_>, state: &State, report: &mut RepairReport) -> Result<(), RepoError> {
    let still: Vec<_> = state.suffering();
    let suffered = state.first.snapshots_affected();
    let still_ids: HashSet<SnapshotId> = still.iter().map(|(name, _)| name.id).collect();
    let opens = |id: &SnapshotId| state.findings.snapshots.iter().any(|(name, _)| name.id == *id);
    for id in suffered.into_iter().filter(|id| !still_ids.contains(id) && opens(id)) {
        report.snapshots.push(Verdict { snapshot: id, outcome: Outcome::Healed, paths: Vec::new(), paths_total: 0 });
    }
    for (name, manifest) in &still {
        let before = corrected_before(state, *name);
        let dry = work.repo.without_puts();
        let work = if before.is_some() { &Work { repo: &dry, ..*work } } else { work };
        let mut mender = Mender::new(work, state);
        let root = mender.rebuild(manifest.root.into())?;
        let Losses { paths, total, .. } = &mender.losses;
        let (paths, paths_total) = (paths.clone(), *total);
        let outcome = match root {
            None => Outcome::Unreadable,
            Some(_) if paths_total == 0 => Outcome::Healed,
            Some(root) => Outcome::Corrected(match before {
                Some(id) => id,
                None => mender.commit((*name, manifest), root)?,
            }),
        };
        report.snapshots.push(Verdict { snapshot: name.id, outcome, paths, paths_total });
    }
    Ok(())
}

/// Finds the corrected snapshot that an earlier repair made.
fn corrected_before(state: &State, name: SnapshotName) -> Option<SnapshotId> {
    let corrects = |(other, manifest): &&(SnapshotName, Manifest)| {
        other.unix_ms == name.unix_ms
            && manifest.parent == Some(name.id)
            && manifest.tags.iter().any(|tag| tag == CORRECTED_TAG)
    };
    state.findings.snapshots.iter().find(corrects).map(|(other, _)| other.id)
}

/// What a snapshot lacks.
#[derive(Default)]
struct Losses {
    errors: Vec<SourceError>,
    errors_bytes: usize,
    paths: Vec<ByteText>,
    total: u64,
    files: u64,
    bytes: u64,
}

/// A folder being gone through.
struct Open {
    /// Pages that are still to be opened, the next one last.
    pages: Vec<TreeRef>,
    nodes: std::vec::IntoIter<Node>,
    path_bytes: usize,
}

struct Mender<'a> {
    work: &'a Work<'a>,
    state: &'a State,
    reader: Reader,
    writer: Writer,
    losses: Losses,
    path: Vec<u8>,
}

impl<'a> Mender<'a> {
    fn new(work: &'a Work<'a>, state: &'a State) -> Self {
        let mut writer = Writer::new(work.repo, work.runtime.clone(), WriterOptions::default());
        writer.shun(state.shunned());
        let reader = work.repo.reader(READER_BYTES_DEFAULT / 2);
        Self { work, state, reader, writer, losses: Losses::default(), path: Vec::new() }
    }

    /// Builds the trees without what is lost; nothing if the root is.
    fn rebuild(&mut self, root: TreeRef) -> Result<Option<TreeRef>, RepoError> {
        if self.is_lost(root.id) {
            return Ok(None);
        }
        let mut trees = TreeBuilder::new(None);
        let mut stack = vec![Open { pages: vec![root], nodes: Vec::new().into_iter(), path_bytes: 0 }];
        while let Some(open) = stack.last_mut() {
            self.path.truncate(open.path_bytes);
            if let Some(node) = open.nodes.next() {
                stack.extend(self.take(node, &mut trees)?);
            } else if let Some(page) = open.pages.pop() {
                self.turn(page, open)?;
            } else {
                stack.pop();
                if !stack.is_empty() {
                    trees.leave(&mut self.writer)?;
                }
            }
        }
        let root = trees.finish(&mut self.writer)?;
        self.writer.flush()?;
        Ok(Some(root))
    }

    fn is_lost(&self, id: ChunkId) -> bool {
        self.state.findings.lost.trees.contains_key(&id)
    }

    fn is_hurt(&self, id: ChunkId) -> bool {
        self.state.hurt.contains_key(&key_of(id))
    }

    /// Opens the next page of a folder.
    fn turn(&mut self, at: TreeRef, open: &mut Open) -> Result<(), RepoError> {
        if self.is_lost(at.id) {
            self.lose("some of what was in this folder is lost: the store has damaged it", None);
            return Ok(());
        }
        match self.work.runtime.block_on(self.reader.page(&at)) {
            Ok(page) => match &*page {
                Page::Leaf(nodes) => open.nodes = nodes.clone().into_iter(),
                Page::Branch(entries) => open.pages.extend(entries.iter().rev().map(|BranchEntry { page, .. }| *page)),
            },
            // It would be healed, and is not there as long as that is a plan.
            Err(RepoError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes over a node, or leaves it out; returns the folder that is to be gone through.
    fn take(&mut self, mut node: Node, trees: &mut TreeBuilder) -> Result<Option<Open>, RepoError> {
        self.path.push(b'/');
        self.path.extend_from_slice(node.name.as_bytes());
        match &node.kind {
            NodeKind::Directory(tree) if self.is_lost(tree.id) => {
                self.lose("lost with all that is in it: the store has damaged it", None);
                return Ok(None);
            }
            NodeKind::Directory(tree) if self.is_hurt(tree.id) => {
                let pages = vec![*tree];
                trees.enter(node, None, &mut self.writer)?;
                return Ok(Some(Open { pages, nodes: Vec::new().into_iter(), path_bytes: self.path.len() }));
            }
            NodeKind::File(content) if self.lacks(content)? => {
                self.lose("lost: the store has damaged its content", Some(content.bytes));
                return Ok(None);
            }
            _ => {}
        }
        self.writer.move_out(&mut node)?;
        trees.node(node, &mut self.writer)?;
        Ok(None)
    }

    /// Tells whether something of a file's content is lost.
    fn lacks(&self, content: &FileContent) -> Result<bool, RepoError> {
        let lost = &self.state.findings.lost.content;
        match &content.data {
            Data::Chunks(chunks) => Ok(chunks.iter().any(|chunk| lost.contains_key(&chunk.id))),
            Data::Pages(pages) => {
                for (_, page) in pages.iter().filter(|(_, page)| self.is_hurt(page.id)) {
                    if self.is_lost(page.id) {
                        return Ok(true);
                    }
                    let chunks = match self.work.runtime.block_on(self.reader.tree_chunk(page)) {
                        Ok(raw) => tree::decode_content_page(&raw).map_err(|e| RepoError::damaged(page.pack, e))?,
                        Err(RepoError::Damaged { .. }) => continue, // as above
                        Err(error) => return Err(error),
                    };
                    if chunks.iter().any(|chunk| lost.contains_key(&chunk.id)) {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
        }
    }

    /// Notes that what is at the path is left out; of a file, how many bytes.
    fn lose(&mut self, message: &str, file: Option<u64>) {
        let path = if self.path.is_empty() { b"/".to_vec() } else { self.path.clone() };
        let losses = &mut self.losses;
        losses.total += 1;
        losses.files += u64::from(file.is_some());
        losses.bytes += file.unwrap_or(0);
        if losses.paths.len() < PATHS_MAX {
            losses.paths.push(ByteText(path.clone()));
        }
        let error = SourceError { path: ByteText(path), message: message.to_owned() };
        let bytes = error.encoded_bytes();
        if losses.errors.len() < ERRORS_MAX && losses.errors_bytes + bytes <= ERRORS_BYTES_MAX {
            losses.errors_bytes += bytes;
            losses.errors.push(error);
        }
    }

    /// Puts the corrected snapshot: of the same time and host, with the damaged one as its parent.
    fn commit(&mut self, (name, manifest): (SnapshotName, &Manifest), root: TreeRef) -> Result<SnapshotId, RepoError> {
        let corrected = SnapshotName { id: SnapshotId(self.work.repo.env.entropy.bytes()), ..name };
        let losses = std::mem::take(&mut self.losses);
        let counts = self.writer.counts();
        let summary = Summary {
            files: manifest.summary.files.saturating_sub(losses.files),
            bytes: manifest.summary.bytes.saturating_sub(losses.bytes),
            chunks_new: counts.chunks_new,
            bytes_new: counts.bytes_new,
            bytes_stored: counts.bytes_stored,
            ..manifest.summary
        };
        let others = manifest.tags.iter().filter(|tag| *tag != CORRECTED_TAG).cloned();
        let manifest = Manifest {
            id: corrected.id,
            program: concat!("kloset-mount ", env!("CARGO_PKG_VERSION")).into(),
            tags: others.chain([CORRECTED_TAG.to_owned()]).collect(),
            parent: Some(name.id),
            root: root.into(),
            summary,
            index: self.writer.runs().to_vec(),
            incomplete: true,
            errors_total: manifest.errors_total + losses.total,
            errors: bounded(losses.errors.into_iter().chain(manifest.errors.iter().cloned())),
            ..manifest.clone()
        };
        self.writer.commit(corrected, &manifest)?;
        Ok(corrected.id)
    }
}

/// Keeps as many errors as a manifest may hold.
fn bounded(errors: impl Iterator<Item = SourceError>) -> Vec<SourceError> {
    let mut bytes = 0;
    let fits = |error: &SourceError| {
        bytes += error.encoded_bytes();
        bytes <= ERRORS_BYTES_MAX
    };
    errors.take(ERRORS_MAX).take_while(fits).collect()
}
