//! The view of snapshots against a reference model: what the source's own file system said when each was made.
//!
//! Random changes of a source, backups, reads and remounts; after each step that touches the kloset everything that the
//! newest snapshot shows is compared, at the end everything of all. What was found once is a named test below.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use kloset_mount::backup::BackupOptions;
use kloset_mount::fs::attr::{Attr, Kind as Shown};
use kloset_mount::fs::view::{Line, ROOT};
use kloset_mount::fs::{FsError, View, ViewOptions};
use kloset_mount::repo::layout::SnapshotName;
use proptest::prelude::*;

use crate::support::kloset::{Kloset, options, runtime};
use crate::support::random::{Random, noise, size};
use crate::support::stores::Recording;
use crate::support::tree::{Dump, Entry, Kind, Source, assert_same, set_mode, set_mtime};

/// Where things are: the components of a path below the source.
type At = Vec<Vec<u8>>;

/// One step.
#[derive(Clone, Debug)]
enum Op {
    /// Writes a file of noise that follows from the number, so that contents meet again.
    Write(At, usize, u64),
    /// Writes a file that begins with a hole.
    Sparse(At, u64),
    Folder(At),
    HardLink(At, At),
    Symlink(At, Vec<u8>),
    Fifo(At),
    Remove(At),
    Rename(At, At),
    Mtime(At, i64),
    Mode(At, u32),
    Xattr(At, Vec<u8>),
    Backup {
        force: bool,
    },
    /// Looks at the newest snapshot, in another manner each time.
    Look(u64),
    Remount,
}

/// What a snapshot must show.
struct Model {
    name: SnapshotName,
    dump: Dump,
    contents: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct World {
    store: Recording,
    kloset: Kloset,
    view: View,
    source: Source,
    models: Vec<Model>,
}

fn mount(kloset: &Kloset) -> View {
    runtime()
        .block_on(View::new(kloset.0.clone(), ViewOptions { memory_bytes: 1 << 20, ..ViewOptions::default() }))
        .unwrap()
}

impl World {
    fn new() -> Self {
        let store = Recording::in_memory();
        let kloset = Kloset::create(store.clone());
        let view = mount(&kloset);
        Self { store, kloset, view, source: Source::new(), models: Vec::new() }
    }

    fn at(&self, at: &At) -> PathBuf {
        self.source.at(at.join(&b'/'))
    }

    /// Returns the path if it is there, so that a change of it can succeed; what cannot be done is no step.
    fn existing(&self, at: &At) -> Option<PathBuf> {
        Some(self.at(at)).filter(|path| path.symlink_metadata().is_ok())
    }

    /// Returns the path with the folders above it made, if they can be.
    fn place(&self, at: &At) -> Option<PathBuf> {
        let path = self.at(at);
        fs::create_dir_all(path.parent()?).ok()?;
        Some(path)
    }

    fn step(&mut self, op: &Op) {
        match op {
            Op::Backup { force } => self.back_up(*force),
            Op::Look(seed) => self.look(*seed),
            Op::Remount => self.remount(),
            change => drop(self.change(change)),
        }
    }

