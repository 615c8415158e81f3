//! What a bucket does with objects: puts, conditions, reads, ranges, listings, parts, deletions.
//!
//! Each trial stands by itself, so that one that fails hides no other. All keys begin with the bucket's own prefix, which
//! is a fresh name.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Method, header};

use super::super::StoreError;
use super::super::bucket::{Bucket, Listed, Request};
use super::{PACK_BYTES, PROBE_BYTES, Report, lock, noise, speed};
use crate::env::Env;

const PRECONDITION_FAILED: u16 = 412;
const METHOD_NOT_ALLOWED: u16 = 405; // what `http` makes of 501
/// S3 takes no part but the last that is shorter.
const PART_BYTES_MIN: usize = 5 << 20;

/// A bucket under examination.
struct Trial<'a> {
    bucket: Bucket,
    env: &'a Env,
    /// What is there, by key, as far as we know.
    put: BTreeMap<String, Bytes>,
    /// The store does not know the condition of a new object: it is asked without, as a kloset does.
    is_plain: bool,
}

/// What became of a put that asks for a new object.
#[derive(Debug)]
enum Created {
    /// It was put.
    Done(HeaderMap),
    /// It is there already, says the store.
    Exists,
    /// The store does not know the condition.
    Refused,
}

/// Finds out what a bucket does, and leaves it as it was, as far as that is allowed.
pub(super) async fn examine(report: &mut Report, bucket: Bucket, env: &Env) {
    let before = bucket.counts().http_requests;
    let mut trial = Trial { bucket, env, put: BTreeMap::new(), is_plain: false };
    trial.objects(report).await;
    trial.clean(report).await;
    report.requests += trial.bucket.counts().http_requests - before;
}

