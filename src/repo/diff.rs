//! What differs between two trees: both are walked together, in the order of their names.
//!
//! What has the same tree id on both sides is not looked at, be it a folder or a page of a huge one. Memory is bounded by
//! two pages for each level of folders. It does not know how a difference is shown.

use std::sync::Arc;

use super::content_id::content_id;
use super::error::RepoError;
use super::path::{Found, Nodes, leaf};
use super::reader::Reader;
use super::tree::{Node, NodeKind, Page, TreeRef};

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Its content differs.
    Content,
    /// Its content is the same; mode, owner, time or attributes differ.
    Metadata,
    /// It is something else.
    Type,
}

impl Change {
    /// Returns its letter.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Self::Added => '+',
            Self::Removed => '-',
            Self::Content => 'M',
            Self::Metadata => 'U',
            Self::Type => 'T',
        }
    }
}

/// A path that differs.
#[derive(Debug)]
pub struct Difference<'a> {
    /// The path.
    pub path: &'a [u8],
    /// What became of it.
    pub change: Change,
    /// What it was.
    pub before: Option<&'a Node>,
    /// What it is.
    pub after: Option<&'a Node>,
}

/// The nodes of a directory on one side, page by page; none where there is no directory.
struct Side {
    nodes: Option<Nodes>,
    page: Option<Arc<Page>>,
    at: usize,
}

impl Side {
    fn new(reader: &Reader, tree: Option<TreeRef>) -> Self {
        Self { nodes: tree.map(|tree| Nodes::new(reader, tree)), page: None, at: 0 }
    }

    fn node(&self) -> Option<&Node> {
        leaf(self.page.as_ref()?).get(self.at)
    }

    /// Reads on where the page has come to its end.
    async fn turn(&mut self) -> Result<(), RepoError> {
        while self.node().is_none()
            && let Some(nodes) = &mut self.nodes
        {
            (self.page, self.at) = (nodes.next_page().await?, 0);
            if self.page.is_none() {
                self.nodes = None;
            }
        }
        Ok(())
    }

    /// Returns the page that comes next, where the last one has come to its end.
    fn next(&mut self) -> Option<TreeRef> {
        match self.node() {
            Some(_) => None,
            None => self.nodes.as_mut()?.peek(),
        }
    }
}

/// A folder on both sides.
struct Folder {
    before: Side,
    after: Side,
    path_bytes: usize,
}

impl Folder {
    fn new(reader: &Reader, before: Option<TreeRef>, after: Option<TreeRef>, path_bytes: usize) -> Self {
        Self { before: Side::new(reader, before), after: Side::new(reader, after), path_bytes }
    }

    /// Passes over what is the same on both sides, and has the next nodes ready.
    async fn turn(&mut self) -> Result<(), RepoError> {
        while let (Some(before), Some(after)) = (self.before.next(), self.after.next()) {
            if before.id != after.id {
                break;
            }
            for side in [&mut self.before, &mut self.after] {
                if let Some(nodes) = &mut side.nodes {
                    nodes.skip();
                }
            }
        }
        futures::try_join!(self.before.turn(), self.after.turn())?;
        Ok(())
    }
}

/// Hands over all that differs between what was `before` and what is `after`, at and below `path`, in the order of paths.
///
/// # Errors
/// [`RepoError`], or the first that `tell` returns.
pub async fn diff<E: From<RepoError>>(
    reader: &Reader,
    (before, after): (Option<&Found>, Option<&Found>),
    path: &[u8],
    mut tell: impl FnMut(Difference<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = path.to_vec();
    let (one, other) = (before.and_then(node_of), after.and_then(node_of));
    if one.is_some() || other.is_some() {
        compare(reader, (one, other), &path, &mut tell).await?;
    }
    let (before, after) = (before.and_then(tree_of), after.and_then(tree_of));
    let mut open = Vec::new();
    open.extend(differing(reader, (before, after), path.len()));
    while let Some(folder) = open.last_mut() {
        path.truncate(folder.path_bytes);
        folder.turn().await?;
        let (before, after) = (folder.before.node(), folder.after.node());
        let name = match (before, after) {
            (None, None) => {
                open.pop();
                continue;
            }
            (Some(one), Some(other)) => (&one.name).min(&other.name).clone(),
            (Some(one), None) | (None, Some(one)) => one.name.clone(),
        };
        let (before, after) = (before.filter(|node| node.name == name), after.filter(|node| node.name == name));
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        compare(reader, (before, after), &path, &mut tell).await?;
        let trees = (before.and_then(directory), after.and_then(directory));
        (folder.before.at, folder.after.at) =
            (folder.before.at + usize::from(before.is_some()), folder.after.at + usize::from(after.is_some()));
        open.extend(differing(reader, trees, path.len()));
    }
    Ok(())
}

/// Returns the folder to be gone through, if there is one and its trees differ.
fn differing(
    reader: &Reader,
    (before, after): (Option<TreeRef>, Option<TreeRef>),
    path_bytes: usize,
) -> Option<Folder> {
    let is_same = before.map(|tree| tree.id) == after.map(|tree| tree.id);
    (!is_same).then(|| Folder::new(reader, before, after, path_bytes))
}

fn directory(node: &Node) -> Option<TreeRef> {
    match node.kind {
        NodeKind::Directory(tree) => Some(tree),
        _ => None,
    }
}

fn node_of(found: &Found) -> Option<&Node> {
    match found {
        Found::Root(_) => None,
        Found::Node(node) => Some(node),
    }
}

fn tree_of(found: &Found) -> Option<TreeRef> {
    match found {
        Found::Root(tree) => Some(*tree),
        Found::Node(node) => directory(node),
    }
}

async fn compare<E: From<RepoError>>(
    reader: &Reader,
    (before, after): (Option<&Node>, Option<&Node>),
    path: &[u8],
    tell: &mut impl FnMut(Difference<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let change = match (before, after) {
        (None, None) => None,
        (None, Some(_)) => Some(Change::Added),
        (Some(_), None) => Some(Change::Removed),
        (Some(before), Some(after)) => change(reader, before, after).await?,
    };
    match change {
        Some(change) => tell(Difference { path, change, before, after }),
        None => Ok(()),
    }
}

async fn change(reader: &Reader, before: &Node, after: &Node) -> Result<Option<Change>, RepoError> {
    let is_same = match (&before.kind, &after.kind) {
        (NodeKind::File(one), NodeKind::File(other)) => {
            // Chunks that were stored anew are the same content elsewhere.
            one == other
                || (one.bytes == other.bytes && content_id(reader, one).await? == content_id(reader, other).await?)
        }
        (NodeKind::Directory(_), NodeKind::Directory(_)) => true,
        (one, other) if std::mem::discriminant(one) != std::mem::discriminant(other) => return Ok(Some(Change::Type)),
        (one, other) => one == other,
    };
    if !is_same {
        return Ok(Some(Change::Content));
    }
    let said = |node: &Node| (node.mode, node.owner.clone(), node.mtime, node.xattrs.clone());
    Ok((said(before) != said(after)).then_some(Change::Metadata))
}
