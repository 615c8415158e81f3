//! The walk: makes folders, and sends files to be fetched and written.
//!
//! One thread, in the order of the trees. Small files are collected in batches, each fetched by one task; of a large
//! file every chunk is a task. What is under way is bounded in bytes: permits are taken here and given back when the
//! bytes are written.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use crossbeam_channel::Sender;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::context::{Context, Link};
use super::copies::Copies;
use super::item::Item;
use super::plan::is_unchanged;
use super::report::count;
use super::target::Dir;
use super::write::{Batch, File, Large, Piece, Work};
use super::{Overwrite, RestoreError, Start};
use crate::repo::path::{Nodes, leaf};
use crate::repo::tree::{Data, NodeKind, TreeRef};
use crate::repo::{Reader, RepoError};

/// A longer file is fetched and written chunk by chunk.
const LARGE_FILE_BYTES: u64 = 4 << 20;
/// A batch is closed when its files have this many bytes.
const BATCH_BYTES: u64 = 2 << 20;
/// A batch is closed when it has this many files.
const BATCH_FILES: usize = 256;
/// A batch is closed when it holds this many folders open: descriptors are few.
const BATCH_FOLDERS: u32 = 32;
/// Permits of one KiB for what is being fetched and written: 24 MiB.
const PERMITS: u32 = 24 << 10;
/// What a folder that is held open counts for, in KiB: at most 192 are.
const FOLDER_PERMITS: u32 = 128;
/// The deepest folder that is entered.
const DEPTH_MAX: usize = 1024;
/// How much of a large file's list of chunks is looked at together.
const LIST_BYTES: u64 = 256 << 20;

const _: () = assert!(BATCH_FOLDERS * FOLDER_PERMITS <= PERMITS);
const _: () = assert!(((LARGE_FILE_BYTES + BATCH_BYTES) >> 10) < PERMITS as u64);

/// The walk.
pub(super) struct Walk<'a> {
    context: &'a Arc<Context>,
    reader: Reader,
    runtime: Handle,
    work: Sender<Work>,
    copies: Copies,
    permits: Arc<Semaphore>,
    fetches: JoinSet<()>,
    batch: Vec<File>,
    batch_bytes: u64,
    batch_folders: u32,
}

impl<'a> Walk<'a> {
    pub(super) fn new(context: &'a Arc<Context>, work: Sender<Work>) -> Self {
        Self {
            context,
            reader: context.source.reader.clone(),
            runtime: context.source.runtime.clone(),
            copies: Copies::default(),
            work,
            permits: Arc::new(Semaphore::new(PERMITS as usize)),
            fetches: JoinSet::new(),
            batch: Vec::new(),
            batch_bytes: 0,
            batch_folders: 0,
        }
    }

    /// Walks all of it and waits until everything has been fetched.
    pub(super) fn run(mut self, start: &Start, root: &Arc<Dir>) -> Result<(), RestoreError> {
        let walked = match start {
            Start::Folder(tree, _) => self.folder(*tree, root, 0),
            Start::Entry(page) => self.entry(Item::new(page.clone(), 0), root, 0),
        };
        if walked.is_ok() {
            self.send_batch();
        } else {
            self.fetches.abort_all();
        }
        while let Some(fetched) = self.runtime.block_on(self.fetches.join_next()) {
            resume(fetched);
        }
        walked
    }

