//! The objects by themselves: header, key slots, snapshots, pending lists, index runs, moved chunks, and what else lies
//! there.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use futures::StreamExt;

use super::super::Repo;
use super::super::crypto::Keys;
use super::super::error::RepoError;
use super::super::header::{HEADER_BYTES_MAX, Header};
use super::super::id::{JoinedId, MovedId, RunId};
use super::super::index::{IndexRun, RUN_BYTES_MAX};
use super::super::joined;
use super::super::keyslot::{KeySlot, SLOT_BYTES_MAX};
use super::super::layout::{self, SnapshotName};
use super::super::moved;
use super::super::pending::{PENDING_BYTES_MAX, PendingList};
use super::super::snapshot::{MANIFEST_BYTES_MAX, Manifest};
use super::report::NoteKind;
use super::{CheckProgress, CheckStage, Findings, Indexed, Lost, Monitor, Pack, Trouble, Unreadable};
use crate::store::{Store, StoreError};

/// Small objects fetched at once.
const FETCHES: usize = 16;

/// What a fetch of an object brought.
pub(in crate::repo) enum Fetched {
    /// Its bytes.
    Content(Bytes),
    /// It is not there.
    Missing,
    /// It is longer than such an object can be.
    TooLong,
}

/// Fetches an object; that it is not there or too long is an answer, that the store cannot be asked is an error.
pub(in crate::repo) async fn fetch(store: &Store, name: &str, bytes_max: u64) -> Result<Fetched, RepoError> {
    match store.get(name, bytes_max).await {
        Ok(content) => Ok(Fetched::Content(content)),
        Err(StoreError::NotFound { .. }) => Ok(Fetched::Missing),
        Err(StoreError::TooLarge { .. }) => Ok(Fetched::TooLong),
        Err(error) => Err(error.into()),
    }
}

/// Looks at everything but the content of packs.
pub(in crate::repo) async fn look(repo: &Repo, monitor: Monitor<'_>) -> Result<Findings, RepoError> {
    let mut findings = Findings {
        packs: HashMap::new(),
        objects: BTreeMap::new(),
        notes: super::report::Notes::default(),
        runs: Vec::new(),
        rebuilt: Vec::new(),
        snapshots: Vec::new(),
        lost: Lost::default(),
        part: None,
        counts: super::report::Counts::default(),
    };
    let tell = |done| monitor(CheckProgress { stage: CheckStage::Objects, done, total: 6, bytes: 0, whole: None });
    tell(0);
    look_at_header(repo, &mut findings).await?;
    look_at_snapshots(repo, &mut findings).await?;
    tell(1);
    look_at_pending(repo, &mut findings).await?;
    tell(2);
    look_at_index(repo, &mut findings).await?;
    tell(4);
    look_at_listing(repo, &mut findings).await?;
    tell(6);
    Ok(findings)
}

async fn look_at_header(repo: &Repo, findings: &mut Findings) -> Result<(), RepoError> {
    match fetch(&repo.store, layout::HEADER, HEADER_BYTES_MAX).await? {
        Fetched::Missing => drop(findings.missing(layout::HEADER, "missing")),
        Fetched::TooLong => drop(findings.damaged(layout::HEADER, "longer than a header can be")),
        Fetched::Content(content) => {
            let header = Header::decode(&content).and_then(|header| header.verify(&repo.keys).map(|()| header));
            match header {
                Err(error) => drop(findings.damaged(layout::HEADER, error)),
                Ok(header) if header != *repo.header => {
                    findings.damaged(layout::HEADER, "not the header that the kloset was opened with");
                }
                Ok(_) => {}
            }
        }
    }
    Ok(())
}

async fn look_at_snapshots(repo: &Repo, findings: &mut Findings) -> Result<(), RepoError> {
    let names = listed(repo, layout::SNAPSHOTS, SnapshotName::parse).await?;
    let mut fetches = futures::stream::iter(names)
        .map(|name| async move { (name, fetch(&repo.store, &name.object(), MANIFEST_BYTES_MAX as u64).await) })
        .buffered(FETCHES);
    while let Some((name, fetched)) = fetches.next().await {
        let object = name.object();
        match fetched? {
            Fetched::Missing => findings.notes.add(NoteKind::Vanished, &object, 0),
            Fetched::TooLong => hurt_snapshot(findings, name, "longer than a manifest can be"),
            Fetched::Content(content) => match Manifest::open(&repo.keys, name, &content) {
                Ok(manifest) => findings.snapshots.push((name, manifest)),
                Err(error) => hurt_snapshot(findings, name, error),
            },
        }
    }
    Ok(())
}

