//! Reading objects from the store itself: whole or in part, and listing them, until all of it has come.
//!
//! Promises that what broke off goes on where it was, over a new connection: a pack on a bad line is not fetched from its
//! beginning each time. That is right because objects never change; that what came is what was put is checked by who asked.
//! An answer that is shorter than it said is one that broke off.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetResult, GetResultPayload, ObjectStoreExt};

use super::answer::{classify, is_range_refusal};
use super::{ObjectInfo, Outage, Pieces, Store, StoreError, limit};

/// What is asked for.
struct Wanted<'a> {
    name: &'a str,
    path: &'a Path,
    /// All of it for `None`.
    range: Option<Range<u64>>,
    bytes_max: u64,
}

/// What has come of it: one part as it came, more than one in one piece.
#[derive(Default)]
struct Come {
    first: Bytes,
    rest: BytesMut,
    /// How much it is in all, once that is known.
    bytes: Option<u64>,
}

impl Come {
    fn len(&self) -> u64 {
        self.first.len().max(self.rest.len()) as u64
    }

    fn push(&mut self, part: Bytes) {
        if self.len() == 0 {
            self.first = part;
            return;
        }
        if self.rest.is_empty() {
            self.rest.reserve(usize::try_from(self.bytes.unwrap_or_default()).unwrap_or(0));
            self.rest.extend_from_slice(&self.first);
        }
        self.rest.extend_from_slice(&part);
    }

    fn whole(self) -> Bytes {
        if self.rest.is_empty() { self.first } else { self.rest.freeze() }
    }
}

impl Store {
    /// Reads a whole object from the store itself.
    pub(super) async fn fetch(&self, name: &str, bytes_max: u64) -> Result<Bytes, StoreError> {
        let path = &self.path("reading", name)?;
        self.fetch_all(Wanted { name, path, range: None, bytes_max }).await
    }

    /// Reads a part of an object from the store itself.
    pub(super) async fn fetch_range(&self, name: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let path = &self.path("reading", name)?;
        if range.start >= range.end {
            return Ok(Bytes::new());
        }
        let bytes_max = range.end - range.start;
        self.fetch_all(Wanted { name, path, range: Some(range), bytes_max }).await
    }

    async fn fetch_all(&self, wanted: Wanted<'_>) -> Result<Bytes, StoreError> {
        self.counters.get();
        let (mut tries, mut come) = (self.retries.begin(), Come::default());
        loop {
            let before = come.len();
            let outcome = {
                let _slot = limit::slot(&self.limits.down).await;
                let _turn = tries.turn().await;
                self.fetch_once(&wanted, &mut come).await
            };
            if come.len() > before {
                tries.progressed();
            }
            if tries.judge(outcome).await?.is_some() {
                let content = come.whole();
                self.counters.received(content.len());
                return Ok(content);
            }
        }
    }

