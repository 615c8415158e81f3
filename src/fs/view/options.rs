//! How a view is to be.

use std::time::Duration;

use super::super::filter::Wanted;
use super::super::listing::REFRESH_DEFAULT;
use crate::repo::READER_BYTES_DEFAULT;
use crate::repo::layout::SnapshotName;

/// How a view is to be.
#[derive(Clone, Debug)]
pub struct ViewOptions {
    /// Shows this snapshot alone, its root as the root of the mount.
    pub only: Option<SnapshotName>,
    /// With `only`: shows this folder of it, the root where it is empty.
    pub path: Vec<u8>,
    /// Shows these snapshots only.
    pub wanted: Wanted,
    /// About how much memory caches may take.
    pub memory_bytes: usize,
    /// How old the list of snapshots may be for who looks; `None` renews it only by [`super::View::renew`].
    pub refresh: Option<Duration>,
    /// The owner of the virtual top.
    pub owner: (u32, u32),
    /// User id to show for everything instead of the stored ones.
    pub uid: Option<u32>,
    /// Group id to show for everything instead of the stored ones.
    pub gid: Option<u32>,
    /// Shows everything as readable for its owner, and no ACLs.
    pub readable: bool,
}

impl Default for ViewOptions {
    fn default() -> Self {
        Self {
            only: None,
            path: Vec::new(),
            wanted: Wanted::default(),
            memory_bytes: READER_BYTES_DEFAULT,
            refresh: Some(REFRESH_DEFAULT),
            owner: (0, 0),
            uid: None,
            gid: None,
            readable: false,
        }
    }
}
