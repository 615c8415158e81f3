//! Packs fetched whole: digest, footer, frames and chunk ids.
//!
//! Packs of trees always, packs of data when asked, and any pack whose length is not what the index says.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;

use super::super::Repo;
use super::super::crypto::Keys;
use super::super::error::RepoError;
use super::super::id::PackId;
use super::super::pack::{self, FrameEntry, PACK_BYTES_MAX, PackKind};
use super::objects::{Fetched, fetch};
use super::{CheckOptions, CheckProgress, CheckStage, Findings, Lost, Monitor, Pack};

/// Packs in memory at once: 16 MiB each as a rule, enough to fill a link.
const PACKS_AT_ONCE: usize = 4;

/// What a pack's content is compared with.
struct Expected {
    kind: Option<PackKind>,
    /// Offset and sealed length of its frames by the index; none where no index run names it.
    frames: Option<Vec<(u32, u32)>>,
}

/// Verifies packs.
pub(super) async fn verify(
    repo: &Repo,
    findings: &mut Findings,
    options: CheckOptions,
    monitor: Monitor<'_>,
) -> Result<(), RepoError> {
    let mut wanted: Vec<PackId> =
        findings.packs.iter().filter(|(_, pack)| is_wanted(pack, options)).map(|(id, _)| *id).collect();
    wanted.sort_unstable();
    let total = wanted.len() as u64;
    let (mut done, mut bytes) = (0, 0);
    let expected = |id: &PackId| {
        let indexed = findings.packs.get(id).and_then(|p| p.indexed.as_ref());
        Expected { kind: indexed.map(|i| i.kind), frames: indexed.map(|i| i.frames.clone()) }
    };
    let work: Vec<_> = wanted.iter().map(|id| (*id, expected(id))).collect();
    let mut verdicts = futures::stream::iter(work)
        .map(|(id, expected)| async move { (id, verify_one(repo, id, expected).await) })
        .buffer_unordered(PACKS_AT_ONCE);
    while let Some((id, verdict)) = verdicts.next().await {
        let (length, verdict) = verdict?;
        (done, bytes) = (done + 1, bytes + length);
        monitor(CheckProgress { stage: CheckStage::Packs, done, total, bytes });
        if let Some((problem, lost)) = verdict {
            let trouble = findings.packs.entry(id).or_default().trouble("");
            trouble.problem = match trouble.problem.as_str() {
                "" => problem,
                before => format!("{before}, {problem}"),
            };
            trouble.lost = lost;
        }
    }
    findings.counts.packs_read = done;
    findings.counts.bytes_read = bytes;
    Ok(())
}

fn is_wanted(pack: &Pack, options: CheckOptions) -> bool {
    let trees = pack.indexed.as_ref().is_some_and(|i| i.kind == PackKind::Tree);
    pack.listed.is_some() && (options.read_data || trees || pack.trouble.is_some())
}

type Verdict = Option<(String, Lost)>;

async fn verify_one(repo: &Repo, id: PackId, expected: Expected) -> Result<(u64, Verdict), RepoError> {
    match fetch(&repo.store, &id.to_string(), PACK_BYTES_MAX).await? {
        Fetched::Missing => Ok((0, Some(("gone while it was checked".into(), Lost::All)))),
        Fetched::TooLong => Ok((0, Some(("longer than a pack can be".into(), Lost::All)))),
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
        Err(error) => return Some((error.to_string(), Lost::All)),
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
        Err(error) if expected.kind == Some(PackKind::Tree) => return Some((error.to_string(), Lost::All)),
        Err(error) => {
            let Some(known) = &expected.frames else { return Some((error.to_string(), Lost::All)) };
            let known: Vec<_> =
                known.iter().map(|&(offset, bytes)| FrameEntry { offset, bytes, chunks: Vec::new() }).collect();
            return Some((error.to_string(), lost(lost_of(&known, PackKind::Data))));
        }
    };
    let mut bad = lost_of(&footer.frames, footer.kind);
    if !bad.is_empty() {
        let places: Vec<_> = bad.iter().take(10).map(u32::to_string).collect();
        let more = if bad.len() > places.len() { ", …" } else { "" };
        let problem =
            format!("{} of {} frames damaged, at {}{more}", bad.len(), footer.frames.len(), places.join(", "));
        return Some((problem, lost(bad)));
    }
    if let Some(known) = &expected.frames {
        let held: BTreeSet<_> = footer.frames.iter().map(|f| (f.offset, f.bytes)).collect();
        bad = known.iter().filter(|f| !held.contains(f)).map(|f| f.0).collect();
        if !bad.is_empty() || held.len() != known.len() || expected.kind != Some(footer.kind) {
            return Some(("its footer and the index do not agree".into(), lost(bad)));
        }
    }
    pack::verify_digest(content).err().map(|error| (error.to_string(), Lost::Nothing))
}

fn lost(frames: BTreeSet<u32>) -> Lost {
    if frames.is_empty() { Lost::Nothing } else { Lost::Frames(frames) }
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
