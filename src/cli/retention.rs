//! What is to be kept, in the words of the command line and of the config's `[policies.NAME]`.
//!
//! Both have the same words, with dashes here and underscores there, and become the same rules. It does not know which
//! snapshots there are.

use clap::Args;
use toml_edit::{Item, TableLike, Value};

use crate::repo::forget::GroupBy;
use crate::repo::policy::{Period, Rule, Span};

/// How often something is kept, and its words: for the last so many, and for those within a span.
const PERIODS: [(Period, &str, &str); 6] = [
    (Period::Each, "keep_last", "keep_within"),
    (Period::Hour, "keep_hourly", "keep_within_hourly"),
    (Period::Day, "keep_daily", "keep_within_daily"),
    (Period::Week, "keep_weekly", "keep_within_weekly"),
    (Period::Month, "keep_monthly", "keep_within_monthly"),
    (Period::Year, "keep_yearly", "keep_within_yearly"),
];
const TAGS: &str = "keep_tag";
const GROUP_BY: &str = "group_by";

/// What is to be kept.
#[derive(Clone, Debug, Default, Args)]
#[group(id = "keep", multiple = true, conflicts_with = "policy")]
pub(crate) struct KeepArgs {
    /// Keeps the newest N snapshots of a group; "unlimited" for all. So with the others.
    #[arg(short = 'l', long, value_name = "N", value_parser = parse_count)]
    keep_last: Option<u32>,
    /// Keeps the newest snapshot of each of the last N hours that have one.
    #[arg(short = 'H', long, value_name = "N", value_parser = parse_count)]
    keep_hourly: Option<u32>,
    /// Keeps the newest snapshot of each of the last N days that have one.
    #[arg(short = 'd', long, value_name = "N", value_parser = parse_count)]
    keep_daily: Option<u32>,
    /// Keeps the newest snapshot of each of the last N weeks that have one.
    #[arg(short = 'w', long, value_name = "N", value_parser = parse_count)]
    keep_weekly: Option<u32>,
    /// Keeps the newest snapshot of each of the last N months that have one.
    #[arg(short = 'm', long, value_name = "N", value_parser = parse_count)]
    keep_monthly: Option<u32>,
    /// Keeps the newest snapshot of each of the last N years that have one.
    #[arg(short = 'y', long, value_name = "N", value_parser = parse_count)]
    keep_yearly: Option<u32>,
    /// Keeps what is younger than the newest of the group by less than this, as in 2y5m7d3h.
    #[arg(long, value_name = "SPAN")]
    keep_within: Option<Span>,
    /// Keeps the newest snapshot of each hour within SPAN of the newest.
    #[arg(long, value_name = "SPAN")]
    keep_within_hourly: Option<Span>,
    /// Keeps the newest snapshot of each day within SPAN of the newest.
    #[arg(long, value_name = "SPAN")]
    keep_within_daily: Option<Span>,
    /// Keeps the newest snapshot of each week within SPAN of the newest.
    #[arg(long, value_name = "SPAN")]
    keep_within_weekly: Option<Span>,
    /// Keeps the newest snapshot of each month within SPAN of the newest.
    #[arg(long, value_name = "SPAN")]
    keep_within_monthly: Option<Span>,
    /// Keeps the newest snapshot of each year within SPAN of the newest.
    #[arg(long, value_name = "SPAN")]
    keep_within_yearly: Option<Span>,
    /// Keeps what has this tag, or all of TAG,TAG; may be repeated.
    #[arg(long, value_name = "TAG[,TAG]")]
    keep_tag: Vec<String>,
}

impl KeepArgs {
    /// Returns the rules; void ones are none.
    pub(crate) fn rules(&self) -> Vec<Rule> {
        use Period::{Day, Each, Hour, Month, Week, Year};
        let counts = [
            (Each, self.keep_last),
            (Hour, self.keep_hourly),
            (Day, self.keep_daily),
            (Week, self.keep_weekly),
            (Month, self.keep_monthly),
            (Year, self.keep_yearly),
        ];
        let spans = [
            (Each, self.keep_within),
            (Hour, self.keep_within_hourly),
            (Day, self.keep_within_daily),
            (Week, self.keep_within_weekly),
            (Month, self.keep_within_monthly),
            (Year, self.keep_within_yearly),
        ];
        let counts = counts.into_iter().filter_map(|(period, count)| Some(Rule::Count(period, count?)));
        let spans = spans.into_iter().filter_map(|(period, span)| Some(Rule::Within(period, span?)));
        let tags = self.keep_tag.iter().map(|list| tags_of(list));
        counts.chain(spans).chain(tags).filter(|rule| !rule.is_void()).collect()
    }
}

/// A policy of the config.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct NamedPolicy {
    /// What is kept.
    pub(crate) rules: Vec<Rule>,
    /// By what snapshots are told apart, if it says so.
    pub(crate) group_by: Option<GroupBy>,
}

