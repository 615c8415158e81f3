//! Reading files: open, cut, hash.
//!
//! Small files are read in batches, each into the batch's buffer; large ones chunk by chunk through a window that mostly
//! stays in the processor's cache, with bounded room ahead. A file is read to the length it had when it was opened. Holes
//! are skipped. This file knows nothing of frames.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, Sender};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::meta;
use crate::monitor::Monitor;
use crate::repo::chunker::Chunker;
use crate::repo::crypto::Keys;
use crate::repo::id::ChunkId;
use crate::repo::sealed::Plain;
use crate::repo::tree::{HOLES_MAX, Time};

/// A file is large from here on: it is handed over chunk by chunk.
pub(super) const LARGE_FILE_BYTES: u64 = 1 << 20;
/// So much is read at once: few calls, and still in the processor's cache when it is cut and hashed.
const READ_BYTES: usize = 256 << 10;
/// When everything is to stop, a file of which no more than this is left is brought to its end.
const END_BYTES: u64 = 8 << 20;
/// Chunks of a large file that wait to be taken.
const CHUNKS_AHEAD: usize = 4;
/// A file that changed while it was read is read so often again.
const AGAIN_MAX: usize = 2;
/// A longer one is not: what takes so long to be read changes the next time as well.
const AGAIN_BYTES_MAX: u64 = 1 << 30;
/// Holes shorter than a page cannot be holes on any file system.
const HOLE_BYTES_MIN: u64 = 4096;

/// A file to be read.
pub(super) struct ReadTask {
    /// Its directory.
    pub(super) directory: Arc<OwnedFd>,
    /// Its name there.
    pub(super) name: Vec<u8>,
}

/// Files to be read by one thread, and where the answers go.
pub(super) struct ReadJob {
    pub(super) tasks: Vec<ReadTask>,
    /// How much they held when they were found.
    pub(super) bytes: usize,
    /// Whether this is one large file.
    pub(super) large: bool,
    pub(super) answers: Sender<Answer>,
}

/// Why something could not be read.
pub(super) enum ReadError {
    /// What the system says.
    System(Errno),
    /// What the store says that it is in.
    Store(String),
}

impl From<Errno> for ReadError {
    fn from(error: Errno) -> Self {
        Self::System(error)
    }
}

/// What reading brought.
pub(super) enum Answer {
    /// All files of a batch, with the buffer that holds their content.
    Batch(Vec<Result<FileRead, ReadError>>, Vec<u8>),
    /// A chunk of a large file.
    Chunk(ChunkId, Plain),
    /// The end of a large file; its chunks came before.
    End(Result<FileRead, ReadError>),
}

/// A file that was read.
pub(super) struct FileRead {
    /// Its inode number; `None` of what is no file.
    pub(super) inode: Option<u64>,
    /// When its content changed, and its inode, as of when it was opened.
    pub(super) mtime: Time,
    pub(super) ctime: Time,
    pub(super) xattrs: meta::Xattrs,
    /// Why the attributes could not be read.
    pub(super) xattr_error: Option<Errno>,
    /// Its length then, or less if it was cut meanwhile.
    pub(super) bytes: u64,
    pub(super) holes: Vec<(u64, u64)>,
    pub(super) chunks: Vec<(ChunkId, u32)>,
    /// Where its chunks lie in the batch's buffer; empty for a large file.
    pub(super) places: Vec<Range<usize>>,
    /// Whether it changed while it was read, each time.
    pub(super) changed: bool,
}

/// What every reading thread shares.
pub(super) struct ReadContext {
    pub(super) keys: Arc<Keys>,
    pub(super) chunker: Chunker,
    pub(super) monitor: Arc<Monitor>,
}

impl ReadContext {
    /// Cuts a window as far as the chunks in it are certain, all of it at the end, and hands each to `keep`.
    ///
    /// `seen` is of [`Chunker::first`]. Returns where the rest begins, or `None` once `keep` wants no more.
    pub(super) fn cut_window(
        &self,
        window: &[u8],
        is_end: bool,
        seen: &mut usize,
        keep: &mut dyn FnMut(ChunkId, &[u8]) -> bool,
    ) -> Option<usize> {
        let mut at = 0;
        while let Some(n) = self.chunker.first(&window[at..], is_end, seen) {
            let content = &window[at..at + n];
            if !keep(self.keys.chunk_id(content), content) {
                return None;
            }
            at += n;
        }
        Some(at)
    }
}

/// Returns a channel for the answers of a job.
pub(super) fn answers(large: bool) -> (Sender<Answer>, Receiver<Answer>) {
    crossbeam_channel::bounded(if large { CHUNKS_AHEAD } else { 1 })
}

