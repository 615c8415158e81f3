//! The journal of a backup, byte by byte: what was read of the files that are done, in the order of the walk.
//!
//! A head, then blocks of records. A block is believed by a keyed BLAKE3 over the journal's name, the block's offset and
//! its bytes, so that what is torn, damaged, of another kloset or forged is seen; what stands behind such a block is void.
//! A record says what a file was and is made of, and never where its chunks lie: whether they are stored, the index says.
//! Where it is kept is the business of [`super::resume`].

use std::cmp::Ordering;
use std::io::Read;

use rustix::fs::Stat;
use serde::{Deserialize, Serialize};

use super::meta;
use super::read::FileRead;
use crate::repo::crypto::Secret;
use crate::repo::id::ChunkId;
use crate::repo::tree::Time;

/// The first bytes of a journal; another layout has others.
pub(super) const MAGIC: &[u8; 8] = b"KLOSETJ1";
/// A block is closed when its records take this many bytes: so many are lost at most that were not written yet.
const BLOCK_BYTES: usize = 64 << 10;
/// No record is longer: a file of about 800,000 chunks (0.8 TB). A larger one is read again.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// Before a block: its length and its digest.
const BLOCK_HEAD_BYTES: usize = 4 + 32;

/// A file that was read to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Absolute, as the walk came to it.
    #[serde(with = "serde_bytes")]
    pub(super) path: Vec<u8>,
    /// Its length.
    pub(super) bytes: u64,
    pub(super) inode: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    pub(super) holes: Vec<(u64, u64)>,
    pub(super) chunks: Vec<(ChunkId, u32)>,
}

impl Record {
    /// Describes a file that was this when it was opened and did not change until it was read; `None` of what is no file.
    pub(super) fn of(path: &[u8], read: &FileRead) -> Option<Self> {
        Some(Self {
            path: path.to_vec(),
            bytes: read.bytes,
            inode: read.inode?,
            mtime: pair(read.mtime),
            ctime: pair(read.ctime),
            holes: read.holes.clone(),
            chunks: read.chunks.clone(),
        })
    }

    /// Tells whether the file is still what it was: by the same signs as of a parent snapshot's node.
    pub(super) fn describes(&self, stat: &Stat) -> bool {
        self.bytes == u64::try_from(stat.st_size).unwrap_or(0)
            && self.inode == stat.st_ino
            && self.mtime == pair(meta::mtime(stat))
            && self.ctime == pair(meta::ctime(stat))
    }

    /// Returns about how many bytes of memory it takes.
    pub(super) fn weight(&self) -> u64 {
        (self.path.len() + self.holes.len() * 16 + self.chunks.len() * 36) as u64
    }

    /// Tells whether chunks and holes make up the file.
    fn is_whole(&self) -> bool {
        let chunks = self.chunks.iter().map(|chunk| u64::from(chunk.1));
        let mut parts = chunks.chain(self.holes.iter().map(|hole| hole.1));
        parts.try_fold(0u64, u64::checked_add) == Some(self.bytes)
    }
}

fn pair(time: Time) -> (i64, u32) {
    (time.seconds, time.nanos)
}

/// Compares two paths as the walk comes to them: a folder, then what is in it, then the name behind it.
pub(super) fn walk_order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: u8| if byte == b'/' { 0 } else { byte }; // no name holds a zero
    match a.iter().zip(b).find(|(a, b)| a != b) {
        Some((&a, &b)) => key(a).cmp(&key(b)),
        None => a.len().cmp(&b.len()),
    }
}

/// What blocks of one journal are sealed with.
#[derive(Clone)]
pub(super) struct Seal {
    key: Secret,
    name: [u8; 32],
}

