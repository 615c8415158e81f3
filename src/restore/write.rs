//! The threads that write.
//!
//! A small file comes with all its content: it is made, written and finished in one go, with as few system calls as
//! that takes. A large one is written piece by piece, by whichever thread has one, and finished by the last.

use std::collections::hash_map::Entry;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam_channel::Receiver;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::sync::OwnedSemaphorePermit;

use super::context::{Context, Link};
use super::copies::only_chunk;
use super::item::Item;
use super::meta;
use super::report::count;
use super::target::{Dir, Made, create};
use crate::repo::RepoError;
use crate::repo::reader::pieces;
use crate::repo::tree::{FileContent, NodeKind};

/// An entry to be made.
pub(super) struct File {
    pub(super) item: Item,
    pub(super) dir: Arc<Dir>,
    /// Whether it is a further name of a file that is there.
    pub(super) link: bool,
    /// Where its content was restored to before, if it comes without.
    pub(super) copy_of: Option<Vec<u8>>,
}

/// Entries with their content.
pub(super) struct Batch {
    pub(super) files: Vec<File>,
    pub(super) contents: Vec<Result<Vec<Bytes>, RepoError>>,
    pub(super) _permits: OwnedSemaphorePermit,
}

/// A part of a large file.
pub(super) struct Piece {
    pub(super) large: Arc<Large>,
    /// Where it begins in the file's data, that is, without its holes.
    pub(super) offset: u64,
    pub(super) raw: Result<Bytes, RepoError>,
    pub(super) _permits: OwnedSemaphorePermit,
}

/// What a thread does next.
pub(super) enum Work {
    Batch(Batch),
    Piece(Piece),
}

/// Writes what comes until nothing more can come.
pub(super) fn work(context: &Context, todo: Receiver<Work>) {
    for work in todo {
        match work {
            Work::Batch(batch) => {
                for (file, content) in batch.files.into_iter().zip(batch.contents) {
                    if !context.ended() {
                        write(context, &file, content);
                    }
                }
            }
            Work::Piece(Piece { large, offset, raw, _permits }) => match raw {
                Ok(raw) => large.write(offset, &raw),
                Err(error) => large.fail_to_read(error),
            },
        }
    }
}

/// Makes one entry of a batch and settles those that wait for it.
fn write(context: &Context, file: &File, content: Result<Vec<Bytes>, RepoError>) {
    if file.link {
        return link(context, &file.dir, &file.item);
    }
    let content = content.and_then(|content| match &file.copy_of {
        Some(path) => content_of_copy(context, file, path),
        None => Ok(content),
    });
    let made = match content {
        Ok(content) => make(context, file, &content).map_err(|error| {
            context.fail(&file.dir.path_of(file.item.name()), error);
            false
        }),
        Err(error) => {
            let damaged = matches!(error, RepoError::Damaged { .. });
            context.fail_to_read(&file.dir.path_of(file.item.name()), error);
            Err(damaged)
        }
    };
    settle(context, &file.dir, &file.item, made);
}

/// Returns a file's content from where it was restored before, or from the kloset if it is not there (any more).
fn content_of_copy(context: &Context, file: &File, path: &[u8]) -> Result<Vec<Bytes>, RepoError> {
    let Some(chunk) = only_chunk(file.item.node()) else { return Ok(Vec::new()) };
    if let Ok(content) = read_small(&file.dir, path, chunk.bytes as usize)
        && context.source.keys.chunk_id(&content) == chunk.id
    {
        return Ok(vec![content.into()]);
    }
    Ok(vec![context.source.runtime.block_on(context.source.reader.chunk(chunk))?])
}

/// Reads a whole file below the root if it is one of `bytes` bytes.
fn read_small(dir: &Dir, path: &[u8], bytes: usize) -> Result<Vec<u8>, Errno> {
    let (above, name) = dir.open_above(path)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOATIME | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(&above, name, flags, Mode::empty())?;
    let mut content = vec![0; bytes];
    let mut have = 0;
    while have < bytes {
        match rustix::io::read(&fd, &mut content[have..]) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => have += n,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(content)
}

fn make(context: &Context, file: &File, content: &[Bytes]) -> Result<(), Errno> {
    let node = file.item.node();
    let NodeKind::File(kind) = &node.kind else { return make_special(context, file) };
    let (fd, made) = file.dir.put(file.item.name(), create)?;
    if let Err(error) = fill(&fd, kind, content) {
        file.dir.discard(file.item.name(), &made);
        return Err(error);
    }
    meta::apply_to_fd(context, &fd, node, || file.dir.path_of(file.item.name()));
    file.dir.keep(file.item.name(), made)?;
    count(&context.tally.files, 1);
    count(&context.tally.bytes, kind.bytes);
    context.monitor.file(kind.bytes);
    Ok(())
}

/// Writes a whole small file.
fn fill(fd: &OwnedFd, kind: &FileContent, content: &[Bytes]) -> Result<(), Errno> {
    if !kind.holes.is_empty() {
        rustix::fs::ftruncate(fd, kind.bytes)?;
    }
    let spread = Spread::new(kind);
    let mut at = 0;
    for part in content {
        spread.write(fd, at, part)?;
        at += part.len() as u64;
    }
    Ok(())
}

/// Makes a link, a device, a pipe or a socket.
fn make_special(context: &Context, file: &File) -> Result<(), Errno> {
    let (node, name) = (file.item.node(), file.item.name());
    let device = |kind: FileType, major, minor| {
        let number = rustix::fs::makedev(major, minor);
        file.dir.put(name, move |dir, name| rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, number))
    };
    let ((), made) = match &node.kind {
        NodeKind::Symlink(to) => file.dir.put(name, |dir, name| rustix::fs::symlinkat(&**to, dir, name))?,
        NodeKind::CharDevice(major, minor) => device(FileType::CharacterDevice, *major, *minor)?,
        NodeKind::BlockDevice(major, minor) => device(FileType::BlockDevice, *major, *minor)?,
        NodeKind::Fifo => device(FileType::Fifo, 0, 0)?,
        NodeKind::Socket => device(FileType::Socket, 0, 0)?,
        NodeKind::File(_) | NodeKind::Directory(_) => return Ok(()),
    };
    meta::apply_to_entry(context, &file.dir, made.name(name), node);
    file.dir.keep(name, made)?;
    count(&context.tally.others, 1);
    Ok(())
}

