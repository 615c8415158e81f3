//! Joined index runs: one object that says what many short ones say, so that whoever loads the index gets few.
//!
//! Every backup leaves a run, and most are short. A writer that has read many of them puts what they say together, beside
//! them: the runs stay, and only as long as all that it names are there does a joined run count (`docs/format.md`,
//! "Joined index run"). It is sealed with a key that a write-only slot does not hold, so that nobody can hide a run by it.

use bytes::Bytes;

use super::Repo;
use super::crypto::{self, Keys, NONCE_BYTES};
use super::error::RepoError;
use super::id::{JoinedId, RunId};
use super::index::{IndexRun, RUN_BYTES_MAX};
use super::layout;
use super::lookup::{self, Source};
use super::merge::Merger;
use super::sealed;

/// The first bytes of a joined run.
pub const MAGIC: &[u8; 8] = b"KLOSET1J";
/// It stands for at most so many runs.
pub const RUNS_MAX: usize = 1024;
/// No object is longer, raw or sealed.
pub const JOINED_BYTES_MAX: usize = RUN_BYTES_MAX;

const VERSION: u32 = 1;

/// So many short runs are joined unless told otherwise.
pub const JOIN_RUNS_DEFAULT: usize = 64;
/// Only runs that are not longer than this, sealed, are joined,
const SHORT_BYTES: u64 = 64 << 10;
/// and not more than are this long together: about 100,000 entries.
const JOIN_BYTES_MAX: u64 = 4 << 20;

/// Seals what runs say together, its entries sorted.
///
/// # Errors
/// [`RepoError::WriteOnly`] without the right to read.
///
/// # Panics
/// If there are over [`RUNS_MAX`] runs.
pub fn seal(
    keys: &Keys,
    id: JoinedId,
    (runs, run): (&[RunId], &IndexRun),
    nonce: [u8; NONCE_BYTES],
) -> Result<Vec<u8>, RepoError> {
    assert!(runs.len() <= RUNS_MAX, "{} runs", runs.len());
    let key = keys.moved_key().map_err(|_| RepoError::WriteOnly)?;
    let count = u32::try_from(runs.len()).expect("not more than RUNS_MAX");
    let mut raw = [VERSION.to_le_bytes(), count.to_le_bytes()].concat();
    runs.iter().for_each(|run| raw.extend_from_slice(run.as_bytes()));
    raw.extend_from_slice(&run.encode());
    Ok([&MAGIC[..], &sealed::seal(&key, nonce, &aad(keys, id), 3, &raw)].concat())
}

/// Opens a joined run: which runs it stands for, and what they say.
///
/// # Errors
/// [`RepoError::WriteOnly`] without the right to read, [`RepoError::Damaged`].
pub fn open(keys: &Keys, id: JoinedId, object: &[u8]) -> Result<(Vec<RunId>, IndexRun), RepoError> {
    let damaged = |problem: &dyn std::fmt::Display| RepoError::damaged(layout::joined_name(id), problem);
    let key = keys.moved_key().map_err(|_| RepoError::WriteOnly)?;
    let sealed = object.strip_prefix(MAGIC).ok_or_else(|| damaged(&"it does not begin as a joined index run"))?;
    let raw = sealed::open(&key, &aad(keys, id), sealed, JOINED_BYTES_MAX).map_err(|e| damaged(&e))?;
    let (head, rest) = raw.split_first_chunk::<8>().ok_or_else(|| damaged(&"it has no head"))?;
    let word = |at: usize| u32::from_le_bytes(*head[at..].first_chunk().expect("8 bytes"));
    if word(0) != VERSION {
        return Err(damaged(&"its version is not known to this program"));
    }
    let ids =
        usize::try_from(word(4)).ok().filter(|count| (1..=RUNS_MAX).contains(count)).map(|count| count * RunId::BYTES);
    let (ids, run) = ids
        .and_then(|bytes| rest.split_at_checked(bytes))
        .ok_or_else(|| damaged(&"it stands for no run, or for too many"))?;
    let ids = ids.chunks_exact(RunId::BYTES).map(|id| RunId(*id.first_chunk().expect("16 bytes"))).collect();
    Ok((ids, IndexRun::decode(run).map_err(|e| damaged(&e))?))
}

