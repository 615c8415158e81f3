//! The backup: from folders to a snapshot.
//!
//! One pass, bounded memory: a walker emits steps in tree order, readers read, cut and hash files side by side, and the
//! thread that calls [`backup`] owns the writer: it takes the steps in order, stores chunks that are new, and builds the
//! trees. What cannot be read is recorded in the manifest and reported; a snapshot that lacks something says so.
//! It knows the kloset only through [`crate::repo`], and neither terminal nor environment.

mod explain;
mod meta;
mod parent;
mod read;
mod rules;
mod scan;
mod select;
mod unsaid;
mod walk;

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::Receiver;
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::monitor::Monitor;
use crate::repo::builder::TreeBuilder;
use crate::repo::chunker::Chunker;
use crate::repo::id::{ChunkId, SnapshotId};
use crate::repo::layout::{self, SnapshotName};
use crate::repo::snapshot::{ByteText, ERRORS_BYTES_MAX, ERRORS_MAX, Manifest, SourceError, Summary, TEXTS_BYTES_MAX};
use crate::repo::tree::{FileContent, Node, NodeKind, TreeRef};
use crate::repo::writer::{Chunk, Writer, WriterOptions};
use crate::repo::{Repo, RepoError};
use parent::Parent;
use read::{Answer, FileRead, ReadContext, ReadJob};
use scan::{SCANS_MAX, ScanJob};
use select::Select;
use unsaid::Walked;
use walk::{Batch, Step, Walk};

pub use explain::{Explanation, Reason, explain};
pub use rules::{Rule, RuleError};
pub use select::{Excludes, IGNORE_FILE, Marker};

/// Batches between the walker and the writer.
const BATCHES_AHEAD: usize = 8;
/// Memory of the reader that follows the parent snapshot.
const PARENT_READER_BYTES: usize = 48 << 20;

/// What to back up, and how.
#[derive(Clone, Debug, Default)]
pub struct BackupOptions {
    /// Files and folders; relative ones from the working directory.
    pub paths: Vec<PathBuf>,
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
    /// A folder that is never entered: the kloset's own, if it is one.
    pub skip: Option<PathBuf>,
}

/// A snapshot that was made.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// Its name.
    pub name: SnapshotName,
    /// Its manifest.
    pub manifest: Manifest,
    /// Paths that went away while the backup ran.
    pub vanished: u64,
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
    /// The snapshot would have no room for what was asked to be noted in it.
    #[error(
        "paths, exclude rules, tags, description, host and user take {0} bytes together, at most {TEXTS_BYTES_MAX} fit"
    )]
    Texts(usize),
    /// Somebody asked it to stop.
    #[error("stopped: no snapshot was made; what was stored so far is used by the next backup")]
    Stopped,
}

