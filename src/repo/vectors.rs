//! Checks that `docs/format.md` says what the code does: its test vectors and its JSON examples.
//!
//! Every value is computed here and must stand in the document; so neither can change alone. Values are compared with
//! the document's white space taken out, since long ones are broken over lines there.

use hpke::{Deserializable as _, Kem as _, Serializable as _};
use zeroize::Zeroizing;

use super::chunker::Chunker;
use super::crypto::{self, Keys, NONCE_BYTES, SealingKey, Secret};
use super::header::{ChunkerSettings, CompressionSettings, Header};
use super::id::{ChunkId, KlosetId, PackId, RunId, SessionId, SnapshotId, to_hex};
use super::index::IndexRun;
use super::keyslot::{Argon2, Kdf, KeySlot, NewSlot, SlotSecret};
use super::layout::{self, SnapshotName};
use super::pack::{self, PackBuilder, PackKind};
use super::pending::PendingList;
use super::snapshot::Manifest;
use super::tree::{
    BranchEntry, ChunkRef, Data, FileContent, Identity, Location, Name, Node, NodeKind, Owner, Page, Time, TreeRef,
    encode_content_page,
};
use super::{compress, messagepack, sealed};
use crate::env::{Entropy, Env};

type Kem = hpke::kem::X25519HkdfSha256;

const DOCUMENT: &str = include_str!("../../docs/format.md");
const KLOSET: KlosetId = KlosetId([1; 32]);
const MASTER: [u8; 32] = [2; 32];
/// 2026-11-22T13:58:00.123Z.
const BEGUN_UNIX_MS: i64 = 1_795_355_880_123;
const PASSPHRASE: &str = "correct horse battery staple";
const SNAPSHOT: SnapshotName = SnapshotName { unix_ms: BEGUN_UNIX_MS, id: SnapshotId([0x0a; 16]) };

fn keys() -> Keys {
    Keys::from_master(KLOSET, &Secret(MASTER))
}

fn env() -> Env {
    Env::seeded(1, BEGUN_UNIX_MS)
}

/// The session whose ephemeral private key is 32 bytes 03.
fn session() -> SessionId {
    let private = <Kem as hpke::Kem>::PrivateKey::from_bytes(&[3; 32]).unwrap();
    SessionId(Kem::sk_to_pk(&private).to_bytes().into())
}

fn session_key() -> SealingKey {
    keys().session_key(&session()).unwrap()
}

/// Asserts that the document's vectors hold each of `vectors`, and tells all that it lacks.
#[track_caller]
fn check(vectors: &[(&str, String)]) {
    let section = DOCUMENT.split_once("\n## Test vectors\n").expect("the document has vectors").1;
    let section: String = section.split_whitespace().collect();
    let mut lacking = String::new();
    for (name, value) in vectors {
        let wanted: String = format!("{name} = {value};").split_whitespace().collect();
        if !section.contains(&wanted) {
            lacking.push_str(&format!("{name} = {value};\n"));
        }
    }
    assert!(lacking.is_empty(), "docs/format.md, \"Test vectors\", lacks:\n{lacking}");
}

/// Asserts that the document shows `object`, with `shortened` cut to its first 8 characters.
#[track_caller]
fn check_example(object: &[u8], shortened: &str) {
    let mut text = String::from_utf8(object.to_vec()).unwrap();
    if !shortened.is_empty() {
        text = text.replace(shortened, &format!("{}…", &shortened[..8]));
    }
    assert!(DOCUMENT.contains(&format!("```json\n{text}```\n")), "docs/format.md lacks this example:\n{text}");
}

/// Returns the JSON example below a heading.
fn example(heading: &str) -> &str {
    let (_, below) = DOCUMENT.split_once(&format!("\n## {heading}\n")).expect("the heading is there");
    let (_, json) = below.split_once("```json\n").expect("an example is there");
    json.split_once("```").expect("it ends").0
}

#[test]
fn keys_are_those_of_the_document() {
    let keys = keys();
    let write = keys.write_keys();
    let private = blake3::derive_key("kloset-mount v1 x25519 private key", &MASTER);
    let tree_id = blake3::derive_key("kloset-mount v1 tree id key", &write.chunk_id.0);
    assert_eq!(keys.tree_id(b"text").0, *blake3::keyed_hash(&tree_id, b"text").as_bytes());
    let header = blake3::derive_key("kloset-mount v1 header mac key", &write.index.0);
    let public = Kem::sk_to_pk(&<Kem as hpke::Kem>::PrivateKey::from_bytes(&private).unwrap()).to_bytes();
    assert_eq!(write.public, <[u8; 32]>::from(public));
    assert_eq!(keys.header_mac(b"text"), *blake3::keyed_hash(&header, b"text").as_bytes());
    check(&[
        ("kloset id", KLOSET.to_string()),
        ("master key", to_hex(&MASTER)),
        ("chunk id key", to_hex(&write.chunk_id.0)),
        ("tree id key", to_hex(&tree_id)),
        ("index key", to_hex(&write.index.0)),
        ("header mac key", to_hex(&header)),
        ("chunker seed", to_hex(&write.chunker_seed.to_le_bytes())),
        ("private key", to_hex(&private)),
        ("moved key", to_hex(&blake3::derive_key("kloset-mount v1 moved chunks key", &private))),
        ("public key", to_hex(&write.public)),
        ("chunk id of \"kloset\"", keys.chunk_id(b"kloset").to_string()),
        ("chunk id of nothing", keys.chunk_id(b"").to_string()),
        ("tree id of \"kloset\"", keys.tree_id(b"kloset").to_string()),
    ]);
}

