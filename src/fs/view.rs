//! The filesystem in plain async Rust: snapshots as folders, testable without a kernel.
//!
//! Every operation is a future that is ready at its first poll when what it needs is in memory; who serves a kernel
//! polls once in his own thread and hands over to the runtime only what waits for the store. Nothing is changed by
//! anything here. It does not know FUSE.

mod answer;
mod content;
mod counters;
mod lines;
mod options;
mod versions;

use std::sync::Arc;
use std::time::Duration;

use super::attr::Attr;
use super::directory::{self, Leaf};
use super::errno::FsError;
use super::history::Histories;
use super::inodes::{Home, Identity, Inodes, NODE_BIT, Place};
use super::names::NAME_BYTES_MAX;
use super::paths::{PATH_BIT, Paths, Place as PathPlace};
use super::readahead::{Readahead, WINDOW_BYTES_MAX};
use super::roots::{Root, Roots, Stale, TOP, What};
use super::status::Status;
use super::status_file::StatusFile;
use super::xattrs::has_acl;
use crate::repo::layout::SnapshotName;
use crate::repo::path::{self, leaf, resolve};
use crate::repo::reader::Reader;
use crate::repo::tree::{FileContent, Node, NodeKind, Page, TreeRef};
use crate::repo::{Repo, RepoError};
use crate::store::Store;

pub use answer::{Found, Line, Shown, Space};
pub use options::ViewOptions;

/// How long the kernel may keep what is inside a snapshot, names that are not there among it: nothing ever changes.
pub const FIXED_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long it may keep what is in the virtual top: asking again costs microseconds and no request.
pub const TOP_TTL: Duration = Duration::from_secs(1);

/// The view; clones share it.
#[derive(Clone)]
pub struct View(Arc<Inner>);

struct Inner {
    roots: Roots,
    /// The folder that is the root of the mount, where it is not a snapshot's root.
    top: Option<Node>,
    status: Arc<Status>,
    status_file: StatusFile,
    store: Store,
    inodes: Inodes,
    paths: Paths,
    histories: Histories,
    reader: Reader,
    ahead: Readahead,
    options: ViewOptions,
}

/// A directory inside a snapshot.
#[derive(Clone, Copy)]
struct Directory {
    number: u64,
    parent: u64,
    snapshot: u32,
    tree: TreeRef,
}

/// A node with the page that holds it.
pub(super) struct NodeAt {
    page: Arc<Page>,
    pub(super) place: Place,
}

impl NodeAt {
    pub(super) fn node(&self) -> Result<&Node, FsError> {
        leaf(&self.page).get(self.place.slot as usize).ok_or(FsError::Stale)
    }

    fn file(&self) -> Result<&FileContent, FsError> {
        match &self.node()?.kind {
            NodeKind::File(file) => Ok(file),
            NodeKind::Directory(_) => Err(FsError::IsDirectory),
            _ => Err(FsError::Invalid),
        }
    }
}

/// A folder below `versions/`, or that itself.
struct PathFolder {
    number: u64,
    parent: u64,
    path: Vec<u8>,
}

/// What an inode number stands for.
pub(super) enum Inode {
    Root(Root),
    Path(PathPlace),
    Node(NodeAt),
}

/// A directory of any kind.
enum Folder {
    Root(Root),
    Path(PathFolder),
    Stored(Directory),
}

impl View {
    /// Lists the snapshots, which is the only request unless a choice needs more, and returns the view of them.
    ///
    /// # Errors
    /// [`RepoError::WriteOnly`] with a key that cannot read, [`RepoError::NoPath`], [`RepoError::Store`].
    pub async fn new(repo: Repo, options: ViewOptions) -> Result<Self, RepoError> {
        if !repo.keys.can_read() {
            return Err(RepoError::WriteOnly);
        }
        let reader = repo.reader(options.memory_bytes);
        // An eighth of the caches may lie ahead of a reader: what is on its way comes on top of them.
        let ahead = Readahead::new(WINDOW_BYTES_MAX.min(options.memory_bytes as u64 / 8));
        let (store, status) = (repo.store.clone(), Arc::new(Status::new(repo.env.clock.clone())));
        let roots = Roots::new(repo, options.only, options.wanted.clone(), options.refresh).await?;
        let top = match options.only {
            Some(name) => folder(&reader, roots.open(name).await?.tree, &options.path).await?,
            None => None,
        };
        let (inodes, paths, status_file) =
            (Inodes::new(reader.limit().clone()), Paths::default(), StatusFile::default());
        let histories = Histories::new(reader.clone(), roots.clone());
        let inner = Inner { roots, top, status, status_file, store, inodes, paths, histories, reader, ahead, options };
        Ok(Self(Arc::new(inner)))
    }

