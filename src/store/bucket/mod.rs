//! A bucket of other people's objects: raw keys, entity tags, metadata.
//!
//! [`super::Store`] keeps a kloset's own objects, whose names we choose. Here keys are whatever they are: `a//b`, `/a`,
//! `a/`, `a` beside `a/b`, none of which `object_store` can name. Keys, signatures and the HTTP client are those of the
//! store (`s3`, `sign`, `http`), failures are judged as its are (`answer`). Promises that a listing is complete, that what is read
//! in parts is one object, and that no answer is longer than its reader allows. It does not know what becomes of objects.

mod listing;
mod request;
mod upload;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use http::{HeaderMap, Method, header};

use super::counts::Counters;
use super::error::{Place, StoreError};
use super::http::parse_date;
use super::limit::{self, Limits};
use super::retry::Retries;
use super::sign::Signer;
use super::{S3Options, StoreCounts, StoreLocation, answer, s3};
use listing::Page;
use request::Sender;

pub use listing::Listed;
pub(in crate::store) use request::{Reply, Request};
pub use upload::{PART_BYTES, PARTS_MAX, Upload};

/// A page of a listing is not longer: 1000 keys, each byte of which may be three.
const PAGE_BYTES_MAX: u64 = 16 << 20;

/// A bucket, or what is below a prefix in it. Clones share connections and counters.
#[derive(Clone)]
pub struct Bucket {
    sender: Arc<Sender>,
    signer: Arc<Signer>,
    location: StoreLocation,
    prefix: String,
    description: Arc<str>,
    counters: Arc<Counters>,
    limits: Limits,
    retries: Arc<Retries>,
    /// Set once the server has refused create-if-absent.
    plain_puts: Arc<AtomicBool>,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Bucket({})", self.description)
    }
}

/// An object, or a part of it.
#[derive(Clone, Debug)]
pub struct Object {
    /// Its entity tag, without quotes; empty if there is none.
    pub etag: String,
    /// The length of the whole object.
    pub bytes: u64,
    /// When it was put, in whole seconds since 1970.
    pub modified_unix_s: Option<i64>,
    /// Everything the server says of it: lower-case names, raw values.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What was asked for of its content.
    pub content: Bytes,
}

