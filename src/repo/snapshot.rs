//! Snapshots: the sealed manifest that points to a root tree.
//!
//! A manifest is JSON, sealed to the session that wrote it; the object begins with the session's name, so that it can
//! be opened without asking for anything else (`docs/format.md`, "Snapshot").

use serde::{Deserialize, Serialize};

use super::crypto::{self, Keys, NONCE_BYTES, SealingKey};
use super::id::{ChunkId, KlosetId, PackId, RunId, SessionId, SnapshotId};
use super::layout::SnapshotName;
use super::sealed::{self, SealedError};
use super::tree::TreeRef;

/// The first bytes of a snapshot.
pub const MAGIC: &[u8; 8] = b"KLOSET1S";
/// No manifest is longer, raw or sealed.
pub const MANIFEST_BYTES_MAX: usize = 16 << 20;
/// The most errors that a manifest lists; `errors_total` counts on.
pub const ERRORS_MAX: usize = 10_000;
/// The most bytes that these take in the manifest.
pub const ERRORS_BYTES_MAX: usize = 4 << 20;
/// The most bytes that a manifest takes before anything is backed up: paths, excludes, tags, description, host, user.
pub const TEXTS_BYTES_MAX: usize = 1 << 20;

// The rest is for the index runs: 35 bytes for each 262,144 chunks.
const _: () = assert!(TEXTS_BYTES_MAX + ERRORS_BYTES_MAX <= MANIFEST_BYTES_MAX / 2);

/// Why a snapshot cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Its first bytes are not a snapshot's.
    #[error("it does not begin as a snapshot")]
    Magic,
    /// It does not open.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// It opens but is not a manifest.
    #[error("its manifest is malformed: {0}")]
    Format(String),
    /// A manifest of another version.
    #[error("its manifest has version {0}, this program knows version 1: use a newer program")]
    Version(u32),
    /// A manifest that no reader would accept.
    #[error("its manifest has {0} bytes, at most {MANIFEST_BYTES_MAX} can be read")]
    TooLong(usize),
}

/// Bytes that are mostly UTF-8: a JSON string, or `{"b64": …}` where they are not.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteText(pub Vec<u8>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum ByteTextWire {
    Text(String),
    Base64 { b64: String },
}

impl Serialize for ByteText {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        use base64::Engine as _;
        match std::str::from_utf8(&self.0) {
            Ok(text) => s.serialize_str(text),
            Err(_) => {
                let b64 = base64::engine::general_purpose::STANDARD.encode(&self.0);
                ByteTextWire::Base64 { b64 }.serialize(s)
            }
        }
    }
}

impl<'de> Deserialize<'de> for ByteText {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use base64::Engine as _;
        match ByteTextWire::deserialize(d)? {
            ByteTextWire::Text(text) => Ok(Self(text.into_bytes())),
            ByteTextWire::Base64 { b64 } => {
                base64::engine::general_purpose::STANDARD.decode(b64).map(Self).map_err(serde::de::Error::custom)
            }
        }
    }
}

/// The root tree's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Id of the root's tree.
    pub id: ChunkId,
    /// Its length.
    pub bytes: u32,
    /// The session of its pack.
    pub session: SessionId,
    /// The number of its pack.
    pub pack: u32,
    /// Its frame's number.
    pub frame: u32,
    /// Its offset in the raw frame.
    pub chunk_offset: u32,
}

impl From<TreeRef> for Root {
    fn from(t: TreeRef) -> Self {
        let TreeRef { id, bytes, pack, frame, chunk_offset } = t;
        Self { id, bytes, session: pack.session, pack: pack.number, frame, chunk_offset }
    }
}

impl From<Root> for TreeRef {
    fn from(r: Root) -> Self {
        let pack = PackId { session: r.session, number: r.pack };
        Self { id: r.id, bytes: r.bytes, pack, frame: r.frame, chunk_offset: r.chunk_offset }
    }
}

/// What could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceError {
    /// The path.
    pub path: ByteText,
    /// Why.
    pub message: String,
}

impl SourceError {
    /// Returns how many bytes it takes in a manifest.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        encoded(self).len() + 1
    }
}

/// What a backup found and stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Everything else.
    pub others: u64,
    /// Bytes of all files, holes included.
    pub bytes: u64,
    /// Files that the parent snapshot did not have.
    pub files_new: u64,
    /// Files that differ from the parent snapshot's.
    pub files_changed: u64,
    /// Files taken over unread.
    pub files_unmodified: u64,
    /// Chunks that were not there yet.
    pub chunks_new: u64,
    /// Their bytes, raw.
    pub bytes_new: u64,
    /// What was put into the store, bytes.
    pub bytes_stored: u64,
}

