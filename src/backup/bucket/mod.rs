//! A bucket as the source: every object becomes a file.
//!
//! All of the bucket is listed first; what the listing says of an object that the parent snapshot says as well need not be
//! read. The rest is the backup of folders: steps in tree order, readers beside them, one owner of the writer. It promises
//! that nothing is stored when the bucket cannot be listed, and that what is stored of an object is one object and no
//! mixture. How objects are named is in [`crate::repo::bucket_names`].

mod objects;
mod read;
mod walk;

use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::targets::Components;
use super::unsaid::Walked;
use super::{BATCHES_AHEAD, BackupError, Surroundings, Taker};
use crate::monitor::Monitor;
use crate::repo::bucket_names as names;
use crate::store::{Bucket, StoreError, StoreLocation};
use objects::Objects;
use read::Fetch;
use walk::Walk;

/// Threads that read: they mostly wait.
const READERS: usize = 16;
/// Objects that are asked for at once: with 30 ms each, about a thousand a second.
const OBJECTS_AT_ONCE: usize = 32;
/// What may be under way of their content, in KiB.
const AHEAD_KIB: u32 = 64 << 10;

/// A bucket to be backed up.
#[derive(Clone, Debug)]
pub struct BucketSource {
    /// Where it is, and what opens it.
    pub bucket: Bucket,
    /// What the keys of the kloset itself begin with, if it is in there; they are left out.
    pub skip: Option<String>,
}

/// A bucket that was listed.
pub(super) struct Listing {
    source: BucketSource,
    objects: Objects,
    /// The names on the way to the bucket.
    above: Components,
}

impl Listing {
    /// Lists a bucket.
    ///
    /// # Errors
    /// [`BackupError::Bucket`], [`BackupError::Stopped`].
    pub(super) fn of(source: &BucketSource, runtime: &Handle, monitor: &Monitor) -> Result<Self, BackupError> {
        let mut objects = Objects::default();
        let listed = runtime.block_on(source.bucket.list(|object| {
            if source.skip.as_ref().is_none_or(|skip| !object.key.starts_with(skip)) {
                objects.add(&object);
            }
            !monitor.stopped() && !objects.is_full()
        }));
        listed.map_err(|error| BackupError::Bucket(error.into()))?;
        if monitor.stopped() {
            return Err(BackupError::Stopped);
        }
        if objects.is_full() {
            return Err(BackupError::TooManyObjects);
        }
        objects.sort();
        Ok(Self { source: source.clone(), objects, above: above(source.bucket.location()) })
    }

    /// Returns the names on the way to what is backed up.
    pub(super) fn root(&self) -> Components {
        let prefix = self.source.bucket.prefix().trim_end_matches('/');
        let below = if prefix.is_empty() { None } else { names::components(prefix) };
        [self.above.clone(), below.unwrap_or_default()].concat()
    }
}

/// Returns the names on the way to a bucket: what a URL says of it.
fn above(location: &StoreLocation) -> Components {
    match location {
        StoreLocation::S3 { bucket, .. } => {
            vec![names::TOP.to_vec(), location.authority().into_bytes(), bucket.clone().into_bytes()]
        }
        StoreLocation::Folder(_) => Vec::new(),
    }
}

/// Runs the walk and its readers in threads of their own, and takes the steps in this one.
pub(super) fn take(listing: &Listing, around: Surroundings<'_>, taker: &mut Taker<'_>) -> Result<Walked, BackupError> {
    let monitor = around.context.monitor.clone();
    let (files, bytes) = listing.objects.totals();
    monitor.expect(files, bytes);
    let (batches, steps) = crossbeam_channel::bounded(BATCHES_AHEAD);
    let (jobs, work) = crossbeam_channel::bounded(BATCHES_AHEAD);
    let fetch = Fetch {
        bucket: listing.source.bucket.clone(),
        context: around.context,
        runtime: around.parent.runtime.clone(),
        at_once: Arc::new(Semaphore::new(OBJECTS_AT_ONCE)),
        fatal: Mutex::default(),
    };
    let walk = Walk {
        select: around.select,
        parent: around.parent,
        root: around.root,
        monitor: monitor.clone(),
        ahead: Arc::new(Semaphore::new(AHEAD_KIB as usize)),
        batches,
        jobs,
    };
    let taken = std::thread::scope(|scope| {
        for _ in 0..READERS {
            let work = work.clone();
            scope.spawn(|| fetch.work(work));
        }
        drop(work);
        let walker = scope.spawn(move || walk.run(&listing.objects, &listing.above));
        let taken = taker.take_all(steps);
        if taken.is_err() {
            monitor.stop();
        }
        let walked = walker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match walked {
            // Objects that were not read any more are passed over once it was stopped.
            Some(walked) if !monitor.stopped() => taken.map(|()| walked),
            _ => taken.and(Err(BackupError::Stopped)),
        }
    });
    match fetch.fatal.into_inner().expect("no panic while held") {
        Some(error) => Err(BackupError::Bucket(error.into())),
        None => taken,
    }
}

/// Tells whether a failure is the bucket's, so that no other object can be read either.
fn is_fatal(error: &StoreError) -> bool {
    use StoreError::{Misconfigured, NoSuchBucket, Unreachable, WrongRegion};
    matches!(error, Unreachable { .. } | NoSuchBucket { .. } | WrongRegion { .. } | Misconfigured { .. })
}

/// What a thread answers that has to end because the backup does.
const ENDED: Errno = Errno::INTR;
