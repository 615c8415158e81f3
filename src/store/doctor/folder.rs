//! What a folder does with objects: puts that survive a power cut, links, reads, listings, deletions, free space.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::super::{S3Options, Store, StoreError, StoreLocation};
use super::{PACK_BYTES, PROBE_BYTES, Report, noise, speed};
use crate::env::Env;

/// With less than that a first backup may not fit.
const FREE_BYTES_MIN: u64 = 1 << 30;

/// Finds out what a folder does, and leaves it as it was, as far as that is allowed.
pub(super) async fn examine(report: &mut Report, folder: &Path, name: &str, env: &Env) {
    let store = match Store::open(&StoreLocation::Folder(folder.to_owned()), &S3Options::default()) {
        Ok(store) => store,
        Err(error) => return report.fail("folder", error.to_string()),
    };
    report.ok("folder", "it is there");
    objects(report, &store, name, env).await;
    clean(report, &store, (folder, name)).await;
    space(report, folder);
    report.requests = store.counts().requests();
}

async fn objects(report: &mut Report, store: &Store, name: &str, env: &Env) {
    let (first, second) = (noise(&env.entropy, PROBE_BYTES), noise(&env.entropy, PROBE_BYTES));
    let probe = format!("{name}/probe");
    if let Err(error) = store.put_new(&probe, first.clone()).await {
        return report.fail("writing", error.to_string());
    }
    report.ok("writing", "an object was put and is on the disk");
    let what = "create-if-absent";
    match store.put_new(&probe, second).await {
        Err(StoreError::AlreadyExists { .. }) if store.plain_puts.load(Ordering::Relaxed) => {
            report.note(what, "by looking first, since there are no hard links: a kloset needs none");
        }
        Err(StoreError::AlreadyExists { .. }) => report.ok(what, "enforced: what is there is not overwritten"),
        Err(error) => report.note(what, format!("a second put failed: {error}")),
        Ok(()) => {
            report.note(what, "not enforced: a kloset is safe all the same, since no two writers choose one name");
        }
    }
    match store.get(&probe, PROBE_BYTES as u64).await {
        Ok(content) if content == first => report.ok("reading", "an object came back as it was put"),
        Ok(_) => report.fail("reading", "an object came back changed"),
        Err(error) => report.fail("reading", error.to_string()),
    }
    match store.get_range(&probe, 16..48).await {
        Ok(part) if part == first.slice(16..48) => {
            report.ok("ranges", "parts of an object come as they were asked for");
        }
        Ok(_) => report.fail("ranges", "a range is not what was asked for"),
        Err(error) => report.fail("ranges", error.to_string()),
    }
    match store.list(name).await {
        Ok(found) if found.iter().map(|object| &object.name).eq([&probe]) => report.ok("listing", "complete at once"),
        Ok(found) => report.fail("listing", format!("of 1 object that was just put, {} are listed", found.len())),
        Err(error) => report.fail("listing", error.to_string()),
    }
    throughput(report, store, name, env).await;
}

async fn throughput(report: &mut Report, store: &Store, name: &str, env: &Env) {
    let (pack, content) = (format!("{name}/pack"), noise(&env.entropy, PACK_BYTES));
    let begun = Instant::now();
    if let Err(error) = store.put_new(&pack, content.clone()).await {
        return report.fail("throughput", format!("an object of 16 MiB, as packs are, was not taken: {error}"));
    }
    let up = speed(content.len(), begun.elapsed());
    match store.get(&pack, content.len() as u64).await {
        Ok(found) if found == content => {
            report.ok("throughput", format!("{up} written and synced, one object of 16 MiB"));
        }
        Ok(_) => report.fail("throughput", "an object of 16 MiB did not come back as it was put"),
        Err(error) => report.fail("throughput", error.to_string()),
    }
}

async fn clean(report: &mut Report, store: &Store, (folder, name): (&Path, &str)) {
    let names = match store.list(name).await {
        Ok(found) => found.into_iter().map(|object| object.name).collect::<Vec<_>>(),
        Err(error) => return report.note("deleting", format!("not to be seen what is left in {name:?}: {error}")),
    };
    let deleted = store.delete_all(&names).await.map_err(|error| error.to_string());
    let at = folder.join(name);
    let removed = deleted.and_then(|()| match std::fs::remove_dir(&at) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    });
    match removed {
        Ok(()) => report.ok("deleting", "allowed, and what was put here is gone"),
        Err(error) => {
            report.note("deleting", format!("not allowed: right for backups; prune and forget need it ({error})"));
            report.left.push(at.display().to_string());
        }
    }
}

fn space(report: &mut Report, folder: &Path) {
    match rustix::fs::statvfs(folder) {
        Ok(found) => {
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            let text = format!("{:.1} GB free", free as f64 / 1e9);
            match free >= FREE_BYTES_MIN {
                true => report.ok("space", text),
                false => report.note("space", format!("{text}: that is little for backups")),
            }
        }
        Err(error) => report.note("space", format!("not known: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Verdict, examine};
    use super::*;

    #[tokio::test]
    async fn a_folder_is_found_good_and_left_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("other"), "x").unwrap();
        let location = StoreLocation::Folder(folder.path().to_owned());
        let report = examine(&location, &S3Options::default(), &Env::system()).await.unwrap();
        assert!(report.holds() && report.left.is_empty() && report.settings.is_empty(), "{report:?}");
        for what in ["folder", "writing", "create-if-absent", "reading", "ranges", "listing", "throughput", "deleting"]
        {
            let finding = report.findings.iter().find(|finding| finding.what == what).unwrap();
            assert_eq!(finding.verdict, Verdict::Ok, "{finding:?}");
        }
        let left: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["other"]);
    }

    #[tokio::test]
    async fn a_folder_that_is_none_is_a_finding_and_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("none");
        let report = examine(&StoreLocation::Folder(at.clone()), &S3Options::default(), &Env::system()).await.unwrap();
        assert!(!report.holds() && !at.exists(), "{report:?}");
    }
}
