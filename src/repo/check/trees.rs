//! Snapshots followed from their roots: every tree once, every reference held against the packs.
//!
//! The walk remembers 16 bytes of the id of each page seen, so that memory is bounded by the number of distinct trees
//! and not by their content; of pages that suffer it also remembers which packs they suffer from, so that later
//! snapshots that share them are told too.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId, RunId};
use super::super::layout::SnapshotName;
use super::super::lookup::Index;
use super::super::path::{self, Found, leaf};
use super::super::snapshot::{ByteText, Manifest};
use super::super::tree::{self, BranchEntry, ChunkRef, Data, FileContent, Location, Node, NodeKind, Page, TreeRef};
use super::super::{READER_BYTES_DEFAULT, Reader, Repo};
use super::objects::load_run;
use super::{Affected, CheckProgress, CheckStage, Findings, Monitor, PATHS_MAX, Pack, Unreadable};

/// The first half of a page's id: 2^64 pages before two are mistaken for one.
pub(in crate::repo) type PageKey = [u8; 16];
/// Pages that suffer, they or what is below them, and the packs that they suffer from.
pub(in crate::repo) type Hurt = HashMap<PageKey, BTreeSet<PackId>>;

/// Where a walk begins: in which snapshot, at which path, with what.
pub(in crate::repo) struct Start {
    name: SnapshotName,
    path: Vec<u8>,
    found: Found,
}

/// A page being gone through.
struct Open {
    key: PageKey,
    page: Arc<Page>,
    at: usize,
    /// Length of the directory's path.
    path_bytes: usize,
    /// Packs that it or anything below it suffers from.
    hurt: BTreeSet<PackId>,
}

struct Walk<'a> {
    repo: &'a Repo,
    reader: Reader,
    findings: &'a mut Findings,
    /// Every chunk's places, loaded when a reference first fails.
    index: Option<Index>,
    seen: HashSet<PageKey>,
    hurt: Hurt,
    snapshot: SnapshotName,
    path: Vec<u8>,
    open: Vec<Open>,
}

/// Returns where the walks of all snapshots begin, the oldest first, or those of the paths that were asked for.
///
/// A path that cannot be found because what leads to it is damaged becomes all of its snapshot: the walk names the damage.
pub(in crate::repo) async fn roots(
    repo: &Repo,
    findings: &Findings,
    only: &[(SnapshotName, Vec<u8>)],
) -> Result<Vec<Start>, RepoError> {
    let root_of = |manifest: &Manifest| TreeRef::from(manifest.root);
    if only.is_empty() {
        let whole = |(name, manifest): &(SnapshotName, Manifest)| Start {
            name: *name,
            path: Vec::new(),
            found: Found::Root(root_of(manifest)),
        };
        return Ok(findings.snapshots.iter().map(whole).collect());
    }
    let (reader, mut out) = (repo.reader(READER_BYTES_DEFAULT / 4), Vec::new());
    for (name, path) in only {
        let Some((_, manifest)) = findings.snapshots.iter().find(|(other, _)| other == name) else {
            continue; // damaged, and named already
        };
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
        out.push(match path::resolve(&reader, root_of(manifest), path).await {
            Ok(found) => {
                let path = parts.iter().flat_map(|part| [b"/", *part].concat()).collect();
                Start { name: *name, path, found }
            }
            Err(RepoError::Damaged { .. }) => {
                Start { name: *name, path: Vec::new(), found: Found::Root(root_of(manifest)) }
            }
            Err(error) => return Err(error),
        });
    }
    Ok(out)
}

/// Follows snapshots; returns the pages that suffer.
pub(in crate::repo) async fn follow(
    repo: &Repo,
    findings: &mut Findings,
    starts: &[Start],
    monitor: Monitor<'_>,
) -> Result<Hurt, RepoError> {
    let Some(first) = starts.first() else { return Ok(Hurt::new()) };
    let (total, bytes) = (starts.len() as u64, findings.counts.bytes_read);
    let mut walk = Walk {
        repo,
        reader: repo.reader(READER_BYTES_DEFAULT),
        findings,
        index: None,
        seen: HashSet::new(),
        hurt: Hurt::new(),
        snapshot: first.name,
        path: Vec::new(),
        open: Vec::new(),
    };
    let tell = |done| monitor(CheckProgress { stage: CheckStage::Snapshots, done, total, bytes, whole: None });
    for (done, start) in (0..).zip(starts) {
        tell(done);
        walk.snapshot = start.name;
        for pack in walk.snapshot_from(start).await? {
            walk.pack(pack).trouble("damaged").snapshots.insert(start.name);
        }
    }
    tell(total);
    Ok(walk.hurt)
}

/// What the next entry of a page asks for.
enum Next {
    Nothing,
    Leave,
    Page(TreeRef),
}

