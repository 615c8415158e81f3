//! A real S3 server with the faults and peculiarities that servers have, over real HTTP.
//!
//! Peculiarities ([`Quirks`]) are as they are from the start; faults ([`Fault`]) are ordered for the next requests of a
//! kind. All else is `s3s` over a folder: signatures are checked, objects are files. It counts what it was asked.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{HeaderMap, Method, Request, Response};
use hyper_util::rt::TokioIo;
use kloset_mount::env::Entropy;
use kloset_mount::store::{Bucket, RetryOptions, S3Options, Store, StoreLocation};
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, S3, S3Request, S3Response, S3Result};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

use super::stores::Operation;

const KEYS: (&str, &str) = ("K", "S");
/// The longest that a request may differ from a server's clock, as AWS has it.
const SKEW_SECONDS_MAX: i64 = 15 * 60;
/// How long a request takes where their number is looked at, so that they meet.
const BUSY_FOR: Duration = Duration::from_millis(5);

/// What a server is like.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quirks {
    /// Listings have so many keys a page.
    pub(crate) page_keys: Option<i32>,
    /// `If-None-Match` is taken and means nothing: Garage.
    pub(crate) ignores_conditions: bool,
    /// 501 for every header that the first S3 did not know.
    pub(crate) refuses_new_headers: bool,
    /// Trailers, chunked bodies and checksums of newer SDKs are refused.
    pub(crate) refuses_trailers: bool,
    /// 501 for `DeleteObjects`, as Google's server.
    pub(crate) refuses_bulk: bool,
    /// Another entity tag in each answer.
    pub(crate) wrong_etags: bool,
    /// How far its clock is ahead.
    pub(crate) skew_seconds: i64,
    /// With more requests than this at once, the others are answered 503.
    pub(crate) at_once_max: Option<usize>,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// 503 SlowDown; nothing is done.
    SlowDown,
    /// 500; nothing is done.
    Internal,
    /// The connection is closed; nothing is done.
    Reset,
    /// It is done and the connection is closed.
    ResetAfter,
    /// Its body is not read, it is not done and there is no answer.
    Stall,
    /// It is done, and the answer stops before its end.
    StallInBody,
    /// It is done, and the connection is closed before the end of the answer.
    Truncate,
}

/// A fault for so many requests of a kind that have that in their key or query.
struct Order {
    operation: Operation,
    key: &'static str,
    fault: Fault,
    times: usize,
}

struct State {
    service: S3Service,
    quirks: Quirks,
    orders: Mutex<VecDeque<Order>>,
    asked: AtomicU64,
    under_way: AtomicUsize,
    etags: AtomicU64,
}

/// The server; it ends when dropped.
pub(crate) struct Quirky {
    pub(crate) port: u16,
    state: Arc<State>,
    runtime: Option<Runtime>,
    _folder: tempfile::TempDir,
}