    /// Returns the counters of this mount.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.0.status.clone()
    }

    /// Has `tell` called with the names that no longer hold after each change of the list of snapshots.
    ///
    /// It must not wait for the kernel.
    pub fn on_change(&self, tell: impl Fn(Vec<Stale>) + Send + Sync + 'static) {
        self.0.roots.on_change(tell);
    }

    /// Asks for the list of snapshots now, and waits for it.
    pub async fn renew(&self) {
        self.0.roots.renew().await;
    }

    /// Finds a name in a directory and counts a lookup of what is found.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Found, FsError> {
        // The kernel asks for names of up to 1024 bytes.
        if name.len() > NAME_BYTES_MAX {
            return Err(FsError::NameTooLong);
        }
        match self.directory(parent).await? {
            Folder::Stored(directory) => self.lookup_node(&directory, name).await,
            Folder::Path(folder) => self.lookup_path(&folder, name).await,
            Folder::Root(root) => {
                let Ok(name) = std::str::from_utf8(name) else { return Ok(Found { attr: None, ttl: TOP_TTL }) };
                let found = self.0.roots.lookup(&root, name).await?;
                if found.as_ref().is_some_and(|root| root.what == What::Status) {
                    self.renew_status();
                }
                let ttl = found.as_ref().map_or(TOP_TTL, ttl);
                Ok(Found { attr: found.map(|root| self.root_attr(&root)), ttl })
            }
        }
    }

    async fn lookup_node(&self, directory: &Directory, name: &[u8]) -> Result<Found, FsError> {
        let found = directory::find(&self.0.reader, directory.tree, name).await?;
        let Some((leaf, slot)) = found else { return Ok(Found { attr: None, ttl: FIXED_TTL }) };
        let node = leaf.nodes().get(slot).ok_or(FsError::Stale)?;
        let number = self.remember(directory, &leaf, slot, node)?;
        Ok(Found { attr: Some(self.attr(node, number)), ttl: FIXED_TTL })
    }

    /// Takes back lookups that were counted.
    pub fn forget(&self, number: u64, lookups: u64) {
        if number & NODE_BIT != 0 {
            self.0.inodes.forget(number, lookups);
        } else if number & PATH_BIT != 0 {
            self.0.paths.forget(number, lookups);
        }
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn getattr(&self, number: u64) -> Result<Shown, FsError> {
        Ok(match self.inode(number).await? {
            Inode::Root(root) => Shown { attr: self.root_attr(&root), ttl: ttl(&root) },
            Inode::Path(place) => Shown { attr: self.path_attr(number, &place.path).await?, ttl: TOP_TTL },
            Inode::Node(at) => Shown { attr: self.attr(at.node()?, number), ttl: FIXED_TTL },
        })
    }

    /// Returns where a link leads.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn readlink(&self, number: u64) -> Result<Vec<u8>, FsError> {
        match self.inode(number).await? {
            Inode::Root(Root { what: What::Link(target, _), .. }) => Ok(target.as_bytes().to_vec()),
            Inode::Root(_) | Inode::Path(_) => Err(FsError::Invalid),
            Inode::Node(at) => match &at.node()?.kind {
                NodeKind::Symlink(target) => Ok(target.clone()),
                _ => Err(FsError::Invalid),
            },
        }
    }

    /// Tells how much there is, from memory: the largest snapshot that was opened so far.
    #[must_use]
    pub fn statfs(&self) -> Space {
        const BLOCK_BYTES: u32 = 128 << 10;
        let (bytes, files) = self.0.roots.totals();
        // Some programs take a file system without blocks for one that is not there.
        Space { block_bytes: BLOCK_BYTES, blocks: bytes.div_ceil(u64::from(BLOCK_BYTES)).max(1), files: files.max(1) }
    }

    /// Tells whether what a directory lists can never change.
    #[must_use]
    pub fn is_fixed(&self, number: u64) -> bool {
        number & NODE_BIT != 0 || self.0.roots.root(number).is_some_and(|root| matches!(root.what, What::Snapshot(_)))
    }

    /// Returns how many inodes are in use besides those of the virtual top.
    #[must_use]
    pub fn inodes_len(&self) -> usize {
        self.0.inodes.len() + self.0.paths.len()
    }

    /// Returns what the caches may hold: the limit without the table of inodes.
    #[must_use]
    pub fn caches_bytes_max(&self) -> usize {
        self.0.reader.limit().left()
    }

    pub(super) async fn inode(&self, number: u64) -> Result<Inode, FsError> {
        if number & (NODE_BIT | PATH_BIT) == PATH_BIT {
            return self.0.paths.place(number).map(Inode::Path).ok_or(FsError::Stale);
        }
        if number & NODE_BIT == 0 {
            return self.0.roots.root(number).map(Inode::Root).ok_or(FsError::Stale);
        }
        let place = self.0.inodes.place(number).ok_or(FsError::Stale)?;
        let page = self.0.reader.page(&place.home.page).await?;
        Ok(Inode::Node(NodeAt { page, place }))
    }

    /// Returns the directory that an inode is.
    async fn directory(&self, number: u64) -> Result<Folder, FsError> {
        match self.inode(number).await? {
            Inode::Root(root) => match root.what {
                What::Snapshot(name) => {
                    let tree = self.snapshot_tree(&root, name).await?;
                    Ok(Folder::Stored(Directory { number, parent: root.parent, snapshot: root.sequence, tree }))
                }
                What::Versions => Ok(Folder::Path(PathFolder { number, parent: root.parent, path: Vec::new() })),
                What::Link(..) | What::Lacks(..) | What::Status => Err(FsError::NotDirectory),
                _ => Ok(Folder::Root(root)),
            },
            Inode::Path(PathPlace { parent, path }) => Ok(Folder::Path(PathFolder { number, parent, path })),
            Inode::Node(at) => match at.node()?.kind {
                NodeKind::Directory(tree) => {
                    let Home { directory: parent, snapshot, .. } = at.place.home;
                    Ok(Folder::Stored(Directory { number, parent, snapshot, tree }))
                }
                _ => Err(FsError::NotDirectory),
            },
        }
    }

    /// Returns the tree of a snapshot's root, or of the folder of it that is shown.
    pub(super) async fn snapshot_tree(&self, root: &Root, name: SnapshotName) -> Result<TreeRef, RepoError> {
        match self.top_node() {
            Some(Node { kind: NodeKind::Directory(tree), .. }) if root.is_top() => Ok(*tree),
            _ => Ok(self.0.roots.open(name).await?.tree),
        }
    }

    pub(super) fn top_node(&self) -> Option<&Node> {
        self.0.top.as_ref()
    }

    pub(super) fn is_readable(&self) -> bool {
        self.0.options.readable
    }

    pub(super) fn reader(&self) -> &Reader {
        &self.0.reader
    }

    pub(super) fn roots(&self) -> &Roots {
        &self.0.roots
    }

    pub(super) fn snapshot(&self, sequence: u32) -> Option<SnapshotName> {
        self.0.roots.snapshot(sequence)
    }

    fn identity(&self, directory: &Directory, node: &Node) -> Result<Identity, FsError> {
        let snapshot = self.0.roots.snapshot(directory.snapshot).ok_or(FsError::Stale)?;
        Ok(Identity::of(directory.number, snapshot.id, node))
    }

    fn remember(&self, directory: &Directory, leaf: &Leaf, slot: usize, node: &Node) -> Result<u64, FsError> {
        let home = Home { directory: directory.number, snapshot: directory.snapshot, page: leaf.at };
        let slot = u32::try_from(slot).expect("a page is under 8 MiB");
        Ok(self.0.inodes.remember(self.identity(directory, node)?, Place { home, slot }))
    }

    fn attr(&self, node: &Node, number: u64) -> Attr {
        let attr = self.owned(Attr::of(node, number));
        match self.0.options.readable {
            true => attr.readable(has_acl(node)),
            false => attr,
        }
    }

    fn root_attr(&self, root: &Root) -> Attr {
        if let Some(node) = self.top_node().filter(|_| root.is_top()) {
            return self.attr(node, root.number);
        }
        let (link, unix_ms) = match &root.what {
            What::Link(target, unix_ms) => (Some(&**target), *unix_ms),
            What::Snapshot(name) => (None, name.unix_ms),
            What::Status => {
                let of_root = |unix_ms| self.owned(Attr::of_root(root.number, None, unix_ms, self.0.options.owner));
                return self.0.status_file.attr(of_root);
            }
            What::Lacks(name, bytes) => {
                let attr = Attr::of_root(root.number, None, name.unix_ms, self.0.options.owner);
                return self.owned(attr.as_file(*bytes));
            }
            _ => (None, self.0.roots.newest_unix_ms()),
        };
        self.owned(Attr::of_root(root.number, link, unix_ms, self.0.options.owner))
    }

    fn owned(&self, attr: Attr) -> Attr {
        let options = &self.0.options;
        Attr { uid: options.uid.unwrap_or(attr.uid), gid: options.gid.unwrap_or(attr.gid), ..attr }
    }
}

/// How long the kernel may keep what it knows of an inode of the virtual top.
fn ttl(root: &Root) -> Duration {
    match root.what {
        What::Status => Duration::ZERO,
        _ => TOP_TTL,
    }
}

/// Finds the folder of a snapshot that is to be shown; `None` for its root.
async fn folder(reader: &Reader, root: TreeRef, path: &[u8]) -> Result<Option<Node>, RepoError> {
    let found = resolve(reader, root, path).await?;
    found.directory(path)?;
    Ok(match found {
        path::Found::Root(_) => None,
        path::Found::Node(node) => Some(*node),
    })
}

/// Number of the mount's root.
pub const ROOT: u64 = TOP;
