//! Packs read in blocks, with readahead along the pack.
//!
//! A pack of data is read in blocks of 256 KiB, several in one request. A first look fetches 1 MiB from where it falls,
//! which at 30 ms a round trip costs nothing extra; while a reader moves on along the pack the window doubles, up to the
//! whole pack, in parallel requests. A block is fetched once however many ask for it. What one request brought is kept
//! and given up as one: a slice of it would hold all of it. Blocks are sealed bytes: nothing here is trusted.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use lru::LruCache;

use super::cache::{CacheCounts, Share, Tally};
use super::error::RepoError;
use super::id::PackId;
use super::pack::{DATA_PACK_BYTES, PACK_BYTES_MAX};
use crate::store::{Store, StoreError};

/// Bytes of a block.
const BLOCK_BYTES: u64 = 256 << 10;
/// Blocks fetched at a first look: 1 MiB.
const WINDOW_BLOCKS_MIN: u32 = 4;
/// Blocks fetched ahead of a reader who goes along the pack: 16 MiB.
const WINDOW_BLOCKS_MAX: u32 = 64;
/// Blocks of one request: 4 MiB, so that a large window is fetched by several at once.
const REQUEST_BLOCKS_MAX: u32 = 16;
/// Where the last request of a pack begins: writers close a pack at 16 MiB, which is block 64.
const LAST_REQUEST_BLOCK: u32 = 48;
/// And where it ends, which is also how far is read ahead: a last frame of 4 MiB and the footer fit. What is not there
/// costs nothing in a request, where one behind the end would cost two.
const TAIL_BLOCK: u32 = 84;
/// Packs whose reading is remembered.
const STREAMS_MAX: usize = 256;

const _: () = assert!(PACK_BYTES_MAX / BLOCK_BYTES < u32::MAX as u64);
const _: () = assert!(DATA_PACK_BYTES as u64 == (LAST_REQUEST_BLOCK + REQUEST_BLOCKS_MAX) as u64 * BLOCK_BYTES);

type Request = Shared<BoxFuture<'static, Result<Bytes, RepoError>>>;

/// Blocks of one pack that one request brings.
#[derive(Clone)]
struct Extent {
    pack: PackId,
    first: u32,
    end: u32,
    content: Content,
}

#[derive(Clone)]
enum Content {
    Loading(Request),
    Ready(Bytes),
}

impl Extent {
    /// Tells whether it is there or on its way: a request that has failed is neither, until it is cleared away.
    fn is_coming(&self) -> bool {
        match &self.content {
            Content::Ready(_) => true,
            Content::Loading(request) => !matches!(request.peek(), Some(Err(_))),
        }
    }

