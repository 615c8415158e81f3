//! Which snapshots a mount shows: all of them, or those of some hosts, tags and paths.
//!
//! Whose a snapshot is stands in its manifest, so each is opened, once: a snapshot never changes. One whose manifest is
//! damaged is nobody's. Without a choice nothing is opened.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::repo::layout::SnapshotName;
pub use crate::repo::wanted::Wanted;
use crate::repo::{Repo, RepoError};

/// The choice, and what it came to.
#[derive(Default)]
pub struct Filter {
    wanted: Wanted,
    judged: Mutex<HashMap<SnapshotName, bool>>,
}

impl Filter {
    /// Lets through what is wanted.
    #[must_use]
    pub fn new(wanted: Wanted) -> Self {
        Self { wanted, judged: Mutex::default() }
    }

    /// Lists the snapshots that are wanted.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    ///
    /// # Panics
    /// If a thread panicked while holding the table.
    pub async fn snapshots(&self, repo: &Repo) -> Result<Vec<SnapshotName>, RepoError> {
        let all = repo.snapshots().await?;
        if self.wanted.is_all() {
            return Ok(all);
        }
        let new: Vec<SnapshotName> = {
            let mut judged = self.judged.lock().expect("no panic while held");
            judged.retain(|name, _| all.binary_search(name).is_ok());
            all.iter().filter(|name| !judged.contains_key(name)).copied().collect()
        };
        for (name, manifest) in repo.manifests(&new).await {
            let is_wanted = match manifest {
                Ok(manifest) => self.wanted.fits(&manifest),
                // Forgotten since the listing, or damaged.
                Err(RepoError::NoSnapshot(_) | RepoError::Damaged { .. }) => false,
                Err(error) => return Err(error),
            };
            self.judged.lock().expect("no panic while held").insert(name, is_wanted);
        }
        let judged = self.judged.lock().expect("no panic while held");
        Ok(all.into_iter().filter(|name| judged.get(name) == Some(&true)).collect())
    }
}
