//! Restoring into a bucket: every file becomes an object.
//!
//! One walk in the order of the trees; small files are put whole, large ones in parts, many at once within a bound of
//! bytes. What came from a bucket gets its key and its metadata back ([`crate::repo::bucket_names`]), anything else is put
//! under its path. The target is listed first where it matters what is there: without `--overwrite` nothing is put if
//! anything is in the way. What a bucket cannot hold is counted.

mod put;
mod walk;

use std::collections::HashMap;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::report::{PATHS_MAX, RestoreReport, Tally};
use super::{Overwrite, READER_BYTES, RestoreError, Start, below, find_start};
use crate::monitor::Monitor;
use crate::repo::bucket_names as names;
use crate::repo::layout::SnapshotName;
use crate::repo::path::leaf;
use crate::repo::snapshot::ByteText;
use crate::repo::tree::Node;
use crate::repo::{Repo, RepoError};
use crate::store::Bucket;
use put::Puts;
use walk::Walk;

/// No more objects of the target are held in memory: about 3 GB.
const OBJECTS_MAX: usize = 16 << 20;

/// What to restore into a bucket, and how.
#[derive(Clone, Debug)]
pub struct BucketRestoreOptions {
    /// The snapshot.
    pub snapshot: SnapshotName,
    /// What of it: a folder's content, or one entry. Without: a bucket that it is a backup of, or everything.
    pub path: Option<Vec<u8>>,
    /// Where to.
    pub bucket: Bucket,
    /// What the keys of the kloset itself begin with, if it is in that bucket: nothing is put there.
    pub keep_off: Option<String>,
    /// What to do about objects that are there already.
    pub overwrite: Overwrite,
    /// Only look.
    pub dry_run: bool,
}

/// What is there already: sizes and entity tags by key.
type There = HashMap<String, (u64, String)>;

/// Restores into a bucket. Blocks; call it from a thread that does not drive `runtime`.
///
/// # Errors
/// [`RestoreError`]. What cannot be restored by itself is no error but in the report.
pub fn restore_to_bucket(
    repo: &Repo,
    runtime: &Handle,
    options: &BucketRestoreOptions,
    monitor: &Arc<Monitor>,
) -> Result<RestoreReport, RestoreError> {
    let reader = repo.reader(READER_BYTES);
    let path = match &options.path {
        Some(path) => Some(path.clone()),
        None => runtime.block_on(bucket_of(repo, options.snapshot))?,
    };
    let (start, base) = runtime.block_on(find_start(repo, &reader, options.snapshot, path.as_deref()))?;
    let there = if options.overwrite == Overwrite::Always { There::new() } else { list(&options.bucket, runtime)? };
    let places = Places::below(&base, options);
    let walk = |is_plan| Walk { reader: &reader, runtime, places: &places, monitor, is_plan };
    if options.dry_run || (options.overwrite == Overwrite::Never && !there.is_empty()) {
        let (mut plan, tally) = (Plan { options, there: &there, report: RestoreReport::default() }, Tally::default());
        walk(true).run(&start, &tally, &mut |node, key, path| {
            plan.look(node, key, path);
            Ok(())
        })?;
        let found = RestoreReport { unheld: tally.report().unheld, ..plan.report };
        if options.dry_run {
            return Ok(found);
        }
        if found.in_the_way_total > 0 {
            return Err(RestoreError::InTheWay { paths: found.in_the_way, total: found.in_the_way_total });
        }
    }
    let tally = Arc::new(Tally::default());
    let mut puts = Puts::new(&reader, runtime, options, (&tally, monitor));
    let walked = walk(false).run(&start, &tally, &mut |node, key, path| {
        if is_unchanged(node, key, options, &there) {
            super::report::count(&tally.unchanged, 1);
            return Ok(());
        }
        puts.put(node, key, path)
    });
    let ended = puts.finish(walked.is_ok());
    ended.and(walked)?;
    if monitor.stopped() { Err(RestoreError::Stopped) } else { Ok(tally.report()) }
}

/// Returns the path of the bucket that a snapshot is a backup of, if it is one: keys are then as they were.
async fn bucket_of(repo: &Repo, snapshot: SnapshotName) -> Result<Option<Vec<u8>>, RepoError> {
    let paths = repo.manifest(snapshot).await?.paths;
    let [ByteText(path)] = &paths[..] else { return Ok(None) };
    let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).take(names::ABOVE_KEYS).collect();
    let is_bucket = names.len() == names::ABOVE_KEYS && names.first() == Some(&names::TOP);
    Ok(is_bucket.then(|| names.iter().flat_map(|name| [b"/", *name].concat()).collect()))
}

fn list(bucket: &Bucket, runtime: &Handle) -> Result<There, RestoreError> {
    let mut there = There::new();
    let listed = runtime.block_on(bucket.list(|object| {
        there.insert(object.key, (object.bytes, object.etag));
        there.len() <= OBJECTS_MAX
    }));
    listed.map_err(|error| RestoreError::Bucket(error.into()))?;
    if there.len() > OBJECTS_MAX { Err(RestoreError::TooManyObjects) } else { Ok(there) }
}

