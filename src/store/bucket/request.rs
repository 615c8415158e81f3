//! One request to a bucket, sent once.
//!
//! Sends through the client that signs (`sign`) and tells failures in the words of `object_store`, so that they are judged
//! as all others. It does not know what a request is for, nor whether it is sent again.

use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::{HeaderMap, Method, StatusCode};
use object_store::client::{HttpClient, HttpError, HttpRequest, HttpRequestBody};

/// An answer that is no success is read so far: what went wrong stands at its beginning.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// A request, before it is signed.
pub(in crate::store) struct Request<'a> {
    pub(in crate::store) method: Method,
    /// What is asked for below the bucket; the bucket itself for `None`.
    pub(in crate::store) key: Option<&'a str>,
    pub(in crate::store) query: Vec<(&'static str, String)>,
    pub(in crate::store) headers: HeaderMap,
    pub(in crate::store) body: Bytes,
    /// The longest body of a good answer.
    pub(in crate::store) bytes_max: u64,
    /// Answers that are no failures for who asks.
    pub(in crate::store) expects: &'static [u16],
}

impl<'a> Request<'a> {
    pub(in crate::store) fn new(method: Method, key: &'a str) -> Self {
        let (query, headers, body) = (Vec::new(), HeaderMap::new(), Bytes::new());
        Self { method, key: Some(key), query, headers, body, bytes_max: REFUSAL_BYTES_MAX as u64, expects: &[] }
    }
}

/// What was answered.
pub(in crate::store) struct Reply {
    pub(in crate::store) status: u16,
    pub(in crate::store) headers: HeaderMap,
    pub(in crate::store) body: Bytes,
    /// How often it was asked before.
    pub(in crate::store) repeats: usize,
}

/// Sends requests to one bucket.
pub(super) struct Sender {
    pub(super) http: HttpClient,
    /// The bucket's URL, without a slash at its end.
    pub(super) url: String,
}

impl Sender {
    /// Sends a request and reads the answer.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Reply, object_store::Error> {
        let response = self.http.execute(self.built(request)?).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let (status, is_expected) = (parts.status.as_u16(), request.expects.contains(&parts.status.as_u16()));
        if parts.status.is_success() {
            let body = collect(body.bytes_stream(), request.bytes_max).await.map_err(broken)?;
            let body = body.ok_or_else(|| other("the answer is too long".to_owned()))?;
            return Ok(Reply { status, headers: parts.headers, body, repeats: 0 });
        }
        let said = collect(body.bytes_stream(), REFUSAL_BYTES_MAX as u64).await.ok().flatten().unwrap_or_default();
        if is_expected {
            return Ok(Reply { status, headers: parts.headers, body: said, repeats: 0 });
        }
        Err(refusal(parts.status, &said))
    }

    fn built(&self, request: &Request<'_>) -> Result<HttpRequest, object_store::Error> {
        let mut url = self.url.clone();
        url.push('/');
        encode(request.key.unwrap_or_default(), true, &mut url);
        for (number, (name, value)) in request.query.iter().enumerate() {
            url.push(if number == 0 { '?' } else { '&' });
            url.push_str(name);
            url.push('=');
            encode(value, false, &mut url);
        }
        let mut built = HttpRequest::new(HttpRequestBody::from(request.body.clone()));
        *built.method_mut() = request.method.clone();
        *built.uri_mut() = url.parse().map_err(|error| other(format!("{url:?} is no URL: {error}")))?;
        *built.headers_mut() = request.headers.clone();
        Ok(built)
    }
}

/// Reads a body; `None` if it is longer than it may be.
async fn collect(
    mut parts: futures::stream::BoxStream<'static, Result<Bytes, HttpError>>,
    bytes_max: u64,
) -> Result<Option<Bytes>, HttpError> {
    let mut whole = BytesMut::new();
    while let Some(part) = parts.try_next().await? {
        if (whole.len() + part.len()) as u64 > bytes_max {
            return Ok(None);
        }
        whole.extend_from_slice(&part);
    }
    Ok(Some(whole.freeze()))
}

fn broken(error: HttpError) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: error.into() }
}

/// Tells what a server answered as `object_store` does, by whose words answers are judged.
fn refusal(status: StatusCode, said: &[u8]) -> object_store::Error {
    let text = format!("Server returned non-2xx status code: {status}: {}", String::from_utf8_lossy(said));
    match status {
        StatusCode::NOT_FOUND => object_store::Error::NotFound { path: String::new(), source: text.into() },
        _ => object_store::Error::Generic { store: "S3", source: text.into() },
    }
}

/// An error in our own words.
pub(super) fn other(text: String) -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: text.into() }
}

/// Adds a text as URLs hold it, everything but what needs no escape in a signature escaped.
fn encode(text: &str, keeps_slashes: bool, url: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            b'/' if keeps_slashes => url.push('/'),
            byte => {
                url.push('%');
                url.push(char::from(HEX[usize::from(byte >> 4)]));
                url.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_but_for_their_slashes() {
        let of = |text, keeps_slashes| {
            let mut url = String::new();
            encode(text, keeps_slashes, &mut url);
            url
        };
        assert_eq!(of("a//b c/é+%?#&=~.txt/", true), "a//b%20c/%C3%A9%2B%25%3F%23%26%3D~.txt/");
        assert_eq!(of("a/b+c", false), "a%2Fb%2Bc");
    }
}
