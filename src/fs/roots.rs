//! The virtual top: which snapshots there are, and the folders that lead to them.
//!
//! ```text
//! latest                     -> snapshots/2026-11-22_13-58-00
//! snapshots/2026-11-22_13-58-00/   the snapshot's root
//! hosts/HOST/2026-11-22_13-58-00   -> ../../snapshots/2026-11-22_13-58-00, and latest
//! tags/TAG/...               the same
//! ids/3f2a91c0               -> ../snapshots/2026-11-22_13-58-00
//! ```
//!
//! Each snapshot is one folder at one place and everything else are links to it: whoever walks the whole mount meets
//! every file once. `snapshots/` and `ids/` need the listing only; `hosts/` and `tags/` open every manifest, when they
//! are looked into. The listing is read again when it is older than ten seconds and somebody looks; who looks waits two
//! seconds for that at most, and while the store does not answer the old one stands. It knows nothing of what is in a
//! snapshot.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, StreamExt};

use super::errno::FsError;
use super::inodes::NODE_BIT;
use super::names::{Names, escape};
use crate::repo::cache::{Cache, Weigh};
use crate::repo::layout::SnapshotName;
use crate::repo::tree::TreeRef;
use crate::repo::{Repo, RepoError};

/// Inode number of the mount's root.
pub const TOP: u64 = 1;
/// A listing younger than this is good enough for who looks at what is in it.
const LISTING_MS_MAX: i64 = 10_000;
/// And this for who asks for a name that is not in it.
const MISSING_MS_MAX: i64 = 1_000;
/// How long a look at a folder waits for a new listing.
const REFRESH_WAIT: Duration = Duration::from_secs(2);
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
    /// A host's folder.
    Host(Arc<str>),
    /// A tag's folder.
    Tag(Arc<str>),
    /// A link, where it leads, and the time of the snapshot there.
    Link(Arc<str>, i64),
    /// A snapshot's root.
    Snapshot(SnapshotName),
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

/// What is known of an opened manifest.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The root tree.
    pub tree: TreeRef,
    /// Whether something could not be read when it was made.
    pub incomplete: bool,
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

struct Inner {
    repo: Repo,
    opened: Cache<SnapshotName, Opened>,
    state: Mutex<State>,
}

type Refresh = Shared<BoxFuture<'static, ()>>;

struct State {
    names: Arc<Names>,
    listed_unix_ms: i64,
    refresh: Option<Refresh>,
    /// Whether the last refresh failed: the next failure is not told again.
    failing: bool,
    roots: Vec<Root>,
    by_number: HashMap<u64, u32>,
    /// The largest snapshot opened so far, for `df`.
    totals: (u64, u64),
}

impl Roots {
    /// Lists the snapshots of a kloset: one request, whatever its size.
    ///
    /// With `only`, that snapshot's root is the root of the mount and there is nothing else.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn new(repo: Repo, only: Option<SnapshotName>) -> Result<Self, RepoError> {
        let (what, snapshots) = match only {
            Some(name) => (What::Snapshot(name), vec![name]),
            None => (What::Top, repo.snapshots().await?),
        };
        let top = Root { number: TOP, parent: TOP, sequence: 0, name: "".into(), what };
        let state = State {
            names: Arc::new(Names::new(snapshots)),
            listed_unix_ms: repo.env.clock.unix_ms(),
            refresh: None,
            failing: false,
            roots: vec![top],
            by_number: HashMap::from([(TOP, 0)]),
            totals: (0, 0),
        };
        Ok(Self(Arc::new(Inner { repo, opened: Cache::new(OPENED_BYTES_MAX), state: Mutex::new(state) })))
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

