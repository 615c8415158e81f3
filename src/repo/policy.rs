//! Which snapshots a policy keeps, and why.
//!
//! Pure: the snapshots of one group go in, the reasons for which each is kept come out; one without a reason is to be
//! forgotten. The rules are restic's, counted in UTC. Promised besides: what some rule keeps stays kept when the policy
//! is widened or applied again; incomplete snapshots are counted by themselves and take no complete one's place; and
//! each rule is held by two clocks, so that a snapshot with a wrong or forged time pushes nothing out. It does not know
//! where snapshots come from, nor how they are deleted.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;

use super::layout::{SnapshotName, timestamp};

/// A snapshot's own time is believed if the store received it within a day: longer backups are rare, and who may forge
/// a time gains no more than a day.
const CLOCKS_APART_MS_MAX: i64 = 24 * 3_600_000;
/// The largest number in a [`Span`]: years that a calendar has.
const SPAN_NUMBER_MAX: u16 = 9999;

/// What a policy needs to know of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name, which holds the time that its writer gives it.
    pub name: SnapshotName,
    /// When it was put, by the clock of the store.
    pub put_unix_ms: i64,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it lacks something that could not be read.
    pub incomplete: bool,
}

impl Candidate {
    /// Tells whether its own time and the store's are more than a day apart.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        self.name.unix_ms.saturating_sub(self.put_unix_ms).saturating_abs() > CLOCKS_APART_MS_MAX
    }

    fn time(&self, clock: Clock) -> i64 {
        match clock {
            Clock::Store if self.is_doubtful() => self.put_unix_ms,
            _ => self.name.unix_ms,
        }
    }
}

/// By which times a rule is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// As the snapshots say.
    Own,
    /// As the store says of those that it contradicts.
    Store,
}

/// What keeps snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The newest of each period, in the last so many periods that have one; and the oldest of all, while there are fewer.
    Count(Period, u32),
    /// The newest of each period among those that are younger than the newest of all by less than this.
    Within(Period, Span),
    /// Whatever has all these tags.
    Tags(Vec<String>),
}

/// What of several snapshots one is kept for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Period {
    /// Each by itself.
    Each,
    /// An hour.
    Hour,
    /// A day of UTC.
    Day,
    /// A week from Monday to Sunday.
    Week,
    /// A month.
    Month,
    /// A year.
    Year,
}

impl Period {
    /// Numbers the period of a time; `nth` tells apart what each is by itself.
    fn number(self, unix_ms: i64, nth: usize) -> i64 {
        let day = unix_ms.div_euclid(24 * 3_600_000);
        let date = || timestamp(unix_ms).to_zoned(TimeZone::UTC).date();
        match self {
            Self::Each => i64::try_from(nth).unwrap_or(i64::MAX),
            Self::Hour => unix_ms.div_euclid(3_600_000),
            Self::Day => day,
            Self::Week => (day + 3).div_euclid(7), // 1970-01-01 was a Thursday
            Self::Month => i64::from(date().year()) * 12 + i64::from(date().month()),
            Self::Year => i64::from(date().year()),
        }
    }

    fn adjective(self) -> &'static str {
        match self {
            Self::Each => "",
            Self::Hour => "hourly",
            Self::Day => "daily",
            Self::Week => "weekly",
            Self::Month => "monthly",
            Self::Year => "yearly",
        }
    }
}

/// A length of time as of a calendar, like `2y5m7d3h`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    years: u16,
    months: u16,
    days: u16,
    hours: u16,
}