fn hurt_snapshot(findings: &mut Findings, name: SnapshotName, problem: impl std::fmt::Display) {
    findings.damaged(&name.object(), problem).snapshots.insert(name);
}

async fn look_at_pending(repo: &Repo, findings: &mut Findings) -> Result<(), RepoError> {
    for id in listed(repo, layout::PENDING, layout::parse_pending).await? {
        let name = layout::pending_name(id);
        match fetch(&repo.store, &name, PENDING_BYTES_MAX as u64).await? {
            Fetched::Missing => {}
            Fetched::TooLong => drop(findings.damaged(&name, "longer than a pending list can be")),
            Fetched::Content(content) => {
                match PendingList::open(&repo.keys.index_key(), repo.keys.kloset(), id, &content) {
                    Ok(list) => list.packs().for_each(|p| findings.packs.entry(p).or_default().pending = true),
                    Err(error) => drop(findings.damaged(&name, error)),
                }
            }
        }
    }
    Ok(())
}

async fn look_at_index(repo: &Repo, findings: &mut Findings) -> Result<(), RepoError> {
    let ids = listed(repo, layout::INDEX, layout::parse_run).await?;
    let mut fetches =
        futures::stream::iter(ids).map(|id| async move { (id, load_run(repo, id).await) }).buffered(FETCHES);
    while let Some((id, run)) = fetches.next().await {
        match run? {
            Some(Ok(run)) => {
                findings.runs.push(id);
                findings.counts.index_runs += 1;
                learn(findings, &run);
            }
            Some(Err(problem)) => drop(findings.damaged(&layout::run_name(id), problem)),
            None => {} // replaced by another meanwhile
        }
    }
    Ok(())
}

/// Reads an index run: the run, or what is wrong with it, or nothing if it is gone.
pub(in crate::repo) async fn load_run(repo: &Repo, id: RunId) -> Result<Option<Result<IndexRun, String>>, RepoError> {
    Ok(match fetch(&repo.store, &layout::run_name(id), RUN_BYTES_MAX as u64).await? {
        Fetched::Missing => None,
        Fetched::TooLong => Some(Err("longer than an index run can be".into())),
        Fetched::Content(content) => {
            let keys = repo.keys.clone();
            let open = move || IndexRun::open(&keys.index_key(), keys.kloset(), id, &content);
            Some(repo.cpu.run(open).await.map_err(|e| e.to_string()))
        }
    })
}

/// Keeps of an index run which packs there are and where their frames lie.
pub(in crate::repo) fn learn(findings: &mut Findings, run: &IndexRun) {
    let mut frames: Vec<_> = run.entries.iter().map(|e| (e.pack, e.frame_offset, e.frame_bytes)).collect();
    frames.sort_unstable();
    frames.dedup();
    let mut frames = frames.into_iter().peekable();
    for (number, pack) in (0..).zip(&run.packs) {
        let mut of_pack = Vec::new();
        while let Some((_, offset, bytes)) = frames.next_if(|f| f.0 == number) {
            of_pack.push((offset, bytes));
        }
        of_pack.shrink_to_fit();
        let known = findings.packs.entry(pack.id).or_default();
        known.indexed = Some(Indexed { kind: pack.kind, bytes: pack.bytes, frames: of_pack });
    }
}

async fn look_at_listing(repo: &Repo, findings: &mut Findings) -> Result<(), RepoError> {
    let objects = repo.store.list("").await?;
    let (mut slots, mut moved_ids, mut joined_ids) = (Vec::new(), Vec::new(), Vec::new());
    for object in objects {
        if let Some(id) = layout::parse_pack(&object.name) {
            findings.packs.entry(id).or_default().listed = Some(object.bytes);
        } else if layout::parse_slot(&object.name).is_some() {
            slots.push(object.name);
        } else if let Some(id) = layout::parse_moved(&object.name) {
            moved_ids.push(id);
        } else if let Some(id) = layout::parse_joined(&object.name) {
            joined_ids.push(id);
        } else if !is_ours(&object.name) {
            findings.notes.add(NoteKind::Foreign, &object.name, object.bytes);
        }
    }
    for name in slots {
        look_at_slot(repo, findings, &name).await?;
    }
    let kind: Kind<'_, _> = (layout::moved_name, moved::OBJECT_BYTES_MAX, "a list of moved chunks");
    open_each(repo, findings, moved_ids, kind, open_moved).await?;
    let kind: Kind<'_, _> = (layout::joined_name, joined::JOINED_BYTES_MAX, "a joined index run");
    open_each(repo, findings, joined_ids, kind, open_joined).await?;
    findings.packs.values_mut().for_each(compare);
    Ok(())
}

