//! The virtual top: which snapshots there are, and the folders that lead to them.
//!
//! ```text
//! latest                     -> snapshots/2026-11-22_13-58-00
//! snapshots/2026-11-22_13-58-00/   the snapshot's root
//! hosts/HOST/2026-11-22_13-58-00   -> ../../snapshots/2026-11-22_13-58-00, and latest
//! tags/TAG/...               the same
//! ids/3f2a91c0               -> ../snapshots/2026-11-22_13-58-00
//! incomplete/2026-11-22_13-58-00   -> ../snapshots/2026-11-22_13-58-00, where something could not be read
//! incomplete/2026-11-22_13-58-00.txt   what that was
//! versions/                  every path of every snapshot; what is in it is made elsewhere
//! .kloset/status.json        what the mount has done so far; not listed, so that no walk meets it
//! ```
//!
//! Each snapshot is one folder at one place, and everything but `versions/` and the lists are links to it. `snapshots/` and `ids/` need
//! the listing only; `hosts/`, `tags/` and `incomplete/` open every manifest, when they are looked into. How fresh the
//! listing is is decided in [`super::listing`]. It knows nothing of what is in a snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Value, json};

use super::errno::FsError;
use super::filter::Wanted;
use super::hash;
use super::lacks;
use super::listing::{Listing, Need};
use super::names::{Names, escape};
use super::paths::PATH_BIT;
use crate::repo::cache::{Cache, Weigh};
use crate::repo::layout::SnapshotName;
use crate::repo::tree::TreeRef;
use crate::repo::{Repo, RepoError};

/// Inode number of the mount's root.
pub const TOP: u64 = 1;
/// Manifests opened at once.
const FETCHES: usize = 16;
/// Memory for what is known of opened manifests: more only costs opening one again.
const OPENED_BYTES_MAX: usize = 16 << 20;

/// What an inode of the virtual top is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The root of the mount.
    Top,
    /// `snapshots/`.
    Snapshots,
    /// `hosts/`.
    Hosts,
    /// `tags/`.
    Tags,
    /// `ids/`.
    Ids,
    /// `incomplete/`.
    Incomplete,
    /// `versions/`.
    Versions,
    /// A host's folder.
    Host(Arc<str>),
    /// A tag's folder.
    Tag(Arc<str>),
    /// A link, where it leads, and the time of the snapshot there.
    Link(Arc<str>, i64),
    /// A snapshot's root.
    Snapshot(SnapshotName),
    /// The list of what a snapshot lacks, and how long it is.
    Lacks(SnapshotName, u64),
    /// `.kloset/`.
    Control,
    /// `.kloset/status.json`.
    Status,
}

/// An inode of the virtual top.
#[derive(Clone, Debug)]
pub struct Root {
    /// Its inode number.
    pub number: u64,
    /// The folder it is in.
    pub parent: u64,
    /// Counted from the first that was seen; the order and the offsets of listings.
    pub sequence: u32,
    /// Its name.
    pub name: Arc<str>,
    /// What it is.
    pub what: What,
}

impl Root {
    /// Tells whether it is the root of the mount.
    #[must_use]
    pub fn is_top(&self) -> bool {
        self.number == TOP
    }
}

/// What is known of an opened manifest.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The root tree.
    pub tree: TreeRef,
    /// Whether something could not be read when it was made.
    pub incomplete: bool,
    /// Length of the list of that.
    lacks_bytes: u64,
    /// Bytes and number of its files.
    pub totals: (u64, u64),
    host: Arc<str>,
    tags: Vec<Arc<str>>,
}

impl Weigh for Opened {
    fn weight(&self) -> usize {
        size_of::<Self>() + self.host.len() + self.tags.iter().map(|tag| tag.len() + 32).sum::<usize>()
    }
}

/// The virtual top; clones share it.
#[derive(Clone)]
pub struct Roots(Arc<Inner>);

