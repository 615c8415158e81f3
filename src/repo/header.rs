//! The header `kloset.json`: which kloset this is and how it cuts and compresses.
//!
//! It can be read without a key and is believed only once its MAC has been checked with one
//! (`docs/format.md`, "Header").

use serde::{Deserialize, Serialize};

use super::crypto::{self, Keys};
use super::id::{KlosetId, to_hex};
use crate::env::Env;

/// The largest header that is read.
pub const HEADER_BYTES_MAX: u64 = 64 * 1024;
/// The largest chunk a header may allow.
pub const CHUNK_BYTES_LIMIT: u32 = 16 << 20;

/// Why a header cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not a header.
    #[error("\"kloset.json\" is not a kloset's header: {0}")]
    Format(String),
    /// A kloset of another version.
    #[error("this kloset has format version {0}, this program knows version 1: use a newer program")]
    Version(u32),
    /// The MAC does not fit.
    #[error("\"kloset.json\" was changed: its MAC does not fit")]
    Mac,
}

/// A kloset's header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Always "kloset-mount".
    pub format: String,
    /// 1.
    pub version: u32,
    /// The kloset's id.
    pub id: KlosetId,
    /// When it was created, RFC 3339, UTC.
    pub created: String,
    /// How files are cut.
    pub chunker: ChunkerSettings,
    /// How frames are compressed.
    pub compression: CompressionSettings,
    /// Keyed BLAKE3 of the bound text, hex.
    pub mac: String,
}

/// How files are cut: FastCDC v2020, sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkerSettings {
    /// No chunk is smaller, but the last of a file.
    pub min_bytes: u32,
    /// The size aimed at.
    pub avg_bytes: u32,
    /// No chunk is larger.
    pub max_bytes: u32,
}

impl Default for ChunkerSettings {
    fn default() -> Self {
        Self { min_bytes: 256 << 10, avg_bytes: 1 << 20, max_bytes: 4 << 20 }
    }
}

/// How frames are compressed: zstd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionSettings {
    /// zstd's level, 1 to 19.
    pub zstd_level: i32,
}

impl Default for CompressionSettings {
    fn default() -> Self {
        Self { zstd_level: 3 }
    }
}

impl Header {
    /// Makes the header of a new kloset.
    ///
    /// # Errors
    /// [`HeaderError::Format`] for settings out of bounds.
    pub fn new(
        keys: &Keys,
        chunker: ChunkerSettings,
        compression: CompressionSettings,
        env: &Env,
    ) -> Result<Self, HeaderError> {
        let mut header = Self {
            format: "kloset-mount".into(),
            version: 1,
            id: keys.kloset(),
            created: super::layout::timestamp(env.clock.unix_ms()).to_string(),
            chunker,
            compression,
            mac: String::new(),
        };
        header.check_bounds()?;
        header.mac = to_hex(&keys.header_mac(&header.bound()));
        Ok(header)
    }

    /// Parses a header; its MAC is not checked yet.
    ///
    /// # Errors
    /// [`HeaderError::Format`], [`HeaderError::Version`].
    pub fn decode(content: &[u8]) -> Result<Self, HeaderError> {
        #[derive(Deserialize)]
        struct Versioned {
            format: String,
            version: u32,
        }
        let format = |e: serde_json::Error| HeaderError::Format(e.to_string());
        let known: Versioned = serde_json::from_slice(content).map_err(format)?;
        if known.format != "kloset-mount" {
            return Err(HeaderError::Format(format!("its format is \"{}\"", known.format.escape_debug())));
        }
        if known.version != 1 {
            return Err(HeaderError::Version(known.version));
        }
        let header: Self = serde_json::from_slice(content).map_err(format)?;
        header.check_bounds()?;
        Ok(header)
    }

