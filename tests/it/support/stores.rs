//! Object stores that tell what was done to them, and stores that fail.
//!
//! [`Recording`] logs every completed mutation and every request, and rebuilds the store as a crash would have left it.
//! [`Faulty`] breaks chosen requests in chosen ways, seeded. Both implement the foreign trait, so that everything from
//! `Store` upwards is the real thing.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use super::random::Random;

/// Kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Put,
    Get,
    List,
    Delete,
}

/// What was done to the store, once it was done.
#[derive(Clone, Debug)]
pub(crate) struct Mutation {
    pub(crate) name: String,
    /// The bytes of a put; none of a deletion.
    pub(crate) content: Option<Bytes>,
    /// How many mutations were complete when this one was asked for.
    pub(crate) asked_after: usize,
}

#[derive(Default)]
struct Log {
    mutations: Vec<Mutation>,
    requests: Vec<(Operation, String)>,
}

/// Logs mutations and requests; clones share the log.
#[derive(Clone)]
pub(crate) struct Recording {
    inner: Arc<dyn ObjectStore>,
    log: Arc<Mutex<Log>>,
    /// Holds puts back for a moment, so that several are in flight.
    slow: bool,
}

impl Recording {
    pub(crate) fn new(inner: impl ObjectStore) -> Self {
        Self { inner: Arc::new(inner), log: Arc::default(), slow: false }
    }

    pub(crate) fn in_memory() -> Self {
        Self::new(InMemory::new())
    }

    /// Goes on from what a store holds, as if all of it had been put.
    pub(crate) fn over(store: &InMemory) -> Self {
        let recording = Self::slow();
        futures::executor::block_on(async {
            let objects: Vec<ObjectMeta> = store.list(None).try_collect().await.unwrap();
            for object in objects {
                let content = store.get(&object.location).await.unwrap().bytes().await.unwrap();
                recording.inner.put(&object.location, content.clone().into()).await.unwrap();
                recording.done(&object.location, Some(content), recording.mark());
            }
        });
        recording
    }

    /// A store whose puts take long enough that several are in flight at once.
    pub(crate) fn slow() -> Self {
        Self { slow: true, ..Self::in_memory() }
    }

    /// Returns the completed mutations in their order.
    pub(crate) fn mutations(&self) -> Vec<Mutation> {
        self.log.lock().unwrap().mutations.clone()
    }

    /// Returns the number of completed mutations.
    pub(crate) fn mark(&self) -> usize {
        self.log.lock().unwrap().mutations.len()
    }

    /// Returns the names put since `mark` that begin with `prefix`.
    pub(crate) fn put_since(&self, mark: usize, prefix: &str) -> Vec<String> {
        let log = self.log.lock().unwrap();
        let put = log.mutations[mark..].iter().filter(|m| m.content.is_some() && m.name.starts_with(prefix));
        put.map(|m| m.name.clone()).collect()
    }

    /// Returns the requests since the last call.
    pub(crate) fn take_requests(&self) -> Vec<(Operation, String)> {
        std::mem::take(&mut self.log.lock().unwrap().requests)
    }

    /// Returns the store after the first `prefix` mutations and those of `also`, as a crash would have left it.
    pub(crate) fn rebuild(&self, prefix: usize, also: &[usize]) -> InMemory {
        let mutations = self.mutations();
        let store = InMemory::new();
        futures::executor::block_on(async {
            for mutation in mutations[..prefix].iter().chain(also.iter().map(|n| &mutations[*n])) {
                let path = Path::parse(&mutation.name).unwrap();
                match &mutation.content {
                    Some(content) => drop(store.put(&path, content.clone().into()).await.unwrap()),
                    None => store.delete(&path).await.unwrap(),
                }
            }
        });
        store
    }

    /// Returns which mutations had been asked for and were not complete after the first `prefix`.
    pub(crate) fn in_flight(&self, prefix: usize) -> Vec<usize> {
        let mutations = self.mutations();
        (prefix..mutations.len()).filter(|n| mutations[*n].asked_after <= prefix).collect()
    }

    fn request(&self, operation: Operation, name: &str) -> usize {
        let mut log = self.log.lock().unwrap();
        log.requests.push((operation, name.to_owned()));
        log.mutations.len()
    }

