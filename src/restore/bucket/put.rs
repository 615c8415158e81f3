//! Files under way to a bucket.
//!
//! Each is a task: its content is read and put, whole or in parts. How many there are is bounded by number and by bytes. A
//! file whose content is damaged is not put; a bucket that takes nothing more ends the restore.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::super::report::{Tally, count};
use super::{BucketRestoreOptions, Overwrite, RestoreError};
use crate::monitor::Monitor;
use crate::repo::bucket_names as names;
use crate::repo::tree::{FileContent, Node, NodeKind};
use crate::repo::{Reader, RepoError};
use crate::store::bucket::{PART_BYTES, PARTS_MAX};
use crate::store::{Bucket, StoreError};

/// A longer file is put in parts.
const WHOLE_BYTES_MAX: u64 = 2 * PART_BYTES;
/// KiB under way.
const AHEAD_KIB: u32 = 64 << 10;
/// What a file takes besides its content: with it, at most 64 are under way.
const FILE_KIB: u32 = 1 << 10;
/// How long a restore that ends early waits for uploads to be given up.
const GIVE_UP_WAIT: Duration = Duration::from_secs(10);
/// How often it looks whether it ends early.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Puts files.
pub(super) struct Puts {
    shared: Arc<Shared>,
    runtime: Handle,
    ahead: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

/// What all tasks need.
struct Shared {
    reader: Reader,
    bucket: Bucket,
    is_new: bool,
    tally: Arc<Tally>,
    monitor: Arc<Monitor>,
    /// Why nothing more can be put.
    fatal: Mutex<Option<RestoreError>>,
    /// Nothing more is to be put.
    is_over: AtomicBool,
}

/// A file to be put.
struct File {
    content: FileContent,
    headers: Vec<(String, Vec<u8>)>,
    key: String,
    path: Vec<u8>,
    _permits: OwnedSemaphorePermit,
}

/// Why a file was not put.
enum Failure {
    Repo(RepoError),
    Store(StoreError),
    /// There is an object now.
    Taken,
    /// The restore ends.
    Ended,
}

impl From<RepoError> for Failure {
    fn from(error: RepoError) -> Self {
        Self::Repo(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Puts {
    pub(super) fn new(
        reader: &Reader,
        runtime: &Handle,
        options: &BucketRestoreOptions,
        (tally, monitor): (&Arc<Tally>, &Arc<Monitor>),
    ) -> Self {
        let shared = Shared {
            reader: reader.clone(),
            bucket: options.bucket.clone(),
            is_new: options.overwrite == Overwrite::Never,
            tally: tally.clone(),
            monitor: monitor.clone(),
            fatal: Mutex::default(),
            is_over: AtomicBool::new(false),
        };
        let ahead = Arc::new(Semaphore::new(AHEAD_KIB as usize));
        Self { shared: shared.into(), runtime: runtime.clone(), ahead, tasks: JoinSet::new() }
    }

    /// Begins to put a file, once there is room.
    pub(super) fn put(&mut self, node: &Node, key: &str, path: &[u8]) -> Result<(), RestoreError> {
        let NodeKind::File(content) = &node.kind else { return Ok(()) };
        if let Some(error) = self.shared.take_fatal() {
            return Err(error);
        }
        let headers = node.xattrs.iter().filter_map(|(name, value)| Some((names::header_of(name)?, value.clone())));
        let headers = headers.collect();
        let kib = u32::try_from(under_way(content.bytes) >> 10).unwrap_or(AHEAD_KIB);
        let take = self.ahead.clone().acquire_many_owned((kib + FILE_KIB).min(AHEAD_KIB));
        let _permits = self.runtime.block_on(take).expect("the semaphore is never closed");
        let file = File { content: content.clone(), headers, key: key.to_owned(), path: path.to_vec(), _permits };
        while let Some(put) = self.tasks.try_join_next() {
            super::super::walk::resume(put);
        }
        let shared = self.shared.clone();
        self.tasks.spawn_on(async move { shared.put(file).await }, &self.runtime);
        Ok(())
    }

    /// Waits for all that is under way; if it is called off, for as long as it takes to give uploads up.
    pub(super) fn finish(mut self, to_the_end: bool) -> Result<(), RestoreError> {
        self.shared.is_over.store(!to_the_end, Ordering::Relaxed);
        let tasks = &mut self.tasks;
        self.runtime.block_on(async {
            let mut over_since = None;
            while let Ok(Some(put)) | Err(put) =
                tokio::time::timeout(LOOK_EVERY, tasks.join_next()).await.map_err(|_| Ok(()))
            {
                super::super::walk::resume(put);
                if self.shared.is_ended() && over_since.get_or_insert_with(Instant::now).elapsed() > GIVE_UP_WAIT {
                    tasks.abort_all();
                }
            }
        });
        self.shared.take_fatal().map_or(Ok(()), Err)
    }
}

impl Shared {
    async fn put(&self, file: File) {
        if self.is_ended() {
            return;
        }
        let bytes = file.content.bytes;
        let put = if bytes <= WHOLE_BYTES_MAX { self.put_whole(&file).await } else { self.put_in_parts(&file).await };
        match put {
            Ok(()) => {
                count(&self.tally.files, 1);
                count(&self.tally.bytes, bytes);
                self.monitor.file(bytes);
            }
            Err(failure) => self.fail(file.path, failure),
        }
    }

    async fn put_whole(&self, file: &File) -> Result<(), Failure> {
        let content = self.reader.read(&file.content, 0..file.content.bytes).await?;
        let put = self.bucket.put(&file.key, &file.headers, content, self.is_new).await?;
        if put { Ok(()) } else { Err(Failure::Taken) }
    }

    async fn put_in_parts(&self, file: &File) -> Result<(), Failure> {
        let upload = self.bucket.begin(&file.key, &file.headers).await?;
        let (bytes, part) = (file.content.bytes, part_bytes(file.content.bytes));
        let starts = (0..bytes).step_by(usize::try_from(part).unwrap_or(usize::MAX));
        let upload_at = &upload;
        let parts = (1..).zip(starts).map(|(number, start)| async move {
            if self.is_ended() {
                return Err(Failure::Ended);
            }
            let content: Bytes = self.reader.read(&file.content, start..bytes.min(start + part)).await?;
            Ok::<_, Failure>(self.bucket.put_part(upload_at, number, content).await?)
        });
        let put = async {
            let etags: Vec<String> = futures::stream::iter(parts).buffered(parts_at_once(part)).try_collect().await?;
            Ok(self.bucket.complete(&upload, &etags, self.is_new).await?)
        };
        let failure = match put.await {
            Ok(true) => return Ok(()),
            Ok(false) => Failure::Taken,
            Err(failure) => failure,
        };
        if let Err(error) = self.bucket.abort(&upload).await {
            tracing::warn!("parts of an upload that failed are left in the bucket: {error}");
        }
        Err(failure)
    }

    /// Notes why a file was not put; what is wrong with the kloset or the bucket itself ends the restore.
    fn fail(&self, path: Vec<u8>, failure: Failure) {
        match failure {
            Failure::Repo(RepoError::Damaged { object, problem }) => {
                self.tally.fail(path, format!("{object}: {problem}"), true);
            }
            Failure::Repo(error) => self.end(error.into()),
            Failure::Ended => {}
            Failure::Taken => self.tally.fail(path, "an object of its key has appeared meanwhile".to_owned(), false),
            Failure::Store(error @ (StoreError::Other { .. } | StoreError::NotFound { .. })) => {
                self.tally.fail(path, error.to_string(), false);
            }
            Failure::Store(error) => self.end(RestoreError::Bucket(error.into())),
        }
    }

    fn end(&self, error: RestoreError) {
        self.is_over.store(true, Ordering::Relaxed);
        self.fatal.lock().expect("no panic while held").get_or_insert(error);
    }

    fn is_ended(&self) -> bool {
        self.monitor.stopped() || self.is_over.load(Ordering::Relaxed)
    }

    fn take_fatal(&self) -> Option<RestoreError> {
        let mut fatal = self.fatal.lock().expect("no panic while held");
        fatal.take()
    }
}

/// Returns how long the parts of a file are: there may not be too many.
fn part_bytes(bytes: u64) -> u64 {
    PART_BYTES.max(bytes.div_ceil(PARTS_MAX))
}

/// Returns how many parts of that length are under way at once.
fn parts_at_once(part: u64) -> usize {
    usize::try_from((2 * WHOLE_BYTES_MAX / part).clamp(1, 4)).expect("at most 4")
}

/// Returns what a file has in memory.
fn under_way(bytes: u64) -> u64 {
    let part = part_bytes(bytes);
    if bytes <= WHOLE_BYTES_MAX { bytes } else { part * parts_at_once(part) as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_enough_and_memory_stays_bounded() {
        const TIB: u64 = 1 << 40;
        assert_eq!((part_bytes(100 << 20), under_way(100 << 20)), (16 << 20, 64 << 20));
        assert!((5 * TIB).div_ceil(part_bytes(5 * TIB)) <= PARTS_MAX);
        assert_eq!(parts_at_once(part_bytes(5 * TIB)), 1);
        assert_eq!(under_way(1 << 20), 1 << 20);
    }
}
