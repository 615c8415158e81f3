//! The contract of the cache, with a store in memory that counts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use object_store::memory::InMemory;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use super::folder::{NEW, PARTS, WHOLE};
use super::*;

const LONG: Duration = Duration::from_secs(60);
/// Four pieces, the last one short.
const OBJECT_BYTES: usize = 3 * PIECE_BYTES as usize + 1000;

fn content(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| seed.wrapping_add((n / 251) as u8)).collect()
}

async fn filled(names: &[&str]) -> Store {
    let store = Store::new(Arc::new(InMemory::new()), "memory".to_owned());
    for (seed, name) in (0..).zip(names) {
        store.put_new(name, content(seed, OBJECT_BYTES).into()).await.unwrap();
    }
    store
}

fn open(store: &Store, folder: &Path, bytes_max: u64) -> Store {
    let options = CacheOptions { folder: folder.to_owned(), bytes_max };
    store.with_cache(DiskCache::new(&options, "kloset", CacheKey::new([7; 32])).unwrap())
}

fn finish(store: &Store) {
    store.cache().unwrap().finish(LONG);
}

/// Returns how often the store was asked for content meanwhile.
async fn asked<T>(store: &Store, work: impl Future<Output = T>) -> (u64, T) {
    let before = store.counts().gets;
    let done = work.await;
    finish(store);
    (store.counts().gets - before, done)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).into_iter().flatten();
    let mut files: Vec<_> = read.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn taken(folder: &Path) -> u64 {
    let below = |below| files(&folder.join("kloset").join(below));
    [below(WHOLE), below(PARTS)].concat().iter().map(|file| file.metadata().unwrap().len()).sum()
}

