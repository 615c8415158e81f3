//! The bucket as a store that the product can use: every request goes through the gate.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::bucket::{Answer, Op};
use crate::gate::Gate;

/// Objects of one deletion that are on their way at once.
const DELETIONS: usize = 8;

/// The names and folders that were asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    pub(crate) names: BTreeSet<String>,
    pub(crate) folders: BTreeSet<String>,
}

impl Asked {
    /// Tells whether what was asked could be answered otherwise once this object has changed.
    pub(crate) fn depends_on(&self, name: &str) -> bool {
        self.names.contains(name) || self.folders.iter().any(|folder| name.starts_with(folder))
    }
}

/// The store as one party sees it.
#[derive(Clone)]
pub(crate) struct SimStore {
    pub(crate) gate: Gate,
    pub(crate) party: usize,
    /// Its threads wait at the gate, not its futures.
    pub(crate) blocks: bool,
    pub(crate) asked: Arc<Mutex<Asked>>,
}

impl SimStore {
    async fn run(&self, op: Op) -> Result<Answer> {
        match self.blocks {
            true => self.gate.step(self.party, &op),
            false => self.gate.request(self.party, op).await,
        }
    }

    /// Lets others go first.
    pub(crate) async fn pause(&self) {
        drop(self.run(Op::Pause).await); // fails where the party crashed, which the next request shows
    }

    async fn delete_one(&self, at: Path) -> Result<Path> {
        self.run(Op::Delete { name: at.to_string() }).await?;
        Ok(at)
    }
}

impl fmt::Debug for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

impl fmt::Display for SimStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimStore")
    }
}

#[async_trait]
impl ObjectStore for SimStore {
    async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        // Copied: what a pack reserved to grow into would stay reserved for as long as the bucket lives.
        let content = Bytes::copy_from_slice(&Bytes::from(payload));
        let is_new = matches!(options.mode, PutMode::Create);
        self.run(Op::Put { name: at.to_string(), content, is_new }).await?;
        Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        self.asked.lock().unwrap().names.insert(at.to_string());
        let Answer::Object(content, meta) = self.run(Op::Get { name: at.to_string() }).await? else {
            unreachable!("a get brings an object")
        };
        let range = match options.range {
            None => 0..meta.size,
            Some(range) => range.as_range(meta.size).map_err(|e| Error::Generic { store: "sim", source: e.into() })?,
        };
        let part = |at: u64| usize::try_from(at).unwrap();
        let content = content.slice(part(range.start)..part(range.end));
        let payload = GetResultPayload::Stream(futures::stream::iter([Ok(content)]).boxed());
        Ok(GetResult { payload, meta, range, attributes: Default::default(), extensions: Default::default() })
    }

    fn list(&self, folder: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, folder) = (self.clone(), folder.map_or(String::new(), ToString::to_string));
        this.asked.lock().unwrap().folders.insert(folder.clone());
        let page = move |behind: Option<Option<String>>| {
            let (this, folder) = (this.clone(), folder.clone());
            async move {
                let Some(behind) = behind else { return Ok::<_, Error>(None) };
                let Answer::Page(page, is_more) = this.run(Op::List { folder, behind }).await? else {
                    unreachable!("a list brings a page")
                };
                let last = page.last().filter(|_| is_more).map(|meta| Some(meta.location.to_string()));
                Ok(Some((futures::stream::iter(page.into_iter().map(Ok)), last)))
            }
        };
        futures::stream::try_unfold(Some(None), page).try_flatten().boxed()
    }

    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        let delete = move |at: Result<Path>| {
            let this = this.clone();
            async move { this.delete_one(at?).await }.boxed()
        };
        at.map(delete).buffered(DELETIONS).boxed()
    }

    async fn put_multipart_opts(&self, _: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Err(Error::NotImplemented { operation: "put_multipart".into(), implementer: "SimStore".into() })
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        Err(Error::NotImplemented { operation: "list_with_delimiter".into(), implementer: "SimStore".into() })
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotImplemented { operation: "copy".into(), implementer: "SimStore".into() })
    }
}
