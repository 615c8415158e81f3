//! Where chunks went that earlier prunes moved, as far as it was asked.

use std::collections::HashMap;

use super::super::Repo;
use super::super::error::RepoError;
use super::super::id::{ChunkId, PackId};
use super::super::index::IndexRun;
use super::super::tree::Placed;
use super::look::Look;

/// If all that prunes said is not longer than this, sealed, it is read at once: half a million chunks, 40 MB in memory.
const ALL_BYTES_MAX: u64 = 16 << 20;

/// Where chunks went, by the pack that they were moved out of.
#[derive(Default)]
pub(super) struct Moves(HashMap<PackId, IndexRun>);

impl Moves {
    /// Asks where the chunks of these packs went, by their places, where somebody says so and it is not known yet.
    pub(super) async fn fetch(
        &mut self,
        repo: &Repo,
        look: &Look,
        places: impl IntoIterator<Item = u32>,
    ) -> Result<(), RepoError> {
        let ids = places.into_iter().map(|place| look.packs.at(place).id);
        let mut asked: Vec<PackId> = ids.filter(|id| look.emptied.has(*id) && !self.0.contains_key(id)).collect();
        if asked.is_empty() {
            return Ok(());
        }
        if look.emptied.bytes() <= ALL_BYTES_MAX {
            asked = look.emptied.packs().collect();
        }
        self.0.extend(look.emptied.read(&repo.store, &repo.keys, asked).await?);
        Ok(())
    }

    /// Returns where a chunk went that was in a pack: more than one place if two prunes moved it.
    pub(super) fn places(&self, pack: PackId, id: ChunkId) -> impl Iterator<Item = Placed> {
        self.0.get(&pack).into_iter().flat_map(move |run| run.places(id))
    }
}
