//! Golden klosets of format version 1.
//!
//! Each folder below `tests/fixtures/v1` holds a kloset, its passphrase and what must be read from it. Two claims: every
//! one opens and reads as expected, and with seeded randomness and a fixed clock today's writer makes it again to the
//! byte. They are never edited; a change of the format adds `v2`. `KLOSET_BLESS=1` writes those that are missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kloset_mount::cpu::Cpu;
use kloset_mount::env::Env;
use kloset_mount::repo::builder::TreeBuilder;
use kloset_mount::repo::header::{ChunkerSettings, CompressionSettings};
use kloset_mount::repo::id::{PendingId, SnapshotId};
use kloset_mount::repo::keyslot::{Argon2, KeySlot, NewSlot, SlotSecret};
use kloset_mount::repo::layout::{SnapshotName, pending_name, slot_name};
use kloset_mount::repo::path::{Nodes, leaf};
use kloset_mount::repo::pending::PendingList;
use kloset_mount::repo::snapshot::{ByteText, Manifest, SourceError, Summary};
use kloset_mount::repo::tree::{FileContent, Identity, Name, Node, NodeKind, Owner, Time, TreeRef};
use kloset_mount::repo::writer::{Chunk, Writer, WriterOptions};
use kloset_mount::repo::{CreateOptions, Reader, Repo};
use kloset_mount::store::{S3Options, Store, StoreLocation};
use serde_json::{Value, json};

const PASSPHRASE: &str = "correct horse battery staple";
/// 2026-01-02 03:04:05.678 UTC.
const CLOCK_UNIX_MS: i64 = 1_767_323_045_678;
const CHEAP: Argon2 = Argon2 { memory_kib: 256, passes: 1, lanes: 1 };
const SMALL_CHUNKS: ChunkerSettings = ChunkerSettings { min_bytes: 1024, avg_bytes: 4096, max_bytes: 16_384 };

type Case = fn(&mut Session);

const CASES: [(&str, Case); 4] =
    [("everything", everything), ("pages", pages), ("content-pages", content_pages), ("slots", slots)];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/v1")
}

#[test]
fn every_fixture_reads_as_expected() {
    for (name, _) in CASES {
        let folder = fixtures().join(name);
        let expected: Value = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let passphrase = std::fs::read_to_string(folder.join("passphrase")).unwrap();
        assert_eq!(describe(&folder.join("kloset"), passphrase.trim_end()), expected, "{name}");
    }
}

#[test]
fn todays_writer_makes_every_fixture_to_the_byte() {
    for (name, case) in CASES {
        let folder = fixtures().join(name);
        let made = tempfile::tempdir().unwrap();
        make(&made.path().join("kloset"), case);
        if !folder.exists() && std::env::var_os("KLOSET_BLESS").is_some() {
            bless(name, &made.path().join("kloset"), &folder);
        }
        let (expected, found) = (files(&folder.join("kloset")), files(&made.path().join("kloset")));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (object, content) in &expected {
            assert!(found[object] == *content, "{name}: {object} differs");
        }
    }
}

fn bless(name: &str, made: &Path, folder: &Path) {
    for (object, content) in files(made) {
        let path = folder.join("kloset").join(object);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    std::fs::write(folder.join("passphrase"), format!("{PASSPHRASE}\n")).unwrap();
    let expected = serde_json::to_string(&describe(made, PASSPHRASE)).unwrap();
    std::fs::write(folder.join("expected.json"), expected + "\n").unwrap();
    println!("wrote fixture {name}");
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, out: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, out);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                out.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(folder, folder, &mut out);
    out
}

fn secret(text: &str) -> SlotSecret {
    SlotSecret::Passphrase(text.to_owned().into())
}

fn open_store(folder: &Path) -> Store {
    Store::open_or_create_folder(&StoreLocation::Folder(folder.into()), &S3Options::default()).unwrap()
}

/// What a case works with.
struct Session {
    runtime: tokio::runtime::Runtime,
    repo: Repo,
    /// A stream of bytes that compress badly, apart from the writer's own randomness.
    content: kloset_mount::env::Entropy,
}

