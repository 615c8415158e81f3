//! The first request: how the store is reached at all.
//!
//! Tries what was said; where the answer names another way (TLS or not, another region, the bucket in the host's name
//! or in the path), tries that. TLS is left only for this very machine: elsewhere whoever is on the way could make us.

use std::time::{Duration, Instant};

use super::super::error::Outage;
use super::super::{Addressing, Bucket, RetryOptions, S3Options, StoreError, StoreLocation, s3};
use super::{Report, clock};
use crate::env::Env;

/// One for TLS, one for the addressing, and the first.
const TRIES_MAX: usize = 3;
/// What a try may take in all.
const BUDGET: Duration = Duration::from_secs(10);

/// Finds the way to a bucket, and opens what is below `name` in it; `None` where there is none.
pub(super) async fn reach(
    report: &mut Report,
    location: &StoreLocation,
    options: &S3Options,
    (name, env): (&str, &Env),
) -> Result<Option<Bucket>, StoreError> {
    let location = &below(location, name);
    // One repetition: a connection that breaks once is no finding.
    let retry = RetryOptions { times_max: 1, budget: BUDGET, ..options.retry.clone() };
    let mut options = S3Options { retry, ..options.clone() };
    let mut first_failure = None;
    for number in 1.. {
        let bucket = Bucket::open(location, &options)?;
        let begun = Instant::now();
        let outcome = bucket.list(|_| true).await;
        report.requests += bucket.counts().http_requests;
        match outcome {
            Ok(()) => {
                report.ok("reachable", format!("it answers in {} ms", begun.elapsed().as_millis()));
                tell_way(report, location, &options, &bucket);
                clock::judge(report, env.clock.unix_ms(), bucket.date_unix_ms());
                report.requests += tell_other_addressing(report, location, &options).await;
                return Ok(Some(bucket));
            }
            Err(error @ StoreError::Misconfigured { .. }) => return Err(error),
            Err(error) => match other_way(location, &options, &error) {
                Some(other) if number < TRIES_MAX => {
                    // TLS that was put right gets on: what fails then is another failure. An addressing only was a guess.
                    first_failure = (other.use_tls == options.use_tls).then_some(error);
                    options = other;
                }
                _ => {
                    tell_failure(report, first_failure.unwrap_or(error));
                    clock_of_failure(report, env, &bucket);
                    return Ok(None);
                }
            },
        }
    }
    Ok(None)
}

fn below(location: &StoreLocation, name: &str) -> StoreLocation {
    let mut location = location.clone();
    if let StoreLocation::S3 { prefix, .. } = &mut location {
        *prefix = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") };
    }
    location
}

/// Returns options that may work where these did not.
fn other_way(location: &StoreLocation, options: &S3Options, error: &StoreError) -> Option<S3Options> {
    let StoreLocation::S3 { host, .. } = location else { return None };
    match error {
        StoreError::Unreachable { why: Outage::PlainToTls, .. } if !options.use_tls => {
            Some(S3Options { use_tls: true, ..options.clone() })
        }
        StoreError::Unreachable { why: Outage::TlsToPlain, .. } if options.use_tls && s3::is_loopback(host) => {
            Some(S3Options { use_tls: false, ..options.clone() })
        }
        StoreError::NoSuchBucket { .. }
        | StoreError::NotFound { .. }
        | StoreError::Unreachable { why: Outage::UnknownHost | Outage::Certificate, .. } => {
            other_addressing(location, options)
        }
        _ => None,
    }
}

/// The way of naming the bucket that is not the one in use; `None` where there is no other.
fn other_addressing(location: &StoreLocation, options: &S3Options) -> Option<S3Options> {
    let other = if is_virtual(location, options)? { Addressing::Path } else { Addressing::Virtual };
    let other = S3Options { addressing: other, ..options.clone() };
    is_virtual(location, &other).map(|_| other)
}

/// Whether the bucket stands in the host's name; `None` where it cannot.
fn is_virtual(location: &StoreLocation, options: &S3Options) -> Option<bool> {
    let StoreLocation::S3 { host, port, bucket, prefix } = location else { return None };
    let at = s3::Bucket { host, port: *port, bucket, prefix };
    s3::endpoint(&at, options).ok().map(|(_, is_virtual)| is_virtual)
}

fn addressing(is_virtual: bool) -> &'static str {
    if is_virtual { "virtual" } else { "path" }
}