impl Quirky {
    /// Begins to serve the bucket `bucket`, which is empty.
    pub(crate) fn serve(quirks: Quirks) -> Quirky {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
        let mut builder = S3ServiceBuilder::new(Storage { files, quirks });
        builder.set_auth(SimpleAuth::from_single(KEYS.0, KEYS.1));
        let state = Arc::new(State {
            service: builder.build(),
            quirks,
            orders: Mutex::default(),
            asked: AtomicU64::new(0),
            under_way: AtomicUsize::new(0),
            etags: AtomicU64::new(0),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        runtime.spawn(accept(listener, state.clone()));
        Quirky { port, state, runtime: Some(runtime), _folder: folder }
    }

    /// Orders a fault for the next requests of a kind that have `key` in their key or query.
    pub(crate) fn order(&self, operation: Operation, key: &'static str, fault: Fault, times: usize) {
        self.state.orders.lock().unwrap().push_back(Order { operation, key, fault, times });
    }

    /// Takes all orders back.
    pub(crate) fn heal(&self) {
        self.state.orders.lock().unwrap().clear();
    }

    /// Requests since the last call.
    pub(crate) fn asked(&self) -> u64 {
        self.state.asked.swap(0, Ordering::SeqCst)
    }

    pub(crate) fn location(&self) -> StoreLocation {
        format!("s3://127.0.0.1:{}/bucket/kloset", self.port).parse().unwrap()
    }

    /// Options with short limits: a silence is one after half a second, and after two it is enough.
    pub(crate) fn options(&self) -> S3Options {
        S3Options {
            access_key: Some(KEYS.0.to_owned()),
            secret_access_key: Some(KEYS.1.into()),
            use_tls: false,
            stall_timeout: Duration::from_millis(500),
            upload_stall_timeout: Duration::from_millis(500),
            retry: RetryOptions {
                budget: Duration::from_secs(2),
                pause_first: Duration::from_millis(10),
                entropy: Entropy::seeded(7),
                ..RetryOptions::default()
            },
            ..S3Options::default()
        }
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.location(), &self.options()).unwrap()
    }

    pub(crate) fn bucket(&self) -> Bucket {
        Bucket::open(&self.location(), &self.options()).unwrap()
    }

    /// The words by which the program gets to know it.
    pub(crate) fn entry(&self) -> [String; 4] {
        let keys = [format!("access_key={}", KEYS.0), format!("secret_access_key={}", KEYS.1)];
        let [key, secret] = keys;
        [self.location().to_string(), key, secret, "use_tls=false".to_owned()]
    }
}

impl Drop for Quirky {
    fn drop(&mut self) {
        // Requests that stall are not waited for.
        self.runtime.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

async fn accept(listener: std::net::TcpListener, state: Arc<State>) {
    let listener = TcpListener::from_std(listener).unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| state.clone().answer(request));
            let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
        });
    }
}

/// The connection is to be closed.
type Closed = std::io::Error;

impl State {
    async fn answer(self: Arc<Self>, mut request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let mut fault = None;
        let refusal = match self.refusal(request.headers()) {
            None if self.is_busy().await => Some((503, "SlowDown".to_owned())),
            None => {
                fault = self.fault(&request);
                match fault {
                    Some(Fault::SlowDown) => Some((503, "SlowDown".to_owned())),
                    Some(Fault::Internal) => Some((500, "InternalError".to_owned())),
                    _ => None,
                }
            }
            refusal => refusal,
        };
        if let Some((status, code)) = refusal {
            // Who answers before the end of the body closes the connection, which would be a second fault.
            while request.body_mut().frame().await.is_some() {}
            return Ok(refused(status, &code));
        }
        match fault {
            Some(Fault::Reset) => return Err(Closed::other("reset")),
            Some(Fault::Stall) => {
                std::future::pending::<Infallible>().await;
            }
            _ => {}
        }
        let answer = self.service.call(request.map(Body::from)).await.map_err(|_| Closed::other("no answer"))?;
        match fault {
            Some(Fault::ResetAfter) => Err(Closed::other("reset")),
            Some(fault) => Ok(cut(answer, fault).await),
            None => Ok(self.tagged(answer)),
        }
    }

    /// Whether there are too many requests at once.
    async fn is_busy(&self) -> bool {
        let Some(most) = self.quirks.at_once_max else { return false };
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::time::sleep(BUSY_FOR).await;
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        now > most
    }

