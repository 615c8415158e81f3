//! Keys, sessions and sealing.
//!
//! From one 32-byte master key come all others, by BLAKE3 `derive_key` with one context string a purpose
//! (`docs/format.md`, "Keys"). Content is sealed to the kloset's X25519 public key: each session makes one HPKE
//! encapsulation (RFC 9180, PSK mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, export-only) whose 32-byte `enc` is the
//! session's name and whose exported secret is its sealing key. Sealing is XChaCha20-Poly1305 with a random 24-byte
//! nonce. There are no options. This file does not know what is sealed.

use std::collections::HashMap;
use std::sync::Mutex;

use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, PskBundle, Serializable};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::aead;
use super::id::{ChunkId, KlosetId, SessionId};
use crate::env::{Entropy, EntropyRng};
use crate::store::CacheKey;

type Kem = hpke::kem::X25519HkdfSha256;
type Kdf = hpke::kdf::HkdfSha256;
type ExportOnly = hpke::aead::ExportOnlyAead;

/// Bytes of an XChaCha20-Poly1305 nonce.
pub const NONCE_BYTES: usize = 24;
/// Bytes of a Poly1305 tag.
pub const TAG_BYTES: usize = 16;
/// What sealing adds to a content.
pub const SEAL_BYTES: usize = NONCE_BYTES + TAG_BYTES;

const CHUNK_ID_CONTEXT: &str = "kloset-mount v1 chunk id key";
const TREE_ID_CONTEXT: &str = "kloset-mount v1 tree id key";
const INDEX_CONTEXT: &str = "kloset-mount v1 index key";
const HEADER_CONTEXT: &str = "kloset-mount v1 header mac key";
/// Not of the format: what it authenticates never leaves the machine.
const CACHE_CONTEXT: &str = "kloset-mount v1 local cache key";
/// Nor is this.
const JOURNAL_CONTEXT: &str = "kloset-mount v1 local journal key";
/// Derived from the private key: who can only write must not be able to say where chunks went.
const MOVED_CONTEXT: &str = "kloset-mount v1 moved chunks key";
const PSK_CONTEXT: &str = "kloset-mount v1 session psk";
const CHUNKER_CONTEXT: &str = "kloset-mount v1 chunker seed";
const PRIVATE_CONTEXT: &str = "kloset-mount v1 x25519 private key";
const PSK_ID: &[u8] = b"kloset-mount v1";
const SESSION_INFO: &[u8] = b"kloset-mount v1 session";
const SESSION_EXPORT: &[u8] = b"kloset-mount v1 sealing key";
const AAD_PREFIX: &[u8] = b"kloset-mount v1 ";

/// Why something sealed could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The bytes are shorter than a nonce and a tag.
    #[error("sealed length {0} is under {SEAL_BYTES}")]
    TooShort(usize),
    /// The tag does not fit: other key, other place, or damaged bytes.
    #[error("the authentication tag does not fit")]
    Tag,
    /// The session's name is not an X25519 public key that can be used.
    #[error("the session's name is not a usable public key")]
    Session,
    /// The key slot holds no right to read.
    #[error("this key can only write: it cannot open what the kloset holds")]
    WriteOnly,
}

/// 32 secret bytes, wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret(pub(crate) [u8; 32]);

impl Secret {
    /// Returns a new random secret.
    #[must_use]
    pub fn random(entropy: &Entropy) -> Self {
        Self(entropy.bytes())
    }

