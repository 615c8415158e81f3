//! Finding names over many snapshots: what fits, in which of them, each path and content once.
//!
//! Two steps. First every distinct page of all snapshots is looked at once ([`super::distinct`]) and what fits in it is
//! noted; of pages with nothing that fits in or below them only that. Then the notes are followed from the roots down,
//! with the snapshots that lead to each page, without reading anything more. Memory is bounded by the number of distinct
//! pages, 44 bytes each, of distinct finds, about 150 bytes each, and of the pages they stand in. It does not know how
//! anything is shown.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::content_id::content_id;
use super::distinct::{LOST, Visit, Walked, walk};
use super::error::RepoError;
use super::id::{ChunkId, PackId, SessionId};
use super::pattern::Pattern;
use super::reader::Reader;
use super::runs::Runs;
use super::tree::{Data, FileContent, Identity, Name, Node, NodeKind, Page, Time, TreeRef};
use super::wanted::Rooted;

/// Name of an edge from a branch to its pages.
const UNNAMED: u32 = u32::MAX;

/// What is looked for; everything in it has to fit.
#[derive(Debug)]
pub struct Query {
    /// Names or paths; one of them has to fit.
    pub patterns: Vec<Pattern>,
    /// Types of nodes, all if there are none.
    pub kinds: Vec<Kind>,
    /// Not modified before this.
    pub oldest: Option<Time>,
    /// Not modified after this.
    pub newest: Option<Time>,
}

/// The type of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, pipe or socket.
    Other,
}

/// A node that was found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The node, without its chunks, its attributes and what it was on the source machine.
    pub node: Node,
    /// What tells its content from another.
    pub content: [u8; 32],
}

/// A path that was found, with all it was.
#[derive(Clone, Debug)]
pub struct Hit {
    /// The path.
    pub path: Vec<u8>,
    /// What it was, and in which snapshots.
    pub entries: Vec<(Arc<Entry>, Runs)>,
}

impl Hit {
    /// Returns each content once, with all snapshots that have it and as the newest of them has it.
    #[must_use]
    pub fn contents(&self) -> Vec<(Arc<Entry>, Runs)> {
        let what = |entry: &Entry| (entry.content, kind_of(&entry.node.kind));
        let last = |runs: &Runs| runs.ends().map(|(_, last)| last);
        let mut out: Vec<(Arc<Entry>, Runs)> = Vec::new();
        // Those that come later are in later snapshots: of two the second is shown.
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|(_, runs)| last(runs));
        let mut places = HashMap::new();
        for (entry, runs) in entries {
            let place = *places.entry(what(entry)).or_insert(out.len());
            match out.get_mut(place) {
                Some((known, all)) => {
                    *known = entry.clone();
                    all.add(runs);
                }
                None => out.push((entry.clone(), runs.clone())),
            }
        }
        out.iter_mut().for_each(|(_, runs)| runs.settle());
        out.sort_by_key(|(_, runs)| runs.ends());
        out
    }
}

/// Returns a node's type.
#[must_use]
pub fn kind_of(kind: &NodeKind) -> Kind {
    match kind {
        NodeKind::File(_) => Kind::File,
        NodeKind::Directory(_) => Kind::Directory,
        NodeKind::Symlink(_) => Kind::Symlink,
        _ => Kind::Other,
    }
}

impl Query {
    fn takes(&self, node: &Node) -> bool {
        (self.kinds.is_empty() || self.kinds.contains(&kind_of(&node.kind)))
            && self.oldest.is_none_or(|oldest| node.mtime >= oldest)
            && self.newest.is_none_or(|newest| node.mtime <= newest)
            && self.patterns.iter().any(|pattern| pattern.may_fit(node.name.as_bytes()))
    }
}

/// What was found, to be followed from the roots.
pub struct Finds {
    query: Query,
    walked: Walked,
    notes: Notes,
}