/// Tells the other names of a file how its first name fared, and makes those that have come meanwhile.
fn settle(context: &Context, dir: &Dir, item: &Item, made: Result<(), bool>) {
    let identity = item.node().identity;
    if identity.links <= 1 {
        return;
    }
    let now = match made {
        Ok(()) => Link::Done(dir.path_of(item.name())),
        Err(damaged) => Link::Failed(damaged),
    };
    let before = match context.links.lock().expect("no panic while held").entry((identity.device, identity.inode)) {
        Entry::Occupied(mut entry) => entry.insert(now),
        Entry::Vacant(_) => return,
    };
    if let Link::Waiting(others) = before {
        others.iter().for_each(|(dir, item)| link(context, dir, item));
    }
}

/// Makes a further name of a file whose first name is settled.
fn link(context: &Context, dir: &Dir, item: &Item) {
    let (node, name) = (item.node(), item.name());
    let first =
        match context.links.lock().expect("no panic while held").get(&(node.identity.device, node.identity.inode)) {
            Some(Link::Done(first)) => Ok(first.clone()),
            Some(Link::Failed(damaged)) => Err(*damaged),
            None | Some(Link::Waiting(_)) => Err(false),
        };
    let first = match first {
        Ok(first) => first,
        Err(damaged) => {
            let message = "its content is that of another name, which could not be restored".to_owned();
            return context.tally.fail(context.in_snapshot(&dir.path_of(name)), message, damaged);
        }
    };
    match link_to(context, dir, item, &first) {
        Ok(()) => count_name(context, &node.kind),
        Err(error) => context.fail(&dir.path_of(name), error),
    }
}

fn count_name(context: &Context, kind: &NodeKind) {
    if matches!(kind, NodeKind::File(_)) {
        count(&context.tally.files, 1);
        context.monitor.file(0);
    } else {
        count(&context.tally.others, 1);
    }
}

/// Links a name to what is at `first` below the root; where the target cannot link, a file is copied.
fn link_to(context: &Context, dir: &Dir, item: &Item, first: &[u8]) -> Result<(), Errno> {
    let (above, of) = dir.open_above(first)?;
    let linked = dir.put(item.name(), |fd, name| rustix::fs::linkat(&above, of, fd, name, AtFlags::empty()));
    match linked {
        Ok(((), made)) => dir.keep(item.name(), made),
        Err(Errno::PERM | Errno::MLINK | Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS)
            if matches!(item.node().kind, NodeKind::File(_)) =>
        {
            copy(context, dir, item, (&above, of))
        }
        Err(error) => Err(error),
    }
}

fn copy(context: &Context, dir: &Dir, item: &Item, (above, of): (&OwnedFd, &[u8])) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut from = std::fs::File::from(rustix::fs::openat(above, of, flags, Mode::empty())?);
    let (fd, made) = dir.put(item.name(), create)?;
    let mut to = std::fs::File::from(fd);
    if let Err(error) = std::io::copy(&mut from, &mut to) {
        dir.discard(item.name(), &made);
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    meta::apply_to_fd(context, &to.into(), item.node(), || dir.path_of(item.name()));
    dir.keep(item.name(), made)
}

/// A large file being written.
///
/// It is finished, or taken away, when its last piece lets go of it.
pub(super) struct Large {
    context: Arc<Context>,
    item: Item,
    dir: Arc<Dir>,
    fd: OwnedFd,
    made: Option<Made>,
    spread: Spread,
    bytes: u64,
    data_bytes: u64,
    /// Bytes of data written; only if that is all of them the file is whole, whatever became of its pieces.
    written: AtomicU64,
    failed: AtomicBool,
    damaged: AtomicBool,
}

