//! Packs: objects of many frames with a sealed footer.
//!
//! A frame is a group of chunks compressed and sealed as one. A pack is magic, frames, sealed footer, footer length and
//! the BLAKE3 of all before it, so that a server without keys can check it (`docs/format.md`, "Pack"). Building and
//! parsing take bytes and return values; storing is the writer's.

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::crypto::{self, NONCE_BYTES, SEAL_BYTES, SealingKey};
use super::header::CHUNK_BYTES_LIMIT;
use super::id::{ChunkId, KlosetId, PackId, SessionId};
use super::messagepack;
use super::sealed::{self, Plain, SealedError};
use crate::store::Pieces;

/// The first bytes of a pack.
pub const MAGIC: &[u8; 8] = b"KLOSET1P";
/// A frame is closed once it holds this much of file content, raw: where compression and a read's reach balance.
pub const DATA_FRAME_BYTES: usize = 5 << 18;
/// A frame of trees is closed earlier: one directory is asked for more often than its neighbours.
pub const TREE_FRAME_BYTES: usize = 256 << 10;
/// A chunk of this size or more is a frame by itself.
pub const LONE_CHUNK_BYTES: usize = 256 << 10;
const _: () = assert!(DATA_FRAME_BYTES + LONE_CHUNK_BYTES <= FRAME_BYTES_MAX);
/// No frame holds more, raw.
pub const FRAME_BYTES_MAX: usize = CHUNK_BYTES_LIMIT as usize + (1 << 20);
/// No frame is longer, sealed: zstd may lose a little on what it cannot shrink, a foreign writer more.
pub const SEALED_FRAME_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;
/// A pack of data is closed once it is this long, sealed: one request of a few hundred milliseconds.
pub const DATA_PACK_BYTES: usize = 16 << 20;
/// What the last frame of a pack and the footer mostly take: a pack that grows beyond its room is copied. Room that is not
/// used takes no memory.
const LAST_FRAME_BYTES: usize = 5 << 20;
/// A frame of this size or more is not copied into a pack, if it fills its own memory.
const PIECE_BYTES_MIN: usize = 64 << 10;
/// A pack of trees is closed once it holds this many raw bytes: about 4 MiB sealed, fetched whole.
pub const TREE_PACK_RAW_BYTES: usize = 8 << 20;
/// No pack is longer.
pub const PACK_BYTES_MAX: u64 = 64 << 20;
/// No footer is longer, unsealed.
pub const FOOTER_BYTES_MAX: usize = 16 << 20;
/// A frame is closed once it holds this many chunks, and a pack of data once it holds [`PACK_CHUNKS_MAX`]: tiny files
/// must not make a huge footer.
pub const FRAME_CHUNKS_MAX: usize = 4096;
/// See [`FRAME_CHUNKS_MAX`].
pub const PACK_CHUNKS_MAX: usize = 65_536;
/// Footer length and digest.
pub const TRAILER_BYTES: usize = 4 + 32;

const _: () = assert!(PACK_BYTES_MAX >= (DATA_PACK_BYTES + FRAME_BYTES_MAX + FOOTER_BYTES_MAX) as u64);
const _: () = assert!((PACK_CHUNKS_MAX + FRAME_CHUNKS_MAX) * 64 < FOOTER_BYTES_MAX);
const _: () = assert!(((TREE_PACK_RAW_BYTES + FRAME_BYTES_MAX) as u64) < PACK_BYTES_MAX);

/// Why a pack or a frame cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// Its first bytes are not a pack's.
    #[error("it does not begin as a pack")]
    Magic,
    /// Lengths that cannot be.
    #[error("it is truncated or its lengths do not fit")]
    Length,
    /// The digest does not fit.
    #[error("its digest does not fit")]
    Digest,
    /// A frame or the footer does not open.
    #[error(transparent)]
    Sealed(#[from] SealedError),
    /// The footer opens but is not a footer.
    #[error("its footer is malformed: {0}")]
    Footer(String),
}