    fn change(&self, op: &Op) -> Option<()> {
        match op {
            Op::Write(at, bytes, seed) => {
                // A fifo would wait for a reader, a link would lead elsewhere.
                let path = self.place(at)?;
                let free = path.symlink_metadata().map_or(true, |meta| meta.is_file());
                fs::write(Some(path).filter(|_| free)?, noise(*seed, *bytes)).ok()?;
            }
            Op::Sparse(at, hole) => {
                let path = self.place(at)?;
                let name = path.strip_prefix(self.source.path()).ok()?.to_str()?.to_owned();
                if !path.exists() {
                    self.source.sparse(&name, &[(*hole, b"behind the hole")], hole + 20_000);
                }
            }
            Op::Folder(at) => fs::create_dir(self.place(at)?).ok()?,
            Op::HardLink(from, to) => fs::hard_link(self.existing(from)?, self.place(to)?).ok()?,
            Op::Symlink(at, target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), self.place(at)?).ok()?,
            Op::Fifo(at) => {
                let (path, mode) = (self.place(at)?, rustix::fs::Mode::from_raw_mode(0o600));
                rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).ok()?;
            }
            Op::Remove(at) => {
                let path = self.existing(at)?;
                if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
                    .ok()?;
            }
            Op::Rename(from, to) => fs::rename(self.existing(from)?, self.place(to)?).ok()?,
            Op::Mtime(at, seconds) => set_mtime(&self.existing(at)?, *seconds, 123_456_789),
            Op::Mode(at, mode) => {
                let path = self.existing(at).filter(|path| !path.is_symlink())?;
                set_mode(&path, *mode | 0o700);
            }
            Op::Xattr(at, value) => xattr::set(self.existing(at)?, "user.model", value).ok()?,
            Op::Backup { .. } | Op::Look(_) | Op::Remount => {}
        }
        Some(())
    }

    fn back_up(&mut self, force: bool) {
        let report = self.kloset.backup_with(BackupOptions { force, ..options(self.source.path()) }).unwrap();
        assert!(!report.manifest.incomplete, "{:?}", report.manifest.errors);
        let dump = self.source.scan();
        let files = dump.iter().filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }));
        let contents = files.map(|(path, _)| (path.clone(), fs::read(self.source.at(path)).unwrap())).collect();
        assert_same(&dump, &self.kloset.dump(report.name, self.source.path()).unwrap());
        self.models.push(Model { name: report.name, dump, contents });
        self.view = mount(&self.kloset);
        self.look(report.manifest.summary.bytes);
    }

    fn look(&self, seed: u64) {
        if let Some(model) = self.models.len().checked_sub(1) {
            self.compare(model, seed);
        }
    }

    fn remount(&mut self) {
        self.kloset = Kloset::open(self.store.clone()).unwrap();
        self.view = mount(&self.kloset);
        for model in 0..self.models.len() {
            self.compare(model, model as u64);
        }
    }

    /// Compares everything that the view shows of one snapshot with its model.
    #[track_caller]
    fn compare(&self, model: usize, seed: u64) {
        let mut walk = Walk {
            view: &self.view,
            model: &self.models[model],
            random: Random::new(seed),
            first: HashMap::new(),
            counted: Vec::new(),
            found: Dump::new(),
        };
        runtime().block_on(walk.all(model, self.models.len(), self.source.path()));
        assert_same(&self.models[model].dump, &walk.found);
        for number in walk.counted {
            self.view.forget(number, 1);
        }
        assert_eq!(self.view.inodes_len(), 0, "all lookups were taken back");
    }
}

/// A walk through a snapshot as a kernel would do it.
struct Walk<'a> {
    view: &'a View,
    model: &'a Model,
    random: Random,
    first: HashMap<u64, Vec<u8>>,
    /// Each number as often as it was looked up.
    counted: Vec<u64>,
    found: Dump,
}

