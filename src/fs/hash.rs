//! Numbers from hashes: of inodes, of places in listings, of a list of snapshots.

/// Returns the first 8 bytes of a hash as a number.
pub(super) fn number(hash: &blake3::Hash) -> u64 {
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes hold 8"))
}
