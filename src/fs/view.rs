//! The filesystem in plain async Rust: snapshots as folders, testable without a kernel.
//!
//! Every operation is a future that is ready at its first poll when what it needs is in memory; who serves a kernel
//! polls once in his own thread and hands over to the runtime only what waits for the store. Nothing is changed by
//! anything here. It does not know FUSE.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

use super::attr::{Attr, Kind, seek_hole_or_data};
use super::directory::{self, Leaf};
use super::errno::FsError;
use super::filter::Wanted;
use super::inodes::{Home, Identity, Inodes, NODE_BIT, Place};
use super::listing::REFRESH_DEFAULT;
use super::names::NAME_BYTES_MAX;
use super::readahead::{Readahead, WINDOW_BYTES_MAX};
use super::roots::{Root, Roots, Stale, TOP, What};
use super::status::Status;
use super::status_file::StatusFile;
use super::xattrs::has_acl;
use crate::repo::layout::SnapshotName;
use crate::repo::path::{self, leaf, resolve};
use crate::repo::reader::{Reader, pieces};
use crate::repo::tree::{FileContent, Node, NodeKind, Page, TreeRef};
use crate::repo::{READER_BYTES_DEFAULT, Repo, RepoError};
use crate::store::Store;

/// How long the kernel may keep what is inside a snapshot, names that are not there among it: nothing ever changes.
pub const FIXED_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long it may keep what is in the virtual top: asking again costs microseconds and no request.
pub const TOP_TTL: Duration = Duration::from_secs(1);
/// A file of fewer bytes is not watched for sequential reading: the readahead along the pack does it.
const WATCHED_BYTES_MIN: u64 = 1 << 20;
/// How a view is to be.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    /// Shows this snapshot alone, its root as the root of the mount.
    pub only: Option<SnapshotName>,
    /// With `only`: shows this folder of it, the root where it is empty.
    pub path: Vec<u8>,
    /// Shows these snapshots only.
    pub wanted: Wanted,
    /// About how much memory caches may take.
    pub memory_bytes: usize,
    /// How old the list of snapshots may be for who looks; `None` renews it only by [`View::renew`].
    pub refresh: Option<Duration>,
    /// The owner of the virtual top.
    pub owner: (u32, u32),
    /// User id to show for everything instead of the stored ones.
    pub uid: Option<u32>,
    /// Group id to show for everything instead of the stored ones.
    pub gid: Option<u32>,
    /// Shows everything as readable for its owner, and no ACLs.
    pub readable: bool,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self {
            only: None,
            path: Vec::new(),
            wanted: Wanted::default(),
            memory_bytes: READER_BYTES_DEFAULT,
            refresh: Some(REFRESH_DEFAULT),
            owner: (0, 0),
            uid: None,
            gid: None,
            readable: false,
        }
    }
}

/// Attributes and how long they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The attributes.
    pub attr: Attr,
    /// How long they may be kept.
    pub ttl: Duration,
}

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its attributes; `None` where there is no such name.
    pub attr: Option<Attr>,
    /// How long that holds.
    pub ttl: Duration,
}

/// One line of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its attributes; of `.` and `..` only number and kind are meant.
    pub attr: Attr,
    /// How long they hold.
    pub ttl: Duration,
    /// Where the listing goes on behind it.
    pub next: u64,
}

/// The answer to statfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks in use; none is free.
    pub blocks: u64,
    /// Files.
    pub files: u64,
}

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

