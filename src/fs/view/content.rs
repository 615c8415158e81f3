//! Reading files: what is asked for, and what a sequential reader will ask for next.

use std::sync::Arc;

use bytes::Bytes;

use super::super::attr::seek_hole_or_data;
use super::super::errno::FsError;
use super::super::readahead::Ahead;
use super::super::roots::{Root, What};
use super::{Inode, View};
use crate::repo::path::leaf;
use crate::repo::reader::{Reader, pieces};
use crate::repo::tree::{Node, NodeKind, Page};

/// A file of fewer bytes is not watched for sequential reading: the readahead along the pack does it.
const WATCHED_BYTES_MIN: u64 = 1 << 20;

impl View {
    /// Reads at most `size` bytes of a file; fewer only at its end.
    ///
    /// # Errors
    /// [`FsError`].
    pub async fn read(&self, number: u64, offset: u64, size: u32) -> Result<Bytes, FsError> {
        let at = match self.inode(number).await? {
            Inode::Node(at) => at,
            Inode::Root(Root { what: What::Status, .. }) => {
                return Ok(self.0.status_file.read(offset, size));
            }
            Inode::Root(Root { what: What::Lacks(name, _), .. }) => {
                let list = self.0.roots.lacks(name).await?;
                let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(list.len());
                return Ok(list.slice(at(offset)..at(offset.saturating_add(u64::from(size)))));
            }
            Inode::Root(_) | Inode::Path(_) => return Err(FsError::IsDirectory),
        };
        let file = at.file()?;
        let range = offset.min(file.bytes)..offset.saturating_add(u64::from(size)).min(file.bytes);
        if file.bytes >= WATCHED_BYTES_MIN && !range.is_empty() {
            let ahead = self.0.ahead.note(number, range.clone(), file.bytes);
            if ahead.fetch.is_some() || ahead.open.is_some() {
                tokio::spawn(prefetch(self.0.reader.clone(), at.page.clone(), at.place.slot, ahead));
            }
        }
        let bytes = self.0.reader.read(file, range).await?;
        self.0.status.handed_out(bytes.len());
        Ok(bytes)
    }

    /// Finds the next data or hole of a file.
    ///
    /// # Errors
    /// [`FsError::BehindEnd`] where there is none, [`FsError`].
    pub async fn seek(&self, number: u64, offset: u64, wants_hole: bool) -> Result<u64, FsError> {
        match self.inode(number).await? {
            Inode::Node(at) => {
                let file = at.file()?;
                seek_hole_or_data(&file.holes, file.bytes, offset, wants_hole).ok_or(FsError::BehindEnd)
            }
            Inode::Root(_) | Inode::Path(_) => Err(FsError::Invalid),
        }
    }
}

/// Fetches and opens what a sequential reader will want; whether that works is seen when he comes.
async fn prefetch(reader: Reader, page: Arc<Page>, slot: u32, ahead: Ahead) {
    let Some(Node { kind: NodeKind::File(file), .. }) = leaf(&page).get(slot as usize) else { return };
    if let Some(range) = ahead.fetch {
        for (_, data) in pieces(&file.holes, range).into_iter().filter(|piece| !piece.0) {
            let Ok(chunks) = reader.chunks_in(&file.data, data).await else { return };
            reader.prefetch_all(chunks.iter().map(|chunk| &chunk.1), ahead.is_passing);
        }
    }
    if let Some(range) = ahead.open {
        for (_, data) in pieces(&file.holes, range).into_iter().filter(|piece| !piece.0) {
            let Ok(chunks) = reader.chunks_in(&file.data, data).await else { return };
            for (_, chunk) in chunks {
                if reader.chunk(&chunk).await.is_err() {
                    return;
                }
            }
        }
    }
}
