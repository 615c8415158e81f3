//! Cutting of content into chunks: FastCDC, version of 2020, by the `fastcdc` crate.
//!
//! Normalization level 1, gear table XORed with the kloset's seed, so that the lengths of a known file's chunks
//! cannot be looked up: a hindrance, not a promise (`docs/format.md`, "Chunker", "Threat model"). It takes bytes and
//! returns lengths; it does not read files.

use super::header::ChunkerSettings;
use fastcdc::v2020;

/// Cuts content by one kloset's settings and seed.
pub struct Chunker {
    settings: ChunkerSettings,
    masks: (u64, u64),
    gear: Vec<u64>,
    gear_shifted: Vec<u64>,
}

impl Chunker {
    /// Returns the chunker of a kloset.
    #[must_use]
    pub fn new(settings: ChunkerSettings, seed: u64) -> Self {
        let (gear, gear_shifted) = v2020::get_gear_with_seed(seed);
        Self {
            settings,
            masks: v2020::select_masks(settings.avg_bytes as usize, v2020::Normalization::Level1),
            gear: gear.into_owned(),
            gear_shifted: gear_shifted.into_owned(),
        }
    }

    /// Returns how many bytes [`Chunker::cut`] must see for its answer to be final.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.settings.max_bytes as usize
    }

    /// Returns the length of the first chunk of a window if that is certain: always, where the window holds
    /// [`Chunker::window_bytes`] or all that is left; of less, where the chunk ends before the window does.
    #[must_use]
    pub fn first(&self, window: &[u8], is_end: bool) -> Option<usize> {
        // Twice the average nearly always holds the end of a chunk; in less it would often be sought for nothing.
        let likely_bytes = (2 * self.settings.avg_bytes as usize).min(self.window_bytes());
        if window.is_empty() || !is_end && window.len() < likely_bytes {
            return None;
        }
        let bytes = self.cut(&window[..window.len().min(self.window_bytes())]);
        (is_end || bytes < window.len() || bytes == self.window_bytes()).then_some(bytes)
    }

    /// Returns the length of the first chunk of `content`, which holds [`Chunker::window_bytes`] or all that is left; of less
    /// than that, an end before that of `content` is final, too.
    #[must_use]
    pub fn cut(&self, content: &[u8]) -> usize {
        let ChunkerSettings { min_bytes, avg_bytes, max_bytes } = self.settings;
        let (small, large) = self.masks;
        let (_, bytes) = v2020::cut_gear(
            content,
            min_bytes as usize,
            avg_bytes as usize,
            max_bytes as usize,
            small,
            large,
            small << 1,
            large << 1,
            &self.gear,
            &self.gear_shifted,
        );
        bytes
    }

    /// Returns the largest content that is always one chunk, in bytes.
    #[must_use]
    pub fn uncut_bytes(&self) -> usize {
        self.settings.min_bytes as usize
    }
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
            assert_eq!(chunker.first(rest, false), Some(end));
            // The byte behind an end may decide about it, and is looked at with its neighbour.
            for bytes in [1, 255 << 10, (256 << 10) + 1, 700_001, 1 << 20, end - 1, end, end + 1, end + 2, 3 << 20] {
                let found = chunker.cut(&rest[..bytes]);
                assert!(
                    found == end && bytes > end || found == bytes && bytes < end + 2,
                    "{start} {bytes}: {found}, {end}"
                );
                let certain = chunker.first(&rest[..bytes], false);
                assert!(certain.is_none_or(|certain| certain == end), "{start} {bytes}: {certain:?}, {end}");
                assert_eq!(chunker.first(&rest[..bytes], true), Some(found));
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
