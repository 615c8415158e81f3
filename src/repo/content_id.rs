//! What tells the content of one file from that of another, without reading either.

use super::error::RepoError;
use super::reader::Reader;
use super::tree::FileContent;

/// Chunk lists of large files are gone through in steps of so many bytes of content.
const STEP_BYTES: u64 = 1 << 30;

/// Returns what stands for the content of a file: a hash over its length, its holes and the ids of its chunks.
///
/// # Errors
/// [`RepoError`].
pub async fn content_id(reader: &Reader, file: &FileContent) -> Result<blake3::Hash, RepoError> {
    let mut hash = blake3::Hasher::new();
    hash.update(b"kloset content").update(&file.bytes.to_le_bytes());
    for (offset, bytes) in &file.holes {
        hash.update(&offset.to_le_bytes()).update(&bytes.to_le_bytes());
    }
    let (data_bytes, mut from, mut behind) = (file.data_bytes(), 0, None);
    while from < data_bytes {
        let to = data_bytes.min(from + STEP_BYTES);
        for (offset, chunk) in reader.chunks_in(&file.data, from..to).await? {
            // A chunk across the end of a step comes in both.
            if behind.is_none_or(|behind| offset > behind) {
                hash.update(chunk.id.as_bytes());
                behind = Some(offset);
            }
        }
        from = to;
    }
    Ok(hash.finalize())
}
