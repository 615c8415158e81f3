//! Ranges of objects through the cache, in pieces of 256 KiB.
//!
//! Asks the store for no more than was asked here, in one request: from the first piece that is missing to the last.
//! Pieces that an answer holds whole are kept, and where the object ends, so that nobody asks behind its end again.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::super::{Store, StoreError};
use super::DiskCache;
use super::entry::{Entry, PIECE_BYTES, Slot};

/// Objects that are longer are not cached in pieces: 64 GiB, far above any.
const END_MAX: u64 = PIECE_BYTES << 18;

impl Store {
    /// Reads a part of an object, from the cache as far as it is there.
    pub(in super::super) async fn get_range_cached(
        &self,
        cache: &DiskCache,
        name: &str,
        range: Range<u64>,
    ) -> Result<Bytes, StoreError> {
        if range.start >= range.end || range.end > END_MAX {
            return self.fetch_range(name, range).await;
        }
        let first = number(range.start);
        let kept = cache.pieces(name, first, number(range.end - 1)).await;
        let end = kept.iter().flatten().find_map(|piece| piece.end);
        if let Some(bytes) = end.filter(|end| *end <= range.start) {
            return Err(self.out_of_range(name, range.start, bytes));
        }
        let range = range.start..range.end.min(end.unwrap_or(u64::MAX));
        let wanted = kept.len().min((number(range.end - 1) - first) as usize + 1);
        let kept = &kept[..wanted];
        let Some(missing) = missing(kept, first, &range) else {
            return Ok(join(kept, first, &range, None));
        };
        match self.fetch_range(name, missing.clone()).await {
            Ok(answer) => {
                for (slot, entry) in cut(name, &missing, &answer) {
                    let at = slot.piece.map_or(0, |number| (number - first) as usize);
                    if kept.get(at).is_none_or(Option::is_none) {
                        cache.keep(slot, entry);
                    }
                }
                Ok(join(kept, first, &range, Some((missing.start, answer))))
            }
            Err(StoreError::OutOfRange { bytes, name, store, start }) => {
                if start.is_multiple_of(PIECE_BYTES) {
                    let slot = Slot { object: name.clone(), piece: Some(number(start)) };
                    cache.keep(slot, Entry { content: Bytes::new(), end: Some(bytes) });
                }
                match start > range.start {
                    true => Ok(join(kept, first, &(range.start..start), None)),
                    false => Err(StoreError::OutOfRange { bytes, name, store, start }),
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn number(at: u64) -> u32 {
    u32::try_from(at / PIECE_BYTES).expect("under END_MAX")
}

/// Returns the part of `range` from the first missing piece to the last.
fn missing(kept: &[Option<Entry>], first: u32, range: &Range<u64>) -> Option<Range<u64>> {
    let start = |at: usize| (u64::from(first) + at as u64) * PIECE_BYTES;
    let from = kept.iter().position(Option::is_none)?;
    let to = kept.iter().rposition(Option::is_none)?;
    Some(start(from).max(range.start)..start(to + 1).min(range.end))
}

/// Cuts an answer into the pieces that it holds whole.
fn cut(name: &str, asked: &Range<u64>, answer: &Bytes) -> Vec<(Slot, Entry)> {
    let until = asked.start + answer.len() as u64;
    let end = (until < asked.end).then_some(until);
    let mut start = asked.start.next_multiple_of(PIECE_BYTES);
    let mut pieces = Vec::new();
    while start < until && (start + PIECE_BYTES <= until || end.is_some()) {
        let to = (start + PIECE_BYTES).min(until);
        let content = slice(answer, start - asked.start..to - asked.start);
        pieces.push((Slot { object: name.to_owned(), piece: Some(number(start)) }, Entry { content, end }));
        start += PIECE_BYTES;
    }
    pieces
}

/// Joins the pieces and what was fetched, which begins at the offset beside it, to the bytes of `range`.
///
/// Stops at the first gap: an answer that was too short is the store's last word on where the object ends.
fn join(kept: &[Option<Entry>], first: u32, range: &Range<u64>, fetched: Option<(u64, Bytes)>) -> Bytes {
    let pieces = (u64::from(first)..).zip(kept).filter_map(|(number, piece)| Some((number, piece.as_ref()?)));
    let mut parts: Vec<(u64, Bytes)> = pieces.map(|(number, e)| (number * PIECE_BYTES, e.content.clone())).collect();
    parts.extend(fetched);
    parts.sort_by_key(|part| part.0);
    let (mut at, mut out) = (range.start, Vec::new());
    for (start, content) in parts {
        let to = (start + content.len() as u64).min(range.end);
        if start <= at && to > at {
            out.push(slice(&content, at - start..to - start));
            at = to;
        }
    }
    match out.as_slice() {
        [one] => one.clone(),
        several => {
            let mut whole = BytesMut::with_capacity(several.iter().map(Bytes::len).sum());
            several.iter().for_each(|part| whole.extend_from_slice(part));
            whole.freeze()
        }
    }
}

fn slice(bytes: &Bytes, range: Range<u64>) -> Bytes {
    let at = |offset: u64| usize::try_from(offset).expect("within bytes in memory");
    bytes.slice(at(range.start)..at(range.end))
}