/// What a pack holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum PackKind {
    /// Chunks of file content.
    Data,
    /// Trees and lists of chunks.
    Tree,
}

impl From<PackKind> for u8 {
    fn from(kind: PackKind) -> Self {
        match kind {
            PackKind::Data => 0,
            PackKind::Tree => 1,
        }
    }
}

impl TryFrom<u8> for PackKind {
    type Error = &'static str;

    fn try_from(kind: u8) -> Result<Self, &'static str> {
        match kind {
            0 => Ok(Self::Data),
            1 => Ok(Self::Tree),
            _ => Err("unknown kind of pack"),
        }
    }
}

/// A frame's place in its pack and what it holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameEntry {
    /// Bytes from the start of the pack.
    #[serde(rename = "o")]
    pub offset: u32,
    /// Sealed length in bytes.
    #[serde(rename = "l")]
    pub bytes: u32,
    /// Chunks in their order, each with its length; they follow one another without a gap.
    #[serde(rename = "c")]
    pub chunks: Vec<(ChunkId, u32)>,
}

impl FrameEntry {
    /// Returns how long the frame is when opened.
    #[must_use]
    pub fn raw_bytes(&self) -> u64 {
        self.chunks.iter().map(|c| u64::from(c.1)).sum()
    }
}

/// A pack's footer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footer {
    /// 1.
    #[serde(rename = "v")]
    pub version: u32,
    /// What the pack holds.
    #[serde(rename = "k")]
    pub kind: PackKind,
    /// Frames in their order.
    #[serde(rename = "f")]
    pub frames: Vec<FrameEntry>,
}

/// Tells whether a sealed frame can lie there in a pack of `pack_bytes`.
pub(super) fn frame_fits(offset: u32, bytes: u32, pack_bytes: u64) -> bool {
    (SEAL_BYTES + 1..=SEALED_FRAME_BYTES_MAX).contains(&(bytes as usize))
        && offset as usize >= MAGIC.len()
        && u64::from(offset) + u64::from(bytes) <= pack_bytes.min(PACK_BYTES_MAX)
}

/// Tells whether a chunk can lie there in a raw frame.
pub(super) fn chunk_fits(offset: u32, bytes: u32) -> bool {
    (1..=CHUNK_BYTES_LIMIT).contains(&bytes) && u64::from(offset) + u64::from(bytes) <= FRAME_BYTES_MAX as u64
}

/// Compresses and seals a frame.
#[must_use]
pub fn seal_frame(
    key: &SealingKey,
    place: (KlosetId, SessionId),
    nonce: [u8; NONCE_BYTES],
    level: i32,
    raw: Plain,
) -> Vec<u8> {
    sealed::seal_plain(key, nonce, &frame_aad(place), level, raw)
}

/// Opens a frame.
///
/// # Errors
/// [`SealedError`].
pub fn open_frame(key: &SealingKey, place: (KlosetId, SessionId), sealed: &[u8]) -> Result<Bytes, SealedError> {
    sealed::open(key, &frame_aad(place), sealed, FRAME_BYTES_MAX)
}

fn frame_aad((kloset, session): (KlosetId, SessionId)) -> Vec<u8> {
    crypto::aad(kloset, "frame", session.as_bytes())
}

fn footer_aad(kloset: KlosetId, pack: PackId) -> Vec<u8> {
    crypto::aad(kloset, "pack footer", pack.to_string().as_bytes())
}

/// A pack under construction.
pub struct PackBuilder {
    /// What it begins with: frames that fill their own memory as they are, and between them what was put together.
    pieces: Vec<Bytes>,
    in_pieces: bool,
    bytes: usize,
    open: BytesMut,
    digest: blake3::Hasher,
    footer: Footer,
}

impl PackBuilder {
    /// Begins a pack.
    #[must_use]
    pub fn new(kind: PackKind) -> Self {
        Self::within(BytesMut::new(), kind, false)
    }