/// Tells whether an object may stay: it has the size and the entity tag that the snapshot knows.
fn is_unchanged(node: &Node, key: &str, options: &BucketRestoreOptions, there: &There) -> bool {
    let etag = node.xattrs.iter().find(|(name, _)| name == names::ETAG.as_bytes());
    options.overwrite == Overwrite::IfChanged
        && there.get(key).zip(etag).is_some_and(|((bytes, there), (_, etag))| {
            Some(*bytes) == walk::bytes_of(node) && !etag.is_empty() && etag == there.as_bytes()
        })
}

/// What would be done.
struct Plan<'a> {
    options: &'a BucketRestoreOptions,
    there: &'a There,
    report: RestoreReport,
}

impl Plan<'_> {
    fn look(&mut self, node: &Node, key: &str, path: &[u8]) {
        if is_unchanged(node, key, self.options, self.there) {
            self.report.unchanged += 1;
            return;
        }
        self.report.files += 1;
        self.report.bytes += walk::bytes_of(node).unwrap_or_default();
        if self.there.contains_key(key) {
            self.report.in_the_way_total += 1;
            if self.report.in_the_way.len() < PATHS_MAX {
                self.report.in_the_way.push(ByteText(path.to_vec()));
            }
        }
    }
}

/// Returns how many names below a path still stand above keys; `None` for what is of no bucket.
fn plain_names(base: &[u8]) -> Option<usize> {
    let mut above = base.split(|byte| *byte == b'/').skip(1);
    let is_bucket = above.next() == Some(names::TOP);
    is_bucket.then(|| names::ABOVE_KEYS.saturating_sub(1 + above.count()))
}

/// Where things go: from places in the snapshot to keys.
struct Places<'a> {
    /// The path in the snapshot of what lands directly in the target.
    base: &'a [u8],
    /// Names on the way that spell no key, if it is of a bucket at all.
    plain: Option<usize>,
    prefix: &'a str,
    keep_off: Option<&'a str>,
}

impl<'a> Places<'a> {
    fn below(base: &'a [u8], options: &'a BucketRestoreOptions) -> Self {
        let plain = plain_names(base);
        Self { base, plain, prefix: options.bucket.prefix(), keep_off: options.keep_off.as_deref() }
    }

    /// Returns the key of what is at `path` below the base, or why it has none; `None` for an object that would have
    /// nothing but the prefix for a key.
    fn key(&self, path: &[u8]) -> Result<Option<String>, &'static str> {
        let mut names = path.split(|byte| *byte == b'/');
        let key = match self.plain {
            Some(plain) => {
                let above: Vec<&[u8]> = names.by_ref().take(plain).collect();
                let below = names::key(names).ok_or("its path is that of no key")?;
                let above = String::from_utf8(above.join(&b'/')).map_err(|_| NOT_TEXT)?;
                if plain == 0 { below } else { format!("{above}/{below}") }
            }
            None => String::from_utf8(path.to_vec()).map_err(|_| NOT_TEXT)?,
        };
        if key.is_empty() {
            return Ok(None);
        }
        let key = format!("{}{key}", self.prefix);
        if key.len() > names::KEY_BYTES_MAX {
            return Err("its key would be longer than 1024 bytes");
        }
        if self.keep_off.is_some_and(|kloset| key.starts_with(kloset)) {
            return Err("it would lie among the objects of the kloset itself");
        }
        Ok(Some(key))
    }

    /// Returns the path in the snapshot.
    fn in_snapshot(&self, path: &[u8]) -> Vec<u8> {
        below(self.base, path)
    }
}

const NOT_TEXT: &str = "its path is not UTF-8, as keys have to be";

/// Returns the nodes that a restore begins with, if it is of one entry.
fn first_nodes(start: &Start) -> &[Node] {
    match start {
        Start::Entry(page) => leaf(page),
        Start::Folder(..) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(base: &str, path: &str, expected: Result<Option<&str>, &str>) {
        let plain = plain_names(base.as_bytes());
        let places = Places { base: base.as_bytes(), plain, prefix: "p/", keep_off: Some("p/k/") };
        assert_eq!(places.key(path.as_bytes()), expected.map(|key| key.map(str::to_owned)), "{base} {path}");
    }

    #[test]
    fn paths_of_buckets_become_their_keys_and_others_stay_paths() {
        check("/s3:/h/b", "a/%empty/%%c", Ok(Some("p/a//%c")));
        check("/s3:/h/b/a", "%empty/c", Ok(Some("p//c")));
        check("/s3:/h/b/a", "%object", Ok(None));
        check("/s3:/h/b/a", "%empty", Ok(None));
        check("/s3:/h", "b/a/%object", Ok(Some("p/b/a")));
        check("/s3:", "h/b/%empty/x", Ok(Some("p/h/b//x")));
        check("", "home/%empty/x", Ok(Some("p/home/%empty/x")));
        check("/s3:/h/b", "k/x", Err("it would lie among the objects of the kloset itself"));
        check("/s3:/h/b", "%what", Err("its path is that of no key"));
        check("", &"x".repeat(1023), Err("its key would be longer than 1024 bytes"));
    }
}
