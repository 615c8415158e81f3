//! Compression: zstd, or nothing where zstd gains nothing.
//!
//! A packed content is one codec byte and then the payload (`docs/format.md`, "Compression"). Unpacking is bounded by
//! the caller before a byte is allocated.

use std::cell::RefCell;
use std::io::Cursor;

pub(super) const RAW: u8 = 0;
const ZSTD: u8 = 1;

/// Contents from this size on are probed first: most of what is large is compressed already.
const PROBE_FROM_BYTES: usize = 64 << 10;
/// Bytes of each of the three probes.
const PROBE_BYTES: usize = 8 << 10;

/// Why a packed content cannot be unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompressError {
    /// No codec byte, or an unknown one.
    #[error("unknown codec")]
    Codec,
    /// It does not say how long it is, or it is longer than allowed.
    #[error("unpacked length is unknown or over {0}")]
    Length(usize),
    /// zstd could not read it.
    #[error("zstd could not decode it")]
    Zstd,
}

/// Appends `raw` to `out`, packed: a codec byte and the payload.
///
/// # Panics
/// If zstd runs out of memory.
pub fn pack(level: i32, raw: &[u8], out: &mut Vec<u8>) {
    if !shrink(level, raw, out) {
        out.push(RAW);
        out.extend_from_slice(raw);
    }
}

/// Appends `raw` to `out`, packed by zstd, if that is shorter; tells whether it was.
///
/// # Panics
/// If zstd runs out of memory.
pub(super) fn shrink(level: i32, raw: &[u8], out: &mut Vec<u8>) -> bool {
    if !looks_compressible(raw) {
        return false;
    }
    let start = out.len();
    // The room behind what is there is not filled with zeros first: most of it is never touched.
    out.reserve(packed_bytes_max(raw.len()));
    out.push(ZSTD);
    let mut rest = Cursor::new(&mut *out);
    rest.set_position(start as u64 + 1);
    let bytes = with_compressor(level, |zstd| {
        zstd.compress_to_buffer(raw, &mut rest).expect("the buffer has zstd's own bound")
    });
    if bytes >= raw.len() {
        out.truncate(start);
    }
    bytes < raw.len()
}

/// Returns the room in bytes that packing content of this length may need.
#[must_use]
pub(super) fn packed_bytes_max(raw_bytes: usize) -> usize {
    1 + zstd::zstd_safe::compress_bound(raw_bytes)
}

/// Unpacks what [`pack`] made, if it is at most `raw_bytes_max` long.
///
/// # Errors
/// [`CompressError`].
pub fn unpack(packed: &[u8], raw_bytes_max: usize) -> Result<Vec<u8>, CompressError> {
    match packed.split_first() {
        Some((&RAW, payload)) if payload.len() <= raw_bytes_max => Ok(payload.to_vec()),
        Some((&RAW, _)) => Err(CompressError::Length(raw_bytes_max)),
        Some((&ZSTD, payload)) => unpack_zstd(payload, raw_bytes_max),
        _ => Err(CompressError::Codec),
    }
}

fn unpack_zstd(payload: &[u8], raw_bytes_max: usize) -> Result<Vec<u8>, CompressError> {
    let bytes = match zstd::zstd_safe::get_frame_content_size(payload) {
        Ok(Some(bytes)) => usize::try_from(bytes).ok().filter(|&bytes| bytes <= raw_bytes_max),
        _ => None,
    }
    .ok_or(CompressError::Length(raw_bytes_max))?;
    // zstd itself would go on with what follows the first frame.
    if zstd::zstd_safe::find_frame_compressed_size(payload) != Ok(payload.len()) {
        return Err(CompressError::Zstd);
    }
    let out = zstd::bulk::decompress(payload, bytes).map_err(|_| CompressError::Zstd)?;
    if out.len() == bytes { Ok(out) } else { Err(CompressError::Zstd) }
}

/// Tells whether compression is worth a try: any of three samples shrinks by at least 1 in 32 at level 1.
fn looks_compressible(raw: &[u8]) -> bool {
    if raw.len() < PROBE_FROM_BYTES {
        return true;
    }
    let mut out = [0; PROBE_BYTES + 512];
    let last = raw.len() - PROBE_BYTES;
    [0, last / 2, last].iter().any(|&at| {
        let sample = &raw[at..at + PROBE_BYTES];
        let packed = with_compressor(1, |zstd| zstd.compress_to_buffer(sample, &mut out));
        packed.is_ok_and(|bytes| bytes < PROBE_BYTES - PROBE_BYTES / 32)
    })
}

/// Runs `work` with this thread's compressor for `level`; making one costs more than a small frame.
fn with_compressor<T>(level: i32, work: impl FnOnce(&mut zstd::bulk::Compressor<'static>) -> T) -> T {
    thread_local! {
        static KEPT: RefCell<Vec<(i32, zstd::bulk::Compressor<'static>)>> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| {
        let at = kept.iter().position(|(l, _)| *l == level).unwrap_or_else(|| {
            kept.push((level, zstd::bulk::Compressor::new(level).expect("zstd has memory and knows the level")));
            kept.len() - 1
        });
        work(&mut kept[at].1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::Entropy;

    #[track_caller]
    fn check(raw: &[u8], codec: u8) {
        let mut packed = Vec::new();
        pack(3, raw, &mut packed);
        assert_eq!(packed[0], codec);
        assert!(packed.len() <= raw.len() + 1);
        assert_eq!(unpack(&packed, raw.len()).unwrap(), raw);
        if !raw.is_empty() {
            assert_eq!(unpack(&packed, raw.len() - 1), Err(CompressError::Length(raw.len() - 1)));
        }
    }

    #[test]
    fn what_shrinks_is_compressed_and_what_does_not_is_stored() {
        let mut random = vec![0; 300_000];
        Entropy::seeded(1).fill(&mut random);
        check(b"", RAW);
        check(b"ab", RAW);
        check(&b"abc".repeat(100_000), ZSTD);
        check(&random, RAW);
        random[290_000..].fill(7);
        check(&random, ZSTD);
    }

    #[test]
    fn a_lying_length_is_refused() {
        let mut packed = Vec::new();
        pack(3, &[0; 1 << 20], &mut packed);
        assert!(packed.len() < 1000);
        assert_eq!(unpack(&packed, 1000), Err(CompressError::Length(1000)));
        assert_eq!(unpack(&[7, 1], 1000), Err(CompressError::Codec));
        assert_eq!(unpack(&[], 1000), Err(CompressError::Codec));
        assert_eq!(unpack(&[ZSTD, 1, 2, 3], 1000), Err(CompressError::Length(1000)));
        let half = packed.len() / 2;
        assert_eq!(unpack(&packed[..half], 2 << 20), Err(CompressError::Zstd));
        let empty_frame = zstd::bulk::compress(&[], 3).unwrap();
        assert_eq!(unpack(&[&packed[..], &empty_frame].concat(), 2 << 20), Err(CompressError::Zstd));
        assert_eq!(unpack(&[&packed[..], &[0]].concat(), 2 << 20), Err(CompressError::Zstd));
    }
}