    fn done(&self, name: &Path, content: Option<Bytes>, asked_after: usize) {
        self.log.lock().unwrap().mutations.push(Mutation { name: name.to_string(), content, asked_after });
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

impl fmt::Display for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recording")
    }
}

#[async_trait]
impl ObjectStore for Recording {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // Copied: what a pack reserved to grow into would stay reserved for as long as the store lives.
        let content = Bytes::copy_from_slice(&Bytes::from(payload));
        let asked_after = self.request(Operation::Put, at.as_ref());
        if self.slow {
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
        let result = self.inner.put_opts(at, content.clone().into(), options).await?;
        self.done(at, Some(content), asked_after);
        Ok(result)
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.request(Operation::Get, at.as_ref());
        self.inner.get_opts(at, options).await
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.request(Operation::List, prefix.map_or("", AsRef::as_ref));
        self.inner.list(prefix)
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        at.and_then(move |path| {
            let this = this.clone();
            async move {
                let asked_after = this.request(Operation::Delete, path.as_ref());
                this.inner.delete(&path).await?;
                this.done(&path, None, asked_after);
                Ok(path)
            }
        })
        .boxed()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put_multipart".into(), implementer: "Recording".into() })
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.request(Operation::List, prefix.map_or("", AsRef::as_ref));
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".into(), implementer: "Recording".into() })
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It fails and has no effect.
    Before,
    /// It takes effect and fails: the reply was lost.
    After,
    /// It takes some milliseconds.
    Delay,
    /// The body is shorter than it says.
    ShortBody,
    /// The body, or the listing, breaks off in the middle.
    BreakOff,
    /// One bit of the body is flipped.
    FlipBit,
    /// The listing lacks what was put last.
    StaleList,
    /// It and the next ones are answered with 503.
    Burst,
}

/// Which requests are broken and how.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) operation: Operation,
    /// Names begin with this.
    pub(crate) prefix: &'static str,
    /// Which of the requests that match, counted from 0.
    pub(crate) calls: Range<usize>,
    /// One request in this many of those.
    pub(crate) one_in: u64,
    pub(crate) fault: Fault,
}

/// How many requests a burst of 503 answers lasts.
const BURST_REQUESTS: usize = 3;

struct Chaos {
    rules: Vec<(Rule, usize)>,
    random: Random,
    burst: usize,
    put: Vec<Path>,
    broken: Vec<(Fault, String)>,
}

/// Breaks requests by rule; clones share all of it.
#[derive(Clone)]
pub(crate) struct Faulty {
    inner: Arc<dyn ObjectStore>,
    chaos: Arc<Mutex<Chaos>>,
}

impl Faulty {
    pub(crate) fn new(inner: Arc<dyn ObjectStore>, seed: u64) -> Self {
        let chaos =
            Chaos { rules: Vec::new(), random: Random::new(seed), burst: 0, put: Vec::new(), broken: Vec::new() };
        Self { inner, chaos: Arc::new(Mutex::new(chaos)) }
    }

    /// Breaks requests by these rules from now on.
    pub(crate) fn set(&self, rules: &[Rule]) {
        let mut chaos = self.chaos.lock().unwrap();
        chaos.rules = rules.iter().map(|rule| (rule.clone(), 0)).collect();
        chaos.burst = 0;
    }

    /// Returns what was broken since the last call.
    pub(crate) fn take_broken(&self) -> Vec<(Fault, String)> {
        std::mem::take(&mut self.chaos.lock().unwrap().broken)
    }

    /// Decides what happens to a request.
    fn fate(&self, operation: Operation, name: &str) -> Option<Fault> {
        let mut guard = self.chaos.lock().unwrap();
        let chaos = &mut *guard;
        if chaos.burst > 0 {
            chaos.burst -= 1;
            return Some(Fault::Burst);
        }
        let mut fate = None;
        for (rule, calls) in &mut chaos.rules {
            if rule.operation == operation && name.starts_with(rule.prefix) {
                let call = *calls;
                *calls += 1;
                if fate.is_none() && rule.calls.contains(&call) && chaos.random.below(rule.one_in) == 0 {
                    fate = Some(rule.fault);
                }
            }
        }
        if let Some(fault) = fate {
            chaos.broken.push((fault, name.to_owned()));
        }
        if fate == Some(Fault::Burst) {
            chaos.burst = BURST_REQUESTS;
        }
        fate
    }

