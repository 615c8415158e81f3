//! Putting objects, whole or in parts.
//!
//! What must be new is asked to be created, where the server knows how; a server that does not is believed to have told
//! all it has when it was listed.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::request::Request;
use super::{Bucket, StoreError};

/// The length of parts, if that does not make too many: S3 takes 5 MiB to 5 GiB, and each is held in memory.
pub const PART_BYTES: u64 = 16 << 20;
/// The most parts of an object.
pub const PARTS_MAX: u64 = 10_000;
/// The longest answer to an upload.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// An upload in parts that has begun.
#[derive(Clone, Debug)]
pub struct Upload {
    key: String,
    id: String,
}

impl Bucket {
    /// Puts an object; `false` if it was to be new and is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put(
        &self,
        key: &str,
        headers: &[(String, Vec<u8>)],
        content: Bytes,
        is_new: bool,
    ) -> Result<bool, StoreError> {
        self.check(key)?;
        self.counters.put(content.len());
        let mut request = Request::new(Method::PUT, key);
        (request.headers, request.body) = (self.headers(key, headers)?, content.clone());
        let Some(repeats) = self.create("writing", key, request, is_new).await? else { return Ok(true) };
        if repeats == 0 {
            return Ok(false);
        }
        // It may be our own, whose answer was lost.
        let there = self.get(key, None, None, content.len() as u64).await;
        Ok(matches!(there, Ok(Some(object)) if object.content == content))
    }

    /// Begins an upload in parts.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn begin(&self, key: &str, headers: &[(String, Vec<u8>)]) -> Result<Upload, StoreError> {
        self.check(key)?;
        self.counters.put(0);
        let query = vec![("uploads", String::new())];
        let headers = self.headers(key, headers)?;
        let request = Request { query, headers, bytes_max: ANSWER_BYTES_MAX, ..Request::new(Method::POST, key) };
        let reply = self.send("writing", key, &request).await?;
        let answer = String::from_utf8_lossy(&reply.body);
        match between(&answer, "<UploadId>", "</UploadId>") {
            Some(id) => Ok(Upload { key: key.to_owned(), id: unescape(id) }),
            None => Err(self.odd("writing", key, "the answer names no upload")),
        }
    }

    /// Puts the part of that number, from 1 on, and returns its entity tag.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put_part(&self, upload: &Upload, number: u64, content: Bytes) -> Result<String, StoreError> {
        let key = &*upload.key;
        self.counters.put(content.len());
        let query = vec![("partNumber", number.to_string()), ("uploadId", upload.id.clone())];
        let request = Request { query, body: content, ..Request::new(Method::PUT, key) };
        let reply = self.send("writing", key, &request).await?;
        let etag = reply.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok());
        etag.map(str::to_owned).ok_or_else(|| self.odd("writing", key, "the answer has no entity tag"))
    }

    /// Makes the object of all its parts; `false` if it was to be new and is not.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn complete(&self, upload: &Upload, etags: &[String], is_new: bool) -> Result<bool, StoreError> {
        let key = &*upload.key;
        let part = |(number, etag): (usize, &String)| {
            format!("<Part><ETag>{}</ETag><PartNumber>{number}</PartNumber></Part>", escape(etag))
        };
        let parts: String = (1..).zip(etags).map(part).collect();
        let body = format!("<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>").into();
        let query = vec![("uploadId", upload.id.clone())];
        let request = Request { query, body, ..Request::new(Method::POST, key) };
        Ok(self.create("writing", key, request, is_new).await?.is_none())
    }

    /// Gives an upload up, so that its parts are not kept and paid for.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn abort(&self, upload: &Upload) -> Result<(), StoreError> {
        let query = vec![("uploadId", upload.id.clone())];
        let request = Request { query, ..Request::new(Method::DELETE, &upload.key) };
        self.send("writing", &upload.key, &request).await.map(drop)
    }

    /// Sends a request that makes an object. `None` if it did; else how often it was repeated until the server said that
    /// there is one.
    async fn create(
        &self,
        operation: &'static str,
        key: &str,
        mut request: Request<'_>,
        is_new: bool,
    ) -> Result<Option<usize>, StoreError> {
        const PRECONDITION_FAILED: u16 = 412;
        const METHOD_NOT_ALLOWED: u16 = 405; // what `http` makes of 501
        request.bytes_max = ANSWER_BYTES_MAX;
        loop {
            let conditional = is_new && !self.plain_puts.load(Ordering::Relaxed);
            request.headers.remove(header::IF_NONE_MATCH);
            request.expects = &[];
            if conditional {
                request.headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("*"));
                request.expects = &[PRECONDITION_FAILED, METHOD_NOT_ALLOWED];
            }
            let reply = self.send(operation, key, &request).await?;
            match reply.status {
                PRECONDITION_FAILED => return Ok(Some(reply.repeats)),
                METHOD_NOT_ALLOWED => self.plain_puts.store(true, Ordering::Relaxed),
                // An upload may fail behind a status that says it did not.
                _ => match between(&String::from_utf8_lossy(&reply.body), "<Error>", "</Error>") {
                    Some(error) => return Err(self.failed(operation, key, super::request::other(error.to_owned()))),
                    None => return Ok(None),
                },
            }
        }
    }

    /// Makes headers that can be sent and signed.
    fn headers(&self, key: &str, headers: &[(String, Vec<u8>)]) -> Result<HeaderMap, StoreError> {
        let mut out = HeaderMap::new();
        for (name, value) in headers {
            let wrong = || self.odd("writing", key, &format!("its metadata {name:?} cannot be sent"));
            std::str::from_utf8(value).map_err(|_| wrong())?; // signatures are over text
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            out.insert(parsed, HeaderValue::from_bytes(value).map_err(|_| wrong())?);
        }
        Ok(out)
    }
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

fn unescape(text: &str) -> String {
    quick_xml::escape::unescape(text).map_or_else(|_| text.to_owned(), std::borrow::Cow::into_owned)
}

fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}
