//! What a store can do, found out by trying: about 25 requests below a name of its own.
//!
//! Promises to touch no object but those it puts, to delete these where it may and to name the others, and that what it
//! calls good was seen and not read in a header. Failures of the store are findings, not errors. It does not know
//! klosets, and changes no config.

mod bucket;
mod clock;
mod folder;
mod lock;
mod reach;

use super::{S3Options, StoreError, StoreLocation};
use crate::env::{Entropy, Env};

/// How a finding is to be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As a kloset wants it.
    Ok,
    /// Good to know; a kloset works all the same.
    Note,
    /// A kloset does not work like this.
    Fail,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was tried, in a word or three.
    pub what: &'static str,
    /// How it is to be taken.
    pub verdict: Verdict,
    /// What was found, and what to do.
    pub text: String,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In the order in which it was tried.
    pub findings: Vec<Finding>,
    /// Keys and values of the config with which the store answers; empty where it does not, and for a folder.
    pub settings: Vec<(&'static str, String)>,
    /// Objects of ours that could not be deleted.
    pub left: Vec<String>,
    /// How many requests it took.
    pub requests: u64,
}

impl Report {
    /// Whether everything that a kloset needs holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Fail)
    }

    fn tell(&mut self, what: &'static str, verdict: Verdict, text: impl Into<String>) {
        self.findings.push(Finding { what, verdict, text: text.into() });
    }

    fn ok(&mut self, what: &'static str, text: impl Into<String>) {
        self.tell(what, Verdict::Ok, text);
    }

    fn note(&mut self, what: &'static str, text: impl Into<String>) {
        self.tell(what, Verdict::Note, text);
    }

    fn fail(&mut self, what: &'static str, text: impl Into<String>) {
        self.tell(what, Verdict::Fail, text);
    }
}

/// The length of the longest object that a kloset puts often: a pack.
const PACK_BYTES: usize = 16 << 20;
/// The length of the small objects.
const PROBE_BYTES: usize = 1024;

/// Finds out what a store can do.
///
/// # Errors
/// [`StoreError::Misconfigured`]: what was said does not fit together, and nothing was sent.
pub async fn examine(location: &StoreLocation, options: &S3Options, env: &Env) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let name = format!("doctor-{:016x}", u64::from_le_bytes(env.entropy.bytes()));
    match location {
        StoreLocation::Folder(folder) => folder::examine(&mut report, folder, &name, env).await,
        StoreLocation::S3 { .. } => {
            if let Some(bucket) = reach::reach(&mut report, location, options, (&name, env)).await? {
                bucket::examine(&mut report, bucket, env).await;
            }
        }
    }
    Ok(report)
}

/// Content that no server has seen and none can shorten.
fn noise(entropy: &Entropy, bytes: usize) -> bytes::Bytes {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&entropy.bytes::<32>()).finalize_xof().fill(&mut out);
    out.into()
}

/// How fast so many bytes went, for people.
fn speed(bytes: usize, took: std::time::Duration) -> String {
    let seconds = took.as_secs_f64().max(1e-3);
    let rate = bytes as f64 / 1e6 / seconds;
    format!("{rate:.1} MB/s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_and_only_a_failure_is_enough_for_a_no() {
        let mut report = Report::default();
        report.ok("a", "");
        report.note("b", "");
        assert!(report.holds());
        report.fail("c", "");
        assert!(!report.holds());
    }

    #[test]
    fn content_is_never_the_same_and_speed_is_told_of_no_time_too() {
        let entropy = Entropy::seeded(1);
        assert_ne!(noise(&entropy, 32), noise(&entropy, 32));
        assert_eq!(speed(16_000_000, std::time::Duration::from_secs(2)), "8.0 MB/s");
        assert!(speed(16, std::time::Duration::ZERO).ends_with("MB/s"));
    }
}