/// Content on its way through a reader: what of it is not cut yet.
#[derive(Default)]
pub(super) struct Window {
    bytes: Vec<u8>,
    filled: usize,
    /// How much of it was looked through for the end of its first chunk.
    seen: usize,
}

impl Window {
    /// Lets `read` fill what follows, [`READ_BYTES`] and `bytes_max` at most; returns how much that was.
    pub(super) fn fill(
        &mut self,
        bytes_max: u64,
        read: impl FnOnce(&mut [u8]) -> std::io::Result<usize>,
    ) -> std::io::Result<usize> {
        let end = self.filled + usize::try_from(bytes_max).unwrap_or(usize::MAX).min(READ_BYTES);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        let bytes = read(&mut self.bytes[self.filled..end])?;
        self.filled += bytes;
        Ok(bytes)
    }

    /// Appends content that came by itself.
    pub(super) fn push(&mut self, content: &[u8]) {
        self.bytes.truncate(self.filled);
        self.bytes.extend_from_slice(content);
        self.filled = self.bytes.len();
    }

    /// Cuts what is certain, all of it at the end, and hands each chunk to `keep`; `false` once that wants no more.
    pub(super) fn cut(
        &mut self,
        context: &ReadContext,
        is_end: bool,
        keep: &mut dyn FnMut(ChunkId, &[u8]) -> bool,
    ) -> bool {
        let Some(at) = context.cut_window(&self.bytes[..self.filled], is_end, &mut self.seen, keep) else {
            return false;
        };
        self.bytes.copy_within(at..self.filled, 0);
        self.filled -= at;
        true
    }

    fn clear(&mut self) {
        (self.filled, self.seen) = (0, 0);
    }
}

/// Where a file's content goes. What one reading brought is void with the next one's.
enum Sink<'a> {
    /// Behind the `usize` bytes of other files in a batch's buffer.
    Batch(usize, &'a mut Vec<u8>),
    /// Chunk by chunk, until that wants no more.
    Chunks(&'a mut Window, &'a mut Keep<'a>),
}

type Keep<'a> = dyn FnMut(ChunkId, &[u8], &mut FileRead) -> bool + 'a;

/// Reads jobs until there are no more. A job whose answers nobody wants is dropped.
pub(super) fn work(context: &ReadContext, jobs: &Receiver<ReadJob>) {
    let mut window = Window::default();
    for job in jobs {
        if job.large {
            read_large(context, &job, &mut window);
        } else {
            let mut buffer = Vec::with_capacity(job.bytes);
            let read = job.tasks.iter().map(|task| {
                let start = buffer.len();
                let read = read_file(context, task, &mut Sink::Batch(start, &mut buffer));
                if read.is_err() {
                    buffer.truncate(start);
                }
                read.map_err(ReadError::from)
            });
            let read = read.collect();
            let _ = job.answers.send(Answer::Batch(read, buffer));
        }
    }
}

fn read_large(context: &ReadContext, job: &ReadJob, window: &mut Window) {
    for task in &job.tasks {
        let mut hand_over = |id: ChunkId, content: &[u8], read: &mut FileRead| {
            read.chunks.push((id, length(content)));
            job.answers.send(Answer::Chunk(id, content.into())).is_ok()
        };
        let read = read_file(context, task, &mut Sink::Chunks(window, &mut hand_over));
        let _ = job.answers.send(Answer::End(read.map_err(ReadError::from)));
    }
}

/// Reads a file, and again if it changed meanwhile; what changes each time is taken as it was read last.
fn read_file(context: &ReadContext, task: &ReadTask, sink: &mut Sink<'_>) -> Result<FileRead, Errno> {
    if context.monitor.stopped() {
        return Err(Errno::INTR); // what is begun is brought to its end, if that is near
    }
    let mut read = read_once(context, task, sink)?;
    for _ in 0..AGAIN_MAX {
        if read.changed && read.bytes <= AGAIN_BYTES_MAX {
            read = read_once(context, task, sink)?;
        }
    }
    context.monitor.file(read.bytes);
    Ok(read)
}

fn read_once(context: &ReadContext, task: &ReadTask, sink: &mut Sink<'_>) -> Result<FileRead, Errno> {
    let mut file = open(&*task.directory, &task.name)?;
    let stat = rustix::fs::fstat(&file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Errno::NOENT); // what was a file has been replaced meanwhile
    }
    let (xattrs, xattr_error) = match meta::xattrs_of_fd(&file) {
        Ok(xattrs) => (xattrs, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let bytes = u64::try_from(stat.st_size).unwrap_or(0);
    let holes = find_holes(&mut file, &stat, bytes);
    let (mtime, ctime) = (meta::mtime(&stat), meta::ctime(&stat));
    let (chunks, places, changed) = (Vec::new(), Vec::new(), false);
    let mut read =
        FileRead { inode: Some(stat.st_ino), mtime, ctime, xattrs, xattr_error, bytes, holes, chunks, places, changed };
    let mut data = DataOf::new(&mut file, &read);
    match sink {
        Sink::Batch(start, buffer) => {
            buffer.truncate(*start);
            take_small(context, &mut data, &mut read, buffer)?;
        }
        Sink::Chunks(window, keep) => cut_large(context, &mut data, &mut read, window, keep)?,
    }
    let after = rustix::fs::fstat(&file)?;
    let times = |stat: &Stat| (meta::mtime(stat), meta::ctime(stat));
    read.changed |= times(&after) != times(&stat) || after.st_size != stat.st_size;
    Ok(read)
}

/// Opens a file in a directory; a link is not followed, and a pipe not waited for.
pub(super) fn open(directory: impl AsFd, name: &[u8]) -> Result<File, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let open = |flags| rustix::fs::openat(directory.as_fd(), name, flags, Mode::empty());
    // Reading must not change the access time; only the owner and root may ask for that.
    match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => Ok(open(flags)?.into()),
        file => Ok(file?.into()),
    }
}

