//! Signs requests, just before they are sent, and signs anew what a store refuses for a reason that it names.
//!
//! Sits between who makes requests (`object_store`, `bucket`), which send them unsigned, and the client that sends them
//! (`http`). Promises: each attempt has a signature of its own; a store that names another region is asked again with
//! that one, and from then on; one that calls keys stale is asked again with new ones, if there are any; one that wants
//! the digest of what is put, as buckets with object lock do, gets it from then on. Each at most once a request. It does not know what a request is for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{HeaderValue, Method};
use http_body_util::BodyExt;
use md5::{Digest, Md5};
use object_store::aws::{AwsAuthorizer, AwsCredential};
use object_store::client::{
    HttpClient, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};

use super::answer::{self, Refusal};
use super::keys::{Keys, KeysError};
use super::providers;
use super::sse::EncryptionHeaders;

/// An answer that is no success is read so far: what went wrong stands at its beginning.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// One for the region, one for the keys, one for the digest.
const CORRECTIONS_MAX: usize = 3;

/// What requests to one bucket are signed with.
#[derive(Debug)]
pub(crate) struct Signer {
    keys: Keys,
    region: Region,
    encryption: EncryptionHeaders,
    /// Set once the store has asked for it: `Content-MD5` of what is put.
    wants_digest: AtomicBool,
}

/// The region that requests are signed for.
#[derive(Debug)]
struct Region {
    first: String,
    /// What the store said to be the right one.
    learned: Mutex<Option<Arc<str>>>,
}

impl Region {
    fn now(&self) -> Arc<str> {
        let learned = self.learned.lock().expect("no panic while held");
        learned.clone().unwrap_or_else(|| self.first.as_str().into())
    }
}

impl Signer {
    /// Will sign with `keys` for a region.
    pub(crate) fn new(keys: Keys, region: String, encryption: EncryptionHeaders) -> Signer {
        let region = Region { first: region, learned: Mutex::new(None) };
        Signer { keys, region, encryption, wants_digest: AtomicBool::new(false) }
    }

    /// Puts signatures to what goes to a client.
    pub(crate) fn over(self: &Arc<Self>, below: HttpClient) -> HttpClient {
        HttpClient::new(Signing { signer: self.clone(), below })
    }

    /// The region that the store named, where it is another than we were told.
    pub(crate) fn learned_region(&self) -> Option<String> {
        self.region.learned.lock().expect("no panic while held").as_deref().map(str::to_owned)
    }
}

#[derive(Debug)]
struct Signing {
    signer: Arc<Signer>,
    below: HttpClient,
}

/// What a request was signed with.
struct Used {
    key: Option<Arc<AwsCredential>>,
    region: Arc<str>,
    digest: bool,
}

impl HttpService for Signing {
    fn call<'a, 'f>(&'a self, request: HttpRequest) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let request = whole(request).await?;
            let mut corrections = 0;
            loop {
                let (signed, used) = self.signer.sign(&request).await?;
                let answer = self.below.execute(signed).await?;
                if corrections == CORRECTIONS_MAX || !matches!(answer.status().as_u16(), 400 | 401 | 403) {
                    return Ok(answer);
                }
                let (answer, refusal) = read(answer).await;
                if !self.signer.learn(refusal, &used).await {
                    return Ok(answer);
                }
                corrections += 1;
            }
        })
    }
}

impl Signer {
    async fn sign(&self, request: &HttpRequest) -> Result<(HttpRequest, Used), HttpError> {
        let failed = |error: KeysError| HttpError::new(HttpErrorKind::Unknown, error);
        let used = Used {
            key: self.keys.get().await.map_err(failed)?,
            region: self.region.now(),
            digest: self.wants_digest.load(Ordering::Relaxed),
        };
        let mut signed = request.clone();
        let (method, query) = (request.method().clone(), request.uri().query().unwrap_or_default());
        self.encryption.add(&method, query, signed.headers_mut());
        if used.digest && method == Method::PUT {
            let digest = digest(request.body().as_bytes().map_or(&[], |content| &content[..]));
            signed.headers_mut().insert("content-md5", digest);
        }
        self.move_host(&mut signed, &used.region)?;
        if let Some(key) = &used.key {
            let signing = AwsAuthorizer::new(key, "s3", &used.region).try_authorize(&mut signed, None);
            signing.map_err(|error| HttpError::new(HttpErrorKind::Unknown, error))?;
        }
        Ok((signed, used))
    }