    /// Returns the bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    fn derive(&self, context: &str) -> Self {
        Self(blake3::derive_key(context, &self.0))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What a writer needs: to name chunks, to find duplicates, to cut, and to seal to the kloset.
#[derive(Clone, Debug)]
pub struct WriteKeys {
    /// Key of the keyed BLAKE3 that names chunks of content; its derivative names trees.
    pub chunk_id: Secret,
    /// Seals index runs and pending lists; its derivatives authenticate the header and those who begin a session.
    pub index: Secret,
    /// Seed of the chunker's gear table.
    pub chunker_seed: u64,
    /// The kloset's X25519 public key. Known only to who holds a slot.
    pub public: [u8; 32],
}

/// All keys of a kloset that the holder has.
#[derive(Debug)]
pub struct Keys {
    kloset: KlosetId,
    write: WriteKeys,
    tree_id: Secret,
    private: Option<Secret>,
    sessions: Mutex<HashMap<SessionId, SealingKey>>,
}

impl Keys {
    /// Derives every key from the master key.
    ///
    /// # Panics
    /// Never: any 32 bytes are an X25519 private key.
    #[must_use]
    pub fn from_master(kloset: KlosetId, master: &Secret) -> Self {
        let private = master.derive(PRIVATE_CONTEXT);
        let public = Kem::sk_to_pk(&private_key(&private)).to_bytes();
        let seed = master.derive(CHUNKER_CONTEXT);
        let write = WriteKeys {
            chunk_id: master.derive(CHUNK_ID_CONTEXT),
            index: master.derive(INDEX_CONTEXT),
            chunker_seed: u64::from_le_bytes(*seed.0.first_chunk().expect("32 bytes hold 8")),
            public: public.into(),
        };
        Self { private: Some(private), ..Self::write_only(kloset, write) }
    }

    /// Returns the keys of a write-only slot.
    #[must_use]
    pub fn write_only(kloset: KlosetId, write: WriteKeys) -> Self {
        let tree_id = write.chunk_id.derive(TREE_ID_CONTEXT);
        Self { kloset, write, tree_id, private: None, sessions: Mutex::default() }
    }

    /// Returns the kloset these keys belong to.
    #[must_use]
    pub fn kloset(&self) -> KlosetId {
        self.kloset
    }

    /// Returns the keys a write-only slot wraps.
    #[must_use]
    pub fn write_keys(&self) -> &WriteKeys {
        &self.write
    }

    /// Tells whether content can be opened with these keys.
    #[must_use]
    pub fn can_read(&self) -> bool {
        self.private.is_some()
    }