/// What of a file is not in holes, in its order.
struct DataOf<'a> {
    file: &'a mut File,
    segments: std::vec::IntoIter<Range<u64>>,
    segment: Range<u64>,
    /// Where the file stands.
    at: u64,
}

impl<'a> DataOf<'a> {
    /// Begins with a file that stands at its start.
    fn new(file: &'a mut File, read: &FileRead) -> Self {
        Self { file, segments: data_segments(&read.holes, read.bytes).into_iter(), segment: 0..0, at: 0 }
    }

    /// Goes where the next bytes are and returns how many follow there, 0 at the end.
    fn left(&mut self) -> Result<u64, Errno> {
        while self.segment.is_empty() {
            let Some(next) = self.segments.next() else { return Ok(0) };
            if next.start != self.at {
                self.at = self.file.seek(SeekFrom::Start(next.start)).map_err(|e| errno(&e))?;
            }
            self.segment = next;
        }
        Ok(self.segment.end - self.segment.start)
    }

    /// Notes that so many bytes were read from where the file stood; none where the file ended earlier than it said.
    fn passed(&mut self, bytes: usize, read: &mut FileRead) {
        self.at += bytes as u64;
        self.segment.start = self.at.min(self.segment.end);
        if bytes == 0 {
            shorten(read, self.segment.start);
            (self.segment, self.segments) = (0..0, Vec::new().into_iter());
        }
    }
}

/// Reads a small file to the end of a batch's buffer and cuts it there.
fn take_small(
    context: &ReadContext,
    data: &mut DataOf<'_>,
    read: &mut FileRead,
    buffer: &mut Vec<u8>,
) -> Result<(), Errno> {
    let start = buffer.len();
    loop {
        let left = usize::try_from(data.left()?).unwrap_or(usize::MAX);
        if left == 0 {
            break;
        }
        let filled = buffer.len();
        buffer.reserve(left.min(READ_BYTES));
        // Into memory that is not filled with zeros first; what lies behind the segment is let go.
        let bytes = rustix::io::read(&*data.file, rustix::buffer::spare_capacity(buffer))?;
        buffer.truncate(filled.saturating_add(left));
        data.passed(bytes, read);
    }
    let mut at = start;
    let keep = &mut |id: ChunkId, content: &[u8]| {
        read.chunks.push((id, length(content)));
        read.places.push(at..at + content.len());
        at += content.len();
        true
    };
    context.monitor.pieces.fetch_add(1, Ordering::Relaxed);
    context.cut_window(&buffer[start..], true, &mut 0, keep).map(drop).ok_or(Errno::INTR)
}

/// Reads a large file through a window and hands over each chunk.
fn cut_large(
    context: &ReadContext,
    data: &mut DataOf<'_>,
    read: &mut FileRead,
    window: &mut Window,
    keep: &mut Keep<'_>,
) -> Result<(), Errno> {
    window.clear();
    loop {
        let left = data.left()?;
        if left > 0 {
            let bytes = window.fill(left, |room| data.file.read(room)).map_err(|e| errno(&e))?;
            data.passed(bytes, read);
        }
        context.monitor.pieces.fetch_add(1, Ordering::Relaxed);
        let mut keep = |id: ChunkId, content: &[u8]| keep(id, content, read);
        if !window.cut(context, left == 0, &mut keep) {
            return Err(Errno::INTR);
        }
        if left == 0 {
            return Ok(());
        }
        if context.monitor.stopped() && read.bytes.saturating_sub(data.at) > END_BYTES {
            return Err(Errno::INTR);
        }
    }
}

