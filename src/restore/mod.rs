//! Restoring: from a snapshot to files in a folder, or to objects in a bucket (`restore::bucket`), or to
//! an archive ([`archive()`]).
//!
//! One walk in the order of the trees, which is the order of the packs: folders are made as they come, small files go
//! in batches, large ones chunk by chunk, their content is fetched by many tasks at once within a bound of bytes, and a
//! few threads write. Nothing that lies in the target is followed: every name is opened relative to its folder, links
//! never. A file whose content is damaged is not left behind; it is reported and the restore goes on. Owners, modes,
//! attributes and times come last, those of a folder after all that is in it.

mod archive;
mod bucket;
mod context;
mod copies;
mod item;
mod meta;
mod plan;
mod report;
mod target;
mod walk;
mod write;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::monitor::Monitor;
use crate::repo::layout::SnapshotName;
use crate::repo::path::{self, Found};
use crate::repo::snapshot::ByteText;
use crate::repo::tree::{NodeKind, Page, TreeRef};
use crate::repo::{Reader, Repo, RepoError};
use crate::store::StoreError;
use context::{Context, Source};
use item::Item;
use plan::Plan;
use target::Dir;

pub use archive::{ArchiveError, ArchiveFormat, ArchiveOptions, ArchiveReport, NotArchived, archive};
pub use bucket::{BucketRestoreOptions, restore_to_bucket};
pub use report::{Failure, Loss, LossKind, RestoreReport, Unheld, UnheldPaths};

/// Memory of the reader: two windows of readahead and the frames behind them.
const READER_BYTES: usize = 112 << 20;
/// The most threads that write: more only wait for each other in the file system.
const WRITERS_MAX: usize = 8;
/// The fewest threads that write: while one waits for the disk another goes on.
const WRITERS_MIN: usize = 2;

/// What to do about a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overwrite {
    /// Nothing is restored if anything is in the way.
    #[default]
    Never,
    /// It is replaced.
    Always,
    /// It is replaced if its size or its time differ.
    IfChanged,
}

/// What to restore, and how.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// What of it: a folder's content, or one entry; everything without.
    pub path: Option<Vec<u8>>,
    /// Where to: made if it is not there.
    pub target: PathBuf,
    /// What to do about files that are there already.
    pub overwrite: Overwrite,
    /// Only look.
    pub dry_run: bool,
}

/// Why nothing more was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The kloset failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// There is something where files should go; nothing was written.
    #[error(
        "{total} paths are in the way, \"{}\" first: choose another folder, or what to --overwrite",
        first_of(paths)
    )]
    InTheWay {
        /// The first of them, in the snapshot.
        paths: Vec<ByteText>,
        /// How many there are.
        total: u64,
    },
    /// The target cannot be written.
    #[error("\"{}\": {source}", path.escape_ascii())]
    Target {
        /// The path.
        path: Vec<u8>,
        /// What the system says.
        source: std::io::Error,
    },
    /// The bucket that is restored into failed.
    #[error(transparent)]
    Bucket(Box<StoreError>),
    /// The bucket that is restored into has more objects than can be held in memory.
    #[error("there are too many objects in the target: choose a prefix that has fewer, or `--overwrite always`")]
    TooManyObjects,
    /// Somebody asked it to stop.
    #[error("stopped: what is there so far is whole, `--overwrite if-changed` goes on from it")]
    Stopped,
}

fn first_of(paths: &[ByteText]) -> String {
    paths.first().map(|p| p.0.escape_ascii().to_string()).unwrap_or_default()
}

/// Where a restore begins.
enum Start {
    /// The content of a folder, and the folder's own node if it has one.
    Folder(TreeRef, Option<Item>),
    /// One entry.
    Entry(Arc<Page>),
}

/// Restores. Blocks; call it from a thread that does not drive `runtime`.
///
/// # Errors
/// [`RestoreError`]. What cannot be restored by itself is no error but in the report.
pub fn restore(
    repo: &Repo,
    runtime: &Handle,
    options: &RestoreOptions,
    monitor: &Arc<Monitor>,
) -> Result<RestoreReport, RestoreError> {
    let reader = repo.reader(READER_BYTES);
    let (start, base) = runtime.block_on(find_start(repo, &reader, options.snapshot, options.path.as_deref()))?;
    let plan = Plan::of(&reader, runtime, &start, options)?;
    if options.overwrite == Overwrite::Never && plan.in_the_way_total > 0 && !options.dry_run {
        let paths = plan.in_the_way.iter().map(|path| ByteText(below(&base, path))).collect();
        return Err(RestoreError::InTheWay { paths, total: plan.in_the_way_total });
    }
    if options.dry_run {
        return Ok(plan.report(&base));
    }
    let source = Source { reader: reader.clone(), runtime: runtime.clone(), keys: repo.keys.clone() };
    let context = Arc::new(Context::new(options, base, source, monitor.clone()));
    let node = match &start {
        Start::Folder(_, node) => node.clone(),
        Start::Entry(_) => None,
    };
    let root = Dir::open_root(&context, &options.target, node)?;
    let writers = repo.env.parallelism.clamp(WRITERS_MIN, WRITERS_MAX);
    let (work, todo) = crossbeam_channel::unbounded();
    let walked = std::thread::scope(|scope| {
        for _ in 0..writers {
            let todo = todo.clone();
            scope.spawn(|| write::work(&context, todo));
        }
        drop(todo);
        walk::Walk::new(&context, work).run(&start, &root)
    });
    drop(root);
    walked?;
    context.take_fatal()?;
    if monitor.stopped() {
        return Err(RestoreError::Stopped);
    }
    Ok(context.tally.report())
}

/// Finds what is to be restored, and the path in the snapshot of what lands directly in the target.
async fn find_start(
    repo: &Repo,
    reader: &Reader,
    snapshot: SnapshotName,
    path: Option<&[u8]>,
) -> Result<(Start, Vec<u8>), RepoError> {
    let root: TreeRef = repo.manifest(snapshot).await?.root.into();
    let Some(wanted) = path else { return Ok((Start::Folder(root, None), Vec::new())) };
    let mut walked: Vec<&[u8]> = wanted.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").collect();
    let node = match path::resolve(reader, root, wanted).await? {
        Found::Root(root) => return Ok((Start::Folder(root, None), Vec::new())),
        Found::Node(node) => node,
    };
    let tree = match &node.kind {
        NodeKind::Directory(tree) => Some(*tree),
        _ => None,
    };
    let page = Arc::new(Page::Leaf(vec![*node]));
    let start = match tree {
        Some(tree) => Start::Folder(tree, Some(Item::new(page, 0))),
        None => {
            walked.pop();
            Start::Entry(page)
        }
    };
    Ok((start, walked.iter().flat_map(|c| [b"/", *c].concat()).collect()))
}

/// Joins the path of the restored folder and a path below it.
fn below(base: &[u8], path: &[u8]) -> Vec<u8> {
    [base, b"/", path].concat()
}
