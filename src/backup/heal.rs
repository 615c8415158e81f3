//! What a kloset has lost, from files and folders that still hold it.
//!
//! It is a backup that makes no snapshot and stores what was lost alone: files are walked, read and cut as always. Content
//! is found wherever it lies. Folders come out as they were, and heal their trees, where they are in their old place and
//! nothing in them was changed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::parent::Parent;
use super::resume::Journal;
use super::targets::Targets;
use super::{BackupError, BackupOptions, Surroundings, Taker, read_context, select, take_folders};
use crate::monitor::Monitor;
use crate::repo::Repo;
use crate::repo::check::Lost;
use crate::repo::id::ChunkId;
use crate::repo::writer::Writer;

/// Stores what was lost and is found in files and folders; returns which of it. Blocks, as [`super::backup`] does.
///
/// # Errors
/// [`BackupError`]; what cannot be read is told to the monitor and is none.
pub fn heal(
    repo: &Repo,
    runtime: &Handle,
    (paths, skip): (&[PathBuf], Option<PathBuf>),
    lost: &Lost,
    monitor: &Arc<Monitor>,
) -> Result<HashSet<ChunkId>, BackupError> {
    let options = BackupOptions { paths: paths.to_vec(), skip, force: true, ..BackupOptions::default() };
    let targets = Targets::new(&options.paths, &[], &[])?;
    let mut writer = Writer::healing(repo, runtime.clone(), lost)?;
    let mut journal = Journal::new(repo, &options, &[], repo.env.clock.unix_ms());
    let mut taker = Taker::new(&mut writer, &mut journal, None, monitor);
    let around = Surroundings {
        select: select(&options)?,
        parent: Parent { reader: None, runtime: runtime.clone(), standing: Arc::default() },
        root: None,
        finished: None,
        context: read_context(repo, monitor),
        time_ms: repo.env.clock.unix_ms(),
    };
    take_folders(repo, &options, &targets, around, &mut taker)?;
    let Taker { trees, .. } = taker;
    trees.finish(&mut writer)?;
    writer.flush()?;
    Ok(writer.healed())
}
