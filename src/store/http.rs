//! The HTTP client below S3: one connection pool for reads, one for writes.
//!
//! Sits between `object_store`, which retries, and the network, below who signs (`sign`), and corrects what is
//! retried. It promises: a broken `PUT` is sent again (all our names are random and puts are
//! create-if-absent, so that is safe); what cannot get better (501, TLS against a plain port, a
//! certificate not trusted) is not retried for minutes; a store that never answered is given up
//! soon; after a silence, reads go on over new connections only, since what killed one has mostly
//! killed all. It does not know S3's meaning of anything.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
};

use super::answer::{chain_text, is_tls_to_plain};
use super::client::ClientOptions;
use super::counts::Counters;
use super::limit::Limit;
use super::paced::Paced;
use super::sign::Signer;

/// Makes the clients and counts what they send.
#[derive(Debug)]
pub(crate) struct Connector {
    /// Bytes of an answer must come at least this often; an upload may be silent for longer.
    pub(crate) stall_timeout: Duration,
    /// Counts every request that is sent, repeated ones as well.
    pub(crate) counters: Arc<Counters>,
    /// The limit of uploads.
    pub(crate) paced: Option<Arc<Limit>>,
    /// What the clients are like.
    pub(crate) client: ClientOptions,
    /// Signs what they send.
    pub(crate) signer: Arc<Signer>,
}

/// A store that has not answered once is not worth minutes: a wrong port shows after about a second.
const CONNECTS_BEFORE_FIRST_ANSWER_MAX: u32 = 4;

impl HttpConnector for Connector {
    /// Makes a client by our own options; `object_store`'s know no client certificates.
    fn connect(&self, _: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        self.connect().map_err(|error| object_store::Error::Generic { store: "S3", source: error.into() })
    }
}

impl Connector {
    /// Makes a client that signs.
    pub(crate) fn connect(&self) -> Result<HttpClient, String> {
        let read_options = ClientOptions { stall_timeout: Some(self.stall_timeout), ..self.client.clone() };
        let reads = Pool { client: HttpClient::new(read_options.client()?), generation: 0 };
        Ok(self.signer.over(HttpClient::new(Service {
            reads: Mutex::new(reads),
            read_options,
            writes: self.writes()?,
            counters: self.counters.clone(),
            answered: AtomicBool::new(false),
            failed_connects: AtomicU32::new(0),
        })))
    }

    fn writes(&self) -> Result<HttpClient, String> {
        let client = self.client.client()?;
        Ok(match &self.paced {
            None => HttpClient::new(client),
            Some(limit) => HttpClient::new(Paced::new(client, limit.clone(), self.counters.clone())),
        })
    }
}

#[derive(Debug)]
struct Service {
    reads: Mutex<Pool>,
    read_options: ClientOptions,
    writes: HttpClient,
    counters: Arc<Counters>,
    answered: AtomicBool,
    failed_connects: AtomicU32,
}

/// The connections for reads, and how often they were replaced.
#[derive(Clone, Debug)]
struct Pool {
    client: HttpClient,
    generation: u64,
}

impl HttpService for Service {
    fn call<'a, 'f>(&'a self, request: HttpRequest) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let is_put = request.method().as_str() == "PUT";
            self.counters.http_request();
            let reads = self.reads.lock().expect("no panic while held").clone();
            let client = if is_put { &self.writes } else { &reads.client };
            let outcome = match client.execute(request).await {
                Ok(response) => {
                    self.answered.store(true, Ordering::Relaxed);
                    date(&response).into_iter().for_each(|unix_ms| self.counters.dated(unix_ms));
                    Ok(correct_answer(response))
                }
                Err(error) => {
                    if !is_put && error.kind() == HttpErrorKind::Timeout {
                        self.replace_reads(reads.generation);
                    }
                    Err(self.correct_error(error, is_put))
                }
            };
            if is_repeated(&outcome) {
                self.counters.http_retry();
            }
            outcome
        })
    }
}