/// Makes a snapshot. Blocks; call it from a thread that does not drive `runtime`.
///
/// # Errors
/// [`BackupError`]; there is no snapshot then.
pub fn backup(
    repo: &Repo,
    runtime: &Handle,
    options: &BackupOptions,
    monitor: &Arc<Monitor>,
) -> Result<BackupReport, BackupError> {
    // Who reads everything again wants to know what the store has.
    let repo = &if options.force { repo.without_cache() } else { repo.clone() };
    let begun_ms = repo.env.clock.unix_ms();
    let select = select(options)?;
    let targets = targets(&options.paths)?;
    let name = SnapshotName { unix_ms: begun_ms, id: SnapshotId(repo.env.entropy.bytes()) };
    let mut manifest = manifest(options, &targets, name)?;
    let parent = if options.force { None } else { runtime.block_on(find_parent(repo, options, &targets))? };
    let mut writer = Writer::new(repo, runtime.clone(), WriterOptions { verify_packs: parent.is_none() });
    let root = parent.as_ref().map(|(_, manifest)| TreeRef::from(manifest.root));

    let (batches, steps) = crossbeam_channel::bounded(BATCHES_AHEAD);
    let (jobs, work) = crossbeam_channel::bounded(BATCHES_AHEAD);
    let (scans, to_scan) = crossbeam_channel::bounded(SCANS_MAX);
    let walk = Walk {
        targets: targets.clone(),
        select,
        parent: Parent { reader: root.map(|_| repo.reader(PARENT_READER_BYTES)), runtime: runtime.clone() },
        root,
        monitor: monitor.clone(),
        batches,
        jobs,
        scans,
    };
    let mut taker = Taker::new(&mut writer, root, monitor);
    let taken = take_walk(repo, walk, Queues { steps, work, to_scan }, &mut taker);
    let walked = match taken {
        Ok(walked) => walked,
        Err(error) => {
            // What was stored so far is found by the next backup, if it can still be put.
            if matches!(error, BackupError::Stopped) {
                writer.flush()?;
            }
            return Err(error);
        }
    };
    let Taker { trees, mut summary, errors, errors_total, incomplete, vanished, .. } = taker;
    walked.add_to(&mut summary);
    walked.packs.iter().for_each(|pack| writer.use_pack(*pack));
    let root = trees.finish(&mut writer)?;
    writer.flush()?;

    manifest.parent = parent.map(|p| p.0.id);
    let counts = writer.counts();
    manifest.root = root.into();
    manifest.summary = Summary {
        chunks_new: counts.chunks_new,
        bytes_new: counts.bytes_new,
        bytes_stored: counts.bytes_stored,
        ..summary
    };
    manifest.index = writer.runs().to_vec();
    (manifest.incomplete, manifest.errors, manifest.errors_total) = (incomplete, errors, errors_total);
    manifest.end = layout::timestamp(repo.env.clock.unix_ms()).to_string();
    writer.commit(name, &manifest)?;
    Ok(BackupReport { name, manifest, vanished })
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
            let chunker = Chunker::new(repo.header.chunker, repo.keys.write_keys().chunker_seed);
            let context = ReadContext { keys: repo.keys.clone(), chunker, monitor: monitor.clone() };
            let (work, parent, to_scan) = (work.clone(), walk.parent.clone(), to_scan.clone());
            scope.spawn(move || read::work(&context, &work));
            scope.spawn(move || scan::work(&parent, &to_scan));
        }
        drop((work, to_scan));
        let walker = scope.spawn(move || walk.run());
        let taken = taker.take_all(steps);
        if taken.is_err() {
            monitor.stop();
        }
        let walked = walker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match walked {
            Ok(walked) if !monitor.stopped() => taken.map(|()| walked),
            _ => taken.and(Err(BackupError::Stopped)),
        }
    })
}

/// Returns the manifest as far as it is known before anything is read.
fn manifest(options: &BackupOptions, targets: &[Vec<Vec<u8>>], name: SnapshotName) -> Result<Manifest, BackupError> {
    let nowhere = crate::repo::snapshot::Root {
        id: ChunkId([0; 32]),
        bytes: 0,
        session: crate::repo::id::SessionId([0; 32]),
        pack: 0,
        frame: 0,
        chunk_offset: 0,
    };
    let manifest = Manifest {
        version: 1,
        id: name.id,
        time: layout::timestamp(name.unix_ms).to_string(),
        end: String::new(),
        host: options.host.clone(),
        user: options.user.clone(),
        program: concat!("kloset-mount ", env!("CARGO_PKG_VERSION")).into(),
        paths: targets.iter().map(|t| ByteText(absolute(t))).collect(),
        tags: options.tags.clone(),
        description: options.description.clone(),
        excludes: options.excludes.rules.iter().map(|rule| ByteText(rule.text.clone().into_bytes())).collect(),
        parent: None,
        root: nowhere,
        summary: Summary::default(),
        index: Vec::new(),
        incomplete: false,
        errors: Vec::new(),
        errors_total: 0,
    };
    let bytes = manifest.encoded_bytes();
    if bytes > TEXTS_BYTES_MAX { Err(BackupError::Texts(bytes)) } else { Ok(manifest) }
}

fn select(options: &BackupOptions) -> Result<Select<'_>, RuleError> {
    let identity = |path: &PathBuf| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    Select::new(&options.excludes, options.one_file_system, options.skip.iter().filter_map(identity).collect())
}

/// Makes the paths absolute, takes `.` and `..` out, and sees that each is there.
fn targets(paths: &[PathBuf]) -> Result<Vec<Vec<Vec<u8>>>, BackupError> {
    let mut out = Vec::new();
    for path in paths {
        let bad = |error: Errno| BackupError::Source { path: path.clone(), problem: error.to_string() };
        rustix::fs::lstat(path).map_err(bad)?;
        out.push(components(path)?);
    }
    out.sort();
    out.dedup();
    Ok(out)
}

/// Returns the names on the way to a path from the top, without `.` and `..`.
fn components(path: &Path) -> Result<Vec<Vec<u8>>, BackupError> {
    let bad = |error: std::io::Error| BackupError::Source { path: path.to_owned(), problem: error.to_string() };
    let mut components = Vec::new();
    for component in std::path::absolute(path).map_err(bad)?.components() {
        match component {
            Component::Normal(name) => components.push(name.as_bytes().to_vec()),
            Component::ParentDir => drop(components.pop()),
            _ => {}
        }
    }
    Ok(components)
}

