//! Packs read in blocks, with readahead along the pack.
//!
//! A pack of data is read in blocks of 256 KiB. A first look fetches 1 MiB from where it falls, which at 30 ms a round
//! trip costs nothing extra; while a reader moves on along the pack the window doubles, up to the whole pack, in
//! parallel requests. A block is fetched once however many ask for it. Blocks are sealed bytes: nothing here is trusted.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;

use super::error::RepoError;
use super::id::PackId;
use super::pack::PACK_BYTES_MAX;
use crate::store::{Store, StoreError};

/// Bytes of a block.
const BLOCK_BYTES: u64 = 256 << 10;
/// Blocks fetched at a first look: 1 MiB.
const WINDOW_BLOCKS_MIN: u32 = 4;
/// Blocks fetched ahead of a reader who goes along the pack: 16 MiB.
const WINDOW_BLOCKS_MAX: u32 = 64;
/// Blocks of one request: 4 MiB, so that a large window is fetched by several at once.
const REQUEST_BLOCKS_MAX: u32 = 16;
/// Packs whose reading is remembered.
const STREAMS_MAX: usize = 256;

const _: () = assert!(PACK_BYTES_MAX / BLOCK_BYTES < u32::MAX as u64);

/// A request under way: the first block it brings, and its bytes.
type Request = Shared<BoxFuture<'static, Result<Bytes, RepoError>>>;

enum Block {
    Ready(Bytes),
    Loading { request: Request, first: u32 },
}

impl Block {
    /// Tells whether it is there or on its way: a request that has failed is neither, until it is cleared away.
    fn is_coming(&self) -> bool {
        match self {
            Self::Ready(_) => true,
            Self::Loading { request, .. } => !matches!(request.peek(), Some(Err(_))),
        }
    }

    /// Waits for the bytes of block `number`.
    async fn bytes(self, number: u32) -> Result<Bytes, RepoError> {
        match self {
            Self::Ready(bytes) => Ok(bytes),
            Self::Loading { request, first } => Ok(cut(&request.await?, first, number)),
        }
    }
}

/// How a pack is being read.
#[derive(Clone, Copy)]
struct Stream {
    /// The first block not yet asked for by readahead.
    ahead: u32,
    window: u32,
}

struct State {
    blocks: LruCache<(PackId, u32), Block>,
    streams: LruCache<PackId, Stream>,
    /// Where packs end, as far as that is known: blocks from here on do not exist.
    ends: LruCache<PackId, u32>,
    bytes: usize,
}

impl State {
    fn is_coming(&self, pack: PackId, number: u32) -> bool {
        self.blocks.peek(&(pack, number)).is_some_and(Block::is_coming)
    }
}

/// The block cache.
#[derive(Clone)]
pub struct Blocks {
    store: Store,
    state: Arc<Mutex<State>>,
    bytes_max: usize,
}