impl Service {
    /// Leaves the connections of `generation` to whoever waits on them and begins with none: a retry must not find
    /// another dead one in the pool and wait as long again.
    fn replace_reads(&self, generation: u64) {
        let mut reads = self.reads.lock().expect("no panic while held");
        if reads.generation == generation
            && let Ok(client) = self.read_options.client()
        {
            *reads = Pool { client: HttpClient::new(client), generation: generation + 1 };
        }
    }

    fn correct_error(&self, error: HttpError, is_put: bool) -> HttpError {
        let text = chain_text(&error);
        let hopeless = is_tls_to_plain(&text) || text.contains("certificate") || self.is_given_up(&error);
        let kind = match error.kind() {
            HttpErrorKind::Connect if hopeless => HttpErrorKind::Unknown,
            HttpErrorKind::Timeout | HttpErrorKind::Interrupted if is_put => HttpErrorKind::Request,
            _ => return error,
        };
        HttpError::new(kind, error)
    }

    fn is_given_up(&self, error: &HttpError) -> bool {
        error.kind() == HttpErrorKind::Connect
            && !self.answered.load(Ordering::Relaxed)
            && self.failed_connects.fetch_add(1, Ordering::Relaxed) + 1 >= CONNECTS_BEFORE_FIRST_ANSWER_MAX
    }
}

/// Tells whether `object_store` sends a request again that came out like this: what we leave to it, it repeats but for
/// deletions that were broken off.
fn is_repeated(outcome: &Result<HttpResponse, HttpError>) -> bool {
    const REQUEST_TIMEOUT: u16 = 408;
    const TOO_MANY_REQUESTS: u16 = 429;
    match outcome {
        Ok(response) => matches!(response.status().as_u16(), REQUEST_TIMEOUT | TOO_MANY_REQUESTS | 500..=599),
        Err(error) => !matches!(error.kind(), HttpErrorKind::Unknown | HttpErrorKind::Decode),
    }
}

/// Returns what the store's clock says, by which its objects are dated.
fn date(response: &HttpResponse) -> Option<i64> {
    parse_date(response.headers().get("date")?.to_str().ok()?)
}

/// Milliseconds since 1970 of a time in a header.
pub(super) fn parse_date(text: &str) -> Option<i64> {
    let date = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(date.as_millisecond())
}

/// Replaces two statuses on which `object_store` does the wrong thing.
fn correct_answer(mut response: HttpResponse) -> HttpResponse {
    const METHOD_NOT_ALLOWED: u16 = 405;
    const BAD_REQUEST: u16 = 400;
    let status = response.status().as_u16();
    if status == 501 {
        // Not implemented stays so: all other 5xx are worth a retry, this is not.
        set_status(&mut response, METHOD_NOT_ALLOWED);
    }
    if status == 301 || status == 307 {
        let region = response.headers().get("x-amz-bucket-region");
        if let Some(region) = region.and_then(|value| value.to_str().ok()) {
            let body = format!(
                "<Error><Code>PermanentRedirect</Code><Message>the bucket is in region \
                 {region}</Message><Region>{region}</Region></Error>"
            );
            let (parts, _) = response.into_parts();
            response = HttpResponse::from_parts(parts, body.into());
            set_status(&mut response, BAD_REQUEST);
        }
    }
    response
}

fn set_status(response: &mut HttpResponse, status: u16) {
    if let Ok(status) = status.try_into() {
        *response.status_mut() = status;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_understood_or_passed_over() {
        assert_eq!(parse_date("Sun, 22 Nov 2026 13:58:01 GMT"), Some(1_795_355_881_000));
        for wrong in ["", "now", "2026-11-22T13:58:01Z", "Sun, 22 Nov 2026 13:58:61 GMT"] {
            assert_eq!(parse_date(wrong), None, "{wrong}");
        }
    }
}
