//! The packs that prunes emptied, as the tables of all objects of moved chunks name them; and these objects kept few.
//!
//! Only the tables are read at first: a block is fetched when it is asked where the chunks of its pack went. An object that
//! was listed and is gone was written anew by a prune, which put the new one first; so who finds that lists again.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::Repo;
use super::crypto::Keys;
use super::error::RepoError;
use super::id::{MovedId, PackId};
use super::index::{IndexEntry, IndexRun};
use super::layout;
use super::moved::{self, Block, FULL_BYTES, HEAD_BYTES_MAX, PACKS_MAX};
use crate::store::{ObjectInfo, Store, StoreError};

/// An object that is not longer is fetched whole, and kept as it is.
const WHOLE_BYTES_MAX: u64 = 256 << 10;
/// Objects are listed again at most so often because one vanished that was listed.
const LISTINGS_MAX: usize = 3;
/// Heads and spans fetched at once.
const FETCHES: usize = 16;
/// Blocks that lie so close are fetched together,
const GAP_BYTES: u64 = 128 << 10;
/// though no more of them at once.
const SPAN_BYTES_MAX: u64 = 4 << 20;
/// Of so many objects that are less than half full one is made.
const SMALL_MIN: usize = 8;

/// Where a block lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    object: usize,
    offset: u64,
    bytes: u32,
}

/// An object and what its table says.
#[derive(Debug)]
struct Object {
    id: MovedId,
    bytes: u64,
    /// The whole object, if it is a small one.
    whole: Option<Bytes>,
    packs: Vec<PackId>,
}

/// What the tables of all objects say: which packs were emptied, and where that is told.
#[derive(Debug, Default)]
pub struct Emptied {
    objects: Vec<Object>,
    places: HashMap<PackId, Vec<Place>>,
    /// Objects that do not open, and why.
    pub damaged: Vec<RepoError>,
}

impl Emptied {
    /// Lists the objects and reads their tables.
    ///
    /// # Errors
    /// [`RepoError::Store`], [`RepoError::PruneAtWork`] if objects went on vanishing. Damage is no error: it is kept.
    pub async fn load(store: &Store, keys: &Keys) -> Result<Self, RepoError> {
        let mut listings = 0;
        loop {
            listings += 1;
            match Self::of(store, keys, &store.list(layout::MOVED).await?).await {
                Err(RepoError::PruneAtWork) if listings < LISTINGS_MAX => {}
                loaded => return loaded,
            }
        }
    }