    /// Returns the header's object.
    ///
    /// # Panics
    /// Never: a header is plain data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = serde_json::to_vec_pretty(self).expect("plain data");
        out.push(b'\n');
        out
    }

    /// Checks the MAC.
    ///
    /// # Errors
    /// [`HeaderError::Mac`].
    pub fn verify(&self, keys: &Keys) -> Result<(), HeaderError> {
        let mut mac = [0; 32];
        super::id::from_hex(&self.mac, &mut mac).ok_or(HeaderError::Mac)?;
        let fits = blake3::Hash::from_bytes(keys.header_mac(&self.bound())) == blake3::Hash::from_bytes(mac);
        if fits { Ok(()) } else { Err(HeaderError::Mac) }
    }

    fn check_bounds(&self) -> Result<(), HeaderError> {
        if !super::layout::is_printable_time(&self.created) {
            return Err(HeaderError::Format("the time of creation is not printable".into()));
        }
        let ChunkerSettings { min_bytes, avg_bytes, max_bytes } = self.chunker;
        let even = [min_bytes, avg_bytes, max_bytes].iter().all(|n| n % 2 == 0);
        let ordered = (1024..=avg_bytes).contains(&min_bytes) && avg_bytes < max_bytes;
        if !even || !ordered || avg_bytes > (4 << 20) || max_bytes > CHUNK_BYTES_LIMIT {
            return Err(HeaderError::Format(format!("chunker sizes {:?} are out of bounds", self.chunker)));
        }
        if !(1..=19).contains(&self.compression.zstd_level) {
            return Err(HeaderError::Format(format!("zstd level {} is not 1 to 19", self.compression.zstd_level)));
        }
        Ok(())
    }

    // format.md, "Header"
    fn bound(&self) -> Vec<u8> {
        let number = |n: u32| n.to_string();
        let fields = [
            ("version", &*number(self.version)),
            ("id", &*self.id.to_string()),
            ("created", &*self.created),
            ("chunker.min_bytes", &*number(self.chunker.min_bytes)),
            ("chunker.avg_bytes", &*number(self.chunker.avg_bytes)),
            ("chunker.max_bytes", &*number(self.chunker.max_bytes)),
            ("compression.zstd_level", &*self.compression.zstd_level.to_string()),
        ];
        crypto::bound_text("header", &fields)
    }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::*;

    fn keys() -> Keys {
        Keys::from_master(KlosetId([1; 32]), &Secret([2; 32]))
    }

    fn header() -> Header {
        Header::new(&keys(), ChunkerSettings::default(), CompressionSettings::default(), &Env::seeded(1, 0)).unwrap()
    }

    #[test]
    fn a_header_round_trips_and_any_change_is_noticed() {
        let decoded = Header::decode(&header().encode()).unwrap();
        assert_eq!(decoded, header());
        decoded.verify(&keys()).unwrap();
        let changes: [fn(&mut Header); 3] = [
            |h| h.chunker.avg_bytes /= 2,
            |h| h.compression.zstd_level = 4,
            |h| h.created = "2020-01-01T00:00:00Z".into(),
        ];
        for change in changes {
            let mut changed = header();
            change(&mut changed);
            assert_eq!(changed.verify(&keys()), Err(HeaderError::Mac));
        }
    }

    #[test]
    fn what_is_not_ours_or_out_of_bounds_is_refused() {
        let refuse = |from: &str, to: &str| {
            let text = String::from_utf8(header().encode()).unwrap();
            assert!(text.contains(from));
            Header::decode(text.replace(from, to).as_bytes()).unwrap_err()
        };
        assert_eq!(refuse("\"version\": 1", "\"version\": 2"), HeaderError::Version(2));
        assert!(matches!(refuse("kloset-mount", "restic"), HeaderError::Format(_)));
        assert!(matches!(refuse("4194304", "4294967294"), HeaderError::Format(_)));
        assert!(matches!(refuse("262144", "262143"), HeaderError::Format(_)));
        assert!(matches!(refuse("1970-", "\\u001b1970-"), HeaderError::Format(_)));
        assert!(matches!(Header::decode(b"").unwrap_err(), HeaderError::Format(_)));
    }
}
