//! Seeded randomness for tests: one seed, one run.

/// A small generator (SplitMix64): its state is its seed, so that a test can print it.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1))
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number under `bound`, 0 for a bound of 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// Returns one of them.
    pub(crate) fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

/// Returns `bytes` incompressible bytes that follow from `seed`.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Tells whether the long sizes are asked for: `KLOSET_SLOW=1`.
#[allow(clippy::disallowed_methods, reason = "the one place where the tests look at the environment")]
pub(crate) fn slow() -> bool {
    std::env::var_os("KLOSET_SLOW").is_some_and(|value| value != "0")
}

/// Returns `regular`, or `long` where the long sizes are asked for.
pub(crate) fn size(regular: u64, long: u64) -> u64 {
    if slow() { long } else { regular }
}
