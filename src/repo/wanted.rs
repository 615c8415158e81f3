//! Which snapshots are meant: all of them, or those of some hosts, tags and paths.

use futures::StreamExt;

use super::layout::SnapshotName;
use super::snapshot::Manifest;
use super::tree::TreeRef;
use super::{Repo, RepoError};

/// Manifests fetched at once where all snapshots are looked at.
const FETCHES: usize = 64;

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

    /// Tells whether a snapshot is wanted.
    #[must_use]
    pub fn fits(&self, manifest: &Manifest) -> bool {
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

/// A snapshot and where its tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rooted {
    /// Its name.
    pub name: SnapshotName,
    /// Its root.
    pub root: TreeRef,
}

/// Snapshots that were looked up, oldest first.
#[derive(Debug, Default)]
pub struct Chosen {
    /// Those that are wanted.
    pub snapshots: Vec<Rooted>,
    /// Those whose manifest cannot be read: nobody's.
    pub damaged: Vec<(SnapshotName, RepoError)>,
}

/// Opens the manifests of `names`, many at once, and keeps of those that are wanted where their tree begins.
///
/// # Errors
/// [`RepoError::Store`], [`RepoError::WriteOnly`].
///
/// # Panics
/// Carries on the panic of a task.
pub async fn choose(repo: &Repo, names: &[SnapshotName], wanted: &Wanted) -> Result<Chosen, RepoError> {
    let fetches = names.iter().map(|name| {
        let (repo, name) = (repo.clone(), *name);
        let fetch = tokio::spawn(async move { repo.manifest(name).await });
        async move { (name, fetch.await.expect("the task neither panics nor is called off")) }
    });
    let mut fetched = futures::stream::iter(fetches).buffered(FETCHES);
    let mut chosen = Chosen::default();
    while let Some((name, manifest)) = fetched.next().await {
        match manifest {
            Ok(manifest) if wanted.fits(&manifest) => {
                chosen.snapshots.push(Rooted { name, root: manifest.root.into() });
            }
            // Forgotten since it was listed.
            Ok(_) | Err(RepoError::NoSnapshot(_)) => {}
            Err(error @ RepoError::Damaged { .. }) => chosen.damaged.push((name, error)),
            Err(error) => return Err(error),
        }
    }
    Ok(chosen)
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