    /// Turns to the host of the region, where each has its own.
    fn move_host(&self, request: &mut HttpRequest, region: &str) -> Result<(), HttpError> {
        let host = request.uri().host().unwrap_or_default();
        let Some(host) = providers::host_of_region(host, &self.region.first, region) else { return Ok(()) };
        let mut parts = request.uri().clone().into_parts();
        let authority = match request.uri().port() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        let failed = |error: http::Error| HttpError::new(HttpErrorKind::Unknown, error);
        parts.authority = Some(authority.parse().map_err(|error| failed(http::Error::from(error)))?);
        *request.uri_mut() = http::Uri::from_parts(parts).map_err(|error| failed(http::Error::from(error)))?;
        Ok(())
    }

    /// Learns from a refusal; `true` if the request is worth another attempt.
    async fn learn(&self, refusal: Refusal, used: &Used) -> bool {
        match refusal {
            Refusal::WrongRegion(Some(region)) if is_region(&region) && *region != *used.region => {
                tracing::debug!("the store names region {region}, not {}", used.region);
                *self.region.learned.lock().expect("no panic while held") = Some(region.into());
                true
            }
            Refusal::StaleKeys => match &used.key {
                Some(key) => self.keys.renew(key).await.unwrap_or_else(|error| {
                    tracing::warn!("keys are not renewed: {error}");
                    false
                }),
                None => false,
            },
            Refusal::WantsDigest if !used.digest => {
                tracing::debug!("the store wants the digest of what is put");
                self.wants_digest.store(true, Ordering::Relaxed);
                true
            }
            _ => false,
        }
    }
}

/// The value of `Content-MD5`: it guards against nothing here, but some buckets take no put without.
fn digest(content: &[u8]) -> HeaderValue {
    HeaderValue::from_str(&BASE64_STANDARD.encode(Md5::digest(content))).expect("base64 is a header")
}

/// What a server says is a region is put into signatures and host names.
fn is_region(text: &str) -> bool {
    const REGION_BYTES_MAX: usize = 63;
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    !text.is_empty() && text.len() <= REGION_BYTES_MAX && text.bytes().all(known)
}

/// Makes the body one piece: of several, `object_store` would sign the digest of none.
async fn whole(request: HttpRequest) -> Result<HttpRequest, HttpError> {
    let (parts, body) = request.into_parts();
    let content = body.collect().await?.to_bytes();
    Ok(HttpRequest::from_parts(parts, HttpRequestBody::from(content)))
}

/// Reads why a store refused, and gives the answer back as it was.
async fn read(answer: HttpResponse) -> (HttpResponse, Refusal) {
    let (parts, body) = answer.into_parts();
    let said = beginning(body).await;
    let refusal = answer::refusal(&parts.headers, &String::from_utf8_lossy(&said));
    (HttpResponse::from_parts(parts, said.into()), refusal)
}

/// What came before the connection broke or the answer became too long says what went wrong, if anything does.
async fn beginning(body: HttpResponseBody) -> Bytes {
    let (mut said, mut parts) = (BytesMut::new(), body.bytes_stream());
    while let Some(Ok(part)) = parts.next().await {
        let room = REFUSAL_BYTES_MAX - said.len();
        said.extend_from_slice(part.get(..room).unwrap_or(&part));
        if said.len() == REFUSAL_BYTES_MAX {
            break;
        }
    }
    said.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_a_region_is_one() {
        assert!(is_region("eu-west-3") && is_region("garage") && is_region("us_east"));
        for wrong in ["", "a/b", "evil.example.com#", "a b", &"x".repeat(64)] {
            assert!(!is_region(wrong), "{wrong}");
        }
    }

    #[test]
    fn another_region_of_aws_is_asked_at_its_own_host() {
        let signer = Signer::new(Keys::Anonymous, "eu-west-3".to_owned(), EncryptionHeaders::default());
        let moved = |uri: &str| {
            let mut request = HttpRequest::new(HttpRequestBody::empty());
            *request.uri_mut() = uri.parse().unwrap();
            signer.move_host(&mut request, "us-west-2").unwrap();
            request.uri().to_string()
        };
        assert_eq!(moved("https://b.s3.eu-west-3.amazonaws.com/x?y"), "https://b.s3.us-west-2.amazonaws.com/x?y");
        assert_eq!(moved("http://s3.eu-west-3.example.com:90/b/x"), "http://s3.eu-west-3.example.com:90/b/x");
    }
}
