//! Limits of what goes up and comes down: bytes a second, over all clones of a store.
//!
//! Promises that in any stretch of time no more passes than the rate allows, an eighth of a second's worth and one piece;
//! what was not used up before is not saved. What comes down may be in the system's buffers sooner: it is taken from
//! there by the rate, and TCP holds back the rest. It counts the content of objects that are put and got, repeated uploads
//! too, not headers and listings. With a limit two objects pass at a time, so that the first is done first and none
//! waits until its server has given it up. A bucket's uploads go in pieces of 16 KiB (`paced`), a folder's objects are
//! waited for whole. It does not know HTTP.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// The slowest limit: an object of 16 MiB takes a quarter of an hour, and servers wait no longer for less.
pub const RATE_MIN: u64 = 16 << 10;
/// Objects that pass at once: one waits for the network while the other uses it.
const AT_ONCE: usize = 2;
/// What may be late is made up for within this time.
const BURST: Duration = Duration::from_millis(125);

/// The most bytes a second in each direction; by default there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// To the store.
    pub up: Option<u64>,
    /// From it.
    pub down: Option<u64>,
}

/// The limits of a store; clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    pub(super) up: Option<Arc<Limit>>,
    pub(super) down: Option<Arc<Limit>>,
}

impl Limits {
    pub(super) fn new(rates: Rates) -> Limits {
        let limit = |rate: Option<u64>| rate.map(|rate| Arc::new(Limit::new(rate.max(RATE_MIN))));
        Limits { up: limit(rates.up), down: limit(rates.down) }
    }
}

/// The limit of one direction.
#[derive(Debug)]
pub(super) struct Limit {
    rate: u64,
    begun: Instant,
    bucket: Mutex<Bucket>,
    slots: Semaphore,
}

impl Limit {
    fn new(rate: u64) -> Limit {
        Limit { rate, begun: Instant::now(), bucket: Mutex::default(), slots: Semaphore::new(AT_ONCE) }
    }

    /// Waits until these bytes fit.
    pub(super) async fn pass(&self, bytes: usize) {
        let wait = {
            let mut bucket = self.bucket.lock().expect("no panic while held");
            bucket.take(bytes as u64, self.rate, self.begun.elapsed())
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    /// How long an object may take more than it would without a limit.
    pub(super) fn delay(&self, bytes: u64) -> Duration {
        time_of(bytes * AT_ONCE as u64, self.rate)
    }
}

/// Waits until another object may pass, if there is a limit; first come, first served.
pub(super) async fn slot(limit: &Option<Arc<Limit>>) -> Option<SemaphorePermit<'_>> {
    match limit {
        Some(limit) => Some(limit.slots.acquire().await.expect("it is never closed")),
        None => None,
    }
}

/// Waits until these bytes fit, if there is a limit.
pub(super) async fn pass(limit: &Option<Arc<Limit>>, bytes: usize) {
    if let Some(limit) = limit {
        limit.pass(bytes).await;
    }
}

/// When all that has passed is within the rate, counted from the beginning.
#[derive(Debug, Default)]
struct Bucket {
    even_at: Duration,
}

impl Bucket {
    /// Takes bytes at a time and returns how long they have to wait.
    fn take(&mut self, bytes: u64, rate: u64, now: Duration) -> Duration {
        self.even_at = self.even_at.max(now.saturating_sub(BURST)) + time_of(bytes, rate);
        self.even_at.saturating_sub(now)
    }
}

fn time_of(bytes: u64, rate: u64) -> Duration {
    let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn never_more_passes_than_the_rate_and_a_burst() {
        let (mut bucket, piece, mut now, mut passed) = (Bucket::default(), 16 << 10, Duration::ZERO, 0);
        while now < Duration::from_secs(3) {
            now += bucket.take(piece, MIB, now);
            passed += piece;
            let most = MIB * now.as_millis() as u64 / 1000 + MIB / 8 + 2 * piece;
            assert!(passed <= most, "{passed} after {now:?}");
            assert!(passed + 2 * piece >= MIB * now.as_millis() as u64 / 1000, "{passed} after {now:?}: too few");
        }
    }

    #[test]
    fn late_sleepers_are_made_up_for_and_idle_time_is_not_saved() {
        let mut bucket = Bucket::default();
        assert_eq!(bucket.take(MIB, MIB, Duration::ZERO), Duration::from_secs(1));
        // 50 ms late: the next one waits for less.
        let late = Duration::from_millis(1050);
        assert_eq!(bucket.take(MIB / 10, MIB, late).as_millis(), 49);
        // An hour later only the burst is there.
        let hour = Duration::from_secs(3600);
        assert_eq!(bucket.take(MIB, MIB, hour), Duration::from_millis(875));
    }

    #[test]
    fn several_wait_behind_each_other() {
        let mut bucket = Bucket::default();
        let waits: Vec<u64> = (0..3).map(|_| bucket.take(MIB, MIB, Duration::ZERO).as_secs()).collect();
        assert_eq!(waits, [1, 2, 3]);
        assert_eq!(Limit::new(RATE_MIN).delay(16 * MIB), Duration::from_secs(2048));
    }
}
