//! The list of what a snapshot lacks, as a text to read in the mount.
//!
//! One line a path and its reason, just as the manifest has them: what could not be read, and what vanished or changed
//! meanwhile. Each is one line whatever is in the name. It does not know where the text is shown.

use bytes::Bytes;

use crate::repo::snapshot::Manifest;

/// Ends the name of the list beside a snapshot's link.
pub(super) const ENDING: &str = ".txt";

/// Returns the list of a snapshot that lacks something; empty for one that is whole.
pub(super) fn list(manifest: &Manifest) -> Bytes {
    let mut text = Vec::new();
    if !manifest.incomplete {
        return text.into();
    }
    for error in &manifest.errors {
        for byte in &error.path.0 {
            match byte {
                b'\\' | 0x7f | 0..0x20 => text.extend(byte.escape_ascii()),
                byte => text.push(*byte),
            }
        }
        text.extend_from_slice(format!(": {}\n", error.message.escape_debug()).as_bytes());
    }
    let more = manifest.errors_total.saturating_sub(manifest.errors.len() as u64);
    if more > 0 {
        text.extend_from_slice(format!("{more} more, which the snapshot does not name\n").as_bytes());
    }
    text.into()
}