/// What an inode number stands for.
pub(super) enum Inode {
    Root(Root),
    Node(NodeAt),
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
        let (inodes, status_file) = (Inodes::default(), StatusFile::default());
        Ok(Self(Arc::new(Inner { roots, top, status, status_file, store, inodes, reader, ahead, options })))
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
            Ok(directory) => self.lookup_node(&directory, name).await,
            Err(root) => {
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
        }
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn getattr(&self, number: u64) -> Result<Shown, FsError> {
        Ok(match self.inode(number).await? {
            Inode::Root(root) => Shown { attr: self.root_attr(&root), ttl: ttl(&root) },
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
            Inode::Root(_) => Err(FsError::Invalid),
            Inode::Node(at) => match &at.node()?.kind {
                NodeKind::Symlink(target) => Ok(target.clone()),
                _ => Err(FsError::Invalid),
            },
        }
    }

    /// Lists a directory from `offset` on, 0 for its start, until `take` returns `true` for a line it has no room for.
    ///
    /// An offset stands for the same place in the directory at any time. With `counted`, each line that was taken counts
    /// as a lookup, as the kernel wants it of listings with attributes. One call ends at the latest where a page of a
    /// large directory does; none taken means the end.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn readdir(
        &self,
        number: u64,
        offset: u64,
        counted: bool,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        match self.directory(number).await? {
            Ok(directory) => {
                if !dots(offset, directory.number, directory.parent, take) {
                    self.list_nodes(&directory, offset.max(2), counted, take).await?;
                }
                Ok(())
            }
            Err(root) => self.list_roots(&root, offset, take).await,
        }
    }