    /// Waits for its bytes.
    async fn bytes(&self) -> Result<Bytes, RepoError> {
        match &self.content {
            Content::Ready(bytes) => Ok(bytes.clone()),
            Content::Loading(request) => request.clone().await,
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
    /// Which extent holds a block.
    blocks: HashMap<(PackId, u32), u64>,
    extents: LruCache<u64, Extent>,
    extents_begun: u64,
    streams: LruCache<PackId, Stream>,
    /// Packs of which nothing is kept on disk.
    passing: LruCache<PackId, ()>,
    /// Where packs end, as far as that is known: blocks from here on do not exist.
    ends: LruCache<PackId, u32>,
    bytes: usize,
}

impl State {
    fn extent(&mut self, pack: PackId, block: u32) -> Option<(u64, Extent)> {
        let number = *self.blocks.get(&(pack, block))?;
        self.extents.get(&number).map(|extent| (number, extent.clone()))
    }

    fn is_coming(&self, pack: PackId, block: u32) -> bool {
        let number = self.blocks.get(&(pack, block));
        number.and_then(|number| self.extents.peek(number)).is_some_and(Extent::is_coming)
    }

    fn end(&mut self, pack: PackId) -> u32 {
        self.ends.get(&pack).copied().unwrap_or(u32::MAX)
    }

    /// Forgets an extent, and the blocks that nobody has sent for anew.
    fn remove(&mut self, number: u64) {
        let Some(extent) = self.extents.pop(&number) else { return };
        if let Content::Ready(bytes) = &extent.content {
            self.bytes -= bytes.len();
        }
        for key in (extent.first..extent.end).map(|block| (extent.pack, block)) {
            if self.blocks.get(&key) == Some(&number) {
                self.blocks.remove(&key);
            }
        }
    }
}

/// The block cache.
#[derive(Clone)]
pub struct Blocks {
    store: Store,
    state: Arc<Mutex<State>>,
    bytes_max: Share,
    tally: Arc<Tally>,
}

impl Blocks {
    /// Returns an empty cache of at most `bytes_max` bytes.
    ///
    /// # Panics
    /// Never.
    #[must_use]
    pub fn new(store: Store, bytes_max: impl Into<Share>) -> Self {
        let small = std::num::NonZeroUsize::new(STREAMS_MAX).expect("not zero");
        let state = State {
            blocks: HashMap::new(),
            extents: LruCache::unbounded(),
            extents_begun: 0,
            streams: LruCache::new(small),
            passing: LruCache::new(small),
            ends: LruCache::new(small),
            bytes: 0,
        };
        Self { store, state: Arc::new(Mutex::new(state)), bytes_max: bytes_max.into(), tally: Arc::default() }
    }

    /// Returns how often a read found what one request brings, here or on its way, and how often it had to send one.
    #[must_use]
    pub fn counts(&self) -> CacheCounts {
        self.tally.read()
    }

    /// Returns the bytes of a pack in `range`; fewer if the pack ends before.
    ///
    /// They are copied only where they come from several requests.
    ///
    /// # Errors
    /// [`RepoError::Store`].
    pub async fn read(&self, pack: PackId, range: Range<u64>) -> Result<Bytes, RepoError> {
        let (first, last) = blocks_of(&range);
        let mut parts = self.ask(pack, first, last, true);
        for (extent, under_way) in &parts {
            self.tally.note(*under_way || matches!(extent.content, Content::Ready(_)));
        }
        let mut out = Vec::with_capacity(parts.len());
        while let Some((extent, under_way)) = parts.pop_front() {
            match extent.bytes().await {
                Ok(bytes) => out.push(part_of(&bytes, extent.first, &range)),
                // Begun for somebody else, maybe long ago: it failed on his time. This one is begun now.
                Err(_) if under_way => {
                    let again = self.ask(pack, extent.first.max(first), (extent.end - 1).min(last), false);
                    again.into_iter().rev().for_each(|(extent, _)| parts.push_front((extent, false)));
                }
                Err(error) => return Err(error),
            }
        }
        if let [one] = &out[..] {
            return Ok(one.clone());
        }
        let mut whole = BytesMut::with_capacity(out.iter().map(Bytes::len).sum());
        out.iter().for_each(|part| whole.extend_from_slice(part));
        Ok(whole.freeze())
    }

    /// Keeps nothing on disk of what is fetched of a pack from now on.
    ///
    /// # Panics
    /// If a thread panicked while holding the lock.
    pub fn pass_by(&self, pack: PackId) {
        self.state.lock().expect("no panic while held").passing.put(pack, ());
    }

    /// Begins to fetch `range` of a pack, and returns at once.
    pub fn prefetch(&self, pack: PackId, range: &Range<u64>) {
        let (first, last) = blocks_of(range);
        let _ = self.ask(pack, first, last, false);
    }

    /// Returns what holds the blocks `first..=last`, ready or on its way, in order, and sends for those that are missing;
    /// beside each whether it was on its way already.
    fn ask(&self, pack: PackId, first: u32, last: u32, follow: bool) -> VecDeque<(Extent, bool)> {
        let mut state = self.state.lock().expect("no panic while held");
        let missing = (first..=last).any(|n| !state.is_coming(pack, n));
        let (mut until, mut along) = (last + 1, true);
        if follow {
            (until, along) = readahead(&mut state, pack, first, last, missing);
            until = until.min(TAIL_BLOCK).max(last + 1);
        }
        let begun = state.extents_begun;
        if missing || until > last + 1 {
            self.send_for(&mut state, pack, first, if along { rounded(first, until) } else { until });
        }
        let mut extents: VecDeque<(Extent, bool)> = VecDeque::new();
        let mut block = first;
        while block <= last {
            match state.extent(pack, block) {
                Some((number, extent)) => {
                    block = extent.end;
                    let under_way = number < begun && matches!(extent.content, Content::Loading(_));
                    extents.push_back((extent, under_way));
                }
                None => block += 1, // behind the end of the pack
            }
        }
        extents
    }

    /// Sends requests for the blocks in `first..until` that are neither here nor on their way.
    fn send_for(&self, state: &mut State, pack: PackId, first: u32, until: u32) {
        let until = until.min(state.end(pack));
        let mut n = first;
        while n < until {
            if state.is_coming(pack, n) {
                n += 1;
                continue;
            }
            let mut end = n + 1;
            while end < until.min(request_end(n)) && !state.is_coming(pack, end) {
                end += 1;
            }
            let keeps = !state.passing.contains(&pack);
            let request = self.request(pack, n..end, keeps);
            let number = state.extents_begun;
            state.extents_begun += 1;
            for block in n..end {
                state.blocks.insert((pack, block), number);
            }
            state.extents.put(number, Extent { pack, first: n, end, content: Content::Loading(request.clone()) });
            tokio::spawn(self.clone().settle(number, request));
            n = end;
        }
    }

    fn request(&self, pack: PackId, blocks: Range<u32>, keeps: bool) -> Request {
        let store = if keeps { self.store.clone() } else { self.store.keeping_nothing() };
        async move {
            let range = u64::from(blocks.start) * BLOCK_BYTES..u64::from(blocks.end) * BLOCK_BYTES;
            match store.get_range(&pack.to_string(), range).await {
                Err(StoreError::OutOfRange { .. }) => Ok(Bytes::new()),
                answer => Ok(answer?),
            }
        }
        .boxed()
        .shared()
    }

    /// Waits for a request and keeps what it brought.
    async fn settle(self, number: u64, request: Request) {
        let answer = request.await;
        let mut state = self.state.lock().expect("no panic while held");
        let Ok(bytes) = answer else { return state.remove(number) };
        let Some(extent) = state.extents.get_mut(&number) else { return };
        extent.content = Content::Ready(bytes.clone());
        let (pack, first, end) = (extent.pack, extent.first, extent.end);
        state.bytes += bytes.len();
        if (bytes.len() as u64) < u64::from(end - first) * BLOCK_BYTES {
            let blocks = (bytes.len() as u64).div_ceil(BLOCK_BYTES);
            state.ends.put(pack, first + u32::try_from(blocks).expect("fewer than were asked for"));
        }
        if bytes.is_empty() {
            state.remove(number);
        }
        self.shrink(&mut state);
    }

    fn shrink(&self, state: &mut State) {
        let (mut loading, bytes_max) = (Vec::new(), self.bytes_max.bytes());
        while state.bytes > bytes_max {
            match state
                .extents
                .peek_lru()
                .map(|(number, extent)| (*number, matches!(extent.content, Content::Ready(_))))
            {
                Some((number, true)) => state.remove(number),
                Some((number, false)) => loading.extend(state.extents.pop(&number).map(|extent| (number, extent))),
                None => break,
            }
        }
        for (number, extent) in loading {
            state.extents.put(number, extent);
        }
    }
}

/// Returns up to where to ask for who wants `first..until`: a stream is fetched in requests of one length, the last one of
/// a pack with what is behind 16 MiB.
fn rounded(first: u32, until: u32) -> u32 {
    if until - first <= WINDOW_BLOCKS_MIN { until } else { request_end(until - 1) }
}

/// Returns where the request that brings `block` ends at the latest.
fn request_end(block: u32) -> u32 {
    match block {
        ..LAST_REQUEST_BLOCK => (block / REQUEST_BLOCKS_MAX + 1) * REQUEST_BLOCKS_MAX,
        LAST_REQUEST_BLOCK..TAIL_BLOCK => TAIL_BLOCK,
        _ => block + REQUEST_BLOCKS_MAX,
    }
}

/// Returns up to which block to fetch for a reader who wants `first..=last`, and whether he goes along the pack.
///
/// Who asks for a block that was fetched for him, or for the next one, goes along the pack: his window doubles. Who jumps
/// gets what he asked for, and 1 MiB at least.
fn readahead(state: &mut State, pack: PackId, first: u32, last: u32, missing: bool) -> (u32, bool) {
    let asked = last + 1 - first;
    let stream = state.streams.get(&pack).copied();
    let along = stream.filter(|s| first <= s.ahead && s.ahead - first <= s.window + asked);
    match along {
        None if !missing => (last + 1, false),
        None => {
            let until = first + asked.max(WINDOW_BLOCKS_MIN);
            state.streams.put(pack, Stream { ahead: until, window: WINDOW_BLOCKS_MIN });
            (until, false)
        }
        // Half of the window is still ahead: nothing to do yet.
        Some(s) if last + s.window / 2 < s.ahead => (last + 1, true),
        Some(s) => {
            let window = (s.window * 2).min(WINDOW_BLOCKS_MAX);
            let until = (last + 1 + window).max(s.ahead);
            state.streams.put(pack, Stream { ahead: until, window });
            (until, true)
        }
    }
}

fn blocks_of(range: &Range<u64>) -> (u32, u32) {
    let last = range.end.max(range.start + 1) - 1;
    let number = |at: u64| u32::try_from(at / BLOCK_BYTES).expect("packs are under 2^32 blocks");
    (number(range.start), number(last))
}

/// Returns what of `range` is in the bytes of a request that began at block `first`.
fn part_of(bytes: &Bytes, first: u32, range: &Range<u64>) -> Bytes {
    let start = u64::from(first) * BLOCK_BYTES;
    let at = |offset: u64| usize::try_from(offset.saturating_sub(start)).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(at(range.start)..at(range.end))
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
        let (blocks, content) = blocks((16 << 20) + 300_000).await;
        for _ in 0..2 {
            for start in (0..content.len() as u64).step_by(64 << 10) {
                blocks.read(PACK, start..start + (64 << 10)).await.unwrap();
            }
        }
        // The first look, the rest of the first 4 MiB, 4, 4, and all that is left; none behind the end.
        let requests = blocks.store.counts().gets;
        assert!(requests <= 6, "{requests}");
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

    #[tokio::test]
    async fn a_look_at_a_long_frame_brings_that_frame_alone() {
        let (blocks, _) = blocks(16 << 20).await;
        for at in [5_u64, 13, 1] {
            blocks.read(PACK, (at << 20) + 7..(at << 20) + 7 + 1_400_000).await.unwrap();
        }
        tokio::task::yield_now().await;
        let bytes = blocks.state.lock().unwrap().bytes;
        assert!(bytes <= 3 * (1_400_000 + 2 * BLOCK_BYTES as usize), "{bytes}");
    }
}
