//! Extended attributes: those of the source, and what a mount knows of a snapshot besides.
//!
//! Ours are answered for whoever asks for them, but inside a snapshot not listed, so that a copy made of the mount is the
//! source's and nothing more. Stored ones come first. Where the mount is to be readable for one user, ACLs are not shown,
//! and so not enforced.

use super::errno::FsError;
use super::roots::{Root, What};
use super::view::{Inode, View};
use crate::repo::RepoError;
use crate::repo::content_id::content_id;
use crate::repo::layout::SnapshotName;
use crate::repo::tree::{Node, NodeKind};

/// Extended attribute with the id of the snapshot that something is in.
const SNAPSHOT_XATTR: &str = "user.kloset.snapshot";
/// Extended attribute of a snapshot that lacks something.
const INCOMPLETE_XATTR: &str = "user.kloset.incomplete";
/// Extended attribute with what a folder or a file holds: the same where the content is.
const ID_XATTR: &str = "user.kloset.id";
/// What the names of ACLs begin with.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// Tells whether a node has an ACL that says who may open it.
#[must_use]
pub fn has_acl(node: &Node) -> bool {
    node.xattrs.iter().any(|(name, _)| name == b"system.posix_acl_access")
}

impl View {
    /// Returns the names of an inode's extended attributes, each with a NUL behind it.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn listxattr(&self, number: u64) -> Result<Vec<u8>, FsError> {
        let mut names = Vec::new();
        let mut add = |name: &[u8]| {
            names.extend_from_slice(name);
            names.push(0);
        };
        match self.inode(number).await? {
            Inode::Root(root) => {
                self.top_node().iter().filter(|_| root.is_top()).for_each(|node| self.add_names(node, &mut add));
                self.root_xattrs(&root).await?.iter().for_each(|(name, _)| add(name.as_bytes()));
            }
            Inode::Path(_) => {}
            Inode::Node(at) => self.add_names(at.node()?, &mut add),
        }
        Ok(names)
    }

    fn add_names(&self, node: &Node, add: &mut dyn FnMut(&[u8])) {
        node.xattrs.iter().filter(|xattr| self.shows(&xattr.0)).for_each(|(name, _)| add(name));
    }

    /// Returns the value of an extended attribute, as it was stored.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`], [`FsError`].
    pub async fn getxattr(&self, number: u64, name: &[u8]) -> Result<Vec<u8>, FsError> {
        match self.inode(number).await? {
            Inode::Root(root) => {
                let stored = self.top_node().filter(|_| root.is_top()).and_then(|node| self.stored(node, name));
                match stored {
                    Some(value) => Ok(value),
                    None => self.root_xattr(&root, name).await,
                }
            }
            Inode::Path(_) => Err(FsError::NoAttribute),
            Inode::Node(at) => {
                let node = at.node()?;
                if let Some(value) = self.stored(node, name) {
                    return Ok(value);
                }
                if name == SNAPSHOT_XATTR.as_bytes() {
                    let snapshot = self.snapshot(at.place.home.snapshot).ok_or(FsError::Stale)?;
                    return Ok(snapshot.id.to_string().into_bytes());
                }
                if name != ID_XATTR.as_bytes() {
                    return Err(FsError::NoAttribute);
                }
                match &node.kind {
                    NodeKind::Directory(tree) => Ok(tree.id.to_string().into_bytes()),
                    NodeKind::File(file) => Ok(content_id(self.reader(), file).await?.to_hex().as_bytes().to_vec()),
                    _ => Err(FsError::NoAttribute),
                }
            }
        }
    }

    fn shows(&self, name: &[u8]) -> bool {
        !(self.is_readable() && name.starts_with(ACL_PREFIX))
    }

    fn stored(&self, node: &Node, name: &[u8]) -> Option<Vec<u8>> {
        let at = node.xattrs.binary_search_by(|xattr| xattr.0.as_slice().cmp(name)).ok()?;
        self.shows(name).then(|| node.xattrs[at].1.clone())
    }

    async fn root_xattr(&self, root: &Root, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let What::Snapshot(snapshot) = root.what else { return Err(FsError::NoAttribute) };
        if name == ID_XATTR.as_bytes() {
            let tree = self.snapshot_tree(root, snapshot).await?;
            return Ok(tree.id.to_string().into_bytes());
        }
        if !name.starts_with(b"user.kloset.") {
            return Err(FsError::NoAttribute);
        }
        let xattrs = self.root_xattrs(root).await?;
        let found = xattrs.into_iter().find(|xattr| xattr.0.as_bytes() == name);
        found.map(|xattr| xattr.1.into_bytes()).ok_or(FsError::NoAttribute)
    }

    async fn root_xattrs(&self, root: &Root) -> Result<Vec<(&'static str, String)>, FsError> {
        let What::Snapshot(name) = root.what else { return Ok(Vec::new()) };
        let mut xattrs = Vec::new();
        if self.is_incomplete(name).await? {
            xattrs.push((INCOMPLETE_XATTR, "1".to_owned()));
        }
        xattrs.push((SNAPSHOT_XATTR, name.id.to_string()));
        Ok(xattrs)
    }

    async fn is_incomplete(&self, name: SnapshotName) -> Result<bool, RepoError> {
        Ok(self.roots().open(name).await?.incomplete)
    }
}
