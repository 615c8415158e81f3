//! Copying a snapshot between klosets with different keys: its trees are walked, and written anew bottom-up.
//!
//! One thread walks, reads ahead and owns the writer; opening and sealing happen on all cores. A directory, or a file's
//! content, that is the same in a snapshot of both sides is taken over from the target's tree, unread. That is safe as
//! long as the target still has that snapshot when the new one is put, and it is looked at before and after: a prune spares
//! what a snapshot needs, wherever it moved it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::base::{Bases, Pair};
use super::content::Contents;
use super::{Sides, SyncError};
use crate::monitor::Monitor;
use crate::repo::builder::TreeBuilder;
use crate::repo::layout::SnapshotName;
use crate::repo::path::{self, Nodes, leaf};
use crate::repo::tree::{ChunkRef, Data, FileContent, Node, NodeKind, Page, TreeRef};
use crate::repo::writer::{Writer, WriterOptions};
use crate::repo::{READER_BYTES_DEFAULT, Reader, RepoError};

/// Memory of the reader of what the target has.
const TARGET_READER_BYTES: usize = 32 << 20;
/// Content that is fetched ahead within a page of a directory.
pub(super) const AHEAD_BYTES: u64 = 16 << 20;

/// Copies snapshots; one session of the target.
pub(super) struct Transfer<'a> {
    sides: Sides<'a>,
    pub(super) reader: Reader,
    /// Reads what the target has, if its key can.
    target: Option<Reader>,
    pub(super) writer: Writer,
    pub(super) contents: Contents,
    bases: Bases,
    pub(super) monitor: &'a Monitor,
    list_every: Duration,
    listed_ms: i64,
}

/// What is done with a node.
enum Take {
    /// Added with this in the place of what it is in the source.
    As(NodeKind),
    /// Added as it is: it has no content.
    Plain,
    /// Its content is copied.
    Read,
    /// Its entries come next.
    Enter(TreeRef, Option<Pair>),
}

/// A directory that is being walked.
struct Level {
    pages: Nodes,
    base: Option<Pair>,
    page: Option<Arc<Page>>,
    takes: std::vec::IntoIter<Take>,
    /// The next node of the page.
    slot: usize,
    /// The first node of the page that is not fetched ahead.
    ahead: usize,
    /// Bytes that are fetched ahead and not taken yet.
    ahead_bytes: u64,
}

impl<'a> Transfer<'a> {
    pub(super) fn new(sides: Sides<'a>, list_every: Duration, monitor: &'a Monitor) -> Result<Self, SyncError> {
        let target = sides.to.keys.can_read().then(|| sides.to.reader(TARGET_READER_BYTES));
        let mut writer = Writer::new(sides.to, sides.runtime.clone(), WriterOptions { verify_packs: true });
        writer.load_index().map_err(SyncError::To)?;
        Ok(Self {
            reader: sides.from.reader(READER_BYTES_DEFAULT),
            target,
            writer,
            contents: Contents::new(sides),
            bases: sides.runtime.block_on(Bases::find(sides))?,
            monitor,
            list_every,
            listed_ms: sides.to.env.clock.unix_ms(),
            sides,
        })
    }