    /// Whether the object of that name has this content; `None` where there is none. Asks once, as a part of a put.
    pub(super) async fn holds(&self, name: &str, content: &Pieces) -> Result<Option<bool>, StoreError> {
        let path = &self.path("reading", name)?;
        let wanted = Wanted { name, path, range: None, bytes_max: content.content_length() as u64 };
        let mut come = Come::default();
        self.counters.get();
        match self.fetch_once(&wanted, &mut come).await {
            Ok(()) => Ok(Some(is_same(come.whole(), content))),
            Err(StoreError::TooLarge { .. }) => Ok(Some(false)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for what has not come yet.
    async fn fetch_once(&self, wanted: &Wanted<'_>, come: &mut Come) -> Result<(), StoreError> {
        let (name, path) = (wanted.name, wanted.path);
        let start = wanted.range.as_ref().map_or(0, |range| range.start);
        let range = match (come.bytes, &wanted.range) {
            (Some(bytes), _) if bytes == come.len() => return Ok(()),
            (Some(bytes), _) => Some(start + come.len()..start + bytes),
            (None, range) => range.clone(),
        };
        let result = match self.inner.get_opts(path, GetOptions::new().with_range(range.clone())).await {
            Ok(result) => result,
            Err(error) if range.is_some() && is_range_refusal(&error) => {
                return match self.inner.head(path).await {
                    Ok(meta) if meta.size <= start => Err(self.out_of_range(name, start, meta.size)),
                    _ => Err(classify(self.place("reading", name), error)),
                };
            }
            Err(error) => return Err(classify(self.place("reading", name), error)),
        };
        if wanted.range.is_none() && result.meta.size > wanted.bytes_max {
            return Err(self.too_large(name, wanted.bytes_max));
        }
        come.bytes = Some(result.range.end.saturating_sub(start));
        self.collect(wanted, result, come).await
    }

    async fn collect(&self, wanted: &Wanted<'_>, result: GetResult, come: &mut Come) -> Result<(), StoreError> {
        let name = wanted.name;
        let failed = |error| classify(self.place("reading", name), error);
        let length = result.range.end - result.range.start;
        if matches!(result.payload, GetResultPayload::File(..)) && length <= wanted.bytes_max {
            // One read: as a stream a file comes 8 KiB at a time, each by a thread of its own.
            let content = result.bytes().await.map_err(failed)?;
            self.arrived(content.len()).await;
            come.push(content);
        } else {
            let mut stream = result.into_stream();
            while let Some(part) = stream.try_next().await.map_err(failed)? {
                self.arrived(part.len()).await;
                if come.len() + part.len() as u64 > wanted.bytes_max {
                    return Err(self.too_large(name, wanted.bytes_max));
                }
                come.push(part);
            }
        }
        match come.bytes {
            Some(bytes) if come.len() < bytes => {
                let detail = format!("{} of {bytes} bytes came", come.len());
                Err(self.unreachable("reading", name, Outage::Broken, detail))
            }
            _ => Ok(()),
        }
    }

    /// Counts a part of an answer; waits until the next one may be taken.
    async fn arrived(&self, bytes: usize) {
        self.counters.passed(bytes);
        limit::pass(&self.limits.down, bytes).await;
    }

    /// Lists all objects below a folder like `packs`, or everything for `""`, sorted by name.
    pub async fn list(&self, prefix: &str) -> Result<Vec<ObjectInfo>, StoreError> {
        let path = self.path("listing", prefix)?;
        let folder = (!prefix.is_empty()).then_some(&path);
        self.counters.list();
        let (mut tries, mut objects) = (self.retries.begin(), Vec::new());
        loop {
            let before = objects.len();
            let outcome = {
                let _turn = tries.turn().await;
                self.list_on(folder, &mut objects).await
            };
            if objects.len() > before {
                tries.progressed();
            }
            let outcome = outcome.map_err(|error| classify(self.place("listing", prefix), error));
            if tries.judge(outcome).await?.is_some() {
                break;
            }
        }
        objects.retain(|object| !self.hidden.contains(&object.name));
        objects.sort_unstable_by(|a: &ObjectInfo, b| a.name.cmp(&b.name));
        // A store that does not know where to go on begins at the beginning.
        objects.dedup_by(|a, b| a.name == b.name);
        Ok(objects)
    }

    /// Lists what comes after the objects that have come.
    async fn list_on(&self, folder: Option<&Path>, objects: &mut Vec<ObjectInfo>) -> object_store::Result<()> {
        let last = objects.last().map(|object| Path::parse(&object.name)).transpose()?;
        let mut listing = match last {
            Some(last) if objects.is_sorted_by(|a, b| a.name < b.name) => self.inner.list_with_offset(folder, &last),
            _ => {
                objects.clear();
                self.inner.list(folder)
            }
        };
        while let Some(meta) = listing.try_next().await? {
            objects.push(ObjectInfo {
                name: meta.location.to_string(),
                bytes: meta.size,
                modified_unix_ms: meta.last_modified.timestamp_millis(),
            });
        }
        Ok(())
    }
}
/// Tells whether that is what these pieces are together.
fn is_same(mut whole: Bytes, pieces: &Pieces) -> bool {
    whole.len() == pieces.content_length() && pieces.iter().all(|piece| whole.split_to(piece.len()) == piece)
}