fn make(folder: &Path, case: Case) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let env = Env::seeded(1, CLOCK_UNIX_MS);
    let options = CreateOptions {
        chunker: SMALL_CHUNKS,
        compression: CompressionSettings::default(),
        argon2: CHEAP,
        label: "fixture".into(),
    };
    let secret = secret(PASSPHRASE);
    let create = Repo::create(open_store(folder), &secret, &options, env, Cpu::inline());
    let repo = runtime.block_on(create).unwrap();
    case(&mut Session { runtime, repo, content: kloset_mount::env::Entropy::seeded(2) });
}

/// A snapshot being made by hand, since a real folder's inode numbers and times cannot be set.
struct Snapshot<'a> {
    session: &'a Session,
    writer: Writer,
    trees: TreeBuilder,
    inode: u64,
}

impl<'a> Snapshot<'a> {
    fn begin(session: &'a Session) -> Self {
        let writer = Writer::new(&session.repo, session.runtime.handle().clone(), WriterOptions::default());
        Self { session, writer, trees: TreeBuilder::new(None), inode: 1000 }
    }

    fn plain(&mut self, name: &[u8], kind: NodeKind) -> Node {
        self.inode += 1;
        Node {
            name: Name::new(name).unwrap(),
            kind,
            mode: 0o644,
            owner: Owner { uid: 1000, gid: 100, user: "anna".into(), group: "users".into() },
            mtime: Time { seconds: 1_700_000_000, nanos: 123_456_789 },
            ctime: Time { seconds: 1_700_000_001, nanos: 0 },
            identity: Identity { device: 2049, inode: self.inode, links: 1 },
            xattrs: Vec::new(),
        }
    }

    fn enter(&mut self, name: &[u8]) {
        let mut node = self.plain(name, NodeKind::Fifo);
        (node.mode, node.identity.links) = (0o755, 2);
        self.trees.enter(node, None, &mut self.writer).unwrap();
    }

    fn leave(&mut self) {
        self.trees.leave(&mut self.writer).unwrap();
    }

    fn add(&mut self, name: &[u8], kind: NodeKind) {
        let node = self.plain(name, kind);
        self.trees.node(node, &mut self.writer).unwrap();
    }

    /// Adds a file of these chunks, with `holes` between.
    fn file(&mut self, name: &[u8], chunks: &[&[u8]], holes: &[(u64, u64)], change: impl FnOnce(&mut Node)) {
        let data: u64 = chunks.iter().map(|c| c.len() as u64).sum();
        let bytes = data + holes.iter().map(|h| h.1).sum::<u64>();
        let content = FileContent { bytes, holes: holes.to_vec(), ..FileContent::default() };
        let mut node = self.plain(name, NodeKind::File(content));
        change(&mut node);
        let mut list = Vec::new();
        for chunk in chunks {
            let id = self.session.repo.keys.chunk_id(chunk);
            self.writer.add(id, Chunk::Lent(chunk)).unwrap();
            list.push((id, u32::try_from(chunk.len()).unwrap()));
        }
        self.trees.file(node, list, &mut self.writer).unwrap();
    }

    fn commit(mut self, change: impl FnOnce(&mut Manifest)) {
        let env = &self.session.repo.env;
        let root = self.trees.finish(&mut self.writer).unwrap();
        self.writer.flush().unwrap();
        let name = SnapshotName { unix_ms: env.clock.unix_ms(), id: SnapshotId(env.entropy.bytes()) };
        let mut manifest = Manifest {
            version: 1,
            id: name.id,
            time: "2026-01-02T03:04:05.678Z".into(),
            end: "2026-01-02T03:04:06Z".into(),
            host: "host".into(),
            user: "anna".into(),
            program: "kloset-mount".into(),
            paths: vec![ByteText(b"/home".to_vec())],
            tags: Vec::new(),
            description: String::new(),
            excludes: Vec::new(),
            parent: None,
            original: None,
            root: root.into(),
            summary: Summary::default(),
            index: self.writer.runs().to_vec(),
            incomplete: false,
            errors: Vec::new(),
            errors_total: 0,
        };
        change(&mut manifest);
        self.writer.commit(name, &manifest).unwrap();
    }
}

