//! A key file as it is printed: four lines that can be typed back, each with a check of its own.
//!
//! `K1 0123 4567 89ab cdef 3c5e`: the line's number, 8 bytes of the key, and 2 bytes by which a slip of the finger is
//! found, in the line where it is (`docs/format.md`, "Key slot"). What stands around these lines does not matter, so a
//! whole sheet that was saved or scanned is a key file. It does not know what the key opens.

use zeroize::Zeroizing;

use super::id::{from_hex, to_hex};

/// Lines of a key.
const LINES: u8 = 4;
/// Bytes of the key in a line.
const LINE_BYTES: usize = 8;
/// Bytes of a line's check.
const CHECK_BYTES: usize = 2;
const CHECK_CONTEXT: &str = "kloset-mount v1 paper key line";

/// Returns a key as lines.
#[must_use]
pub fn lines(key: &[u8; 32]) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(128));
    for (number, part) in (1..=LINES).zip(key.chunks_exact(LINE_BYTES)) {
        let digits = Zeroizing::new(to_hex(part) + &to_hex(&check(number, part)));
        out.push_str(&format!("K{number}"));
        for group in 0..digits.len() / 4 {
            out.push(' ');
            out.push_str(&digits[group * 4..group * 4 + 4]);
        }
        out.push('\n');
    }
    out
}

/// Finds a key in a text; `None` where there is no line of one.
///
/// # Errors
/// Says which line is missing or not as it was printed.
#[must_use]
pub fn parse(text: &str) -> Option<Result<Zeroizing<[u8; 32]>, String>> {
    let mut found: [Option<&str>; LINES as usize] = [None; LINES as usize];
    for line in text.lines() {
        let line = line.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        for (number, place) in (1..=LINES).zip(&mut found) {
            let rest = line.strip_prefix(['K', 'k']).and_then(|rest| rest.strip_prefix(char::from(b'0' + number)));
            // In a word of the text around it a letter follows.
            if let Some(rest) = rest.filter(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric())) {
                place.get_or_insert(rest);
            }
        }
    }
    found.iter().any(Option::is_some).then(|| assemble(&found))
}

fn assemble(found: &[Option<&str>; LINES as usize]) -> Result<Zeroizing<[u8; 32]>, String> {
    let mut key = Zeroizing::new([0; 32]);
    for ((number, line), part) in (1..=LINES).zip(found).zip(key.chunks_exact_mut(LINE_BYTES)) {
        let line = line.ok_or_else(|| format!("line K{number} of the paper key is missing"))?;
        let digits: Zeroizing<String> =
            Zeroizing::new(line.chars().filter(|c| c.is_alphanumeric()).map(digit).collect());
        let mut bytes = Zeroizing::new([0; LINE_BYTES + CHECK_BYTES]);
        from_hex(&digits, &mut *bytes).ok_or_else(|| {
            format!("line K{number} of the paper key is not {} hex digits", 2 * (LINE_BYTES + CHECK_BYTES))
        })?;
        let (content, checked) = bytes.split_at(LINE_BYTES);
        if check(number, content) != checked {
            return Err(format!("line K{number} of the paper key is not as it was printed: compare it with the sheet"));
        }
        part.copy_from_slice(content);
    }
    Ok(key)
}

/// Returns a digit as it was meant: letters that look like one are none of hex.
fn digit(c: char) -> char {
    match c.to_ascii_lowercase() {
        'o' => '0',
        'l' | 'i' => '1',
        c => c,
    }
}

fn check(number: u8, part: &[u8]) -> [u8; CHECK_BYTES] {
    let mut hash = blake3::Hasher::new_derive_key(CHECK_CONTEXT);
    hash.update(&[number]).update(part);
    *hash.finalize().as_bytes().first_chunk().expect("32 bytes hold 2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> [u8; 32] {
        std::array::from_fn(|at| u8::try_from(at * 7).unwrap())
    }

    #[track_caller]
    fn fails(text: &str, why: &str) {
        let error = parse(text).unwrap().unwrap_err();
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn a_key_is_read_back_from_a_sheet_however_it_was_typed() {
        let printed = lines(&key());
        assert_eq!(printed.lines().count(), 4);
        assert_eq!(printed.lines().next().unwrap().len(), "K1 0123 4567 89ab cdef 3c5e".len());
        for text in [
            printed.to_string(),
            format!("kloset-mount paper key\nkeep it safe\n\n{}\nhow to use it\n", *printed),
            printed.to_uppercase(),
            printed.replace('0', "O").replace('1', "l").replace("Kl", "K1"),
            printed.replace('\n', "\r\n  > "),
            printed.lines().rev().map(|line| line.replace(' ', "-") + "\n").collect(),
        ] {
            assert_eq!(*parse(&text).unwrap().unwrap(), key(), "{text}");
        }
    }

    #[test]
    fn the_example_of_the_format_is_what_is_printed() {
        let page = include_str!("../../docs/format.md");
        assert!(page.contains(&**lines(&[5; 32])), "{}", *lines(&[5; 32]));
    }

    #[test]
    fn a_slip_is_found_in_its_line() {
        let printed = lines(&key());
        let all: Vec<&str> = printed.lines().collect();
        fails(&all[..3].join("\n"), "line K4 of the paper key is missing");
        fails(&printed.replacen(&all[1][3..7], "0000", 1), "line K2 of the paper key is not as it was printed");
        fails(&printed.replacen(&all[2][3..7], "000", 1), "line K3 of the paper key is not 20 hex digits");
        fails(&printed.replace("K1", "Kx").replace("K2", "K1").replace("Kx", "K2"), "line K1");
        assert!(parse("").is_none() && parse("correct horse\nK12 is a mountain").is_none());
    }

    #[test]
    fn no_text_makes_the_parser_panic() {
        for text in ["K1", "K1 é", "K1é", "K1 ab\nK2\nK3\nK4", "K4 \u{1d7d8}"] {
            assert!(parse(text).is_none_or(|parsed| parsed.is_err()), "{text}");
        }
    }
}
