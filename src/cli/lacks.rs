//! What a snapshot lacks, told: the paths that could not be read when it was made, and why.
//!
//! A manifest names the first 10,000; the rest it counts. For people a hundred are enough, JSON has them all. What
//! vanished or changed meanwhile is in the same list and says so.

use serde_json::{Value, json};

use super::names::safe;
use super::output::Output;
use crate::repo::snapshot::{Manifest, SourceError};

/// Lines for people.
const LINES_MAX: usize = 100;

/// Tells people what an incomplete snapshot lacks at or below a path, `b""` for all of it.
pub(super) fn tell(manifest: &Manifest, base: &[u8], out: &mut Output) {
    let errors = below(manifest, base);
    if !manifest.incomplete || errors.is_empty() {
        return;
    }
    let short = manifest.id.short();
    for error in errors.iter().take(LINES_MAX) {
        out.warn(format_args!("snapshot {short} lacks \"{}\": {}", safe(&error.path.0), error.message));
    }
    let unnamed = manifest.errors_total.saturating_sub(manifest.errors.len() as u64);
    let more = errors.len().saturating_sub(LINES_MAX) as u64 + unnamed;
    if more > 0 {
        out.warn(format_args!("snapshot {short}: {more} more; --json names up to 10,000"));
    }
}

/// Returns what was noted at or below a path, `b""` for all of it, as JSON.
pub(super) fn list(manifest: &Manifest, base: &[u8]) -> Value {
    let entry = |error: &&SourceError| json!({"item": error.path, "message": error.message});
    below(manifest, base).iter().map(entry).collect()
}

fn below<'a>(manifest: &'a Manifest, base: &[u8]) -> Vec<&'a SourceError> {
    let is_below = |path: &[u8]| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
    manifest.errors.iter().filter(|error| is_below(&error.path.0)).collect()
}