    pub(super) fn runtime(&self) -> &'a tokio::runtime::Handle {
        self.sides.runtime
    }

    /// Copies one snapshot.
    pub(super) fn copy(&mut self, name: SnapshotName) -> Result<(), SyncError> {
        let mut manifest = self.runtime().block_on(self.sides.from.manifest(name)).map_err(SyncError::From)?;
        let base = self.runtime().block_on(self.bases.choose(self.sides, &manifest))?;
        self.writer.stand_on(base.as_ref().map(|base| base.name));
        let (source_root, runs) = (manifest.root, self.writer.runs().len());
        let root = self.tree(manifest.root.into(), base.as_ref().map(|base| base.roots));
        // What was stored of a snapshot that cannot be finished is found by the next sync, if it can still be put.
        if !matches!(root, Err(SyncError::To(_))) {
            self.writer.flush().map_err(SyncError::To)?;
        }
        manifest.root = root?.into();
        manifest.index = self.writer.runs()[runs..].to_vec();
        self.writer.commit(name, &manifest).map_err(|error| match error {
            RepoError::NoSnapshot(base) => SyncError::BaseGone(base),
            error => SyncError::To(error),
        })?;
        manifest.root = source_root;
        self.bases.add(self.sides, name, &manifest);
        Ok(())
    }

    /// Writes a tree and all below it.
    fn tree(&mut self, root: TreeRef, base: Option<Pair>) -> Result<TreeRef, SyncError> {
        let mut trees = TreeBuilder::new(base.map(|pair| pair.to));
        let mut open = vec![Level::new(&self.reader, root, base)];
        while let Some(level) = open.last_mut() {
            if self.monitor.stopped() {
                return Err(SyncError::Stopped);
            }
            let Some((page, slot, take)) = self.next(level)? else {
                open.pop();
                if !open.is_empty() {
                    trees.leave(&mut self.writer).map_err(SyncError::To)?;
                }
                continue;
            };
            let node = leaf(&page)[slot].clone();
            match take {
                Take::Enter(tree, base) => {
                    self.monitor.directories.fetch_add(1, Ordering::Relaxed);
                    let there = base.map(|pair| pair.to);
                    trees.enter(node, there, &mut self.writer).map_err(SyncError::To)?;
                    open.push(Level::new(&self.reader, tree, base));
                }
                take => self.add(node, take, &mut trees)?,
            }
        }
        trees.finish(&mut self.writer).map_err(SyncError::To)
    }

    fn add(&mut self, node: Node, take: Take, trees: &mut TreeBuilder) -> Result<(), SyncError> {
        if let NodeKind::File(content) = &node.kind {
            self.monitor.file(content.bytes);
        }
        let added = match (take, &node.kind) {
            (Take::As(kind), _) => trees.node(Node { kind, ..node }, &mut self.writer),
            (Take::Read, NodeKind::File(content)) => {
                let chunks = self.copy_content(content)?;
                let content = FileContent { data: Data::default(), ..content.clone() };
                trees.file(Node { kind: NodeKind::File(content), ..node }, chunks, &mut self.writer)
            }
            _ => trees.node(node, &mut self.writer),
        };
        added.map_err(SyncError::To)?;
        self.list_packs()
    }

    /// Puts an index run when whole packs have waited long enough for one.
    pub(super) fn list_packs(&mut self) -> Result<(), SyncError> {
        let waited_ms = self.sides.to.env.clock.unix_ms().saturating_sub(self.listed_ms);
        let is_due = u128::try_from(waited_ms).is_ok_and(|waited| waited >= self.list_every.as_millis());
        if is_due && self.writer.has_unlisted() {
            self.writer.put_run().map_err(SyncError::To)?;
            self.listed_ms = self.sides.to.env.clock.unix_ms();
        }
        Ok(())
    }

    /// Returns the next node of a directory and what is to be done with it; keeps content coming.
    fn next(&self, level: &mut Level) -> Result<Option<(Arc<Page>, usize, Take)>, SyncError> {
        loop {
            if let (Some(page), Some(take)) = (level.page.clone(), level.takes.next()) {
                let slot = level.slot;
                self.fetch_ahead(level, &page, &take);
                if matches!(take, Take::Read) {
                    level.ahead_bytes = level.ahead_bytes.saturating_sub(inline_bytes(&leaf(&page)[slot]));
                }
                level.slot += 1;
                return Ok(Some((page, slot, take)));
            }
            let next = self.runtime().block_on(level.pages.next_page());
            let Some(page) = next.map_err(SyncError::From)? else { return Ok(None) };
            let takes = self.runtime().block_on(self.judge(&page, level.base))?;
            (level.page, level.takes) = (Some(page), takes.into_iter());
            (level.slot, level.ahead, level.ahead_bytes) = (0, 0, 0);
        }
    }

    fn fetch_ahead(&self, level: &mut Level, page: &Page, take: &Take) {
        if level.ahead > level.slot && level.ahead_bytes >= AHEAD_BYTES / 2 {
            return;
        }
        if level.ahead <= level.slot {
            (level.ahead, level.ahead_bytes) = (level.slot, 0);
        }
        let (takes, nodes) = (level.takes.as_slice(), leaf(page));
        let mut wanted = Vec::new();
        while level.ahead < nodes.len() && level.ahead_bytes < AHEAD_BYTES {
            let (node, at) = (&nodes[level.ahead], level.ahead - level.slot);
            let its = if at == 0 { Some(take) } else { takes.get(at - 1) };
            if matches!(its, Some(Take::Read)) {
                level.ahead_bytes += inline_bytes(node);
                wanted.extend(inline_chunks(node).iter().filter(|chunk| self.has_to_read(chunk)));
            }
            level.ahead += 1;
        }
        self.prefetch(wanted);
    }

    /// Begins to fetch chunks of the source.
    pub(super) fn prefetch<'b>(&self, chunks: impl IntoIterator<Item = &'b ChunkRef>) {
        let _entered = self.sides.runtime.enter(); // what is begun is spawned there
        self.reader.prefetch_all(chunks, true);
    }

    /// Decides what is done with the nodes of a page.
    async fn judge(&self, page: &Page, base: Option<Pair>) -> Result<Vec<Take>, SyncError> {
        let mut takes = Vec::with_capacity(leaf(page).len());
        for node in leaf(page) {
            takes.push(match &node.kind {
                NodeKind::Directory(tree) => match self.in_base(node, base).await? {
                    Some((NodeKind::Directory(from), NodeKind::Directory(to))) => match from.id == tree.id {
                        true => Take::As(NodeKind::Directory(to)),
                        false => Take::Enter(*tree, Some(Pair { from, to })),
                    },
                    _ => Take::Enter(*tree, None),
                },
                NodeKind::File(content) if content.data_bytes() > 0 => match self.in_base(node, base).await? {
                    Some((NodeKind::File(from), NodeKind::File(to))) if is_same(content, &from, &to) => {
                        Take::As(NodeKind::File(FileContent { data: to.data, ..content.clone() }))
                    }
                    _ => Take::Read,
                },
                _ => Take::Plain,
            });
        }
        Ok(takes)
    }

    /// Returns what the node of the same name is on both sides.
    async fn in_base(&self, node: &Node, base: Option<Pair>) -> Result<Option<(NodeKind, NodeKind)>, SyncError> {
        let (Some(pair), Some(target)) = (base, &self.target) else { return Ok(None) };
        let name = node.name.as_bytes();
        let from = match path::lookup(&self.reader, pair.from, name).await {
            Err(RepoError::Damaged { .. }) => None,
            found => found.map_err(SyncError::From)?,
        };
        let Some(from) = from else { return Ok(None) };
        let to = match path::lookup(target, pair.to, name).await {
            Err(RepoError::Damaged { .. }) => None,
            found => found.map_err(SyncError::To)?,
        };
        Ok(to.map(|to| (from.kind, to.kind)))
    }
}

