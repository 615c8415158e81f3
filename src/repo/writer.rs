//! Writing: from chunks to packs, index runs and a snapshot.
//!
//! A [`Writer`] is one session, owned by one thread. Chunks are collected into frames in the order they come, frames
//! are compressed and sealed by the CPU pool, placed into packs in the same order, and packs are put by the runtime.
//! Order is the transaction: packs, then index runs, then the snapshot; a crash leaves only what nobody refers to.
//! Memory is bounded: two packs under construction, a few frames being sealed, a few packs being put.
//! The writer does not know where content comes from.

mod again;
mod heal;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Repo;
use super::crypto::SealingKey;
use super::error::RepoError;
use super::id::{ChunkId, PackId, RunId, SessionId};
use super::index::{IndexRun, IndexedPack, RUN_ENTRIES_MAX};
use super::joined;
use super::layout::{self, SnapshotName};
use super::lookup::{self, Loaded, Source};
use super::pack::{
    self, DATA_FRAME_BYTES, DATA_PACK_BYTES, FRAME_CHUNKS_MAX, LONE_CHUNK_BYTES, PACK_CHUNKS_MAX, PackBuilder,
    PackKind, SpareMemory, TREE_FRAME_BYTES, TREE_PACK_RAW_BYTES,
};
use super::places::Places;
use super::sealed::Plain;
use super::snapshot::{MANIFEST_BYTES_MAX, Manifest, SnapshotError};
use super::standing::{self, Standing};
use super::tree::{ChunkRef, Location, Placed, TREE_BYTES_MAX, TreeRef};
use crate::cpu::Job;
use crate::store::{Pieces, Store, StoreError};

/// So often a snapshot is begun again because a prune took what it relied on.
pub const AGAIN_MAX: usize = 3;

/// Packs being put at once: with 16 MiB each enough to fill a fast link, few enough for the memory.
const UPLOADS_MAX: usize = 3;

/// One run of a writer.
pub struct Writer {
    repo: Repo,
    runtime: Handle,
    session: SessionId,
    key: SealingKey,
    options: WriterOptions,
    packs_begun: u32,
    data: DataLane,
    trees: TreeLane,
    /// Content that is stored, or about to be.
    content_places: Places,
    /// Content whose frame has no place yet.
    unplaced: HashSet<ChunkId>,
    /// Trees and content pages that are stored, or about to be: their places are known before their frames are sealed.
    tree_places: Places,
    index_loaded: bool,
    /// What it may rely on of a parent snapshot.
    standing: Arc<Standing>,
    /// The snapshot that all is taken over from.
    base: Option<SnapshotName>,
    /// Index runs that it relies on.
    relied_on: HashSet<RunId>,
    /// Those that were read one by one, with their lengths.
    apart: Vec<(RunId, u64)>,
    used: HashSet<PackId>,
    /// Content pages that it did not write, each with the bytes of its file's part: what they refer to is used, too.
    lists: HashSet<(u64, TreeRef)>,
    /// Packs that are treated as absent.
    shunned: HashSet<PackId>,
    /// What is stored, if it is not everything that is new.
    healing: Option<heal::Healing>,
    run: IndexRun,
    runs: Vec<RunId>,
    uploads: JoinSet<Result<(), StoreError>>,
    spare: SpareMemory,
    counts: WriteCounts,
}

/// How a session writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriterOptions {
    /// Whether to list the packs first and store again what lies in packs that are gone.
    pub verify_packs: bool,
}

/// What a session stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteCounts {
    /// Chunks of content that were not there yet.
    pub chunks_new: u64,
    /// Their bytes, raw.
    pub bytes_new: u64,
    /// Bytes of the objects put.
    pub bytes_stored: u64,
}

#[derive(Default)]
struct OpenFrame {
    raw: Plain,
    chunks: Vec<(ChunkId, u32)>,
}

struct Sealing {
    job: Job<Vec<u8>>,
    chunks: Vec<(ChunkId, u32)>,
}

#[derive(Default)]
struct DataLane {
    open: OpenFrame,
    sealing: VecDeque<Sealing>,
    pack: Option<(PackId, PackBuilder)>,
    pack_chunks: usize,
}

#[derive(Default)]
struct TreeLane {
    open: OpenFrame,
    /// The pack that the open frame will stand in, the number of frames before it and their raw bytes.
    place: Option<(PackId, u32, usize)>,
    sealing: VecDeque<TreeStep>,
    pack: Option<(PackId, PackBuilder)>,
}

enum TreeStep {
    Frame(PackId, Sealing),
    EndOfPack,
}