/// A name in a folder of the virtual top that no longer means what it did.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stale {
    /// Inode number of the folder.
    pub parent: u64,
    /// The name.
    pub name: Arc<str>,
}

struct Inner {
    repo: Repo,
    listing: Listing,
    opened: Cache<SnapshotName, Opened>,
    state: Mutex<State>,
}

struct State {
    roots: Vec<Root>,
    by_number: HashMap<u64, u32>,
    /// The largest snapshot opened so far, for `df`.
    totals: (u64, u64),
    /// Snapshots opened so far that lack something.
    incomplete: BTreeSet<SnapshotName>,
    /// The list that was read last.
    lacks: Option<(SnapshotName, Bytes)>,
}

impl Roots {
    /// Lists the snapshots of a kloset: one request, whatever its size.
    ///
    /// With `only`, that snapshot's root is the root of the mount and there is nothing else. Where not all are `wanted`,
    /// every manifest is opened. `refresh` is how old the listing may be; without, it is read again only by
    /// [`Roots::renew`].
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn new(
        repo: Repo,
        only: Option<SnapshotName>,
        wanted: Wanted,
        refresh: Option<Duration>,
    ) -> Result<Self, RepoError> {
        let (what, listing) = match only {
            Some(name) => (What::Snapshot(name), Listing::only(repo.clone(), name)),
            None => (What::Top, Listing::new(repo.clone(), wanted, refresh).await?),
        };
        let top = Root { number: TOP, parent: TOP, sequence: 0, name: "".into(), what };
        let state = State {
            roots: vec![top],
            by_number: HashMap::from([(TOP, 0)]),
            totals: (0, 0),
            incomplete: BTreeSet::new(),
            lacks: None,
        };
        let opened = Cache::new(OPENED_BYTES_MAX);
        Ok(Self(Arc::new(Inner { repo, listing, opened, state: Mutex::new(state) })))
    }

    /// Has `tell` called with what no longer holds after each change of the listing.
    ///
    /// It is called where requests of the kernel are waited for, so it must not wait for the kernel itself.
    pub fn on_change(&self, tell: impl Fn(Vec<Stale>) + Send + Sync + 'static) {
        let weak = Arc::downgrade(&self.0);
        self.0.listing.on_change(Box::new(move |old, new| {
            if let Some(inner) = weak.upgrade() {
                tell(Self(inner).stale(old, new));
            }
        }));
    }

    /// Lists the snapshots now, whatever the age of the listing.
    pub async fn renew(&self) {
        self.0.listing.renew().await;
    }

    /// Returns an inode of the virtual top.
    #[must_use]
    pub fn root(&self, number: u64) -> Option<Root> {
        let state = self.lock();
        state.by_number.get(&number).map(|sequence| state.roots[*sequence as usize].clone())
    }

    /// Returns the snapshot whose root has that sequence number.
    #[must_use]
    pub fn snapshot(&self, sequence: u32) -> Option<SnapshotName> {
        match self.lock().roots.get(sequence as usize)?.what {
            What::Snapshot(name) => Some(name),
            _ => None,
        }
    }

    /// Returns the snapshots and their names, as fresh as they are needed.
    pub async fn names(&self, need: Need) -> Arc<Names> {
        self.0.listing.names(need).await
    }

    /// Returns the folder of a snapshot in `snapshots/`; `None` for one that is not in the listing.
    #[must_use]
    pub fn snapshot_root(&self, names: &Names, name: SnapshotName) -> Option<Root> {
        let at = names.position(name)?;
        let folder = number(TOP, "snapshots", &What::Snapshots);
        let folder = Root { number: folder, parent: TOP, sequence: 0, name: "snapshots".into(), what: What::Snapshots };
        Some(self.intern(&folder, &names.times[at], What::Snapshot(name)))
    }

    /// Returns the time of the newest snapshot that is known.
    #[must_use]
    pub fn newest_unix_ms(&self) -> i64 {
        self.0.listing.known().snapshots.last().map_or(0, |name| name.unix_ms)
    }