    /// Names a chunk of file content.
    #[must_use]
    pub fn chunk_id(&self, content: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.write.chunk_id.0, content).as_bytes())
    }

    /// Names a tree or a content page: by a key of its own, so that no content has a tree's name.
    #[must_use]
    pub fn tree_id(&self, encoded: &[u8]) -> ChunkId {
        ChunkId(*blake3::keyed_hash(&self.tree_id.0, encoded).as_bytes())
    }

    /// Returns the key that seals index runs and pending lists.
    #[must_use]
    pub fn index_key(&self) -> SealingKey {
        SealingKey::new(&self.write.index)
    }

    /// Returns the key that seals where moved chunks went, and joined index runs: a write-only slot does not hold it.
    ///
    /// # Errors
    /// [`CryptoError::WriteOnly`] without the right to read.
    pub fn moved_key(&self) -> Result<SealingKey, CryptoError> {
        let private = self.private.as_ref().ok_or(CryptoError::WriteOnly)?;
        Ok(SealingKey::new(&private.derive(MOVED_CONTEXT)))
    }

    /// Authenticates `text`, the header's bound fields.
    #[must_use]
    pub fn header_mac(&self, text: &[u8]) -> [u8; 32] {
        *blake3::keyed_hash(&self.write.index.derive(HEADER_CONTEXT).0, text).as_bytes()
    }

    /// Returns the key that entries of a cache on this machine are believed by.
    #[must_use]
    pub fn cache_key(&self) -> CacheKey {
        CacheKey::new(self.write.index.derive(CACHE_CONTEXT).0)
    }

    /// Returns the key that the journals of backups on this machine are believed by.
    #[must_use]
    pub fn journal_key(&self) -> Secret {
        self.write.index.derive(JOURNAL_CONTEXT)
    }

    /// Begins a session: one encapsulation to the kloset's public key.
    ///
    /// # Panics
    /// If the public key is a point of small order, which no key derived from a master key is.
    #[must_use]
    pub fn new_session(&self, entropy: &Entropy) -> (SessionId, SealingKey) {
        let public = <Kem as hpke::Kem>::PublicKey::from_bytes(&self.write.public).expect("32 bytes are a public key");
        let (info, psk) = (self.session_info(), self.session_psk());
        let (enc, context) = hpke::setup_sender_with_rng::<ExportOnly, Kdf, Kem>(
            &OpModeS::Psk(psk_bundle(&psk)),
            &public,
            &info,
            &mut EntropyRng(entropy),
        )
        .expect("a derived public key is not of small order");
        let mut secret = Zeroizing::new([0; 32]);
        context.export(SESSION_EXPORT, &mut *secret).expect("32 bytes can be exported");
        (SessionId(enc.to_bytes().into()), SealingKey::new(&Secret(*secret)))
    }

    /// Returns the sealing key of a session: one curve operation the first time it is asked for.
    ///
    /// # Errors
    /// [`CryptoError::WriteOnly`] without the right to read, [`CryptoError::Session`] if the name is no public key.
    ///
    /// # Panics
    /// If a thread panicked while holding the table of sessions.
    pub fn session_key(&self, session: &SessionId) -> Result<SealingKey, CryptoError> {
        let private = self.private.as_ref().ok_or(CryptoError::WriteOnly)?;
        if let Some(key) = self.sessions.lock().expect("no panic while held").get(session) {
            return Ok(key.clone());
        }
        let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(&session.0).map_err(|_| CryptoError::Session)?;
        let (info, psk) = (self.session_info(), self.session_psk());
        let mode = OpModeR::Psk(psk_bundle(&psk));
        let context = hpke::setup_receiver::<ExportOnly, Kdf, Kem>(&mode, &private_key(private), &enc, &info)
            .map_err(|_| CryptoError::Session)?;
        let mut secret = Zeroizing::new([0; 32]);
        context.export(SESSION_EXPORT, &mut *secret).map_err(|_| CryptoError::Session)?;
        let key = SealingKey::new(&Secret(*secret));
        let mut sessions = self.sessions.lock().expect("no panic while held");
        if sessions.len() >= SESSIONS_MAX {
            sessions.clear();
        }
        sessions.insert(*session, key.clone());
        Ok(key)
    }

    fn session_info(&self) -> Vec<u8> {
        [SESSION_INFO, self.kloset.as_bytes()].concat()
    }

    /// Returns what shows that a session was begun by a holder of a slot: the public key alone forges nothing.
    fn session_psk(&self) -> Secret {
        self.write.index.derive(PSK_CONTEXT)
    }
}

/// The most session keys kept: more only costs a curve operation (about 100 µs) when one is asked for again.
const SESSIONS_MAX: usize = 4096;

fn psk_bundle(psk: &Secret) -> PskBundle<'_> {
    PskBundle::new(&psk.0, PSK_ID).expect("neither is empty")
}

fn private_key(secret: &Secret) -> <Kem as hpke::Kem>::PrivateKey {
    <Kem as hpke::Kem>::PrivateKey::from_bytes(&secret.0).expect("any 32 bytes are a private key")
}

/// A key for XChaCha20-Poly1305.
#[derive(Clone)]
pub struct SealingKey(Secret);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(…)")
    }
}

impl SealingKey {
    /// Returns the sealing key made of a secret.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self(secret.clone())
    }

    /// Seals in place: `buffer` is [`NONCE_BYTES`] of room and then the content; it becomes nonce, ciphertext, tag.
    ///
    /// # Panics
    /// If the buffer has no room for the nonce, or is over 256 GiB.
    pub fn seal(&self, nonce: [u8; NONCE_BYTES], aad: &[u8], buffer: &mut Vec<u8>) {
        let (head, content) = buffer.split_at_mut(NONCE_BYTES);
        head.copy_from_slice(&nonce);
        let tag = aead::seal(self.key(), &nonce.into(), aad, content);
        buffer.extend_from_slice(&tag);
    }

    /// Opens what [`SealingKey::seal`] made and returns the content.
    ///
    /// # Errors
    /// [`CryptoError::TooShort`] or [`CryptoError::Tag`].
    pub fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, CryptoError> {
        if sealed.len() < SEAL_BYTES {
            return Err(CryptoError::TooShort(sealed.len()));
        }
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_BYTES>().expect("checked above");
        let (content, tag) = rest.split_last_chunk::<TAG_BYTES>().expect("checked above");
        aead::open(self.key(), nonce.into(), aad, content, tag.into()).ok_or(CryptoError::Tag)
    }

    fn key(&self) -> &chacha20poly1305::Key {
        (&self.0.0).into()
    }
}