impl Span {
    /// Returns the time that lies so long before `unix_ms`.
    fn before(self, unix_ms: i64) -> i64 {
        let span = jiff::Span::new().years(self.years).months(self.months).days(self.days).hours(self.hours);
        let at = timestamp(unix_ms).to_zoned(TimeZone::UTC).checked_sub(span);
        at.map_or(i64::MIN, |at| at.timestamp().as_millisecond())
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no span: write years, months, days and hours as in 2y5m7d3h");
        let (mut span, mut rest) = (Self::default(), text);
        while let Some(at) = rest.find(|c: char| !c.is_ascii_digit()) {
            let number = rest[..at].parse().ok().filter(|n| *n <= SPAN_NUMBER_MAX).ok_or_else(wrong)?;
            let place = match rest[at..].chars().next() {
                Some('y') => &mut span.years,
                Some('m') => &mut span.months,
                Some('d') => &mut span.days,
                Some('h') => &mut span.hours,
                _ => return Err(wrong()),
            };
            if std::mem::replace(place, number) != 0 {
                return Err(wrong());
            }
            rest = &rest[at + 1..];
        }
        if rest.is_empty() && span != Self::default() { Ok(span) } else { Err(wrong()) }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, unit) in [(self.years, 'y'), (self.months, 'm'), (self.days, 'd'), (self.hours, 'h')] {
            if number > 0 {
                write!(f, "{number}{unit}")?;
            }
        }
        Ok(())
    }
}

impl Rule {
    /// Tells whether it never keeps anything.
    #[must_use]
    pub fn is_void(&self) -> bool {
        match self {
            Self::Count(_, count) => *count == 0,
            Self::Within(..) => false,
            Self::Tags(tags) => tags.is_empty(),
        }
    }

    fn reason(&self, is_oldest: bool) -> String {
        let text = match self {
            Self::Count(Period::Each, _) => "last snapshot".to_owned(),
            Self::Count(period, _) => format!("{} snapshot", period.adjective()),
            Self::Within(period, span) => format!("{} within {span}", period.adjective()).trim_start().to_owned(),
            Self::Tags(tags) => format!("tag {}", tags.join(",")),
        };
        if is_oldest { format!("oldest {text}") } else { text }
    }
}

/// Returns for each snapshot of a group why it is kept; nothing where it is to be forgotten.
#[must_use]
pub fn decide(group: &[Candidate], rules: &[Rule]) -> Vec<Vec<String>> {
    let mut reasons = vec![Vec::new(); group.len()];
    for incomplete in [false, true] {
        for clock in [Clock::Own, Clock::Store] {
            let mut order: Vec<_> = (0..group.len()).filter(|at| group[*at].incomplete == incomplete).collect();
            order.sort_unstable_by_key(|at| Reverse((group[*at].time(clock), group[*at].name)));
            for rule in rules {
                for (at, reason) in kept(group, &order, rule, clock) {
                    add(&mut reasons[at], reason, clock);
                }
            }
        }
    }
    reasons
}

/// Adds a reason; what is kept by both clocks is kept by the first.
fn add(reasons: &mut Vec<String>, reason: String, clock: Clock) {
    if !reasons.contains(&reason) {
        reasons.push(match clock {
            Clock::Own => reason,
            Clock::Store => format!("{reason} by the store's time"),
        });
    }
}

/// Returns what a rule keeps of what is ordered from the newest to the oldest.
fn kept(group: &[Candidate], order: &[usize], rule: &Rule, clock: Clock) -> Vec<(usize, String)> {
    let (period, mut left, after) = match rule {
        Rule::Count(period, count) => (*period, *count, i64::MIN),
        Rule::Within(period, span) => {
            let newest = order.first().map_or(0, |at| group[*at].time(clock));
            (*period, u32::MAX, span.before(newest))
        }
        Rule::Tags(tags) => {
            let has_all = |at: &&usize| tags.iter().all(|tag| group[**at].tags.contains(tag));
            let tagged = order.iter().filter(|_| !tags.is_empty()).filter(has_all);
            return tagged.map(|at| (*at, rule.reason(false))).collect();
        }
    };
    let (mut out, mut seen) = (Vec::new(), BTreeSet::new());
    for (nth, at) in order.iter().enumerate() {
        let time = group[*at].time(clock);
        if left == 0 || time <= after {
            break;
        }
        let is_new = seen.insert(period.number(time, nth));
        // As restic has it: as long as there is room, history reaches back as far as it can.
        if is_new || nth + 1 == order.len() {
            left -= u32::from(left < u32::MAX);
            out.push((*at, rule.reason(!is_new)));
        }
    }
    out
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