impl NamedPolicy {
    /// Reads what stands below `[policies.NAME]`.
    pub(crate) fn of_table(table: &dyn TableLike) -> Result<Self, String> {
        let mut policy = Self::default();
        for (key, item) in table.iter() {
            let value = item.as_value().ok_or_else(|| format!("{key} is no value"))?;
            let wrong = |error| format!("{key}: {error}");
            if let Some((period, ..)) = PERIODS.iter().find(|(_, count, _)| *count == key) {
                policy.rules.push(Rule::Count(*period, count_of(value).map_err(wrong)?));
            } else if let Some((period, ..)) = PERIODS.iter().find(|(.., within)| *within == key) {
                policy.rules.push(Rule::Within(*period, text_of(value).and_then(str::parse).map_err(wrong)?));
            } else if key == TAGS {
                policy.rules.extend(tag_lists(value).map_err(wrong)?);
            } else if key == GROUP_BY {
                policy.group_by = Some(text_of(value).and_then(parse_group_by).map_err(wrong)?);
            } else {
                let known = PERIODS.iter().flat_map(|(_, count, within)| [*count, *within]);
                let known: Vec<_> = known.chain([TAGS, GROUP_BY]).collect();
                return Err(format!("key {key:?} is not known: there are {}", known.join(", ")));
            }
        }
        policy.rules.retain(|rule| !rule.is_void());
        if policy.rules.is_empty() { Err("it keeps nothing".to_owned()) } else { Ok(policy) }
    }
}

/// Returns the tables of `[policies]` by name, read or refused.
pub(crate) fn named(policies: &Item) -> Vec<(String, Result<NamedPolicy, String>)> {
    let read = |(name, item): (&str, &Item)| {
        let table = item.as_table_like().ok_or_else(|| format!("it is no table: write [policies.{name}]"));
        (name.to_owned(), table.and_then(NamedPolicy::of_table))
    };
    policies.as_table_like().map(|tables| tables.iter().map(read).collect()).unwrap_or_default()
}

/// Reads `host,paths,tags`, any of them, or nothing for all in one group.
pub(crate) fn parse_group_by(text: &str) -> Result<GroupBy, String> {
    let mut by = GroupBy { host: false, paths: false, tags: false };
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        match word {
            "host" | "hosts" => by.host = true,
            "path" | "paths" => by.paths = true,
            "tag" | "tags" => by.tags = true,
            _ => return Err(format!("{word:?} is not known: there are host, paths and tags")),
        }
    }
    Ok(by)
}

fn parse_count(text: &str) -> Result<u32, String> {
    match text {
        "unlimited" => Ok(u32::MAX),
        _ => text.parse().map_err(|_| format!("{text:?} is neither a number nor \"unlimited\"")),
    }
}

fn count_of(value: &Value) -> Result<u32, String> {
    match value.as_integer() {
        Some(number) => u32::try_from(number).map_err(|_| format!("{number} is out of range")),
        None => parse_count(text_of(value)?),
    }
}

fn text_of(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "it is no text".to_owned())
}

fn tag_lists(value: &Value) -> Result<Vec<Rule>, String> {
    match value.as_array() {
        Some(lists) => lists.iter().map(|list| Ok(tags_of(text_of(list)?))).collect(),
        None => Ok(vec![tags_of(text_of(value)?)]),
    }
}

fn tags_of(list: &str) -> Rule {
    Rule::Tags(list.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<NamedPolicy, String> {
        NamedPolicy::of_table(text.parse::<toml_edit::DocumentMut>().unwrap().as_table())
    }

    #[test]
    fn a_policy_of_the_config_has_the_words_of_the_command_line() {
        let text =
            "keep_last = 3\nkeep_daily = \"unlimited\"\nkeep_within_weekly = \"1y\"\nkeep_tag = [\"a,b\", \"c\"]";
        let args = KeepArgs {
            keep_last: Some(3),
            keep_daily: Some(u32::MAX),
            keep_within_weekly: Some("1y".parse().unwrap()),
            keep_tag: vec!["a,b".to_owned(), " c".to_owned()],
            ..KeepArgs::default()
        };
        assert_eq!(of(text).unwrap(), NamedPolicy { rules: args.rules(), group_by: None });
        let grouped = of("keep_last = 1\ngroup_by = \"host, tags\"").unwrap();
        assert_eq!(grouped.group_by, Some(GroupBy { host: true, paths: false, tags: true }));
    }

    #[test]
    fn a_policy_that_cannot_be_meant_is_refused_by_name() {
        let check = |text: &str, why: &str| {
            let error = of(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        };
        check("keep_dayly = 3", "\"keep_dayly\" is not known");
        check("keep_daily = -1", "keep_daily: -1 is out of range");
        check("keep_daily = \"many\"", "neither a number");
        check("keep_within = 7", "it is no text");
        check("keep_within = \"7 days\"", "is no span");
        check("keep_daily = 1\ngroup_by = \"user\"", "\"user\" is not known");
        check("keep_daily = 0", "it keeps nothing");
        check("[keep_daily]\nx = 1", "is no value");
    }
}