fn everything(session: &mut Session) {
    let mut random = vec![0; 30_000];
    session.content.fill(&mut random);
    let pieces: Vec<&[u8]> = random.chunks(7000).collect();
    let mut s = Snapshot::begin(session);
    s.enter(b"home");
    s.file(b"\n", &[b"newline\n"], &[], |_| {});
    s.file(b"big", &pieces, &[], |_| {});
    s.add(b"block", NodeKind::BlockDevice(8, 1 << 19));
    s.add(b"char", NodeKind::CharDevice(1, 3));
    s.enter(b"directory");
    s.file(b"empty", &[], &[], |n| n.mtime = Time { seconds: -86_401, nanos: 500_000_000 });
    s.enter(b"nested");
    s.leave();
    s.leave();
    s.add(b"fifo", NodeKind::Fifo);
    let shared = |n: &mut Node| n.identity = Identity { device: 2049, inode: 77, links: 2 };
    s.file(b"link-1", &[b"one file, two names"], &[], shared);
    s.file(b"link-2", &[b"one file, two names"], &[], shared);
    s.file(b"setuid", &[b"#!/bin/sh\n"], &[], |n| {
        n.mode = 0o4755;
        n.xattrs = vec![
            (b"security.capability".to_vec(), vec![1, 0, 0, 2]),
            (b"system.posix_acl_access".to_vec(), vec![2, 0, 0, 0, 1, 0, 6, 0]),
            (b"user.empty".to_vec(), Vec::new()),
        ];
    });
    s.add(b"socket", NodeKind::Socket);
    s.file(b"sparse", &[&[1; 4096], &[2; 100]], &[(0, 8192), (12_288, 1 << 40)], |_| {});
    s.add(b"symlink", NodeKind::Symlink(b"../\xfe".to_vec()));
    s.file(&[b'x'; 255], &[b"255"], &[], |_| {});
    s.file(b"\xff\xfe", &[b"not UTF-8"], &[], |n| n.owner = Owner::default());
    s.leave();
    s.commit(|m| {
        m.tags = vec!["daily".into(), "täglich".into()];
        m.incomplete = true;
        m.errors = vec![SourceError { path: ByteText(b"/home/\xff".to_vec()), message: "denied".into() }];
        m.errors_total = 1;
    });
}

fn pages(session: &mut Session) {
    let mut s = Snapshot::begin(session);
    s.enter(b"many");
    let names: Vec<_> = (0..1300).map(|n| format!("f{n:04}").into_bytes()).collect();
    assert!(names[1024..1299].iter().any(|name| s.writer.page_ends_after(name)), "it has two pages");
    for name in &names {
        s.file(name, &[], &[], |_| {});
    }
    s.leave();
    s.commit(|_| {});
}

fn content_pages(session: &mut Session) {
    let chunk = b"the same again. ".repeat(64);
    let mut s = Snapshot::begin(session);
    s.file(b"file", &vec![&chunk[..]; 9000], &[(1 << 20, 1 << 20)], |_| {});
    s.commit(|_| {});
}

fn slots(session: &mut Session) {
    for name in [&b"first"[..], b"second"] {
        let mut s = Snapshot::begin(session);
        s.file(name, &[b"shared by both snapshots"], &[], |_| {});
        s.commit(|_| {});
    }
    let (repo, runtime) = (&session.repo, &session.runtime);
    let key = SlotSecret::parse_key_file(&"5a".repeat(32)).unwrap();
    let writer = secret("for writing only");
    let new = |secret, label| NewSlot { secret, cost: CHEAP, label };
    let names = runtime.block_on(repo.store.list("keys")).unwrap();
    let first = runtime.block_on(repo.store.get(&names[0].name, 10_000)).unwrap();
    let master = KeySlot::decode(&first).unwrap().open_master(&secret(PASSPHRASE)).unwrap();
    let full = KeySlot::full(repo.header.id, &master, &new(&key, "key file"), &repo.env).unwrap();
    let write_only =
        KeySlot::write_only(repo.header.id, repo.keys.write_keys(), &new(&writer, "writer"), &repo.env).unwrap();
    for slot in [full, write_only] {
        runtime.block_on(repo.store.put_new(&slot_name(slot.id), slot.encode().into())).unwrap();
    }
    let id = PendingId(repo.env.entropy.bytes());
    let (session_id, _) = repo.keys.new_session(&repo.env.entropy);
    let list = PendingList { version: 1, created: "2026-01-02T03:04:05Z".into(), packs: vec![(session_id, 3)] };
    let object = list.seal(&repo.keys.index_key(), repo.header.id, id, repo.env.entropy.bytes());
    runtime.block_on(repo.store.put_new(&pending_name(id), object.into())).unwrap();
}

