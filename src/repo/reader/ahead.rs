//! Pages fetched before somebody asks for them, and what their frames take.

use super::super::tree::TreeRef;
use super::Reader;

impl Reader {
    /// Fetches the pack of a page and opens the page; returns the pack's length. What fails is for who asks next.
    pub(in super::super) async fn page_ahead(&self, at: &TreeRef) -> usize {
        let bytes = self.tree_pack(at.pack).await.map_or(0, |pack| pack.content.len());
        let _ = self.page(at).await;
        bytes
    }

    /// Returns the sealed length of the frame that a page lies in; `None` if its pack cannot be read.
    pub(in super::super) async fn tree_frame_bytes(&self, at: &TreeRef) -> Option<u32> {
        let pack = self.tree_pack(at.pack).await.ok()?;
        pack.footer.frames.get(at.frame as usize).map(|frame| frame.bytes)
    }
}
