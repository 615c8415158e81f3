//! Whom a folder of `versions/` lets in: nobody whom one of the folders that it stands for would keep out.
//!
//! Pure. Modes with one owner in common are intersected bit by bit, which is exact, since the owner and the group decide
//! which bits count. Where owners differ, or an ACL has its say, that cannot be told by one mode: then only the owner goes
//! in, or only who has mounted.

use super::attr::Attr;
use super::xattrs::has_acl;
use crate::repo::tree::{Node, NodeKind};

/// Who goes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Whoever has come so far: no folder of a snapshot is behind it.
    #[default]
    Open,
    /// Whom these let in.
    Of {
        /// User id of the owner.
        uid: u32,
        /// Group id of the owner.
        gid: u32,
        /// Permission bits.
        mode: u16,
    },
    /// Who has mounted.
    Mounter,
}

impl Guard {
    /// Lets in whom `node` lets in, too, if that is a folder.
    #[must_use]
    pub fn and(self, node: &Node) -> Self {
        if !matches!(node.kind, NodeKind::Directory(_)) {
            return self;
        }
        let mask = if has_acl(node) { 0o700 } else { 0o777 };
        let (uid, gid, mode) = (node.owner.uid, node.owner.gid, u16::try_from(node.mode & mask).expect("nine bits"));
        match self {
            Self::Open => Self::Of { uid, gid, mode },
            Self::Of { uid: u, gid: g, mode: m } if (u, g) == (uid, gid) => Self::Of { uid, gid, mode: m & mode },
            Self::Of { .. } | Self::Mounter => Self::Mounter,
        }
    }

    /// Returns `attr`, of a folder of the virtual top, as this guards it.
    #[must_use]
    pub fn guard(self, attr: Attr) -> Attr {
        match self {
            Self::Open => attr,
            Self::Of { uid, gid, mode } => Attr { uid, gid, mode, ..attr },
            Self::Mounter => Attr { mode: 0o700, ..attr },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::tree::tests::{node, tree};

    fn folder(uid: u32, mode: u32) -> Node {
        let mut node = node(b"x", NodeKind::Directory(tree(1)));
        (node.owner.uid, node.owner.gid, node.mode) = (uid, 8, mode);
        node.xattrs.clear();
        node
    }

    #[track_caller]
    fn check(folders: &[Node], expected: Guard) {
        assert_eq!(folders.iter().fold(Guard::Open, Guard::and), expected);
        assert_eq!(folders.iter().rev().fold(Guard::Open, Guard::and), expected);
    }

    #[test]
    fn nobody_goes_in_whom_one_of_them_keeps_out() {
        check(&[], Guard::Open);
        check(&[node(b"x", NodeKind::Fifo)], Guard::Open);
        check(&[folder(7, 0o4755)], Guard::Of { uid: 7, gid: 8, mode: 0o755 });
        check(&[folder(7, 0o755), folder(7, 0o700)], Guard::Of { uid: 7, gid: 8, mode: 0o700 });
        check(&[folder(7, 0o705), folder(7, 0o750)], Guard::Of { uid: 7, gid: 8, mode: 0o700 });
        check(&[folder(7, 0o755), folder(9, 0o755)], Guard::Mounter);
        check(&[folder(7, 0o755), folder(9, 0o755), folder(7, 0o755)], Guard::Mounter);
        let mut with_acl = folder(7, 0o775);
        with_acl.xattrs.push((b"system.posix_acl_access".to_vec(), vec![]));
        check(&[folder(7, 0o755), with_acl], Guard::Of { uid: 7, gid: 8, mode: 0o700 });
    }
}