impl Walk<'_> {
    async fn all(&mut self, model: usize, models: usize, folder: &Path) {
        let snapshots = self.lookup(ROOT, b"snapshots").await.expect("it is always there").number;
        let listed = self.list(snapshots).await;
        assert_eq!(listed.len(), models, "{:?}", self.model.name);
        let mut attr = listed[model].1;
        for component in folder.iter().skip(1) {
            attr = self.lookup(attr.number, component.as_bytes()).await.expect("the source's own path is there");
        }
        self.entry(attr, Vec::new()).await;
    }

    async fn lookup(&mut self, parent: u64, name: &[u8]) -> Option<Attr> {
        let found = self.view.lookup(parent, name).await.unwrap().attr;
        self.counted.extend(found.map(|attr| attr.number));
        found
    }

    /// Lists a directory with a small buffer, from where each reply says that it goes on.
    async fn list(&mut self, number: u64) -> Vec<(Vec<u8>, Attr)> {
        let (mut lines, mut offset) = (Vec::new(), 0);
        loop {
            let mut room = 1 + self.random.below(6);
            let (before, from) = (lines.len(), offset);
            let mut take = |line: &Line<'_>| {
                if room == 0 {
                    return true;
                }
                room -= 1;
                offset = line.next;
                lines.push((line.name.to_vec(), line.attr));
                false
            };
            self.view.readdir(number, from, true, &mut take).await.unwrap();
            if lines.len() == before {
                break;
            }
        }
        assert!(lines[0].0 == b"." && lines[0].1.number == number && lines[1].0 == b"..");
        self.counted.extend(lines[2..].iter().map(|(_, attr)| attr.number));
        lines.split_off(2)
    }

    fn entry(&mut self, attr: Attr, path: Vec<u8>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            assert_eq!(self.view.getattr(attr.number).await.unwrap().attr, attr);
            let kind = match attr.kind {
                Shown::File => self.file(attr, &path).await,
                Shown::Directory => Kind::Directory,
                Shown::Symlink => Kind::Symlink(self.view.readlink(attr.number).await.unwrap()),
                Shown::Fifo => Kind::Fifo,
                other => panic!("{other:?}"),
            };
            let links = (kind != Kind::Directory)
                .then(|| (self.first.entry(attr.number).or_insert_with(|| path.clone()).clone(), attr.links));
            let mut xattrs = Vec::new();
            let names = self.view.listxattr(attr.number).await.unwrap();
            for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
                xattrs.push((name.to_vec(), self.view.getxattr(attr.number, name).await.unwrap()));
            }
            let entry = Entry {
                kind,
                mode: u32::from(attr.mode),
                owner: (attr.uid, attr.gid),
                mtime: (attr.mtime.seconds, attr.mtime.nanos),
                ctime: Some((attr.ctime.seconds, attr.ctime.nanos)),
                xattrs,
                links,
            };
            self.found.insert(path.clone(), entry);
            if attr.kind == Shown::Directory {
                self.folder(attr, path).await;
            } else {
                let inside = self.view.lookup(attr.number, b"x").await;
                assert!(matches!(inside, Err(FsError::NotDirectory)), "{inside:?}");
            }
        })
    }

    async fn folder(&mut self, attr: Attr, path: Vec<u8>) {
        let listed = self.list(attr.number).await;
        assert!(listed.is_sorted_by(|a, b| a.0 < b.0), "{listed:?}");
        for (name, shown) in listed {
            assert_eq!(self.lookup(attr.number, &name).await, Some(shown));
            let below = if path.is_empty() { name } else { [&path[..], b"/", &name].concat() };
            self.entry(shown, below).await;
        }
        for missing in [&b"aaaa"[..], b"-\xff", b"\0", &[b'x'; 255]] {
            assert_eq!(self.lookup(attr.number, missing).await, None);
        }
        let too_long = self.view.lookup(attr.number, &[b'x'; 256]).await;
        assert!(matches!(too_long, Err(FsError::NameTooLong)), "{too_long:?}");
        let read = self.view.read(attr.number, 0, 10).await;
        assert!(matches!(read, Err(FsError::IsDirectory)), "{read:?}");
    }

    async fn file(&mut self, attr: Attr, path: &[u8]) -> Kind {
        let nothing = Vec::new();
        let content = self.model.contents.get(path).unwrap_or(&nothing);
        let bytes = content.len() as u64;
        assert_eq!(attr.bytes, bytes);
        for _ in 0..4 {
            let offset = self.random.below(bytes + 100);
            let size = u32::try_from(self.random.below(20_000)).unwrap();
            let clamp = |at: u64| usize::try_from(at.min(bytes)).unwrap();
            let expected = &content[clamp(offset)..clamp(offset + u64::from(size))];
            let read = self.view.read(attr.number, offset, size).await.unwrap();
            assert!(read == expected, "\"{}\": {size} bytes at {offset}", path.escape_ascii());
        }
        assert!(self.view.read(attr.number, u64::MAX, u32::MAX).await.unwrap().is_empty());
        let whole = self.view.read(attr.number, 0, u32::MAX).await.unwrap();
        let (mut holes, mut at) = (Vec::new(), 0);
        while let Ok(hole) = self.view.seek(attr.number, at, true).await {
            if hole >= bytes {
                break;
            }
            at = self.view.seek(attr.number, hole, false).await.unwrap_or(bytes);
            holes.push((hole, at - hole));
        }
        Kind::File { bytes: attr.bytes, hash: blake3::hash(&whole), holes }
    }
}

