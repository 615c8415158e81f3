//! Files whose content was restored before under another name.
//!
//! In real folders one file in twenty is a copy of another (licences, generated code, vendored packages). Its content
//! lies in a frame far behind the walk: to fetch and open that again costs a thousand times what reading the copy from
//! the target does. The walk notes where small files went; a copy is believed only after its id has been checked.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::target::Dir;
use crate::repo::id::PackId;
use crate::repo::tree::{ChunkRef, Data, Node, NodeKind};

/// Frames behind the walk that are still in the reader's cache.
const FRAMES_NEAR: usize = 16;
/// Files that are noted: about 50 MB. What comes later is fetched again.
const FILES_MAX: usize = 500_000;

/// The first 8 bytes of a chunk's id.
type Key = [u8; 8];

/// Where a file went: its folder's path, and its name.
struct Place(Arc<[u8]>, Box<[u8]>);

/// Where files went.
#[derive(Default)]
pub(super) struct Copies {
    known: HashMap<Key, Place>,
    /// The folder noted last.
    folder: Option<(Arc<Dir>, Arc<[u8]>)>,
    near: VecDeque<(PackId, u32)>,
}

impl Copies {
    /// Returns the path below the root where a file's content probably is, if it is far from the walk; else notes
    /// that it will be at this one.
    pub(super) fn find_or_note(&mut self, node: &Node, dir: &Arc<Dir>) -> Option<Vec<u8>> {
        let chunk = only_chunk(node)?;
        let frame = (chunk.location.pack, chunk.location.frame_offset);
        let key: Key = *chunk.id.0.first_chunk().expect("32 bytes hold 8");
        if !self.near.contains(&frame) {
            if let Some(Place(folder, name)) = self.known.get(&key) {
                let slash: &[u8] = if folder.is_empty() { b"" } else { b"/" };
                return Some([folder, slash, name].concat());
            }
            if self.near.len() == FRAMES_NEAR {
                self.near.pop_front();
            }
            self.near.push_back(frame);
        }
        if self.known.len() < FILES_MAX {
            let folder = self.folder_path(dir);
            self.known.entry(key).or_insert_with(|| Place(folder, node.name.as_bytes().into()));
        }
        None
    }

    fn folder_path(&mut self, dir: &Arc<Dir>) -> Arc<[u8]> {
        match &self.folder {
            Some((last, path)) if Arc::ptr_eq(last, dir) => path.clone(),
            _ => self.folder.insert((dir.clone(), dir.path().into())).1.clone(),
        }
    }
}

/// Returns the chunk of a file that is exactly one.
pub(super) fn only_chunk(node: &Node) -> Option<&ChunkRef> {
    match &node.kind {
        NodeKind::File(content) if content.holes.is_empty() => match &content.data {
            Data::Chunks(chunks) => match &chunks[..] {
                [chunk] => Some(chunk),
                _ => None,
            },
            Data::Pages(_) => None,
        },
        _ => None,
    }
}
