//! The backup: from folders to a snapshot.
//!
//! One pass, bounded memory: a walker emits steps in tree order, readers read, cut and hash files side by side, and the
//! thread that calls [`backup`] owns the writer: it takes the steps in order, stores chunks that are new, and builds the
//! trees. What cannot be read is recorded in the manifest and reported; a snapshot that lacks something says so.
//! It knows the kloset only through [`crate::repo`], and neither terminal nor environment.

mod bucket;
mod explain;
mod heal;
mod journal;
mod manifest;
mod meta;
mod parent;
mod read;
mod resume;
mod rules;
mod scan;
mod select;
mod stream;
mod targets;
mod unsaid;
mod walk;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::monitor::Monitor;
use crate::repo::builder::TreeBuilder;
use crate::repo::chunker::Chunker;
use crate::repo::id::{ChunkId, SnapshotId};
use crate::repo::layout::{self, SnapshotName};
use crate::repo::snapshot::{ByteText, ERRORS_BYTES_MAX, ERRORS_MAX, Manifest, SourceError, Summary, TEXTS_BYTES_MAX};
use crate::repo::standing::Standing;
use crate::repo::tree::{FileContent, Node, NodeKind, TreeRef};
use crate::repo::writer::{AGAIN_MAX, Chunk, Writer, WriterOptions};
use crate::repo::{Repo, RepoError};
use crate::store::StoreError;
use bucket::Listing;
use journal::Record;
use parent::Parent;
use read::{Answer, FileRead, ReadContext, ReadError, ReadJob};
use resume::{Finished, Journal};
use scan::{SCANS_MAX, ScanJob, Scanner};
use select::Select;
use targets::{Selection, Targets};
use unsaid::Walked;
use walk::{Batch, Step, Stopped, Streams, Walk};

pub use bucket::BucketSource;
pub use explain::{Explanation, Reason, explain};
pub use heal::heal;
pub use rules::{PathRules, Rule, RuleError};
pub use select::{Excludes, IGNORE_FILE, Marker};
pub use stream::{Stream, StreamError, StreamSource};

/// Batches between the walker and the writer.
const BATCHES_AHEAD: usize = 8;
/// Memory of the reader that follows the parent snapshot.
const PARENT_READER_BYTES: usize = 48 << 20;

/// What to back up, and how.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    /// Files and folders; relative ones from the working directory.
    pub paths: Vec<PathBuf>,
    /// Files and folders of lists: one that is not there is noted, and the rest is backed up.
    pub listed: Vec<PathBuf>,
    /// Content that is no file.
    pub streams: Vec<Stream>,
    /// A bucket, and nothing else then.
    pub bucket: Option<BucketSource>,
    /// What is left out of them.
    pub excludes: Excludes,
    /// Stay on the file system of each path.
    pub one_file_system: bool,
    /// Tags of the snapshot.
    pub tags: Vec<String>,
    /// For people.
    pub description: String,
    /// The host the snapshot is of.
    pub host: String,
    /// The user who makes it.
    pub user: String,
    /// Read every file, whatever the parent snapshot says, and store again what has gone from the store.
    pub force: bool,
    /// The parent snapshot; without, the newest of the same host and paths.
    pub parent: Option<String>,
    /// When the snapshot is of, in milliseconds since 1970; without, now.
    pub time_unix_ms: Option<i64>,
    /// Makes no snapshot if it would hold what the parent holds.
    pub skip_if_unchanged: bool,
    /// Does everything but put anything into the store.
    pub dry_run: bool,
    /// A folder that is never entered: the kloset's own, if it is one.
    pub skip: Option<PathBuf>,
    /// Where it is noted which files were read, for the case that the backup is interrupted; never entered, either.
    pub journal_folder: Option<PathBuf>,
    /// How long whole packs wait at most until an index run speaks of them; without, longer in a long backup.
    pub list_every: Option<Duration>,
}

/// What became of a backup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The snapshot is there.
    Saved,
    /// There is no new one: it would hold what its parent holds.
    Unchanged,
    /// There is none, as was asked for.
    DryRun,
}

