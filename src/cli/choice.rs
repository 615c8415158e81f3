//! Which snapshots a command is about: those that are named, or those of a host, tags and paths, as a mount chooses them.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::exit::CliError;
use crate::fs::filter::Filter;
use crate::repo::layout::SnapshotName;
use crate::repo::wanted::Wanted;
use crate::repo::{Repo, RepoError};

/// Options that choose.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChoiceArgs {
    /// Takes snapshots of this host only; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Takes snapshots with this tag only; repeated, with all of them.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Takes snapshots of this source path only, or of what is above or below it; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
}

impl ChoiceArgs {
    /// Returns what is chosen.
    pub(super) fn wanted(&self) -> Wanted {
        let paths = self.path.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        Wanted { hosts: self.host.clone(), tags: self.tag.clone(), paths }
    }

    /// Tells whether nothing is left out.
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses names beside options that choose.
    pub(crate) fn beside(&self, specs: &[String]) -> Result<(), CliError> {
        match specs.is_empty() || self.is_all() {
            true => Ok(()),
            false => Err(CliError::usage("name snapshots, or choose them by --host, --tag and --path: not both")),
        }
    }

    /// Finds the snapshots that are named, else those that are chosen; oldest first.
    pub(crate) async fn find(&self, repo: &Repo, specs: &[String]) -> Result<Vec<SnapshotName>, RepoError> {
        if specs.is_empty() {
            return Filter::new(self.wanted()).snapshots(repo).await;
        }
        let mut names = Vec::new();
        for spec in specs {
            names.push(repo.resolve(spec).await?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}