    /// Runs a request under its fate.
    async fn run<T, F: Future<Output = Result<T>>>(
        &self,
        operation: Operation,
        name: &str,
        effect: impl FnOnce() -> F,
    ) -> Result<(T, Option<Fault>)> {
        let fate = self.fate(operation, name);
        let value = match fate {
            Some(Fault::Before) => Err(broken()),
            Some(Fault::Burst) => Err(busy()),
            Some(Fault::After) => effect().await.and(Err(broken())),
            Some(Fault::Delay) => {
                tokio::time::sleep(Duration::from_millis(3)).await;
                effect().await
            }
            _ => effect().await,
        };
        Ok((value?, fate))
    }
}

/// What the client of a bucket says when a connection breaks.
fn broken() -> Error {
    let source = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "injected: the connection was reset");
    Error::Generic { store: "Faulty", source: HttpError::new(HttpErrorKind::Interrupted, source).into() }
}

/// What it says when the server is busy.
fn busy() -> Error {
    let text = "Server returned non-2xx status code: 503 Slow Down: <Code>SlowDown</Code><Message>injected</Message>";
    Error::Generic { store: "Faulty", source: text.into() }
}

impl fmt::Debug for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = || self.inner.put_opts(at, payload.clone(), options.clone());
        let result = self.run(Operation::Put, at.as_ref(), put).await;
        self.chaos.lock().unwrap().put.push(at.clone());
        Ok(result?.0)
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let get = || self.inner.get_opts(at, options.clone());
        let (mut result, fate) = self.run(Operation::Get, at.as_ref(), get).await?;
        let is_changed = matches!(fate, Some(Fault::ShortBody | Fault::BreakOff | Fault::FlipBit));
        if !is_changed || options.head {
            return Ok(result);
        }
        let (meta, range) = (result.meta.clone(), result.range.clone());
        let (attributes, extensions) = (std::mem::take(&mut result.attributes), result.extensions.clone());
        let mut content = result.bytes().await?.to_vec();
        let place = self.chaos.lock().unwrap().random.below(content.len().max(1) as u64);
        let place = usize::try_from(place).unwrap();
        match fate {
            Some(Fault::ShortBody | Fault::BreakOff) => content.truncate(place),
            _ if !content.is_empty() => content[place] ^= 1 << (place % 8),
            _ => {}
        }
        let end = (fate == Some(Fault::BreakOff)).then(|| Err(broken()));
        let parts = [Ok(Bytes::from(content))].into_iter().chain(end);
        let payload = GetResultPayload::Stream(futures::stream::iter(parts).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, prefix) = (self.clone(), prefix.cloned());
        let listed = async move {
            let name = prefix.as_ref().map_or("", AsRef::as_ref).to_owned();
            let list = || this.inner.list(prefix.as_ref()).try_collect::<Vec<_>>();
            let (mut listed, fate) = this.run(Operation::List, &name, list).await?;
            if fate == Some(Fault::StaleList) {
                let chaos = this.chaos.lock().unwrap();
                let last = chaos.put.iter().rev().take(3).cloned().collect::<Vec<_>>();
                listed.retain(|meta| !last.contains(&meta.location));
            }
            let is_broken = fate == Some(Fault::BreakOff);
            if is_broken {
                listed.truncate(listed.len() / 2);
            }
            Ok::<_, Error>(futures::stream::iter(listed.into_iter().map(Ok).chain(is_broken.then(|| Err(broken())))))
        };
        futures::stream::once(listed).try_flatten().boxed()
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        at.and_then(move |path| {
            let this = this.clone();
            async move {
                this.run(Operation::Delete, path.as_ref(), || this.inner.delete(&path)).await?;
                Ok(path)
            }
        })
        .boxed()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put_multipart".into(), implementer: "Faulty".into() })
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".into(), implementer: "Faulty".into() })
    }
}
