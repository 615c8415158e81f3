//! Pending lists: packs that no snapshot needed when a prune looked, awaiting deletion.
//!
//! A writer treats what lies in such a pack as absent (`docs/format.md`, "Pending list").

use serde::{Deserialize, Serialize};

use super::crypto::{self, NONCE_BYTES, SealingKey};
use super::id::{KlosetId, PackId, PendingId, SessionId};
use super::layout;
use super::sealed::{self, SealedError};

/// The first bytes of a pending list.
pub const MAGIC: &[u8; 8] = b"KLOSET1D";
/// No list is longer, raw or sealed.
pub const PENDING_BYTES_MAX: usize = 64 << 20;

/// Why a pending list cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PendingError {
    /// Its first bytes are not a pending list's.
    #[error("it does not begin as a pending list")]
    Magic,
    /// It does not open.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// It opens but is not a list.
    #[error("it is malformed: {0}")]
    Format(String),
}

/// A pending list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingList {
    /// 1.
    pub version: u32,
    /// When it was made, RFC 3339, UTC: for people; the grace period counts from the store's own time.
    pub created: String,
    /// Session and number of each pack, sorted.
    pub packs: Vec<(SessionId, u32)>,
}

impl PendingList {
    /// Returns the packs.
    pub fn packs(&self) -> impl Iterator<Item = PackId> {
        self.packs.iter().map(|&(session, number)| PackId { session, number })
    }

    /// Seals the list.
    ///
    /// # Panics
    /// Never: a list is plain data.
    #[must_use]
    pub fn seal(&self, key: &SealingKey, kloset: KlosetId, id: PendingId, nonce: [u8; NONCE_BYTES]) -> Vec<u8> {
        let raw = serde_json::to_vec(self).expect("plain data");
        [&MAGIC[..], &sealed::seal(key, nonce, &aad(kloset, id), 3, &raw)].concat()
    }

    /// Opens a list.
    ///
    /// # Errors
    /// [`PendingError`].
    pub fn open(key: &SealingKey, kloset: KlosetId, id: PendingId, object: &[u8]) -> Result<Self, PendingError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let sealed = object.strip_prefix(MAGIC).ok_or(PendingError::Magic)?;
        let raw = sealed::open(key, &aad(kloset, id), sealed, PENDING_BYTES_MAX)?;
        let format = |e: serde_json::Error| PendingError::Format(e.to_string());
        let Versioned { version } = serde_json::from_slice(&raw).map_err(format)?;
        if version != 1 {
            return Err(PendingError::Format(format!("version {version} is not known to this program")));
        }
        serde_json::from_slice(&raw).map_err(format)
    }
}

fn aad(kloset: KlosetId, id: PendingId) -> Vec<u8> {
    crypto::aad(kloset, "pending list", layout::pending_name(id).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::*;

    #[test]
    fn a_list_opens_under_its_own_name_only() {
        let key = SealingKey::new(&Secret([1; 32]));
        let packs = vec![(SessionId([1; 32]), 2), (SessionId([1; 32]), 3)];
        let list = PendingList { version: 1, created: "2026-11-22T13:58:00Z".into(), packs };
        let (kloset, id) = (KlosetId([1; 32]), PendingId([2; 16]));
        let object = list.seal(&key, kloset, id, [0; NONCE_BYTES]);
        assert_eq!(PendingList::open(&key, kloset, id, &object).unwrap(), list);
        assert!(PendingList::open(&key, kloset, PendingId([3; 16]), &object).is_err());
        assert_eq!(PendingList::open(&key, kloset, id, b"x"), Err(PendingError::Magic));
    }
}