/// What a backup found, and its snapshot.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// Whether there is a snapshot.
    pub outcome: Outcome,
    /// Its name, or what it would have been.
    pub name: SnapshotName,
    /// Its manifest, likewise.
    pub manifest: Manifest,
    /// Paths that went away while the backup ran.
    pub vanished: u64,
    /// Files that changed whenever they were read.
    pub changed: u64,
    /// Files that an interrupted backup had read, and that were not read again.
    pub resumed: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The kloset failed.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// A rule cannot be understood.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A path is not there.
    #[error("\"{}\": {problem}", path.display())]
    Source {
        /// The path as given.
        path: PathBuf,
        /// Why it cannot be used.
        problem: String,
    },
    /// There is nothing to back up.
    #[error("there is nothing to back up: no path was given, or none that is there")]
    Nothing,
    /// A stream failed.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The bucket that is backed up cannot be read.
    #[error(transparent)]
    Bucket(Box<StoreError>),
    /// The bucket that is backed up has more objects than can be held in memory.
    #[error("there are too many objects for one backup: back up the prefixes of the bucket one by one")]
    TooManyObjects,
    /// The snapshot would have no room for what was asked to be noted in it.
    #[error(
        "paths, exclude rules, tags, description, host and user take {0} bytes together, at most {TEXTS_BYTES_MAX} fit"
    )]
    Texts(usize),
    /// Somebody asked it to stop.
    #[error("stopped: no snapshot was made; the next backup goes on from here")]
    Stopped,
}

/// Makes a snapshot. Blocks; call it from a thread that does not drive `runtime`.
///
/// If a prune took what it relied on it begins again, and finds what it has stored. A stream cannot be read twice.
///
/// # Errors
/// [`BackupError`]; there is no snapshot then.
pub fn backup(
    repo: &Repo,
    runtime: &Handle,
    options: &BackupOptions,
    monitor: &Arc<Monitor>,
) -> Result<BackupReport, BackupError> {
    let mut again = 0;
    loop {
        match attempt(repo, runtime, options, monitor, again > 0) {
            Err(BackupError::Repo(RepoError::Pruned(packs))) if again < AGAIN_MAX && options.streams.is_empty() => {
                again += 1;
                tracing::warn!("a prune took {packs} packs that this backup relied on: it begins again");
            }
            done => return done,
        }
    }
}

/// Looks which packs a parent snapshot may refer to; where one was told otherwise before, the index is read for that.
fn standing(
    repo: &Repo,
    options: &BackupOptions,
    reads_index: bool,
) -> impl Future<Output = Result<Standing, RepoError>> {
    let (repo, has_parent) = (repo.clone(), !options.force && repo.keys.can_read());
    async move {
        match (has_parent, reads_index) {
            (false, _) => Ok(Standing::default()),
            (true, false) => Standing::look(&repo).await,
            (true, true) => Standing::read(&repo).await,
        }
    }
}

/// Makes a snapshot, unless a prune takes what it relies on.
fn attempt(
    repo: &Repo,
    runtime: &Handle,
    options: &BackupOptions,
    monitor: &Arc<Monitor>,
    is_again: bool,
) -> Result<BackupReport, BackupError> {
    // Who reads everything again wants to know what the store has.
    let repo = &if options.force { repo.without_cache() } else { repo.clone() };
    let repo = &if options.dry_run { repo.without_puts() } else { repo.clone() };
    let begun_ms = repo.env.clock.unix_ms();
    let time_ms = options.time_unix_ms.unwrap_or(begun_ms);
    let listing = options.bucket.as_ref().map(|source| Listing::of(source, runtime, monitor)).transpose()?;
    let targets = match &listing {
        Some(listing) => Targets::of_bucket(listing.root()),
        None => Targets::new(&options.paths, &options.listed, &options.streams)?,
    };
    let name = SnapshotName { unix_ms: time_ms, id: SnapshotId(repo.env.entropy.bytes()) };
    let mut manifest = manifest::begin(options, &targets, name, monitor)?;
    let mut journal = Journal::new(repo, options, &manifest.paths, begun_ms);
    let select = select(options)?; // the journal's folder is there now and can be left out
    let standing = Arc::new(runtime.block_on(standing(repo, options, is_again))?); // before snapshots are listed
    let parent =
        if options.force { None } else { runtime.block_on(manifest::find_parent(repo, options, &manifest.paths))? };
    let mut writer = Writer::new(repo, runtime.clone(), WriterOptions { verify_packs: parent.is_none() });
    writer.rely_on(standing.clone());
    let finished = journal.take_over(&mut writer, options.force)?;
    parent.iter().for_each(|(_, parent)| monitor.expect(parent.summary.files, parent.summary.bytes));
    let root = parent.as_ref().map(|(_, manifest)| TreeRef::from(manifest.root));
    let mut taker = Taker::new(&mut writer, &mut journal, root, monitor);
    targets.missing.iter().for_each(|(path, error)| taker.lack(path, error.to_string()));
    let reader = root.map(|_| repo.reader(PARENT_READER_BYTES));
    let parent_tree = Parent { reader, runtime: runtime.clone(), standing };
    let context = read_context(repo, monitor);
    let around = Surroundings { select, parent: parent_tree, root, finished, context, time_ms };
    let taken = match &listing {
        Some(listing) => bucket::take(listing, around, &mut taker),
        None => take_folders(repo, options, &targets, around, &mut taker),
    };
    let walked = match taken {
        Ok(walked) => walked,
        Err(error) => {
            // What was stored so far is found by the next backup, if it can still be put.
            if matches!(error, BackupError::Stopped | BackupError::Stream(_) | BackupError::Bucket(_)) {
                writer.flush()?;
            }
            return Err(error);
        }
    };
    let Taker { trees, mut summary, errors, errors_total, incomplete, vanished, changed, resumed, .. } = taker;
    walked.add_to(&mut summary);
    walked.packs.iter().for_each(|pack| writer.use_pack(*pack));
    walked.lists.iter().for_each(|(bytes, at)| writer.use_list(*bytes, *at));
    let root = trees.finish(&mut writer)?;
    writer.flush()?;

    let outcome = match &parent {
        _ if options.dry_run => Outcome::DryRun,
        Some((_, parent)) if options.skip_if_unchanged && parent.root.id == root.id => Outcome::Unchanged,
        _ => Outcome::Saved,
    };
    manifest.parent = parent.map(|p| p.0.id);
    let counts = writer.counts();
    manifest.summary = Summary {
        chunks_new: counts.chunks_new,
        bytes_new: counts.bytes_new,
        bytes_stored: counts.bytes_stored,
        ..summary
    };
    (manifest.root, manifest.index) = (root.into(), writer.runs().to_vec());
    (manifest.incomplete, manifest.errors, manifest.errors_total) = (incomplete, errors, errors_total);
    let took_ms = repo.env.clock.unix_ms() - begun_ms;
    manifest.end = layout::timestamp(time_ms + took_ms).to_string();
    if outcome != Outcome::Unchanged {
        writer.commit(name, &manifest)?;
    }
    journal.remove();
    let duration = Duration::from_millis(u64::try_from(took_ms).unwrap_or(0));
    Ok(BackupReport { outcome, name, manifest, vanished, changed, resumed, duration })
}

