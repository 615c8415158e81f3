//! Buckets in memory behind a real S3 server: any key that S3 knows, metadata, parts, and what a test wants to go wrong.
//!
//! `s3s-fs` keeps objects as files, so it can hold neither `a` beside `a/b` nor `a//b`.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::TryStreamExt;
use kloset_mount::store::{Bucket, RetryOptions, S3Options};
use s3s::dto::*;
use s3s::{S3, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::s3::S3Server;

const KEYS: (&str, &str) = ("K", "S");

/// An object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) content: Bytes,
    /// Headers and user metadata.
    pub(crate) said: BTreeMap<String, String>,
}

/// What was asked.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) lists: AtomicU64,
    pub(crate) gets: AtomicU64,
    pub(crate) puts: AtomicU64,
    pub(crate) parts: AtomicU64,
}

type Upload = (String, BTreeMap<String, String>, BTreeMap<i32, Bytes>);

#[derive(Default)]
struct State {
    objects: Mutex<BTreeMap<(String, String), (Stored, SystemTime)>>,
    uploads: Mutex<HashMap<String, Upload>>,
    /// What is answered for some keys.
    refused: Mutex<HashMap<String, S3ErrorCode>>,
    /// What becomes of an object after it was asked for the next time; `None`: it is gone.
    next: Mutex<HashMap<String, Option<Stored>>>,
    /// Listings tell no entity tags.
    untagged: AtomicBool,
    asked: Asked,
    ticks: AtomicU64,
}

/// A server and its buckets.
pub(crate) struct Buckets {
    state: Arc<State>,
    pub(crate) port: u16,
    _server: S3Server,
}

impl Buckets {
    pub(crate) fn serve() -> Buckets {
        let state = Arc::new(State::default());
        let server = S3Server::start_over(Storage(state.clone()), KEYS, 0).unwrap();
        Buckets { state, port: server.port, _server: server }
    }

    /// Opens a bucket, `name` or `name/prefix`.
    pub(crate) fn open(&self, path: &str) -> Bucket {
        let options = S3Options {
            access_key: Some(KEYS.0.to_owned()),
            secret_access_key: Some(KEYS.1.into()),
            use_tls: false,
            retry: RetryOptions { times_max: 1, ..RetryOptions::default() },
            ..S3Options::default()
        };
        Bucket::open(&format!("s3://127.0.0.1:{}/{path}", self.port).parse().unwrap(), &options).unwrap()
    }

    /// The words by which the program gets to know a bucket.
    pub(crate) fn entry(&self, path: &str) -> [String; 4] {
        let location = format!("s3://127.0.0.1:{}/{path}", self.port);
        [
            location,
            format!("access_key={}", KEYS.0),
            format!("secret_access_key={}", KEYS.1),
            "use_tls=false".to_owned(),
        ]
    }

    pub(crate) fn put(&self, bucket: &str, key: &str, content: impl Into<Bytes>, said: &[(&str, &str)]) {
        let said = said.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        self.state.put(bucket, key, Stored { content: content.into(), said });
    }

    pub(crate) fn remove(&self, bucket: &str, key: &str) {
        self.state.objects.lock().unwrap().remove(&(bucket.to_owned(), key.to_owned()));
    }

    /// Everything in a bucket but its times.
    pub(crate) fn dump(&self, bucket: &str) -> BTreeMap<String, Stored> {
        let objects = self.state.objects.lock().unwrap();
        let of_it = objects.iter().filter(|((name, _), _)| name == bucket);
        of_it.map(|((_, key), (stored, _))| (key.clone(), stored.clone())).collect()
    }

    /// From now on, listings tell no entity tags.
    pub(crate) fn list_without_etags(&self) {
        self.state.untagged.store(true, Ordering::Relaxed);
    }

    /// From now on, that is the answer for a key.
    pub(crate) fn refuse(&self, key: &str, code: S3ErrorCode) {
        self.state.refused.lock().unwrap().insert(key.to_owned(), code);
    }

