//! Packs fetched whole: digest, footer, frames and chunk ids.
//!
//! Packs of trees always, packs of data when asked, and any pack whose length is not what the index says. Memory is
//! bounded by what is under way.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::Semaphore;

use super::super::Repo;
use super::super::crypto::Keys;
use super::super::error::RepoError;
use super::super::id::PackId;
use super::super::pack::{self, FrameEntry, PACK_BYTES_MAX, PackKind};
use super::objects::{Fetched, fetch};
use super::{CheckOptions, CheckProgress, CheckStage, Findings, Monitor, Pack, Unreadable};

/// Packs under way at once: enough to fill a link of 10 Gbit/s with connections of 80 MB/s each.
pub(super) const PACKS_AT_ONCE: usize = 16;
/// KiB of packs under way at most; a pack is 16 MiB as a rule and 64 MiB at most.
pub(super) const UNDER_WAY_KIB: u32 = 128 << 10;
const _: () = assert!((PACK_BYTES_MAX >> 10) <= UNDER_WAY_KIB as u64);

/// What is fetched of all packs.
pub(in crate::repo) struct Scope<'a> {
    pub(in crate::repo) options: &'a CheckOptions,
    /// The packs that what is followed refers to; without, all of them.
    pub(in crate::repo) used: Option<HashSet<PackId>>,
}

/// What a pack's content is compared with.
struct Expected {
    kind: Option<PackKind>,
    /// Offset and sealed length of its frames by the index; none where no index run names it.
    frames: Option<Vec<(u32, u32)>>,
}

/// Verifies packs.
pub(in crate::repo) async fn verify(
    repo: &Repo,
    findings: &mut Findings,
    scope: &Scope<'_>,
    monitor: Monitor<'_>,
) -> Result<(), RepoError> {
    let wanted = wanted(repo, findings, scope);
    let total = wanted.len() as u64;
    let (mut done, mut bytes) = (0, 0);
    let expected = |id: &PackId| {
        let indexed = findings.packs.get(id).and_then(|p| p.indexed.as_ref());
        Expected { kind: indexed.map(|i| i.kind), frames: indexed.map(|i| i.frames.clone()) }
    };
    let work: Vec<_> = wanted.iter().map(|(id, bytes)| (*id, *bytes, expected(id))).collect();
    let under_way = Semaphore::new(UNDER_WAY_KIB as usize);
    let verdicts = futures::stream::iter(work).map(|(id, bytes, expected)| {
        let room = under_way.acquire_many(room_kib(bytes));
        async move { (id, room.await, verify_one(repo, id, expected).await) }
    });
    let mut verdicts = verdicts.buffer_unordered(PACKS_AT_ONCE);
    while let Some((id, room, verdict)) = verdicts.next().await {
        let (length, verdict) = verdict?;
        drop(room);
        (done, bytes) = (done + 1, bytes + length);
        let whole = verdict.is_none().then_some(id);
        monitor(CheckProgress { stage: CheckStage::Packs, done, total, bytes, whole });
        if let Some((problem, unreadable)) = verdict {
            let trouble = findings.packs.entry(id).or_default().trouble("");
            trouble.problem = match trouble.problem.as_str() {
                "" => problem,
                before => format!("{before}, {problem}"),
            };
            trouble.lost = unreadable;
        }
    }
    findings.counts.packs_read = done;
    findings.counts.bytes_read = bytes;
    Ok(())
}

/// Returns how much room a pack takes while it is under way.
pub(super) fn room_kib(bytes: u64) -> u32 {
    u32::try_from(bytes >> 10).unwrap_or(u32::MAX).clamp(1, UNDER_WAY_KIB)
}

/// Decides which packs are fetched, with their lengths; notes which part they are.
fn wanted(repo: &Repo, findings: &mut Findings, scope: &Scope<'_>) -> Vec<(PackId, u64)> {
    let Scope { options, used } = scope;
    let is_used = |id: &PackId| used.as_ref().is_none_or(|used| used.contains(id));
    let there = || findings.packs.iter().filter_map(|(id, pack)| Some((*id, pack, pack.listed?)));
    let of_data = there().filter(|(id, pack, _)| is_used(id) && !is_of_trees(pack));
    let bytes = of_data.map(|(.., bytes)| bytes).sum();
    let subset = options.subset.filter(|_| options.read_data);
    let part = subset.map(|subset| subset.part(repo.env.clock.unix_ms(), bytes));
    let is_wanted = |id: &PackId, pack: &Pack| match pack.trouble.is_some() {
        true => true,
        false if !is_used(id) || options.whole.contains(id) => false,
        false => is_of_trees(pack) || options.read_data && part.is_none_or(|part| part.holds(*id)),
    };
    let mut wanted: Vec<_> =
        there().filter(|(id, pack, _)| is_wanted(id, pack)).map(|(id, _, bytes)| (id, bytes)).collect();
    wanted.sort_unstable();
    findings.part = part;
    wanted
}

