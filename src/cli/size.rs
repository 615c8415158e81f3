//! Sizes, rates and times as people write them.

use std::time::Duration;

use crate::store::RATE_MIN;

/// The longest time in which to ask again: a day.
const RETRY_SECONDS_MAX: u64 = 24 * 3600;

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

/// How long something may fail before it is given up, in seconds.
pub(crate) fn parse_retry_budget(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 0..=RETRY_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("write seconds, 0 to {RETRY_SECONDS_MAX}")),
    }
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
    #[test]
    fn a_retry_budget_is_a_number_of_seconds_up_to_a_day() {
        assert_eq!(parse_retry_budget("0"), Ok(Duration::ZERO));
        assert_eq!(parse_retry_budget("86400"), Ok(Duration::from_secs(86400)));
        for text in ["", "86401", "-1", "5m", "1.5"] {
            assert!(parse_retry_budget(text).is_err(), "{text}");
        }
    }
}