/// What a walk needs to know besides what it walks.
struct Surroundings<'a> {
    select: Select<'a>,
    parent: Parent,
    /// The parent snapshot's root.
    root: Option<TreeRef>,
    /// What an interrupted backup has read.
    finished: Option<Finished>,
    context: ReadContext,
    /// When the snapshot is of.
    time_ms: i64,
}

/// Walks folders and reads streams.
fn take_folders(
    repo: &Repo,
    options: &BackupOptions,
    targets: &Targets,
    around: Surroundings<'_>,
    taker: &mut Taker<'_>,
) -> Result<Walked, BackupError> {
    let Surroundings { select, parent, root, finished, context, time_ms } = around;
    let monitor = context.monitor.clone();
    let (batches, steps) = crossbeam_channel::bounded(BATCHES_AHEAD);
    let (jobs, work) = crossbeam_channel::bounded(BATCHES_AHEAD);
    let (scans, to_scan) = crossbeam_channel::bounded(SCANS_MAX);
    let selection = Selection::of(targets);
    let streams = Streams { all: &options.streams, context, node: stream::node(time_ms) };
    let walk = Walk { selection, streams, select, parent, root, finished, monitor, batches, jobs, scans };
    take_walk(repo, walk, Queues { steps, work, to_scan }, taker)
}

/// What the walk sends: steps to the taker, files to the readers, folders to those who scan ahead.
struct Queues {
    steps: Receiver<Batch>,
    work: Receiver<ReadJob>,
    to_scan: Receiver<ScanJob>,
}

/// Runs the walk and those who work for it in threads of their own, and takes its steps in this one.
fn take_walk(repo: &Repo, walk: Walk<'_>, queues: Queues, taker: &mut Taker<'_>) -> Result<Walked, BackupError> {
    let Queues { steps, work, to_scan } = queues;
    let monitor = walk.monitor.clone();
    std::thread::scope(|scope| {
        for _ in 0..repo.env.parallelism {
            let context = read_context(repo, &monitor);
            let scanner = Scanner { parent: walk.parent.clone(), fixed: walk.select.fixed().clone() };
            let (work, to_scan) = (work.clone(), to_scan.clone());
            scope.spawn(move || read::work(&context, &work));
            scope.spawn(move || scanner.work(&to_scan));
        }
        drop((work, to_scan));
        let walker = scope.spawn(move || walk.run());
        let taken = taker.take_all(steps);
        if taken.is_err() {
            monitor.stop();
        }
        let walked = walker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match walked {
            Err(Stopped(Some(failed))) => Err(failed.into()),
            Ok(walked) if !monitor.stopped() => taken.map(|()| walked),
            _ => taken.and(Err(BackupError::Stopped)),
        }
    })
}

