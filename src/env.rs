//! The clock and the randomness, as values.
//!
//! Everything that needs the time or random bytes is handed an [`Env`], so a test can fix both and today's writer can
//! be compared byte for byte with yesterday's. It knows nothing of what the bytes are for.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

/// The surroundings of a run: clock, randomness, number of cores.
#[derive(Clone, Debug)]
pub struct Env {
    /// Where the time comes from.
    pub clock: Clock,
    /// Where random bytes come from.
    pub entropy: Entropy,
    /// How many things to do at once, 1 to 64.
    pub parallelism: usize,
}

impl Env {
    /// Returns the system's clock, randomness and cores.
    #[must_use]
    pub fn system() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self { clock: Clock::System, entropy: Entropy::System, parallelism: cores.clamp(2, PARALLELISM_MAX) }
    }

    /// Returns a replayable environment: the clock stands at `unix_ms` and moves by 1 ms at each look, the randomness
    /// follows from `seed`.
    #[must_use]
    pub fn seeded(seed: u64, unix_ms: i64) -> Self {
        Self { clock: Clock::Manual(Arc::new(AtomicI64::new(unix_ms))), entropy: Entropy::seeded(seed), parallelism: 2 }
    }
}

/// The most things done at once, whatever the machine has.
pub const PARALLELISM_MAX: usize = 64;

/// A source of the wall-clock time.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The system's clock.
    System,
    /// A clock in milliseconds since 1970 that moves by one at each look.
    Manual(Arc<AtomicI64>),
}

impl Clock {
    /// Returns milliseconds since 1970, UTC.
    #[must_use]
    pub fn unix_ms(&self) -> i64 {
        match self {
            Self::System => system_unix_ms(),
            Self::Manual(now) => now.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Returns the same, and a manual clock does not move: for what only measures how long something took.
    #[must_use]
    pub fn glance_unix_ms(&self) -> i64 {
        match self {
            Self::System => system_unix_ms(),
            Self::Manual(now) => now.load(Ordering::Relaxed),
        }
    }
}

#[allow(clippy::disallowed_methods)] // the one place that asks the system for the time
fn system_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A source of random bytes fit for keys and nonces.
#[derive(Clone)]
pub enum Entropy {
    /// The system's random source.
    System,
    /// A BLAKE3 stream from a seed: for tests and fixtures only.
    Seeded(Arc<Mutex<blake3::OutputReader>>),
}

impl std::fmt::Debug for Entropy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::Seeded(_) => "Seeded",
        })
    }
}

impl Entropy {
    /// Returns a replayable source.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        let reader = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof();
        Self::Seeded(Arc::new(Mutex::new(reader)))
    }

    /// Fills `out` with random bytes.
    ///
    /// # Panics
    /// If the system has no random source: nothing can be sealed safely then.
    #[allow(clippy::disallowed_methods)] // the one place that asks the system for randomness
    pub fn fill(&self, out: &mut [u8]) {
        match self {
            Self::System => getrandom::fill(out).expect("the system has a random source"),
            Self::Seeded(reader) => reader.lock().expect("no panic while filling").fill(out),
        }
    }

    /// Returns `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        self.fill(&mut out);
        out
    }
}

/// Lets the `hpke` crate draw from an [`Entropy`].
pub(crate) struct EntropyRng<'a>(pub(crate) &'a Entropy);

impl rand_core::TryRng for EntropyRng<'_> {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(u32::from_le_bytes(self.0.bytes()))
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(u64::from_le_bytes(self.0.bytes()))
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Self::Error> {
        self.0.fill(dst);
        Ok(())
    }
}

impl rand_core::TryCryptoRng for EntropyRng<'_> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_seed_gives_one_stream_and_one_clock() {
        let (a, b) = (Env::seeded(7, 1000), Env::seeded(7, 1000));
        assert_eq!(a.entropy.bytes::<40>(), b.entropy.bytes::<40>());
        assert_ne!(a.entropy.bytes::<40>(), Env::seeded(8, 0).entropy.bytes::<40>());
        assert_eq!((a.clock.unix_ms(), a.clock.unix_ms()), (1000, 1001));
    }
}
