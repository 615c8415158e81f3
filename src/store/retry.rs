//! Whether and when something is asked again: the only place that decides it, for klosets and for other buckets.
//!
//! Promises: what may get better is asked again, after pauses that grow and are drawn by lot, until it has failed for as
//! long as the budget says; each time is told at `-v` and counted; a store that asks for fewer requests gets fewer
//! (`window`). What gets on between two failures has all of its time again. A store that never answered is given up soon.
//! Each time is a new request with a new signature. It does not know what is asked, and relies on it that asking twice
//! does no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::counts::Counters;
use super::error::{Outage, StoreError};
use super::window::{Turn, Window};
use crate::env::Entropy;

/// How long and how often to ask again.
#[derive(Clone, Debug)]
pub struct RetryOptions {
    /// How long something may fail, counted from its first failure.
    pub budget: Duration,
    /// How often it is asked again; by default time alone decides.
    pub times_max: u32,
    /// The longest first pause; each is twice the one before, up to 5 seconds.
    pub pause_first: Duration,
    /// Draws the pauses.
    pub entropy: Entropy,
}

impl Default for RetryOptions {
    fn default() -> RetryOptions {
        RetryOptions {
            // A router that starts anew, a server that is updated.
            budget: Duration::from_secs(300),
            times_max: u32::MAX,
            pause_first: Duration::from_millis(100),
            entropy: Entropy::System,
        }
    }
}

/// The longest pause: how late the end of an outage is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A store that has not answered once is not worth minutes: a wrong port shows after about a second.
const CONNECTS_BEFORE_FIRST_ANSWER_MAX: u32 = 4;
/// Who waits longer is told why, without having asked for it.
const SILENT_MAX: Duration = Duration::from_secs(15);

/// What all requests to one store have in common.
#[derive(Debug)]
pub(super) struct Retries {
    options: RetryOptions,
    counters: Arc<Counters>,
    window: Window,
    has_answered: AtomicBool,
    failed_connects: AtomicU32,
    /// The outage that goes on was told.
    is_told: AtomicBool,
}

impl Retries {
    pub(super) fn new(options: RetryOptions, counters: Arc<Counters>) -> Retries {
        let (window, has_answered, failed_connects, is_told) = Default::default();
        Retries { options, counters, window, has_answered, failed_connects, is_told }
    }

    /// Asks everything once.
    pub(super) fn never(counters: Arc<Counters>) -> Retries {
        Retries::new(RetryOptions { times_max: 0, ..RetryOptions::default() }, counters)
    }

    /// Begins to ask for something.
    pub(super) fn begin(&self) -> Tries<'_> {
        Tries { retries: self, cuts: 0, in_row: 0, failing_since: None, repeats: 0 }
    }

    /// Tells whether this failure of a store that never answered is one too many.
    fn is_given_up(&self, why: Outage) -> bool {
        matches!(why, Outage::Refused | Outage::UnknownHost)
            && !self.has_answered.load(Ordering::Relaxed)
            && self.failed_connects.fetch_add(1, Ordering::Relaxed) + 1 >= CONNECTS_BEFORE_FIRST_ANSWER_MAX
    }

    fn answered(&self) {
        self.has_answered.store(true, Ordering::Relaxed);
        self.window.answered();
    }
}

/// Asking for one thing until it is there or given up.
pub(super) struct Tries<'a> {
    retries: &'a Retries,
    cuts: u64,
    /// Failures since it last got on.
    in_row: u32,
    failing_since: Option<Instant>,
    repeats: usize,
}

impl<'a> Tries<'a> {
    /// Waits for its turn; a request is under way until it is dropped.
    pub(super) async fn turn(&mut self) -> Turn<'a> {
        let turn = self.retries.window.turn().await;
        self.cuts = turn.cuts;
        turn
    }

    /// How often it was asked again.
    pub(super) fn repeats(&self) -> usize {
        self.repeats
    }

    /// Something of it has come: what fails now has not failed for long.
    pub(super) fn progressed(&mut self) {
        (self.in_row, self.failing_since) = (0, None);
    }

    /// Returns what came, or the failure that is the last one; `None` when it is time to ask again.
    pub(super) async fn judge<T>(&mut self, outcome: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        let error = match outcome {
            Ok(value) => {
                self.retries.answered();
                self.retries.is_told.store(false, Ordering::Relaxed);
                return Ok(Some(value));
            }
            Err(error) => error,
        };
        let Some(why) = error.outage() else {
            self.retries.answered();
            return Err(error);
        };
        if matches!(why, Outage::Busy | Outage::Failing) {
            self.retries.has_answered.store(true, Ordering::Relaxed);
        }
        if why == Outage::Busy {
            self.retries.counters.slow_down();
            self.retries.window.slow_down(self.cuts);
        }
        let failing = self.failing_since.get_or_insert_with(Instant::now).elapsed();
        let options = &self.retries.options;
        let most = pause_max(options.pause_first, self.in_row);
        let pause = drawn(most, u32::from_le_bytes(options.entropy.bytes()));
        let is_over = self.in_row >= options.times_max || failing + pause > options.budget;
        if !why.may_end() || is_over || self.retries.is_given_up(why) {
            return Err(error.after(self.repeats, failing));
        }
        self.tell(&error, failing, pause);
        (self.in_row, self.repeats) = (self.in_row + 1, self.repeats + 1);
        self.retries.counters.retry();
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        Ok(None)
    }

    fn tell(&self, error: &StoreError, failing: Duration, pause: Duration) {
        let what = error.brief();
        tracing::info!("{what}: again in {:.1} s (repetition {})", pause.as_secs_f64(), self.repeats + 1);
        if failing >= SILENT_MAX && !self.retries.is_told.swap(true, Ordering::Relaxed) {
            let budget = self.retries.options.budget.as_secs();
            tracing::warn!("{what}: the store has not answered for {} s, trying for {budget} s", failing.as_secs());
        }
    }
}

/// The longest pause after so many failures in a row.
fn pause_max(first: Duration, in_row: u32) -> Duration {
    first.saturating_mul(1 << in_row.min(16)).min(PAUSE_MAX)
}

/// A pause between half of the longest and all of it, so that those who failed together do not come back together.
fn drawn(most: Duration, lot: u32) -> Duration {
    most / 2 + (most / 2).mul_f64(f64::from(lot) / f64::from(u32::MAX))
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