    /// Reads the tables of those of the objects listed that have one.
    ///
    /// # Errors
    /// As [`Emptied::load`]; [`RepoError::WriteOnly`] if there is one, and no right to read it.
    pub async fn of(store: &Store, keys: &Keys, listed: &[ObjectInfo]) -> Result<Self, RepoError> {
        let known: Vec<_> = listed.iter().filter_map(|o| Some((layout::parse_moved(&o.name)?, o.bytes))).collect();
        if !known.is_empty() && !keys.can_read() {
            return Err(RepoError::WriteOnly);
        }
        let fetch = |(id, bytes): (MovedId, u64)| async move {
            let name = layout::moved_name(id);
            let head = match bytes {
                ..=WHOLE_BYTES_MAX => store.get(&name, WHOLE_BYTES_MAX).await,
                _ => store.get_range(&name, 0..HEAD_BYTES_MAX as u64).await,
            };
            let opened = present(&name, head).and_then(|head| {
                let rows = moved::open_table(keys, id, &head, bytes).map_err(|e| RepoError::damaged(name, e))?;
                Ok((head, rows))
            });
            (id, bytes, opened)
        };
        let mut tables = futures::stream::iter(known).map(fetch).buffered(FETCHES);
        let mut emptied = Self::default();
        while let Some((id, bytes, opened)) = tables.next().await {
            match opened {
                Ok((head, rows)) => emptied.add(id, bytes, head, rows),
                Err(error @ RepoError::Damaged { .. }) => emptied.damaged.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(emptied)
    }

    fn add(&mut self, id: MovedId, bytes: u64, head: Bytes, rows: Vec<(PackId, Range<u64>)>) {
        let object = self.objects.len();
        let packs = rows.iter().map(|(pack, _)| *pack).collect();
        for (pack, range) in rows {
            let bytes = u32::try_from(range.end - range.start).expect("the table has 32 bits for it");
            self.places.entry(pack).or_default().push(Place { object, offset: range.start, bytes });
        }
        let whole = (head.len() as u64 == bytes).then_some(head);
        self.objects.push(Object { id, bytes, whole, packs });
    }

    /// Tells whether it is told where the chunks of a pack went.
    #[must_use]
    pub fn has(&self, pack: PackId) -> bool {
        self.places.contains_key(&pack)
    }

    /// Returns the packs of which it is told.
    pub fn packs(&self) -> impl Iterator<Item = PackId> {
        self.places.keys().copied()
    }

    /// Returns how long the objects are together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.objects.iter().map(|object| object.bytes).sum()
    }

    /// Reads where the chunks of packs went: for each that is told of, of all objects that do.
    ///
    /// # Errors
    /// [`RepoError::Damaged`], [`RepoError::Store`]; [`RepoError::PruneAtWork`] if an object is gone: others say it now.
    pub async fn read(
        &self,
        store: &Store,
        keys: &Keys,
        packs: impl IntoIterator<Item = PackId>,
    ) -> Result<BTreeMap<PackId, IndexRun>, RepoError> {
        let at = |pack: PackId| self.places.get(&pack).into_iter().flatten().map(move |place| (pack, *place));
        let mut runs = BTreeMap::new();
        let mut blocks = self.blocks(store, packs.into_iter().flat_map(at).collect());
        while let Some((object, blocks)) = blocks.try_next().await? {
            for (pack, block) in blocks {
                let run = moved::open_block(keys, pack, &block)
                    .map_err(|e| RepoError::damaged(layout::moved_name(self.objects[object].id), e))?;
                join(runs.entry(pack).or_default(), run);
            }
        }
        Ok(runs)
    }

    /// Fetches blocks, those together that lie together, and hands them over as they are sealed.
    fn blocks<'a>(
        &'a self,
        store: &'a Store,
        mut wanted: Vec<(PackId, Place)>,
    ) -> impl futures::Stream<Item = Result<(usize, Vec<Block>), RepoError>> + Unpin + 'a {
        wanted.sort_unstable_by_key(|(_, place)| (place.object, place.offset));
        wanted.dedup_by_key(|(_, place)| (place.object, place.offset));
        let fetch = move |span: Vec<(PackId, Place)>| async move {
            let (first, last) = (span[0].1, span[span.len() - 1].1);
            let object = &self.objects[first.object];
            let name = layout::moved_name(object.id);
            let range = first.offset..last.offset + u64::from(last.bytes);
            let content = match &object.whole {
                Some(whole) => whole.slice(to_usize(range.start)..to_usize(range.end)),
                None => present(&name, store.get_range(&name, range.clone()).await)?,
            };
            if content.len() as u64 != range.end - range.start {
                return Err(RepoError::damaged(name, "not as long as it was listed"));
            }
            let cut = |(pack, place): (PackId, Place)| {
                let from = to_usize(place.offset - range.start);
                (pack, content.slice(from..from + place.bytes as usize))
            };
            Ok((first.object, span.into_iter().map(cut).collect()))
        };
        Box::pin(futures::stream::iter(spans(wanted)).map(fetch).buffered(FETCHES))
    }
}

/// Which objects are to be written anew, and which go.
#[derive(Debug, Default)]
pub struct Tidy {
    /// Objects of which a part is kept: their place.
    anew: Vec<usize>,
    /// Objects that nobody needs.
    gone: Vec<usize>,
    /// Packs of which nothing is told any more, in these objects.
    pub packs: u64,
}

impl Emptied {
    /// Decides what becomes of the objects when nobody needs what they say of these packs.
    #[must_use]
    pub fn tidy(&self, is_dead: impl Fn(PackId) -> bool) -> Tidy {
        let dead = |object: &Object| object.packs.iter().filter(|pack| is_dead(**pack)).count();
        let is_small = |object: &Object| object.packs.len() < PACKS_MAX / 2 && object.bytes < FULL_BYTES as u64 / 2;
        let joins = self.objects.iter().filter(|object| is_small(object)).count() >= SMALL_MIN;
        let mut tidy = Tidy::default();
        for (place, object) in self.objects.iter().enumerate() {
            let dead = dead(object);
            if dead == object.packs.len() {
                tidy.gone.push(place);
            } else if dead * 2 >= object.packs.len() || joins && is_small(object) {
                tidy.anew.push(place);
            } else {
                continue;
            }
            tidy.packs += dead as u64;
        }
        tidy
    }

