//! The HTTP clients below S3: one pool of connections for reads, one for writes.
//!
//! Sits between `object_store` and the network, below who signs (`sign`). It promises: each request is sent once and
//! counted; whoever is silent for too long is given up, in the middle of an answer or of an upload too; and from then on
//! requests go over new connections only, since what killed one has mostly killed all. Two answers are corrected. Whether
//! something is asked again is decided above (`retry`). It does not know S3's meaning of anything.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::BodyExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

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
    /// An upload is given up after that long without a piece taken.
    pub(crate) upload_stall_timeout: Duration,
    /// The limit of uploads.
    pub(crate) paced: Option<Arc<Limit>>,
    /// What the clients are like.
    pub(crate) client: ClientOptions,
    /// Signs what they send.
    pub(crate) signer: Arc<Signer>,
}

/// A client that is there already: `object_store`'s own options know no client certificates.
#[derive(Clone, Debug)]
pub(crate) struct Connected(pub(crate) HttpClient);

impl HttpConnector for Connected {
    fn connect(&self, _: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

impl Connector {
    /// Makes a client that signs.
    pub(crate) fn connect(&self) -> Result<HttpClient, String> {
        let reads = ClientOptions { stall_timeout: Some(self.stall_timeout), ..self.client.clone() };
        let writes = Maker::Writes {
            client: self.client.clone(),
            stall_timeout: self.upload_stall_timeout,
            limit: self.paced.clone(),
            counters: self.counters.clone(),
        };
        let service = Service {
            reads: Pool::new(Maker::Reads(reads))?,
            writes: Pool::new(writes)?,
            counters: self.counters.clone(),
        };
        Ok(self.signer.over(HttpClient::new(service)))
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
    Reads(ClientOptions),
    Writes { client: ClientOptions, stall_timeout: Duration, limit: Option<Arc<Limit>>, counters: Arc<Counters> },
}

impl Maker {
    fn client(&self) -> Result<HttpClient, String> {
        Ok(match self {
            Maker::Reads(options) => HttpClient::new(options.client()?),
            Maker::Writes { client, stall_timeout, limit, counters } => {
                HttpClient::new(Paced::new(client.client()?, *stall_timeout, limit.clone(), counters.clone()))
            }
        })
    }
}

impl Pool {
    fn new(maker: Maker) -> Result<Arc<Pool>, String> {
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