    /// After it was read the next time, an object is another one, or gone.
    pub(crate) fn then(&self, key: &str, next: Option<&[u8]>) {
        let next = next.map(|content| Stored { content: content.to_vec().into(), ..Stored::default() });
        self.state.next.lock().unwrap().insert(key.to_owned(), next);
    }

    /// Returns what was asked since the last call: listings, reads, puts, parts.
    pub(crate) fn asked(&self) -> [u64; 4] {
        let Asked { lists, gets, puts, parts } = &self.state.asked;
        [lists, gets, puts, parts].map(|count| count.swap(0, Ordering::Relaxed))
    }

    /// How many uploads were begun and neither finished nor given up.
    pub(crate) fn uploads(&self) -> usize {
        self.state.uploads.lock().unwrap().len()
    }
}

impl State {
    fn put(&self, bucket: &str, key: &str, stored: Stored) {
        let tick = self.ticks.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_355_880_250 + 1100 * tick);
        self.objects.lock().unwrap().insert((bucket.to_owned(), key.to_owned()), (stored, time));
    }

    fn refuse(&self, key: &str) -> S3Result<()> {
        self.refused.lock().unwrap().get(key).map_or(Ok(()), |code| Err(code.clone().into()))
    }

    fn check_is_new(&self, bucket: &str, key: &str, condition: Option<&ETagCondition>) -> S3Result<()> {
        let there = self.objects.lock().unwrap().contains_key(&(bucket.to_owned(), key.to_owned()));
        if condition == Some(&ETagCondition::Any) && there { Err(s3_error!(PreconditionFailed)) } else { Ok(()) }
    }
}

fn etag(content: &[u8]) -> ETag {
    ETag::Strong(blake3::hash(content).to_hex()[..32].to_owned())
}

/// What is kept of a request's headers.
fn said(headers: &http::HeaderMap) -> BTreeMap<String, String> {
    let known =
        ["cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires"];
    let is_kept = |name: &str| name.starts_with("x-amz-meta-") || known.contains(&name);
    let kept = headers.iter().filter(|(name, _)| is_kept(name.as_str()));
    kept.map(|(name, value)| (name.as_str().to_owned(), value.to_str().unwrap().to_owned())).collect()
}

async fn whole(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let Some(body) = body else { return Ok(Bytes::new()) };
    let parts: Vec<Bytes> = body.try_collect().await.map_err(|_| s3_error!(InternalError))?;
    Ok(parts.concat().into())
}

