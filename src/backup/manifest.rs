//! The manifest of a backup before anything is read, and the search for the snapshot that is compared with.

use super::targets::Targets;
use super::{BackupError, BackupOptions};
use crate::monitor::Monitor;
use crate::repo::id::{ChunkId, SessionId};
use crate::repo::layout::{self, SnapshotName};
use crate::repo::snapshot::{ByteText, Manifest, Root, Summary, TEXTS_BYTES_MAX};
use crate::repo::{Repo, RepoError};

/// Manifests looked at together when the parent is sought.
const PARENTS_AT_ONCE: usize = 8;

/// Returns the manifest as far as it is known before anything is read. Of lists that are too long to be noted, it notes
/// the folder that holds all.
pub(super) fn begin(
    options: &BackupOptions,
    targets: &Targets,
    name: SnapshotName,
    monitor: &Monitor,
) -> Result<Manifest, BackupError> {
    let nowhere =
        Root { id: ChunkId([0; 32]), bytes: 0, session: SessionId([0; 32]), pack: 0, frame: 0, chunk_offset: 0 };
    let mut manifest = Manifest {
        version: 1,
        id: name.id,
        time: layout::timestamp(name.unix_ms).to_string(),
        end: String::new(),
        host: options.host.clone(),
        user: options.user.clone(),
        program: concat!("kloset-mount ", env!("CARGO_PKG_VERSION")).into(),
        paths: targets.absolute().into_iter().map(ByteText).collect(),
        tags: options.tags.clone(),
        description: options.description.clone(),
        excludes: options.excludes.rules.iter().map(|rule| ByteText(rule.text.clone().into_bytes())).collect(),
        parent: None,
        original: None,
        root: nowhere,
        summary: Summary::default(),
        index: Vec::new(),
        incomplete: false,
        errors: Vec::new(),
        errors_total: 0,
    };
    if !options.listed.is_empty() && manifest.encoded_bytes() > TEXTS_BYTES_MAX {
        let common = targets.common();
        monitor
            .trouble(&common, "holds all paths, which are too many to be noted; the snapshot notes it instead".into());
        manifest.paths = vec![ByteText(common)];
    }
    let bytes = manifest.encoded_bytes();
    if bytes > TEXTS_BYTES_MAX { Err(BackupError::Texts(bytes)) } else { Ok(manifest) }
}

/// Finds the parent: the snapshot that was named, or the newest one of the same host and paths. Lists are other ones each
/// time: for those, any of the newest of the same host will do.
pub(super) async fn find_parent(
    repo: &Repo,
    options: &BackupOptions,
    paths: &[ByteText],
) -> Result<Option<(SnapshotName, Manifest)>, RepoError> {
    if !repo.keys.can_read() {
        let compares = options.parent.is_some() || options.skip_if_unchanged;
        return if compares { Err(RepoError::WriteOnly) } else { Ok(None) };
    }
    if let Some(spec) = &options.parent {
        let name = repo.resolve(spec).await?;
        return Ok(Some((name, repo.manifest(name).await?)));
    }
    let names = repo.snapshots().await?;
    for newest in names.rchunks(PARENTS_AT_ONCE) {
        let mut of_host = None;
        for (name, manifest) in repo.manifests(newest).await.into_iter().rev() {
            match manifest {
                Ok(manifest) if manifest.host != options.host => {}
                Ok(manifest) if manifest.paths == paths => return Ok(Some((name, manifest))),
                Ok(manifest) => of_host = of_host.or(Some((name, manifest))),
                Err(error) => tracing::warn!("a snapshot is passed over: {error}"),
            }
        }
        if of_host.is_some() && !options.listed.is_empty() {
            return Ok(of_host);
        }
    }
    Ok(None)
}
