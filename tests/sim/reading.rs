//! Reading all that a snapshot holds of a folder: by the reader as `restore` does, by the view as a mount does.

use std::path::Path;

use futures::FutureExt;
use futures::future::BoxFuture;
use kloset_mount::fs::attr::Kind;
use kloset_mount::fs::view::ROOT;
use kloset_mount::fs::{FsError, View};
use kloset_mount::repo::layout::SnapshotName;
use kloset_mount::repo::path::{Nodes, leaf, resolve};
use kloset_mount::repo::tree::{NodeKind, TreeRef};
use kloset_mount::repo::{Reader, Repo, RepoError};

use crate::source::Model;

/// Reads a snapshot through the reader, opening it first.
pub(crate) async fn by_reader(repo: &Repo, reader: &Reader, name: SnapshotName, at: &Path) -> Result<Model, RepoError> {
    let manifest = repo.manifest(name).await?;
    let found = resolve(reader, manifest.root.into(), at.as_os_str().as_encoded_bytes()).await?;
    let mut out = Model::new();
    read_tree(reader, found.directory(b"")?, String::new(), &mut out).await?;
    Ok(out)
}

fn read_tree<'a>(
    reader: &'a Reader,
    tree: TreeRef,
    above: String,
    out: &'a mut Model,
) -> BoxFuture<'a, Result<(), RepoError>> {
    async move {
        let mut pages = Nodes::new(reader, tree);
        while let Some(page) = pages.next_page().await? {
            for node in leaf(&page) {
                let path = format!("{above}{}", String::from_utf8_lossy(node.name.as_bytes()));
                match &node.kind {
                    NodeKind::File(content) => {
                        let bytes = reader.read(content, 0..content.bytes).await?;
                        out.insert(path, bytes);
                    }
                    NodeKind::Directory(tree) => read_tree(reader, *tree, path + "/", out).await?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
    .boxed()
}

/// Reads a snapshot through a view that shows it alone, as a mount's user does.
pub(crate) async fn by_view(view: &View, at: &Path) -> Result<Model, FsError> {
    let mut number = ROOT;
    for part in at.iter().skip(1) {
        let found = view.lookup(number, part.as_encoded_bytes()).await?;
        number = found.attr.ok_or(FsError::Stale)?.number;
    }
    let mut out = Model::new();
    read_folder(view, number, String::new(), &mut out).await?;
    Ok(out)
}

fn read_folder<'a>(
    view: &'a View,
    number: u64,
    above: String,
    out: &'a mut Model,
) -> BoxFuture<'a, Result<(), FsError>> {
    async move {
        let mut lines = Vec::new();
        view.readdir(number, 0, true, &mut |line| {
            lines.push((String::from_utf8_lossy(line.name).into_owned(), line.attr));
            false
        })
        .await?;
        for (name, attr) in lines.into_iter().filter(|(name, _)| name != "." && name != "..") {
            let path = format!("{above}{name}");
            match attr.kind {
                Kind::Directory => read_folder(view, attr.number, path + "/", out).await?,
                _ => drop(out.insert(path, view.read(attr.number, 0, u32::MAX).await?)),
            }
        }
        Ok(())
    }
    .boxed()
}