impl Seal {
    /// Makes the seal of the journal of a host's backups of these paths, in the kloset that the key is of.
    pub(super) fn new<'a>(key: Secret, host: &'a str, paths: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        for part in [host.as_bytes()].into_iter().chain(paths) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        Self { name: *hasher.finalize().as_bytes(), key }
    }

    /// Returns what the journal's files are called, which tells nothing of host and paths.
    pub(super) fn stem(&self) -> String {
        crate::repo::id::to_hex(&self.name[..16])
    }

    fn digest(&self, at: u64, records: &[u8]) -> blake3::Hash {
        blake3::Hasher::new_keyed(&self.key.0).update(&self.name).update(&at.to_le_bytes()).update(records).finalize()
    }

    /// Returns the length of the block with that head; `None` if no block has it.
    fn block_bytes(head: &[u8; BLOCK_HEAD_BYTES]) -> Option<usize> {
        let bytes = u32::from_le_bytes(*head.first_chunk().expect("a head begins with four bytes")) as usize;
        (1..=BLOCK_BYTES + RECORD_BYTES_MAX).contains(&bytes).then_some(bytes)
    }

    /// Opens the block at that offset; `None` if it is not what was written there.
    fn open(&self, at: u64, head: &[u8; BLOCK_HEAD_BYTES], mut records: &[u8]) -> Option<Vec<Record>> {
        let digest: [u8; 32] = *head.last_chunk().expect("a head ends with a digest");
        if self.digest(at, records) != digest {
            return None;
        }
        let mut out = Vec::new();
        while !records.is_empty() {
            let record = Record::deserialize(&mut rmp_serde::Deserializer::new(&mut records)).ok()?;
            out.push(record);
        }
        out.iter().all(Record::is_whole).then_some(out)
    }
}

/// Makes the blocks of a journal, one after another.
pub(super) struct Blocks {
    seal: Seal,
    /// Where the next one will stand.
    at: u64,
    records: Vec<u8>,
}

impl Blocks {
    /// Begins behind the head of an empty journal.
    pub(super) fn new(seal: Seal) -> Self {
        Self { seal, at: MAGIC.len() as u64, records: Vec::new() }
    }

    /// Adds a record to the block under construction, unless it is too long; tells whether that is to be closed.
    pub(super) fn push(&mut self, record: &Record) -> bool {
        let before = self.records.len();
        rmp_serde::encode::write(&mut self.records, record).expect("plain data");
        if self.records.len() - before > RECORD_BYTES_MAX {
            self.records.truncate(before);
        }
        self.records.len() >= BLOCK_BYTES
    }

    /// Closes the block and returns its bytes; `None` if nothing is in it.
    pub(super) fn close(&mut self) -> Option<Vec<u8>> {
        if self.records.is_empty() {
            return None;
        }
        let bytes = u32::try_from(self.records.len()).expect("a block is far under 4 GiB");
        let digest = self.seal.digest(self.at, &self.records);
        let block = [&bytes.to_le_bytes()[..], digest.as_bytes(), &self.records].concat();
        self.records.clear();
        self.records.shrink_to(2 * BLOCK_BYTES);
        self.at += block.len() as u64;
        Some(block)
    }

    /// Returns how long the journal is with all blocks that were closed.
    pub(super) fn bytes(&self) -> u64 {
        self.at
    }
}

/// The records of a journal, as far as they can be believed.
pub(super) struct Records<R> {
    input: R,
    seal: Seal,
    at: u64,
    block: std::vec::IntoIter<Record>,
}

impl<R: Read> Records<R> {
    /// Reads the head; `None` if it is not that of a journal of this layout.
    pub(super) fn new(mut input: R, seal: &Seal) -> Option<Self> {
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic).ok().filter(|()| magic == *MAGIC)?;
        Some(Self { input, seal: seal.clone(), at: magic.len() as u64, block: Vec::new().into_iter() })
    }

    /// Reads the next block; `None` at the end, or where what follows is not what was written.
    fn read_block(&mut self) -> Option<Vec<Record>> {
        let mut head = [0; BLOCK_HEAD_BYTES];
        self.input.read_exact(&mut head).ok()?;
        let mut records = vec![0; Seal::block_bytes(&head)?];
        self.input.read_exact(&mut records).ok()?;
        let opened = self.seal.open(self.at, &head, &records)?;
        self.at += (head.len() + records.len()) as u64;
        Some(opened)
    }
}

impl<R: Read> Iterator for Records<R> {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        if let Some(record) = self.block.next() {
            return Some(record);
        }
        self.block = self.read_block()?.into_iter();
        self.block.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(kloset: u8, host: &str, paths: &[&str]) -> Seal {
        Seal::new(Secret([kloset; 32]), host, paths.iter().map(|path| path.as_bytes()))
    }

    fn record(number: u32) -> Record {
        let (n, chunk) = (u64::from(number), ChunkId([number.to_le_bytes()[0]; 32]));
        let (path, times) = (format!("/folder/{number:06}").into_bytes(), (-5, number));
        let (holes, chunks) = (vec![(0, n)], vec![(chunk, 7), (chunk, 9)]);
        Record { path, bytes: n + 16, inode: n, mtime: times, ctime: times, holes, chunks }
    }