/// Reads a whole kloset and tells what is in it, in the form of `expected.json`.
fn describe(kloset: &Path, passphrase: &str) -> Value {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let env = Env::seeded(3, CLOCK_UNIX_MS);
        let repo = Repo::open(open_store(kloset), &secret(passphrase), env, Cpu::inline()).await.unwrap();
        let reader = repo.reader(64 << 20);
        let mut snapshots = Vec::new();
        for name in repo.snapshots().await.unwrap() {
            let manifest = repo.manifest(name).await.unwrap();
            let mut entries = Vec::new();
            list(&reader, manifest.root.into(), b"", &mut entries).await;
            snapshots.push(json!({ "object": name.object(), "manifest": manifest, "entries": entries }));
        }
        json!({ "id": repo.header.id, "snapshots": snapshots })
    })
}

async fn list(reader: &Reader, tree: TreeRef, above: &[u8], out: &mut Vec<Value>) {
    let mut nodes = Nodes::new(reader, tree);
    while let Some(page) = nodes.next_page().await.unwrap() {
        for node in leaf(&page) {
            let path = [above, b"/", node.name.as_bytes()].concat();
            out.push(entry(reader, &path, node).await);
            if let NodeKind::Directory(tree) = &node.kind {
                Box::pin(list(reader, *tree, &path, out)).await;
            }
        }
    }
}

async fn entry(reader: &Reader, path: &[u8], node: &Node) -> Value {
    let xattrs: Vec<_> =
        node.xattrs.iter().map(|(n, v)| json!([ByteText(n.clone()), kloset_mount::repo::id::to_hex(v)])).collect();
    let mut entry = json!({
        "path": ByteText(path.to_vec()),
        "mode": node.mode,
        "uid": node.owner.uid, "gid": node.owner.gid, "user": node.owner.user, "group": node.owner.group,
        "mtime": [node.mtime.seconds, node.mtime.nanos], "ctime": [node.ctime.seconds, node.ctime.nanos],
        "device": node.identity.device, "inode": node.identity.inode, "links": node.identity.links,
        "xattrs": xattrs,
    });
    match &node.kind {
        NodeKind::File(content) => {
            let mut hash = blake3::Hasher::new();
            let data = reader.chunks_in(&content.data, 0..u64::MAX).await.unwrap();
            for (_, chunk) in data {
                hash.update(&reader.chunk(&chunk).await.unwrap());
            }
            entry["type"] = json!("file");
            entry["bytes"] = json!(content.bytes);
            entry["holes"] = json!(content.holes);
            entry["blake3_of_data"] = json!(hash.finalize().to_hex().to_string());
        }
        NodeKind::Directory(_) => entry["type"] = json!("directory"),
        NodeKind::Symlink(target) => {
            entry["type"] = json!("symlink");
            entry["target"] = json!(ByteText(target.clone()));
        }
        NodeKind::CharDevice(major, minor) => {
            entry["type"] = json!("char-device");
            entry["device_number"] = json!([major, minor]);
        }
        NodeKind::BlockDevice(major, minor) => {
            entry["type"] = json!("block-device");
            entry["device_number"] = json!([major, minor]);
        }
        NodeKind::Fifo => entry["type"] = json!("fifo"),
        NodeKind::Socket => entry["type"] = json!("socket"),
    }
    entry
}
