//! Paths inside a snapshot: walking directories page by page.
//!
//! A directory may be one page or a tree of pages; everything above sees its nodes in order. Memory is bounded by the
//! reader's caches and one page.

use std::sync::Arc;

use super::error::RepoError;
use super::reader::Reader;
use super::tree::{BRANCH_DEPTH_MAX, BranchEntry, FileContent, Name, Node, NodeKind, Page, TreeRef};

/// What a page's names must be, as the branch above it says; nothing is said of a directory's first page.
// format.md, "Tree": the first-name rule
#[derive(Clone, Default)]
struct Bounds {
    first: Option<Name>,
    until: Option<Name>,
}

impl Bounds {
    /// Returns the bounds of the page behind `entries[at]`, in a branch whose own bounds these are.
    fn below(&self, entries: &[BranchEntry], at: usize) -> Self {
        let until = entries.get(at + 1).map(|next| next.first.clone());
        Self { first: entries.get(at).map(|entry| entry.first.clone()), until: until.or_else(|| self.until.clone()) }
    }

    /// Checks a page's first and last name. Pages are sorted, so names then ascend across pages too.
    fn check(&self, page: &Page) -> Result<(), &'static str> {
        let (first, last) = match page {
            Page::Leaf(nodes) => (nodes.first().map(|n| &n.name), nodes.last().map(|n| &n.name)),
            Page::Branch(entries) => (entries.first().map(|e| &e.first), entries.last().map(|e| &e.first)),
        };
        if self.first.is_some() && first != self.first.as_ref() {
            return Err("its first name is not what the page above says");
        }
        match (last, &self.until) {
            (Some(last), Some(until)) if last >= until => Err("its last name belongs to a later page"),
            _ => Ok(()),
        }
    }
}

/// Reads a page and checks that its names are what the page above says.
async fn page_within(reader: &Reader, at: &TreeRef, bounds: &Bounds) -> Result<Arc<Page>, RepoError> {
    let page = reader.page(at).await?;
    bounds.check(&page).map_err(|problem| RepoError::damaged(at.pack, format!("page {}: {problem}", at.id.short())))?;
    Ok(page)
}

/// Iterates over the nodes of a directory in the order of their names, page by page.
pub struct Nodes {
    reader: Reader,
    stack: Vec<(Arc<Page>, Bounds, usize)>,
    next: Option<(TreeRef, Bounds)>,
}

impl Nodes {
    /// Begins with the first node of a directory.
    #[must_use]
    pub fn new(reader: &Reader, directory: TreeRef) -> Self {
        Self { reader: reader.clone(), stack: Vec::new(), next: Some((directory, Bounds::default())) }
    }

    /// Tells whether the page returned last was the last one.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.next.is_none() && self.stack.is_empty()
    }

    /// Returns the page that comes next, of leaves or a branch over them, without reading it.
    pub(super) fn peek(&mut self) -> Option<TreeRef> {
        while self.next.is_none() {
            let (page, bounds, at) = self.stack.last_mut()?;
            let Page::Branch(entries) = &**page else { unreachable!("only branches are pushed") };
            match entries.get(*at) {
                Some(entry) => {
                    self.next = Some((entry.page, bounds.below(entries, *at)));
                    *at += 1;
                }
                None => drop(self.stack.pop()),
            }
        }
        self.next.as_ref().map(|(at, _)| *at)
    }

    /// Passes over the page that comes next.
    pub(super) fn skip(&mut self) {
        self.next = None;
    }

    /// Returns the next leaf page, `None` after the last.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn next_page(&mut self) -> Result<Option<Arc<Page>>, RepoError> {
        loop {
            if let Some((at, bounds)) = self.next.take() {
                if self.stack.len() > BRANCH_DEPTH_MAX {
                    return Err(RepoError::damaged(at.pack, "a directory has too many levels of pages"));
                }
                let page = page_within(&self.reader, &at, &bounds).await?;
                match &*page {
                    Page::Leaf(_) => return Ok(Some(page)),
                    Page::Branch(_) => self.stack.push((page, bounds, 0)),
                }
            }
            if self.peek().is_none() {
                return Ok(None);
            }
        }
    }
}

/// Iterates over the nodes of a directory in the order of their names, one by one.
pub struct Entries {
    pages: Nodes,
    page: Option<Arc<Page>>,
    slot: usize,
}

impl Entries {
    /// Begins with the first node of a directory.
    #[must_use]
    pub fn new(reader: &Reader, directory: TreeRef) -> Self {
        Self { pages: Nodes::new(reader, directory), page: None, slot: 0 }
    }

    /// Returns the next node as a page and a place in it, `None` after the last.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn next(&mut self) -> Result<Option<(Arc<Page>, usize)>, RepoError> {
        loop {
            if let Some(page) = &self.page
                && self.slot < leaf(page).len()
            {
                self.slot += 1;
                return Ok(Some((page.clone(), self.slot - 1)));
            }
            let Some(page) = self.pages.next_page().await? else { return Ok(None) };
            (self.page, self.slot) = (Some(page), 0);
        }
    }
}

