//! Sealed objects: compress and seal, open and unpack.
//!
//! One pair of functions serves frames, footers, index runs, manifests and pending lists, so that there is one place
//! where bytes from outside become trusted (`docs/format.md`, "Sealing").

use bytes::Bytes;

use super::compress::{self, CompressError};
use super::crypto::{CryptoError, NONCE_BYTES, SEAL_BYTES, SealingKey};

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
    let mut buffer = Vec::with_capacity(SEAL_BYTES + 1 + raw.len());
    buffer.resize(NONCE_BYTES, 0);
    compress::pack(level, raw, &mut buffer);
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

    #[test]
    fn what_is_sealed_opens_only_with_its_aad_and_bound() {
        let key = SealingKey::new(&Secret([1; 32]));
        for raw in [&b""[..], b"short", &[7; 100_000]] {
            let sealed = seal(&key, [2; NONCE_BYTES], b"place", 3, raw);
            assert_eq!(open(&key, b"place", &sealed, raw.len()).unwrap(), raw);
            assert_eq!(open(&key, b"elsewhere", &sealed, raw.len()), Err(CryptoError::Tag.into()));
            if !raw.is_empty() {
                assert!(matches!(open(&key, b"place", &sealed, raw.len() - 1), Err(SealedError::Compress(_))));
            }
        }
    }
}