#[test]
fn additional_data_is_that_of_the_document() {
    let run = layout::run_name(RunId([7; 16]));
    let name = SNAPSHOT.object();
    check(&[
        ("additional data of a frame", to_hex(&crypto::aad(KLOSET, "frame", session().as_bytes()))),
        ("additional data of an index run", to_hex(&crypto::aad(KLOSET, "index run", run.as_bytes()))),
        ("additional data of a snapshot", to_hex(&crypto::aad(KLOSET, "snapshot", name.as_bytes()))),
    ]);
    assert!(DOCUMENT.contains(&name));
}

#[test]
fn a_session_is_that_of_the_document() {
    let private = blake3::derive_key("kloset-mount v1 x25519 private key", &MASTER);
    let psk = blake3::derive_key("kloset-mount v1 session psk", &keys().write_keys().index.0);
    let context = hpke::setup_receiver::<hpke::aead::ExportOnlyAead, hpke::kdf::HkdfSha256, Kem>(
        &hpke::OpModeR::Psk(hpke::PskBundle::new(&psk, b"kloset-mount v1").unwrap()),
        &<Kem as hpke::Kem>::PrivateKey::from_bytes(&private).unwrap(),
        &<Kem as hpke::Kem>::EncappedKey::from_bytes(session().as_bytes()).unwrap(),
        &[&b"kloset-mount v1 session"[..], KLOSET.as_bytes()].concat(),
    )
    .unwrap();
    let mut secret = [0; 32];
    context.export(b"kloset-mount v1 sealing key", &mut secret).unwrap();
    let aad = crypto::aad(KLOSET, "frame", session().as_bytes());
    let frame = pack::seal_frame(&session_key(), (KLOSET, session()), [4; NONCE_BYTES], 3, b"kloset"[..].into());
    assert_eq!(sealed::open(&SealingKey::new(&Secret(secret)), &aad, &frame, 6).unwrap(), &b"kloset"[..]);
    let mut packed = Vec::new();
    compress::pack(3, &[b'a'; 100], &mut packed);
    assert_eq!(compress::unpack(&packed, 100).unwrap(), [b'a'; 100]);
    check(&[
        ("session", session().to_string()),
        ("session psk", to_hex(&psk)),
        ("sealing key", to_hex(&secret)),
        ("sealed frame", to_hex(&frame)),
        ("packed content", to_hex(&packed)),
    ]);
}

#[test]
fn cuts_are_those_of_the_document() {
    let seed = keys().write_keys().chunker_seed;
    let (gear, shifted) = fastcdc::v2020::get_gear_with_seed(seed);
    let mut content = vec![0; 8 << 20];
    Entropy::seeded(3).fill(&mut content);
    let chunker = Chunker::new(ChunkerSettings::default(), seed);
    let (mut rest, mut lengths) = (&content[..], Vec::new());
    while !rest.is_empty() {
        let bytes = chunker.cut(rest);
        lengths.push(bytes.to_string());
        rest = &rest[bytes..];
    }
    check(&[
        ("gear 0", format!("{:016x}", gear[0])),
        ("gear 255", format!("{:016x}", gear[255])),
        ("gear 0 doubled", format!("{:016x}", shifted[0])),
        ("cuts", lengths.join(" ")),
    ]);
}

#[test]
fn the_header_and_the_slots_are_those_of_the_document() {
    let header = Header::new(&keys(), ChunkerSettings::default(), CompressionSettings::default(), &env()).unwrap();
    check_example(&header.encode(), "");

    let file = SlotSecret::KeyFile(Secret([5; 32]));
    let cost = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
    let new = NewSlot { secret: &file, cost, label: "vault" };
    let full = KeySlot::full(KLOSET, &Secret(MASTER), &new, &env()).unwrap();
    assert!(full.open(&file).unwrap().can_read());
    check_example(&full.encode(), &full.sealed);

    let phrase = SlotSecret::Passphrase(Zeroizing::new(PASSPHRASE.into()));
    let new = NewSlot { secret: &phrase, cost, label: "laptop" };
    let writer = KeySlot::write_only(KLOSET, keys().write_keys(), &new, &env()).unwrap();
    assert!(!writer.open(&phrase).unwrap().can_read());
    check_example(&writer.encode(), &writer.sealed);

    let Kdf::Argon2id { salt, .. } = &writer.kdf else { unreachable!() };
    let mut salt_bytes = [0; 16];
    super::id::from_hex(salt, &mut salt_bytes).unwrap();
    let stretch = |passphrase: &str| {
        let params = argon2::Params::new(64, 1, 1, Some(32)).unwrap();
        let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        let mut stretched = [0; 32];
        argon2.hash_password_into(passphrase.as_bytes(), &salt_bytes, &mut stretched).unwrap();
        to_hex(&stretched)
    };
    check(&[
        ("header mac", header.mac),
        ("key file", to_hex(&[5; 32])),
        ("wrapping key of the key file", to_hex(&blake3::derive_key("kloset-mount v1 key file", &[5; 32]))),
        ("salt", salt.clone()),
        ("wrapping key of the passphrase", stretch(PASSPHRASE)),
        ("decomposed passphrase", to_hex("Zu\u{308}rich".as_bytes())),
        ("composed passphrase", to_hex("Z\u{fc}rich".as_bytes())),
        ("wrapping key of the composed passphrase", stretch("Z\u{fc}rich")),
        ("sealed full slot", full.sealed),
        ("sealed write-only slot", writer.sealed),
    ]);
}

