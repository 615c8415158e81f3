//! Key slots: the kloset's keys wrapped under one secret.
//!
//! A full slot wraps the master key; a write-only slot wraps only what a writer needs (`docs/format.md`, "Key slot").
//! A slot is opened by a passphrase (Argon2id) or by a raw key file. This file takes bytes and returns values; it does
//! not know where slots are stored.

use serde::{Deserialize, Serialize};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::crypto::{self, Keys, NONCE_BYTES, SEAL_BYTES, SealingKey, Secret, WriteKeys};
use super::id::{KlosetId, SlotId, from_hex, to_hex};
use super::layout;
use super::paper;
use crate::env::Env;

/// The largest key slot that is read.
pub const SLOT_BYTES_MAX: u64 = 64 * 1024;
/// The longest label, in bytes.
pub const LABEL_BYTES_MAX: usize = 200;
/// RFC 9106, section 4, second recommended option: 64 MiB, 3 passes, 4 lanes.
pub const ARGON2_RECOMMENDED: Argon2 = Argon2 { memory_kib: 65_536, passes: 3, lanes: 4 };
/// The dearest parameters that are followed when a slot asks for them: 4 GiB, 64 passes, 64 lanes.
const ARGON2_MAX: Argon2 = Argon2 { memory_kib: 4 << 20, passes: 64, lanes: 64 };

const SALT_BYTES: usize = 16;
const KEY_FILE_CONTEXT: &str = "kloset-mount v1 key file";

/// Why a key slot cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Not a key slot, or of a version that this program does not know.
    #[error("not a key slot: {0}")]
    Format(String),
    /// The secret does not open this slot.
    #[error("the secret does not open this key slot")]
    WrongSecret,
    /// The slot is opened by the other kind of secret.
    #[error("this key slot is not opened by a {0}")]
    OtherKind(&'static str),
}

/// What opens a slot.
#[derive(Clone, Debug)]
pub enum SlotSecret {
    /// A passphrase in any Unicode form; it is normalized (NFC) and stretched by Argon2id.
    Passphrase(Zeroizing<String>),
    /// The 32 bytes of a raw key file, used without stretching.
    KeyFile(Secret),
}

impl SlotSecret {
    /// Parses a key file: 64 hex digits, white space around them allowed, or what was printed of one ([`paper`]).
    ///
    /// # Errors
    /// [`SlotError::Format`] for anything else.
    pub fn parse_key_file(text: &str) -> Result<Self, SlotError> {
        if let Some(printed) = paper::parse(text) {
            return printed.map(|key| Self::KeyFile(Secret(*key))).map_err(SlotError::Format);
        }
        let mut bytes = Zeroizing::new([0; 32]);
        from_hex(text.trim(), &mut *bytes).ok_or_else(|| SlotError::Format("a key file is 64 hex digits".into()))?;
        Ok(Self::KeyFile(Secret(*bytes)))
    }

    /// Returns the text of a new random key file.
    #[must_use]
    pub fn new_key_file(env: &Env) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", to_hex(&Secret::random(&env.entropy).0)))
    }
}

/// What a slot's holder may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SlotKind {
    /// Everything.
    Full,
    /// Add backups and find duplicates, open nothing.
    WriteOnly,
}

impl SlotKind {
    /// Returns what it is called.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::WriteOnly => "write-only",
        }
    }

    /// Returns how long the wrapped keys are.
    fn content_bytes(self) -> usize {
        match self {
            Self::Full => 32,
            Self::WriteOnly => WRITE_ONLY_BYTES,
        }
    }
}

/// How the secret becomes the wrapping key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "kebab-case")]
pub enum Kdf {
    /// A passphrase by Argon2id.
    Argon2id {
        /// Its cost.
        #[serde(flatten)]
        cost: Argon2,
        /// 16 random bytes in hex.
        salt: String,
    },
    /// A key file, 32 random bytes.
    KeyFile,
}

/// The cost of Argon2id, version 0x13.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2 {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

/// A key slot as stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KeySlot {
    /// Version of the slot's form: 1.
    pub version: u32,
    /// The kloset it belongs to.
    pub kloset: KlosetId,
    /// Its own name.
    pub id: SlotId,
    /// What its holder may do.
    pub kind: SlotKind,
    /// For people: whose it is.
    pub label: String,
    /// When it was made, RFC 3339, UTC.
    pub created: String,
    /// How the wrapping key is made.
    pub kdf: Kdf,
    /// Nonce, ciphertext and tag in hex.
    pub sealed: String,
}