    /// Writes a journal of so many records, and returns where each of its blocks ends.
    fn write(seal: &Seal, records: u32) -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut ends, mut blocks) = (MAGIC.to_vec(), Vec::new(), Blocks::new(seal.clone()));
        for number in 0..=records {
            if number == records || blocks.push(&record(number)) {
                out.extend(blocks.close().unwrap());
                ends.push(out.len());
                assert_eq!(blocks.bytes(), out.len() as u64);
            }
        }
        (out, ends)
    }

    fn read(seal: &Seal, journal: &[u8]) -> Vec<Record> {
        Records::new(journal, seal).into_iter().flatten().collect()
    }

    /// Returns whether these are the first records, and how many.
    #[track_caller]
    fn first(records: &[Record]) -> u32 {
        let numbers = 0..u32::try_from(records.len()).unwrap();
        assert!(numbers.clone().map(record).eq(records.iter().cloned()));
        numbers.end
    }

    #[test]
    fn what_was_noted_is_read_again_in_the_same_order() {
        let seal = seal(1, "host", &["/a"]);
        let (journal, ends) = write(&seal, 2000);
        assert!(ends.len() >= 3, "{ends:?}");
        assert_eq!(first(&read(&seal, &journal)), 2000);
        assert!(Blocks::new(seal).close().is_none());
    }

    #[test]
    fn a_torn_tail_is_dropped_and_all_before_it_is_read() {
        let seal = seal(1, "host", &["/a"]);
        let (journal, ends) = write(&seal, 2000);
        let whole: Vec<_> = ends.iter().map(|end| first(&read(&seal, &journal[..*end]))).collect();
        for cut in (0..journal.len()).step_by(997).chain(ends.iter().map(|end| end - 1)) {
            let expected = ends.iter().zip(&whole).filter(|(end, _)| **end <= cut).map(|(_, n)| *n).max().unwrap_or(0);
            assert_eq!(first(&read(&seal, &journal[..cut])), expected, "cut at {cut}");
            let zeros = [&journal[..cut], &[0; 100]].concat();
            assert_eq!(first(&read(&seal, &zeros)), expected, "zeros from {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_and_a_block_in_another_place_are_seen() {
        let seal = seal(1, "host", &["/a"]);
        let (journal, ends) = write(&seal, 2000);
        for at in (0..journal.len()).step_by(1009) {
            let mut damaged = journal.clone();
            damaged[at] ^= 1 << (at % 8);
            let (found, block) = (first(&read(&seal, &damaged)), ends.iter().position(|end| at < *end).unwrap());
            let before = if block == 0 { 0 } else { first(&read(&seal, &journal[..ends[block - 1]])) };
            assert_eq!(found, before, "flipped at {at}");
        }
        let swapped = [&journal[..MAGIC.len()], &journal[ends[0]..ends[1]], &journal[MAGIC.len()..ends[0]]].concat();
        assert!(read(&seal, &swapped).is_empty());
    }

    #[test]
    fn the_journal_of_another_kloset_host_or_path_or_layout_says_nothing() {
        let own = seal(1, "host", &["/a", "/b"]);
        let (journal, _) = write(&own, 10);
        for other in [
            seal(2, "host", &["/a", "/b"]),
            seal(1, "other", &["/a", "/b"]),
            seal(1, "host", &["/a"]),
            seal(1, "host", &["/a/b"]),
            seal(1, "host/a", &["/b"]),
        ] {
            assert!(other.stem() != own.stem() && read(&other, &journal).is_empty());
        }
        assert!(Records::new(&[b"KLOSETJ2", &journal[8..]].concat()[..], &own).is_none());
        assert_eq!(read(&seal(1, "host", &["/a", "/b"]), &journal).len(), 10);
    }

    #[test]
    fn a_record_whose_parts_do_not_make_up_the_file_is_not_believed() {
        let own = seal(1, "host", &["/a"]);
        let mut blocks = Blocks::new(own.clone());
        blocks.push(&Record { bytes: 17, ..record(0) });
        let journal = [&MAGIC[..], &blocks.close().unwrap()].concat();
        assert!(read(&own, &journal).is_empty());
    }

    #[test]
    fn the_walk_comes_to_a_folder_then_to_what_is_in_it_then_to_the_next_name() {
        let order = ["/", "/a", "/a/b", "/a/b/c", "/a/bc", "/a!", "/a!/x", "/a.b", "/a0", "/b"];
        assert!(order.is_sorted_by(|a, b| walk_order(a.as_bytes(), b.as_bytes()) == Ordering::Less));
    }
}