impl Large {
    /// Makes the file; nothing if that fails, which is noted.
    pub(super) fn create(context: &Arc<Context>, item: Item, dir: &Arc<Dir>) -> Option<Arc<Self>> {
        let NodeKind::File(content) = &item.node().kind else { return None };
        let created =
            dir.put(item.name(), create).and_then(|(fd, made)| match rustix::fs::ftruncate(&fd, content.bytes) {
                Ok(()) => Ok((fd, made)),
                Err(error) => {
                    dir.discard(item.name(), &made);
                    Err(error)
                }
            });
        match created {
            Ok((fd, made)) => Some(Arc::new(Self {
                spread: Spread::new(content),
                bytes: content.bytes,
                data_bytes: content.data_bytes(),
                context: context.clone(),
                item,
                dir: dir.clone(),
                fd,
                made: Some(made),
                written: AtomicU64::new(0),
                failed: AtomicBool::new(false),
                damaged: AtomicBool::new(false),
            })),
            Err(error) => {
                context.fail(&dir.path_of(item.name()), error);
                settle(context, dir, &item, Err(false));
                None
            }
        }
    }

    /// Tells whether the file will not be whole.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    fn write(&self, offset: u64, raw: &[u8]) {
        if self.has_failed() {
            return;
        }
        match self.spread.write(&self.fd, offset, raw) {
            Ok(()) => {
                self.written.fetch_add(raw.len() as u64, Ordering::Release);
                self.context.monitor.bytes.fetch_add(raw.len() as u64, Ordering::Relaxed);
            }
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    self.context.fail(&self.dir.path_of(self.item.name()), error);
                }
            }
        }
    }

    /// Notes that a piece cannot be read: the file is given up.
    pub(super) fn fail_to_read(&self, error: RepoError) {
        self.damaged.store(matches!(error, RepoError::Damaged { .. }), Ordering::Relaxed);
        if !self.failed.swap(true, Ordering::Relaxed) {
            self.context.fail_to_read(&self.dir.path_of(self.item.name()), error);
        }
    }

    fn finish(&self, made: Made) -> Result<(), bool> {
        let (name, context) = (self.item.name(), &self.context);
        if self.has_failed() || self.written.load(Ordering::Acquire) != self.data_bytes {
            self.dir.discard(name, &made);
            return Err(self.damaged.load(Ordering::Relaxed));
        }
        meta::apply_to_fd(context, &self.fd, self.item.node(), || self.dir.path_of(name));
        if let Err(error) = self.dir.keep(name, made) {
            context.fail(&self.dir.path_of(name), error);
            return Err(false);
        }
        count(&context.tally.files, 1);
        count(&context.tally.bytes, self.bytes);
        context.monitor.files.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        if let Some(made) = self.made.take() {
            let outcome = self.finish(made);
            settle(&self.context, &self.dir, &self.item, outcome);
        }
    }
}

/// Where the data of a file goes around its holes.
struct Spread {
    /// Each run of data: its range in the data, and where it begins in the file.
    runs: Vec<(Range<u64>, u64)>,
}

impl Spread {
    fn new(content: &FileContent) -> Self {
        let mut at = 0;
        let mut runs = Vec::new();
        for (hole, part) in pieces(&content.holes, 0..content.bytes) {
            let bytes = part.end - part.start;
            if !hole {
                runs.push((part, at));
            }
            at += bytes;
        }
        Self { runs }
    }

    /// Cuts data into what lies together in the file: each part of it and where that goes.
    fn places(&self, data: Range<u64>) -> impl Iterator<Item = (Range<u64>, u64)> {
        let first = self.runs.partition_point(|(run, _)| run.end <= data.start);
        let end = data.end;
        self.runs[first..].iter().take_while(move |(run, _)| run.start < end).map(move |(run, at)| {
            let part = run.start.max(data.start)..run.end.min(data.end);
            let to = at + (part.start - run.start);
            (part, to)
        })
    }

    fn write(&self, fd: &OwnedFd, offset: u64, raw: &[u8]) -> Result<(), Errno> {
        for (part, to) in self.places(offset..offset + raw.len() as u64) {
            let within = |at: u64| usize::try_from(at - offset).expect("within the piece");
            write_all_at(fd, &raw[within(part.start)..within(part.end)], to)?;
        }
        Ok(())
    }
}

fn write_all_at(fd: &OwnedFd, mut raw: &[u8], mut at: u64) -> Result<(), Errno> {
    while !raw.is_empty() {
        match rustix::io::pwrite(fd, raw, at) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => {
                raw = &raw[n..];
                at += n as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_around_the_holes() {
        let content = FileContent { bytes: 100, holes: vec![(0, 10), (30, 20), (90, 10)], ..FileContent::default() };
        let spread = Spread::new(&content);
        let places = |data: Range<u64>| spread.places(data).collect::<Vec<_>>();
        assert_eq!(places(0..60), [(0..20, 10), (20..60, 50)]);
        assert_eq!(places(15..25), [(15..20, 25), (20..25, 50)]);
        assert_eq!(places(20..21), [(20..21, 50)]);
        assert_eq!(places(0..0), []);
        assert!(Spread::new(&FileContent::default()).runs.is_empty());
    }
}