    fn folder(&mut self, tree: TreeRef, dir: &Arc<Dir>, depth: usize) -> Result<(), RestoreError> {
        let mut nodes = Nodes::new(&self.reader, tree);
        loop {
            if self.context.ended() {
                self.context.take_fatal()?;
                return Err(RestoreError::Stopped);
            }
            match self.runtime.block_on(nodes.next_page()) {
                Ok(None) => return Ok(()),
                Ok(Some(page)) => {
                    for slot in 0..leaf(&page).len() {
                        self.entry(Item::new(page.clone(), slot), dir, depth)?;
                    }
                }
                // What is on the other pages can still be had.
                Err(error @ RepoError::Damaged { .. }) => self.context.fail_to_read(&dir.path(), error),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn entry(&mut self, item: Item, dir: &Arc<Dir>, depth: usize) -> Result<(), RestoreError> {
        let node = item.node();
        if let NodeKind::Directory(tree) = &node.kind {
            let (tree, path) = (*tree, || dir.path_of(item.name()));
            if depth >= DEPTH_MAX {
                self.context.fail(&path(), Errno::NAMETOOLONG);
                return Ok(());
            }
            match dir.make(item.clone()) {
                Ok(made) => {
                    count(&self.context.tally.directories, 1);
                    self.context.monitor.directories.fetch_add(1, Ordering::Relaxed);
                    self.folder(tree, &made, depth + 1)?;
                }
                Err(error) => self.context.fail(&path(), error),
            }
            return Ok(());
        }
        if self.is_unchanged(&item, dir) {
            return Ok(());
        }
        if node.identity.links > 1 && !self.is_first_name(&item, dir) {
            return Ok(());
        }
        match &node.kind {
            NodeKind::File(content) if is_large(content.bytes, &content.data) => self.large(item, dir),
            _ => {
                self.add(item, dir, false);
                Ok(())
            }
        }
    }

    /// Tells whether a file is there already and may stay.
    fn is_unchanged(&self, item: &Item, dir: &Dir) -> bool {
        let unchanged = self.context.overwrite == Overwrite::IfChanged
            && !dir.is_fresh()
            && dir.stat(item.name()).is_ok_and(|there| is_unchanged(item.node(), &there));
        if unchanged {
            count(&self.context.tally.unchanged, 1);
            let identity = item.node().identity;
            if identity.links > 1 {
                let mut links = self.context.links.lock().expect("no panic while held");
                let key = (identity.device, identity.inode);
                links.entry(key).or_insert_with(|| Link::Done(dir.path_of(item.name())));
            }
        }
        unchanged
    }

    /// Tells whether an entry is the first name of its file; another name is linked to it, now or once it is there.
    fn is_first_name(&mut self, item: &Item, dir: &Arc<Dir>) -> bool {
        let identity = item.node().identity;
        let mut links = self.context.links.lock().expect("no panic while held");
        match links.get_mut(&(identity.device, identity.inode)) {
            None => {
                links.insert((identity.device, identity.inode), Link::Waiting(Vec::new()));
                return true;
            }
            Some(Link::Waiting(others)) => {
                others.push((dir.clone(), item.clone()));
                return false;
            }
            Some(Link::Done(_) | Link::Failed(_)) => {}
        }
        drop(links);
        self.add(item.clone(), dir, true);
        false
    }

    /// Adds an entry to the batch.
    fn add(&mut self, item: Item, dir: &Arc<Dir>, link: bool) {
        if self.batch.last().is_none_or(|last| !Arc::ptr_eq(&last.dir, dir)) {
            self.batch_folders += 1;
        }
        let copy_of = if link { None } else { self.copies.find_or_note(item.node(), dir) };
        if let NodeKind::File(content) = &item.node().kind
            && !link
            && copy_of.is_none()
        {
            self.batch_bytes += content.data_bytes();
        }
        self.batch.push(File { item, dir: dir.clone(), link, copy_of });
        let full = self.batch.len() >= BATCH_FILES || self.batch_folders >= BATCH_FOLDERS;
        if full || self.batch_bytes >= BATCH_BYTES {
            self.send_batch();
        }
    }

    fn send_batch(&mut self) {
        let files = std::mem::take(&mut self.batch);
        let kib = u32::try_from(self.batch_bytes >> 10).unwrap_or(PERMITS);
        let permits = self.take((kib + 64).max(self.batch_folders * FOLDER_PERMITS));
        (self.batch_bytes, self.batch_folders) = (0, 0);
        let (reader, work) = (self.reader.clone(), self.work.clone());
        self.spawn(async move {
            let mut contents = Vec::with_capacity(files.len());
            for file in &files {
                contents.push(content(&reader, file).await);
            }
            let _ = work.send(Work::Batch(Batch { files, contents, _permits: permits })); // no writer: it has ended
        });
    }

    fn large(&mut self, item: Item, dir: &Arc<Dir>) -> Result<(), RestoreError> {
        let NodeKind::File(content) = &item.node().kind else { return Ok(()) };
        let content = content.clone();
        let Some(large) = Large::create(self.context, item, dir) else { return Ok(()) };
        let end = content.data_bytes();
        let mut at = 0;
        while at < end && !large.has_failed() && !self.context.ended() {
            let until = (at + LIST_BYTES).min(end);
            let chunks = match self.runtime.block_on(self.reader.chunks_in(&content.data, at..until)) {
                Ok(chunks) => chunks,
                Err(error) => {
                    large.fail_to_read(error);
                    break;
                }
            };
            // A chunk that begins before this part was sent with the part before.
            for (offset, chunk) in chunks.into_iter().filter(|(offset, _)| *offset >= at) {
                let permits = self.take(chunk.bytes >> 10);
                let (reader, work, large) = (self.reader.clone(), self.work.clone(), large.clone());
                self.spawn(async move {
                    let raw = reader.chunk(&chunk).await;
                    let _ = work.send(Work::Piece(Piece { large, offset, raw, _permits: permits }));
                });
            }
            at = until;
        }
        Ok(())
    }

    fn take(&self, kib: u32) -> OwnedSemaphorePermit {
        let take = self.permits.clone().acquire_many_owned(kib.clamp(1, PERMITS));
        self.runtime.block_on(take).expect("the semaphore is never closed")
    }

    fn spawn(&mut self, fetch: impl Future<Output = ()> + Send + 'static) {
        while let Some(fetched) = self.fetches.try_join_next() {
            resume(fetched);
        }
        self.fetches.spawn_on(fetch, &self.runtime);
    }
}

/// Carries a panic of a task on; a task that was called off is none.
pub(super) fn resume(fetched: Result<(), tokio::task::JoinError>) {
    if let Err(error) = fetched
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

fn is_large(bytes: u64, data: &Data) -> bool {
    bytes > LARGE_FILE_BYTES || matches!(data, Data::Pages(_))
}

/// Reads the content of a small file, chunk by chunk; nothing of anything else.
async fn content(reader: &Reader, file: &File) -> Result<Vec<Bytes>, RepoError> {
    let mut out = Vec::new();
    if let (NodeKind::File(content), false) = (&file.item.node().kind, file.link || file.copy_of.is_some())
        && let Data::Chunks(chunks) = &content.data
    {
        out.reserve_exact(chunks.len());
        for chunk in chunks {
            out.push(reader.chunk(chunk).await?);
        }
    }
    Ok(out)
}