/// What a new slot is to be.
pub struct NewSlot<'a> {
    /// What opens it.
    pub secret: &'a SlotSecret,
    /// The cost of a passphrase.
    pub cost: Argon2,
    /// For people.
    pub label: &'a str,
}

impl KeySlot {
    /// Wraps the master key in a full slot.
    ///
    /// # Errors
    /// [`SlotError::Format`] for a label that is too long or has control characters.
    pub fn full(kloset: KlosetId, master: &Secret, new: &NewSlot<'_>, env: &Env) -> Result<Self, SlotError> {
        Self::wrap(kloset, SlotKind::Full, &master.0, new, env)
    }

    /// Wraps a writer's keys in a write-only slot.
    ///
    /// # Errors
    /// As [`KeySlot::full`].
    pub fn write_only(kloset: KlosetId, keys: &WriteKeys, new: &NewSlot<'_>, env: &Env) -> Result<Self, SlotError> {
        let mut content = Zeroizing::new(Vec::with_capacity(WRITE_ONLY_BYTES));
        content.extend_from_slice(&keys.chunk_id.0);
        content.extend_from_slice(&keys.index.0);
        content.extend_from_slice(&keys.chunker_seed.to_le_bytes());
        content.extend_from_slice(&keys.public);
        Self::wrap(kloset, SlotKind::WriteOnly, &content, new, env)
    }

    fn wrap(kloset: KlosetId, kind: SlotKind, content: &[u8], new: &NewSlot<'_>, env: &Env) -> Result<Self, SlotError> {
        if new.label.len() > LABEL_BYTES_MAX || new.label.chars().any(char::is_control) {
            return Err(SlotError::Format(format!(
                "a label has at most {LABEL_BYTES_MAX} bytes, none of them control"
            )));
        }
        let kdf = match new.secret {
            SlotSecret::Passphrase(_) => {
                Kdf::Argon2id { cost: new.cost, salt: to_hex(&env.entropy.bytes::<SALT_BYTES>()) }
            }
            SlotSecret::KeyFile(_) => Kdf::KeyFile,
        };
        let mut slot = Self {
            version: 1,
            kloset,
            id: SlotId(env.entropy.bytes()),
            kind,
            label: new.label.to_owned(),
            created: layout::timestamp(env.clock.unix_ms()).to_string(),
            kdf,
            sealed: String::new(),
        };
        let mut buffer = Vec::with_capacity(content.len() + SEAL_BYTES);
        buffer.extend_from_slice(&[0; NONCE_BYTES]);
        buffer.extend_from_slice(content);
        slot.wrapping_key(new.secret)?.seal(env.entropy.bytes(), &slot.bound(), &mut buffer);
        slot.sealed = to_hex(&buffer);
        Ok(slot)
    }