/// Looks at every distinct page of `snapshots`.
///
/// # Errors
/// [`RepoError`], but damage, which is told in [`Finds::walked`].
pub async fn find(reader: &Reader, snapshots: &[Rooted], query: Query) -> Result<Finds, RepoError> {
    let mut look = Look { reader, query: &query, notes: Notes::default(), lists: HashMap::new() };
    let walked = walk(reader, snapshots, &mut look).await?;
    let notes = look.notes;
    Ok(Finds { query, walked, notes })
}

/// What fits in a page, and what leads on from it: numbers of entries, of names and pages.
struct Noted {
    hits: Box<[u32]>,
    below: Box<[(u32, u32)]>,
}

#[derive(Default)]
struct Notes {
    pages: Vec<Option<Box<Noted>>>,
    names: Numbered<Name>,
    entries: Numbered<Entry>,
}

/// Values that are kept once and known by their number.
struct Numbered<T> {
    numbers: HashMap<Arc<T>, u32>,
    values: Vec<Arc<T>>,
}

impl<T> Default for Numbered<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), values: Vec::new() }
    }
}

impl<T: std::hash::Hash + Eq> Numbered<T> {
    fn number(&mut self, value: T) -> u32 {
        if let Some(number) = self.numbers.get(&value) {
            return *number;
        }
        let (number, value) = (u32::try_from(self.values.len()).expect("memory ends before"), Arc::new(value));
        self.numbers.insert(value.clone(), number);
        self.values.push(value);
        number
    }

    fn value(&self, number: u32) -> &Arc<T> {
        &self.values[number as usize]
    }
}

struct Look<'a> {
    reader: &'a Reader,
    query: &'a Query,
    notes: Notes,
    /// Contents of files whose chunks are listed outside their nodes, by those lists.
    lists: HashMap<[u8; 32], [u8; 32]>,
}

impl Visit for Look<'_> {
    async fn page(&mut self, _: &TreeRef, page: &Page, below: &[u32]) -> Result<(), RepoError> {
        let (mut hits, mut leads) = (Vec::new(), Vec::new());
        let mut numbers = below.iter().copied();
        match page {
            Page::Branch(_) => leads.extend(numbers.filter(|n| self.leads_on(*n)).map(|n| (UNNAMED, n))),
            Page::Leaf(nodes) => {
                for node in nodes {
                    if self.query.takes(node) {
                        let entry = self.entry(node).await?;
                        hits.push(self.notes.entries.number(entry));
                    }
                    if let NodeKind::Directory(_) = node.kind
                        && let Some(number) = numbers.next()
                        && self.leads_on(number)
                    {
                        leads.push((self.notes.names.number(node.name.clone()), number));
                    }
                }
            }
        }
        let is_empty = hits.is_empty() && leads.is_empty();
        let noted = || Box::new(Noted { hits: hits.into(), below: leads.into() });
        self.notes.pages.push((!is_empty).then(noted));
        Ok(())
    }
}

impl Look<'_> {
    /// Tells whether something was found in or below a page.
    fn leads_on(&self, number: u32) -> bool {
        number != LOST && self.notes.pages[number as usize].is_some()
    }

    async fn entry(&mut self, node: &Node) -> Result<Entry, RepoError> {
        let (kind, content) = match &node.kind {
            NodeKind::File(file) => {
                let bare = FileContent { bytes: file.bytes, ..FileContent::default() };
                (NodeKind::File(bare), self.content(file).await?)
            }
            // A folder is the same one, whatever is in it.
            NodeKind::Directory(_) => (NodeKind::Directory(NO_TREE), [0; 32]),
            other => (other.clone(), *blake3::hash(format!("{other:?}").as_bytes()).as_bytes()),
        };
        let identity = Identity { links: node.identity.links, ..Identity::default() };
        let (name, owner, ctime, xattrs) = (node.name.clone(), node.owner.clone(), Time::default(), Vec::new());
        let node = Node { name, kind, mode: node.mode, owner, mtime: node.mtime, ctime, identity, xattrs };
        Ok(Entry { node, content })
    }

    /// Returns what tells a content from another; lists of chunks are read once each.
    async fn content(&mut self, file: &FileContent) -> Result<[u8; 32], RepoError> {
        let Data::Pages(pages) = &file.data else { return Ok(*content_id(self.reader, file).await?.as_bytes()) };
        let mut lists = blake3::Hasher::new();
        for (_, page) in pages {
            lists.update(page.id.as_bytes());
        }
        for (offset, bytes) in &file.holes {
            lists.update(&offset.to_le_bytes()).update(&bytes.to_le_bytes());
        }
        let lists = *lists.finalize().as_bytes();
        if let Some(known) = self.lists.get(&lists) {
            return Ok(*known);
        }
        let content = *content_id(self.reader, file).await?.as_bytes();
        self.lists.insert(lists, content);
        Ok(content)
    }
}