fn encoded(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            b'a'..=b'z' | b'0'..=b'9' | b'/' | b'-' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

struct Storage(Arc<State>);

#[async_trait::async_trait]
impl S3 for Storage {
    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.0.asked.lists.fetch_add(1, Ordering::Relaxed);
        let ListObjectsV2Input { bucket, prefix, continuation_token, encoding_type, .. } = req.input;
        self.0.refuse("")?;
        let (prefix, after) = (prefix.unwrap_or_default(), continuation_token.unwrap_or_default());
        let objects = self.0.objects.lock().unwrap();
        let mut keys =
            objects.iter().filter(|((name, key), _)| *name == bucket && key.starts_with(&prefix) && *key > after);
        let page: Vec<_> = keys.by_ref().take(1000).collect();
        let next = keys.next().and(page.last()).map(|((_, key), _)| key.clone());
        let object = |((_, key), (stored, time)): &(&(String, String), &(Stored, SystemTime))| Object {
            key: Some(if encoding_type.is_some() { encoded(key) } else { key.clone() }),
            size: Some(stored.content.len() as i64),
            e_tag: (!self.0.untagged.load(Ordering::Relaxed)).then(|| etag(&stored.content)),
            last_modified: Some((*time).into()),
            ..Object::default()
        };
        Ok(S3Response::new(ListObjectsV2Output {
            contents: Some(page.iter().map(object).collect()),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            encoding_type,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.0.asked.gets.fetch_add(1, Ordering::Relaxed);
        let GetObjectInput { bucket, key, range, if_match, .. } = req.input;
        self.0.refuse(&key)?;
        let at = (bucket, key);
        let found = self.0.objects.lock().unwrap().get(&at).cloned();
        let (stored, time) = found.ok_or_else(|| s3_error!(NoSuchKey))?;
        match self.0.next.lock().unwrap().remove(&at.1) {
            Some(Some(next)) => self.0.put(&at.0, &at.1, next),
            Some(None) => drop(self.0.objects.lock().unwrap().remove(&at)),
            None => {}
        }
        let tag = etag(&stored.content);
        if if_match.is_some_and(|condition| condition != ETagCondition::ETag(tag.clone())) {
            return Err(s3_error!(PreconditionFailed));
        }
        let bytes = stored.content.len() as u64;
        let part = range.map(|range| range.check(bytes)).transpose()?;
        let said = |name: &str| stored.said.get(name).cloned();
        let own = stored.said.iter().filter_map(|(name, value)| Some((name.strip_prefix("x-amz-meta-")?, value)));
        let metadata: Metadata = own.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let content_range = part.as_ref().map(|part| format!("bytes {}-{}/{bytes}", part.start, part.end - 1));
        let part = part.unwrap_or(0..bytes);
        let content = stored.content.slice(part.start as usize..part.end as usize);
        let expires = said("expires").map(|time| Timestamp::parse(TimestampFormat::HttpDate, &time).unwrap());
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(content.len() as i64),
            body: Some(StreamingBlob::wrap(futures::stream::iter([Ok::<_, std::io::Error>(content)]))),
            content_range,
            e_tag: Some(tag),
            last_modified: Some(time.into()),
            cache_control: said("cache-control"),
            content_disposition: said("content-disposition"),
            content_encoding: said("content-encoding"),
            content_language: said("content-language"),
            content_type: said("content-type"),
            expires,
            metadata: Some(metadata),
            ..GetObjectOutput::default()
        }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        self.0.asked.puts.fetch_add(1, Ordering::Relaxed);
        let PutObjectInput { bucket, key, body, if_none_match, .. } = req.input;
        let stored = Stored { content: whole(body).await?, said: said(&req.headers) };
        self.0.refuse(&key)?; // after the body: who is refused in the middle of it sees a broken connection
        self.0.check_is_new(&bucket, &key, if_none_match.as_ref())?;
        let e_tag = Some(etag(&stored.content));
        self.0.put(&bucket, &key, stored);
        Ok(S3Response::new(PutObjectOutput { e_tag, ..PutObjectOutput::default() }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let id = format!("up&load/{}+", self.0.ticks.fetch_add(1, Ordering::Relaxed));
        let upload = (req.input.key, said(&req.headers), BTreeMap::new());
        self.0.uploads.lock().unwrap().insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        self.0.asked.parts.fetch_add(1, Ordering::Relaxed);
        let UploadPartInput { upload_id, part_number, body, key, .. } = req.input;
        let content = whole(body).await?;
        self.0.refuse(&key)?;
        let e_tag = Some(etag(&content));
        let mut uploads = self.0.uploads.lock().unwrap();
        uploads.get_mut(&upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?.2.insert(part_number, content);
        Ok(S3Response::new(UploadPartOutput { e_tag, ..UploadPartOutput::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let CompleteMultipartUploadInput { bucket, upload_id, multipart_upload, if_none_match, .. } = req.input;
        let mut uploads = self.0.uploads.lock().unwrap();
        let (key, said, parts) = uploads.get(&upload_id).ok_or_else(|| s3_error!(NoSuchUpload))?.clone();
        self.0.check_is_new(&bucket, &key, if_none_match.as_ref())?;
        let named = multipart_upload.and_then(|upload| upload.parts).unwrap_or_default();
        let named: Vec<_> = named.into_iter().map(|part| (part.part_number.unwrap(), part.e_tag.unwrap())).collect();
        let have: Vec<_> = parts.iter().map(|(number, content)| (*number, etag(content))).collect();
        if named != have {
            return Err(s3_error!(InvalidPart));
        }
        let content = parts.into_values().collect::<Vec<_>>().concat().into();
        self.0.put(&bucket, &key, Stored { content, said });
        uploads.remove(&upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput::default()))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        self.0.uploads.lock().unwrap().remove(&req.input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