    /// Parses a slot's object.
    ///
    /// # Errors
    /// [`SlotError::Format`].
    pub fn decode(content: &[u8]) -> Result<Self, SlotError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let format = |e: serde_json::Error| SlotError::Format(e.to_string());
        let Versioned { version } = serde_json::from_slice(content).map_err(format)?;
        if version != 1 {
            return Err(SlotError::Format(format!("version {version} is not known to this program")));
        }
        let slot: Self = serde_json::from_slice(content).map_err(format)?;
        slot.sealed_bytes()?;
        if !layout::is_printable_time(&slot.created) {
            return Err(SlotError::Format("the time of creation is not printable".into()));
        }
        if slot.label.len() > LABEL_BYTES_MAX || slot.label.chars().any(char::is_control) {
            return Err(SlotError::Format("the label is not printable".into()));
        }
        Ok(slot)
    }

    /// Returns the slot's object.
    ///
    /// # Panics
    /// Never: a slot is plain data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = serde_json::to_vec_pretty(self).expect("plain data");
        out.push(b'\n');
        out
    }

    /// Opens the slot.
    ///
    /// # Errors
    /// [`SlotError`].
    pub fn open(&self, secret: &SlotSecret) -> Result<Keys, SlotError> {
        let content = self.unwrap(secret)?;
        match self.kind {
            SlotKind::Full => Ok(Keys::from_master(self.kloset, &parse_master(&content)?)),
            SlotKind::WriteOnly => Ok(Keys::write_only(self.kloset, parse_write_keys(&content)?)),
        }
    }

    /// Returns the master key of a full slot, for wrapping it again.
    ///
    /// # Errors
    /// As [`KeySlot::open`]; [`SlotError::OtherKind`] for a write-only slot.
    pub fn open_master(&self, secret: &SlotSecret) -> Result<Secret, SlotError> {
        if self.kind != SlotKind::Full {
            return Err(SlotError::OtherKind("reader"));
        }
        parse_master(&self.unwrap(secret)?)
    }

    /// Opens the seal. Lengths are checked before the secret is touched: a longer ciphertext could open under many
    /// secrets at once.
    fn unwrap(&self, secret: &SlotSecret) -> Result<Zeroizing<Vec<u8>>, SlotError> {
        let sealed = self.sealed_bytes()?;
        let content = self.wrapping_key(secret)?.open(&self.bound(), &sealed).map_err(|_| SlotError::WrongSecret)?;
        Ok(Zeroizing::new(content))
    }

    // format.md, "Key slot"
    fn sealed_bytes(&self) -> Result<Vec<u8>, SlotError> {
        let bytes = SEAL_BYTES + self.kind.content_bytes();
        let mut sealed = vec![0; bytes];
        from_hex(&self.sealed, &mut sealed)
            .ok_or_else(|| SlotError::Format(format!("\"sealed\" is not {bytes} bytes of hex")))?;
        Ok(sealed)
    }

    fn wrapping_key(&self, secret: &SlotSecret) -> Result<SealingKey, SlotError> {
        match (&self.kdf, secret) {
            (Kdf::Argon2id { cost, salt }, SlotSecret::Passphrase(passphrase)) => {
                Ok(SealingKey::new(&stretch(passphrase, *cost, salt)?))
            }
            (Kdf::KeyFile, SlotSecret::KeyFile(key)) => {
                Ok(SealingKey::new(&Secret(blake3::derive_key(KEY_FILE_CONTEXT, &key.0))))
            }
            (_, SlotSecret::Passphrase(_)) => Err(SlotError::OtherKind("passphrase")),
            (_, SlotSecret::KeyFile(_)) => Err(SlotError::OtherKind("key file")),
        }
    }

    // format.md, "Key slot"
    fn bound(&self) -> Vec<u8> {
        let fields = [
            ("kloset", &*self.kloset.to_string()),
            ("id", &*self.id.to_string()),
            ("kind", self.kind.name()),
            ("label", &*self.label),
            ("created", &*self.created),
        ];
        crypto::bound_text("key slot", &fields)
    }
}

const WRITE_ONLY_BYTES: usize = 32 + 32 + 8 + 32;

fn parse_master(content: &[u8]) -> Result<Secret, SlotError> {
    content.try_into().map(Secret).map_err(|_| SlotError::WrongSecret)
}

fn parse_write_keys(content: &[u8]) -> Result<WriteKeys, SlotError> {
    let content: &[u8; WRITE_ONLY_BYTES] = content.try_into().map_err(|_| SlotError::WrongSecret)?;
    let part = |at: usize| <[u8; 32]>::try_from(&content[at..at + 32]).expect("32 bytes");
    Ok(WriteKeys {
        chunk_id: Secret(part(0)),
        index: Secret(part(32)),
        chunker_seed: u64::from_le_bytes(content[64..72].try_into().expect("8 bytes")),
        public: part(72),
    })
}