fn tell_way(report: &mut Report, location: &StoreLocation, options: &S3Options, bucket: &Bucket) {
    let StoreLocation::S3 { host, .. } = location else { return };
    match (options.use_tls, options.network.verifies) {
        (true, true) => report.ok("TLS", "the certificate is trusted"),
        (true, false) => report.note("TLS", "the certificate is not looked at: name its authority (ca_file) instead"),
        (false, _) if s3::is_loopback(host) => report.ok("TLS", "none, on this machine"),
        (false, _) => {
            report.note("TLS", "none: all on the way see when what is read; set use_tls to true if it has it");
        }
    }
    let said = s3::region_of(host, options);
    let region = bucket.learned_region();
    match &region {
        Some(region) => report.note("region", format!("{region}, says the store, and not {said}: set region to that")),
        None => report.ok("region", format!("{said} is taken")),
    }
    let is_virtual = is_virtual(location, options).unwrap_or(false);
    report.settings = vec![
        ("use_tls", options.use_tls.to_string()),
        ("region", region.unwrap_or(said)),
        ("addressing", addressing(is_virtual).to_owned()),
    ];
}

/// Tries the other addressing as well, since it is what people ask a store's keeper for.
async fn tell_other_addressing(report: &mut Report, location: &StoreLocation, options: &S3Options) -> u64 {
    let way = addressing(is_virtual(location, options).unwrap_or(false));
    let Some(other) = other_addressing(location, options) else {
        report.ok("addressing", format!("{way}, and there is no other for an address"));
        return 0;
    };
    let retry = RetryOptions { times_max: 0, ..other.retry };
    let Ok(bucket) = Bucket::open(location, &S3Options { retry, ..other }) else { return 0 };
    let works = bucket.list(|_| true).await.is_ok();
    let of_other = if works { "the other works as well" } else { "the other does not work" };
    report.ok("addressing", format!("{way}; {of_other}"));
    bucket.counts().http_requests
}

/// Tells why there is no way.
fn tell_failure(report: &mut Report, error: StoreError) {
    let what = match &error {
        StoreError::Unreachable { why, .. } => match why {
            Outage::TlsToPlain | Outage::PlainToTls | Outage::Certificate => "TLS",
            _ => "reachable",
        },
        StoreError::WrongRegion { .. } => "region",
        StoreError::NoSuchBucket { .. } => "bucket",
        _ => "listing",
    };
    report.fail(what, error.to_string());
}

/// An answer that refuses tells the time, too: where that is the reason, it says by how much.
fn clock_of_failure(report: &mut Report, env: &Env, bucket: &Bucket) {
    if let theirs @ Some(_) = bucket.date_unix_ms() {
        clock::judge(report, env.clock.unix_ms(), theirs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> StoreLocation {
        text.parse().unwrap()
    }

    fn unreachable(why: Outage) -> StoreError {
        let at = super::super::super::Place { operation: "listing", name: String::new(), store: "s".into() };
        StoreError::Unreachable { at: Box::new(at), why, detail: String::new(), source: "x".into() }
    }

    #[test]
    fn tls_is_left_on_this_machine_only() {
        let options = S3Options::default();
        let left = |location| other_way(&at(location), &options, &unreachable(Outage::TlsToPlain));
        assert!(!left("s3://localhost:9000/b").unwrap().use_tls);
        assert!(left("s3://s3.example.com/b").is_none());
        let plain = S3Options { use_tls: false, ..options.clone() };
        let other = other_way(&at("s3://s3.example.com/b"), &plain, &unreachable(Outage::PlainToTls));
        assert!(other.unwrap().use_tls);
    }

    #[test]
    fn the_other_addressing_is_the_one_not_in_use_and_an_address_has_none() {
        let other = |location| other_addressing(&at(location), &S3Options::default()).map(|other| other.addressing);
        assert_eq!(other("s3://s3.eu-west-3.amazonaws.com/b"), Some(Addressing::Path));
        assert_eq!(other("s3://s3.example.com/b"), Some(Addressing::Virtual));
        assert_eq!(other("s3://127.0.0.1:9000/b"), None);
        assert_eq!(below(&at("s3://h/b"), "d"), at("s3://h/b/d"));
        assert_eq!(below(&at("s3://h/b/p"), "d"), at("s3://h/b/p/d"));
    }
}
