//! Reading objects: fetch, cut, hash.
//!
//! Small ones are asked for many at once, each with its metadata in one request; large ones in parts, some ahead, all of
//! one entity tag. An object that becomes another meanwhile is read again from its beginning.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender};
use futures::StreamExt;
use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::walk::time;
use super::{ENDED, OBJECTS_AT_ONCE, is_fatal};
use crate::backup::meta::Xattrs;
use crate::backup::read::{Answer, FileRead, ReadContext, ReadError, Window, length};
use crate::repo::bucket_names as names;
use crate::repo::id::ChunkId;
use crate::repo::tree::{XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX};
use crate::store::bucket::Object;
use crate::store::{Bucket, StoreError};

/// The length of the parts in which large objects are read.
const PART_BYTES: usize = 4 << 20;
/// Parts of one object that are asked for at once.
const PARTS_AHEAD: usize = 4;
/// What a large object has under way: parts, and the window in which it is cut.
pub(super) const LARGE_AHEAD_BYTES: u64 = (PART_BYTES * (PARTS_AHEAD + 3)) as u64;
/// An object listed as a small one may have grown to so much.
const SMALL_BYTES_MAX: u64 = 8 << 20;
/// An object that changes while it is read is read so often in all.
const READINGS_MAX: usize = 3;

/// An object to be read, as it was listed.
pub(super) struct Wanted {
    pub(super) key: String,
    /// Whether its path spells its key.
    pub(super) is_path: bool,
    pub(super) etag: String,
    pub(super) bytes: u64,
    pub(super) modified_unix_ms: i64,
}

/// Objects to be read by one thread, and where the answers go.
pub(super) struct FetchJob {
    pub(super) wanted: Vec<Wanted>,
    /// Whether this is one large object.
    pub(super) large: bool,
    pub(super) answers: Sender<Answer>,
    pub(super) _permits: OwnedSemaphorePermit,
}

/// What every reading thread shares.
pub(super) struct Fetch {
    pub(super) bucket: Bucket,
    pub(super) context: ReadContext,
    pub(super) runtime: Handle,
    pub(super) at_once: Arc<Semaphore>,
    /// Why nothing more can be read.
    pub(super) fatal: Mutex<Option<StoreError>>,
}

impl Fetch {
    /// Reads jobs until there are no more. A job whose answers nobody wants is dropped.
    pub(super) fn work(&self, jobs: Receiver<FetchJob>) {
        for job in jobs {
            let answer = match &job.wanted[..] {
                [wanted] if job.large => Answer::End(self.large(wanted, &job.answers)),
                wanted => self.batch(wanted),
            };
            let _ = job.answers.send(answer);
        }
    }

    fn batch(&self, wanted: &[Wanted]) -> Answer {
        let fetches = futures::stream::iter(wanted).map(|wanted| self.fetch(wanted)).buffered(OBJECTS_AT_ONCE);
        let fetched: Vec<_> = self.runtime.block_on(fetches.collect());
        let mut buffer = Vec::new();
        let read = wanted.iter().zip(fetched).map(|(wanted, object)| {
            let object = object?;
            let mut read = begin(wanted, &object);
            self.context.cut_window(&object.content, true, &mut 0, &mut |id, content| {
                let from = buffer.len();
                buffer.extend_from_slice(content);
                read.places.push(from..buffer.len());
                keep(&mut read, id, content);
                true
            });
            self.context.monitor.file(read.bytes);
            Ok(read)
        });
        let read = read.collect();
        Answer::Batch(read, buffer)
    }

    async fn fetch(&self, wanted: &Wanted) -> Result<Object, ReadError> {
        let _turn = self.at_once.acquire().await;
        if self.context.monitor.stopped() {
            return Err(ENDED.into());
        }
        let object = self.bucket.get(&wanted.key, None, None, SMALL_BYTES_MAX).await;
        object.map_err(|error| self.failed(error))?.ok_or_else(changed)
    }

    fn large(&self, wanted: &Wanted, answers: &Sender<Answer>) -> Result<FileRead, ReadError> {
        for _ in 0..READINGS_MAX {
            if let Some(read) = self.large_once(wanted, answers)? {
                self.context.monitor.file(read.bytes);
                return Ok(read);
            }
        }
        Err(changed())
    }