fn stretch(passphrase: &str, cost: Argon2, salt: &str) -> Result<Secret, SlotError> {
    let over =
        cost.memory_kib > ARGON2_MAX.memory_kib || cost.passes > ARGON2_MAX.passes || cost.lanes > ARGON2_MAX.lanes;
    if over {
        return Err(SlotError::Format(format!("its Argon2id cost {cost:?} is over {ARGON2_MAX:?}")));
    }
    let mut salt_bytes = [0; SALT_BYTES];
    from_hex(salt, &mut salt_bytes).ok_or_else(|| SlotError::Format("the salt is not 32 hex digits".into()))?;
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))
        .map_err(|e| SlotError::Format(format!("its Argon2id cost cannot be used: {e}")))?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let passphrase: Zeroizing<String> = Zeroizing::new(passphrase.nfc().collect());
    let mut key = Zeroizing::new([0; 32]);
    argon2
        .hash_password_into(passphrase.as_bytes(), &salt_bytes, &mut *key)
        .map_err(|e| SlotError::Format(format!("Argon2id: {e}")))?;
    Ok(Secret(*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };

    fn passphrase(text: &str) -> SlotSecret {
        SlotSecret::Passphrase(Zeroizing::new(text.into()))
    }

    fn full(secret: &SlotSecret) -> KeySlot {
        let new = NewSlot { secret, cost: CHEAP, label: "laptop" };
        KeySlot::full(KlosetId([1; 32]), &Secret([2; 32]), &new, &Env::seeded(1, 0)).unwrap()
    }

    #[test]
    fn a_slot_opens_with_its_secret_only() {
        let slot = KeySlot::decode(&full(&passphrase("right")).encode()).unwrap();
        assert!(slot.open(&passphrase("right")).unwrap().can_read());
        assert_eq!(slot.open(&passphrase("wrong")).unwrap_err(), SlotError::WrongSecret);
        let key = SlotSecret::KeyFile(Secret([3; 32]));
        assert_eq!(slot.open(&key).unwrap_err(), SlotError::OtherKind("key file"));
        assert!(full(&key).open(&key).unwrap().can_read());
    }

    #[test]
    fn every_field_that_people_read_is_bound() {
        let slot = full(&passphrase("right"));
        let changes: [fn(&mut KeySlot); 3] = [
            |s| s.label = "server".into(),
            |s| s.kloset = KlosetId([9; 32]),
            |s| s.created = "1970-01-01T00:00:01Z".into(),
        ];
        for change in changes {
            let mut changed = slot.clone();
            change(&mut changed);
            assert_eq!(changed.open(&passphrase("right")).unwrap_err(), SlotError::WrongSecret);
        }
    }

    #[test]
    fn a_write_only_slot_gives_a_writers_keys() {
        let keys = Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]));
        let secret = passphrase("w");
        let new = NewSlot { secret: &secret, cost: CHEAP, label: "" };
        let slot = KeySlot::write_only(KlosetId([1; 32]), keys.write_keys(), &new, &Env::seeded(1, 0)).unwrap();
        let opened = slot.open(&secret).unwrap();
        assert!(!opened.can_read());
        assert_eq!(opened.chunk_id(b"a"), keys.chunk_id(b"a"));
        assert_eq!(opened.write_keys().chunker_seed, keys.write_keys().chunker_seed);
        assert_eq!(slot.open_master(&secret).unwrap_err(), SlotError::OtherKind("reader"));
    }

    #[test]
    fn what_cannot_be_a_slot_is_refused_before_the_secret_is_stretched() {
        #[track_caller]
        fn check(change: fn(&mut serde_json::Value), problem: &str) {
            let mut slot = serde_json::to_value(full(&passphrase("right"))).unwrap();
            change(&mut slot);
            let error = KeySlot::decode(slot.to_string().as_bytes()).unwrap_err();
            assert!(matches!(&error, SlotError::Format(why) if why.contains(problem)), "{error}");
        }
        check(|s| s["kind"] = "write-only".into(), "not 144 bytes of hex");
        check(|s| s["sealed"] = format!("{}00", s["sealed"].as_str().unwrap()).into(), "not 72 bytes of hex");
        check(|s| s["sealed"] = s["sealed"].as_str().unwrap().to_uppercase().into(), "not 72 bytes of hex");
        check(|s| s["created"] = "now\n".into(), "not printable");
        check(|s| s["created"] = "9".repeat(41).into(), "not printable");
        check(|s| *s = serde_json::json!({"version": 2, "sealed": 7}), "version 2 is not known");
        let mut slot = full(&passphrase("right"));
        slot.kind = SlotKind::WriteOnly;
        assert!(matches!(slot.open(&passphrase("right")).unwrap_err(), SlotError::Format(_)));
    }

    #[test]
    fn a_passphrase_is_the_same_however_its_letters_are_composed() {
        let slot = full(&passphrase("Z\u{fc}rich"));
        assert!(slot.open(&passphrase("Zu\u{308}rich")).unwrap().can_read());
        assert_eq!(slot.open(&passphrase("Zurich")).unwrap_err(), SlotError::WrongSecret);
    }

    #[test]
    fn an_absurd_cost_is_refused_before_memory_is_taken() {
        let mut slot = full(&passphrase("right"));
        slot.kdf = Kdf::Argon2id { cost: Argon2 { memory_kib: u32::MAX, passes: 1, lanes: 1 }, salt: "00".repeat(16) };
        assert!(matches!(slot.open(&passphrase("right")).unwrap_err(), SlotError::Format(_)));
    }
}