fn is_of_trees(pack: &Pack) -> bool {
    pack.indexed.as_ref().is_some_and(|i| i.kind == PackKind::Tree)
}

type Verdict = Option<(String, Unreadable)>;

async fn verify_one(repo: &Repo, id: PackId, expected: Expected) -> Result<(u64, Verdict), RepoError> {
    match fetch(&repo.store, &id.to_string(), PACK_BYTES_MAX).await? {
        Fetched::Missing => Ok((0, Some(("gone while it was checked".into(), Unreadable::All)))),
        Fetched::TooLong => Ok((0, Some(("longer than a pack can be".into(), Unreadable::All)))),
        Fetched::Content(content) => {
            let (length, keys) = (content.len() as u64, repo.keys.clone());
            Ok((length, repo.cpu.run(move || judge(&keys, id, &content, &expected)).await))
        }
    }
}

/// Opens all of a pack.
fn judge(keys: &Arc<Keys>, id: PackId, content: &Bytes, expected: &Expected) -> Verdict {
    let key = match keys.session_key(&id.session) {
        Ok(key) => key,
        Err(error) => return Some((error.to_string(), Unreadable::All)),
    };
    let footer = pack::sealed_footer(content).and_then(|f| pack::open_footer(&key, keys.kloset(), id, f));
    let opens = |frame: &FrameEntry, kind: PackKind| {
        let (from, to) = (frame.offset as usize, frame.offset as usize + frame.bytes as usize);
        let sealed = content.get(from..to)?;
        let raw = pack::open_frame(&key, (keys.kloset(), id.session), sealed).ok()?;
        frame.chunks.is_empty().then_some(()).or_else(|| holds_its_chunks(keys, kind, &raw, frame))
    };
    let lost_of = |frames: &[FrameEntry], kind| -> BTreeSet<u32> {
        frames.iter().filter(|f| opens(f, kind).is_none()).map(|f| f.offset).collect()
    };
    let footer = match footer {
        Ok(footer) => footer,
        // Readers of trees need the footer; readers of data do not.
        Err(error) if expected.kind == Some(PackKind::Tree) => return Some((error.to_string(), Unreadable::All)),
        Err(error) => {
            let Some(known) = &expected.frames else { return Some((error.to_string(), Unreadable::All)) };
            let known: Vec<_> =
                known.iter().map(|&(offset, bytes)| FrameEntry { offset, bytes, chunks: Vec::new() }).collect();
            return Some((error.to_string(), unreadable(lost_of(&known, PackKind::Data))));
        }
    };
    let mut bad = lost_of(&footer.frames, footer.kind);
    if !bad.is_empty() {
        let places: Vec<_> = bad.iter().take(10).map(u32::to_string).collect();
        let more = if bad.len() > places.len() { ", …" } else { "" };
        let problem =
            format!("{} of {} frames damaged, at {}{more}", bad.len(), footer.frames.len(), places.join(", "));
        return Some((problem, unreadable(bad)));
    }
    if let Some(known) = &expected.frames {
        let held: BTreeSet<_> = footer.frames.iter().map(|f| (f.offset, f.bytes)).collect();
        bad = known.iter().filter(|f| !held.contains(f)).map(|f| f.0).collect();
        if !bad.is_empty() || held.len() != known.len() || expected.kind != Some(footer.kind) {
            return Some(("its footer and the index do not agree".into(), unreadable(bad)));
        }
    }
    pack::verify_digest(content).err().map(|error| (error.to_string(), Unreadable::Nothing))
}

fn unreadable(frames: BTreeSet<u32>) -> Unreadable {
    if frames.is_empty() { Unreadable::Nothing } else { Unreadable::Frames(frames) }
}

/// Cuts an opened frame as the footer says and names each chunk anew.
fn holds_its_chunks(keys: &Keys, kind: PackKind, raw: &[u8], frame: &FrameEntry) -> Option<()> {
    let mut rest = raw;
    for (id, bytes) in &frame.chunks {
        let (chunk, behind) = rest.split_at_checked(*bytes as usize)?;
        let found = match kind {
            PackKind::Data => keys.chunk_id(chunk),
            PackKind::Tree => keys.tree_id(chunk),
        };
        (found == *id).then_some(())?;
        rest = behind;
    }
    rest.is_empty().then_some(())
}
