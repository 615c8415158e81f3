//! A folder as an object store.
//!
//! Promises that what was put survives a power cut, and that folders made here are readable by
//! their owner only. A folder that is missing is never made by opening it: it may be a disk that is
//! not mounted.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;

use super::answer::classify;
use super::error::{Place, StoreError};

/// Makes a folder where there is none.
pub(super) fn create(folder: &Path, description: &Arc<str>) -> Result<(), StoreError> {
    make(folder).map_err(|error| failed("creating", description, error.into()))
}

/// Opens a folder that exists, with every put synced to disk.
pub(super) fn open(folder: &Path, description: &Arc<str>) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let missing = |source| StoreError::NoFolder { store: description.clone(), source };
    match std::fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            let detail = "it is a file, not a folder".to_owned();
            return Err(StoreError::Misconfigured { store: description.clone(), detail });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(missing(Some(error)));
        }
        Err(error) => return Err(failed("opening", description, error.into())),
    }
    let inner = LocalFileSystem::new_with_prefix(folder);
    let inner = inner.map_err(|error| failed("opening", description, error.into()))?;
    Ok(Arc::new(inner.with_fsync(true)))
}

fn failed(
    operation: &'static str,
    description: &Arc<str>,
    source: Box<dyn std::error::Error + Send + Sync>,
) -> StoreError {
    let at = Place { operation, name: String::new(), store: description.clone() };
    classify(at, object_store::Error::Generic { store: "folder", source })
}

/// Makes a folder and those above it, and sees that they survive a power cut.
fn make(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = match folder.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    make(above)?;
    match std::fs::DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && folder.is_dir() => {}
        done => done?,
    }
    std::fs::File::open(above)?.sync_all()
}
