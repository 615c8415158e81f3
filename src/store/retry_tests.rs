//! The rule of asking again, by a clock that stands still until somebody sleeps.

use super::*;
use crate::store::Place;

fn failure(why: Outage) -> StoreError {
    let at = Place { operation: "reading", name: "packs/a".to_owned(), store: "s3://h/b".into() };
    StoreError::Unreachable { at: Box::new(at), why, detail: "it broke".to_owned(), source: "it broke".into() }
}

fn retries(budget: u64) -> Retries {
    let options =
        RetryOptions { budget: Duration::from_secs(budget), entropy: Entropy::seeded(1), ..RetryOptions::default() };
    Retries::new(options, Arc::default())
}

/// Asks for something that fails each time and returns the last failure, and how long that took.
async fn ask(retries: &Retries, why: Outage) -> (StoreError, Duration) {
    let (begun, mut tries) = (Instant::now(), retries.begin());
    loop {
        let _ = tries.turn().await;
        if let Err(error) = tries.judge::<()>(Err(failure(why))).await {
            return (error, begun.elapsed());
        }
    }
}

#[test]
fn pauses_grow_to_five_seconds_and_differ() {
    let most = |in_row| pause_max(Duration::from_millis(100), in_row).as_millis();
    assert_eq!([0, 1, 2, 5, 6, 100, u32::MAX].map(most), [100, 200, 400, 3200, 5000, 5000, 5000]);
    let second = Duration::from_secs(1);
    assert_eq!((drawn(second, 0).as_millis(), drawn(second, u32::MAX).as_millis()), (500, 1000));
    assert_eq!(drawn(Duration::ZERO, 7), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_sat_out_as_long_as_the_budget_and_no_longer() {
    let retries = retries(300);
    retries.answered();
    for why in [Outage::Broken, Outage::Timeout, Outage::Busy, Outage::Failing, Outage::Refused, Outage::UnknownHost] {
        let (error, took) = ask(&retries, why).await;
        assert!((Duration::from_secs(290)..=Duration::from_secs(300)).contains(&took), "{why:?}: {took:?}");
        assert!(error.to_string().contains("asked again"), "{error}");
        assert!(error.to_string().contains("packs/a"), "{error}");
    }
    assert!(retries.counters.read().http_retries > 6 * 60);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_get_better_is_told_at_once() {
    let retries = retries(300);
    for why in [Outage::TlsToPlain, Outage::PlainToTls, Outage::Certificate] {
        assert_eq!(ask(&retries, why).await.1, Duration::ZERO);
    }
    let gone = || StoreError::NotFound { name: "packs/a".to_owned(), store: "s3://h/b".into() };
    assert!(retries.begin().judge::<()>(Err(gone())).await.unwrap_err().is_not_found());
    assert_eq!(retries.counters.read().http_retries, 0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_never_answered_is_given_up_after_four_attempts_to_connect() {
    let retries = retries(300);
    assert!(ask(&retries, Outage::Refused).await.1 < Duration::from_secs(1));
    assert_eq!(retries.counters.read().http_retries, 3);
}

#[tokio::test(start_paused = true)]
async fn what_gets_on_between_failures_has_all_its_time_again() {
    let retries = retries(10);
    retries.answered();
    let (mut tries, begun) = (retries.begin(), Instant::now());
    for _ in 0..100 {
        tries.progressed();
        for _ in 0..4 {
            assert!(tries.judge::<()>(Err(failure(Outage::Broken))).await.unwrap().is_none());
        }
    }
    assert!(begun.elapsed() > Duration::from_secs(50));
    assert_eq!(tries.judge(Ok(7)).await.unwrap(), Some(7));
    assert_eq!(tries.repeats(), 400);
}

#[tokio::test(start_paused = true)]
async fn a_wish_for_fewer_requests_is_heeded_and_counted() {
    let retries = retries(300);
    let mut all: Vec<_> = (0..8).map(|_| retries.begin()).collect();
    let mut turns = Vec::new();
    for tries in &mut all {
        turns.push(tries.turn().await);
    }
    for tries in &mut all {
        assert!(tries.judge::<()>(Err(failure(Outage::Busy))).await.unwrap().is_none());
    }
    assert_eq!(retries.counters.read().slow_downs, 8);
    drop(turns);
    let turns = [retries.window.turn().await, retries.window.turn().await, retries.window.turn().await];
    let _fourth = retries.window.turn().await;
    let fifth = tokio::time::timeout(Duration::from_secs(1), retries.window.turn()).await;
    assert!(fifth.is_err(), "half of eight are four");
    drop(turns);
}