    /// Does it: new objects are put before old ones are deleted.
    ///
    /// # Errors
    /// [`RepoError`].
    pub async fn apply(&self, repo: &Repo, tidy: &Tidy, is_dead: impl Fn(PackId) -> bool) -> Result<(), RepoError> {
        let alive = self.places.iter().filter(|(pack, _)| !is_dead(**pack));
        let all = alive.flat_map(|(pack, places)| places.iter().map(|place| (*pack, *place)));
        let mut open = Vec::new();
        let mut blocks = self.blocks(&repo.store, all.filter(|(_, at)| tidy.anew.contains(&at.object)).collect());
        while let Some((_, blocks)) = blocks.try_next().await? {
            for block in blocks {
                add(repo, &mut open, block).await?;
            }
        }
        put(repo, open).await?;
        let old = tidy.anew.iter().chain(&tidy.gone).map(|place| layout::moved_name(self.objects[*place].id));
        Ok(repo.store.delete_all(&old.collect::<Vec<_>>()).await?)
    }
}

impl Tidy {
    /// How many objects are read, are about put, and are deleted.
    #[must_use]
    pub fn objects(&self) -> (u64, u64, u64) {
        let anew = self.anew.len() as u64;
        (anew, u64::from(anew > 0), anew + self.gone.len() as u64)
    }
}

/// Adds a block to those of the object under construction, which is put first if it is full.
///
/// # Errors
/// [`RepoError`].
pub async fn add(repo: &Repo, open: &mut Vec<Block>, block: Block) -> Result<(), RepoError> {
    let bytes: usize = open.iter().map(|(_, block)| block.len()).sum();
    if open.len() == PACKS_MAX || !open.is_empty() && bytes + block.1.len() > FULL_BYTES {
        put(repo, std::mem::take(open)).await?;
    }
    open.push(block);
    Ok(())
}

/// Puts an object of these blocks, if there are any.
///
/// # Errors
/// [`RepoError`].
pub async fn put(repo: &Repo, blocks: Vec<Block>) -> Result<(), RepoError> {
    if blocks.is_empty() {
        return Ok(());
    }
    let (id, nonce) = (MovedId(repo.env.entropy.bytes()), repo.env.entropy.bytes());
    let object = moved::seal(&repo.keys, id, blocks, nonce)?;
    Ok(repo.store.put_new(&layout::moved_name(id), object.into()).await?)
}

/// Cuts blocks, sorted by object and offset, into spans that are fetched at once.
fn spans(wanted: Vec<(PackId, Place)>) -> Vec<Vec<(PackId, Place)>> {
    let mut spans: Vec<Vec<(PackId, Place)>> = Vec::new();
    for (pack, place) in wanted {
        let end = place.offset + u64::from(place.bytes);
        let joins = |span: &&mut Vec<(PackId, Place)>| {
            let (first, last) = (span[0].1, span[span.len() - 1].1);
            first.object == place.object
                && place.offset - (last.offset + u64::from(last.bytes)) <= GAP_BYTES
                && end - first.offset <= SPAN_BYTES_MAX
        };
        match spans.last_mut().filter(joins) {
            Some(span) => span.push((pack, place)),
            None => spans.push(vec![(pack, place)]),
        }
    }
    spans
}

/// Adds what another object says of the same pack. Of two places of a chunk the one in the pack of the lower name comes
/// first, so that all readers and all prunes take the same.
fn join(run: &mut IndexRun, other: IndexRun) {
    if run.packs.is_empty() {
        *run = other;
        return;
    }
    let mut packs = [&run.packs[..], &other.packs].concat();
    packs.sort_unstable();
    packs.dedup();
    let known = std::mem::take(run);
    for said in [&known, &other] {
        let place = |pack: u32| packs.partition_point(|known| *known < said.packs[pack as usize]);
        let place = |pack| u32::try_from(place(pack)).expect("two prunes emptied a pack at most");
        run.entries.extend(said.entries.iter().map(|entry| IndexEntry { pack: place(entry.pack), ..*entry }));
    }
    run.entries.sort_unstable();
    run.entries.dedup();
    run.packs = packs;
}