    /// Returns bytes and number of files of the largest snapshot opened so far.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        self.lock().totals
    }

    /// Opens a snapshot's manifest.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn open(&self, name: SnapshotName) -> Result<Arc<Opened>, RepoError> {
        let repo = self.0.repo.clone();
        let load = move || async move {
            let manifest = repo.manifest(name).await?;
            Ok(Opened {
                tree: manifest.root.into(),
                incomplete: manifest.incomplete,
                lacks_bytes: lacks::list(&manifest).len() as u64,
                totals: (manifest.summary.bytes, manifest.summary.files),
                host: escape(&manifest.host).into(),
                tags: manifest.tags.iter().map(|tag| escape(tag).into()).collect(),
            })
        };
        let opened = self.0.opened.get(name, load).await?;
        let mut state = self.lock();
        state.totals = state.totals.max(opened.totals);
        if opened.incomplete {
            state.incomplete.insert(name);
        }
        Ok(opened)
    }

    /// Tells how many snapshots there are, how fresh that is, and which of those that were opened lack something.
    #[must_use]
    pub fn shown(&self) -> Value {
        let (names, (age_ms, is_failing)) = (self.0.listing.known(), self.0.listing.freshness());
        let state = self.lock();
        let incomplete = state.incomplete.iter().filter_map(|name| names.times.get(names.position(*name)?));
        json!({
            "known": names.snapshots.len(),
            "listed_seconds_ago": age_ms / 1000,
            "listing_fails": is_failing,
            "incomplete": incomplete.collect::<Vec<_>>(),
        })
    }

    /// Finds a name in a folder of the virtual top.
    ///
    /// # Errors
    /// [`FsError`]; `None` where the folder has no such name.
    pub async fn lookup(&self, folder: &Root, name: &str) -> Result<Option<Root>, FsError> {
        // No look at snapshots.
        match (&folder.what, name) {
            (What::Top, ".kloset") => return Ok(Some(self.intern(folder, name, What::Control))),
            (What::Control, "status.json") => return Ok(Some(self.intern(folder, name, What::Status))),
            (What::Control, _) => return Ok(None),
            _ => {}
        }
        let need = if name == "latest" { Need::Fresh } else { Need::Known };
        let names = self.0.listing.names(need).await;
        if let Some(what) = self.find(folder, name, &names).await? {
            return Ok(Some(self.intern(folder, name, what)));
        }
        // File managers look for their own files everywhere: no reason to ask the store.
        if folder.what == What::Top || name.starts_with('.') {
            return Ok(None);
        }
        let names = self.0.listing.names(Need::Missing).await;
        let found = self.find(folder, name, &names).await?;
        Ok(found.map(|what| self.intern(folder, name, what)))
    }

    /// Lists a folder of the virtual top in the order of the sequence numbers.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn list(&self, folder: &Root) -> Result<Vec<Root>, FsError> {
        if folder.what == What::Control {
            return Ok(vec![self.intern(folder, "status.json", What::Status)]);
        }
        let names = self.0.listing.names(Need::Fresh).await;
        let children = self.children(folder, &names).await?;
        let mut roots: Vec<Root> =
            children.iter().map(|(name, what)| self.intern(folder, name, what.clone())).collect();
        roots.sort_unstable_by_key(|root| root.sequence);
        Ok(roots)
    }

    async fn find(&self, folder: &Root, name: &str, names: &Names) -> Result<Option<What>, FsError> {
        Ok(match &folder.what {
            What::Snapshots => names.by_time(name).map(|at| What::Snapshot(names.snapshots[at])),
            What::Ids => names.by_id(name).map(|at| link("../snapshots", names, at)),
            _ => self.children(folder, names).await?.into_iter().find(|child| child.0 == name).map(|child| child.1),
        })
    }

    async fn children(&self, folder: &Root, names: &Names) -> Result<Vec<(String, What)>, FsError> {
        let all = 0..names.snapshots.len();
        Ok(match &folder.what {
            What::Top => top(names),
            What::Snapshots => all.map(|at| (names.times[at].clone(), What::Snapshot(names.snapshots[at]))).collect(),
            What::Ids => all.map(|at| (names.ids[at].clone(), link("../snapshots", names, at))).collect(),
            What::Hosts => self.hosts(names).await?.into_keys().map(|h| (h.to_string(), What::Host(h))).collect(),
            What::Tags => self.tags(names).await?.into_keys().map(|t| (t.to_string(), What::Tag(t))).collect(),
            What::Host(host) => links(names, self.hosts(names).await?.get(host)),
            What::Tag(tag) => links(names, self.tags(names).await?.get(tag)),
            What::Incomplete => {
                let mut children = Vec::new();
                for (at, bytes) in self.incomplete(names).await? {
                    let time = &names.times[at];
                    children.push((time.clone(), link("../snapshots", names, at)));
                    children.push((format!("{time}{}", lacks::ENDING), What::Lacks(names.snapshots[at], bytes)));
                }
                children
            }
            What::Control | What::Versions => Vec::new(),
            What::Link(..) | What::Snapshot(_) | What::Lacks(..) | What::Status => return Err(FsError::NotDirectory),
        })
    }

    async fn hosts(&self, names: &Names) -> Result<BTreeMap<Arc<str>, Vec<usize>>, FsError> {
        self.grouped(names, |opened| vec![opened.host.clone()]).await
    }

    async fn tags(&self, names: &Names) -> Result<BTreeMap<Arc<str>, Vec<usize>>, FsError> {
        self.grouped(names, |opened| opened.tags.clone()).await
    }

    /// Returns the snapshots that lack something, each with the length of its list.
    async fn incomplete(&self, names: &Names) -> Result<BTreeMap<usize, u64>, FsError> {
        fn length(opened: &Opened) -> Vec<Arc<str>> {
            opened.incomplete.then(|| opened.lacks_bytes.to_string().into()).into_iter().collect()
        }
        let groups = self.grouped(names, length).await?;
        let lengths = groups.into_iter().map(|(bytes, group)| (bytes.parse().unwrap_or(0), group));
        Ok(lengths.flat_map(|(bytes, group)| group.into_iter().map(move |at| (at, bytes))).collect())
    }

    /// Returns the list of what a snapshot lacks; the last one is kept, since it is read in pieces.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn lacks(&self, name: SnapshotName) -> Result<Bytes, RepoError> {
        let kept = self.lock().lacks.clone();
        if let Some((_, list)) = kept.filter(|kept| kept.0 == name) {
            return Ok(list);
        }
        let list = lacks::list(&self.0.repo.manifest(name).await?);
        self.lock().lacks = Some((name, list.clone()));
        Ok(list)
    }

    /// Opens every manifest and groups the snapshots by what is in it.
    async fn grouped(
        &self,
        names: &Names,
        keys: fn(&Opened) -> Vec<Arc<str>>,
    ) -> Result<BTreeMap<Arc<str>, Vec<usize>>, FsError> {
        let opened = futures::stream::iter(names.snapshots.clone()).map(|name| {
            let roots = self.clone();
            async move { roots.open(name).await }
        });
        let opened: Vec<_> = opened.buffered(FETCHES).collect().await;
        let mut groups: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (at, opened) in opened.into_iter().enumerate() {
            match opened {
                Ok(opened) => {
                    for key in keys(&opened) {
                        let group = groups.entry(key).or_default();
                        if group.last() != Some(&at) {
                            group.push(at);
                        }
                    }
                }
                // Forgotten since the listing.
                Err(RepoError::NoSnapshot(_)) => {}
                // Whose it is cannot be known any more; in snapshots/ it stays to be seen, and there it is an error.
                Err(RepoError::Damaged { object, problem }) => {
                    tracing::debug!("not in hosts/, tags/ and incomplete/: {object}: {problem}");
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(groups)
    }

    /// Gives a child of a folder its inode, the same one each time.
    fn intern(&self, folder: &Root, name: &str, what: What) -> Root {
        let number = number(folder.number, name, &what);
        let mut state = self.lock();
        if let Some(sequence) = state.by_number.get(&number) {
            return state.roots[*sequence as usize].clone();
        }
        let sequence = u32::try_from(state.roots.len()).expect("fewer than 2^32 snapshots");
        let root = Root { number, parent: folder.number, sequence, name: name.into(), what };
        state.roots.push(root.clone());
        state.by_number.insert(number, sequence);
        root
    }

    /// Returns which names the kernel may still hold though they mean something else, or nothing, now.
    ///
    /// What it holds of hosts and tags that came or went ends with the second that it may keep it.
    fn stale(&self, old: &Names, new: &Names) -> Vec<Stale> {
        let (snapshots, ids) = (number(TOP, "snapshots", &What::Snapshots), number(TOP, "ids", &What::Ids));
        let mut stale = BTreeSet::from([Stale { parent: TOP, name: "latest".into() }]);
        for (these, others) in [(old, new), (new, old)] {
            for (at, _) in these.snapshots.iter().enumerate().filter(|(_, name)| others.position(**name).is_none()) {
                stale.insert(Stale { parent: snapshots, name: these.times[at].as_str().into() });
                stale.insert(Stale { parent: ids, name: these.ids[at].as_str().into() });
            }
        }
        for root in &self.lock().roots {
            let holds = match &root.what {
                What::Snapshot(name) => root.number == TOP || new.position(*name).is_some(),
                What::Lacks(name, _) => new.position(*name).is_some(),
                What::Link(target, _) => {
                    let end = target.rsplit('/').next().unwrap_or_default();
                    &*root.name != "latest" && new.by_time(end).is_some()
                }
                _ => true,
            };
            if !holds {
                stale.insert(Stale { parent: root.parent, name: root.name.clone() });
            }
        }
        stale.into_iter().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while held")
    }
}

fn top(names: &Names) -> Vec<(String, What)> {
    let folders = [
        ("snapshots", What::Snapshots),
        ("hosts", What::Hosts),
        ("tags", What::Tags),
        ("ids", What::Ids),
        ("incomplete", What::Incomplete),
        ("versions", What::Versions),
    ];
    let mut children: Vec<_> = folders.map(|(name, what)| (name.to_owned(), what)).into();
    if let Some(last) = names.snapshots.len().checked_sub(1) {
        children.push(("latest".to_owned(), link("snapshots", names, last)));
    }
    children
}

fn links(names: &Names, group: Option<&Vec<usize>>) -> Vec<(String, What)> {
    let group = group.map_or(&[][..], Vec::as_slice);
    let link = |at: usize| link("../../snapshots", names, at);
    let mut children: Vec<_> = group.iter().map(|at| (names.times[*at].clone(), link(*at))).collect();
    children.extend(group.last().map(|at| ("latest".to_owned(), link(*at))));
    children
}

fn link(folder: &str, names: &Names, at: usize) -> What {
    What::Link(format!("{folder}/{}", names.times[at]).into(), names.snapshots[at].unix_ms)
}

/// Returns the inode number of a child of a virtual folder.
///
/// It follows from what the child is, too: the kernel keeps what it has read of a link, so a link that leads elsewhere
/// must be another inode.
fn number(folder: u64, name: &str, what: &What) -> u64 {
    let mut hash = blake3::Hasher::new();
    hash.update(b"\0top").update(&folder.to_le_bytes()).update(name.as_bytes());
    match what {
        What::Link(target, _) => {
            hash.update(b"\0").update(target.as_bytes());
        }
        What::Snapshot(name) | What::Lacks(name, _) => {
            hash.update(b"\0").update(name.id.as_bytes());
        }
        _ => {}
    }
    (hash::number(&hash.finalize()) & (PATH_BIT - 1)).max(TOP + 1)
}
