//! What a path was, over all snapshots that are shown: its distinct folders and its versions.
//!
//! A version is a content of a path, told from others by what is in it and not by its times or owner, and belongs to the
//! first snapshot that has it: so its name stays while newer snapshots come. A path's history is made of that of the
//! folder above, whose distinct trees are compared by id. So a folder that did not change is looked into once, however
//! many snapshots hold it, and nothing is looked into that nobody asked for. What could not be read is kept beside what
//! could, and shown as an error by whoever lists it. It knows nothing of inodes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;

use super::directory::{self, Leaf};
use super::guard::Guard;
use super::names::Names;
use super::roots::Roots;
use super::union::{self, Union};
use crate::repo::RepoError;
use crate::repo::cache::{Cache, Weigh};
use crate::repo::content_id::content_id;
use crate::repo::id::ChunkId;
use crate::repo::layout::SnapshotName;
use crate::repo::reader::Reader;
use crate::repo::tree::{Node, NodeKind, TreeRef};

/// Trees looked into at once.
const FETCHES: usize = 16;
/// Memory for histories: more only costs making one again, from pages in memory.
const HISTORIES_BYTES_MAX: usize = 8 << 20;
/// Memory for listed names.
const UNIONS_BYTES_MAX: usize = 8 << 20;

/// What a path was.
pub struct History {
    /// The distinct trees it had, oldest first, each with the first snapshot that has it.
    pub folders: Vec<(TreeRef, SnapshotName)>,
    /// What it was where it was no folder, oldest first.
    pub versions: Vec<Version>,
    /// Whom its folder lets in.
    pub guard: Guard,
    /// Why something of it is not known.
    pub problem: Option<RepoError>,
    /// Where the part of its listing begins that was made last.
    union_from: AtomicU64,
}

/// A content of a path.
#[derive(Clone)]
pub struct Version {
    /// The first snapshot that has it.
    pub snapshot: SnapshotName,
    /// The page that its node is in.
    pub page: TreeRef,
    /// The node's place there.
    pub slot: usize,
}

impl History {
    /// Tells whether no snapshot that could be read has the path.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.versions.is_empty()
    }
}

impl Weigh for History {
    fn weight(&self) -> usize {
        let folders = self.folders.len() * size_of::<(TreeRef, SnapshotName)>();
        size_of::<Self>() + folders + self.versions.len() * size_of::<Version>() + 200
    }
}

type Key = (u64, Vec<u8>);

/// The histories that were asked for; clones share them.
#[derive(Clone)]
pub struct Histories(Arc<Inner>);

struct Inner {
    reader: Reader,
    roots: Roots,
    histories: Cache<Key, History>,
    unions: Cache<(Key, u64), Union>,
}

impl Histories {
    /// Returns histories over the snapshots of `roots`; nothing is asked for.
    #[must_use]
    pub fn new(reader: Reader, roots: Roots) -> Self {
        let (histories, unions) = (Cache::new(HISTORIES_BYTES_MAX), Cache::new(UNIONS_BYTES_MAX));
        Self(Arc::new(Inner { reader, roots, histories, unions }))
    }

    /// Returns what a path was over the snapshots of a listing; empty where none has it.
    ///
    /// # Errors
    /// [`RepoError::Store`]; damage is told in the history.
    pub async fn of(&self, names: &Arc<Names>, path: &[u8]) -> Result<Arc<History>, RepoError> {
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
        let key = |depth: usize| (names.digest, parts[..depth].join(&b'/'));
        let known = (0..=parts.len()).rev().find_map(|depth| Some((depth, self.0.histories.ready(&key(depth))?)));
        let (known, mut history) = match known {
            Some(known) => known,
            None => {
                let (histories, names) = (self.clone(), names.clone());
                (0, self.0.histories.get(key(0), move || histories.top(names)).await?)
            }
        };
        for (depth, name) in parts.iter().enumerate().skip(known) {
            let (reader, above, name) = (self.0.reader.clone(), history, name.to_vec());
            history = self.0.histories.get(key(depth + 1), move || below(reader, above, name)).await?;
        }
        Ok(history)
    }

