//! Ids: fixed-length byte strings, one type each, shown as lower-case hex.
//!
//! An id that exists has the right length; nobody checks again. What an id names is written at its type.

use std::fmt;
use std::str::FromStr;

/// The text is not the hex form of an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an id: {1} lower-case hex digits expected")]
pub struct IdError(pub String, pub usize);

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// How many bytes the id has.
            pub const BYTES: usize = $bytes;

            /// Returns the bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// Returns the first 8 hex digits, for people.
            #[must_use]
            pub fn short(&self) -> String {
                to_hex(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&to_hex(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; $bytes];
                from_hex(text, &mut bytes).ok_or_else(|| IdError(text.to_owned(), 2 * $bytes))?;
                Ok(Self(bytes))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_bytes(&self.0) }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let text = <std::borrow::Cow<'de, str>>::deserialize(d)?;
                    text.parse().map_err(serde::de::Error::custom)
                } else {
                    serde_bytes::ByteArray::<$bytes>::deserialize(d).map(|b| Self(b.into_array()))
                }
            }
        }
    };
}

id_type!(
    /// Names a kloset: random, chosen at creation, bound into everything that is sealed.
    KlosetId, 32);
id_type!(
    /// Names a chunk: the keyed BLAKE3 of its bytes.
    ChunkId, 32);
id_type!(
    /// Names a session: the HPKE encapsulation (an X25519 public key) made by one run of a writer.
    SessionId, 32);
id_type!(
    /// Names a snapshot: random.
    SnapshotId, 16);
id_type!(
    /// Names a key slot: random.
    SlotId, 16);
id_type!(
    /// Names an index run: random.
    RunId, 16);
id_type!(
    /// Names a pending list: random.
    PendingId, 16);
id_type!(
    /// Names a joined index run: random.
    JoinedId, 16);
id_type!(
    /// Names an object that says where moved chunks went: random.
    MovedId, 16);

/// Names a pack: the `number`-th of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// The session that wrote the pack.
    pub session: SessionId,
    /// Counted from 0 within the session.
    pub number: u32,
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packs/{}/{:08x}", self.session, self.number)
    }
}

/// Returns `bytes` as lower-case hex.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |n: u8| char::from(DIGITS[usize::from(n & 15)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

/// Fills `out` from exactly as many lower-case hex digits as it needs; `None` for anything else.
pub fn from_hex(text: &str, out: &mut [u8]) -> Option<()> {
    if text.len() != 2 * out.len() {
        return None;
    }
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_is_lower_case_exact_and_round_trips() {
        let id: SlotId = "00ff10a5000102030405060708090a0b".parse().unwrap();
        assert_eq!(id.to_string(), "00ff10a5000102030405060708090a0b");
        assert_eq!(id.short(), "00ff10a5");
        for bad in ["", "00FF10a5000102030405060708090a0b", "0", "é0ff10a5000102030405060708090a0", "zz"] {
            assert!(bad.parse::<SlotId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_text_in_json_and_bytes_in_messagepack() {
        let id = RunId([7; 16]);
        assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{id}\""));
        let packed = rmp_serde::to_vec(&id).unwrap();
        assert_eq!(packed[..2], [0xc4, 16]);
        assert_eq!(rmp_serde::from_slice::<RunId>(&packed).unwrap(), id);
    }
}