/// Runs the steps, and a last remount that compares all of it.
#[track_caller]
fn check(ops: &[Op]) {
    let mut world = World::new();
    for op in ops.iter().chain(&[Op::Backup { force: false }, Op::Remount]) {
        world.step(op);
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let text = |pattern: &'static str| pattern.prop_map(String::into_bytes);
    prop_oneof![
        10 => text("[ab]"),
        10 => text("[ab-]{1,3}"),
        1 => Just(b"\xff\xfe".to_vec()),
        1 => Just(vec![b'n'; 255]),
    ]
}

fn at() -> impl Strategy<Value = At> {
    proptest::collection::vec(name(), 1..=5)
}

fn op() -> impl Strategy<Value = Op> {
    let sizes = proptest::sample::select(vec![0, 1, 1023, 1024, 1025, 2048, 8191, 8192, 8193, 40_000, 300_000]);
    let target = proptest::collection::vec(b'0'.., 1..40); // neither a point nor a slash: never out of the source
    prop_oneof![
        12 => (at(), sizes, 0..6_u64).prop_map(|(at, bytes, seed)| Op::Write(at, bytes, seed)),
        1 => (at(), 1..100_000_u64).prop_map(|(at, hole)| Op::Sparse(at, hole)),
        2 => at().prop_map(Op::Folder),
        3 => (at(), at()).prop_map(|(from, to)| Op::HardLink(from, to)),
        2 => (at(), target).prop_map(|(at, target)| Op::Symlink(at, target)),
        1 => at().prop_map(Op::Fifo),
        3 => at().prop_map(Op::Remove),
        3 => (at(), at()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => (at(), -2_000_000_000..4_000_000_000_i64).prop_map(|(at, seconds)| Op::Mtime(at, seconds)),
        1 => (at(), 0..0o10000_u32).prop_map(|(at, mode)| Op::Mode(at, mode)),
        1 => (at(), proptest::collection::vec(any::<u8>(), 0..20)).prop_map(|(at, value)| Op::Xattr(at, value)),
        4 => prop::bool::weighted(0.2).prop_map(|force| Op::Backup { force }),
        1 => any::<u64>().prop_map(Op::Look),
        1 => Just(Op::Remount),
    ]
}

#[test]
fn a_view_shows_what_the_source_held_whatever_was_done() {
    let cases = u32::try_from(size(96, 5000)).unwrap();
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let ops = proptest::collection::vec(op(), 1..60);
    let run = runner.run(&ops, |ops| {
        check(&ops);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
}

fn path(text: &str) -> At {
    text.split('/').map(|name| name.as_bytes().to_vec()).collect()
}

#[test]
fn a_name_that_was_a_file_is_a_folder_in_the_next_snapshot() {
    check(&[
        Op::Write(path("a"), 1024, 1),
        Op::Backup { force: false },
        Op::Remove(path("a")),
        Op::Write(path("a/b"), 8193, 1),
        Op::Backup { force: false },
        Op::Rename(path("a/b"), path("b")),
        Op::Look(1),
    ]);
}

#[test]
fn one_more_name_of_an_unchanged_file_is_one_more_name_of_it() {
    check(&[
        Op::Write(path("b/a"), 40_000, 1),
        Op::Backup { force: false },
        Op::HardLink(path("b/a"), path("a")),
        Op::Backup { force: false },
        Op::Remove(path("a")),
        Op::Backup { force: true },
    ]);
}

#[test]
fn a_file_replaced_by_another_of_the_same_size_and_time_is_the_other() {
    check(&[
        Op::Write(path("a"), 1024, 1),
        Op::Write(path("b"), 1024, 2),
        Op::Mtime(path("a"), -5),
        Op::Mtime(path("b"), -5),
        Op::Backup { force: false },
        Op::Rename(path("b"), path("a")),
        Op::Backup { force: false },
    ]);
}