impl Blocks {
    /// Returns an empty cache of at most `bytes_max` bytes.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn new(store: Store, bytes_max: usize) -> Self {
        let small = std::num::NonZeroUsize::new(STREAMS_MAX).expect("not zero");
        let state = State {
            blocks: LruCache::unbounded(),
            streams: LruCache::new(small),
            ends: LruCache::new(small),
            bytes: 0,
        };
        Self { store, state: Arc::new(Mutex::new(state)), bytes_max }
    }

    /// Returns the bytes of a pack in `range`; fewer if the pack ends before.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn read(&self, pack: PackId, range: Range<u64>) -> Result<Bytes, RepoError> {
        let (first, last) = blocks_of(&range);
        let (parts, under_way) = self.ask(pack, first, last, true);
        let single = first == last;
        let room = if single { 0 } else { usize::try_from(range.end - range.start).unwrap_or(0) };
        let mut out = BytesMut::with_capacity(room);
        for (number, part) in (first..=last).zip(parts) {
            let block = match part.bytes(number).await {
                // Begun for somebody else, maybe long ago: it failed on his time. This one is begun now.
                Err(_) if under_way.contains(&number) => self.again(pack, number).await?,
                block => block?,
            };
            let start = u64::from(number) * BLOCK_BYTES;
            let from = range.start.saturating_sub(start).min(block.len() as u64);
            let to = (range.end - start).min(block.len() as u64);
            #[allow(clippy::cast_possible_truncation)] // both are under the block's length
            let slice = block.slice(from as usize..to as usize);
            if single {
                return Ok(slice);
            }
            out.extend_from_slice(&slice);
        }
        Ok(out.freeze())
    }

    /// Reads one block after a request for it that others had begun failed.
    async fn again(&self, pack: PackId, number: u32) -> Result<Bytes, RepoError> {
        let (parts, _) = self.ask(pack, number, number, false);
        let part = parts.into_iter().next().expect("one block was asked for");
        part.bytes(number).await
    }

    /// Begins to fetch `range` of a pack, and returns at once.
    pub fn prefetch(&self, pack: PackId, range: &Range<u64>) {
        let (first, last) = blocks_of(range);
        let _ = self.ask(pack, first, last, false);
    }

    /// Returns the blocks `first..=last`, ready or on their way, and sends for those that are missing; and which of them
    /// were on their way already.
    fn ask(&self, pack: PackId, first: u32, last: u32, follow: bool) -> (Vec<Block>, Vec<u32>) {
        let mut state = self.state.lock().expect("no panic while held");
        let is_loading = |n: u32| matches!(state.blocks.peek(&(pack, n)), Some(Block::Loading { .. }));
        let under_way = (first..=last).filter(|n| is_loading(*n) && state.is_coming(pack, *n)).collect();
        let missing = (first..=last).any(|n| !state.is_coming(pack, n));
        let mut until = last + 1;
        if follow {
            until = readahead(&mut state, pack, first, last, missing);
        }
        if missing || until > last + 1 {
            self.send_for(&mut state, pack, first, until);
        }
        let block = |n| match state.blocks.get(&(pack, n)) {
            Some(Block::Ready(bytes)) => Block::Ready(bytes.clone()),
            Some(Block::Loading { request, first }) => Block::Loading { request: request.clone(), first: *first },
            None => Block::Ready(Bytes::new()),
        };
        ((first..=last).map(block).collect(), under_way)
    }

    /// Sends requests for the blocks in `first..until` that are neither here nor on their way.
    fn send_for(&self, state: &mut State, pack: PackId, first: u32, until: u32) {
        let until = until.min(state.ends.get(&pack).copied().unwrap_or(u32::MAX));
        let mut n = first;
        while n < until {
            if state.is_coming(pack, n) {
                n += 1;
                continue;
            }
            let mut end = n + 1;
            while end < until && end - n < REQUEST_BLOCKS_MAX && !state.is_coming(pack, end) {
                end += 1;
            }
            let request = self.request(pack, n, end);
            for number in n..end {
                state.blocks.put((pack, number), Block::Loading { request: request.clone(), first: n });
            }
            tokio::spawn(self.clone().settle(pack, n..end, request));
            n = end;
        }
    }

    fn request(&self, pack: PackId, first: u32, end: u32) -> Request {
        let store = self.store.clone();
        async move {
            let range = u64::from(first) * BLOCK_BYTES..u64::from(end) * BLOCK_BYTES;
            match store.get_range(&pack.to_string(), range).await {
                Err(StoreError::OutOfRange { .. }) => Ok(Bytes::new()),
                answer => Ok(answer?),
            }
        }
        .boxed()
        .shared()
    }

    /// Waits for a request and keeps what it brought.
    async fn settle(self, pack: PackId, numbers: Range<u32>, request: Request) {
        let answer = request.clone().await;
        let mut state = self.state.lock().expect("no panic while held");
        for key in numbers.clone().map(|number| (pack, number)) {
            // Where it failed, another may be under way already.
            if matches!(state.blocks.peek(&key), Some(Block::Loading { request: r, .. }) if r.ptr_eq(&request)) {
                state.blocks.pop(&key);
            }
        }
        let Ok(bytes) = answer else { return };
        for number in numbers.clone() {
            let block = cut(&bytes, numbers.start, number);
            if (block.len() as u64) < BLOCK_BYTES {
                let end = number + u32::from(!block.is_empty());
                state.ends.put(pack, end);
            }
            if !block.is_empty() {
                state.bytes += block.len();
                state.blocks.put((pack, number), Block::Ready(block));
            }
        }
        self.shrink(&mut state);
    }

    fn shrink(&self, state: &mut State) {
        let mut loading = HashMap::new();
        while state.bytes > self.bytes_max {
            match state.blocks.pop_lru() {
                Some((_, Block::Ready(bytes))) => state.bytes -= bytes.len(),
                Some((key, block)) => drop(loading.insert(key, block)),
                None => break,
            }
        }
        for (key, block) in loading {
            state.blocks.put(key, block);
        }
    }
}

