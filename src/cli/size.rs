//! Sizes as people write them.

use crate::store::RATE_MIN;

/// Bytes of a size like `128MiB`, `64M`, `1GiB` or `1048576`.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or("").to_ascii_lowercase();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("the unit {unit:?} is not one of: KiB, MiB, GiB, TiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number and a unit, as in 128MiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

/// Bytes a second of a rate like `5MiB` or `500KiB`.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = parse_size(text)?;
    let least = RATE_MIN >> 10;
    if rate < RATE_MIN { Err(format!("the slowest rate is {least}KiB, which is a second's worth")) } else { Ok(rate) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_understood() {
        for (text, bytes) in
            [("128MiB", 128 << 20), ("64M", 64 << 20), ("1gib", 1 << 30), ("5", 5), ("7B", 7), ("2T", 2 << 40)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1PiB", "-1", "1.5G", "99999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_sizes_of_a_second_and_not_too_slow() {
        assert_eq!(parse_rate("5MiB"), Ok(5 << 20));
        assert_eq!(parse_rate("16k"), Ok(RATE_MIN));
        for text in ["15k", "0", "5MiB/s"] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }
}