impl Writer {
    /// Begins a session.
    #[must_use]
    pub fn new(repo: &Repo, runtime: Handle, options: WriterOptions) -> Self {
        let (session, key) = repo.keys.new_session(&repo.env.entropy);
        Self {
            repo: repo.clone(),
            runtime,
            session,
            key,
            options,
            packs_begun: 0,
            data: DataLane::default(),
            trees: TreeLane::default(),
            content_places: Places::default(),
            unplaced: HashSet::new(),
            tree_places: Places::default(),
            index_loaded: false,
            standing: Arc::default(),
            base: None,
            relied_on: HashSet::new(),
            apart: Vec::new(),
            used: HashSet::new(),
            lists: HashSet::new(),
            shunned: HashSet::new(),
            healing: None,
            run: IndexRun::default(),
            runs: Vec::new(),
            uploads: JoinSet::new(),
            spare: SpareMemory::default(),
            counts: WriteCounts::default(),
        }
    }

    /// Says what was seen before a parent snapshot was chosen, whose references are taken over.
    pub fn rely_on(&mut self, standing: Arc<Standing>) {
        self.relied_on.extend(&standing.runs);
        self.standing = standing;
    }

    /// Returns what was stored so far.
    #[must_use]
    pub fn counts(&self) -> WriteCounts {
        self.counts
    }

