//! The contract of `Store`, held in memory and in a folder.
//!
//! `tests/it/store.rs` holds the same against an S3 server over HTTP.

use object_store::memory::InMemory;

use super::*;

struct Held {
    store: Store,
    _folder: Option<tempfile::TempDir>,
}

fn stores() -> Vec<Held> {
    let memory = Store::new(Arc::new(InMemory::new()), "memory".to_owned());
    let folder = tempfile::tempdir().unwrap();
    let location = StoreLocation::Folder(folder.path().join("new/kloset"));
    let in_folder = Store::open_or_create_folder(&location, &S3Options::default()).unwrap();
    vec![Held { store: memory, _folder: None }, Held { store: in_folder, _folder: Some(folder) }]
}

#[tokio::test]
async fn what_was_put_is_read_back() {
    for Held { store, _folder } in stores() {
        store.put_new("packs/a/1", Bytes::from_static(b"0123456789")).await.unwrap();
        store.put_new("empty", Bytes::new()).await.unwrap();
        assert_eq!(store.get("packs/a/1", 10).await.unwrap(), "0123456789");
        assert_eq!(store.get("empty", 0).await.unwrap(), "");
        let error = store.get("packs/a/1", 9).await.unwrap_err();
        assert!(matches!(error, StoreError::TooLarge { bytes_max: 9, .. }), "{error}");
        let error = store.get("packs/a/2", 9).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        let counts = store.counts();
        assert_eq!((counts.puts, counts.bytes_up, counts.bytes_down), (2, 10, 10));
    }
}

#[tokio::test]
async fn a_repeated_put_is_done_and_another_content_is_refused() {
    for Held { store, _folder } in stores() {
        store.put_new("x", Bytes::from_static(b"one")).await.unwrap();
        store.put_new("x", Bytes::from_static(b"one")).await.unwrap();
        for other in ["two", "longer"] {
            let error = store.put_new("x", Bytes::from_static(other.as_bytes())).await.unwrap_err();
            assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
        }
        assert_eq!(store.get("x", 100).await.unwrap(), "one");
    }
}

#[tokio::test]
async fn a_store_without_the_condition_is_put_to_plainly() {
    for Held { store, _folder } in stores() {
        store.plain_puts.store(true, Ordering::Relaxed);
        store.put_new("x", Bytes::from_static(b"one")).await.unwrap();
        store.put_new("x", Bytes::from_static(b"one")).await.unwrap();
        let error = store.put_new("x", Bytes::from_static(b"two")).await.unwrap_err();
        assert!(matches!(error, StoreError::AlreadyExists { .. }), "{error}");
    }
}

#[tokio::test]
async fn ranges_are_cut_at_the_end() {
    for Held { store, _folder } in stores() {
        store.put_new("x", Bytes::from_static(b"0123456789")).await.unwrap();
        assert_eq!(store.get_range("x", 2..5).await.unwrap(), "234");
        assert_eq!(store.get_range("x", 8..100).await.unwrap(), "89");
        assert_eq!(store.get_range("x", 3..3).await.unwrap(), "");
        for start in [10, 11] {
            let error = store.get_range("x", start..start + 5).await.unwrap_err();
            assert!(matches!(error, StoreError::OutOfRange { bytes: 10, .. }), "{error}");
        }
        assert!(store.get_range("y", 0..1).await.unwrap_err().is_not_found());
    }
}

#[tokio::test]
async fn listings_are_sorted_and_know_folders() {
    for Held { store, _folder } in stores() {
        for name in ["packs/b/1", "packs/a/2", "packs/a/1", "packsx", "kloset.json"] {
            store.put_new(name, Bytes::from_static(b"abc")).await.unwrap();
        }
        let names = |list: Vec<ObjectInfo>| list.into_iter().map(|object| object.name).collect::<Vec<_>>();
        let packs = store.list("packs").await.unwrap();
        assert!(packs.iter().all(|object| object.bytes == 3 && object.modified_unix_ms > 0));
        assert_eq!(names(packs), ["packs/a/1", "packs/a/2", "packs/b/1"]);
        assert_eq!(store.list("").await.unwrap().len(), 5);
        assert_eq!(store.list("absent").await.unwrap(), []);
    }
}

#[tokio::test]
async fn deleting_what_is_absent_is_done() {
    for Held { store, _folder } in stores() {
        store.put_new("packs/a/1", Bytes::from_static(b"abc")).await.unwrap();
        store.delete("packs/a/1").await.unwrap();
        store.delete("packs/a/1").await.unwrap();
        assert!(store.get("packs/a/1", 9).await.unwrap_err().is_not_found());
    }
}

#[tokio::test]
async fn names_that_leave_the_store_are_refused() {
    for Held { store, _folder } in stores() {
        for name in ["../x", "a//b", "a/./b"] {
            assert!(store.put_new(name, Bytes::new()).await.is_err(), "{name}");
        }
    }
}

#[test]
fn a_missing_folder_is_no_kloset_and_a_new_one_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let location = StoreLocation::Folder(folder.path().join("kloset"));
    let error = Store::open(&location, &S3Options::default()).unwrap_err();
    assert!(matches!(error, StoreError::NoFolder { .. }), "{error}");
    Store::open_or_create_folder(&location, &S3Options::default()).unwrap();
    let mode = folder.path().join("kloset").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    std::fs::write(folder.path().join("file"), "").unwrap();
    let location = StoreLocation::Folder(folder.path().join("file"));
    assert!(Store::open(&location, &S3Options::default()).is_err());
}