fn read_context(repo: &Repo, monitor: &Arc<Monitor>) -> ReadContext {
    let chunker = Chunker::new(repo.header.chunker, repo.keys.write_keys().chunker_seed);
    ReadContext { keys: repo.keys.clone(), chunker, monitor: monitor.clone() }
}

fn select(options: &BackupOptions) -> Result<Select<'_>, RuleError> {
    let identity = |path: &PathBuf| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let skip = options.skip.iter().chain(&options.journal_folder).filter_map(identity).collect();
    Select::new(&options.excludes, options.one_file_system, skip)
}

/// What a snapshot says of a file that changed whenever it was read.
const CHANGED: &str = "changed while it was read, what is stored may be a mixture";
/// A file with several names: its content, its chunks, its attributes.
type LinkedFile = (FileContent, Vec<(ChunkId, u32)>, meta::Xattrs);
/// The files of a batch that are still to be taken, and the buffer that holds their content.
type ReadFiles = (std::vec::IntoIter<Result<FileRead, ReadError>>, Vec<u8>);

/// Takes the steps of the walk in order.
struct Taker<'a> {
    writer: &'a mut Writer,
    journal: &'a mut Journal,
    trees: TreeBuilder,
    monitor: &'a Monitor,
    /// Files with several names, by identity, from their first name on.
    links: HashMap<(u64, u64), Option<LinkedFile>>,
    summary: Summary,
    errors: Vec<SourceError>,
    /// What they take in the manifest.
    errors_bytes: usize,
    errors_total: u64,
    incomplete: bool,
    vanished: u64,
    changed: u64,
    resumed: u64,
}

impl<'a> Taker<'a> {
    fn new(writer: &'a mut Writer, journal: &'a mut Journal, root: Option<TreeRef>, monitor: &'a Monitor) -> Self {
        Self {
            writer,
            journal,
            trees: TreeBuilder::new(root),
            monitor,
            links: HashMap::new(),
            summary: Summary::default(),
            errors: Vec::new(),
            errors_bytes: 0,
            errors_total: 0,
            incomplete: false,
            vanished: 0,
            changed: 0,
            resumed: 0,
        }
    }

    fn take_all(&mut self, batches: Receiver<Batch>) -> Result<(), BackupError> {
        for batch in batches {
            self.take(batch)?;
        }
        self.journal.end();
        Ok(())
    }

    fn take(&mut self, batch: Batch) -> Result<(), BackupError> {
        let mut files: Option<ReadFiles> = None;
        for step in batch.steps {
            match step {
                Step::Enter(node, parent) => self.trees.enter(node, parent, self.writer)?,
                Step::Leave => self.trees.leave(self.writer)?,
                Step::Node(node) => self.trees.node(node, self.writer)?,
                Step::Link { node, path } => self.take_link(node, &path)?,
                Step::Unreadable(path, error) => self.note(&path, error),
                Step::Stream { node, known } => match self.first_answer(&batch.answers)? {
                    Answer::End(Ok(read)) => self.take_stream(node, known, read)?,
                    _ => return Err(BackupError::Stopped),
                },
                Step::Read { node, path, known } => {
                    let read = match &mut files {
                        Some((files, buffer)) => (files.next().ok_or(BackupError::Stopped)?, &buffer[..]),
                        None => match self.first_answer(&batch.answers)? {
                            Answer::Batch(read, buffer) => {
                                let (files, buffer) = files.insert((read.into_iter(), buffer));
                                (files.next().ok_or(BackupError::Stopped)?, &buffer[..])
                            }
                            Answer::End(read) => (read, &[][..]),
                            Answer::Chunk(..) => return Err(BackupError::Stopped),
                        },
                    };
                    self.take_read(node, &path, known, read)?;
                }
                Step::Finished { node, known, record } => self.take_finished(node, known, *record)?,
            }
            self.journal.list(self.writer)?;
        }
        Ok(())
    }

    /// Takes the chunks of a large file as they come, and returns what ends them.
    fn first_answer(&mut self, answers: &Receiver<Answer>) -> Result<Answer, BackupError> {
        loop {
            match answers.recv().map_err(|_| BackupError::Stopped)? {
                Answer::Chunk(id, content) => {
                    self.writer.add(id, Chunk::Given(content))?;
                    self.journal.list(self.writer)?;
                }
                answer => return Ok(answer),
            }
        }
    }

