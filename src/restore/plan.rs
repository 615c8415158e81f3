//! What a restore would do, and what is in its way: looked at before anything is written.
//!
//! Without a dry run only those folders are entered that the target has too, so that restoring into an empty folder
//! costs nothing here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tokio::runtime::Handle;

use super::report::{PATHS_MAX, RestoreReport};
use super::{Overwrite, RestoreError, RestoreOptions, Start, below};
use crate::repo::path::{Nodes, leaf};
use crate::repo::snapshot::ByteText;
use crate::repo::tree::{Node, NodeKind, TreeRef};
use crate::repo::{Reader, RepoError};

/// What would be done.
#[derive(Default)]
pub(super) struct Plan {
    report: RestoreReport,
    /// The first paths, below the root, where something is that would be replaced or is in the way.
    pub(super) in_the_way: Vec<Vec<u8>>,
    /// How many there are.
    pub(super) in_the_way_total: u64,
}

struct Look<'a> {
    reader: &'a Reader,
    runtime: &'a Handle,
    options: &'a RestoreOptions,
    plan: Plan,
    path: Vec<u8>,
}

impl Plan {
    /// Looks at the snapshot and the target.
    pub(super) fn of(
        reader: &Reader,
        runtime: &Handle,
        start: &Start,
        options: &RestoreOptions,
    ) -> Result<Self, RestoreError> {
        let mut look = Look { reader, runtime, options, plan: Self::default(), path: Vec::new() };
        if options.overwrite != Overwrite::Never && !options.dry_run {
            return Ok(look.plan);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let target = rustix::fs::open(&options.target, flags, Mode::empty()).ok();
        match start {
            Start::Folder(tree, _) => look.folder(*tree, target)?,
            Start::Entry(page) => {
                for node in leaf(page) {
                    look.entry(node, target.as_ref().map(AsFd::as_fd))?;
                }
            }
        }
        Ok(look.plan)
    }

    /// Returns the report of a dry run.
    pub(super) fn report(self, base: &[u8]) -> RestoreReport {
        RestoreReport {
            in_the_way: self.in_the_way.iter().map(|path| ByteText(below(base, path))).collect(),
            in_the_way_total: self.in_the_way_total,
            ..self.report
        }
    }
}

impl Look<'_> {
    fn folder(&mut self, tree: TreeRef, target: Option<OwnedFd>) -> Result<(), RestoreError> {
        if target.is_none() && !self.options.dry_run {
            return Ok(());
        }
        let mut nodes = Nodes::new(self.reader, tree);
        loop {
            match self.runtime.block_on(nodes.next_page()) {
                Ok(None) => return Ok(()),
                Ok(Some(page)) => {
                    for node in leaf(&page) {
                        self.entry(node, target.as_ref().map(AsFd::as_fd))?;
                    }
                }
                Err(RepoError::Damaged { .. }) => {} // the restore itself reports it
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn entry(&mut self, node: &Node, target: Option<BorrowedFd<'_>>) -> Result<(), RestoreError> {
        let name = node.name.as_bytes();
        let there = target.and_then(|fd| rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW).ok());
        let before = self.path.len();
        if before > 0 {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        let outcome = match &node.kind {
            NodeKind::Directory(tree) => {
                self.plan.report.directories += 1;
                let below = there.as_ref().and_then(|stat| self.merges(stat, target, name));
                if there.is_some() && below.is_none() {
                    self.is_in_the_way();
                }
                self.folder(*tree, below)
            }
            kind => {
                self.leaf(node, kind, there.as_ref());
                Ok(())
            }
        };
        self.path.truncate(before);
        outcome
    }

    /// Opens the folder of the target that a folder of the snapshot would be merged with.
    fn merges(&self, stat: &Stat, target: Option<BorrowedFd<'_>>, name: &[u8]) -> Option<OwnedFd> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return None;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(target?, name, flags, Mode::empty()).ok()
    }

    fn leaf(&mut self, node: &Node, kind: &NodeKind, there: Option<&Stat>) {
        if there.is_some_and(|stat| self.options.overwrite == Overwrite::IfChanged && is_unchanged(node, stat)) {
            self.plan.report.unchanged += 1;
            return;
        }
        if there.is_some() {
            self.is_in_the_way();
        }
        match kind {
            NodeKind::File(content) => {
                self.plan.report.files += 1;
                self.plan.report.bytes += content.bytes;
            }
            _ => self.plan.report.others += 1,
        }
    }

    fn is_in_the_way(&mut self) {
        self.plan.in_the_way_total += 1;
        if self.plan.in_the_way.len() < PATHS_MAX {
            self.plan.in_the_way.push(self.path.clone());
        }
    }
}

/// Tells whether a file of the target looks as the snapshot has it: a regular file of its size and time.
pub(super) fn is_unchanged(node: &Node, there: &Stat) -> bool {
    let NodeKind::File(content) = &node.kind else { return false };
    FileType::from_raw_mode(there.st_mode) == FileType::RegularFile
        && u64::try_from(there.st_size) == Ok(content.bytes)
        && there.st_mtime == node.mtime.seconds
        && there.st_mtime_nsec == u64::from(node.mtime.nanos)
}
