//! One entry of the cache as bytes: what is kept, where the object ends if that is known, and a keyed digest.
//!
//! Promises that what [`open`] returns is what [`seal`] was given under the same key for the same slot: a flipped bit, a
//! cut, an entry in another's place and a forgery are all `None`. Pure. It does not know what the bytes mean.

use bytes::Bytes;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// What an entry has behind its content: where the object ends, and the digest.
pub(super) const TRAILER_BYTES: usize = 8 + 32;
/// Bytes of an object that one entry for a part of it holds: what a reader of packs asks for is a multiple of it.
pub(super) const PIECE_BYTES: u64 = 256 << 10;
/// Bytes of the digest that names an object's files.
const NAME_BYTES: usize = 16;
/// The end of an object where it is not known.
const UNKNOWN: u64 = u64::MAX;

/// The key that entries are believed by; wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// Takes over 32 secret bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for CacheKey {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("CacheKey(***)")
    }
}

/// What an entry holds of which object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// The object's name.
    pub(super) object: String,
    /// The number of the piece, or `None` for the whole object.
    pub(super) piece: Option<u32>,
}

/// An entry that is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// The bytes; none where the object ends before the piece begins.
    pub(super) content: Bytes,
    /// The length of the whole object, where it is known.
    pub(super) end: Option<u64>,
}

/// Returns the stem of the names of an object's files: only who has the key can tell which object it is.
pub(super) fn stem(key: &CacheKey, object: &str) -> String {
    let digest = blake3::Hasher::new_keyed(&key.0).update(b"name\0").update(object.as_bytes()).finalize();
    digest.as_bytes()[..NAME_BYTES].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the name of an entry's file.
pub(super) fn file_name(key: &CacheKey, slot: &Slot) -> String {
    let stem = stem(key, &slot.object);
    match slot.piece {
        Some(number) => format!("{stem}-{number:08x}"),
        None => stem,
    }
}

/// Tells whether a file of that name may be an entry, hence may be deleted.
pub(super) fn is_file_name(name: &[u8]) -> bool {
    let (stem, rest) = name.split_at(name.len().min(2 * NAME_BYTES));
    let hex = |part: &[u8]| part.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let suffix = rest.is_empty() || (rest.len() == 9 && rest.starts_with(b"-") && hex(&rest[1..]));
    stem.len() == 2 * NAME_BYTES && hex(stem) && suffix
}

/// Returns what stands behind the content in the file.
pub(super) fn seal(key: &CacheKey, slot: &Slot, entry: &Entry) -> [u8; TRAILER_BYTES] {
    let end = entry.end.unwrap_or(UNKNOWN);
    let mut trailer = [0; TRAILER_BYTES];
    trailer[..8].copy_from_slice(&end.to_le_bytes());
    trailer[8..].copy_from_slice(digest(key, slot, end, &entry.content).as_bytes());
    trailer
}

/// Returns what a file holds, if it is the entry for `slot`, whole and unchanged.
pub(super) fn open(key: &CacheKey, slot: &Slot, file: Vec<u8>) -> Option<Entry> {
    let file = Bytes::from(file);
    let content = file.slice(..file.len().checked_sub(TRAILER_BYTES)?);
    let (end, found) = file[content.len()..].split_first_chunk::<8>()?;
    let end = u64::from_le_bytes(*end);
    let expected = digest(key, slot, end, &content);
    // Compared in constant time.
    (expected == blake3::Hash::from_slice(found).ok()?).then(|| Entry { content, end: (end != UNKNOWN).then_some(end) })
}

fn digest(key: &CacheKey, slot: &Slot, end: u64, content: &[u8]) -> blake3::Hash {
    let piece = slot.piece.map_or(UNKNOWN, u64::from);
    blake3::Hasher::new_keyed(&key.0)
        .update(b"entry\0")
        .update(&(slot.object.len() as u64).to_le_bytes())
        .update(slot.object.as_bytes())
        .update(&piece.to_le_bytes())
        .update(&end.to_le_bytes())
        .update(content)
        .finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(object: &str, piece: Option<u32>) -> Slot {
        Slot { object: object.into(), piece }
    }

    #[test]
    fn an_entry_opens_in_its_own_slot_under_its_own_key_only() {
        let (key, at) = (CacheKey::new([1; 32]), slot("packs/a/1", Some(3)));
        for end in [None, Some(0), Some(77)] {
            let entry = Entry { content: Bytes::from_static(b"content"), end };
            let file = [&entry.content[..], &seal(&key, &at, &entry)].concat();
            assert_eq!(open(&key, &at, file.clone()), Some(entry));
            for other in [slot("packs/a/2", Some(3)), slot("packs/a/1", Some(4)), slot("packs/a/1", None)] {
                assert_eq!(open(&key, &other, file.clone()), None);
                assert_ne!(file_name(&key, &other), file_name(&key, &at));
            }
            assert_eq!(open(&CacheKey::new([2; 32]), &at, file.clone()), None);
            for n in 0..file.len() {
                let mut bad = file.clone();
                bad[n] ^= 1;
                assert_eq!(open(&key, &at, bad), None, "byte {n}");
                assert_eq!(open(&key, &at, file[..n].to_vec()), None, "cut at {n}");
            }
            assert_eq!(open(&key, &at, [&file[..], b"x"].concat()), None);
        }
    }

    #[test]
    fn only_names_of_entries_look_like_names_of_entries() {
        let key = CacheKey::new([1; 32]);
        for piece in [None, Some(0), Some(u32::MAX)] {
            assert!(is_file_name(file_name(&key, &slot("packs/a/1", piece)).as_bytes()));
        }
        for name in ["", "0", "thesis.tex", "CACHEDIR.TAG", &"0".repeat(31), &"0".repeat(33), &"G".repeat(32)] {
            assert!(!is_file_name(name.as_bytes()), "{name}");
        }
    }
}
