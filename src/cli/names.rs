//! Names of snapshots and of what is in them: as people type them, and as they are shown.
//!
//! A path is bytes. On a terminal whatever could move the cursor or is no text is escaped; elsewhere the bytes go out
//! as they are, so that what is listed can be used.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::os::unix::ffi::OsStrExt;

use base64::Engine as _;
use serde_json::{Map, Value};

use super::exit::CliError;

/// Splits `SNAPSHOT[:PATH]`.
pub(crate) fn split(target: &OsStr) -> Result<(String, Option<Vec<u8>>), CliError> {
    let bytes = target.as_bytes();
    let at = bytes.iter().position(|b| *b == b':');
    let (spec, path) = match at {
        Some(at) => (&bytes[..at], Some(bytes[at + 1..].to_vec())),
        None => (bytes, None),
    };
    match std::str::from_utf8(spec) {
        Ok(spec) if !spec.is_empty() => Ok((spec.to_owned(), path.filter(|p| !p.is_empty()))),
        _ => Err(CliError::usage(format!("\"{}\" names no snapshot: write latest or an id", bytes.escape_ascii()))),
    }
}

/// Tells whether people look at standard output.
pub(crate) fn is_shown() -> bool {
    std::io::stdout().is_terminal()
}

/// Returns a path as it may be sent to a terminal.
pub(crate) fn safe(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for part in path.utf8_chunks() {
        for c in part.valid().chars() {
            if c.is_control() || is_bidi(c) {
                out.extend(c.escape_default());
            } else {
                out.push(c);
            }
        }
        for byte in part.invalid() {
            out.push_str(&format!("\\x{byte:02x}"));
        }
    }
    out
}

/// Characters that turn the direction of the text around them: a name could pretend to be another.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Returns a path as it goes to standard output: safe for a terminal, else its bytes.
pub(crate) fn shown(path: &[u8], terminal: bool) -> Vec<u8> {
    if terminal { safe(path).into_bytes() } else { path.to_vec() }
}

/// Adds a path to a JSON object: as text, and its bytes in base64 where it is none.
pub(crate) fn add_path(object: &mut Map<String, Value>, key: &str, path: &[u8]) {
    object.insert(key.to_owned(), String::from_utf8_lossy(path).into());
    if std::str::from_utf8(path).is_err() {
        let bytes = base64::engine::general_purpose::STANDARD.encode(path);
        object.insert(format!("{key}_b64"), bytes.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_snapshot_and_maybe_a_path() {
        let check = |text: &[u8], spec: &str, path: Option<&[u8]>| {
            assert_eq!(split(OsStr::from_bytes(text)).unwrap(), (spec.to_owned(), path.map(<[u8]>::to_vec)));
        };
        check(b"latest", "latest", None);
        check(b"latest:", "latest", None);
        check(b"latest~1:/a:b", "latest~1", Some(b"/a:b"));
        check(b"0a1b:x\xff", "0a1b", Some(b"x\xff"));
        for bad in [&b""[..], b":x", b"\xff:x"] {
            assert!(split(OsStr::from_bytes(bad)).is_err());
        }
    }

    #[test]
    fn nothing_in_a_name_reaches_the_terminal_as_a_command() {
        assert_eq!(safe("é b".as_bytes()), "é b");
        assert_eq!(safe(b"a\x1b[2Jb\n\xff\x7f"), "a\\u{1b}[2Jb\\n\\xff\\u{7f}");
        assert_eq!(safe("x\u{202e}fdp.exe\u{9b}".as_bytes()), "x\\u{202e}fdp.exe\\u{9b}");
        assert_eq!(shown(b"a\n\xff", false), b"a\n\xff");
    }

    #[test]
    fn a_path_that_is_no_text_keeps_its_bytes_in_json() {
        let mut object = Map::new();
        add_path(&mut object, "path", b"/\xff");
        assert_eq!(Value::from(object).to_string(), "{\"path\":\"/\u{fffd}\",\"path_b64\":\"L/8=\"}");
    }
}
