//! Why a path is taken or left out, without a backup.
//!
//! Goes down to the path as the walk does and asks the same [`Select`] at each level; the first level that is left out
//! decides. It reads folders and their own files of rules, nothing else.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, OFlags, Stat};
use rustix::io::Errno;

use super::rules::Rule;
use super::scan::{self, Scan};
use super::select::{Ground, Inside, Select};
use super::targets::{Targets, absolute, components};
use super::{BackupError, BackupOptions, select};
use crate::monitor::Monitor;

/// What becomes of a path in a backup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The path, absolute.
    pub path: Vec<u8>,
    /// Whether it is taken.
    pub taken: bool,
    /// The path that decides: itself or a folder above it.
    pub decided_at: Vec<u8>,
    /// What decides; `None` if nothing speaks of it, so that it is taken.
    pub reason: Option<Reason>,
}

/// Why a path is taken or left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A rule fits.
    Rule(Rule),
    /// A file beside it says so; its name.
    Marker(Vec<u8>),
    /// It is larger than so many bytes.
    LargerThan(u64),
    /// It is in a folder on another file system.
    OtherFileSystem,
    /// It is in the kloset's own folder.
    Kloset,
    /// It is behind a link, which is taken as a link.
    BehindLink,
    /// It is below none of the paths of the backup.
    NotAsked,
}

/// Tells what becomes of `path` in a backup with these options. What cannot be understood of a folder's own rules is
/// told to `monitor`.
///
/// # Errors
/// [`BackupError`] for rules and paths that cannot be used, and for a path that is not there.
pub fn explain(options: &BackupOptions, path: &Path, monitor: &Monitor) -> Result<Explanation, BackupError> {
    let mut select = select(options)?;
    let asked = components(path)?;
    let targets = Targets::new(&options.paths, &options.listed, &[])?.paths;
    let explained = |decided_at: &[Vec<u8>], taken, reason| Explanation {
        path: absolute(&asked),
        taken,
        decided_at: absolute(decided_at),
        reason,
    };
    let Some(top) = targets.iter().filter(|target| asked.starts_with(target)).map(Vec::len).min() else {
        return Ok(explained(&asked, false, Some(Reason::NotAsked)));
    };
    let (mut device, mut inside) = (None, Inside::default());
    for depth in top..=asked.len() {
        let (at, is_end) = (&asked[..depth], depth == asked.len());
        let failed = |problem: Errno| BackupError::Source { path: shown(at), problem: problem.to_string() };
        let stat = rustix::fs::lstat(shown(at)).map_err(failed)?;
        // The top of everything has no entry that could be left out.
        let ground = if at.is_empty() { None } else { select.ground(&inside, &absolute(at), &stat) };
        let taken = !ground.is_some_and(|ground| ground.leaves_out());
        if is_end || !taken {
            return Ok(explained(at, taken, ground.map(Reason::from)));
        }
        if let Some(reason) = why_not_entered(&select, device, &stat) {
            return Ok(explained(at, false, Some(reason)));
        }
        let scan = Scan::list(scan::open(CWD, shown(at).as_os_str().as_bytes(), OFlags::NOFOLLOW).map_err(failed)?);
        let folder = if at.is_empty() { Vec::new() } else { absolute(at) };
        inside = select.enter(&scan.fd, &folder, &scan.names.map_err(failed)?, monitor);
        device = Some(stat.st_dev);
    }
    Ok(explained(&asked, true, None))
}

fn why_not_entered(select: &Select<'_>, device: Option<u64>, stat: &Stat) -> Option<Reason> {
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        Some(Reason::BehindLink)
    } else if select.fixed().is_foreign(device, stat) {
        Some(Reason::OtherFileSystem)
    } else {
        select.fixed().is_skipped(stat).then_some(Reason::Kloset)
    }
}

impl From<Ground<'_>> for Reason {
    fn from(ground: Ground<'_>) -> Self {
        match ground {
            Ground::Rule(ruling) => Self::Rule(ruling.rule.clone()),
            Ground::Marker(marker) => Self::Marker(marker.name.clone()),
            Ground::LargerThan(bytes) => Self::LargerThan(bytes),
        }
    }
}

fn shown(components: &[Vec<u8>]) -> PathBuf {
    PathBuf::from(OsString::from_vec(absolute(components)))
}