/// A snapshot's manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// 1.
    pub version: u32,
    /// Its id.
    pub id: SnapshotId,
    /// When the backup began, RFC 3339, UTC.
    pub time: String,
    /// When it ended, RFC 3339, UTC.
    pub end: String,
    /// The host it is of.
    pub host: String,
    /// The user who made it.
    pub user: String,
    /// The program that made it.
    pub program: String,
    /// The source paths.
    pub paths: Vec<ByteText>,
    /// Tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// Rules by which paths were left out.
    #[serde(default)]
    pub excludes: Vec<ByteText>,
    /// The snapshot that unchanged files were taken over from.
    pub parent: Option<SnapshotId>,
    /// The snapshot as it first was, if this one was put in its place with other tags or without some paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub original: Option<SnapshotId>,
    /// The root tree.
    pub root: Root,
    /// What was found and stored.
    pub summary: Summary,
    /// Index runs that the session wrote.
    #[serde(default)]
    pub index: Vec<RunId>,
    /// Whether something that should be in it could not be read.
    pub incomplete: bool,
    /// What could not be read: the first 10,000.
    #[serde(default)]
    pub errors: Vec<SourceError>,
    /// How many could not be read.
    #[serde(default)]
    pub errors_total: u64,
}

fn encoded(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("plain data")
}

impl Manifest {
    /// Returns how long the manifest is, not packed.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        encoded(self).len()
    }

    /// Seals the manifest as a snapshot's object.
    ///
    /// # Errors
    /// [`SnapshotError::TooLong`]: what no reader accepts is not made.
    pub fn seal(
        &self,
        key: &SealingKey,
        session: SessionId,
        place: (KlosetId, SnapshotName),
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Vec<u8>, SnapshotError> {
        let raw = encoded(self);
        let sealed = sealed::seal(key, nonce, &aad(place), 3, &raw);
        let object = [&MAGIC[..], session.as_bytes(), &sealed].concat();
        let bytes = raw.len().max(object.len());
        if bytes > MANIFEST_BYTES_MAX { Err(SnapshotError::TooLong(bytes)) } else { Ok(object) }
    }

    /// Opens a snapshot's object.
    ///
    /// # Errors
    /// [`SnapshotError`].
    pub fn open(keys: &Keys, name: SnapshotName, object: &[u8]) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let rest = object.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?;
        let (session, sealed) = rest.split_first_chunk::<32>().ok_or(SnapshotError::Magic)?;
        let key = keys.session_key(&SessionId(*session)).map_err(SealedError::from)?;
        let raw = sealed::open(&key, &aad((keys.kloset(), name)), sealed, MANIFEST_BYTES_MAX)?;
        let format = |e: serde_json::Error| SnapshotError::Format(e.to_string());
        let Versioned { version } = serde_json::from_slice(&raw).map_err(format)?;
        if version != 1 {
            return Err(SnapshotError::Version(version));
        }
        let manifest: Self = serde_json::from_slice(&raw).map_err(format)?;
        if manifest.id != name.id {
            return Err(SnapshotError::Format("its id is not its name's".into()));
        }
        Ok(manifest)
    }
}

fn aad((kloset, name): (KlosetId, SnapshotName)) -> Vec<u8> {
    crypto::aad(kloset, "snapshot", name.object().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::super::tree::tests::tree;
    use super::*;
    use crate::env::Entropy;

    fn example() -> Manifest {
        Manifest {
            version: 1,
            id: SnapshotId([5; 16]),
            time: "2026-11-22T13:58:00Z".into(),
            end: "2026-11-22T13:59:00Z".into(),
            host: "h".into(),
            user: "u".into(),
            program: "kloset-mount 0.1.0".into(),
            paths: vec![ByteText(b"/etc".to_vec()), ByteText(b"/\xff".to_vec())],
            tags: vec!["daily".into()],
            description: String::new(),
            excludes: vec![],
            parent: None,
            original: None,
            root: tree(1).into(),
            summary: Summary { files: 3, ..Summary::default() },
            index: vec![RunId([1; 16])],
            incomplete: true,
            errors: vec![SourceError { path: ByteText(b"/etc/shadow".to_vec()), message: "denied".into() }],
            errors_total: 1,
        }
    }

    #[test]
    fn a_manifest_opens_under_its_own_name_only() {
        let keys = Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]));
        let (session, key) = keys.new_session(&Entropy::seeded(1));
        let name = SnapshotName { unix_ms: 1000, id: SnapshotId([5; 16]) };
        let object = example().seal(&key, session, (keys.kloset(), name), [0; NONCE_BYTES]).unwrap();
        assert_eq!(Manifest::open(&keys, name, &object).unwrap(), example());
        let other = SnapshotName { unix_ms: 1001, ..name };
        assert!(matches!(Manifest::open(&keys, other, &object), Err(SnapshotError::Sealed(_))));
        assert_eq!(Manifest::open(&keys, name, &object[..8]), Err(SnapshotError::Magic));
    }

    #[test]
    fn a_manifest_that_no_reader_accepts_is_not_sealed() {
        let keys = Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]));
        let (session, key) = keys.new_session(&Entropy::seeded(1));
        let name = SnapshotName { unix_ms: 1000, id: SnapshotId([5; 16]) };
        let long = Manifest { description: "x".repeat(MANIFEST_BYTES_MAX), ..example() };
        let sealed = long.seal(&key, session, (keys.kloset(), name), [0; NONCE_BYTES]);
        assert_eq!(sealed, Err(SnapshotError::TooLong(long.encoded_bytes())));
    }

    #[test]
    fn bytes_that_are_not_text_are_base64() {
        let json = serde_json::to_string(&example().paths).unwrap();
        assert_eq!(json, r#"["/etc",{"b64":"L/8="}]"#);
        assert_eq!(serde_json::from_str::<Vec<ByteText>>(&json).unwrap(), example().paths);
    }
}