#[tokio::test]
async fn any_range_reads_as_the_store_has_it_and_a_second_time_nothing_is_asked() {
    let (store, folder) = (filled(&["a"]).await, tempfile::tempdir().unwrap());
    let (piece, end) = (PIECE_BYTES, OBJECT_BYTES as u64);
    let ranges = [0..piece, piece..2 * piece, 0..4 * piece, piece..100 * piece, 5..10, piece - 1..piece + 1, 0..end];
    for range in &ranges {
        for again in [false, true] {
            let cached = open(&store, folder.path(), 1 << 30); // a new process each time
            let (gets, read) = asked(&cached, cached.get_range("a", range.clone())).await;
            assert_eq!(read.unwrap(), store.get_range("a", range.clone()).await.unwrap(), "{range:?}");
            assert!(!again || gets == 0 || range.start == 5, "{range:?}: {gets}");
        }
    }
    for start in [end, 4 * piece, 7 * piece] {
        for again in [false, true] {
            let cached = open(&store, folder.path(), 1 << 30);
            let (gets, read) = asked(&cached, cached.get_range("a", start..start + piece)).await;
            assert!(matches!(read, Err(StoreError::OutOfRange { bytes, .. }) if bytes == end));
            assert!(!again || gets == 0, "{start}: {gets}");
        }
    }
    let cached = open(&store, folder.path(), 1 << 30);
    assert_eq!(asked(&cached, cached.get("a", end)).await.0, 1);
    let (gets, read) = asked(&cached, cached.get("a", end)).await;
    assert_eq!((gets, read.unwrap()), (0, content(0, OBJECT_BYTES).into()));
    assert!(matches!(cached.get("a", end - 1).await, Err(StoreError::TooLarge { .. })));
    assert!(cached.get("absent", end).await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn what_passes_through_is_not_kept_and_what_is_kept_is_used() {
    let (store, folder) = (filled(&["a"]).await, tempfile::tempdir().unwrap());
    let cached = open(&store, folder.path(), 1 << 30);
    let passing = cached.keeping_nothing();
    for _ in 0..2 {
        assert_eq!(asked(&cached, passing.get_range("a", 0..PIECE_BYTES)).await.0, 1);
        assert_eq!(asked(&cached, passing.get("a", OBJECT_BYTES as u64)).await.0, 1);
    }
    assert_eq!(taken(folder.path()), 0);
    assert_eq!(asked(&cached, cached.get_range("a", 0..PIECE_BYTES)).await.0, 1);
    assert_eq!(asked(&cached, passing.get_range("a", 0..PIECE_BYTES)).await.0, 0);
}

#[tokio::test]
async fn damage_of_every_kind_is_fetched_again() {
    let (store, folder) = (filled(&["a", "b"]).await, tempfile::tempdir().unwrap());
    type Harm = fn(&Path, &Path);
    let harms: [Harm; 7] = [
        |file, _| {
            let mut bytes = fs::read(file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).unwrap();
        },
        |file, _| fs::write(file, &fs::read(file).unwrap()[..100]).unwrap(),
        |file, _| fs::write(file, "").unwrap(),
        |file, other| drop(fs::rename(other, file)),
        |file, other| assert!(fs::copy(other, file).is_ok()),
        |file, _| fs::remove_file(file).unwrap(),
        |file, _| {
            fs::remove_file(file).unwrap();
            fs::create_dir(file).unwrap();
        },
    ];
    for harm in harms {
        fs::remove_dir_all(folder.path().join("kloset")).ok();
        let cached = open(&store, folder.path(), 1 << 30);
        for name in ["a", "b"] {
            cached.get(name, 1 << 30).await.unwrap();
            cached.get_range(name, 0..1 << 30).await.unwrap();
        }
        finish(&cached);
        for below in [WHOLE, PARTS] {
            let all = files(&folder.path().join("kloset").join(below));
            assert!(all.len() >= 2);
            for (n, file) in all.iter().enumerate().filter(|(_, file)| file.exists()) {
                harm(file, &all[(n + 1) % all.len()]);
            }
        }
        for _ in 0..2 {
            for (seed, name) in [(0, "a"), (1, "b")] {
                assert_eq!(cached.get(name, 1 << 30).await.unwrap(), content(seed, OBJECT_BYTES));
                assert_eq!(cached.get_range(name, 0..1 << 30).await.unwrap(), content(seed, OBJECT_BYTES));
            }
            finish(&cached);
        }
    }
}

#[tokio::test]
async fn what_was_used_longest_ago_goes_and_the_bound_holds() {
    let names: Vec<String> = (0..20).map(|n| format!("packs/{n}")).collect();
    let store = filled(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let folder = tempfile::tempdir().unwrap();
    let bytes_max = 6 << 20; // seven objects
    fs::write(folder.path().join("thesis.tex"), "mine").unwrap();
    let caches = [open(&store, folder.path(), bytes_max), open(&store, folder.path(), bytes_max)];
    for (n, name) in names.iter().enumerate() {
        let cached = &caches[n % 2]; // two processes that know nothing of each other
        cached.get(name, 1 << 30).await.unwrap();
        cached.get(&names[0], 1 << 30).await.unwrap();
        finish(cached);
        assert!(taken(folder.path()) <= bytes_max, "{}", taken(folder.path()));
        std::thread::sleep(Duration::from_millis(5)); // the grain of file times
    }
    assert!(taken(folder.path()) >= bytes_max / 2);
    let cached = &caches[0];
    assert_eq!(asked(cached, cached.get(&names[0], 1 << 30)).await.0, 0, "used all the time");
    assert_eq!(asked(cached, cached.get(&names[19], 1 << 30)).await.0, 0, "used last");
    assert_eq!(asked(cached, cached.get(&names[1], 1 << 30)).await.0, 1, "used longest ago");
    assert_eq!(fs::read(folder.path().join("thesis.tex")).unwrap(), b"mine");
    assert!(!folder.path().join("CACHEDIR.TAG").exists(), "not all of this folder is a cache");
}

#[tokio::test]
async fn whole_objects_outlive_pieces_but_do_not_take_everything() {
    let names: Vec<String> = (0..20).map(|n| format!("packs/{n}")).collect();
    let store = filled(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let folder = tempfile::tempdir().unwrap();
    let cached = open(&store, folder.path(), 6 << 20);
    cached.get(&names[0], 1 << 30).await.unwrap();
    for name in &names {
        cached.get_range(name, 0..1 << 30).await.unwrap();
        finish(&cached);
    }
    assert_eq!(asked(&cached, cached.get(&names[0], 1 << 30)).await.0, 0);
    for name in &names {
        cached.get(name, 1 << 30).await.unwrap();
        finish(&cached);
    }
    assert!(!files(&folder.path().join("kloset").join(PARTS)).is_empty());
    assert!(taken(folder.path()) <= 6 << 20);
}

#[tokio::test]
async fn the_ledger_counts_for_all_and_a_lost_one_is_made_again() {
    let (store, folder) = (filled(&["a", "b", "c"]).await, tempfile::tempdir().unwrap());
    for name in ["a", "b"] {
        let cached = open(&store, folder.path(), 1 << 30);
        cached.get(name, 1 << 30).await.unwrap();
        finish(&cached);
    }
    let ledger = || fs::metadata(folder.path().join("ledger")).unwrap().len() * 4096;
    assert_eq!(ledger(), 2 * (OBJECT_BYTES as u64 + 40).next_multiple_of(4096));
    fs::remove_file(folder.path().join("ledger")).unwrap();
    let abandoned = folder.path().join("kloset").join(NEW).join("123-4");
    fs::write(&abandoned, "half").unwrap();
    fs::File::open(&abandoned).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    fs::write(abandoned.with_file_name("123-5"), "being written").unwrap();
    let cached = open(&store, folder.path(), 1 << 30);
    cached.get("c", 1 << 30).await.unwrap();
    finish(&cached);
    assert_eq!(ledger(), 3 * (OBJECT_BYTES as u64 + 40).next_multiple_of(4096));
    assert!(!abandoned.exists() && abandoned.with_file_name("123-5").exists());
}

#[tokio::test]
async fn it_is_private_and_says_what_it_is() {
    let (store, folder) = (filled(&["a"]).await, tempfile::tempdir().unwrap());
    let top = folder.path().join("new/cache");
    let cached = open(&store, &top, 1 << 30);
    cached.get("a", 1 << 30).await.unwrap();
    finish(&cached);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let whole = top.join("kloset").join(WHOLE);
    for folder in [&top, &top.join("kloset"), &whole] {
        assert_eq!(mode(folder), 0o700);
    }
    assert_eq!(mode(&files(&whole)[0]), 0o600);
    let tag = fs::read_to_string(top.join("CACHEDIR.TAG")).unwrap();
    assert!(tag.starts_with("Signature: 8a477f597d28d172789f06886806bc55\n"));
    fs::set_permissions(top.join("kloset"), fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_dir_all(&whole).unwrap();
    let cached = open(&store, &top, 1 << 30);
    cached.get("a", 1 << 30).await.unwrap();
    finish(&cached);
    assert!(!whole.exists(), "nothing is written where others may write");
}

#[tokio::test]
async fn it_may_vanish_while_in_use() {
    let (store, folder) = (filled(&["a"]).await, tempfile::tempdir().unwrap());
    let cached = open(&store, &folder.path().join("cache"), 1 << 30);
    for _ in 0..3 {
        assert_eq!(asked(&cached, cached.get("a", 1 << 30)).await.0, 1);
        assert_eq!(asked(&cached, cached.get("a", 1 << 30)).await.0, 0);
        fs::remove_dir_all(folder.path().join("cache")).unwrap();
    }
}

/// A small disk that goes away with its test.
struct Disk(tempfile::TempDir);

impl Disk {
    /// `None` where the tests may not mount.
    fn new() -> Option<Disk> {
        let folder = tempfile::tempdir().unwrap();
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), c"size=1m").ok().map(|()| Disk(folder))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(self.0.path(), UnmountFlags::DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_and_a_read_only_one_are_done_without() {
    let Some(disk) = Disk::new() else { return };
    let (store, folder) = (filled(&["a", "b", "c"]).await, disk.0.path());
    let cached = open(&store, folder, 1 << 30);
    for (seed, name) in [(0, "a"), (1, "b"), (2, "c")] {
        assert_eq!(cached.get(name, 1 << 30).await.unwrap(), content(seed, OBJECT_BYTES));
        finish(&cached);
    }
    assert_eq!(files(&folder.join("kloset").join(WHOLE)).len(), 1);
    assert!(files(&folder.join("kloset").join(NEW)).is_empty());
    mount_remount(folder, MountFlags::RDONLY, c"").unwrap();
    let cached = open(&store, folder, 1 << 30);
    for (gets, name) in [(0, "a"), (1, "b"), (1, "b")] {
        assert_eq!(asked(&cached, cached.get(name, 1 << 30)).await.0, gets, "{name}");
    }
}

#[tokio::test]
async fn a_write_that_fails_half_way_leaves_nothing() {
    let Some(disk) = Disk::new() else { return };
    let folder = Folder::new(disk.0.path(), "kloset");
    folder.prepare().unwrap();
    assert!(folder.write("00", &vec![1; 2 << 20], &[0; TRAILER_BYTES]).is_err());
    let kloset = disk.0.path().join("kloset");
    assert!(files(&kloset.join(NEW)).is_empty() && files(&kloset.join(WHOLE)).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_read_the_truth() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let (store, folder) = (filled(&names).await, tempfile::tempdir().unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8_usize {
        let cached = open(&store, folder.path(), 3 << 20);
        let top = folder.path().to_owned();
        tasks.spawn(async move {
            for turn in 0..30 {
                let seed = (n * 7 + turn * 5) % names.len();
                let expected = content(seed as u8, OBJECT_BYTES);
                let start = ((n + turn) % 4) as u64 * PIECE_BYTES;
                assert_eq!(cached.get(names[seed], 1 << 30).await.unwrap(), expected);
                let range = cached.get_range(names[seed], start..start + 2 * PIECE_BYTES).await.unwrap();
                assert_eq!(range, expected[start as usize..][..range.len()]);
                if n == 0 && turn % 10 == 9 {
                    let _ = tokio::fs::remove_dir_all(&top).await;
                }
            }
            finish(&cached);
        });
    }
    tasks.join_all().await;
    assert!(taken(folder.path()) <= 4 << 20);
}
