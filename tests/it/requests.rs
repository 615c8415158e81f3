//! What things cost in requests: the same for a small kloset and for a huge one.

use kloset_mount::fs::view::ROOT;
use kloset_mount::fs::{View, ViewOptions};
use kloset_mount::repo::READER_BYTES_DEFAULT;
use kloset_mount::repo::builder::TreeBuilder;
use kloset_mount::repo::id::SnapshotId;
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::snapshot::Manifest;
use kloset_mount::repo::tree::{FileContent, Identity, Name, Node, NodeKind, Owner, Time};
use kloset_mount::repo::writer::{Chunk, Writer, WriterOptions};

use crate::support::kloset::{Kloset, options, runtime};
use crate::support::random::noise;
use crate::support::stores::{Operation, Recording};
use crate::support::tree::{Source, dump_snapshot};

/// Files in each folder of a forged snapshot.
const FILES_A_FOLDER: usize = 100;

fn node(name: &str, kind: NodeKind) -> Node {
    Node {
        name: Name::new(name.as_bytes()).unwrap(),
        kind,
        mode: 0o755,
        owner: Owner::default(),
        mtime: Time::default(),
        ctime: Time::default(),
        identity: Identity::default(),
        xattrs: Vec::new(),
    }
}

/// Writes a snapshot of `packs` files, each in a pack and an index run of its own.
fn forge(kloset: &Kloset, pattern: &Manifest, packs: usize) -> SnapshotName {
    let mut writer = Writer::new(&kloset.0, runtime().handle().clone(), WriterOptions::default());
    let mut trees = TreeBuilder::new(None);
    let name = SnapshotName { unix_ms: kloset.0.env.clock.unix_ms(), id: SnapshotId(kloset.0.env.entropy.bytes()) };
    for folder in 0..packs.div_ceil(FILES_A_FOLDER) {
        let placeholder = NodeKind::Symlink(Vec::new());
        trees.enter(node(&format!("{folder:05}"), placeholder), None, &mut writer).unwrap();
        for file in folder * FILES_A_FOLDER..packs.min((folder + 1) * FILES_A_FOLDER) {
            let content = noise(file as u64, 100);
            let id = kloset.0.keys.chunk_id(&content);
            writer.add(id, Chunk::Lent(&content)).unwrap();
            let kind = NodeKind::File(FileContent { bytes: 100, ..FileContent::default() });
            trees.file(node(&format!("{file:05}"), kind), vec![(id, 100)], &mut writer).unwrap();
            writer.flush().unwrap();
        }
        trees.leave(&mut writer).unwrap();
    }
    let root = trees.finish(&mut writer).unwrap();
    writer.flush().unwrap();
    let manifest = Manifest { id: name.id, root: root.into(), index: writer.runs().to_vec(), ..pattern.clone() };
    writer.commit(name, &manifest).unwrap();
    name
}

/// Lists a directory of a view.
async fn names(view: &View, number: u64) -> Vec<(Vec<u8>, u64)> {
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let (before, from) = (names.len(), offset);
        let mut take = |line: &kloset_mount::fs::view::Line<'_>| {
            names.push((line.name.to_vec(), line.attr.number));
            offset = line.next;
            false
        };
        view.readdir(number, from, true, &mut take).await.unwrap();
        if names.len() == before {
            names.retain(|(name, _)| name != b"." && name != b"..");
            return names;
        }
    }
}

/// Opens a kloset, mounts it as a view, lists the newest snapshot and reads a file; returns the requests of each step.
fn requests(recording: &Recording, name: SnapshotName) -> [Vec<(Operation, String)>; 3] {
    recording.take_requests();
    let kloset = Kloset::open(recording.clone()).unwrap();
    runtime().block_on(async {
        let view = View::new(kloset.0.clone(), ViewOptions::default()).await.unwrap();
        let opened = recording.take_requests();
        let snapshots = view.lookup(ROOT, b"snapshots").await.unwrap().attr.unwrap();
        let (_, newest) = names(&view, snapshots.number).await.pop().unwrap();
        let folders = names(&view, newest).await;
        assert!(!folders.is_empty(), "{name:?}");
        let listed = recording.take_requests();
        let files = names(&view, folders[0].1).await;
        let content = view.read(files[0].1, 0, 1000).await.unwrap();
        assert_eq!(content, noise(0, 100));
        [opened, listed, recording.take_requests()]
    })
}