    /// What is refused whatever it is.
    fn refusal(&self, headers: &HeaderMap) -> Option<(u16, String)> {
        const KNOWN: [&str; 11] = [
            "accept",
            "authorization",
            "content-length",
            "content-type",
            "date",
            "expect",
            "host",
            "range",
            "user-agent",
            "x-amz-content-sha256",
            "x-amz-date",
        ];
        let is_new = |name: &&str| !KNOWN.contains(name);
        let is_of_new_sdks = |name: &&str| {
            ["x-amz-trailer", "transfer-encoding", "x-amz-sdk-checksum-algorithm"].contains(name)
                || name.starts_with("x-amz-checksum-")
        };
        let mut names = headers.keys().map(hyper::header::HeaderName::as_str);
        if self.quirks.refuses_new_headers && names.by_ref().any(|name| is_new(&name)) {
            return Some((501, "NotImplemented".to_owned()));
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_streamed = text("x-amz-content-sha256").starts_with("STREAMING-");
        if self.quirks.refuses_trailers && (is_streamed || names.any(|name| is_of_new_sdks(&name))) {
            return Some((400, "InvalidArgument".to_owned()));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 + self.quirks.skew_seconds;
        let signed = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", text("x-amz-date")).ok()?;
        let signed = signed.to_zoned(jiff::tz::TimeZone::UTC).unwrap().timestamp().as_second();
        (signed.abs_diff(now) > SKEW_SECONDS_MAX as u64).then(|| (403, "RequestTimeTooSkewed".to_owned()))
    }

    fn fault(&self, request: &Request<Incoming>) -> Option<Fault> {
        let operation = match *request.method() {
            Method::PUT => Operation::Put,
            Method::DELETE => Operation::Delete,
            _ if request.uri().query().is_some_and(|query| query.contains("list-type")) => Operation::List,
            _ => Operation::Get,
        };
        let mut orders = self.orders.lock().unwrap();
        let fits = |order: &&mut Order| order.operation == operation && request.uri().to_string().contains(order.key);
        let order = orders.iter_mut().find(fits)?;
        let fault = order.fault;
        order.times -= 1;
        orders.retain(|order| order.times > 0);
        Some(fault)
    }

    fn tagged(&self, mut answer: Response<Body>) -> Response<Body> {
        if self.quirks.wrong_etags && answer.headers().contains_key("etag") {
            let etag = format!("\"{:032x}\"", self.etags.fetch_add(1, Ordering::SeqCst));
            answer.headers_mut().insert("etag", etag.parse().unwrap());
        }
        answer
    }
}

fn refused(status: u16, code: &str) -> Response<Body> {
    let text = format!("<Error><Code>{code}</Code><Message>injected</Message></Error>");
    Response::builder().status(status).body(Body::from(text)).unwrap()
}

/// An answer that says how long it is and does not come to its end.
async fn cut(answer: Response<Body>, fault: Fault) -> Response<Body> {
    let (mut parts, body) = answer.into_parts();
    let content = BodyExt::collect(body).await.unwrap().to_bytes();
    parts.headers.insert("content-length", content.len().into());
    let first = Ok(Frame::data(content.slice(..content.len() * 15 / 16)));
    let end = async move {
        if fault == Fault::StallInBody {
            std::future::pending::<Infallible>().await;
        }
        // What was written is sent before it is over.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err::<Frame<Bytes>, _>(Closed::other("truncated"))
    };
    let body = StreamBody::new(stream::iter([first]).chain(stream::once(end)));
    Response::from_parts(parts, Body::http_body_unsync(body))
}

/// A folder, with what goes into and out of it changed on the way.
struct Storage {
    files: s3s_fs::FileSystem,
    quirks: Quirks,
}

#[async_trait::async_trait]
impl S3 for Storage {
    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        self.files.get_object(req).await
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(req).await
    }

    async fn put_object(&self, mut req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        if self.quirks.ignores_conditions {
            req.input.if_none_match = None;
        }
        self.files.put_object(req).await
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.files.delete_object(req).await
    }

    async fn delete_objects(&self, req: S3Request<DeleteObjectsInput>) -> S3Result<S3Response<DeleteObjectsOutput>> {
        if self.quirks.refuses_bulk {
            return Err(s3s::s3_error!(NotImplemented, "one by one"));
        }
        self.files.delete_objects(req).await
    }

    async fn list_objects_v2(
        &self,
        mut req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        req.input.max_keys = self.quirks.page_keys.or(req.input.max_keys);
        self.files.list_objects_v2(req).await
    }
}
