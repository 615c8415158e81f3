//! Which snapshots a mount shows: all of them, or those of some hosts, tags and paths.
//!
//! Whose a snapshot is stands in its manifest, so each is opened, once: a snapshot never changes. One whose manifest is
//! damaged is nobody's. Without a choice nothing is opened.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::repo::layout::SnapshotName;
use crate::repo::snapshot::Manifest;
use crate::repo::{Repo, RepoError};

/// What a snapshot has to be of; an empty list is no condition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// One of these hosts.
    pub hosts: Vec<String>,
    /// All of these tags.
    pub tags: Vec<String>,
    /// One of these paths, or of a folder above or below it.
    pub paths: Vec<Vec<u8>>,
}

impl Wanted {
    /// Tells whether every snapshot is wanted.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }

    fn fits(&self, manifest: &Manifest) -> bool {
        let of = |path: &[u8]| manifest.paths.iter().any(|source| is_in(path, &source.0) || is_in(&source.0, path));
        (self.hosts.is_empty() || self.hosts.contains(&manifest.host))
            && self.tags.iter().all(|tag| manifest.tags.contains(tag))
            && (self.paths.is_empty() || self.paths.iter().any(|path| of(path)))
    }
}

/// Tells whether a path is a folder or something in it; slashes at the end do not count.
fn is_in(path: &[u8], folder: &[u8]) -> bool {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_in_a_folder_by_whole_names() {
        for (path, folder, expected) in [
            ("/etc", "/etc", true),
            ("/etc/x", "/etc", true),
            ("/etc/x", "/etc/", true),
            ("/etcetera", "/etc", false),
            ("/", "/etc", false),
            ("/etc", "/", true),
        ] {
            assert_eq!(is_in(path.as_bytes(), folder.as_bytes()), expected, "{path} in {folder}");
        }
    }
}