impl Walk<'_> {
    /// Goes through all that is below a start and not yet seen; returns the packs it suffers from.
    async fn snapshot_from(&mut self, start: &Start) -> Result<BTreeSet<PackId>, RepoError> {
        let mut hurt = BTreeSet::new();
        self.path.clone_from(&start.path);
        match &start.found {
            Found::Root(root) => self.enter(root, &mut hurt).await?,
            Found::Node(node) => match &node.kind {
                NodeKind::Directory(tree) => self.enter(tree, &mut hurt).await?,
                _ => {
                    Page::Leaf(vec![(**node).clone()]).for_each_pack(|pack| self.pack(pack).used = true);
                    self.path.truncate(self.path.len() - node.name.as_bytes().len() - 1);
                    self.node(node, &mut hurt).await?;
                }
            },
        }
        while let Some(mut open) = self.open.pop() {
            match self.step(&mut open).await? {
                Next::Nothing => self.open.push(open),
                Next::Leave => {
                    self.path.truncate(open.path_bytes);
                    let above = self.open.last_mut().map_or(&mut hurt, |above| &mut above.hurt);
                    above.extend(&open.hurt);
                    if !open.hurt.is_empty() {
                        self.hurt.insert(open.key, open.hurt);
                    }
                }
                Next::Page(page) => {
                    let place = self.open.len();
                    let mut inner = std::mem::take(&mut open.hurt);
                    self.enter(&page, &mut inner).await?;
                    open.hurt = inner;
                    self.open.insert(place, open);
                }
            }
        }
        Ok(hurt)
    }

    /// Opens a page unless it was seen; `hurt` takes what is known to be wrong with it.
    async fn enter(&mut self, at: &TreeRef, hurt: &mut BTreeSet<PackId>) -> Result<(), RepoError> {
        self.pack(at.pack).used = true;
        let key = key_of(at.id);
        if !self.seen.insert(key) {
            hurt.extend(self.hurt.get(&key).into_iter().flatten());
            return Ok(());
        }
        match self.tree(at, |reader, at| async move { reader.page(&at).await }).await? {
            Some(page) => {
                self.findings.counts.trees += 1;
                page.for_each_pack(|pack| self.findings.packs.entry(pack).or_default().used = true);
                self.open.push(Open { key, page, at: 0, path_bytes: self.path.len(), hurt: BTreeSet::new() });
            }
            None => {
                self.suffers(at.pack);
                hurt.insert(at.pack);
                self.hurt.insert(key, BTreeSet::from([at.pack]));
            }
        }
        Ok(())
    }

    /// Takes the next entry of a page.
    async fn step(&mut self, open: &mut Open) -> Result<Next, RepoError> {
        self.path.truncate(open.path_bytes);
        let page = open.page.clone();
        open.at += 1;
        match &*page {
            Page::Branch(entries) => {
                Ok(entries.get(open.at - 1).map_or(Next::Leave, |BranchEntry { page, .. }| Next::Page(*page)))
            }
            Page::Leaf(_) => match leaf(&page).get(open.at - 1) {
                Some(node) => self.node(node, &mut open.hurt).await,
                None => Ok(Next::Leave),
            },
        }
    }

    async fn node(&mut self, node: &Node, hurt: &mut BTreeSet<PackId>) -> Result<Next, RepoError> {
        self.path.push(b'/');
        self.path.extend_from_slice(node.name.as_bytes());
        match &node.kind {
            NodeKind::Directory(tree) => return Ok(Next::Page(*tree)),
            NodeKind::File(content) => {
                self.findings.counts.files += 1;
                let bad = self.content(content).await?;
                bad.iter().for_each(|pack| self.suffers(*pack));
                hurt.extend(bad);
            }
            _ => {}
        }
        Ok(Next::Nothing)
    }

    /// Returns the packs that a file's content suffers from.
    async fn content(&mut self, content: &FileContent) -> Result<BTreeSet<PackId>, RepoError> {
        let mut bad = BTreeSet::new();
        match &content.data {
            Data::Chunks(chunks) => self.chunks(chunks, &mut bad).await?,
            Data::Pages(pages) => {
                for (_, at) in pages {
                    let known = self.content_page(at).await?;
                    bad.extend(known);
                }
            }
        }
        Ok(bad)
    }

    async fn content_page(&mut self, at: &TreeRef) -> Result<BTreeSet<PackId>, RepoError> {
        let key = key_of(at.id);
        self.pack(at.pack).used = true;
        if !self.seen.insert(key) {
            return Ok(self.hurt.get(&key).cloned().unwrap_or_default());
        }
        let mut bad = BTreeSet::new();
        let read = |reader: Reader, at: TreeRef| async move {
            let raw: Bytes = reader.tree_chunk(&at).await?;
            tree::decode_content_page(&raw).map_err(|e| RepoError::damaged(at.pack, e))
        };
        match self.tree(at, read).await? {
            Some(chunks) => {
                self.findings.counts.trees += 1;
                chunks.iter().for_each(|c| self.pack(c.location.pack).used = true);
                self.chunks(&chunks, &mut bad).await?;
            }
            None => drop(bad.insert(at.pack)),
        }
        if !bad.is_empty() {
            self.hurt.insert(key, bad.clone());
        }
        Ok(bad)
    }

    /// Reads a tree where its reference says, else wherever the index has it; nothing if it is lost.
    async fn tree<T, F>(&mut self, at: &TreeRef, read: impl Fn(Reader, TreeRef) -> F) -> Result<Option<T>, RepoError>
    where
        F: Future<Output = Result<T, RepoError>>,
    {
        let problem = match read(self.reader.clone(), *at).await {
            Ok(value) => {
                let pack = self.pack(at.pack);
                let lost = pack.trouble.as_ref().is_some_and(|t| t.lost == Unreadable::All);
                self.findings.counts.moved += u64::from(lost || self.pack(at.pack).listed.is_none());
                return Ok(Some(value));
            }
            Err(RepoError::Damaged { problem, .. }) => problem,
            Err(error) => return Err(error),
        };
        let places: Vec<_> = self.index().await?.places(at.id).map(|p| TreeRef::from_placed(at.id, &p)).collect();
        for other in places.iter().filter(|other| other.pack != at.pack && other.bytes == at.bytes) {
            match read(self.reader.clone(), *other).await {
                Ok(value) => {
                    self.findings.counts.moved += 1;
                    return Ok(Some(value));
                }
                Err(RepoError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.pack(at.pack).trouble(&problem);
        self.findings.lost.trees.insert(at.id, *at);
        Ok(None)
    }

    /// Holds references to content against the packs.
    async fn chunks(&mut self, chunks: &[ChunkRef], bad: &mut BTreeSet<PackId>) -> Result<(), RepoError> {
        for chunk in chunks {
            let at = &chunk.location;
            let Err(problem) = self.pack(at.pack).holds(at.frame_offset, at.frame_bytes) else { continue };
            if self.is_elsewhere(chunk).await? {
                self.findings.counts.moved += 1;
            } else {
                self.pack(at.pack).trouble(problem);
                self.findings.lost.content.insert(chunk.id, *chunk);
                bad.insert(at.pack);
            }
        }
        Ok(())
    }

    async fn is_elsewhere(&mut self, chunk: &ChunkRef) -> Result<bool, RepoError> {
        self.index().await?;
        let Some(index) = &self.index else { return Ok(false) };
        let packs = &mut self.findings.packs;
        let holds = |packs: &HashMap<PackId, Pack>, at: &Location| {
            packs.get(&at.pack).is_some_and(|pack| pack.holds(at.frame_offset, at.frame_bytes).is_ok())
        };
        let mut places = index.places(chunk.id).filter(|placed| placed.bytes == chunk.bytes);
        let found = places.find(|placed| holds(packs, &placed.location)).map(|placed| placed.location.pack);
        found.and_then(|pack| packs.get_mut(&pack)).into_iter().for_each(|pack| pack.used = true);
        Ok(found.is_some())
    }

    /// Returns the index, as far as its runs open.
    async fn index(&mut self) -> Result<&Index, RepoError> {
        if self.index.is_none() {
            self.index = Some(readable_index(self.repo, self.findings).await?);
        }
        Ok(self.index.get_or_insert_default())
    }

    /// Notes that what is at the path of the walk suffers from a pack.
    fn suffers(&mut self, pack: PackId) {
        let path = if self.path.is_empty() { b"/".to_vec() } else { self.path.clone() };
        let snapshot = self.snapshot.id;
        let trouble = self.pack(pack).trouble("damaged");
        let hash = *blake3::hash(&path).as_bytes().first_chunk().expect("32 bytes hold 8");
        if trouble.paths_seen.insert(u64::from_le_bytes(hash)) && trouble.paths.len() < PATHS_MAX {
            trouble.paths.push(Affected { snapshot, path: ByteText(path) });
        }
    }

    fn pack(&mut self, id: PackId) -> &mut Pack {
        self.findings.packs.entry(id).or_default()
    }
}

/// Loads the index, as far as its runs open.
pub(in crate::repo) async fn readable_index(repo: &Repo, findings: &Findings) -> Result<Index, RepoError> {
    let load = |id: RunId| load_run(repo, id);
    let runs: Vec<_> = futures::stream::iter(findings.runs.clone()).map(load).buffered(8).try_collect().await?;
    let mut runs: Vec<_> = runs.into_iter().filter_map(|run| run?.ok()).collect();
    runs.extend(findings.rebuilt.iter().map(|(_, run)| run.clone()));
    Ok(Index { runs })
}

/// Returns what a page is remembered by.
pub(in crate::repo) fn key_of(id: ChunkId) -> PageKey {
    *id.0.first_chunk().expect("32 bytes hold 16")
}