impl Bucket {
    /// Opens a bucket without sending anything.
    ///
    /// # Errors
    /// [`StoreError::Misconfigured`].
    pub fn open(location: &StoreLocation, options: &S3Options) -> Result<Self, StoreError> {
        let description: Arc<str> = location.to_string().into();
        let failed = |detail: String| StoreError::Misconfigured { store: description.clone(), detail };
        let StoreLocation::S3 { host, port, bucket, prefix } = location else {
            return Err(failed("it is a folder, and no bucket".to_owned()));
        };
        let counters: Arc<Counters> = Arc::default();
        let at = s3::Bucket { host, port: *port, bucket, prefix };
        let limits = Limits::new(options.rates);
        let options = &s3::patient(options, &limits);
        let connector = s3::connector(&at, options, &counters, &limits).map_err(failed)?;
        let url = s3::url(&at, options).map_err(failed)?;
        let sender = Sender { http: connector.connect().map_err(failed)?, url };
        let retries = Retries::new(options.retry.clone(), counters.clone());
        Ok(Self {
            sender: sender.into(),
            signer: connector.signer,
            location: location.clone(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            description,
            counters,
            limits,
            retries: retries.into(),
            plain_puts: Arc::default(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn location(&self) -> &StoreLocation {
        &self.location
    }

    /// What all its keys begin with: empty, or with a slash at its end.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The region that the bucket's server named, where it is another than was said.
    #[must_use]
    pub fn learned_region(&self) -> Option<String> {
        self.signer.learned_region()
    }

    /// What the store's own clock said in its last answer, to the second.
    pub(in crate::store) fn date_unix_ms(&self) -> Option<i64> {
        self.counters.date_unix_ms()
    }

    /// What was asked of this bucket and its clones so far.
    #[must_use]
    pub fn counts(&self) -> StoreCounts {
        self.counters.read()
    }

    /// Lists all objects, in the order of the bytes of their keys or in another; ends early when `take` says `false`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn list(&self, take: impl FnMut(Listed) -> bool) -> Result<(), StoreError> {
        self.list_paged(None, take).await
    }

    /// Lists as [`Bucket::list`] does, in pages of at most so many keys.
    pub(in crate::store) async fn list_paged(
        &self,
        keys_max: Option<u32>,
        mut take: impl FnMut(Listed) -> bool,
    ) -> Result<(), StoreError> {
        self.counters.list();
        let mut token: Option<String> = None;
        loop {
            let page = self.page(token.as_deref(), keys_max).await?;
            if !page.objects.into_iter().all(&mut take) {
                return Ok(());
            }
            match page.next {
                None => return Ok(()),
                Some(next) if token.as_ref() == Some(&next) => {
                    return Err(self.odd("listing", "", "the listing goes round in circles"));
                }
                next => token = next,
            }
        }
    }

    async fn page(&self, token: Option<&str>, keys_max: Option<u32>) -> Result<Page, StoreError> {
        let mut query = vec![("list-type", "2".to_owned()), ("encoding-type", "url".to_owned())];
        query.extend((!self.prefix.is_empty()).then(|| ("prefix", self.prefix.clone())));
        query.extend(keys_max.map(|keys| ("max-keys", keys.to_string())));
        query.extend(token.map(|token| ("continuation-token", token.to_owned())));
        let request = Request { key: None, query, bytes_max: PAGE_BYTES_MAX, ..Request::new(Method::GET, "") };
        let reply = self.send("listing", "", &request).await?;
        let page = listing::parse(&reply.body).map_err(|problem| self.odd("listing", "", &problem))?;
        match page.objects.iter().find(|object| !object.key.starts_with(&self.prefix)) {
            Some(foreign) => Err(self.odd("listing", "", &format!("the listing has {:?} in it", foreign.key))),
            None => Ok(page),
        }
    }

    /// Reads an object of at most `bytes_max` bytes, or a part of one; with `etag`, only of that object.
    ///
    /// `None` where there is another object meanwhile, or one that has no such part.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn get(
        &self,
        key: &str,
        part: Option<Range<u64>>,
        etag: Option<&str>,
        bytes_max: u64,
    ) -> Result<Option<Object>, StoreError> {
        const PRECONDITION_FAILED: u16 = 412;
        const RANGE_NOT_SATISFIABLE: u16 = 416;
        let wrong = |text: &str| self.odd("reading", key, text);
        self.check(key)?;
        let _slot = limit::slot(&self.limits.down).await;
        self.counters.get();
        let bytes_max = part.as_ref().map_or(bytes_max, |part| part.end - part.start);
        let mut request = Request { bytes_max, ..Request::new(Method::GET, key) };
        request.expects = &[PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE];
        if let Some(part) = &part {
            let range = format!("bytes={}-{}", part.start, part.end - 1);
            request.headers.insert(header::RANGE, range.parse().expect("digits are a header"));
        }
        if let Some(etag) = etag {
            let etag = format!("\"{etag}\"").parse().map_err(|_| wrong("its entity tag is none"))?;
            request.headers.insert(header::IF_MATCH, etag);
        }
        let reply = self.send("reading", key, &request).await?;
        if matches!(reply.status, PRECONDITION_FAILED | RANGE_NOT_SATISFIABLE) {
            return Ok(None);
        }
        limit::pass(&self.limits.down, reply.body.len()).await;
        self.counters.received(reply.body.len());
        let object = object(reply, part).map_err(|problem| wrong(&problem))?;
        // There are servers that know no conditions.
        Ok(Some(object).filter(|object| etag.is_none_or(|etag| etag == object.etag)))
    }

    /// A key with a part `.` or `..` cannot stand in a URL: it would be another one.
    fn check(&self, key: &str) -> Result<(), StoreError> {
        match key.split('/').any(|part| matches!(part, "." | "..")) {
            true => Err(self.odd("asking for", key, "a part of its key is \".\" or \"..\", which no URL can hold")),
            false => Ok(()),
        }
    }

    /// Sends a request until it is answered or given up.
    pub(in crate::store) async fn send(
        &self,
        operation: &'static str,
        key: &str,
        request: &Request<'_>,
    ) -> Result<Reply, StoreError> {
        let mut tries = self.retries.begin();
        loop {
            let outcome = {
                let _turn = tries.turn().await;
                self.sender.send(request).await.map_err(|error| self.failed(operation, key, error))
            };
            if let Some(reply) = tries.judge(outcome).await? {
                return Ok(Reply { repeats: tries.repeats(), ..reply });
            }
        }
    }

    fn failed(&self, operation: &'static str, key: &str, error: object_store::Error) -> StoreError {
        answer::classify(self.place(operation, key), error)
    }

    /// An answer that makes no sense, or a request that would.
    fn odd(&self, operation: &'static str, key: &str, problem: &str) -> StoreError {
        let at = Box::new(self.place(operation, key));
        StoreError::Other { at, detail: problem.to_owned(), source: problem.into() }
    }

    fn place(&self, operation: &'static str, key: &str) -> Place {
        Place { operation, name: key.to_owned(), store: self.description.clone() }
    }
}

/// Returns an object as a reply tells it.
fn object(reply: Reply, part: Option<Range<u64>>) -> Result<Object, String> {
    const PARTIAL_CONTENT: u16 = 206;
    let text = |name| reply.headers.get(name).and_then(|value| value.to_str().ok());
    let have = reply.body.len() as u64;
    let (start, bytes) = match reply.status {
        PARTIAL_CONTENT => {
            let range = text(header::CONTENT_RANGE).and_then(parse_range);
            range.ok_or("the answer does not say which part it is")?
        }
        _ => (0, have),
    };
    let expected = part.map_or(0..bytes, |part| part.start..part.end.min(bytes));
    if start != expected.start || have != expected.end.saturating_sub(expected.start) {
        return Err(format!("bytes {}-{} were asked for, {have} came from {start}", expected.start, expected.end));
    }
    Ok(Object {
        etag: text(header::ETAG).map(|etag| etag.trim_matches('"').to_owned()).unwrap_or_default(),
        bytes,
        modified_unix_s: text(header::LAST_MODIFIED).and_then(parse_date).map(|unix_ms| unix_ms.div_euclid(1000)),
        headers: plain(&reply.headers),
        content: reply.body,
    })
}

/// Reads where a part begins, and how long the whole is, from `bytes 0-9/100`.
fn parse_range(text: &str) -> Option<(u64, u64)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, whole.parse().ok()?))
}

/// Returns headers as names and values; those of one name become one value, as S3 has it.
fn plain(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let all = |name| headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect::<Vec<_>>().join(&b", "[..]);
    headers.keys().map(|name| (name.as_str().to_owned(), all(name))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_of_an_object_is_understood() {
        assert_eq!(parse_range("bytes 8-15/100"), Some((8, 100)));
        assert_eq!((parse_range("bytes */100"), parse_range("items 0-1/2"), parse_range("")), (None, None, None));
    }
}
