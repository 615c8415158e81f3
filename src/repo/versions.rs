//! What a path was over many snapshots: each distinct content once.
//!
//! Only the path is followed, many snapshots side by side; a tree that several share is read once while it is in memory.
//! It knows nothing of how a mount shows versions; what tells one content from another is the same there.

use std::collections::HashMap;

use futures::StreamExt;

use super::content_id::content_id;
use super::error::RepoError;
use super::path::{self, Found};
use super::reader::Reader;
use super::runs::Runs;
use super::tree::{Node, NodeKind};
use super::wanted::Rooted;

/// Snapshots followed at once.
const FOLLOWED: usize = 64;

/// A content of a path.
#[derive(Clone, Debug)]
pub struct Version {
    /// What the newest snapshot that has it says; nothing of the root of a snapshot.
    pub node: Option<Box<Node>>,
    /// Which snapshots have it, by their numbers.
    pub snapshots: Runs,
}

/// What a path was.
#[derive(Debug, Default)]
pub struct Versions {
    /// Its contents, those that were there last first.
    pub versions: Vec<Version>,
    /// Numbers of snapshots that lack it.
    pub absent: Runs,
    /// Snapshots in which it cannot be read.
    pub damaged: Vec<(usize, RepoError)>,
}

/// Follows a path in every snapshot.
///
/// # Errors
/// [`RepoError`], but damage, which is told.
///
/// # Panics
/// Carries on the panic of a task.
pub async fn versions(reader: &Reader, snapshots: &[Rooted], path: &[u8]) -> Result<Versions, RepoError> {
    let follow = snapshots.iter().map(|snapshot| {
        let (reader, root, path) = (reader.clone(), snapshot.root, path.to_vec());
        let followed = tokio::spawn(async move { follow(&reader, root, &path).await });
        async move { followed.await.expect("the task neither panics nor is called off") }
    });
    let mut followed = futures::stream::iter(follow).buffered(FOLLOWED).enumerate();
    let (mut out, mut places) = (Versions::default(), HashMap::new());
    while let Some((number, followed)) = followed.next().await {
        let run = Runs::of(u32::try_from(number).expect("memory ends before"));
        match followed {
            Ok((content, node)) => {
                let place = *places.entry(content).or_insert(out.versions.len());
                match out.versions.get_mut(place) {
                    Some(known) => (known.node, _) = (node, known.snapshots.add(&run)),
                    None => out.versions.push(Version { node, snapshots: run }),
                }
            }
            Err(RepoError::NoPath(_) | RepoError::NotA { .. }) => out.absent.add(&run),
            Err(error @ RepoError::Damaged { .. }) => out.damaged.push((number, error)),
            Err(error) => return Err(error),
        }
    }
    out.versions.sort_by_key(|version| std::cmp::Reverse(version.snapshots.ends().map(|(_, last)| last)));
    Ok(out)
}

/// Returns what a path is in one snapshot, and what tells its content from another.
async fn follow(
    reader: &Reader,
    root: super::tree::TreeRef,
    path: &[u8],
) -> Result<(String, Option<Box<Node>>), RepoError> {
    match path::resolve(reader, root, path).await? {
        Found::Root(root) => Ok((format!("tree {}", root.id), None)),
        Found::Node(node) => Ok((kind_id(reader, &node).await?, Some(node))),
    }
}

async fn kind_id(reader: &Reader, node: &Node) -> Result<String, RepoError> {
    Ok(match &node.kind {
        NodeKind::File(file) => content_id(reader, file).await?.to_hex().to_string(),
        NodeKind::Directory(tree) => format!("tree {}", tree.id),
        other => format!("{other:?}"),
    })
}
