//! The HTTP client for uploads: a body goes out in pieces, each when its time has come, and who takes none is given up.
//!
//! `object_store` hands over whole bodies, and a client sends them as fast as the network takes them, limits nothing and
//! knows only how long all of it may take, which is hours on a slow line and says nothing of a dead one. So this one hands
//! them on piece by piece. It judges errors as that one does. It does not know what is sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use object_store::client::{HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};
use tokio::time::Instant;

use super::counts::Counters;
use super::limit::Limit;

/// Sent at once within a limit: at the slowest rate one a second.
const PIECE_BYTES: usize = 16 << 10;
/// Sent at once without one.
const UNLIMITED_PIECE_BYTES: usize = 256 << 10;
/// No answer to an upload is longer: an error in XML, some hundred bytes.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A client whose bodies go out in pieces.
#[derive(Debug)]
pub(super) struct Paced {
    client: reqwest::Client,
    stall_timeout: Duration,
    limit: Option<Arc<Limit>>,
    counters: Arc<Counters>,
}

impl Paced {
    /// `stall_timeout` is the longest time in which no piece is taken and no answer comes.
    pub(super) fn new(
        client: reqwest::Client,
        stall_timeout: Duration,
        limit: Option<Arc<Limit>>,
        counters: Arc<Counters>,
    ) -> Paced {
        Paced { client, stall_timeout, limit, counters }
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
            let bytes = content.len().into();
            request.headers_mut().entry(CONTENT_LENGTH).or_insert(bytes); // a stream does not know it
            let moved = Moved::now();
            *request.body_mut() = Some(self.body(content, moved.clone()));
            let sent = async { answer(self.client.execute(request).await.map_err(judge)?).await };
            tokio::select! {
                outcome = sent => outcome,
                () = moved.stalls(self.stall_timeout) => Err(stalled(self.stall_timeout)),
            }
        })
    }
}

impl Paced {
    /// Returns a body that is sent piece by piece; how long it is in all says its header.
    fn body(&self, content: Bytes, moved: Moved) -> reqwest::Body {
        let piece_bytes = if self.limit.is_some() { PIECE_BYTES } else { UNLIMITED_PIECE_BYTES };
        let (limit, counters) = (self.limit.clone(), self.counters.clone());
        let pieces = stream::unfold((content, limit, counters, moved), move |mut body| async move {
            let piece = body.0.split_to(body.0.len().min(piece_bytes));
            if piece.is_empty() {
                return None;
            }
            super::limit::pass(&body.1, piece.len()).await;
            body.2.passed(piece.len());
            body.3.renew();
            Some((Ok::<_, HttpError>(piece), body))
        });
        reqwest::Body::wrap_stream(pieces)
    }
}

/// When something moved last.
#[derive(Clone, Debug)]
struct Moved(Arc<Mutex<Instant>>);

impl Moved {
    fn now() -> Moved {
        Moved(Arc::new(Mutex::new(Instant::now())))
    }

    fn renew(&self) {
        *self.0.lock().expect("no panic while held") = Instant::now();
    }

    /// Returns when nothing has moved for so long.
    async fn stalls(&self, stall_timeout: Duration) {
        loop {
            let last = *self.0.lock().expect("no panic while held");
            if last.elapsed() >= stall_timeout {
                return;
            }
            tokio::time::sleep_until(last + stall_timeout).await;
        }
    }
}

fn stalled(stall_timeout: Duration) -> HttpError {
    let text = format!("nothing moved for {:.0} s", stall_timeout.as_secs_f64());
    HttpError::new_boxed(HttpErrorKind::Timeout, text.into())
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

/// Tells failures apart as `object_store` does.
fn judge(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_builder() || error.is_decode() => HttpErrorKind::Unknown,
        () => HttpErrorKind::Request,
    };
    HttpError::new(kind, error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_a_time_in_which_nothing_moves_however_long_all_takes() {
        let (moved, begun) = (Moved::now(), Instant::now());
        let moving = async {
            for _ in 0..100 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                moved.renew();
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = moving => {}
            () = moved.stalls(Duration::from_secs(10)) => {}
        }
        assert_eq!(begun.elapsed().as_secs(), 910);
    }
}
