//! Cutting of content into chunks: FastCDC, version of 2020, with masks and gear table of the `fastcdc` crate.
//!
//! Normalization level 1, gear table XORed with the kloset's seed, so that the lengths of a known file's chunks
//! cannot be looked up: a hindrance, not a promise (`docs/format.md`, "Chunker", "Threat model"). Ends are those that the
//! crate finds; they are sought here because four places at once are looked through twice as fast as one, and because a
//! look goes on where the last one stopped. It takes bytes and returns lengths; it does not read files.

use super::header::ChunkerSettings;
use fastcdc::v2020;

/// The gear hash has 64 bits and moves by one a byte: what is further back has left it.
const GEAR_BYTES: usize = 64;
/// Each place's bytes: the hash before the next place is made anew from [`GEAR_BYTES`].
const LANE_BYTES: usize = 2048;
/// Places looked through at once. Each hash waits for the one before it; four keep the processor busy meanwhile.
const LANES: usize = 4;

/// Cuts content by one kloset's settings and seed.
pub struct Chunker {
    settings: ChunkerSettings,
    masks: (u64, u64),
    gear: Box<[u64; 256]>,
}

impl Chunker {
    /// Returns the chunker of a kloset.
    ///
    /// # Panics
    /// Never: a byte has 256 values.
    #[must_use]
    pub fn new(settings: ChunkerSettings, seed: u64) -> Self {
        let (gear, _) = v2020::get_gear_with_seed(seed);
        let masks = v2020::select_masks(settings.avg_bytes as usize, v2020::Normalization::Level1);
        Self { settings, masks, gear: gear.into_owned().try_into().expect("a gear for each byte") }
    }

    /// Returns how many bytes [`Chunker::cut`] must see for its answer to be final.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.settings.max_bytes as usize
    }

    /// Returns the length of the first chunk of a window if that is certain: always, where the window holds
    /// [`Chunker::window_bytes`] or all that is left; of less, where the chunk ends before the window does.
    ///
    /// `seen` is how much of this chunk was looked through before, 0 for a new one: the next look goes on there.
    #[must_use]
    pub fn first(&self, window: &[u8], is_end: bool, seen: &mut usize) -> Option<usize> {
        let window = &window[..window.len().min(self.window_bytes())];
        if window.is_empty() || !is_end && window.len() <= self.uncut_bytes() {
            return None;
        }
        let bytes = self.end(window, *seen);
        let is_certain = is_end || bytes < window.len() || bytes == self.window_bytes();
        *seen = if is_certain { 0 } else { even(bytes) };
        is_certain.then_some(bytes)
    }

    /// Returns the length of the first chunk of `content`, which holds [`Chunker::window_bytes`] or all that is left; of less
    /// than that, an end before that of `content` is final, too.
    #[must_use]
    pub fn cut(&self, content: &[u8]) -> usize {
        self.end(content, 0)
    }

    /// Returns the length of the first chunk, which does not end in its first `seen` bytes, an even number.
    fn end(&self, content: &[u8], seen: usize) -> usize {
        let ChunkerSettings { min_bytes, avg_bytes, max_bytes } = self.settings;
        let (least, most) = (min_bytes as usize, content.len().min(max_bytes as usize));
        if most <= least {
            return most;
        }
        let mut at = seen.max(least);
        let mut hash = self.hash(&content[at.saturating_sub(GEAR_BYTES).max(least)..at]);
        // The algorithm goes by pairs: an odd last byte is not looked at.
        for (end, mask) in [(even(most.min(avg_bytes as usize)), self.masks.0), (even(most), self.masks.1)] {
            match self.seek(&content[..end.max(at)], at, &mut hash, mask) {
                Some(found) => return found,
                None => at = at.max(end),
            }
        }
        most
    }

    /// Finds the first byte from `at` on behind which the hash has none of the bits of `mask`. `hash` is that before `at`,
    /// then that of the end.
    fn seek(&self, content: &[u8], mut at: usize, hash: &mut u64, mask: u64) -> Option<usize> {
        while let Some(block) = content[at..].first_chunk::<{ LANES * LANE_BYTES }>() {
            let (lanes, _) = block.as_chunks::<LANE_BYTES>();
            let lanes: &[[u8; LANE_BYTES]; LANES] = lanes.try_into().expect("a block is its lanes");
            let before = |lane: usize| self.hash(&lanes[lane - 1][LANE_BYTES - GEAR_BYTES..]);
            let Some(last) = self.pass(lanes, [*hash, before(1), before(2), before(3)], mask) else {
                break; // which place has the first is found one byte after the other
            };
            *hash = last;
            at += block.len();
        }
        for (byte, found) in content[at..].iter().zip(at..) {
            *hash = self.next(*hash, *byte);
            if *hash & mask == 0 {
                return Some(found);
            }
        }
        None
    }

    /// Looks through all lanes side by side; returns the hash at the end of the last one, or `None` if there is an end in any.
    #[inline]
    fn pass(&self, lanes: &[[u8; LANE_BYTES]; LANES], mut hashes: [u64; LANES], mask: u64) -> Option<u64> {
        for at in 0..LANE_BYTES {
            for (hash, lane) in hashes.iter_mut().zip(lanes) {
                *hash = self.next(*hash, lane[at]);
            }
            if hashes.iter().any(|hash| hash & mask == 0) {
                return None;
            }
        }
        Some(hashes[LANES - 1])
    }

    fn hash(&self, content: &[u8]) -> u64 {
        content.iter().fold(0, |hash, byte| self.next(hash, *byte))
    }

    #[inline]
    fn next(&self, hash: u64, byte: u8) -> u64 {
        (hash << 1).wrapping_add(self.gear[usize::from(byte)])
    }

    /// Returns the largest content that is always one chunk, in bytes.
    #[must_use]
    pub fn uncut_bytes(&self) -> usize {
        self.settings.min_bytes as usize
    }
}