fn absolute(target: &[Vec<u8>]) -> Vec<u8> {
    if target.is_empty() { b"/".to_vec() } else { target.iter().flat_map(|c| [b"/", &c[..]].concat()).collect() }
}

/// Finds the parent: the snapshot that was named, or the newest one of the same host and paths.
async fn find_parent(
    repo: &Repo,
    options: &BackupOptions,
    targets: &[Vec<Vec<u8>>],
) -> Result<Option<(SnapshotName, Manifest)>, RepoError> {
    if !repo.keys.can_read() {
        return Ok(None);
    }
    if let Some(spec) = &options.parent {
        let name = repo.resolve(spec).await?;
        return Ok(Some((name, repo.manifest(name).await?)));
    }
    let paths: Vec<_> = targets.iter().map(|t| ByteText(absolute(t))).collect();
    let names = repo.snapshots().await?;
    for newest in names.rchunks(PARENTS_AT_ONCE) {
        for (name, manifest) in repo.manifests(newest).await.into_iter().rev() {
            match manifest {
                Ok(manifest) if manifest.host == options.host && manifest.paths == paths => {
                    return Ok(Some((name, manifest)));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!("a snapshot is passed over: {error}"),
            }
        }
    }
    Ok(None)
}

/// Manifests looked at together when the parent is sought.
const PARENTS_AT_ONCE: usize = 8;

/// A file with several names: its content, its chunks, its attributes.
type LinkedFile = (FileContent, Vec<(ChunkId, u32)>, meta::Xattrs);
/// The files of a batch that are still to be taken, and the buffer that holds their content.
type ReadFiles = (std::vec::IntoIter<Result<FileRead, Errno>>, Vec<u8>);

/// Takes the steps of the walk in order.
struct Taker<'a> {
    writer: &'a mut Writer,
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
}

impl<'a> Taker<'a> {
    fn new(writer: &'a mut Writer, root: Option<TreeRef>, monitor: &'a Monitor) -> Self {
        Self {
            writer,
            trees: TreeBuilder::new(root),
            monitor,
            links: HashMap::new(),
            summary: Summary::default(),
            errors: Vec::new(),
            errors_bytes: 0,
            errors_total: 0,
            incomplete: false,
            vanished: 0,
        }
    }

    fn take_all(&mut self, batches: Receiver<Batch>) -> Result<(), BackupError> {
        for batch in batches {
            self.take(batch)?;
        }
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
            }
        }
        Ok(())
    }

    /// Takes the chunks of a large file as they come, and returns what ends them.
    fn first_answer(&mut self, answers: &Receiver<Answer>) -> Result<Answer, BackupError> {
        loop {
            match answers.recv().map_err(|_| BackupError::Stopped)? {
                Answer::Chunk(id, content) => {
                    self.writer.add(id, Chunk::Given(content))?;
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
        (read, buffer): (Result<FileRead, Errno>, &[u8]),
    ) -> Result<(), BackupError> {
        let shared = node.identity.links > 1;
        let identity = (node.identity.device, node.identity.inode);
        let read = match read {
            Ok(read) => read,
            Err(Errno::INTR) if self.monitor.stopped() => return Err(BackupError::Stopped),
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
            self.monitor.trouble(path, "changed while it was read".into());
        }
        for ((id, _), place) in read.chunks.iter().zip(&read.places) {
            self.writer.add(*id, Chunk::Lent(&buffer[place.clone()]))?;
        }
        (node.mtime, node.ctime) = (meta::mtime(&read.stat), meta::ctime(&read.stat));
        let content = FileContent { bytes: read.bytes, holes: read.holes, ..FileContent::default() };
        self.summary.files_new += u64::from(!known);
        self.summary.files_changed += u64::from(known);
        if shared {
            self.links.insert(identity, Some((content.clone(), read.chunks.clone(), read.xattrs.clone())));
        }
        self.add_file(node, content, read.chunks, read.xattrs)
    }

    fn take_link(&mut self, node: Node, path: &[u8]) -> Result<(), BackupError> {
        match self.links.get(&(node.identity.device, node.identity.inode)).cloned() {
            Some(Some((content, chunks, xattrs))) => self.add_file(node, content, chunks, xattrs),
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
    fn note(&mut self, path: &[u8], error: Errno) {
        let vanished = matches!(error, Errno::NOENT | Errno::STALE);
        let message = if vanished {
            self.vanished += 1;
            "vanished while the backup ran".to_owned()
        } else {
            self.incomplete = true;
            error.to_string()
        };
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