/// Notes that the file ends at `end`, earlier than it said.
fn shorten(read: &mut FileRead, end: u64) {
    read.bytes = end;
    read.changed = true;
    read.holes.retain(|&(offset, bytes)| offset + bytes <= end);
}

/// Returns the length of a chunk.
pub(super) fn length(content: &[u8]) -> u32 {
    u32::try_from(content.len()).expect("a chunk is at most 16 MiB")
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

/// Returns the holes of a file: at most [`HOLES_MAX`], the smallest of more are read as zeros.
fn find_holes(file: &mut File, stat: &Stat, bytes: u64) -> Vec<(u64, u64)> {
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(u64::MAX).saturating_mul(512);
    if allocated >= bytes {
        return Vec::new();
    }
    let mut holes = Vec::new();
    let mut at = 0;
    while at < bytes {
        let data = match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data.min(bytes),
            Err(Errno::NXIO) => bytes,
            Err(_) => break,
        };
        if data - at >= HOLE_BYTES_MIN {
            holes.push((at, data - at));
        }
        if data >= bytes {
            break;
        }
        match rustix::fs::seek(&*file, rustix::fs::SeekFrom::Hole(data)) {
            Ok(hole) => at = hole.min(bytes),
            Err(_) => break,
        }
    }
    let _ = file.seek(SeekFrom::Start(0));
    let mut shortest = HOLE_BYTES_MIN;
    while holes.len() > HOLES_MAX {
        shortest *= 2;
        holes.retain(|h| h.1 >= shortest);
    }
    holes
}

/// Returns what lies between the holes.
fn data_segments(holes: &[(u64, u64)], bytes: u64) -> Vec<Range<u64>> {
    let mut out = Vec::with_capacity(holes.len() + 1);
    let mut at = 0;
    for &(offset, length) in holes {
        if at < offset {
            out.push(at..offset);
        }
        at = offset + length;
    }
    if at < bytes {
        out.push(at..bytes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> ReadContext {
        use crate::env::Entropy;
        use crate::repo::crypto::Secret;
        use crate::repo::id::KlosetId;
        let keys = Keys::from_master(KlosetId([7; 32]), &Secret::random(&Entropy::seeded(1)));
        let chunker = Chunker::new(crate::repo::header::ChunkerSettings::default(), 1);
        ReadContext { keys: keys.into(), chunker, monitor: Arc::default() }
    }

    /// Reads a file that is written to while the first `changes` readings are under way; returns what was read and how
    /// often.
    fn read_changing(changes: usize) -> (FileRead, Vec<u8>, usize) {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("file");
        std::fs::write(&at, vec![1; 5000]).unwrap();
        let directory: OwnedFd = File::open(folder.path()).unwrap().into();
        let task = ReadTask { directory: directory.into(), name: b"file".into() };
        let (mut kept, mut readings) = (Vec::new(), 0);
        let mut keep = |id: ChunkId, content: &[u8], read: &mut FileRead| {
            readings += 1;
            if readings <= changes {
                std::fs::write(&at, vec![7; 5000 + readings]).unwrap();
            }
            read.chunks.push((id, 0));
            kept = content.to_vec();
            true
        };
        let mut window = Window::default();
        let read = read_file(&context(), &task, &mut Sink::Chunks(&mut window, &mut keep)).unwrap();
        (read, kept, readings)
    }

    #[test]
    fn a_file_that_changes_while_it_is_read_is_read_again_but_not_for_ever() {
        let (read, kept, readings) = read_changing(0);
        assert_eq!((read.changed, read.bytes, kept, readings), (false, 5000, vec![1; 5000], 1));
        let (read, kept, readings) = read_changing(1);
        assert_eq!((read.changed, read.bytes, kept, readings), (false, 5001, vec![7; 5001], 2));
        assert_eq!(read.chunks.len(), 1);
        let (read, _, readings) = read_changing(9);
        assert_eq!((read.changed, read.bytes, readings), (true, 5002, 3));
    }

    #[test]
    fn data_lies_between_the_holes() {
        assert_eq!(data_segments(&[], 10), vec![0..10; 1]);
        assert_eq!(data_segments(&[(0, 4), (6, 2)], 10), [4..6, 8..10]);
        assert_eq!(data_segments(&[(4, 6)], 10), vec![0..4; 1]);
        assert!(data_segments(&[(0, 10)], 10).is_empty() && data_segments(&[], 0).is_empty());
    }
}