    /// Offsets 0 and 1 are `.` and `..`, the `n`-th node is at `n + 2`.
    async fn list_nodes(
        &self,
        directory: &Directory,
        offset: u64,
        counted: bool,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        let found = directory::seek(&self.0.reader, directory.tree, offset - 2).await?;
        let Some((leaf, first)) = found else { return Ok(()) };
        for (slot, node) in leaf.nodes().iter().enumerate().skip(first) {
            let number = match counted {
                true => self.remember(directory, &leaf, slot, node)?,
                false => self.0.inodes.number(self.identity(directory, node)?),
            };
            let next = offset + (slot - first) as u64 + 1;
            let line = Line { name: node.name.as_bytes(), attr: self.attr(node, number), ttl: FIXED_TTL, next };
            if take(&line) {
                if counted {
                    self.0.inodes.forget(number, 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// A child's offset is its sequence number and 1, so that it stays the same while others come and go.
    async fn list_roots(
        &self,
        root: &Root,
        offset: u64,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        let children = self.0.roots.list(root).await?;
        if dots(offset, root.number, root.parent, take) {
            return Ok(());
        }
        for child in children.iter().filter(|child| u64::from(child.sequence) + 2 > offset) {
            let next = u64::from(child.sequence) + 2;
            let line = Line { name: child.name.as_bytes(), attr: self.root_attr(child), ttl: ttl(child), next };
            if take(&line) {
                break;
            }
        }
        Ok(())
    }

    /// Reads at most `size` bytes of a file; fewer only at its end.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn read(&self, number: u64, offset: u64, size: u32) -> Result<Bytes, FsError> {
        let at = match self.inode(number).await? {
            Inode::Node(at) => at,
            Inode::Root(Root { what: What::Status, .. }) => {
                return Ok(self.0.status_file.read(offset, size));
            }
            Inode::Root(_) => return Err(FsError::IsDirectory),
        };
        let file = at.file()?;
        let range = offset.min(file.bytes)..offset.saturating_add(u64::from(size)).min(file.bytes);
        if file.bytes >= WATCHED_BYTES_MIN && !range.is_empty() {
            let ahead = self.0.ahead.note(number, range.clone(), file.bytes);
            if ahead.fetch.is_some() || ahead.open.is_some() {
                tokio::spawn(prefetch(self.0.reader.clone(), at.page.clone(), at.place.slot, ahead));
            }
        }
        let bytes = self.0.reader.read(file, range).await?;
        self.0.status.handed_out(bytes.len());
        Ok(bytes)
    }

    /// Finds the next data or hole of a file.
    ///
    /// # Errors
    /// [`FsError::BehindEnd`] where there is none, [`FsError`].
    pub async fn seek(&self, number: u64, offset: u64, wants_hole: bool) -> Result<u64, FsError> {
        match self.inode(number).await? {
            Inode::Node(at) => {
                let file = at.file()?;
                seek_hole_or_data(&file.holes, file.bytes, offset, wants_hole).ok_or(FsError::BehindEnd)
            }
            Inode::Root(_) => Err(FsError::Invalid),
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
        self.0.inodes.len()
    }

    pub(super) async fn inode(&self, number: u64) -> Result<Inode, FsError> {
        if number & NODE_BIT == 0 {
            return self.0.roots.root(number).map(Inode::Root).ok_or(FsError::Stale);
        }
        let place = self.0.inodes.place(number).ok_or(FsError::Stale)?;
        let page = self.0.reader.page(&place.home.page).await?;
        Ok(Inode::Node(NodeAt { page, place }))
    }

    /// Returns the stored directory behind an inode, or the virtual folder that it is.
    async fn directory(&self, number: u64) -> Result<Result<Directory, Root>, FsError> {
        match self.inode(number).await? {
            Inode::Root(root) => match root.what {
                What::Snapshot(name) => {
                    let tree = self.snapshot_tree(&root, name).await?;
                    Ok(Ok(Directory { number, parent: root.parent, snapshot: root.sequence, tree }))
                }
                What::Link(..) | What::Status => Err(FsError::NotDirectory),
                _ => Ok(Err(root)),
            },
            Inode::Node(at) => match at.node()?.kind {
                NodeKind::Directory(tree) => {
                    let Home { directory: parent, snapshot, .. } = at.place.home;
                    Ok(Ok(Directory { number, parent, snapshot, tree }))
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
            _ => (None, self.0.roots.newest_unix_ms()),
        };
        self.owned(Attr::of_root(root.number, link, unix_ms, self.0.options.owner))
    }

    /// Writes `status.json` anew.
    fn renew_status(&self) {
        let inner = &*self.0;
        let mut value = inner.status.shown();
        let counts = inner.store.counts();
        value["store"] = json!({
            "gets": counts.gets, "lists": counts.lists, "http_requests": counts.http_requests,
            "bytes_down": counts.bytes_down,
        });
        value["snapshots"] = inner.roots.shown();
        value["inodes"] = inner.inodes.len().into();
        value["memory_limit_bytes"] = inner.options.memory_bytes.into();
        inner.status_file.renew(&value, inner.status.unix_ms());
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

/// Lists `.` and `..` if they are not behind; returns whether there was no room.
fn dots(offset: u64, number: u64, parent: u64, take: &mut (dyn FnMut(&Line<'_>) -> bool + Send)) -> bool {
    let dots: [(&[u8], u64); 2] = [(b".", number), (b"..", parent)];
    for (at, (name, number)) in (0..).zip(dots) {
        let attr = Attr { kind: Kind::Directory, ..Attr::of_root(number, None, 0, (0, 0)) };
        if at >= offset && take(&Line { name, attr, ttl: TOP_TTL, next: at + 1 }) {
            return true;
        }
    }
    false
}

/// Fetches and opens what a sequential reader will want; whether that works is seen when he comes.
async fn prefetch(reader: Reader, page: Arc<Page>, slot: u32, ahead: super::readahead::Ahead) {
    let Some(Node { kind: NodeKind::File(file), .. }) = leaf(&page).get(slot as usize) else { return };
    if let Some(range) = ahead.fetch {
        for (_, data) in pieces(&file.holes, range).into_iter().filter(|piece| !piece.0) {
            let Ok(chunks) = reader.chunks_in(&file.data, data).await else { return };
            reader.prefetch_all(chunks.iter().map(|chunk| &chunk.1), ahead.is_passing);
        }
    }
    if let Some(range) = ahead.open {
        for (_, data) in pieces(&file.holes, range).into_iter().filter(|piece| !piece.0) {
            let Ok(chunks) = reader.chunks_in(&file.data, data).await else { return };
            for (_, chunk) in chunks {
                if reader.chunk(&chunk).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Number of the mount's root.
pub const ROOT: u64 = TOP;
