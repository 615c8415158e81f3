//! Which snapshots there are, as fresh as somebody needs it.
//!
//! The kloset is asked when somebody looks and what is known is too old for him, never by a timer: a mount that nobody
//! looks at asks nothing. One request is under way at a time. Who lists a folder waits two seconds for it at most, and
//! only for one that has just begun, so that a store that does not answer costs nobody more than once; who follows a
//! name that is known does not wait at all. While the store does not answer, the old listing stands. It knows nothing of
//! folders.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::time::Instant;

use super::filter::{Filter, Wanted};
use super::names::Names;
use crate::repo::layout::SnapshotName;
use crate::repo::{Repo, RepoError};

/// A listing younger than this is good enough, unless told otherwise.
pub const REFRESH_DEFAULT: Duration = Duration::from_secs(10);
/// And than this for who asks for a name that is not in it.
const MISSING_MS_MAX: i64 = 1_000;
/// How long who looks at a folder waits for a new listing.
const REFRESH_WAIT: Duration = Duration::from_secs(2);

/// What somebody wants of the listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A new one if it is too old, and he waits.
    Fresh,
    /// A name that is in it: a new one is sent for if it is too old, for who comes next.
    Known,
    /// A name that is not in it: a new one if it is older than a second, and he waits.
    Missing,
}

/// The listing; clones share it.
#[derive(Clone)]
pub struct Listing(Arc<Inner>);

type OnChange = Box<dyn Fn(&Names, &Names) + Send + Sync>;

struct Inner {
    repo: Repo,
    filter: Filter,
    /// Shows one snapshot, which never changes.
    is_fixed: bool,
    /// `None`: only when told to.
    age_ms_max: Option<i64>,
    on_change: OnceLock<OnChange>,
    state: Mutex<State>,
}

struct State {
    names: Arc<Names>,
    listed_unix_ms: i64,
    /// When the store answered last.
    answered_unix_ms: i64,
    refresh: Option<Refresh>,
    /// Whether the last refresh failed: the next failure is not told again.
    failing: bool,
}

/// A request under way.
#[derive(Clone)]
struct Refresh {
    begun: Instant,
    done: Shared<BoxFuture<'static, ()>>,
}

impl Listing {
    /// Lists the snapshots of a kloset that are wanted: one request, whatever its size, if that is all of them.
    ///
    /// With `refresh`, a listing of that age is replaced when somebody looks; without, it stands until
    /// [`Listing::renew`].
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn new(repo: Repo, wanted: Wanted, refresh: Option<Duration>) -> Result<Self, RepoError> {
        let filter = Filter::new(wanted);
        let snapshots = filter.snapshots(&repo).await?;
        let age_ms_max = refresh.map(|refresh| i64::try_from(refresh.as_millis()).unwrap_or(i64::MAX));
        Ok(Self::of(repo, snapshots, age_ms_max, filter))
    }

    /// Returns a listing of one snapshot that never changes.
    #[must_use]
    pub fn only(repo: Repo, name: SnapshotName) -> Self {
        let mut listing = Self::of(repo, vec![name], None, Filter::default());
        if let Some(inner) = Arc::get_mut(&mut listing.0) {
            inner.is_fixed = true;
        }
        listing
    }

    fn of(repo: Repo, snapshots: Vec<SnapshotName>, age_ms_max: Option<i64>, filter: Filter) -> Self {
        let now = repo.env.clock.unix_ms();
        let state = State {
            names: Arc::new(Names::new(snapshots)),
            listed_unix_ms: now,
            answered_unix_ms: now,
            refresh: None,
            failing: false,
        };
        let (on_change, state) = (OnceLock::new(), Mutex::new(state));
        Self(Arc::new(Inner { repo, filter, is_fixed: false, age_ms_max, on_change, state }))
    }

    /// Has `tell` called with the old and the new names after each change; only the first one is heeded.
    pub fn on_change(&self, tell: OnChange) {
        let _ = self.0.on_change.set(tell);
    }

    /// Returns what is known now.
    #[must_use]
    pub fn known(&self) -> Arc<Names> {
        self.lock().names.clone()
    }

    /// Returns how many milliseconds ago the store last said what there is, and whether it failed to since.
    #[must_use]
    pub fn freshness(&self) -> (i64, bool) {
        let (now, state) = (self.0.repo.env.clock.unix_ms(), self.lock());
        (now.saturating_sub(state.answered_unix_ms).max(0), state.failing)
    }

    /// Returns the listing, as fresh as it is needed and as the store allows.
    pub async fn names(&self, need: Need) -> Arc<Names> {
        if let Some(refresh) = self.begin_if_old(need)
            && need != Need::Known
        {
            // A store that does not answer must not freeze who looks at the folder: the refresh goes on without him.
            let _ = tokio::time::timeout_at(refresh.begun + REFRESH_WAIT, refresh.done).await;
        }
        self.known()
    }

    /// Asks the store now, whatever the age, and waits for its answer.
    pub async fn renew(&self) {
        if self.0.is_fixed {
            return;
        }
        // One that is under way may have been answered before what is new came to be.
        let under_way = self.lock().refresh.clone();
        if let Some(refresh) = under_way {
            refresh.done.await;
        }
        let refresh = self.begin(&mut self.lock());
        refresh.done.await;
    }

    fn begin_if_old(&self, need: Need) -> Option<Refresh> {
        let every = self.0.age_ms_max?;
        let age_ms_max = if need == Need::Missing { every.min(MISSING_MS_MAX) } else { every };
        let now = self.0.repo.env.clock.unix_ms();
        let mut state = self.lock();
        if (0..age_ms_max).contains(&now.saturating_sub(state.listed_unix_ms)) {
            return None;
        }
        Some(self.begin(&mut state))
    }

    fn begin(&self, state: &mut State) -> Refresh {
        let begin = || {
            let task = tokio::spawn(self.clone().refresh());
            Refresh { begun: Instant::now(), done: task.map(|_| ()).boxed().shared() }
        };
        state.refresh.get_or_insert_with(begin).clone()
    }

    async fn refresh(self) {
        let listed = self.0.filter.snapshots(&self.0.repo).await;
        let changed = self.settle(listed);
        if let (Some((old, new)), Some(tell)) = (changed, self.0.on_change.get()) {
            tell(&old, &new);
        }
    }

    /// Takes a new listing over; returns the old and the new names if they differ.
    fn settle(&self, listed: Result<Vec<SnapshotName>, RepoError>) -> Option<(Arc<Names>, Arc<Names>)> {
        let mut state = self.lock();
        state.refresh = None;
        state.listed_unix_ms = self.0.repo.env.clock.unix_ms();
        match listed {
            Ok(snapshots) => {
                state.failing = false;
                state.answered_unix_ms = state.listed_unix_ms;
                if snapshots == state.names.snapshots {
                    return None;
                }
                let new = Arc::new(Names::new(snapshots));
                Some((std::mem::replace(&mut state.names, new.clone()), new))
            }
            Err(error) => {
                if !std::mem::replace(&mut state.failing, true) {
                    tracing::warn!("listing the snapshots: {error}: the last listing stands");
                }
                None
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().expect("no panic while held")
    }
}
