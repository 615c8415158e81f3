//! The HTTP clients below S3: one pool of connections for reads, one for writes.
//!
//! Sits between `object_store`, which signs, and the network. It promises: each request is sent once and counted; whoever
//! is silent for too long is given up, in the middle of an answer or of an upload too; and from then on requests go over new
//! connections only, since what killed one has mostly killed all. Two answers are corrected. Whether something is asked again
//! is decided above (`retry`). It does not know S3's meaning of anything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
    ReqwestConnector,
};

use super::counts::Counters;
use super::limit::Limit;
use super::paced::{Paced, PacedOptions};

/// Makes the clients and counts what they send.
#[derive(Debug)]
pub(crate) struct Connector {
    /// Bytes of an answer must come at least this often; an upload may be silent for longer.
    pub(crate) stall_timeout: Duration,
    /// Counts every request that is sent, repeated ones as well.
    pub(crate) counters: Arc<Counters>,
    /// How the client of uploads is to be, and their limit.
    pub(crate) uploads: (PacedOptions, Option<Arc<Limit>>),
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let reads = Maker::Reads(options.clone().with_read_timeout(self.stall_timeout).into());
        let (options, limit) = self.uploads.clone();
        let writes = Maker::Writes(options, limit, self.counters.clone());
        Ok(HttpClient::new(Service {
            reads: Pool::new(reads)?,
            writes: Pool::new(writes)?,
            counters: self.counters.clone(),
        }))
    }
}

#[derive(Debug)]
struct Service {
    reads: Arc<Pool>,
    writes: Arc<Pool>,
    counters: Arc<Counters>,
}

/// The connections of one direction, and how often they were replaced.
#[derive(Debug)]
struct Pool {
    maker: Maker,
    current: Mutex<(HttpClient, u64)>,
}

/// Makes a client without connections.
#[derive(Debug)]
enum Maker {
    Reads(Box<ClientOptions>),
    Writes(PacedOptions, Option<Arc<Limit>>, Arc<Counters>),
}

impl Maker {
    fn client(&self) -> object_store::Result<HttpClient> {
        match self {
            Maker::Reads(options) => ReqwestConnector::default().connect(options),
            Maker::Writes(options, limit, counters) => {
                let client = Paced::new(options, limit.clone(), counters.clone());
                let failed = |error: reqwest::Error| object_store::Error::Generic { store: "S3", source: error.into() };
                client.map(HttpClient::new).map_err(failed)
            }
        }
    }
}

impl Pool {
    fn new(maker: Maker) -> object_store::Result<Arc<Pool>> {
        let current = Mutex::new((maker.client()?, 0));
        Ok(Arc::new(Pool { maker, current }))
    }

    fn current(&self) -> (HttpClient, u64) {
        self.current.lock().expect("no panic while held").clone()
    }

    /// Leaves the connections of `generation` to whoever waits on them and begins with none, if that was a silence: who asks
    /// again must not find another dead one in the pool and wait as long again.
    fn see(&self, error: &HttpError, generation: u64) {
        if error.kind() != HttpErrorKind::Timeout {
            return;
        }
        let mut current = self.current.lock().expect("no panic while held");
        if current.1 == generation
            && let Ok(client) = self.maker.client()
        {
            *current = (client, generation + 1);
        }
    }
}

impl HttpService for Service {
    fn call<'a, 'f>(&'a self, request: HttpRequest) -> BoxFuture<'f, Result<HttpResponse, HttpError>>
    where
        'a: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            self.counters.http_request();
            let pool = if request.method().as_str() == "PUT" { &self.writes } else { &self.reads };
            let (client, generation) = pool.current();
            match client.execute(request).await {
                Ok(response) => {
                    date(&response).into_iter().for_each(|unix_ms| self.counters.dated(unix_ms));
                    let pool = pool.clone();
                    let watched = move |body: HttpResponseBody| {
                        HttpResponseBody::new(body.map_err(move |error| {
                            pool.see(&error, generation);
                            error
                        }))
                    };
                    Ok(correct_answer(response).map(watched))
                }
                Err(error) => {
                    pool.see(&error, generation);
                    Err(error)
                }
            }
        })
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

/// Replaces two statuses that do not say enough.
fn correct_answer(mut response: HttpResponse) -> HttpResponse {
    const METHOD_NOT_ALLOWED: u16 = 405;
    const BAD_REQUEST: u16 = 400;
    let status = response.status().as_u16();
    if status == 501 {
        // Not implemented stays so: all other 5xx are worth asking again, this is not.
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