fn content_ref(content: &[u8], chunk_offset: u32) -> ChunkRef {
    let location =
        Location { pack: PackId { session: session(), number: 0 }, frame_offset: 8, frame_bytes: 49, chunk_offset };
    ChunkRef { id: keys().chunk_id(content), bytes: 4, location }
}

#[test]
fn a_pack_and_its_index_run_are_those_of_the_document() {
    let id = PackId { session: session(), number: 0 };
    let mut builder = PackBuilder::new(PackKind::Data);
    let frame = pack::seal_frame(&session_key(), (KLOSET, session()), [4; NONCE_BYTES], 3, b"one\ntwo\n"[..].into());
    builder.push(frame.clone(), vec![(keys().chunk_id(b"one\n"), 4), (keys().chunk_id(b"two\n"), 4)]);
    let (object, footer) = builder.finish(&session_key(), KLOSET, id, [5; NONCE_BYTES]);
    let object = bytes::Bytes::from(object);
    assert_eq!(footer.frames[0].bytes, 49);

    let mut run = IndexRun::default();
    run.add_pack(id, object.len() as u64, &footer);
    let run_id = RunId([7; 16]);
    let opened = run.seal(&keys().index_key(), KLOSET, run_id, [6; NONCE_BYTES]);
    let aad = crypto::aad(KLOSET, "index run", layout::run_name(run_id).as_bytes());
    let raw = sealed::open(&keys().index_key(), &aad, &opened[8..], 1000).unwrap();
    check(&[("pack", to_hex(&object)), ("footer", to_hex(&messagepack::encode(&footer))), ("index run", to_hex(&raw))]);
}

fn node(name: &[u8], kind: NodeKind) -> Node {
    Node {
        name: Name::new(name).unwrap(),
        kind,
        mode: 0o644,
        owner: Owner { uid: 1000, gid: 100, user: "anna".into(), group: "users".into() },
        mtime: Time { seconds: -1, nanos: 500_000_000 },
        ctime: Time { seconds: 1_795_355_880, nanos: 0 },
        identity: Identity { device: 2049, inode: 77, links: 1 },
        xattrs: vec![],
    }
}

#[test]
fn trees_are_those_of_the_document() {
    let (one, two) = (content_ref(b"one\n", 0), content_ref(b"two\n", 4));
    let below = TreeRef {
        id: ChunkId([8; 32]),
        bytes: 300,
        pack: PackId { session: session(), number: 1 },
        frame: 2,
        chunk_offset: 70_000,
    };
    let sparse = FileContent { bytes: 4104, holes: vec![(4, 4096)], data: Data::Chunks(vec![one, two]) };
    let mut file = node(b"a", NodeKind::File(sparse));
    file.xattrs = vec![(b"user.k".to_vec(), b"\x00v".to_vec())];
    let leaf =
        Page::Leaf(vec![file, node(b"b", NodeKind::Directory(below)), node(b"c", NodeKind::Symlink(b"a".to_vec()))]);
    let branch = Page::Branch(vec![
        BranchEntry { first: Name::new(b"a").unwrap(), nodes: 3, page: below },
        BranchEntry { first: Name::new(b"m\xff").unwrap(), nodes: 1024, page: below },
    ]);
    assert_eq!(Page::decode(&leaf.encode()).unwrap(), leaf);
    assert_eq!(Page::decode(&branch.encode()).unwrap(), branch);
    check(&[
        ("leaf", to_hex(&leaf.encode())),
        ("branch", to_hex(&branch.encode())),
        ("content page", to_hex(&encode_content_page(&[one, two]))),
        ("empty leaf", to_hex(&Page::Leaf(vec![]).encode())),
        ("tree id of the leaf", keys().tree_id(&leaf.encode()).to_string()),
    ]);
}

#[test]
fn the_json_examples_have_every_field() {
    #[track_caller]
    fn same<T: serde::Serialize + serde::de::DeserializeOwned>(heading: &str) {
        let value: serde_json::Value = serde_json::from_str(example(heading)).unwrap();
        let typed: T = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(serde_json::to_value(&typed).unwrap(), value, "{heading}");
    }
    same::<Manifest>("Snapshot");
    same::<PendingList>("Pending list");
}