impl Trial<'_> {
    async fn objects(&mut self, report: &mut Report) {
        let key = self.key("probe");
        let (first, second) = (noise(&self.env.entropy, PROBE_BYTES), noise(&self.env.entropy, PROBE_BYTES));
        let (created, headers) = match self.write(&key, &first).await {
            Ok(written) => written,
            Err(error) => {
                let hint = match error {
                    StoreError::Denied { .. } => " (a key that only mounts and restores need not write)",
                    _ => "",
                };
                return report.fail("writing", format!("{error}{hint}"));
            }
        };
        report.ok("writing", "an object was put");
        let condition = match created {
            true => self.create(&key, &second).await,
            false => Ok(Created::Refused),
        };
        self.reading(report, &key, (&first, &second), condition).await;
        self.ranges(report, &key).await;
        let other = self.key("second");
        if let Err(error) = self.write(&other, &second).await {
            report.fail("writing", error.to_string());
        }
        self.listing(report).await;
        self.parts(report).await;
        lock::examine(report, &self.bucket, &key, &headers).await;
        self.throughput(report).await;
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.bucket.prefix())
    }

    /// Puts a new object; `false` if the store did not know the condition and was asked without.
    async fn write(&mut self, key: &str, content: &Bytes) -> Result<(bool, HeaderMap), StoreError> {
        let created = if self.is_plain { Created::Refused } else { self.create(key, content).await? };
        match created {
            Created::Done(headers) => Ok((true, headers)),
            // What is new cannot be there: it is the store that does not know what it says.
            Created::Refused | Created::Exists => {
                self.is_plain = true;
                let headers = self.put(key, content, HeaderMap::new(), &[]).await?.1;
                Ok((false, headers))
            }
        }
    }

    /// Puts an object that must not be there.
    async fn create(&mut self, key: &str, content: &Bytes) -> Result<Created, StoreError> {
        let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, header::HeaderValue::from_static("*"))]);
        let expects = &[PRECONDITION_FAILED, METHOD_NOT_ALLOWED];
        match self.put(key, content, headers, expects).await {
            Ok((PRECONDITION_FAILED, _)) => Ok(Created::Exists),
            Ok((METHOD_NOT_ALLOWED, _)) => Ok(Created::Refused),
            Ok((_, headers)) => Ok(Created::Done(headers)),
            Err(StoreError::Other { detail, .. }) if detail.contains("NotImplemented") => Ok(Created::Refused),
            Err(error) => Err(error),
        }
    }

    async fn put(
        &mut self,
        key: &str,
        content: &Bytes,
        headers: HeaderMap,
        expects: &'static [u16],
    ) -> Result<(u16, HeaderMap), StoreError> {
        let request = Request { headers, body: content.clone(), expects, ..Request::new(Method::PUT, key) };
        let reply = self.bucket.send("writing", key, &request).await?;
        if !expects.contains(&reply.status) {
            self.put.insert(key.to_owned(), content.clone());
        }
        Ok((reply.status, reply.headers))
    }

    /// Reads what was put twice, and tells by that what the condition of the second time was worth.
    async fn reading(
        &mut self,
        report: &mut Report,
        key: &str,
        (first, second): (&Bytes, &Bytes),
        condition: Result<Created, StoreError>,
    ) {
        const SAFE: &str = "a kloset is safe all the same, since no two writers choose one name";
        let content = match self.bucket.get(key, None, None, PROBE_BYTES as u64).await {
            Ok(Some(object)) => object.content,
            Ok(None) => return report.fail("reading", "what was just put is not there"),
            Err(error) => return report.fail("reading", error.to_string()),
        };
        if content != *first && content != *second {
            return report.fail("reading", "an object came back changed: something on the way rewrites contents");
        }
        report.ok("reading", "an object came back as it was put");
        // Whatever the store said: that is what is there.
        self.put.insert(key.to_owned(), content.clone());
        let what = "create-if-absent";
        match condition {
            Ok(Created::Exists) if content == *first => report.ok(what, "enforced: what is there is not overwritten"),
            Ok(Created::Exists) => report.note(what, format!("refused and done all the same: {SAFE}")),
            Ok(Created::Done(_)) if content == *second => {
                report.note(what, format!("not enforced, the store overwrites what is there: {SAFE}"));
            }
            Ok(Created::Done(_)) => report.note(what, format!("said to be done and not done: {SAFE}")),
            Ok(Created::Refused) => report.note(what, format!("not known to the store, puts look first: {SAFE}")),
            Err(error) => report.note(what, format!("a second put failed: {error}")),
        }
    }

    async fn ranges(&self, report: &mut Report, key: &str) {
        let bytes = PROBE_BYTES as u64;
        let Some(content) = self.put.get(key) else { return };
        // One from the middle, one over the end.
        for (start, end) in [(16, 48), (PROBE_BYTES - 24, PROBE_BYTES + 100)] {
            let expected = content.slice(start..end.min(PROBE_BYTES));
            match self.bucket.get(key, Some(start as u64..end as u64), None, bytes).await {
                Ok(Some(object)) if object.content == expected => {}
                Ok(_) => return report.fail("ranges", "a range is not what was asked for: mounts need ranges"),
                Err(error) => return report.fail("ranges", format!("{error}: mounts need ranges")),
            }
        }
        match self.bucket.get(key, Some(bytes + 10..bytes + 20), None, bytes).await {
            Ok(None) => report.ok("ranges", "parts of an object come as they were asked for"),
            Ok(Some(_)) => report.note("ranges", "they work, but one behind the end is not refused"),
            Err(error) => {
                report.note("ranges", format!("they work, but of one behind the end the store says: {error}"));
            }
        }
    }

    /// Lists by pages of one key.
    async fn listing(&self, report: &mut Report) {
        let mut found = BTreeMap::new();
        let take = |object: Listed| {
            found.insert(object.key, object.bytes);
            true
        };
        if let Err(error) = self.bucket.list_paged(Some(1), take).await {
            return report.fail("listing", error.to_string());
        }
        let expected: BTreeMap<_, _> =
            self.put.iter().map(|(key, content)| (key.clone(), content.len() as u64)).collect();
        match found == expected {
            true => report.ok("listing", "complete at once, over several pages"),
            false => report.fail("listing", format!("{expected:?} was put, and listed is {found:?}")),
        }
    }

    /// Uploads in the shortest parts that S3 takes; what succeeds need not be given up, for which a key may have no right.
    async fn parts(&mut self, report: &mut Report) {
        const WANTED: &str = "only files of more than 32 MiB that are restored into a bucket need them";
        let key = self.key("parts");
        let upload = match self.bucket.begin(&key, &[]).await {
            Ok(upload) => upload,
            Err(error) => return report.note("multipart", format!("not to be had, {WANTED}: {error}")),
        };
        let content = noise(&self.env.entropy, PART_BYTES_MIN + PROBE_BYTES);
        let outcome = async {
            let first = self.bucket.put_part(&upload, 1, content.slice(..PART_BYTES_MIN)).await?;
            let second = self.bucket.put_part(&upload, 2, content.slice(PART_BYTES_MIN..)).await?;
            self.bucket.complete(&upload, &[first, second], false).await
        };
        match outcome.await {
            Ok(_) => {
                self.put.insert(key, content);
                return report.ok("multipart", "parts of 5 MiB are taken, as S3 has it; ours are of 16 MiB");
            }
            Err(error) => report.note("multipart", format!("does not work, {WANTED}: {error}")),
        }
        if let Err(error) = self.bucket.abort(&upload).await {
            report.note("multipart", format!("the upload of {key:?} was not given up, and its parts stay: {error}"));
        }
    }

    /// Puts and gets an object as long as a pack.
    async fn throughput(&mut self, report: &mut Report) {
        let (key, content) = (self.key("pack"), noise(&self.env.entropy, PACK_BYTES));
        let begun = Instant::now();
        if let Err(error) = self.write(&key, &content).await {
            return report.fail("throughput", format!("an object of 16 MiB, as packs are, was not taken: {error}"));
        }
        let up = speed(content.len(), begun.elapsed());
        let begun = Instant::now();
        match self.bucket.get(&key, None, None, content.len() as u64).await {
            Ok(Some(object)) if object.content == content => {
                let down = speed(content.len(), begun.elapsed());
                report.ok("throughput", format!("{up} up, {down} down, one object of 16 MiB over one connection"));
            }
            Ok(_) => report.fail("throughput", "an object of 16 MiB did not come back as it was put"),
            Err(error) => {
                report.fail("throughput", format!("an object of 16 MiB, as packs are, did not come: {error}"));
            }
        }
    }

    /// Deletes what was put, and tells what is left.
    async fn clean(&mut self, report: &mut Report) {
        let mut keys: BTreeSet<String> = std::mem::take(&mut self.put).into_keys().collect();
        // A put whose answer was lost may have been done; all below this prefix is ours. Who cannot list was told so.
        let take = |object: Listed| {
            keys.insert(object.key);
            true
        };
        let _ = self.bucket.list(take).await;
        if keys.is_empty() {
            return;
        }
        let mut refusal = None;
        for key in keys {
            let request = Request { expects: &[404], ..Request::new(Method::DELETE, &key) };
            if let Err(error) = self.bucket.send("deleting", &key, &request).await {
                refusal = Some(error);
                report.left.push(key);
            }
        }
        match refusal {
            Some(StoreError::Denied { .. }) => report
                .note("deleting", "not with this key: right for backups; prune, forget and key rm need another one"),
            Some(error) => report.note("deleting", format!("does not work, which prune and forget need: {error}")),
            None => self.gone(report).await,
        }
    }

    async fn gone(&self, report: &mut Report) {
        let mut left = Vec::new();
        let listed = self.bucket.list(|object| {
            left.push(object.key);
            true
        });
        match listed.await {
            Ok(()) if left.is_empty() => report.ok("deleting", "allowed, and what was put here is gone"),
            Ok(()) => {
                report.note("deleting", "said to be done, and objects are still listed");
                report.left.extend(left);
            }
            Err(error) => report.note("deleting", format!("said to be done, and not to be seen: {error}")),
        }
    }
}
