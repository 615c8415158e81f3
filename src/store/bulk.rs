//! Deleting many objects with few requests, where a bucket understands that.
//!
//! S3's `DeleteObjects` takes a thousand names, not every server has it, and its answer says of each name what became of it.
//! It promises only what that says to be gone. Whatever else comes of it, the caller deletes by single requests, which are
//! asked again and say what is wrong; a server that refuses it as such is not asked so again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use object_store::path::Path;
use object_store::{Error, ObjectStore};

/// Names in one request. S3 takes 1,000; a slow server has to answer before it is taken for silent.
pub(super) const BULK_NAMES_MAX: usize = 250;

/// The same objects, by a client that deletes many at once.
#[derive(Debug)]
pub(super) struct Bulk {
    objects: Arc<dyn ObjectStore>,
    is_refused: AtomicBool,
}

impl Bulk {
    /// `objects` sends one request for all names of a `delete_stream`.
    pub(super) fn new(objects: Arc<dyn ObjectStore>) -> Self {
        Self { objects, is_refused: AtomicBool::new(false) }
    }

    /// Tells whether it is worth being asked.
    pub(super) fn is_there(&self) -> bool {
        !self.is_refused.load(Ordering::Relaxed)
    }

    /// Sends one request; tells of each name whether it is gone.
    ///
    /// # Errors
    /// Whatever the request as such ends in.
    pub(super) async fn delete(&self, paths: &[Path]) -> Result<Vec<bool>, Error> {
        let names = futures::stream::iter(paths.to_vec()).map(Ok).boxed();
        let answers: Vec<_> = self.objects.delete_stream(names).collect().await;
        if answers.len() == paths.len() {
            return Ok(answers.iter().map(|answer| matches!(answer, Ok(_) | Err(Error::NotFound { .. }))).collect());
        }
        // One failure stands for all names.
        let failure = answers.into_iter().find_map(Result::err);
        Err(failure.unwrap_or_else(|| Error::Generic {
            store: "S3",
            source: "it does not say of all what became of them".into(),
        }))
    }

    /// It is not asked again: the store does not have it, or does not let us.
    pub(super) fn refuse(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }
}