    /// Begins a pack in the memory of an earlier one: the system takes longer to give new memory than a pack takes to be
    /// copied together.
    ///
    /// With `in_pieces` frames that fill their own memory are taken as they are, for a store that writes at once. One that
    /// sends holds several packs for long, and many small pieces of memory are not used again as well as one large one.
    #[must_use]
    pub fn within(mut open: BytesMut, kind: PackKind, in_pieces: bool) -> Self {
        open.clear();
        open.reserve(DATA_PACK_BYTES + LAST_FRAME_BYTES);
        open.extend_from_slice(MAGIC);
        let footer = Footer { version: 1, kind, frames: Vec::new() };
        Self { pieces: Vec::new(), in_pieces, bytes: 0, open, digest: blake3::Hasher::new(), footer }
    }

    /// Returns the length so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes + self.open.len()
    }

    /// Returns the number of frames so far.
    #[must_use]
    pub fn frames(&self) -> &[FrameEntry] {
        &self.footer.frames
    }

    /// Appends a sealed frame and returns its offset.
    ///
    /// # Panics
    /// If the pack grows over 4 GiB: its owner closes it at 16 MiB.
    pub fn push(&mut self, sealed: Vec<u8>, chunks: Vec<(ChunkId, u32)>) -> u32 {
        let offset = u32::try_from(self.bytes()).expect("closed long before 4 GiB");
        let bytes = u32::try_from(sealed.len()).expect("a frame is under 32 MiB");
        if self.in_pieces && sealed.len() >= PIECE_BYTES_MIN && sealed.capacity() - sealed.len() <= sealed.len() / 8 {
            let before = self.open.split().freeze();
            self.add_piece(before);
            self.add_piece(sealed.into());
        } else {
            self.open.extend_from_slice(&sealed);
        }
        self.footer.frames.push(FrameEntry { offset, bytes, chunks });
        offset
    }

    fn add_piece(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.bytes += piece.len();
            self.digest.update(&piece);
            self.pieces.push(piece);
        }
    }

    /// Seals the footer and returns the whole object and what is in it.
    ///
    /// # Panics
    /// Never: a footer is plain data.
    #[must_use]
    pub fn finish(
        mut self,
        key: &SealingKey,
        kloset: KlosetId,
        pack: PackId,
        nonce: [u8; NONCE_BYTES],
    ) -> (Pieces, Footer) {
        let raw = messagepack::encode(&self.footer);
        let sealed = sealed::seal(key, nonce, &footer_aad(kloset, pack), 3, &raw);
        let bytes = u32::try_from(sealed.len()).expect("a footer is under 16 MiB");
        self.open.extend_from_slice(&sealed);
        self.open.extend_from_slice(&bytes.to_le_bytes());
        let digest = self.digest.update(&self.open).finalize();
        self.open.extend_from_slice(digest.as_bytes());
        self.pieces.push(self.open.freeze());
        (self.pieces.into_iter().collect(), self.footer)
    }
}

/// The memory of packs that are stored, for the next ones: as many as were under way at once. Cheap to clone.
#[derive(Clone, Default)]
pub struct SpareMemory(Arc<Mutex<Vec<BytesMut>>>);

impl SpareMemory {
    /// Returns what was kept, or nothing yet.
    ///
    /// # Panics
    /// If a thread panicked while holding it.
    #[must_use]
    pub fn take(&self) -> BytesMut {
        self.0.lock().expect("no panic while held").pop().unwrap_or_default()
    }

    /// Keeps the memory in which a pack was put together, unless somebody else still holds it.
    ///
    /// # Panics
    /// If a thread panicked while holding it.
    pub fn keep(&self, pack: Pieces) {
        // It begins in that memory, and a piece of it can be had once the others are gone.
        let first = pack.iter().next().cloned();
        drop(pack);
        if let Some(Ok(memory)) = first.map(Bytes::try_into_mut) {
            self.0.lock().expect("no panic while held").push(memory);
        }
    }
}

