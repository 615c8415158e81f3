//! How far this machine's clock is from the store's. Pure.

use super::Report;

/// The time of a store is to the second, and the answer was on its way.
const SAME_SECONDS_MAX: i64 = 5;
/// From here on stores refuse requests, as AWS has it.
const REFUSED_FROM_MINUTES: i64 = 15;

/// Compares both clocks; `None` where the store does not tell its own.
pub(super) fn judge(report: &mut Report, ours_unix_ms: i64, theirs_unix_ms: Option<i64>) {
    let Some(theirs_unix_ms) = theirs_unix_ms else {
        report.note("clock", "the store does not tell its time");
        return;
    };
    let behind = theirs_unix_ms.div_euclid(1000) - ours_unix_ms.div_euclid(1000);
    if behind.abs() <= SAME_SECONDS_MAX {
        report.ok("clock", "this machine's is the store's, to the second");
        return;
    }
    let way = if behind > 0 { "behind" } else { "ahead of" };
    let text = format!(
        "this machine's is {} s {way} the store's: set it by NTP (from {REFUSED_FROM_MINUTES} minutes on most stores \
         refuse all requests)",
        behind.abs()
    );
    report.note("clock", text);
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[track_caller]
    fn check(ours: i64, theirs: Option<i64>, verdict: Verdict, text: &str) {
        let mut report = Report::default();
        judge(&mut report, ours, theirs);
        let finding = report.findings.first().unwrap();
        assert_eq!(finding.verdict, verdict);
        assert!(finding.text.contains(text), "{}", finding.text);
    }

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        check(1_000_999, Some(1_003_000), Verdict::Ok, "to the second");
        check(1_000_000, Some(1_600_000), Verdict::Note, "600 s behind");
        check(1_600_000, Some(1_000_000), Verdict::Note, "600 s ahead of");
        check(1_000_000, None, Verdict::Note, "does not tell");
    }
}