/// An object that was listed and is gone was written anew by a prune.
fn present(name: &str, fetched: Result<Bytes, StoreError>) -> Result<Bytes, RepoError> {
    match fetched {
        Err(StoreError::NotFound { .. }) => Err(RepoError::PruneAtWork),
        Err(StoreError::TooLarge { .. } | StoreError::OutOfRange { .. }) => {
            Err(RepoError::damaged(name, "not as long as it was listed"))
        }
        fetched => Ok(fetched?),
    }
}

fn to_usize(n: u64) -> usize {
    usize::try_from(n).expect("objects are far under 4 GiB")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::super::CreateOptions;
    use super::super::crypto::Secret;
    use super::super::id::{ChunkId, SessionId};
    use super::super::keyslot::SlotSecret;
    use super::super::pack::{Footer, FrameEntry, PackKind};
    use super::*;
    use crate::cpu::Cpu;
    use crate::env::Env;

    fn pack(number: u32) -> PackId {
        PackId { session: SessionId([3; 32]), number }
    }

    async fn kloset() -> Repo {
        let store = Store::new(Arc::new(InMemory::new()), "memory:".into());
        let secret = SlotSecret::KeyFile(Secret([7; 32]));
        Repo::create(store, &secret, &CreateOptions::default(), Env::seeded(1, 0), Cpu::new(1)).await.unwrap()
    }

    /// What a prune says that moved `chunks` chunks from a pack to the pack `to`.
    fn block(repo: &Repo, old: u32, to: u32, chunks: u32) -> Block {
        let chunks = (0..chunks).map(|_| (ChunkId(repo.env.entropy.bytes()), 1)).collect();
        let frames = vec![FrameEntry { offset: 8, bytes: 70, chunks }];
        let mut run = IndexRun::default();
        run.add_pack(pack(to), 500, &Footer { version: 1, kind: PackKind::Data, frames });
        moved::seal_block(&repo.keys, pack(old), &mut run, repo.env.entropy.bytes()).unwrap()
    }

    async fn load(repo: &Repo) -> Emptied {
        let emptied = Emptied::load(&repo.store, &repo.keys).await.unwrap();
        assert!(emptied.damaged.is_empty());
        emptied
    }

    /// Where the chunks of these packs went, and the requests that it took to ask.
    async fn went(repo: &Repo, emptied: &Emptied, packs: &[u32]) -> (Vec<(u32, Vec<u32>)>, u64) {
        let before = repo.store.counts().gets;
        let runs = emptied.read(&repo.store, &repo.keys, packs.iter().map(|number| pack(*number))).await.unwrap();
        let to = |run: &IndexRun| run.packs.iter().map(|pack| pack.id.number).collect();
        (runs.iter().map(|(old, run)| (old.number, to(run))).collect(), repo.store.counts().gets - before)
    }

    #[tokio::test]
    async fn of_a_long_object_the_table_is_read_and_blocks_together_that_lie_together() {
        let repo = kloset().await;
        put(&repo, (0..20).map(|old| block(&repo, old, 100 + old, 1000)).collect()).await.unwrap();
        let emptied = load(&repo).await;
        assert!(emptied.bytes() > 2 * WHOLE_BYTES_MAX, "{}", emptied.bytes());
        assert!(emptied.has(pack(19)) && !emptied.has(pack(20)));
        assert_eq!(went(&repo, &emptied, &[7]).await, (vec![(7, vec![107])], 1));
        assert_eq!(went(&repo, &emptied, &[8, 7, 20]).await, (vec![(7, vec![107]), (8, vec![108])], 1));
        assert_eq!(went(&repo, &emptied, &[0, 19]).await.1, 2);
        assert_eq!(went(&repo, &emptied, &(0..20).collect::<Vec<_>>()).await.1, 1);
        put(&repo, vec![block(&repo, 7, 200, 1), block(&repo, 21, 201, 1)]).await.unwrap();
        let both = load(&repo).await;
        assert_eq!(went(&repo, &both, &[7]).await, (vec![(7, vec![107, 200])], 1), "the short one is at hand");
        assert_eq!(went(&repo, &emptied, &[21]).await, (vec![], 0), "it was put after the listing");
        repo.store.delete_all(&[layout::moved_name(emptied.objects[0].id)]).await.unwrap();
        let read = emptied.read(&repo.store, &repo.keys, [pack(7)]).await;
        assert!(matches!(read, Err(RepoError::PruneAtWork)), "it is gone, so others say it");
        let name = repo.store.list(layout::MOVED).await.unwrap().remove(0).name;
        repo.store.delete(&name).await.unwrap();
        repo.store.put_new(&name, Bytes::from_static(b"KLOSET1M")).await.unwrap();
        let emptied = Emptied::load(&repo.store, &repo.keys).await.unwrap();
        assert!(matches!(&emptied.damaged[..], [RepoError::Damaged { object, .. }] if *object == name));
    }

    #[tokio::test]
    async fn objects_are_joined_once_they_are_many_and_go_when_nobody_needs_them() {
        let repo = kloset().await;
        for old in 0..7 {
            put(&repo, vec![block(&repo, 10 * old, 100, 1), block(&repo, 10 * old + 1, 100, 1)]).await.unwrap();
        }
        let none = |_: PackId| false;
        assert_eq!(load(&repo).await.tidy(none).objects(), (0, 0, 0), "seven are few");
        put(&repo, vec![block(&repo, 70, 100, 1), block(&repo, 71, 100, 1)]).await.unwrap();
        // Half of what the second says is not needed, and all of the third.
        let is_dead = |pack: PackId| [11, 20, 21].contains(&pack.number);
        let emptied = load(&repo).await;
        let tidy = emptied.tidy(is_dead);
        assert_eq!((tidy.objects(), tidy.packs), ((7, 1, 8), 3));
        emptied.apply(&repo, &tidy, is_dead).await.unwrap();
        let emptied = load(&repo).await;
        assert_eq!((emptied.objects.len(), emptied.places.len()), (1, 13));
        let kept: Vec<u32> = emptied.packs().map(|pack| pack.number).collect();
        assert_eq!(went(&repo, &emptied, &kept).await.0.len(), 13);
        // Two prunes emptied the same pack.
        put(&repo, vec![block(&repo, 0, 300, 1)]).await.unwrap();
        let few = |pack: PackId| pack.number != 0;
        let emptied = load(&repo).await;
        let tidy = emptied.tidy(few);
        assert_eq!(tidy.objects(), (1, 1, 1));
        emptied.apply(&repo, &tidy, few).await.unwrap();
        let emptied = load(&repo).await;
        assert_eq!(went(&repo, &emptied, &[0]).await.0, [(0, vec![100, 300])]);
        let tidy = emptied.tidy(|_| true);
        assert_eq!(tidy.objects(), (0, 0, 2));
        emptied.apply(&repo, &tidy, |_| true).await.unwrap();
        assert!(load(&repo).await.objects.is_empty());
    }

    #[test]
    fn of_two_places_the_one_of_the_lower_name_comes_first_and_what_both_say_counts_once() {
        let run = |to: &[u32]| {
            let mut run = IndexRun::default();
            for to in to {
                let frames = vec![FrameEntry { offset: 8, bytes: 70, chunks: vec![(ChunkId([9; 32]), 1)] }];
                run.add_pack(pack(*to), 500, &Footer { version: 1, kind: PackKind::Data, frames });
            }
            run
        };
        let mut joined = IndexRun::default();
        for to in [&[8, 3][..], &[5], &[3]] {
            join(&mut joined, run(to));
        }
        let places: Vec<_> = joined.places(ChunkId([9; 32])).map(|placed| placed.location.pack.number).collect();
        assert_eq!(places, [3, 5, 8]);
    }

    #[tokio::test]
    async fn no_object_speaks_of_more_packs_than_one_may() {
        let repo = kloset().await;
        let mut open = Vec::new();
        for old in 0..u32::try_from(PACKS_MAX).unwrap() + 1 {
            add(&repo, &mut open, block(&repo, old, 5000, 1)).await.unwrap();
        }
        put(&repo, open).await.unwrap();
        let emptied = load(&repo).await;
        let mut packs: Vec<_> = emptied.objects.iter().map(|object| object.packs.len()).collect();
        packs.sort_unstable();
        assert_eq!(packs, [1, PACKS_MAX]);
    }
}