/// Returns up to which block to fetch for a reader who wants `first..=last`.
///
/// Who asks for a block that was fetched for him, or for the next one, goes along the pack: his window doubles.
fn readahead(state: &mut State, pack: PackId, first: u32, last: u32, missing: bool) -> u32 {
    let asked = last + 1 - first;
    let stream = state.streams.get(&pack).copied();
    let along = stream.filter(|s| first <= s.ahead && s.ahead - first <= s.window + asked);
    match along {
        None if !missing => last + 1,
        None => {
            let until = first + asked.max(WINDOW_BLOCKS_MIN);
            state.streams.put(pack, Stream { ahead: until, window: WINDOW_BLOCKS_MIN });
            until
        }
        // Half of the window is still ahead: nothing to do yet.
        Some(s) if last + s.window / 2 < s.ahead => last + 1,
        Some(s) => {
            let window = (s.window * 2).min(WINDOW_BLOCKS_MAX);
            let until = (last + 1 + window).max(s.ahead);
            state.streams.put(pack, Stream { ahead: until, window });
            until
        }
    }
}

fn blocks_of(range: &Range<u64>) -> (u32, u32) {
    let last = range.end.max(range.start + 1) - 1;
    let number = |at: u64| u32::try_from(at / BLOCK_BYTES).expect("packs are under 2^32 blocks");
    (number(range.start), number(last))
}

/// Returns block `number` out of the bytes of a request that began at block `first`.
fn cut(bytes: &Bytes, first: u32, number: u32) -> Bytes {
    let at = |n: u32| usize::try_from(u64::from(n) * BLOCK_BYTES).expect("64-bit").min(bytes.len());
    bytes.slice(at(number - first)..at(number - first + 1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::super::id::SessionId;
    use super::*;

    const PACK: PackId = PackId { session: SessionId([1; 32]), number: 0 };

    async fn blocks(bytes: usize) -> (Blocks, Vec<u8>) {
        let store = Store::new(Arc::new(InMemory::new()), "memory".into());
        let content: Vec<u8> = (0..bytes).map(|n| (n / 251) as u8).collect();
        store.put_new(&PACK.to_string(), content.clone().into()).await.unwrap();
        (Blocks::new(store, 64 << 20), content)
    }

    #[tokio::test]
    async fn any_range_reads_as_the_pack_has_it() {
        let (blocks, content) = blocks(1_500_000).await;
        for range in [0..10, 262_140..262_150, 0..1_500_000, 1_499_999..1_500_000, 700_000..700_001, 900_000..1_400_000]
        {
            let got = blocks.read(PACK, range.clone()).await.unwrap();
            assert_eq!(got, content[range.start as usize..range.end as usize]);
        }
        assert_eq!(blocks.read(PACK, 1_400_000..1_600_000).await.unwrap(), content[1_400_000..]);
        assert!(blocks.read(PACK, 1_700_000..1_800_000).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn going_along_a_pack_takes_few_requests_and_a_second_look_none() {
        let (blocks, content) = blocks(16 << 20).await;
        for _ in 0..2 {
            for start in (0..content.len() as u64).step_by(64 << 10) {
                blocks.read(PACK, start..start + (64 << 10)).await.unwrap();
            }
        }
        let requests = blocks.store.counts().gets;
        assert!(requests <= 10, "{requests}");
    }

    #[tokio::test]
    async fn random_looks_do_not_grow() {
        let (blocks, _) = blocks(16 << 20).await;
        for at in [14_u64, 2, 9, 5] {
            blocks.read(PACK, at << 20..(at << 20) + 100).await.unwrap();
        }
        tokio::task::yield_now().await;
        assert!(blocks.state.lock().unwrap().bytes <= 4 << 20);
    }
}