/// Stands in an entry for whichever tree a folder had.
const NO_TREE: TreeRef = TreeRef {
    id: ChunkId([0; 32]),
    bytes: 0,
    pack: PackId { session: SessionId([0; 32]), number: 0 },
    frame: 0,
    chunk_offset: 0,
};

/// What a name in a folder leads to: entries, and pages of folders, each with its snapshots.
#[derive(Default)]
struct Named {
    entries: BTreeMap<u32, Runs>,
    folders: BTreeMap<u32, Runs>,
}

/// The names of a folder that are still to be gone through.
struct Folder {
    path_bytes: usize,
    names: std::collections::btree_map::IntoIter<Name, Named>,
}

impl Finds {
    /// Returns what the walk came to.
    #[must_use]
    pub fn walked(&self) -> &Walked {
        &self.walked
    }

    /// Hands over what was found, in the order of paths; memory is bounded by what fits in the folders along one path.
    ///
    /// # Errors
    /// The first that `hit` returns.
    pub fn each<E>(&self, mut hit: impl FnMut(Hit) -> Result<(), E>) -> Result<(), E> {
        let mut roots: BTreeMap<u32, Runs> = BTreeMap::new();
        for (snapshot, root) in (0..).zip(&self.walked.roots) {
            roots.entry(*root).or_default().add(&Runs::of(snapshot));
        }
        let mut path = Vec::new();
        let mut open = vec![Folder { path_bytes: 0, names: self.names(roots).into_iter() }];
        while let Some(folder) = open.last_mut() {
            path.truncate(folder.path_bytes);
            let Some((name, named)) = folder.names.next() else {
                open.pop();
                continue;
            };
            path.push(b'/');
            path.extend_from_slice(name.as_bytes());
            if !named.entries.is_empty() && self.query.patterns.iter().any(|pattern| pattern.fits(&path)) {
                let entry = |(number, runs)| (self.notes.entries.value(number).clone(), runs);
                hit(Hit { path: path.clone(), entries: named.entries.into_iter().map(entry).collect() })?;
            }
            if !named.folders.is_empty() {
                open.push(Folder { path_bytes: path.len(), names: self.names(named.folders).into_iter() });
            }
        }
        Ok(())
    }

    /// Joins what was noted of the pages of one folder.
    fn names(&self, pages: BTreeMap<u32, Runs>) -> BTreeMap<Name, Named> {
        let mut names: BTreeMap<Name, Named> = BTreeMap::new();
        // What is below a page has a smaller number, so each page is met once, with all its snapshots.
        let mut pages = pages;
        while let Some((number, mut runs)) = pages.pop_last() {
            let Some(Some(noted)) = self.notes.pages.get(number as usize) else { continue };
            runs.settle();
            for entry in &noted.hits {
                let name = self.notes.entries.value(*entry).node.name.clone();
                names.entry(name).or_default().entries.entry(*entry).or_default().add(&runs);
            }
            for (name, page) in &noted.below {
                if *name == UNNAMED {
                    pages.entry(*page).or_default().add(&runs);
                } else {
                    let name = Name::clone(self.notes.names.value(*name));
                    names.entry(name).or_default().folders.entry(*page).or_default().add(&runs);
                }
            }
        }
        names.values_mut().for_each(|named| named.entries.values_mut().for_each(Runs::settle));
        names
    }
}
