//! MessagePack: the binary form of pack footers, trees and content pages.
//!
//! Writing is canonical: maps with the keys in the order of the struct. Reading takes the whole input or nothing and
//! names an unknown version before any other fault (`docs/format.md`, "Conventions").

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version that footers, trees and content pages have.
pub(super) const VERSION: u32 = 1;

/// Encodes plain data.
pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("plain data")
}

/// Decodes a map whose key `v`, which `version` returns, must be [`VERSION`].
///
/// # Errors
/// What is wrong, for people.
pub(super) fn decode<T: DeserializeOwned>(raw: &[u8], version: impl Fn(&T) -> u32) -> Result<T, String> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let (value, found) = match decode_exact::<T>(raw) {
        Ok(value) => {
            let found = version(&value);
            (Ok(value), found)
        }
        // Looked at a second time only when something is wrong: a later version may well differ in everything else.
        Err(error) => (Err(error), decode_exact(raw).map_or(VERSION, |known: Versioned| known.v)),
    };
    if found == VERSION { value } else { Err(format!("version {found} is not known to this program")) }
}

/// Decodes a value that takes up all of `raw`.
fn decode_exact<T: DeserializeOwned>(raw: &[u8]) -> Result<T, String> {
    let mut rest = raw;
    let value = T::deserialize(&mut rmp_serde::Deserializer::new(&mut rest)).map_err(|e| e.to_string())?;
    if rest.is_empty() { Ok(value) } else { Err(format!("{} bytes follow its end", rest.len())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Value {
        v: u32,
        n: Vec<u8>,
    }

    #[track_caller]
    fn check(raw: &[u8], expected: Result<Value, &str>) {
        match (decode::<Value>(raw, |value| value.v), expected) {
            (Err(error), Err(part)) => assert!(error.contains(part), "{error}"),
            (found, expected) => assert_eq!(found, expected.map_err(str::to_owned)),
        }
    }

    #[test]
    fn the_whole_input_is_one_value_of_a_known_version() {
        let value = || Value { v: 1, n: vec![1, 2] };
        let raw = encode(&value());
        check(&raw, Ok(value()));
        check(&[&raw[..], &[0xc0]].concat(), Err("1 bytes follow its end"));
        check(&raw[..raw.len() - 1], Err(""));
        check(&encode(&Value { v: 2, ..value() }), Err("version 2 is not known"));
        check(&rmp_serde::to_vec_named(&serde_json::json!({"n": "other", "v": 7})).unwrap(), Err("version 7 is not"));
    }

    #[test]
    fn keys_may_stand_in_any_order_unknown_ones_are_skipped_and_none_stands_twice() {
        check(b"\x83\xa1n\x91\x07\xa1z\x92\x01\xc0\xa1v\x01", Ok(Value { v: 1, n: vec![7] }));
        check(b"\x83\xa1v\x01\xa1n\x90\xa1n\x90", Err("duplicate"));
    }

    #[test]
    fn a_list_in_place_of_a_map_is_accepted() {
        check(&rmp_serde::to_vec(&Value { v: 1, n: vec![] }).unwrap(), Ok(Value { v: 1, n: vec![] }));
    }
}
