//! Sealed objects: compress and seal, open and unpack.
//!
//! One pair of functions serves frames, footers, index runs, manifests and pending lists, so that there is one place
//! where bytes from outside become trusted (`docs/format.md`, "Sealing").

use bytes::Bytes;

use super::compress::{self, CompressError};
use super::crypto::{CryptoError, NONCE_BYTES, SEAL_BYTES, SealingKey, TAG_BYTES};

/// What stands before a content that is sealed as it is: a nonce and the codec byte.
const HEAD_BYTES: usize = NONCE_BYTES + 1;
/// Zeros: the codec byte among them.
const HEAD: [u8; HEAD_BYTES] = [compress::RAW; HEAD_BYTES];

/// Content that is to be sealed, with room before it for what sealing puts there: what does not shrink is sealed where it
/// lies.
#[derive(Default)]
pub struct Plain(Vec<u8>);

impl Plain {
    /// Returns nothing yet, with room for a content of `bytes` and its seal.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Vec::with_capacity(HEAD_BYTES + bytes + TAG_BYTES);
        buffer.extend_from_slice(&HEAD);
        Self(buffer)
    }

    /// Appends to the content.
    pub fn push(&mut self, content: &[u8]) {
        if self.0.is_empty() {
            self.0.extend_from_slice(&HEAD);
        }
        self.0.extend_from_slice(content);
    }

    /// Returns the content.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        self.0.get(HEAD_BYTES..).unwrap_or_default()
    }
}

impl From<&[u8]> for Plain {
    fn from(content: &[u8]) -> Self {
        let mut plain = Self::with_capacity(content.len());
        plain.push(content);
        plain
    }
}

/// Why a sealed content cannot be opened: it is damaged, misplaced, or not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedError {
    /// The seal does not hold.
    #[error(transparent)]
    Crypto(#[from] CryptoError),
    /// The seal holds, the content does not unpack.
    #[error(transparent)]
    Compress(#[from] CompressError),
}

/// Compresses and seals `raw`.
#[must_use]
pub fn seal(key: &SealingKey, nonce: [u8; NONCE_BYTES], aad: &[u8], level: i32, raw: &[u8]) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(SEAL_BYTES + compress::packed_bytes_max(raw.len()));
    buffer.resize(NONCE_BYTES, 0);
    compress::pack(level, raw, &mut buffer);
    key.seal(nonce, aad, &mut buffer);
    buffer
}

/// Compresses and seals `plain`, as [`seal`] does, without copying what does not shrink.
#[must_use]
pub fn seal_plain(key: &SealingKey, nonce: [u8; NONCE_BYTES], aad: &[u8], level: i32, mut plain: Plain) -> Vec<u8> {
    plain.push(&[]); // the room, where there is none yet
    let mut buffer = vec![0; NONCE_BYTES];
    if !compress::shrink(level, plain.content(), &mut buffer) {
        buffer = plain.0;
    }
    key.seal(nonce, aad, &mut buffer);
    buffer
}

/// Opens and unpacks what [`seal`] made, if it unpacks to at most `raw_bytes_max`.
///
/// # Errors
/// [`SealedError`].
pub fn open(key: &SealingKey, aad: &[u8], sealed: &[u8], raw_bytes_max: usize) -> Result<Bytes, SealedError> {
    let packed = key.open(aad, sealed)?;
    if packed.first() == Some(&compress::RAW) && packed.len() <= raw_bytes_max.saturating_add(1) {
        return Ok(Bytes::from(packed).slice(1..));
    }
    Ok(compress::unpack(&packed, raw_bytes_max)?.into())
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::*;
    use crate::env::Entropy;

    #[test]
    fn what_is_sealed_opens_only_with_its_aad_and_bound() {
        let key = SealingKey::new(&Secret([1; 32]));
        let mut noise = vec![0; 100_000];
        Entropy::seeded(3).fill(&mut noise);
        for raw in [&b""[..], b"short", &[7; 100_000], &noise] {
            let sealed = seal(&key, [2; NONCE_BYTES], b"place", 3, raw);
            assert_eq!(seal_plain(&key, [2; NONCE_BYTES], b"place", 3, raw.into()), sealed);
            assert_eq!(open(&key, b"place", &sealed, raw.len()).unwrap(), raw);
            assert_eq!(open(&key, b"elsewhere", &sealed, raw.len()), Err(CryptoError::Tag.into()));
            if !raw.is_empty() {
                assert!(matches!(open(&key, b"place", &sealed, raw.len() - 1), Err(SealedError::Compress(_))));
            }
        }
        assert_eq!(
            seal_plain(&key, [2; NONCE_BYTES], b"", 3, Plain::default()),
            seal(&key, [2; NONCE_BYTES], b"", 3, b"")
        );
    }
}