fn shape(requests: &[(Operation, String)]) -> Vec<(Operation, String)> {
    let folder = |name: &str| name.split('/').next().unwrap().to_owned();
    let mut shape: Vec<_> = requests.iter().map(|(operation, name)| (*operation, folder(name))).collect();
    shape.sort();
    shape
}

#[test]
fn opening_and_listing_cost_the_same_for_10_packs_and_for_10_000() {
    let mut shapes = Vec::new();
    for packs in [10, 10_000] {
        let recording = Recording::in_memory();
        let kloset = Kloset::create(recording.clone());
        let pattern = kloset.backup(Source::random(1, 3).path()).manifest;
        let name = forge(&kloset, &pattern, packs);
        assert!(recording.put_since(0, "packs/").len() > packs);
        let steps = requests(&recording, name);
        for (_, asked) in steps.iter().flatten() {
            assert!(!asked.starts_with("index"), "{asked}");
        }
        assert!(steps.iter().flatten().all(|r| *r != (Operation::List, "packs".to_owned())));
        shapes.push(steps.map(|step| shape(&step)));
    }
    assert_eq!(shapes[0][..2], shapes[1][..2]);
    let [opened, listed, read] = &shapes[1];
    assert!(opened.len() <= 4, "header, slots, a slot, snapshots: {opened:?}");
    assert!(listed.len() <= 2, "a manifest and a pack of trees: {listed:?}");
    assert!(read.len() <= 2, "a pack of data, perhaps one of trees: {read:?}");
}

#[test]
fn a_second_identical_backup_asks_for_no_index_and_no_pack_of_data() {
    let recording = Recording::in_memory();
    Kloset::create(recording.clone());
    let source = Source::random(2, 200);
    let asked = source.quietly(|| {
        // Opened each time: the clock of one that was opened later is ahead, and the newest snapshot is the parent.
        Kloset::open(recording.clone()).unwrap().backup(source.path());
        let second = Kloset::open(recording.clone()).unwrap();
        recording.take_requests();
        let report = second.backup_with(options(source.path())).unwrap();
        assert!(report.manifest.parent.is_some());
        shape(&recording.take_requests())
    });
    let count = |operation, folder: &str| asked.iter().filter(|r| **r == (operation, folder.to_owned())).count();
    assert_eq!((count(Operation::Get, "index"), count(Operation::Get, "pending")), (0, 0), "{asked:?}");
    assert_eq!(
        (count(Operation::List, "index"), count(Operation::List, "pending")),
        (2, 2),
        "first and last: {asked:?}"
    );
    assert_eq!((count(Operation::Get, "packs"), count(Operation::Put, "packs")), (1, 0), "{asked:?}");
    assert_eq!(count(Operation::Put, "snapshots"), 1);
    assert!(asked.len() <= 8, "{asked:?}");
}

#[test]
fn reading_a_large_file_costs_a_few_requests_a_pack() {
    let recording = Recording::in_memory();
    let kloset = Kloset::create(recording.clone());
    let source = Source::new();
    source.file("large", noise(1, 40 << 20));
    let report = kloset.backup(source.path());
    let packs = recording.put_since(0, "packs/").len();
    recording.take_requests();
    runtime().block_on(async {
        let reader = kloset.0.reader(READER_BYTES_DEFAULT);
        dump_snapshot(&reader, report.manifest.root.into(), source.path()).await.unwrap();
    });
    let gets = recording.take_requests().into_iter().filter(|(_, name)| name.starts_with("packs")).count();
    assert!(gets <= 12 * packs, "{gets} requests for {packs} packs");
}
