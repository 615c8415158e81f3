//! Parts of a kloset's packs, so that a check reads a little each day and everything in the end.
//!
//! Packs are dealt into parts by a hash of their names: a pack stays in its part however many others come and go, and the
//! parts are about equally large. Which part's turn it is follows from the date. It does not know what is in a pack.

use serde::Serialize;

use super::super::id::PackId;
use crate::repo::layout;

/// The most parts: with more, each is empty.
pub const PARTS_MAX: u64 = 100_000;

/// One of several equal parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Part {
    /// Which one, from 1.
    pub part: u64,
    /// How many there are.
    pub parts: u64,
}

/// What moves on from one part to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// Each hour.
    Hour,
    /// Each day.
    Day,
    /// Each Monday.
    Week,
    /// Each first of a month.
    Month,
}

/// Which part of the packs a check is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Subset {
    /// This one.
    Part(Part),
    /// The one whose turn it is, of so many.
    Turn(Every, u64),
    /// The day's part, of so many percent.
    Percent(f64),
    /// The day's part, of about so many bytes.
    Bytes(u64),
}

impl Subset {
    /// Returns the part that is meant at a moment, of packs that have `bytes` together.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // between 1 and PARTS_MAX
    pub fn part(&self, unix_ms: i64, bytes: u64) -> Part {
        let (every, parts) = match *self {
            Self::Part(part) => return part,
            Self::Turn(every, parts) => (every, parts),
            // 30% are three parts, not four: nothing is read less often than was asked.
            Self::Percent(percent) => (Every::Day, (100.0 / percent).clamp(1.0, PARTS_MAX as f64) as u64),
            Self::Bytes(each) => (Every::Day, bytes.div_ceil(each.max(1))),
        };
        let parts = parts.clamp(1, PARTS_MAX);
        Part { part: every.count(unix_ms) % parts + 1, parts }
    }
}

impl Every {
    /// Counts hours, days, weeks or months since 1970, UTC.
    fn count(self, unix_ms: i64) -> u64 {
        let at = layout::timestamp(unix_ms);
        let days = at.as_second() / 86_400;
        let count = match self {
            Self::Hour => at.as_second() / 3600,
            Self::Day => days,
            Self::Week => (days + 3) / 7, // 1970 began on a Thursday
            Self::Month => {
                let date = at.to_zoned(jiff::tz::TimeZone::UTC);
                (i64::from(date.year()) - 1970) * 12 + i64::from(date.month()) - 1
            }
        };
        u64::try_from(count).unwrap_or(0)
    }
}

impl Part {
    /// Tells whether a pack is in this part.
    #[must_use]
    pub fn holds(&self, pack: PackId) -> bool {
        let hash = blake3::hash(pack.to_string().as_bytes());
        let number = u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("32 bytes hold 8"));
        number % self.parts.max(1) == self.part.saturating_sub(1)
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "part {} of {}", self.part, self.parts)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::id::SessionId;
    use super::*;

    const DAY_MS: i64 = 86_400_000;

    fn parts(subset: Subset, step_ms: i64, steps: i64) -> Vec<u64> {
        (0..steps).map(|n| subset.part(1_795_356_280_123 + n * step_ms, 1000).part).collect()
    }

    #[test]
    fn each_pack_is_in_one_part_and_parts_are_about_equal() {
        let packs: Vec<_> = (0..7000).map(|number| PackId { session: SessionId([7; 32]), number }).collect();
        let counts: Vec<_> =
            (1..=7).map(|part| packs.iter().filter(|pack| Part { part, parts: 7 }.holds(**pack)).count()).collect();
        assert_eq!(counts.iter().sum::<usize>(), 7000);
        assert!(counts.iter().all(|n| (800..1200).contains(n)), "{counts:?}");
    }

    #[test]
    fn every_part_has_its_turn() {
        let sorted = |mut parts: Vec<u64>| {
            parts.sort_unstable();
            parts
        };
        let all = |n: u64| (1..=n).collect::<Vec<_>>();
        assert_eq!(sorted(parts(Subset::Turn(Every::Day, 7), DAY_MS, 7)), all(7));
        assert_eq!(sorted(parts(Subset::Turn(Every::Week, 4), 7 * DAY_MS, 4)), all(4));
        assert_eq!(sorted(parts(Subset::Turn(Every::Hour, 24), DAY_MS / 24, 24)), all(24));
        assert_eq!(sorted(parts(Subset::Percent(5.0), DAY_MS, 20)), all(20));
        assert_eq!(sorted(parts(Subset::Bytes(301), DAY_MS, 4)), all(4));
        let month = |unix_ms| Subset::Turn(Every::Month, 12).part(unix_ms, 0).part;
        assert_eq!((month(0), month(31 * DAY_MS), month(364 * DAY_MS), month(365 * DAY_MS)), (1, 2, 12, 1));
        let week = |day: i64| Subset::Turn(Every::Week, 100).part(day * DAY_MS, 0).part;
        assert_eq!((week(3), week(4), week(10), week(11)), (1, 2, 2, 3)); // the 5th of January 1970 was a Monday
    }

    #[test]
    fn odd_sizes_are_all_or_little_and_never_nothing() {
        let of = |subset: Subset, bytes| subset.part(0, bytes).parts;
        assert_eq!(of(Subset::Percent(100.0), 10), 1);
        assert_eq!(of(Subset::Percent(30.0), 10), 3);
        assert_eq!(of(Subset::Percent(0.000_01), 10), PARTS_MAX);
        assert_eq!((of(Subset::Bytes(10), 0), of(Subset::Bytes(10), 10), of(Subset::Bytes(10), 11)), (1, 1, 2));
        assert_eq!(of(Subset::Bytes(0), u64::MAX), PARTS_MAX);
    }
}