    /// Reads a large object; `None` if it became another one meanwhile.
    fn large_once(&self, wanted: &Wanted, answers: &Sender<Answer>) -> Result<Option<FileRead>, ReadError> {
        let part = |range: Range<u64>, etag: Option<String>| async move {
            self.bucket.get(&wanted.key, Some(range), etag.as_deref(), 0).await
        };
        let part_bytes = PART_BYTES as u64;
        let first = self.runtime.block_on(part(0..part_bytes, None)).map_err(|error| self.failed(error))?;
        let Some(first) = first else { return Ok(None) };
        let mut read = begin(wanted, &first);
        let etag = Some(first.etag.clone()).filter(|etag| !etag.is_empty());
        let starts = (part_bytes..first.bytes).step_by(PART_BYTES);
        let rest = starts.map(|start| part(start..first.bytes.min(start + part_bytes), etag.clone()));
        let mut rest = std::pin::pin!(futures::stream::iter(rest).buffered(PARTS_AHEAD));
        let (mut window, mut have, mut next) = (Window::default(), 0, first.content);
        loop {
            window.push(&next);
            have += next.len() as u64;
            let mut hand_over = |id, content: &[u8]| {
                keep(&mut read, id, content);
                answers.send(Answer::Chunk(id, content.into())).is_ok() && !self.context.monitor.stopped()
            };
            let ended = have >= first.bytes;
            if !window.cut(&self.context, ended, &mut hand_over) {
                return Err(ENDED.into());
            }
            if ended {
                return Ok(Some(read));
            }
            next = match self.runtime.block_on(rest.next()) {
                Some(Ok(Some(object))) if object.bytes == first.bytes => object.content,
                Some(Ok(_)) => return Ok(None),
                Some(Err(error)) => return Err(self.failed(error)),
                None => Bytes::new(),
            };
        }
    }

    /// Judges why an object cannot be read; what is wrong with the bucket ends the backup.
    fn failed(&self, error: StoreError) -> ReadError {
        if error.is_not_found() {
            return Errno::NOENT.into();
        }
        if !is_fatal(&error) {
            return ReadError::Store(error.to_string());
        }
        self.fatal.lock().expect("no panic while held").get_or_insert(error);
        self.context.monitor.stop();
        ENDED.into()
    }
}

fn changed() -> ReadError {
    ReadError::Store("it was replaced each time while it was read".to_owned())
}

fn keep(read: &mut FileRead, id: ChunkId, content: &[u8]) {
    read.chunks.push((id, length(content)));
}

/// Begins with what is known of an object before its content.
fn begin(wanted: &Wanted, object: &Object) -> FileRead {
    let is_tagged = wanted.etag.is_empty() || object.etag == wanted.etag;
    let is_listed = is_tagged && object.bytes == wanted.bytes;
    // The listing has parts of a second, which the answer lacks.
    let modified = match object.modified_unix_s {
        Some(seconds) if !is_listed || seconds != wanted.modified_unix_ms.div_euclid(1000) => seconds * 1000,
        _ => wanted.modified_unix_ms,
    };
    let (xattrs, is_too_much) = xattrs(wanted, object);
    FileRead {
        inode: None,
        mtime: time(modified),
        ctime: time(modified),
        xattrs,
        xattr_error: is_too_much.then_some(Errno::TOOBIG),
        bytes: object.bytes,
        holes: Vec::new(),
        chunks: Vec::new(),
        places: Vec::new(),
        changed: false,
    }
}

/// Returns an object's metadata as attributes, and whether some of it found no room.
fn xattrs(wanted: &Wanted, object: &Object) -> (Xattrs, bool) {
    let kept = object.headers.iter();
    let kept = kept.filter_map(|(name, value)| Some((names::attribute_of(name)?.into_bytes(), value.clone())));
    let own = [(names::ETAG, &object.etag), (names::KEY, &wanted.key)].into_iter();
    let own = own.filter(|(name, value)| !value.is_empty() && (*name != names::KEY || !wanted.is_path));
    let own = own.map(|(name, value)| (name.as_bytes().to_vec(), value.clone().into_bytes()));
    let mut all: Xattrs = own.chain(kept).collect();
    let (before, mut total) = (all.len(), 0);
    all.retain(|(name, value)| {
        total += name.len() + value.len();
        name.len() <= XATTR_NAME_BYTES_MAX && total <= XATTR_BYTES_MAX
    });
    all.sort_unstable();
    let is_too_much = all.len() < before;
    (all, is_too_much)
}