/// Returns the additional data that binds a sealed content to its kloset, its kind and, where known, its name.
// format.md, "Sealing"
#[must_use]
pub fn aad(kloset: KlosetId, kind: &str, name: &[u8]) -> Vec<u8> {
    [AAD_PREFIX, kind.as_bytes(), b"\0", kloset.as_bytes(), name].concat()
}

/// Returns `fields` as lines `name=value`, the text that a MAC or a slot's seal binds.
// format.md, "Bound text"
#[must_use]
pub fn bound_text(what: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("kloset-mount v1 {what}\n");
    for (name, value) in fields {
        text.push_str(&format!("{name}={value}\n"));
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]))
    }

    #[test]
    fn a_reader_derives_the_session_key_from_the_name_alone() {
        let (id, key) = keys().new_session(&Entropy::seeded(1));
        let mut buffer = [&[0; NONCE_BYTES][..], b"content"].concat();
        key.seal([9; NONCE_BYTES], b"aad", &mut buffer);
        assert_eq!(buffer.len(), 7 + SEAL_BYTES);
        assert_eq!(keys().session_key(&id).unwrap().open(b"aad", &buffer).unwrap(), b"content");
        let writer = Keys::write_only(KlosetId([1; 32]), keys().write_keys().clone());
        assert_eq!(writer.session_key(&id).unwrap_err(), CryptoError::WriteOnly);
        assert_eq!(writer.chunk_id(b"x"), keys().chunk_id(b"x"));
        let elsewhere = Keys::from_master(KlosetId([3; 32]), &Secret([2; 32]));
        assert_eq!(elsewhere.session_key(&id).unwrap().open(b"aad", &buffer).unwrap_err(), CryptoError::Tag);
    }

    #[test]
    fn the_public_key_alone_begins_no_session_that_opens() {
        let stolen = WriteKeys { index: Secret([9; 32]), ..keys().write_keys().clone() };
        let (id, key) = Keys::write_only(KlosetId([1; 32]), stolen).new_session(&Entropy::seeded(1));
        let mut buffer = [&[0; NONCE_BYTES][..], b"content"].concat();
        key.seal([9; NONCE_BYTES], b"aad", &mut buffer);
        assert_eq!(keys().session_key(&id).unwrap().open(b"aad", &buffer).unwrap_err(), CryptoError::Tag);
    }

    #[test]
    fn content_and_trees_of_the_same_bytes_have_different_names() {
        let writer = Keys::write_only(KlosetId([1; 32]), keys().write_keys().clone());
        assert_ne!(keys().chunk_id(b"x"), keys().tree_id(b"x"));
        assert_eq!(writer.tree_id(b"x"), keys().tree_id(b"x"));
    }

    #[test]
    fn any_change_is_noticed() {
        let key = keys().index_key();
        let mut sealed = [&[0; NONCE_BYTES][..], b"content"].concat();
        key.seal([9; NONCE_BYTES], b"aad", &mut sealed);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert_eq!(key.open(b"aad", &bad).unwrap_err(), CryptoError::Tag);
        }
        assert_eq!(key.open(b"aae", &sealed).unwrap_err(), CryptoError::Tag);
        assert_eq!(key.open(b"aad", &sealed[..39]).unwrap_err(), CryptoError::TooShort(39));
    }

    #[test]
    fn a_session_of_small_order_is_refused() {
        assert_eq!(keys().session_key(&SessionId([0; 32])).unwrap_err(), CryptoError::Session);
    }
}
