//! What a policy keeps: a table of cases, and what must hold of any group and policy.

use proptest::prelude::*;

use super::super::id::SnapshotId;
use super::*;

const HOUR: i64 = 3_600_000;
const DAY: i64 = 24 * HOUR;

fn ms(time: &str) -> i64 {
    time.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

/// Returns a complete snapshot, put a minute after it was begun.
fn at(time: &str) -> Candidate {
    let unix_ms = ms(time);
    let name = SnapshotName { unix_ms, id: SnapshotId([0; 16]) };
    Candidate { name, put_unix_ms: unix_ms + 60_000, tags: vec![], incomplete: false }
}

fn within(period: Period, span: &str) -> Rule {
    Rule::Within(period, span.parse().unwrap())
}

/// Holds what a rule keeps, by the places in `group`, with their reasons.
#[track_caller]
fn check(group: &[Candidate], rules: &[Rule], expected: &[(usize, &str)]) {
    let reasons = decide(group, rules).into_iter().enumerate();
    let kept: Vec<_> = reasons.filter(|(_, all)| !all.is_empty()).map(|(at, all)| (at, all.join("; "))).collect();
    let expected: Vec<_> = expected.iter().map(|(at, reason)| (*at, (*reason).to_owned())).collect();
    assert_eq!(kept, expected);
}

#[test]
fn rules_mean_what_restics_do() {
    use Period::{Day, Each, Hour, Month, Week, Year};
    let days = [
        at("2025-12-30T10:00:00Z"), // 0: Tuesday of the ISO week that is 2026's first
        at("2026-01-01T08:00:00Z"), // 1
        at("2026-01-04T23:59:59Z"), // 2: the last second of that week
        at("2026-01-05T00:00:00Z"), // 3: the first of the next
        at("2026-01-05T00:30:00Z"), // 4
        at("2026-01-05T23:00:00Z"), // 5
    ];
    check(&days, &[Rule::Count(Each, 2)], &[(4, "last snapshot"), (5, "last snapshot")]);
    check(&days, &[Rule::Count(Hour, 2)], &[(4, "hourly snapshot"), (5, "hourly snapshot")]);
    check(&days, &[Rule::Count(Day, 2)], &[(2, "daily snapshot"), (5, "daily snapshot")]);
    check(&days, &[Rule::Count(Week, 2)], &[(2, "weekly snapshot"), (5, "weekly snapshot")]);
    check(&days, &[Rule::Count(Month, 2)], &[(0, "monthly snapshot"), (5, "monthly snapshot")]);
    check(&days, &[Rule::Count(Year, 1)], &[(5, "yearly snapshot")]);
    check(&days, &[Rule::Count(Year, 3)], &[(0, "yearly snapshot"), (5, "yearly snapshot")]);
    check(
        &days,
        &[Rule::Count(Week, 3)],
        &[(0, "oldest weekly snapshot"), (2, "weekly snapshot"), (5, "weekly snapshot")],
    );
    check(&days, &[within(Each, "23h")], &[(4, "within 23h"), (5, "within 23h")]);
    check(&days, &[within(Day, "1d")], &[(2, "daily within 1d"), (5, "daily within 1d")]);
    let both = [Rule::Count(Each, 1), Rule::Count(Day, 1)];
    check(&days, &both, &[(5, "last snapshot; daily snapshot")]);
    check(&days, &[Rule::Count(Day, 0)], &[]);
    check(&[], &both, &[]);
}

#[test]
fn tags_keep_what_has_all_of_them() {
    let tagged = |tags: &[&str]| Candidate {
        tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
        ..at("2026-01-01T00:00:00Z")
    };
    let group = [tagged(&["a"]), tagged(&["b", "a"]), tagged(&[])];
    check(&group, &[Rule::Tags(vec!["a".into(), "b".into()])], &[(1, "tag a,b")]);
    check(&group, &[Rule::Tags(vec![])], &[]);
}

#[test]
fn incomplete_snapshots_are_counted_by_themselves() {
    let incomplete = |time| Candidate { incomplete: true, ..at(time) };
    let group = [
        at("2026-01-01T00:00:00Z"),
        at("2026-01-02T00:00:00Z"),
        incomplete("2026-01-02T12:00:00Z"),
        incomplete("2026-01-03T00:00:00Z"),
    ];
    check(&group, &[Rule::Count(Period::Day, 1)], &[(1, "daily snapshot"), (3, "daily snapshot")]);
}

#[test]
fn a_wrong_clock_pushes_nothing_out() {
    let put = |made: &str, put: &str| Candidate { put_unix_ms: ms(put), ..at(made) };
    let good = [at("2026-01-01T00:00:00Z"), at("2026-01-02T00:00:00Z"), at("2026-01-03T00:00:00Z")];
    let ahead = put("2099-01-01T00:00:00Z", "2026-01-03T09:00:00Z");
    let group = [&good[..], &[ahead]].concat();
    // The third day's place by the store's time is taken by what came that day, as it would be with a true clock.
    let by_store = "daily snapshot by the store's time";
    check(&group, &[Rule::Count(Period::Day, 2)], &[(1, by_store), (2, "daily snapshot"), (3, "daily snapshot")]);
    // Forged into the evenings of the days before: the good ones stay.
    let forged = |day: u32| put(&format!("2026-01-0{day}T23:59:59Z"), "2026-01-09T00:00:00Z");
    let group = [&good[..], &[forged(1), forged(2), forged(3)]].concat();
    let kept = decide(&group, &[Rule::Count(Period::Day, 4)]);
    assert!(kept[..3].iter().all(|reasons| !reasons.is_empty()), "{kept:?}");
    // A kloset that was copied: all came to this store in one hour, and their own times count.
    let copied = ["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"];
    let copied = copied.map(|made| put(made, "2026-06-01T00:00:00Z"));
    assert!(decide(&copied, &[Rule::Count(Period::Year, 3)]).iter().all(|reasons| !reasons.is_empty()));
}

#[test]
fn a_span_is_read_as_it_is_written() {
    for text in ["2y5m7d3h", "1y", "30d", "9999h"] {
        assert_eq!(text.parse::<Span>().unwrap().to_string(), text);
    }
    for wrong in ["", "0d", "7", "d", "7w", "1d1d", "-1d", "10000d", "1d ", "1.5d", "1ü"] {
        assert!(wrong.parse::<Span>().is_err(), "{wrong}");
    }
    let span: Span = "1m1d".parse().unwrap();
    assert_eq!(span.before(ms("2026-03-31T12:00:00Z")), ms("2026-02-27T12:00:00Z"));
    assert!("9999y".parse::<Span>().unwrap().before(0) < 0);
}

fn periods() -> impl Strategy<Value = Period> {
    use Period::{Day, Each, Hour, Month, Week, Year};
    prop::sample::select(vec![Each, Hour, Day, Week, Month, Year])
}

fn rules() -> impl Strategy<Value = Rule> {
    let span = (0_u16..2, 0_u16..4, 0_u16..40, 1_u16..40).prop_map(|(years, months, days, hours)| Span {
        years,
        months,
        days,
        hours,
    });
    prop_oneof![
        3 => (periods(), 1_u32..5).prop_map(|(period, count)| Rule::Count(period, count)),
        2 => (periods(), span).prop_map(|(period, span)| Rule::Within(period, span)),
        1 => prop::sample::select(vec!["a", "b"]).prop_map(|tag| Rule::Tags(vec![tag.into()])),
    ]
}

/// Snapshots within three years, some with times that the store contradicts.
fn groups() -> impl Strategy<Value = Vec<Candidate>> {
    let one = (0..1000 * DAY, prop_oneof![3 => 0..DAY, 1 => -900 * DAY..900 * DAY], any::<bool>(), 0..4_usize);
    prop::collection::vec(one, 0..25).prop_map(|all| {
        let candidate = |(nth, (made, late, incomplete, tags)): (u8, (i64, i64, bool, usize))| Candidate {
            name: SnapshotName { unix_ms: ms("2024-01-01T00:00:00Z") + made, id: SnapshotId([nth; 16]) },
            put_unix_ms: ms("2024-01-01T00:00:00Z") + made + late,
            tags: [vec![], vec!["a".into()], vec!["b".into()], vec!["a".into(), "b".into()]][tags].clone(),
            incomplete,
        };
        (0..).zip(all).map(candidate).collect()
    })
}

/// Returns the snapshots that a policy keeps.
fn survivors(group: &[Candidate], rules: &[Rule]) -> Vec<Candidate> {
    let kept = decide(group, rules);
    group.iter().zip(kept).filter(|(_, reasons)| !reasons.is_empty()).map(|(one, _)| one.clone()).collect()
}

fn holds_all(some: &[Candidate], all: &[Candidate]) -> bool {
    all.iter().all(|one| some.contains(one))
}

proptest! {
    #[test]
    fn what_a_policy_keeps_a_wider_one_keeps(group in groups(), policy in prop::collection::vec(rules(), 1..4), more in rules()) {
        let kept = survivors(&group, &policy);
        prop_assert!(holds_all(&survivors(&group, &[&policy[..], &[more]].concat()), &kept));
        let wider = policy.into_iter().map(|rule| match rule {
            Rule::Count(period, count) => Rule::Count(period, count + 1),
            Rule::Within(period, span) => Rule::Within(period, Span { days: span.days + 1, ..span }),
            rule @ Rule::Tags(_) => rule,
        });
        prop_assert!(holds_all(&survivors(&group, &wider.collect::<Vec<_>>()), &kept));
    }

    #[test]
    fn a_policy_applied_again_forgets_nothing_more(group in groups(), policy in prop::collection::vec(rules(), 1..4)) {
        let once = survivors(&group, &policy);
        prop_assert_eq!(&survivors(&once, &policy), &once);
    }

    #[test]
    fn the_newest_complete_snapshot_is_kept_by_any_rule_that_counts(group in groups(), rule in rules()) {
        prop_assume!(!matches!(rule, Rule::Tags(_)));
        let newest = group.iter().filter(|one| !one.incomplete).max_by_key(|one| one.name);
        prop_assert!(holds_all(&survivors(&group, &[rule]), newest.map_or(&[], std::slice::from_ref)));
    }

    #[test]
    fn incomplete_snapshots_displace_no_complete_one(group in groups(), policy in prop::collection::vec(rules(), 1..4)) {
        let (complete, _): (Vec<_>, Vec<_>) = group.iter().cloned().partition(|one| !one.incomplete);
        prop_assert!(holds_all(&survivors(&group, &policy), &survivors(&complete, &policy)));
    }

    /// However many they are and whatever times they claim, what came to the store in one moment takes the places of
    /// three days at most: of that day, of the one before it and of the one behind it.
    #[test]
    fn forged_times_push_no_good_snapshot_out(
        days in 1..30_i64,
        forged in prop::collection::vec((-60 * DAY..60 * DAY, any::<bool>()), 0..40),
        count in 4..10_u32,
    ) {
        let begun = ms("2026-01-01T12:00:00Z");
        let good: Vec<_> = (0..days).map(|day| {
            let unix_ms = begun + day * DAY;
            let name = SnapshotName { unix_ms, id: SnapshotId([1; 16]) };
            Candidate { name, put_unix_ms: unix_ms + HOUR, tags: vec![], incomplete: false }
        }).collect();
        let now = begun + days * DAY;
        let forge = |(nth, (late, incomplete)): (u8, (i64, bool))| Candidate {
            name: SnapshotName { unix_ms: now + late, id: SnapshotId([nth; 16]) },
            put_unix_ms: now,
            tags: vec![],
            incomplete,
        };
        let all: Vec<_> = good.iter().cloned().chain((2..).zip(forged).map(forge)).collect();
        let kept = survivors(&all, &[Rule::Count(Period::Day, count)]);
        let mut safe = survivors(&good, &[Rule::Count(Period::Day, count - 3)]);
        safe.retain(|one| Period::Day.number(one.name.unix_ms, 0) < Period::Day.number(now, 0) - 1);
        prop_assert!(holds_all(&kept, &safe));
    }
}
