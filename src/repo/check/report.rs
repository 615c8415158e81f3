//! What a check found, in words and as JSON.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::super::id::{PackId, RunId, SessionId, SnapshotId};
use super::super::layout::{self, SnapshotName};
use super::super::snapshot::ByteText;
use super::{Findings, NOTES_MAX, Pack, Part, Trouble};

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CheckReport {
    /// What was looked at.
    #[serde(flatten)]
    pub counts: Counts,
    /// The part of the packs of content that was read, if it was not all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
    /// Objects that are missing or damaged, by name.
    pub damaged: Vec<Damage>,
    /// What is worth knowing and no damage.
    pub notes: Vec<Note>,
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Snapshots that open.
    pub snapshots: u64,
    /// Distinct trees read.
    pub trees: u64,
    /// Files in them.
    pub files: u64,
    /// Packs in the store.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs read whole.
    pub packs_read: u64,
    /// Their bytes.
    pub bytes_read: u64,
    /// Index runs that open.
    pub index_runs: u64,
    /// Key slots.
    pub key_slots: u64,
    /// References whose chunk is no longer where they say and was found by the index: as after a prune.
    pub moved: u64,
}

/// A missing or damaged object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// Whether it is not there at all.
    pub missing: bool,
    /// What is wrong with it.
    pub problem: String,
    /// Snapshots that cannot be read wholly because of it.
    pub snapshots: Vec<SnapshotId>,
    /// The first paths that cannot be read because of it, each in the first snapshot that has it.
    pub paths: Vec<Affected>,
    /// How many different paths there are.
    pub paths_total: u64,
}

/// A path that cannot be read; of a directory, all that is below it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Affected {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The path.
    pub path: ByteText,
}

/// Something that is no damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// What it is.
    pub kind: NoteKind,
    /// How many objects.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The first of their names.
    pub names: Vec<String>,
}

/// Kinds of what is no damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// Packs that no readable index run names: left over from interrupted runs, or of a run that is still going on.
    Unreferenced,
    /// Packs that a prune marked for deletion.
    Pending,
    /// Objects with names that are not a kloset's.
    Foreign,
    /// Snapshots that were forgotten while they were checked.
    Vanished,
}

impl std::fmt::Display for NoteKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Unreferenced => "packs named by no index run: left over from interrupted runs, or one is going on",
            Self::Pending => "packs awaiting deletion by prune",
            Self::Foreign => "objects that are not of a kloset",
            Self::Vanished => "snapshots forgotten while they were checked",
        })
    }
}

/// Notes by kind.
#[derive(Clone, Default)]
pub(in crate::repo) struct Notes(BTreeMap<NoteKind, Note>);

impl Notes {
    pub(super) fn into_list(self) -> Vec<Note> {
        self.0.into_values().collect()
    }

    pub(super) fn add(&mut self, kind: NoteKind, name: &str, bytes: u64) {
        let note = self.0.entry(kind).or_insert(Note { kind, objects: 0, bytes: 0, names: Vec::new() });
        note.objects += 1;
        note.bytes += bytes;
        if note.names.len() < NOTES_MAX {
            note.names.push(name.to_owned());
        }
    }
}

impl CheckReport {
    /// Tells whether anything is missing or damaged.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Returns the snapshots that cannot be read wholly.
    #[must_use]
    pub fn snapshots_affected(&self) -> BTreeSet<SnapshotId> {
        self.damaged.iter().flat_map(|d| d.snapshots.iter().copied()).collect()
    }
}

/// Decides what of the findings is damage and what a note.
pub(in crate::repo) fn sum_up(findings: &mut Findings) -> CheckReport {
    tell_missing_runs(findings);
    let (mut objects, mut notes) = (findings.objects.clone(), findings.notes.clone());
    let mut counts = Counts { snapshots: findings.snapshots.len() as u64, ..findings.counts };
    let mut sorted: Vec<(&PackId, &Pack)> = findings.packs.iter().collect();
    sorted.sort_unstable_by_key(|(id, _)| *id);
    for (id, pack) in sorted {
        let name = id.to_string();
        counts.packs += u64::from(pack.listed.is_some());
        counts.bytes += pack.listed.unwrap_or(0);
        match (pack.listed, pack.pending, pack.used, pack.indexed.is_some()) {
            (Some(bytes), true, ..) => notes.add(NoteKind::Pending, &name, bytes),
            (Some(bytes), false, false, false) => notes.add(NoteKind::Unreferenced, &name, bytes),
            _ => {}
        }
        // Of a pack that awaits deletion only what somebody suffers from matters: everything else is elsewhere.
        let matters = !pack.pending && (pack.indexed.is_some() || pack.used && pack.listed.is_some());
        let hurts = |t: &Trouble| !t.snapshots.is_empty() || !t.paths_seen.is_empty();
        if let Some(trouble) = pack.trouble.as_ref().filter(|t| matters || hurts(t)) {
            objects.insert(name, (**trouble).clone());
        }
    }
    let damaged = objects.into_iter().map(|(name, trouble)| damage(name, trouble)).collect();
    CheckReport { counts, part: findings.part, damaged, notes: notes.into_list() }
}

pub(super) fn damage(object: String, trouble: Trouble) -> Damage {
    Damage {
        object,
        missing: trouble.missing,
        problem: trouble.problem,
        snapshots: trouble.snapshots.iter().map(|s| s.id).collect(),
        paths: trouble.paths,
        paths_total: trouble.paths_seen.len() as u64,
    }
}

/// Explains packs that snapshots use and no index run names: by an index run that is not there, where a manifest
/// names one. (That a run is gone is no fault in itself: prune joins runs.)
fn tell_missing_runs(findings: &mut Findings) {
    let stray = |pack: &Pack| pack.used && pack.listed.is_some() && pack.indexed.is_none() && !pack.pending;
    let mut sessions: BTreeMap<SessionId, Vec<PackId>> = BTreeMap::new();
    for (id, _) in findings.packs.iter().filter(|(_, pack)| stray(pack)) {
        sessions.entry(id.session).or_default().push(*id);
    }
    let damaged_runs = findings.objects.keys().any(|name| layout::parse_run(name).is_some());
    let mut gone: Vec<(RunId, SnapshotName)> = Vec::new();
    for (name, manifest) in &findings.snapshots {
        if sessions.contains_key(&manifest.root.session) {
            let missing: Vec<_> = manifest.index.iter().filter(|run| !findings.runs.contains(run)).collect();
            gone.extend(missing.iter().map(|run| (**run, *name)));
            if !missing.is_empty() {
                sessions.remove(&manifest.root.session);
            }
        }
    }
    for (run, _) in gone {
        let name = layout::run_name(run);
        if !findings.objects.contains_key(&name) {
            findings.missing(&name, "missing: what it named is stored again by the next backup");
        }
    }
    if damaged_runs {
        return;
    }
    for id in sessions.into_values().flatten() {
        let pack = findings.packs.entry(id).or_default();
        pack.trouble("no index run names it, though snapshots use it: the next backup stores its content again");
    }
}