pub(super) fn is_ours(name: &str) -> bool {
    name == layout::HEADER
        || layout::parse_run(name).is_some()
        || layout::parse_joined(name).is_some()
        || layout::parse_moved(name).is_some()
        || layout::parse_pending(name).is_some()
        || SnapshotName::parse(name).is_some()
}

/// Objects of one kind that are opened and not looked into: their names, how long one may be, what it is called.
type Kind<'a, I> = (fn(I) -> String, usize, &'a str);

/// Opens each object of a kind.
async fn open_each<I: Copy + Send + 'static>(
    repo: &Repo,
    findings: &mut Findings,
    ids: Vec<I>,
    (name, bytes_max, what): Kind<'_, I>,
    open: fn(&Keys, I, &[u8]) -> Result<(), String>,
) -> Result<(), RepoError> {
    let mut fetches = futures::stream::iter(ids)
        .map(|id| async move { (id, fetch(&repo.store, &name(id), bytes_max as u64).await) })
        .buffered(FETCHES);
    while let Some((id, fetched)) = fetches.next().await {
        match fetched? {
            Fetched::Missing => {} // a prune put others in its place meanwhile
            Fetched::TooLong => drop(findings.damaged(&name(id), format!("longer than {what} can be"))),
            Fetched::Content(content) => {
                let keys = repo.keys.clone();
                if let Err(problem) = repo.cpu.run(move || open(&keys, id, &content)).await {
                    findings.damaged(&name(id), problem);
                }
            }
        }
    }
    Ok(())
}

fn open_moved(keys: &Keys, id: MovedId, object: &[u8]) -> Result<(), String> {
    moved::open(keys, id, object).map(drop).map_err(|error| error.to_string())
}

fn open_joined(keys: &Keys, id: JoinedId, object: &[u8]) -> Result<(), String> {
    joined::open(keys, id, object).map(drop).map_err(|error| match error {
        RepoError::Damaged { problem, .. } => problem,
        error => error.to_string(),
    })
}

async fn look_at_slot(repo: &Repo, findings: &mut Findings, name: &str) -> Result<(), RepoError> {
    findings.counts.key_slots += 1;
    match fetch(&repo.store, name, SLOT_BYTES_MAX).await? {
        Fetched::Missing => {}
        Fetched::TooLong => drop(findings.damaged(name, "longer than a key slot can be")),
        Fetched::Content(content) => match KeySlot::decode(&content) {
            Err(error) => drop(findings.damaged(name, error)),
            // A create that was cut off before its header leaves one, and nobody misses it.
            Ok(slot) if slot.kloset != repo.keys.kloset() => {
                findings.counts.key_slots -= 1;
                findings.notes.add(NoteKind::Foreign, name, content.len() as u64);
            }
            Ok(slot) if layout::slot_name(slot.id) != name => {
                findings.damaged(name, format!("a copy of key slot {} under another name", slot.id));
            }
            Ok(_) => {}
        },
    }
    Ok(())
}

/// Holds what the index says of a pack against the listing.
fn compare(pack: &mut Pack) {
    let Some(known) = &pack.indexed else { return };
    let problem = match pack.listed {
        None => "missing".to_owned(),
        Some(listed) if listed != known.bytes => format!("{listed} bytes long instead of {}", known.bytes),
        Some(_) => return,
    };
    let missing = pack.listed.is_none();
    let lost = if missing { Unreadable::All } else { Unreadable::Nothing };
    pack.trouble = Some(Box::new(Trouble { missing, problem, lost, ..Trouble::default() }));
}

async fn listed<T>(repo: &Repo, folder: &str, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, RepoError> {
    Ok(repo.store.list(folder).await?.iter().filter_map(|o| parse(&o.name)).collect())
}
