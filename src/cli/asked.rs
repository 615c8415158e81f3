//! What a command asked of the store, for its summary: as words, and as JSON.

use serde_json::Value;

use super::output::Output;
use crate::store::StoreCounts;

/// Adds what was asked to a summary.
pub(super) fn add(summary: &mut Value, counts: &StoreCounts) {
    summary["requests"] = counts.requests().into();
    summary["retries"] = counts.http_retries.into();
    summary["slow_downs"] = counts.slow_downs.into();
}

/// Tells people what did not go well at once.
pub(super) fn tell_again(counts: &StoreCounts, out: &mut Output) {
    let again = again(counts);
    if !again.is_empty() && !out.is_json() {
        out.note(format!("{} requests{again}", counts.requests()));
    }
}

/// Continues "so many requests"; empty where each was answered at once.
pub(super) fn again(counts: &StoreCounts) -> String {
    let mut text = String::new();
    if counts.http_retries > 0 {
        text.push_str(&format!(", {} of them again", counts.http_retries));
    }
    if counts.slow_downs > 0 {
        text.push_str(&format!(", {} answered with the wish for fewer", counts.slow_downs));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_did_not_go_well_is_told() {
        let of = |http_retries, slow_downs| again(&StoreCounts { http_retries, slow_downs, ..StoreCounts::default() });
        assert_eq!(of(0, 0), "");
        assert_eq!(of(3, 0), ", 3 of them again");
        assert_eq!(of(3, 2), ", 3 of them again, 2 answered with the wish for fewer");
    }
}