/// A footer that has not been opened, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedFooter<'a> {
    /// Bytes from the start of the pack: where its frames must end.
    pub offset: u64,
    /// The sealed bytes.
    pub sealed: &'a [u8],
}

/// Checks a whole pack's shape and digest, which needs no key, and returns its sealed footer.
///
/// # Errors
/// [`PackError::Magic`], [`PackError::Length`], [`PackError::Digest`].
pub fn verify_digest(pack: &[u8]) -> Result<SealedFooter<'_>, PackError> {
    let (body, digest) = pack.split_last_chunk::<32>().ok_or(PackError::Length)?;
    let footer = sealed_footer(pack)?;
    if blake3::hash(body) == blake3::Hash::from_bytes(*digest) { Ok(footer) } else { Err(PackError::Digest) }
}

/// Returns the sealed footer of a whole pack, without hashing it.
///
/// # Errors
/// [`PackError::Magic`], [`PackError::Length`].
pub fn sealed_footer(pack: &[u8]) -> Result<SealedFooter<'_>, PackError> {
    if pack.first_chunk() != Some(MAGIC) {
        return Err(PackError::Magic);
    }
    let (body, _) = pack.split_last_chunk::<32>().ok_or(PackError::Length)?;
    let (rest, bytes) = body.split_last_chunk::<4>().ok_or(PackError::Length)?;
    let start = rest.len().checked_sub(u32::from_le_bytes(*bytes) as usize).ok_or(PackError::Length)?;
    if start < MAGIC.len() {
        return Err(PackError::Length);
    }
    let sealed = rest.get(start..).ok_or(PackError::Length)?;
    Ok(SealedFooter { offset: start as u64, sealed })
}

/// Opens a footer and checks that its frames fill the pack from the magic to the footer.
///
/// # Errors
/// [`PackError::Sealed`], [`PackError::Footer`].
pub fn open_footer(
    key: &SealingKey,
    kloset: KlosetId,
    pack: PackId,
    footer: SealedFooter<'_>,
) -> Result<Footer, PackError> {
    let raw = sealed::open(key, &footer_aad(kloset, pack), footer.sealed, FOOTER_BYTES_MAX)?;
    let opened = messagepack::decode(&raw, |f: &Footer| f.version).map_err(PackError::Footer)?;
    check_frames(&opened.frames, footer.offset).map_err(|problem| PackError::Footer(problem.into()))?;
    Ok(opened)
}

// format.md, "Pack"
fn check_frames(frames: &[FrameEntry], end: u64) -> Result<(), &'static str> {
    let mut at = MAGIC.len() as u64;
    for frame in frames {
        if u64::from(frame.offset) != at || !frame_fits(frame.offset, frame.bytes, end) {
            return Err("its frames do not follow one another");
        }
        at += u64::from(frame.bytes);
        let mut chunk_offset = 0;
        for &(_, bytes) in &frame.chunks {
            if !chunk_fits(chunk_offset, bytes) {
                return Err("a chunk cannot be in its frame");
            }
            chunk_offset += bytes;
        }
    }
    if at == end { Ok(()) } else { Err("its frames do not end where it begins") }
}

#[cfg(test)]
mod tests {
    use super::super::crypto::Secret;
    use super::*;

    const KLOSET: KlosetId = KlosetId([1; 32]);
    const PACK: PackId = PackId { session: SessionId([2; 32]), number: 3 };

    fn key() -> SealingKey {
        SealingKey::new(&Secret([4; 32]))
    }

    fn example() -> Bytes {
        let mut pack = PackBuilder::new(PackKind::Data);
        for n in 0..3_u8 {
            let sealed = seal_frame(&key(), (KLOSET, PACK.session), [n; NONCE_BYTES], 3, [n; 1000][..].into());
            pack.push(sealed, vec![(ChunkId([n; 32]), 600), (ChunkId([n + 10; 32]), 400)]);
        }
        pack.finish(&key(), KLOSET, PACK, [9; NONCE_BYTES]).0.into()
    }

