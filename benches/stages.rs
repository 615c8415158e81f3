//! What each stage of the two ways through costs on one core: `cargo bench`.
//!
//! The stages of a backup and of a read by themselves, without disk, network and kernel, so that a figure of
//! `scripts/bench` can be held against the sum of its parts. Figures are for reading side by side on one machine.

#![allow(missing_docs, reason = "a program")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a benchmark fails where it unwraps")]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use kloset_mount::backup::{BackupOptions, backup};
use kloset_mount::cpu::Cpu;
use kloset_mount::env::{Entropy, Env};
use kloset_mount::monitor::Monitor;
use kloset_mount::repo::chunker::Chunker;
use kloset_mount::repo::crypto::{Keys, Secret};
use kloset_mount::repo::header::ChunkerSettings;
use kloset_mount::repo::id::KlosetId;
use kloset_mount::repo::keyslot::SlotSecret;
use kloset_mount::repo::path::{Found, resolve};
use kloset_mount::repo::reader::Reader;
use kloset_mount::repo::sealed::Plain;
use kloset_mount::repo::tree::{FileContent, Page};
use kloset_mount::repo::{CreateOptions, Repo, pack};
use kloset_mount::store::Store;
use object_store::memory::InMemory;
use tokio::runtime::Runtime;

const MIB: usize = 1 << 20;
const KLOSET: KlosetId = KlosetId([1; 32]);

fn main() {
    divan::main();
}

fn keys() -> Keys {
    Keys::from_master(KLOSET, &Secret::random(&Entropy::seeded(2)))
}

/// Bytes that do not compress.
fn noise(bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    Entropy::seeded(7).fill(&mut out);
    out
}

/// Bytes that compress about as source code does: words of a small vocabulary.
fn words(bytes: usize) -> Vec<u8> {
    let choice = noise(bytes / 4);
    let words = choice.iter().flat_map(|c| [b"let mut ", b"return; ", b"fn name(", b"x == y {"][usize::from(c % 4)]);
    words.copied().zip(choice.iter().cycle()).map(|(word, c)| if c % 8 == 0 { *c } else { word }).take(bytes).collect()
}

#[divan::bench]
fn cut_into_chunks(bencher: Bencher<'_, '_>) {
    let (chunker, content) = (Chunker::new(ChunkerSettings::default(), 3), noise(64 * MIB));
    bencher.counter(BytesCount::new(content.len())).bench(|| {
        let mut rest = &content[..];
        while !rest.is_empty() {
            rest = &rest[chunker.cut(black_box(rest))..];
        }
    });
}

#[divan::bench(args = [4096, MIB])]
fn name_a_chunk(bencher: Bencher<'_, '_>, bytes: usize) {
    let (keys, content) = (keys(), noise(bytes));
    bencher.counter(BytesCount::new(bytes)).bench(|| keys.chunk_id(black_box(&content)));
}

#[divan::bench(args = ["words", "noise"])]
fn seal_a_frame(bencher: Bencher<'_, '_>, kind: &str) {
    let (session, key) = keys().new_session(&Entropy::seeded(1));
    let raw = if kind == "words" { words(MIB) } else { noise(MIB) };
    let seal = || pack::seal_frame(&key, (KLOSET, session), [3; 24], 3, Plain::from(black_box(&raw[..])));
    bencher.counter(BytesCount::new(MIB)).bench(seal);
}

#[divan::bench(args = ["words", "noise"])]
fn open_a_frame(bencher: Bencher<'_, '_>, kind: &str) {
    let (session, key) = keys().new_session(&Entropy::seeded(1));
    let raw = if kind == "words" { words(MIB) } else { noise(MIB) };
    let sealed = pack::seal_frame(&key, (KLOSET, session), [3; 24], 3, raw[..].into());
    let open = || pack::open_frame(&key, (KLOSET, session), black_box(&sealed)).unwrap();
    bencher.counter(BytesCount::new(MIB)).bench(open);
}

/// A kloset in memory with one file of 64 MiB and a folder of 1,000 small ones.
struct Stored {
    runtime: Runtime,
    reader: Reader,
    file: FileContent,
    page: Vec<u8>,
}

static STORED: LazyLock<Stored> = LazyLock::new(|| {
    let source = tempfile::tempdir().unwrap();
    std::fs::create_dir(source.path().join("small")).unwrap();
    (0..1000).for_each(|n| std::fs::write(source.path().join(format!("small/{n}")), n.to_string()).unwrap());
    std::fs::write(source.path().join("large"), noise(64 * MIB)).unwrap();
    let runtime = Runtime::new().unwrap();
    let store = Store::new(Arc::new(InMemory::new()), "memory".into());
    let secret = SlotSecret::KeyFile(Secret::random(&Entropy::seeded(9)));
    let settings = CreateOptions::default();
    let created = Repo::create(store, &secret, &settings, Env::system(), Cpu::new(2));
    let repo = runtime.block_on(created).unwrap();
    let options = BackupOptions { paths: vec![source.path().into()], ..BackupOptions::default() };
    let report = backup(&repo, runtime.handle(), &options, &Arc::new(Monitor::default())).unwrap();
    let reader = repo.reader(512 * MIB);
    let find = |name: &str| {
        let path: &Path = &source.path().join(name);
        runtime.block_on(resolve(&reader, report.manifest.root.into(), path.as_os_str().as_encoded_bytes())).unwrap()
    };
    let Found::Node(large) = find("large") else { unreachable!("a file is a node") };
    let file = Found::Node(large).file(b"large").unwrap().clone();
    let small = find("small").directory(b"small").unwrap();
    let page = runtime.block_on(reader.tree_chunk(&small)).unwrap().to_vec();
    Stored { runtime, reader, file, page }
});

#[divan::bench]
fn decode_a_page_of_1000_nodes(bencher: Bencher<'_, '_>) {
    bencher.counter(ItemsCount::new(1000_u32)).bench(|| Page::decode(black_box(&STORED.page)).unwrap());
}

#[divan::bench]
fn encode_a_page_of_1000_nodes(bencher: Bencher<'_, '_>) {
    let page = Page::decode(&STORED.page).unwrap();
    bencher.counter(ItemsCount::new(1000_u32)).bench(|| black_box(&page).encode());
}

/// What a mount does for a program that reads along a file whose frames are open.
#[divan::bench]
fn read_64_mib_from_memory(bencher: Bencher<'_, '_>) {
    let Stored { runtime, reader, file, .. } = &*STORED;
    bencher.counter(BytesCount::new(64 * MIB)).bench(|| {
        runtime.block_on(async {
            for at in (0..64 * MIB as u64).step_by(128 << 10) {
                black_box(reader.read(file, at..at + (128 << 10)).await.unwrap());
            }
        });
    });
}

/// And for one who jumps; each sample is one read, so median and slowest are those of the reads.
#[divan::bench(sample_count = 1000, sample_size = 1)]
fn read_4_kib_anywhere_from_memory(bencher: Bencher<'_, '_>) {
    let Stored { runtime, reader, file, .. } = &*STORED;
    let entropy = Entropy::seeded(5);
    let anywhere = || u64::from_le_bytes(entropy.bytes()) % (64 * MIB as u64 - 4096);
    let read = |at: u64| runtime.block_on(reader.read(file, at..at + 4096)).unwrap();
    bencher.with_inputs(anywhere).bench_values(read);
}
