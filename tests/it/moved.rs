//! Content that moves while a reader is at it is found again through the index, however often it moves.

use std::fs;
use std::sync::Arc;

use kloset_mount::backup::{BackupOptions, backup};
use kloset_mount::fs::view::ROOT;
use kloset_mount::fs::{View, ViewOptions};
use kloset_mount::monitor::Monitor;

use crate::support::switched::{Kloset, noise};

/// Packs of content are longer, packs of these few trees are not.
const CONTENT_BYTES_MIN: u64 = 64 << 10;
/// One chunk of those of the big file, and more than the reader's caches hold.
const STEP: u64 = 4 << 20;

/// Writes all content to new packs, with an index run that says so, and deletes the old packs, as a prune may.
fn move_content(kloset: &Kloset, folder: &std::path::Path) {
    kloset.delete_packs(CONTENT_BYTES_MIN);
    let options =
        BackupOptions { paths: vec![folder.to_owned()], host: "h".to_owned(), force: true, ..BackupOptions::default() };
    backup(&kloset.repo, kloset.runtime.handle(), &options, &Arc::new(Monitor::default())).unwrap();
}

/// A mount that is up while content moves finds it by the index, and finds it again after it has moved once more: the
/// index is read again when it does not explain a failure, though not more often than every ten seconds.
#[test]
fn content_that_moves_twice_under_a_mount_is_found() {
    let (kloset, folder) = (Kloset::new(), tempfile::tempdir().unwrap());
    let content = noise(16 << 20);
    fs::write(folder.path().join("big"), &content).unwrap();
    kloset.backup(folder.path());
    let options = ViewOptions { memory_bytes: 64 << 10, ..ViewOptions::default() };
    let view = kloset.runtime.block_on(View::new(kloset.repo.clone(), options)).unwrap();
    let mut number = ROOT;
    let path = format!("snapshots/2026-11-22_13-59-00{}/big", folder.path().display());
    for name in path.split('/') {
        number = kloset.runtime.block_on(view.lookup(number, name.as_bytes())).unwrap().attr.unwrap().number;
    }
    let read = |at: u64| kloset.runtime.block_on(view.read(number, at, 100_000));
    let is_true = |at: u64| read(at).unwrap() == content[usize::try_from(at).unwrap()..][..100_000];
    assert!(is_true(0));
    for at in [STEP, 2 * STEP] {
        move_content(&kloset, folder.path());
        kloset.pass(11);
        assert!(is_true(at) && is_true(0), "after it moved to before {at}");
    }
    // What nobody has any more is damage, and looking for it does not read the index again and again.
    kloset.delete_packs(CONTENT_BYTES_MIN);
    kloset.pass(11);
    assert!(read(3 * STEP).is_err());
    let before = kloset.repo.store.counts().lists;
    assert!(read(2 * STEP).is_err() && read(3 * STEP).is_err());
    assert_eq!(kloset.repo.store.counts().lists, before);
}