    fn take_read(
        &mut self,
        mut node: Node,
        path: &[u8],
        known: bool,
        (read, buffer): (Result<FileRead, ReadError>, &[u8]),
    ) -> Result<(), BackupError> {
        let shared = node.identity.links > 1;
        let identity = (node.identity.device, node.identity.inode);
        let read = match read {
            Ok(read) => read,
            // What others read before it was stopped is still taken, so that nobody has to read it again.
            Err(ReadError::System(Errno::INTR)) if self.monitor.stopped() => return Ok(()),
            Err(error) => {
                if shared {
                    self.links.insert(identity, None);
                }
                self.note(path, error);
                return Ok(());
            }
        };
        if let Some(error) = read.xattr_error {
            self.note(path, error);
        }
        if read.changed {
            self.changed += 1;
            self.record(path, CHANGED.to_owned());
        }
        for ((id, _), place) in read.chunks.iter().zip(&read.places) {
            self.writer.add(*id, Chunk::Lent(&buffer[place.clone()]))?;
        }
        if !read.changed {
            self.journal.note(path, &read);
        }
        (node.mtime, node.ctime) = (read.mtime, read.ctime);
        let content = FileContent { bytes: read.bytes, holes: read.holes, ..FileContent::default() };
        self.summary.files_new += u64::from(!known);
        self.summary.files_changed += u64::from(known);
        if shared {
            self.links.insert(identity, Some((content.clone(), read.chunks.clone(), read.xattrs.clone())));
        }
        self.add_file(node, content, read.chunks, read.xattrs)
    }

    /// Takes a file that an earlier run read; its attributes are in the node.
    fn take_finished(&mut self, mut node: Node, known: bool, record: Record) -> Result<(), BackupError> {
        self.resumed += 1;
        self.summary.files_new += u64::from(!known);
        self.summary.files_changed += u64::from(known);
        let content = FileContent { bytes: record.bytes, holes: record.holes, ..FileContent::default() };
        let xattrs = std::mem::take(&mut node.xattrs);
        if node.identity.links > 1 {
            let linked = (content.clone(), record.chunks.clone(), xattrs.clone());
            self.links.insert((node.identity.device, node.identity.inode), Some(linked));
        }
        self.add_file(node, content, record.chunks, xattrs)
    }

    fn take_stream(&mut self, node: Node, known: bool, read: FileRead) -> Result<(), BackupError> {
        self.summary.files_new += u64::from(!known);
        self.summary.files_changed += u64::from(known);
        let content = FileContent { bytes: read.bytes, ..FileContent::default() };
        self.add_file(node, content, read.chunks, Vec::new())
    }

    fn take_link(&mut self, node: Node, path: &[u8]) -> Result<(), BackupError> {
        match self.links.get(&(node.identity.device, node.identity.inode)).cloned() {
            Some(Some((content, chunks, xattrs))) => self.add_file(node, content, chunks, xattrs),
            _ if self.monitor.stopped() => Ok(()),
            _ => {
                self.note(path, Errno::IO); // its first name could not be read and said why
                Ok(())
            }
        }
    }

    fn add_file(
        &mut self,
        mut node: Node,
        content: FileContent,
        chunks: Vec<(ChunkId, u32)>,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), BackupError> {
        self.summary.files += 1;
        self.summary.bytes += content.bytes;
        node.kind = NodeKind::File(content);
        node.xattrs = xattrs;
        Ok(self.trees.file(node, chunks, self.writer)?)
    }

    /// Records what could not be read; what went away meanwhile is recorded but lacks nothing.
    fn note(&mut self, path: &[u8], error: impl Into<ReadError>) {
        match error.into() {
            ReadError::System(Errno::NOENT | Errno::STALE) => {
                self.vanished += 1;
                self.record(path, "vanished while the backup ran".to_owned());
            }
            ReadError::System(error) => self.lack(path, error.to_string()),
            ReadError::Store(message) => self.lack(path, message),
        }
    }

    /// Records what belongs into the snapshot and is not in it.
    fn lack(&mut self, path: &[u8], message: String) {
        self.incomplete = true;
        self.record(path, message);
    }

    fn record(&mut self, path: &[u8], message: String) {
        self.errors_total += 1;
        if self.errors.len() < ERRORS_MAX {
            let error = SourceError { path: ByteText(path.to_vec()), message: message.clone() };
            let bytes = error.encoded_bytes();
            if self.errors_bytes + bytes <= ERRORS_BYTES_MAX {
                self.errors_bytes += bytes;
                self.errors.push(error);
            }
        }
        self.monitor.trouble(path, message);
    }
}