    /// Returns the time of the newest snapshot that is known.
    #[must_use]
    pub fn newest_unix_ms(&self) -> i64 {
        self.lock().names.snapshots.last().map_or(0, |name| name.unix_ms)
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
                totals: (manifest.summary.bytes, manifest.summary.files),
                host: escape(&manifest.host).into(),
                tags: manifest.tags.iter().map(|tag| escape(tag).into()).collect(),
            })
        };
        let opened = self.0.opened.get(name, load).await?;
        let mut state = self.lock();
        state.totals = state.totals.max(opened.totals);
        Ok(opened)
    }

    /// Finds a name in a folder of the virtual top.
    ///
    /// # Errors
    /// [`FsError`]; `None` where the folder has no such name.
    pub async fn lookup(&self, folder: &Root, name: &str) -> Result<Option<Root>, FsError> {
        let age_ms_max = if name == "latest" { LISTING_MS_MAX } else { i64::MAX };
        let names = self.names(age_ms_max).await;
        if let Some(what) = self.find(folder, name, &names).await? {
            return Ok(Some(self.intern(folder, name, what)));
        }
        // File managers look for their own files everywhere: no reason to ask the store.
        if folder.what == What::Top || name.starts_with('.') {
            return Ok(None);
        }
        let names = self.names(MISSING_MS_MAX).await;
        let found = self.find(folder, name, &names).await?;
        Ok(found.map(|what| self.intern(folder, name, what)))
    }

    /// Lists a folder of the virtual top in the order of the sequence numbers.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn list(&self, folder: &Root) -> Result<Vec<Root>, FsError> {
        let names = self.names(LISTING_MS_MAX).await;
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
            What::Link(..) | What::Snapshot(_) => return Err(FsError::NotDirectory),
        })
    }

    async fn hosts(&self, names: &Names) -> Result<BTreeMap<Arc<str>, Vec<usize>>, FsError> {
        self.grouped(names, |opened| vec![opened.host.clone()]).await
    }

    async fn tags(&self, names: &Names) -> Result<BTreeMap<Arc<str>, Vec<usize>>, FsError> {
        self.grouped(names, |opened| opened.tags.clone()).await
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
                    tracing::debug!("not in hosts/ and tags/: {object}: {problem}");
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

    /// Returns the listing, a new one if it is older than `age_ms_max` and the store answers soon.
    async fn names(&self, age_ms_max: i64) -> Arc<Names> {
        if let Some(refresh) = self.begin_refresh(age_ms_max) {
            // A store that does not answer must not freeze who looks at the folder: the refresh goes on without him.
            let _ = tokio::time::timeout(REFRESH_WAIT, refresh).await;
        }
        self.lock().names.clone()
    }

    fn begin_refresh(&self, age_ms_max: i64) -> Option<Refresh> {
        let now = self.0.repo.env.clock.unix_ms();
        let mut state = self.lock();
        let fixed = matches!(state.roots[0].what, What::Snapshot(_));
        if fixed || (0..age_ms_max).contains(&now.saturating_sub(state.listed_unix_ms)) {
            return None;
        }
        if state.refresh.is_none() {
            let task = tokio::spawn(self.clone().refresh());
            state.refresh = Some(task.map(|_| ()).boxed().shared());
        }
        state.refresh.clone()
    }

    async fn refresh(self) {
        let listed = self.0.repo.snapshots().await;
        let mut state = self.lock();
        state.refresh = None;
        state.listed_unix_ms = self.0.repo.env.clock.unix_ms();
        match listed {
            Ok(snapshots) => {
                state.failing = false;
                if snapshots != state.names.snapshots {
                    state.names = Arc::new(Names::new(snapshots));
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut state.failing, true) {
                    tracing::warn!("listing the snapshots: {error}: the last listing stands");
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while held")
    }
}

fn top(names: &Names) -> Vec<(String, What)> {
    let folders = [("snapshots", What::Snapshots), ("hosts", What::Hosts), ("tags", What::Tags), ("ids", What::Ids)];
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
        What::Snapshot(name) => {
            hash.update(b"\0").update(name.id.as_bytes());
        }
        _ => {}
    }
    let hash = *hash.finalize().as_bytes();
    let number = u64::from_le_bytes(*hash.first_chunk().expect("32 bytes hold 8")) & (NODE_BIT - 1);
    number.max(TOP + 1)
}