    #[test]
    fn a_pack_tells_where_its_chunks_are() {
        let pack = example();
        let footer = open_footer(&key(), KLOSET, PACK, verify_digest(&pack).unwrap()).unwrap();
        assert_eq!(footer.frames.len(), 3);
        let frame = &footer.frames[2];
        let sealed = &pack[frame.offset as usize..][..frame.bytes as usize];
        assert_eq!(open_frame(&key(), (KLOSET, PACK.session), sealed).unwrap(), &[2; 1000][..]);
        assert_eq!(frame.chunks[1], (ChunkId([12; 32]), 400));
    }

    #[test]
    fn large_frames_are_not_copied_and_the_memory_comes_back() {
        let mut noise = vec![0; 300_000];
        crate::env::Entropy::seeded(2).fill(&mut noise);
        let spare = SpareMemory::default();
        let mut at = Vec::new();
        for _ in 0..3 {
            let mut pack = PackBuilder::within(spare.take(), PackKind::Data, true);
            at.push(pack.open.as_ptr());
            for raw in [&noise[..1000], &noise, &[7; 300_000], &noise] {
                let sealed = seal_frame(&key(), (KLOSET, PACK.session), [6; NONCE_BYTES], 3, raw.into());
                let bytes = u32::try_from(raw.len()).unwrap();
                pack.push(sealed, vec![(ChunkId([1; 32]), bytes)]);
            }
            let (content, footer) = pack.finish(&key(), KLOSET, PACK, [9; NONCE_BYTES]);
            assert_eq!(content.iter().count(), 5, "begin, large, compressed, large, footer");
            let whole = Bytes::from(content.clone());
            assert_eq!(open_footer(&key(), KLOSET, PACK, verify_digest(&whole).unwrap()).unwrap(), footer);
            spare.keep(content);
        }
        assert!(at[0] == at[1] && at[1] == at[2], "{at:?}");
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed_without_a_key() {
        let pack = example();
        for at in 0..pack.len() {
            let mut bad = pack.to_vec();
            bad[at] ^= 0x10;
            assert!(verify_digest(&bad).is_err(), "byte {at}");
            assert!(verify_digest(&pack[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn frames_fill_the_pack_to_its_footer() {
        let frame = |offset, bytes, chunk| FrameEntry { offset, bytes, chunks: vec![(ChunkId([1; 32]), chunk)] };
        assert_eq!(check_frames(&[frame(8, 41, 1), frame(49, 50, 2)], 99), Ok(()));
        assert_eq!(check_frames(&[], 8), Ok(()));
        let refused: [(&[FrameEntry], u64); 7] = [
            (&[frame(8, 41, 1)], 48),
            (&[frame(8, 41, 1)], 50),
            (&[frame(8, 40, 1)], 48),
            (&[frame(9, 41, 1)], 50),
            (&[frame(8, 41, 1), frame(50, 50, 2)], 100),
            (&[frame(8, 41, 0)], 49),
            (&[frame(8, 41, CHUNK_BYTES_LIMIT + 1)], 49),
        ];
        for (frames, end) in refused {
            assert!(check_frames(frames, end).is_err(), "{frames:?} {end}");
        }
        let pack = example();
        let footer = sealed_footer(&pack).unwrap();
        let elsewhere = SealedFooter { offset: footer.offset + 1, ..footer };
        assert!(matches!(open_footer(&key(), KLOSET, PACK, elsewhere), Err(PackError::Footer(_))));
    }

    #[test]
    fn a_footer_belongs_to_its_pack_alone() {
        let pack = example();
        let sealed = verify_digest(&pack).unwrap();
        let other = PackId { number: 4, ..PACK };
        assert!(matches!(open_footer(&key(), KLOSET, other, sealed), Err(PackError::Sealed(_))));
    }
}