fn even(bytes: usize) -> usize {
    bytes & !1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Entropy;

    fn lengths(seed: u64, content: &[u8]) -> Vec<usize> {
        let chunker = Chunker::new(ChunkerSettings::default(), seed);
        let mut rest = content;
        let mut out = Vec::new();
        while !rest.is_empty() {
            let bytes = chunker.cut(&rest[..rest.len().min(chunker.window_bytes())]);
            out.push(bytes);
            rest = &rest[bytes..];
        }
        out
    }

    #[test]
    fn an_end_within_a_short_window_is_final() {
        let mut content = vec![0; 8 << 20];
        Entropy::seeded(4).fill(&mut content);
        let chunker = Chunker::new(ChunkerSettings::default(), 5);
        for start in (0..1 << 20).step_by(99_991) {
            let rest = &content[start..];
            let end = chunker.cut(&rest[..chunker.window_bytes()]);
            assert_eq!(chunker.first(rest, false, &mut 0), Some(end));
            // The byte behind an end may decide about it, and is looked at with its neighbour.
            for bytes in [1, 255 << 10, (256 << 10) + 1, 700_001, 1 << 20, end - 1, end, end + 1, end + 2, 3 << 20] {
                let found = chunker.cut(&rest[..bytes]);
                assert!(
                    found == end && bytes > end || found == bytes && bytes < end + 2,
                    "{start} {bytes}: {found}, {end}"
                );
                let certain = chunker.first(&rest[..bytes], false, &mut 0);
                assert!(certain.is_none_or(|certain| certain == end), "{start} {bytes}: {certain:?}, {end}");
                assert_eq!(chunker.first(&rest[..bytes], true, &mut 0), Some(found));
            }
        }
    }

    /// Against the crate, with ends close to one another, in lengths odd and even, and looked for step by step.
    #[test]
    fn ends_are_those_of_the_crate_however_one_comes_to_them() {
        let mut content = vec![0; 2 << 20];
        Entropy::seeded(8).fill(&mut content);
        content[700_000..900_000].fill(3);
        for (min_bytes, avg_bytes, max_bytes) in
            [(64, 256, 1024), (1 << 10, 4 << 10, 64 << 10), (16 << 10, 64 << 10, 80 << 10)]
        {
            let chunker = Chunker::new(ChunkerSettings { min_bytes, avg_bytes, max_bytes }, 7);
            for length in [content.len(), content.len() - 1, 8191, 8193, 65, 64, 63, 1] {
                let content = &content[..length];
                let (min, avg, max) = (min_bytes as usize, avg_bytes as usize, max_bytes as usize);
                let whole =
                    v2020::FastCDC::with_level_and_seed(content, min, avg, max, v2020::Normalization::Level1, 7);
                let wanted: Vec<usize> = whole.map(|chunk| chunk.length).collect();
                for step in [1, 63, 1000, 4099, 99_999, content.len()] {
                    let (mut at, mut filled, mut seen, mut found) = (0, 0, 0, Vec::new());
                    while at < content.len() {
                        match chunker.first(&content[at..filled], filled == content.len(), &mut seen) {
                            Some(bytes) => {
                                found.push(bytes);
                                at += bytes;
                            }
                            None => filled = content.len().min(filled + step),
                        }
                    }
                    assert_eq!(found, wanted, "{min_bytes} {length} by {step}");
                }
            }
        }
    }

    #[test]
    fn cuts_stay_in_bounds_follow_content_and_differ_by_seed() {
        let mut content = vec![0; 24 << 20];
        Entropy::seeded(3).fill(&mut content);
        let cuts = lengths(5, &content);
        let (last, others) = cuts.split_last().unwrap();
        assert!(others.iter().all(|n| (256 << 10..=4 << 20).contains(n)) && *last <= 4 << 20);
        assert_ne!(cuts, lengths(6, &content));
        content.splice(0..0, [1, 2, 3]);
        let shifted = lengths(5, &content);
        assert_eq!(shifted[shifted.len() - 5..], cuts[cuts.len() - 5..]);
        let whole =
            v2020::FastCDC::with_level_and_seed(&content, 256 << 10, 1 << 20, 4 << 20, v2020::Normalization::Level1, 5);
        assert_eq!(whole.map(|c| c.length).collect::<Vec<_>>(), shifted);
    }
}