    /// Stores a chunk of content unless it is there, and tells whether it was new.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn add(&mut self, id: ChunkId, content: Chunk<'_>) -> Result<bool, RepoError> {
        if !self.wants(id, content.as_ref())? {
            return Ok(false);
        }
        self.unplaced.insert(id);
        self.counts.chunks_new += 1;
        self.counts.bytes_new += content.as_ref().len() as u64;
        let bytes = length(content.as_ref());
        if content.as_ref().len() >= LONE_CHUNK_BYTES {
            let frame = OpenFrame { raw: content.into_plain(), chunks: vec![(id, bytes)] };
            self.seal_data(frame)?;
        } else {
            let open = &mut self.data.open;
            if open.chunks.is_empty() {
                open.raw = Plain::with_capacity(DATA_FRAME_BYTES + LONE_CHUNK_BYTES);
            }
            open.raw.push(content.as_ref());
            open.chunks.push((id, bytes));
            if open.raw.content().len() >= DATA_FRAME_BYTES || open.chunks.len() >= FRAME_CHUNKS_MAX {
                let frame = std::mem::take(open);
                self.seal_data(frame)?;
            }
        }
        Ok(true)
    }

    /// Tells whether a chunk is to be stored: it is new, or lost if that is what this session is after.
    fn wants(&mut self, id: ChunkId, content: &[u8]) -> Result<bool, RepoError> {
        if self.healing.is_some() {
            return Ok(self.is_lost(id, content));
        }
        Ok(!(self.has_content(id) || self.load_index()? && self.has_content(id)))
    }

    /// Tells whether all of these chunks are stored, or about to be; call [`Writer::load_index`] first.
    #[must_use]
    pub fn has_all(&self, chunks: &[(ChunkId, u32)]) -> bool {
        chunks.iter().all(|(id, _)| self.has_content(*id))
    }

    fn has_content(&self, id: ChunkId) -> bool {
        self.unplaced.contains(&id) || self.content_places.contains(id)
    }

    /// Returns the reference to a chunk of content, `None` while its frame has no place yet.
    ///
    /// # Panics
    /// If the chunk was never added.
    pub fn place(&mut self, id: ChunkId) -> Option<ChunkRef> {
        if self.unplaced.contains(&id) {
            return None;
        }
        let placed = self.content_places.get(id).expect("only chunks that were added are placed");
        self.used.insert(placed.location.pack);
        Some(ChunkRef { id, bytes: placed.bytes, location: placed.location })
    }

    /// Stores a tree or a content page unless it is there; `parent` is where the parent snapshot has one that may be
    /// the same.
    ///
    /// # Errors
    /// [`RepoError`]; [`RepoError::TooLong`] for a page that no reader accepts.
    pub fn add_tree(&mut self, raw: &[u8], parent: Option<TreeRef>) -> Result<TreeRef, RepoError> {
        if raw.len() > TREE_BYTES_MAX {
            let object = "a page of a directory".to_owned();
            return Err(RepoError::TooLong { object, bytes: raw.len(), bytes_max: TREE_BYTES_MAX });
        }
        let id = self.repo.keys.tree_id(raw);
        if self.healing.is_some() {
            return self.heal_tree(id, raw);
        }
        if let Some(parent) = parent.filter(|p| p.id == id && self.standing.holds(p.pack)) {
            self.use_pack(parent.pack);
            return Ok(parent);
        }
        let mut placed = self.tree_places.get(id);
        if placed.is_none() && self.load_index()? {
            placed = self.tree_places.get(id);
        }
        match placed {
            Some(placed) => {
                self.used.insert(placed.location.pack);
                Ok(TreeRef::from_placed(id, &placed))
            }
            None => self.append_tree(id, raw),
        }
    }

    fn append_tree(&mut self, id: ChunkId, raw: &[u8]) -> Result<TreeRef, RepoError> {
        let (pack, frame, raw_bytes) = match self.trees.place {
            Some(place) => place,
            None => (self.begin_pack(), 0, 0),
        };
        self.trees.place = Some((pack, frame, raw_bytes));
        let open = &mut self.trees.open;
        let bytes = length(raw);
        let tree = TreeRef { id, bytes, pack, frame, chunk_offset: length(open.raw.content()) };
        open.raw.push(raw);
        open.chunks.push((id, bytes));
        // Where the frame lies in its pack is not known yet, and a reference to a tree does not tell.
        let location = Location { pack, frame_offset: 0, frame_bytes: 0, chunk_offset: tree.chunk_offset };
        self.tree_places.insert(id, &Placed { bytes, frame, location });
        if open.raw.content().len() >= TREE_FRAME_BYTES || open.chunks.len() >= FRAME_CHUNKS_MAX {
            self.seal_trees()?;
        }
        Ok(tree)
    }

    /// Tells whether a page of a huge directory may end after `name`: one name in 256, chosen by the keyed hash.
    #[must_use]
    pub fn page_ends_after(&self, name: &[u8]) -> bool {
        self.repo.keys.chunk_id(name).0[0] == 0
    }

    /// Closes the open frame of content and gives every chunk its place.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn flush_data(&mut self) -> Result<(), RepoError> {
        if !self.data.open.chunks.is_empty() {
            let frame = std::mem::take(&mut self.data.open);
            self.seal_data(frame)?;
        }
        while !self.data.sealing.is_empty() {
            self.place_data()?;
        }
        Ok(())
    }

    /// Puts all that is left: packs, then index runs. Nothing refers to them until [`Writer::commit`].
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn flush(&mut self) -> Result<(), RepoError> {
        self.flush_data()?;
        if let Some((id, pack)) = self.data.pack.take() {
            self.put_pack(id, pack)?;
        }
        if !self.trees.open.chunks.is_empty() {
            self.seal_trees()?;
        }
        while !self.trees.sealing.is_empty() {
            self.place_tree()?;
        }
        self.trees.place = None;
        if let Some((id, pack)) = self.trees.pack.take() {
            self.put_pack(id, pack)?;
        }
        self.put_run()
    }

    /// Returns the index runs put so far.
    #[must_use]
    pub fn runs(&self) -> &[RunId] {
        &self.runs
    }

    /// Puts the snapshot: from here on it exists. Call [`Writer::flush`] first.
    ///
    /// # Errors
    /// [`RepoError::Pruned`] if packs it needs were marked for deletion meanwhile, [`RepoError::NoSnapshot`] if the base was
    /// forgotten; [`RepoError::TooLong`] for a manifest that no reader accepts.
    pub fn commit(&mut self, name: SnapshotName, manifest: &Manifest) -> Result<(), RepoError> {
        assert!(self.uploads.is_empty() && self.run.entries.is_empty(), "flush comes first");
        let repo = &self.repo;
        let nonce = repo.env.entropy.bytes();
        let sealed = manifest.seal(&self.key, self.session, (repo.keys.kloset(), name), nonce);
        let object = sealed.map_err(|error| match error {
            SnapshotError::TooLong(bytes) => {
                RepoError::TooLong { object: name.object(), bytes, bytes_max: MANIFEST_BYTES_MAX }
            }
            error => RepoError::damaged(name.object(), error),
        })?;
        self.counts.bytes_stored += object.len() as u64;
        self.runtime.block_on(self.put_snapshot(&name.object(), object.into()))?;
        let apart = std::mem::take(&mut self.apart);
        if let Err(error) = self.runtime.block_on(joined::join(&self.repo, &apart)) {
            tracing::info!("index runs were not joined, which the next backup does: {error}");
        }
        Ok(())
    }

    /// Learns what is stored, the first time that this is asked; returns whether that was now.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn load_index(&mut self) -> Result<bool, RepoError> {
        if self.index_loaded {
            return Ok(false);
        }
        let Repo { store, cached, keys, .. } = &self.repo;
        let (content, trees, verify) = (&mut self.content_places, &mut self.tree_places, self.options.verify_packs);
        let (relied_on, apart) = (&mut self.relied_on, &mut self.apart);
        // Lost trees refer to where chunks were, be it in packs that are given up.
        let (shunned, takes_all) = (&self.shunned, self.healing.is_some());
        self.runtime.block_on(async {
            let pending = lookup::load_pending(store, keys).await?;
            let there = if verify { Some(packs_there(store).await?) } else { None };
            lookup::for_each_run((store, cached), keys, |source, Loaded { bytes, ids, run }| {
                if let Source::Run(id) = source {
                    apart.push((id, bytes));
                }
                relied_on.extend(ids);
                let is_there = |pack: &IndexedPack| {
                    (takes_all || !pending.contains(&pack.id))
                        && !shunned.contains(&pack.id)
                        && there.as_ref().is_none_or(|there| there.get(&pack.id) == Some(&pack.bytes))
                };
                let usable: Vec<_> = run.packs.iter().map(|pack| is_there(pack).then_some(pack.kind)).collect();
                content.insert_run(&run, |pack| usable[pack] == Some(PackKind::Data));
                trees.insert_run(&run, |pack| usable[pack] == Some(PackKind::Tree));
            })
            .await
        })?;
        self.index_loaded = true;
        Ok(true)
    }

    fn begin_pack(&mut self) -> PackId {
        let number = self.packs_begun;
        self.packs_begun += 1;
        PackId { session: self.session, number }
    }

    fn start_sealing(&self, frame: OpenFrame) -> Sealing {
        let (key, nonce) = (self.key.clone(), self.repo.env.entropy.bytes());
        let place = (self.repo.keys.kloset(), self.session);
        let level = self.repo.header.compression.zstd_level;
        let job = self.repo.cpu.start(move || pack::seal_frame(&key, place, nonce, level, frame.raw));
        Sealing { job, chunks: frame.chunks }
    }

    fn sealing_max(&self) -> usize {
        self.repo.env.parallelism * 2 + 2
    }

    fn seal_data(&mut self, frame: OpenFrame) -> Result<(), RepoError> {
        let sealing = self.start_sealing(frame);
        self.data.sealing.push_back(sealing);
        while self.data.sealing.len() > self.sealing_max() {
            self.place_data()?;
        }
        Ok(())
    }

    /// Places the oldest frame of content in the open pack.
    fn place_data(&mut self) -> Result<(), RepoError> {
        let Some(Sealing { job, chunks }) = self.data.sealing.pop_front() else { return Ok(()) };
        let sealed = job.wait();
        let full = |pack: &PackBuilder, held: usize| {
            pack.bytes() + sealed.len() > DATA_PACK_BYTES || held + chunks.len() > PACK_CHUNKS_MAX
        };
        if let Some((id, pack)) = self.data.pack.take_if(|(_, pack)| full(pack, self.data.pack_chunks)) {
            self.put_pack(id, pack)?;
        }
        let (id, mut pack) = match self.data.pack.take() {
            Some(open) => open,
            None => {
                self.data.pack_chunks = 0;
                let in_pieces = self.repo.store.puts_whole();
                (self.begin_pack(), PackBuilder::within(self.spare.take(), PackKind::Data, in_pieces))
            }
        };
        self.data.pack_chunks += chunks.len();
        let frame = length(pack.frames());
        let frame_bytes = length(&sealed);
        let frame_offset = pack.push(sealed, chunks.clone());
        let mut chunk_offset = 0;
        for (chunk, bytes) in chunks {
            let location = Location { pack: id, frame_offset, frame_bytes, chunk_offset };
            self.content_places.insert(chunk, &Placed { bytes, frame, location });
            self.unplaced.remove(&chunk);
            chunk_offset += bytes;
        }
        self.data.pack = Some((id, pack));
        Ok(())
    }

    fn seal_trees(&mut self) -> Result<(), RepoError> {
        let frame = std::mem::take(&mut self.trees.open);
        let (pack, number, before) = self.trees.place.take().expect("an open frame has a place");
        let raw_bytes = before + frame.raw.content().len();
        let sealing = self.start_sealing(frame);
        self.trees.sealing.push_back(TreeStep::Frame(pack, sealing));
        if raw_bytes >= TREE_PACK_RAW_BYTES {
            self.trees.sealing.push_back(TreeStep::EndOfPack);
        } else {
            self.trees.place = Some((pack, number + 1, raw_bytes));
        }
        while self.trees.sealing.len() > self.sealing_max() {
            self.place_tree()?;
        }
        Ok(())
    }

    /// Places the oldest frame of trees where its chunks' references say.
    fn place_tree(&mut self) -> Result<(), RepoError> {
        match self.trees.sealing.pop_front() {
            Some(TreeStep::Frame(id, Sealing { job, chunks })) => {
                let open = self.trees.pack.get_or_insert_with(|| (id, PackBuilder::new(PackKind::Tree)));
                debug_assert_eq!(open.0, id, "frames of one pack follow one another");
                open.1.push(job.wait(), chunks);
                Ok(())
            }
            Some(TreeStep::EndOfPack) => match self.trees.pack.take() {
                Some((id, pack)) => self.put_pack(id, pack),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Closes a pack and begins to put it.
    fn put_pack(&mut self, id: PackId, pack: PackBuilder) -> Result<(), RepoError> {
        let (object, footer) = pack.finish(&self.key, self.repo.keys.kloset(), id, self.repo.env.entropy.bytes());
        let entries: usize = footer.frames.iter().map(|f| f.chunks.len()).sum();
        if self.run.entries.len() + entries > RUN_ENTRIES_MAX {
            self.put_run()?;
        }
        self.run.add_pack(id, object.content_length() as u64, &footer);
        self.counts.bytes_stored += object.content_length() as u64;
        self.upload(id.to_string(), footer.kind, object)
    }

    fn upload(&mut self, name: String, kind: PackKind, object: Pieces) -> Result<(), RepoError> {
        while self.uploads.len() >= UPLOADS_MAX {
            self.wait_for_upload()?;
        }
        let (store, spare) = (self.repo.store.clone(), self.spare.clone());
        let put = async move {
            match kind {
                PackKind::Data => {
                    store.put_content(&name, object.clone()).await?;
                    spare.keep(object);
                    Ok(())
                }
                PackKind::Tree => store.put_new(&name, object.into()).await,
            }
        };
        self.uploads.spawn_on(put, &self.runtime);
        Ok(())
    }

    fn wait_for_upload(&mut self) -> Result<(), RepoError> {
        match self.runtime.block_on(self.uploads.join_next()) {
            Some(Ok(put)) => Ok(put?),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
            None => Ok(()),
        }
    }

    /// Tells whether there are whole packs that no index run speaks of yet.
    #[must_use]
    pub fn has_unlisted(&self) -> bool {
        !self.run.packs.is_empty()
    }

    /// Waits until every whole pack is stored, then puts the index run that speaks of them.
    ///
    /// # Errors
    /// [`RepoError`].
    pub fn put_run(&mut self) -> Result<(), RepoError> {
        while !self.uploads.is_empty() {
            self.wait_for_upload()?;
        }
        if self.run.packs.is_empty() {
            return Ok(());
        }
        let run = std::mem::take(&mut self.run);
        let packs: Vec<_> = run.packs.iter().map(|pack| pack.id).collect();
        let id = RunId(self.repo.env.entropy.bytes());
        let object = run.seal(&self.repo.keys.index_key(), self.repo.keys.kloset(), id, self.repo.env.entropy.bytes());
        self.counts.bytes_stored += object.len() as u64;
        let stand = async || standing::stand(&self.repo, &packs).await;
        self.runtime.block_on(standing::put_checked(&self.repo, &layout::run_name(id), object.into(), stand))?;
        self.runs.push(id);
        Ok(())
    }
}

/// Returns the packs that are in the store, with their lengths.
async fn packs_there(store: &Store) -> Result<HashMap<PackId, u64>, RepoError> {
    let objects = store.list(layout::PACKS).await?;
    Ok(objects.iter().filter_map(|o| Some((layout::parse_pack(&o.name)?, o.bytes))).collect())
}

/// A chunk's content, lent or given away: a large one given away is not copied again.
pub enum Chunk<'a> {
    /// Lent.
    Lent(&'a [u8]),
    /// Given away.
    Given(Plain),
}

impl AsRef<[u8]> for Chunk<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Lent(content) => content,
            Self::Given(content) => content.content(),
        }
    }
}

impl Chunk<'_> {
    fn into_plain(self) -> Plain {
        match self {
            Self::Lent(content) => content.into(),
            Self::Given(content) => content,
        }
    }
}

fn length<T>(content: &[T]) -> u32 {
    u32::try_from(content.len()).expect("chunks, frames and packs are far under 4 GiB")
}
