//! The bound: how much a cache takes, and what goes when that is too much.
//!
//! The length of the file `ledger` is the size of the cache in units of 4 KiB. Who writes an entry first appends as many
//! bytes to it, so that all processes see what any of them wrote, without a lock and without looking at the entries. Who
//! finds it over the bound measures, deletes what was used longest ago and puts a new ledger in its place. A crash leaves
//! the ledger too long, never too short, and the next sweep corrects it. All calls block; with 100,000 entries a sweep
//! takes some tenths of a second.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::entry;
use super::folder::{self, NEW, PARTS, WHOLE};

/// What a byte of the ledger stands for: the block of common filesystems.
const UNIT_BYTES: u64 = 4096;
/// A sweep goes down to this part of the bound, in eighths, so that the next one is far.
const LEFT_EIGHTHS: u64 = 7;
/// Whole objects (trees, manifests) go before pieces only if they take more than this part of it, in quarters.
const WHOLE_QUARTERS: u64 = 3;
/// A file under construction that is older was left behind by a crash.
const NEW_SECONDS_MAX: i64 = 3600;

/// A file of the cache.
struct Found {
    used: (i64, i64),
    bytes: u64,
    folder: usize,
    name: OsString,
}

/// Notes that `bytes` are about to be written, making room for them; tells whether they may be.
pub(super) fn make_room(top: &Path, bytes: u64, bytes_max: u64) -> io::Result<bool> {
    let units = bytes.div_ceil(UNIT_BYTES);
    if units * UNIT_BYTES > bytes_max / 8 * LEFT_EIGHTHS {
        return Ok(false);
    }
    if let Some(length) = append(top, units)?
        && length.saturating_mul(UNIT_BYTES) <= bytes_max
    {
        return Ok(true);
    }
    // Somebody else may sweep at the same time: both delete the same files, and each ledger is right.
    let left = sweep(top, bytes_max / 8 * LEFT_EIGHTHS - units * UNIT_BYTES)?;
    append(top, units)?;
    Ok(left + units * UNIT_BYTES <= bytes_max)
}

/// Appends to the ledger and returns its length, or `None` where there is no ledger.
fn append(top: &Path, units: u64) -> io::Result<Option<u64>> {
    let mut ledger = match OpenOptions::new().append(true).open(top.join("ledger")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        ledger => ledger?,
    };
    ledger.write_all(&vec![0; usize::try_from(units).unwrap_or(0)])?;
    Ok(Some(ledger.metadata()?.len()))
}

fn ledger_length(top: &Path) -> u64 {
    std::fs::metadata(top.join("ledger")).map_or(0, |meta| meta.len())
}

/// Deletes what was used longest ago until the cache takes at most `bytes_max`; returns what it takes.
pub(super) fn sweep(top: &Path, bytes_max: u64) -> io::Result<u64> {
    let before = ledger_length(top);
    let new = top.join(format!("ledger-{}-{:?}", std::process::id(), std::thread::current().id()));
    let _ = std::fs::remove_file(&new);
    let ledger = folder::create(&new)?;
    let swept = || {
        let now = ledger.metadata()?.mtime();
        let spaces = spaces(top)?;
        for space in &spaces {
            remove_abandoned(&space.join(NEW), now);
        }
        let whole = evict(&spaces, WHOLE, bytes_max / 4 * WHOLE_QUARTERS);
        let left = whole + evict(&spaces, PARTS, bytes_max.saturating_sub(whole));
        // What others wrote meanwhile may or may not have been measured.
        let meanwhile = ledger_length(top).saturating_sub(before);
        ledger.set_len(left.div_ceil(UNIT_BYTES) + meanwhile)?;
        std::fs::rename(&new, top.join("ledger"))?;
        tracing::debug!("the cache in {top:?} takes {left} bytes after a sweep");
        Ok(left)
    };
    swept().inspect_err(|_| {
        let _ = std::fs::remove_file(&new);
    })
}

/// Returns the folders of all klosets.
fn spaces(top: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(top)?.flatten();
    Ok(entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect())
}

fn remove_abandoned(folder: &Path, now: i64) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().as_encoded_bytes().iter().all(|b| b.is_ascii_digit() || *b == b'-');
        if ours && entry.metadata().is_ok_and(|meta| meta.is_file() && now - meta.mtime() > NEW_SECONDS_MAX) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Deletes what was used longest ago in one folder of all klosets; returns how much is left.
fn evict(spaces: &[PathBuf], below: &str, bytes_max: u64) -> u64 {
    let folders: Vec<PathBuf> = spaces.iter().map(|space| space.join(below)).collect();
    let mut found: Vec<Found> = folders.iter().enumerate().flat_map(|(n, folder)| list(n, folder)).collect();
    let mut left: u64 = found.iter().map(|file| file.bytes).sum();
    if left <= bytes_max {
        return left;
    }
    found.sort_unstable_by_key(|file| file.used);
    for file in found {
        if left <= bytes_max {
            break;
        }
        match std::fs::remove_file(folders[file.folder].join(&file.name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {}
            _ => left -= file.bytes,
        }
    }
    left
}

fn list(number: usize, folder: &Path) -> Vec<Found> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let ours = entries.flatten().filter(|entry| entry::is_file_name(entry.file_name().as_encoded_bytes()));
    let found = ours.filter_map(|entry| {
        let meta = entry.metadata().ok().filter(std::fs::Metadata::is_file)?;
        let bytes = meta.len().div_ceil(UNIT_BYTES) * UNIT_BYTES;
        Some(Found { used: (meta.mtime(), meta.mtime_nsec()), bytes, folder: number, name: entry.file_name() })
    });
    found.collect()
}
