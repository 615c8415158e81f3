//! Parts of a kloset as people write them: `3/7`, `daily/week`, `5%`, `2GiB`.

use super::size::parse_size;
use crate::repo::check::{Every, PARTS_MAX, Part, Subset};

/// Words for what moves on to the next part, and how many parts that makes of the spans.
const TURNS: [(&str, Every, [u64; 4]); 4] = [
    ("hourly", Every::Hour, [24, 7 * 24, 30 * 24, 365 * 24]),
    ("daily", Every::Day, [1, 7, 30, 365]),
    ("weekly", Every::Week, [1, 1, 4, 52]),
    ("monthly", Every::Month, [1, 1, 1, 12]),
];
const SPANS: [&str; 4] = ["day", "week", "month", "year"];

/// Parses what `--read-data-subset` takes.
pub(crate) fn parse_subset(text: &str) -> Result<Subset, String> {
    if let Some((which, of)) = text.split_once('/') {
        return match TURNS.iter().find(|(word, ..)| *word == which) {
            Some((_, every, spans)) => {
                let span = SPANS.iter().zip(spans).find(|(word, _)| **word == of).map(|(_, parts)| *parts);
                Ok(Subset::Turn(*every, span.map_or_else(|| parts(of), Ok)?))
            }
            None => {
                let (part, parts) = (parts(which)?, parts(of)?);
                match part <= parts {
                    true => Ok(Subset::Part(Part { part, parts })),
                    false => Err(format!("there is no part {part} of {parts}")),
                }
            }
        };
    }
    match text.strip_suffix('%') {
        Some(number) => match number.parse::<f64>() {
            Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(Subset::Percent(percent)),
            _ => Err("write more than 0% and at most 100%, as in 2.5%".to_owned()),
        },
        None => match parse_size(text) {
            Ok(0) => Err("nothing is no part".to_owned()),
            Ok(bytes) => Ok(Subset::Bytes(bytes)),
            Err(_) => Err("write 3/7, daily/week, daily/30, weekly/year, 5% or 2GiB".to_owned()),
        },
    }
}

fn parts(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number) if (1..=PARTS_MAX).contains(&number) => Ok(number),
        _ => Err(format!("{text:?} is no number of 1 to {PARTS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_understood() {
        for (text, subset) in [
            ("3/7", Subset::Part(Part { part: 3, parts: 7 })),
            ("daily/week", Subset::Turn(Every::Day, 7)),
            ("daily/30", Subset::Turn(Every::Day, 30)),
            ("weekly/year", Subset::Turn(Every::Week, 52)),
            ("monthly/year", Subset::Turn(Every::Month, 12)),
            ("hourly/day", Subset::Turn(Every::Hour, 24)),
            ("2.5%", Subset::Percent(2.5)),
            ("2GiB", Subset::Bytes(2 << 30)),
        ] {
            assert_eq!(parse_subset(text), Ok(subset), "{text}");
        }
        for text in ["", "8/7", "0/7", "1/0", "1/200000", "daily/", "yearly/9", "0%", "101%", "NaN%", "x%", "0", "-1"] {
            assert!(parse_subset(text).is_err(), "{text}");
        }
    }
}