/// Finds a name in a directory: one page a level.
///
/// # Errors
/// [`RepoError`].
pub async fn lookup(reader: &Reader, directory: TreeRef, name: &[u8]) -> Result<Option<Node>, RepoError> {
    Ok(find(reader, directory, name).await?.map(|(page, slot)| leaf(&page)[slot].clone()))
}

/// Finds the leaf page and the place in it where a name stands.
///
/// # Errors
/// [`RepoError`].
pub async fn find(reader: &Reader, directory: TreeRef, name: &[u8]) -> Result<Option<(Arc<Page>, usize)>, RepoError> {
    let (mut at, mut bounds) = (directory, Bounds::default());
    for _ in 0..=BRANCH_DEPTH_MAX {
        let page = page_within(reader, &at, &bounds).await?;
        match &*page {
            Page::Leaf(nodes) => {
                let slot = nodes.binary_search_by(|node| node.name.as_bytes().cmp(name)).ok();
                return Ok(slot.map(|slot| (page, slot)));
            }
            Page::Branch(entries) => {
                let behind = entries.partition_point(|e| e.first.as_bytes() <= name);
                match behind.checked_sub(1) {
                    Some(place) => (at, bounds) = (entries[place].page, bounds.below(entries, place)),
                    None => return Ok(None),
                }
            }
        }
    }
    Err(RepoError::damaged(directory.pack, "a directory has too many levels of pages"))
}

/// Returns the nodes of a leaf page, none of a branch.
#[must_use]
pub fn leaf(page: &Page) -> &[Node] {
    match page {
        Page::Leaf(nodes) => nodes,
        Page::Branch(_) => &[],
    }
}

/// What a path inside a snapshot leads to.
#[derive(Clone, Debug)]
pub enum Found {
    /// The snapshot's root.
    Root(TreeRef),
    /// A node.
    Node(Box<Node>),
}

impl Found {
    /// Returns the directory's tree.
    ///
    /// # Errors
    /// [`RepoError::NotA`] for anything else.
    pub fn directory(&self, path: &[u8]) -> Result<TreeRef, RepoError> {
        match self {
            Self::Root(tree) => Ok(*tree),
            Self::Node(node) => match &node.kind {
                NodeKind::Directory(tree) => Ok(*tree),
                _ => Err(not_a(path, "directory")),
            },
        }
    }

    /// Returns the regular file's content.
    ///
    /// # Errors
    /// [`RepoError::NotA`] for anything else.
    pub fn file(&self, path: &[u8]) -> Result<&FileContent, RepoError> {
        match self {
            Self::Node(node) => match &node.kind {
                NodeKind::File(content) => Ok(content),
                _ => Err(not_a(path, "regular file")),
            },
            Self::Root(_) => Err(not_a(path, "regular file")),
        }
    }
}

fn not_a(path: &[u8], expected: &'static str) -> RepoError {
    RepoError::NotA { path: path.escape_ascii().to_string(), expected }
}

/// Follows a path from a snapshot's root; empty components and a leading `/` are passed over, links are not followed.
///
/// # Errors
/// [`RepoError::NoPath`], [`RepoError::NotA`] where a component is no directory, [`RepoError`].
pub async fn resolve(reader: &Reader, root: TreeRef, path: &[u8]) -> Result<Found, RepoError> {
    let mut found = Found::Root(root);
    let mut walked = Vec::new();
    for component in path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".") {
        let directory = found.directory(&walked)?;
        walked.push(b'/');
        walked.extend_from_slice(component);
        match lookup(reader, directory, component).await? {
            Some(node) => found = Found::Node(Box::new(node)),
            None => return Err(RepoError::NoPath(walked.escape_ascii().to_string())),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::tree::tests::{node, tree};
    use super::*;

    fn leaf_of(names: &[&str]) -> Page {
        Page::Leaf(names.iter().map(|name| node(name.as_bytes(), NodeKind::Fifo)).collect())
    }

    fn branch_of(names: &[&str]) -> Vec<BranchEntry> {
        let entry = |name: &&str| BranchEntry { first: Name::new(name.as_bytes()).unwrap(), nodes: 1, page: tree(1) };
        names.iter().map(entry).collect()
    }

    #[test]
    fn a_page_holds_the_names_that_the_branch_above_says() {
        let root = Bounds::default();
        assert_eq!(root.check(&leaf_of(&[])), Ok(()));
        let above = branch_of(&["b", "m", "t"]);
        let middle = root.below(&above, 1);
        assert_eq!(middle.check(&leaf_of(&["m", "s"])), Ok(()));
        for names in [&["l", "n"][..], &["n"], &[], &["m", "t"], &["m", "z"]] {
            assert!(middle.check(&leaf_of(names)).is_err(), "{names:?}");
        }
        assert_eq!(root.below(&above, 2).check(&leaf_of(&["t", "z"])), Ok(()));
        let inner = branch_of(&["m", "o"]);
        assert_eq!(middle.check(&Page::Branch(inner.clone())), Ok(()));
        assert!(middle.check(&Page::Branch(branch_of(&["m", "u"]))).is_err());
        let last = middle.below(&inner, 1);
        assert_eq!(last.check(&leaf_of(&["o", "s"])), Ok(()));
        assert!(last.check(&leaf_of(&["o", "t"])).is_err());
    }
}
