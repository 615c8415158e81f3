//! The HTTP client for uploads that are limited: a body goes out in small pieces, each when its time has come.
//!
//! `object_store` hands over whole bodies and a client sends them as fast as the network takes them; so this one hands
//! them on piece by piece, where uploads have a limit. It judges errors as that one does. It does
//! not know what is sent.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream;
use http_body_util::BodyExt;
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};

use super::counts::Counters;
use super::limit::Limit;

/// Sent at once: at the slowest rate one a second.
const PIECE_BYTES: usize = 16 << 10;
/// No answer to an upload is longer: an error in XML, some hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client whose bodies go out within a limit.
#[derive(Debug)]
pub(super) struct Paced {
    client: reqwest::Client,
    limit: Arc<Limit>,
    counters: Arc<Counters>,
}

impl Paced {
    pub(super) fn new(client: reqwest::Client, limit: Arc<Limit>, counters: Arc<Counters>) -> Paced {
        Paced { client, limit, counters }
    }
}

impl HttpService for Paced {
    fn call<'a, 'f>(&'a self, request: HttpRequest) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let url = parts.uri.to_string();
            let url = url.parse().map_err(|_| HttpError::new_boxed(HttpErrorKind::Unknown, url.into()))?;
            let mut request = reqwest::Request::new(parts.method, url);
            *request.headers_mut() = parts.headers;
            let content = body.collect().await?.to_bytes();
            *request.body_mut() = Some(self.body(content));
            answer(self.client.execute(request).await.map_err(judge)?).await
        })
    }
}

impl Paced {
    /// Returns a body that is sent piece by piece; how long it is in all says its header.
    fn body(&self, content: Bytes) -> reqwest::Body {
        let (limit, counters) = (self.limit.clone(), self.counters.clone());
        let pieces = stream::unfold((content, limit, counters), |(mut content, limit, counters)| async move {
            let piece = content.split_to(content.len().min(PIECE_BYTES));
            if piece.is_empty() {
                return None;
            }
            limit.pass(piece.len()).await;
            counters.passed(piece.len());
            Some((Ok::<_, HttpError>(piece), (content, limit, counters)))
        });
        reqwest::Body::wrap_stream(pieces)
    }
}

/// Takes the whole answer, which after an upload is short.
async fn answer(mut response: reqwest::Response) -> Result<HttpResponse, HttpError> {
    let mut content = BytesMut::new();
    while let Some(part) = response.chunk().await.map_err(judge)? {
        if content.len() + part.len() > ANSWER_BYTES_MAX {
            return Err(HttpError::new_boxed(HttpErrorKind::Decode, "the answer to an upload is too long".into()));
        }
        content.extend_from_slice(&part);
    }
    let mut answer = HttpResponse::new(content.freeze().into());
    (*answer.status_mut(), *answer.headers_mut()) = (response.status(), response.headers().clone());
    Ok(answer)
}

/// What broke off may be sent again: an upload is put once, under a name of its own.
fn judge(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_builder() || error.is_decode() => HttpErrorKind::Unknown,
        () => HttpErrorKind::Request,
    };
    HttpError::new(kind, error.without_url())
}