fn aad(keys: &Keys, id: JoinedId) -> Vec<u8> {
    crypto::aad(keys.kloset(), "joined index run", layout::joined_name(id).as_bytes())
}

/// Joins those of these runs that are short, once there are many; each run with the length of its object.
///
/// # Errors
/// [`RepoError`]; nothing is lost then but the requests of those who load the index.
pub async fn join(repo: &Repo, runs: &[(RunId, u64)]) -> Result<(), RepoError> {
    let mut together = 0;
    let fits = |(_, bytes): &&(RunId, u64)| {
        together += bytes;
        together <= JOIN_BYTES_MAX
    };
    let short = runs.iter().filter(|(_, bytes)| *bytes <= SHORT_BYTES).take_while(fits).take(RUNS_MAX);
    let short: Vec<_> = short.map(|(id, bytes)| (Source::Run(*id), *bytes)).collect();
    if short.len() < repo.join_runs || !repo.keys.can_read() || repo.store.is_dry() {
        return Ok(());
    }
    let (mut merger, mut ids) = (Merger::default(), Vec::new());
    lookup::for_each_of(&repo.cached, &repo.keys, short, |_, loaded| {
        ids.extend(loaded.ids);
        merger.add(&loaded.run);
    })
    .await?;
    merger.close();
    let [run] = &merger.full[..] else { return Ok(()) };
    let (id, nonce) = (JoinedId(repo.env.entropy.bytes()), repo.env.entropy.bytes());
    let object = seal(&repo.keys, id, (&ids, run), nonce)?;
    Ok(repo.store.put_new(&layout::joined_name(id), Bytes::from(object)).await?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;

    use super::super::CreateOptions;
    use super::super::crypto::Secret;
    use super::super::id::{ChunkId, KlosetId, PackId, SessionId};
    use super::super::keyslot::SlotSecret;
    use super::super::lookup::{Index, Listed};
    use super::super::pack::{Footer, FrameEntry, PackKind};
    use super::*;
    use crate::cpu::Cpu;
    use crate::env::Env;
    use crate::store::Store;

    fn run(number: u8) -> IndexRun {
        let mut run = IndexRun::default();
        let frames = vec![FrameEntry { offset: 8, bytes: 70, chunks: vec![(ChunkId([number; 32]), 10)] }];
        let pack = PackId { session: SessionId([3; 32]), number: number.into() };
        run.add_pack(pack, 500, &Footer { version: 1, kind: PackKind::Data, frames });
        run
    }

    #[test]
    fn a_joined_run_opens_under_its_name_and_with_a_full_key_only() {
        let (keys, id, nonce) =
            (Keys::from_master(KlosetId([1; 32]), &Secret([2; 32])), JoinedId([5; 16]), [0; NONCE_BYTES]);
        let runs = [RunId([1; 16]), RunId([2; 16])];
        let good = seal(&keys, id, (&runs, &run(7)), nonce).unwrap();
        assert_eq!(open(&keys, id, &good).unwrap(), (runs.to_vec(), run(7)));
        let is_damaged = |id, object: &[u8]| matches!(open(&keys, id, object), Err(RepoError::Damaged { .. }));
        assert!(is_damaged(JoinedId([6; 16]), &good) && is_damaged(id, b"KLOSET1I"));
        assert!((0..good.len()).all(|cut| is_damaged(id, &good[..cut])));
        let writer = Keys::write_only(KlosetId([1; 32]), keys.write_keys().clone());
        assert!(matches!(open(&writer, id, &good), Err(RepoError::WriteOnly)));
        assert!(matches!(seal(&writer, id, (&runs, &run(7)), nonce), Err(RepoError::WriteOnly)));
        let sealed = |raw: &[u8]| {
            [&MAGIC[..], &sealed::seal(&keys.moved_key().unwrap(), nonce, &aad(&keys, id), 3, raw)].concat()
        };
        let problem = |raw: &[u8]| match open(&keys, id, &sealed(raw)) {
            Err(RepoError::Damaged { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert_eq!(problem(&[1, 0, 0, 0]), "it has no head");
        assert_eq!(problem(&[2, 0, 0, 0, 0, 0, 0, 0]), "its version is not known to this program");
        for count in [[0, 0, 0, 0], [1, 0, 0, 0], [1, 4, 0, 0]] {
            assert_eq!(problem(&[[1, 0, 0, 0], count].concat()), "it stands for no run, or for too many");
        }
        assert_eq!(problem(&[&[1, 0, 0, 0, 1, 0, 0, 0][..], &[7; 16]].concat()), "it is malformed: no head");
    }

    async fn put(repo: &Repo, numbers: std::ops::Range<u8>) {
        for number in numbers {
            let id = RunId([number; 16]);
            let object = run(number).seal(&repo.keys.index_key(), repo.keys.kloset(), id, [0; NONCE_BYTES]);
            repo.store.put_new(&layout::run_name(id), object.into()).await.unwrap();
        }
    }

    /// What loading the index finds, and the objects that it reads.
    async fn loaded(repo: &Repo, keys: &Keys) -> (Vec<u8>, u64) {
        let before = repo.store.counts().gets;
        let index = Index::load(&repo.store, keys).await.unwrap();
        let mut found: Vec<u8> = index.runs.iter().flat_map(|run| &run.entries).map(|entry| entry.id.0[0]).collect();
        found.sort_unstable();
        (found, repo.store.counts().gets - before)
    }

    #[tokio::test]
    async fn runs_are_joined_once_they_are_many_and_a_joined_run_counts_as_long_as_all_are_there() {
        let store = Store::new(Arc::new(InMemory::new()), "memory:".into());
        let secret = SlotSecret::KeyFile(Secret([7; 32]));
        let (options, env) = (CreateOptions::default(), Env::seeded(1, 0));
        let mut repo = Repo::create(store, &secret, &options, env, Cpu::new(1)).await.unwrap();
        repo.join_runs = 5;
        let listed = async || Listed::of(&repo.store.list(layout::INDEX).await.unwrap());
        put(&repo, 0..4).await;
        join(&repo, &listed().await.runs).await.unwrap();
        assert!(listed().await.joined.is_empty(), "four are few");
        put(&repo, 4..6).await;
        join(&repo, &listed().await.runs).await.unwrap();
        put(&repo, 6..8).await;
        let all = (0..8).collect::<Vec<u8>>();
        assert_eq!(loaded(&repo, &repo.keys).await, (all.clone(), 3), "six at once, and two");
        // Another writer has joined the same, and one more: what both say counts once.
        join(&repo, &listed().await.runs[..7]).await.unwrap();
        let (found, gets) = loaded(&repo, &repo.keys).await;
        assert!(found == all && gets <= 4, "{found:?} {gets}");
        let writer = Keys::write_only(repo.keys.kloset(), repo.keys.write_keys().clone());
        assert_eq!(loaded(&repo, &writer).await, (all.clone(), 8), "who cannot open it reads the runs");
        repo.store.delete(&layout::run_name(RunId([3; 16]))).await.unwrap();
        let without: Vec<u8> = all.iter().copied().filter(|number| *number != 3).collect();
        assert_eq!(loaded(&repo, &repo.keys).await.0, without, "it does not stand for what is gone");
        put(&repo, 3..4).await;
        for (id, _) in listed().await.joined {
            repo.store.delete(&layout::joined_name(id)).await.unwrap();
            repo.store.put_new(&layout::joined_name(id), Bytes::from_static(b"KLOSET1J")).await.unwrap();
        }
        assert_eq!(loaded(&repo, &repo.keys).await, (all, 10), "one that does not open says nothing");
    }
}
