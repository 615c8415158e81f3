//! Listing directories, line by line.
//!
//! An offset stands for the same place at any time, whatever was listed before and whatever comes and goes.

use super::super::attr::{Attr, Kind};
use super::super::directory;
use super::super::errno::FsError;
use super::super::roots::Root;
use super::{Directory, FIXED_TTL, Folder, Line, TOP_TTL, View, ttl};

impl View {
    /// Lists a directory from `offset` on, 0 for its start, until `take` returns `true` for a line it has no room for.
    ///
    /// An offset stands for the same place in the directory at any time. With `counted`, each line that was taken counts
    /// as a lookup, as the kernel wants it of listings with attributes. One call ends at the latest where a page of a
    /// large directory does; none taken means the end.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn readdir(
        &self,
        number: u64,
        offset: u64,
        counted: bool,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        match self.directory(number).await? {
            Folder::Stored(directory) => {
                if !dots(offset, directory.number, directory.parent, take) {
                    self.list_nodes(&directory, offset.max(2), counted, take).await?;
                }
                Ok(())
            }
            Folder::Path(folder) => {
                if !dots(offset, folder.number, folder.parent, take) {
                    self.list_path(&folder, offset.max(2), counted, take).await?;
                }
                Ok(())
            }
            Folder::Root(root) => self.list_roots(&root, offset, take).await,
        }
    }

    /// Offsets 0 and 1 are `.` and `..`, the `n`-th node is at `n + 2`.
    async fn list_nodes(
        &self,
        directory: &Directory,
        offset: u64,
        counted: bool,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        let found = directory::seek(&self.0.reader, directory.tree, offset - 2).await?;
        let Some((leaf, first)) = found else { return Ok(()) };
        for (slot, node) in leaf.nodes().iter().enumerate().skip(first) {
            let number = match counted {
                true => self.remember(directory, &leaf, slot, node)?,
                false => self.0.inodes.number(self.identity(directory, node)?),
            };
            let next = offset + (slot - first) as u64 + 1;
            let line = Line { name: node.name.as_bytes(), attr: self.attr(node, number), ttl: FIXED_TTL, next };
            if take(&line) {
                if counted {
                    self.0.inodes.forget(number, 1);
                }
                break;
            }
        }
        Ok(())
    }

    /// A child's offset is its sequence number and 1, so that it stays the same while others come and go.
    async fn list_roots(
        &self,
        root: &Root,
        offset: u64,
        take: &mut (dyn FnMut(&Line<'_>) -> bool + Send),
    ) -> Result<(), FsError> {
        let children = self.0.roots.list(root).await?;
        if dots(offset, root.number, root.parent, take) {
            return Ok(());
        }
        for child in children.iter().filter(|child| u64::from(child.sequence) + 2 > offset) {
            let next = u64::from(child.sequence) + 2;
            let line = Line { name: child.name.as_bytes(), attr: self.root_attr(child), ttl: ttl(child), next };
            if take(&line) {
                break;
            }
        }
        Ok(())
    }
}

/// Lists `.` and `..` if they are not behind; returns whether there was no room.
fn dots(offset: u64, number: u64, parent: u64, take: &mut (dyn FnMut(&Line<'_>) -> bool + Send)) -> bool {
    let dots: [(&[u8], u64); 2] = [(b".", number), (b"..", parent)];
    for (at, (name, number)) in (0..).zip(dots) {
        let attr = Attr { kind: Kind::Directory, ..Attr::of_root(number, None, 0, (0, 0)) };
        if at >= offset && take(&Line { name, attr, ttl: TOP_TTL, next: at + 1 }) {
            return true;
        }
    }
    false
}