    /// Returns names that the folders of a history hold, those behind `offset` first among them.
    ///
    /// # Errors
    /// [`RepoError::Store`]; damage is told in the union.
    pub async fn union(
        &self,
        names: &Names,
        path: &[u8],
        history: &Arc<History>,
        offset: u64,
    ) -> Result<Arc<Union>, RepoError> {
        let key = |from: u64| ((names.digest, path.to_vec()), from);
        let last = self.0.unions.ready(&key(history.union_from.load(Ordering::Relaxed)));
        if let Some(union) = last.filter(|union| union.covers(offset)) {
            return Ok(union);
        }
        let (reader, history_there) = (self.0.reader.clone(), history.clone());
        let load = move || async move { union::gather(&reader, &history_there, offset).await };
        let union = self.0.unions.get(key(offset), load).await?;
        history.union_from.store(offset, Ordering::Relaxed);
        Ok(union)
    }

    /// Makes the history of the root: one manifest a snapshot.
    async fn top(self, names: Arc<Names>) -> Result<History, RepoError> {
        let opened = futures::stream::iter(names.snapshots.clone()).map(|name| {
            let roots = self.0.roots.clone();
            async move { (name, roots.open(name).await) }
        });
        let mut opened = opened.buffered(FETCHES);
        let mut making = Making::default();
        while let Some((name, opened)) = opened.next().await {
            match opened {
                Ok(opened) => making.folder(opened.tree, name),
                // Forgotten since the listing.
                Err(RepoError::NoSnapshot(_)) => {}
                Err(error) => making.failed(error)?,
            }
        }
        Ok(making.history)
    }
}

/// Makes the history of a name from that of the folder it is in.
async fn below(reader: Reader, above: Arc<History>, name: Vec<u8>) -> Result<History, RepoError> {
    let found = futures::stream::iter(above.folders.clone()).map(|(tree, snapshot)| {
        let (reader, name) = (reader.clone(), name.clone());
        async move { (snapshot, directory::find(&reader, tree, &name).await) }
    });
    let mut found = found.buffered(FETCHES);
    let mut making = Making::default();
    making.history.problem = above.problem.clone();
    while let Some((snapshot, found)) = found.next().await {
        let known = match found {
            Ok(Some((leaf, slot))) => making.node(&reader, leaf, slot, snapshot).await,
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = known {
            making.failed(error)?;
        }
    }
    Ok(making.history)
}

/// A history that is being made, snapshot by snapshot.
struct Making {
    history: History,
    trees: HashSet<ChunkId>,
    contents: HashSet<String>,
    last: Option<(Leaf, usize)>,
}

impl Default for Making {
    fn default() -> Self {
        let (folders, versions, guard, problem, union_from) = Default::default();
        let history = History { folders, versions, guard, problem, union_from };
        Self { history, trees: HashSet::new(), contents: HashSet::new(), last: None }
    }
}

impl Making {
    fn folder(&mut self, tree: TreeRef, snapshot: SnapshotName) {
        if self.trees.insert(tree.id) {
            self.history.folders.push((tree, snapshot));
        }
    }

    async fn node(
        &mut self,
        reader: &Reader,
        leaf: Leaf,
        slot: usize,
        snapshot: SnapshotName,
    ) -> Result<(), RepoError> {
        let Some(node) = leaf.nodes().get(slot) else { return Ok(()) };
        self.history.guard = self.history.guard.and(node);
        if let NodeKind::Directory(tree) = node.kind {
            self.folder(tree, snapshot);
            return Ok(());
        }
        // Mostly it is the same chunks at the same place as in the snapshot before.
        let last = self.last.replace((leaf.clone(), slot));
        if last.as_ref().and_then(|(leaf, slot)| leaf.nodes().get(*slot)).is_some_and(|last| last.kind == node.kind) {
            return Ok(());
        }
        if self.contents.insert(kind_id(reader, node).await?) {
            self.history.versions.push(Version { snapshot, page: leaf.at, slot });
        }
        Ok(())
    }

    /// Notes damage; anything else is no answer at all.
    fn failed(&mut self, error: RepoError) -> Result<(), RepoError> {
        match error {
            RepoError::Damaged { .. } => {
                self.history.problem.get_or_insert(error);
                Ok(())
            }
            error => Err(error),
        }
    }
}

/// Returns what tells one version from another.
async fn kind_id(reader: &Reader, node: &Node) -> Result<String, RepoError> {
    Ok(match &node.kind {
        NodeKind::File(file) => content_id(reader, file).await?.to_hex().to_string(),
        other => format!("{other:?}"),
    })
}