impl Level {
    fn new(reader: &Reader, directory: TreeRef, base: Option<Pair>) -> Self {
        let pages = Nodes::new(reader, directory);
        Self { pages, base, page: None, takes: Vec::new().into_iter(), slot: 0, ahead: 0, ahead_bytes: 0 }
    }
}

/// Tells whether a file holds what both sides have.
fn is_same(content: &FileContent, from: &FileContent, to: &FileContent) -> bool {
    let data = match (&content.data, &from.data) {
        (Data::Chunks(a), Data::Chunks(b)) => a.iter().map(|c| c.id).eq(b.iter().map(|c| c.id)),
        (Data::Pages(a), Data::Pages(b)) => a.iter().map(|p| p.1.id).eq(b.iter().map(|p| p.1.id)),
        _ => false,
    };
    data && [from, to].iter().all(|other| (other.bytes, &other.holes) == (content.bytes, &content.holes))
}

/// The chunks that stand in a node: those of a large file are listed elsewhere.
fn inline_chunks(node: &Node) -> &[ChunkRef] {
    match &node.kind {
        NodeKind::File(FileContent { data: Data::Chunks(chunks), .. }) => chunks,
        _ => &[],
    }
}

fn inline_bytes(node: &Node) -> u64 {
    inline_chunks(node).iter().map(|chunk| u64::from(chunk.bytes)).sum()
}
