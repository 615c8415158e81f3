//! Two stores with one kloset: a replica has the same id, settings and keys, so that sealed objects can be copied as they are.
//!
//! A replica is made by copying the header and the key slots: whoever can open the one can open the other. It does not
//! know what is copied afterwards.

use super::error::RepoError;
use super::header::HEADER_BYTES_MAX;
use super::{Repo, header_and_slots, layout, put_header, slots};
use crate::store::{Store, StoreError};

impl Repo {
    /// Tells whether another kloset is the same one in another store.
    #[must_use]
    pub fn is_same_kloset(&self, other: &Self) -> bool {
        let proof = |repo: &Self| (repo.header.id, repo.keys.chunk_id(b""), repo.keys.header_mac(b""));
        proof(self) == proof(other)
    }

    /// Opens a replica of this kloset with the same keys; `None` if it is another kloset, whose own secret it takes.
    ///
    /// # Errors
    /// [`RepoError::NoKloset`], or what the store says.
    pub async fn open_replica(&self, store: Store) -> Result<Option<Self>, RepoError> {
        let (header, _) = header_and_slots(&store).await?;
        let is_same = header.id == self.header.id && header.verify(&self.keys).is_ok();
        let replica = || Self { cached: store.clone(), store, header: header.into(), ..self.clone() };
        Ok(is_same.then(replica))
    }

    /// Makes a replica without snapshots in another store: key slots, then the header. One that is there already, or was
    /// begun, is completed.
    ///
    /// # Errors
    /// [`RepoError::KlosetExists`] where another kloset is, or what a store says.
    pub async fn create_replica(&self, store: Store) -> Result<Self, RepoError> {
        let header = self.store.get(layout::HEADER, HEADER_BYTES_MAX).await?;
        let exists = || RepoError::KlosetExists(store.description().to_owned());
        match store.get(layout::HEADER, HEADER_BYTES_MAX).await {
            Ok(standing) if standing == header => {}
            Ok(_) | Err(StoreError::TooLarge { .. }) => return Err(exists()),
            Err(StoreError::NotFound { .. }) => {
                for (name, content) in slots::fetch(&self.store).await? {
                    store.put_new(&name, content).await?;
                }
                if !put_header(&store, header).await? {
                    return Err(exists());
                }
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Self { cached: store.clone(), store, ..self.clone() })
    }
}
