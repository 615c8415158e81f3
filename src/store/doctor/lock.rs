//! Whether objects of a bucket are kept: versions, object lock, default retention.
//!
//! Reads what the bucket says of itself where the key may, else what it says of an object that was put.

use http::{HeaderMap, Method};

use super::super::StoreError;
use super::super::bucket::{Bucket, Request};
use super::Report;

/// Rules of a bucket are shorter.
const RULES_BYTES_MAX: u64 = 64 << 10;
/// Answers that say: not for you, not here, or not known.
const NOT_KNOWN: &[u16] = &[400, 403, 404, 405];

/// Tells of versions and of object lock, by the object that was put and the headers of the answer to that.
pub(super) async fn examine(report: &mut Report, bucket: &Bucket, key: &str, put: &HeaderMap) {
    let text =
        |headers: &HeaderMap, name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    // There are servers that name versions and keep none: the header alone says nothing.
    let names_version = text(put, "x-amz-version-id").is_some_and(|version| version != "null");
    match rules(bucket, "versioning").await.ok().flatten() {
        Some(rules) if rules.contains("<Status>Enabled</Status>") => report
            .ok("versions", "kept: what is deleted or overwritten can be had back until a rule of the bucket ends it"),
        None if names_version => report.note("versions", "said to be kept, which this key may not look up"),
        _ => report.note("versions", "none are kept: what a key deletes is gone, see docs/ransomware.md"),
    }
    let head = Request { expects: NOT_KNOWN, ..Request::new(Method::HEAD, key) };
    let head = bucket.send("reading", key, &head).await;
    let of_object = head.ok().filter(|reply| reply.status < 300).and_then(|reply| {
        let until = text(&reply.headers, "x-amz-object-lock-retain-until-date")?;
        Some((text(&reply.headers, "x-amz-object-lock-mode")?, until))
    });
    if let Some((mode, until)) = of_object {
        report.ok("object lock", format!("{mode} until {until}, for what is put now"));
        return;
    }
    match rules(bucket, "object-lock").await {
        Ok(Some(rules)) => judge(report, &rules),
        Ok(None) => report.note("object lock", "none, or not to be seen by this key"),
        Err(error) => report.note("object lock", format!("not known: {error}")),
    }
}

/// Reads the bucket's rules of a kind; `None` where there are none to be seen.
async fn rules(bucket: &Bucket, kind: &'static str) -> Result<Option<String>, StoreError> {
    let query = vec![(kind, String::new())];
    let request =
        Request { key: None, query, bytes_max: RULES_BYTES_MAX, expects: NOT_KNOWN, ..Request::new(Method::GET, "") };
    let reply = bucket.send("reading the rules of", "", &request).await?;
    Ok((reply.status < 300).then(|| String::from_utf8_lossy(&reply.body).into_owned()))
}

fn judge(report: &mut Report, rules: &str) {
    let between = |tag: &str| {
        let (_, rest) = rules.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once("</")?.0.trim().to_owned()).filter(|text| !text.is_empty())
    };
    if between("ObjectLockEnabled").as_deref() != Some("Enabled") {
        report.note("object lock", "none");
        return;
    }
    let time = between("Days").map(|days| format!("{days} days"));
    let time = time.or_else(|| between("Years").map(|years| format!("{years} years")));
    match (between("Mode"), time) {
        (Some(mode), Some(time)) => report.ok("object lock", format!("{mode} for {time}, for whatever is put")),
        _ => report.note(
            "object lock",
            "on, without a default retention: nothing is locked; give the bucket one, see docs/ransomware.md",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[track_caller]
    fn check(rules: &str, verdict: Verdict, text: &str) {
        let mut report = Report::default();
        judge(&mut report, rules);
        let finding = report.findings.first().unwrap();
        assert!(finding.verdict == verdict && finding.text.contains(text), "{finding:?}");
    }

    #[test]
    fn rules_of_object_lock_are_understood() {
        let rule = |rule: &str| {
            format!("<ObjectLockConfiguration xmlns=\"u\"><ObjectLockEnabled>Enabled</ObjectLockEnabled>{rule}</x>")
        };
        let days = "<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>30</Days></DefaultRetention></Rule>";
        check(&rule(days), Verdict::Ok, "COMPLIANCE for 30 days");
        let years = "<Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Years>1</Years></DefaultRetention></Rule>";
        check(&rule(years), Verdict::Ok, "GOVERNANCE for 1 years");
        check(&rule(""), Verdict::Note, "without a default retention");
        check("<ObjectLockConfiguration/>", Verdict::Note, "none");
        check("", Verdict::Note, "none");
    }
}
