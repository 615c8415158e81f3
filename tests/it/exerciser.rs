//! A seeded exerciser of reads: threads read mounted files of known content in every way at random places, over HTTP and
//! with hardly any memory. It catches arithmetic of offsets, and what readahead gets wrong. Needs root and /dev/fuse, and
//! passes over itself without.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::{Advice, OFlags};

use crate::support::program::{Program, may_mount};
use crate::support::random::{Random, noise, size};

const THREADS: u64 = 6;
/// Places at which chunks, frames, blocks and the kernel's pages tend to end.
const EDGES: [u64; 7] = [4096, 64 << 10, 128 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20];

/// A file in the mount and what must be in it.
struct Known {
    at: PathBuf,
    content: Vec<u8>,
}

/// Returns parts of a file with holes between them, on the pages that file systems cut holes by.
fn parts(random: &mut Random, bytes: u64) -> Vec<(u64, Vec<u8>)> {
    let (mut at, mut out) = (0, Vec::new());
    loop {
        at += (1 + random.below(200)) * 4096;
        let part = noise(at, usize::try_from((1 + random.below(100)) * 4096).unwrap());
        if at + part.len() as u64 > bytes {
            return out;
        }
        let start = at;
        at += part.len() as u64;
        out.push((start, part));
    }
}

/// Returns names and content: nothing, little, many chunks, and what compresses well.
fn contents(random: &mut Random) -> Vec<(String, Vec<u8>)> {
    let text = |lines: u64| (0..lines).flat_map(|n| format!("line {n} of a log, and all alike\n").into_bytes());
    let mut out = vec![
        ("many chunks".to_owned(), noise(1, (13 << 20) + 17)),
        ("log".to_owned(), text(200_000).collect()),
        ("zeros".to_owned(), vec![0; 3_000_001]),
        ("one block".to_owned(), noise(2, 256 << 10)),
    ];
    for number in 0..12 {
        let bytes = usize::try_from(random.below(60_000)).unwrap();
        let content = if number % 2 == 0 { noise(number, bytes) } else { text(2000).take(bytes).collect() };
        out.push((format!("small/{number}"), content));
    }
    out.push(("empty".to_owned(), Vec::new()));
    out
}

/// Makes a kloset in a bucket of files of known content, a sparse one among them.
fn make(random: &mut Random) -> (Program, Vec<Known>) {
    let contents = contents(random);
    let borrowed: Vec<(&str, &[u8])> = contents.iter().map(|(name, content)| (&**name, &**content)).collect();
    let program = Program::new(&borrowed);
    let sparse_bytes = 9_000_000 + random.below(4096);
    let mut sparse = vec![0; usize::try_from(sparse_bytes).unwrap()];
    let file = File::create(program.source().join("sparse")).unwrap();
    file.set_len(sparse_bytes).unwrap();
    for (at, part) in parts(random, sparse_bytes) {
        file.write_all_at(&part, at).unwrap();
        sparse[usize::try_from(at).unwrap()..][..part.len()].copy_from_slice(&part);
    }
    drop(file);
    program.backup(&[]);
    let latest = program.latest();
    let mut all: Vec<_> =
        contents.into_iter().map(|(name, content)| Known { at: latest.join(name), content }).collect();
    all.push(Known { at: latest.join("sparse"), content: sparse });
    (program, all)
}

/// Returns a range in or over the end of a file: often beside an edge, sometimes long.
fn range(random: &mut Random, bytes: u64) -> (u64, usize) {
    let at = match random.below(3) {
        0 => random.below(bytes + 10),
        1 => (random.below(bytes + 1) / *random.one(&EDGES) * *random.one(&EDGES)).saturating_sub(random.below(3)),
        _ => bytes.saturating_sub(random.below(5000)),
    };
    let most = *random.one(&[1, 10, 4096, 5000, 70_000, 300_000, 3_000_000]);
    (at, usize::try_from(random.below(most + 1)).unwrap())
}

/// Reads a range in one of all ways; fewer bytes only where the file ends.
fn read(random: &mut Random, known: &Known, file: &mut File, at: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0xaa; bytes];
    let came = match random.below(5) {
        0 => {
            let direct = i32::try_from(OFlags::DIRECT.bits()).unwrap();
            let file = fs::OpenOptions::new().read(true).custom_flags(direct).open(&known.at).unwrap();
            file.read_at(&mut out, at).unwrap()
        }
        1 => {
            let (head, rest) = out.split_at_mut(bytes / 3);
            let (middle, rest) = rest.split_at_mut(rest.len() / 2);
            file.seek(SeekFrom::Start(at)).unwrap();
            file.read_vectored(&mut [head, middle, rest].map(IoSliceMut::new)).unwrap()
        }
        2 => {
            file.seek(SeekFrom::Start(at)).unwrap();
            let mut steps = file.by_ref().take(bytes as u64);
            let mut all = Vec::new();
            steps.read_to_end(&mut all).unwrap();
            out[..all.len()].copy_from_slice(&all);
            all.len()
        }
        _ => file.read_at(&mut out, at).unwrap(),
    };
    out.truncate(came);
    out
}

/// What one thread does.
fn exercise(seed: u64, all: &[Known], steps: u64) {
    let mut random = Random::new(seed);
    let mut files: Vec<_> = all.iter().map(|known| File::open(&known.at).unwrap()).collect();
    for step in 0..steps {
        // The large ones come first, and are read more often than the many small ones.
        let bound = if random.below(2) == 0 { 4 } else { all.len() as u64 };
        let number = usize::try_from(random.below(bound)).unwrap();
        let number = if random.below(4) == 0 { all.len() - 1 } else { number };
        let (known, file) = (&all[number], &mut files[number]);
        let told = || format!("seed {seed}, step {step}: {:?}", known.at.file_name().unwrap());
        if random.below(8) == 0 {
            // The next read reaches the mount again.
            rustix::fs::fadvise(&*file, 0, None, Advice::DontNeed).unwrap();
        }
        if random.below(40) == 0 {
            // Shared and read-only, of files of 16 KiB or more.
            let mapped = blake3::Hasher::new().update_mmap(&known.at).unwrap().finalize();
            assert_eq!(mapped, blake3::hash(&known.content), "{}", told());
        }
        let (at, bytes) = range(&mut random, known.content.len() as u64);
        let from = usize::try_from(at).unwrap().min(known.content.len());
        let expected = &known.content[from..known.content.len().min(from + bytes)];
        let came = read(&mut random, known, file, at, bytes);
        assert!(came == *expected, "{}: {bytes} bytes at {at}, {} came", told(), came.len());
    }
}

/// Every read brings the bytes that were backed up, mmap(2) among them, with little memory and over a network.
#[test]
fn random_reads_bring_what_was_backed_up() {
    if !may_mount() {
        return;
    }
    let seeds = if size(0, 1) == 0 { 1..2 } else { 1..21_u64 };
    for seed in seeds {
        eprintln!("seed {seed}");
        let (program, all) = make(&mut Random::new(seed));
        let _serving = program.serve(&["--memory-limit", "4MiB", "--no-cache"]);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let all = &all;
                scope.spawn(move || exercise(seed * 1000 + thread, all, size(150, 500)));
            }
        });
    }
}
