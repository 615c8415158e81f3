//! `repair`: puts right what a check finds damaged; shows what it would do until it is told to do it.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::args::Global;
use super::backup_report;
use super::check::{Progress, tell_damage};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names::safe;
use super::output::Output;
use super::repository::ResolvedRepository;
use super::secret::OtherSecretArgs;
use crate::backup::{self, BackupError};
use crate::monitor::Monitor;
use crate::repo::repair::{Outcome, RepairOptions, RepairReport, Verdict, Wanted, other, repair};
use crate::repo::{Repo, RepoError};

/// Puts right what a check finds damaged, as far as that can be done, and tells the rest.
///
/// Shows the plan and changes nothing unless --apply is given. Nothing that can be read is deleted or replaced: packs that no
/// index run names are listed anew, what still opens in damaged packs is stored anew, and so is what is lost and found in a
/// --source or --from. A snapshot that lacks something even so gets a corrected one beside it, tagged "corrected", without
/// what is lost. Ends with 14 as long as something is damaged.
#[derive(Debug, Args)]
pub(crate) struct RepairArgs {
    /// Reads all content first: what is there and rotten is found so, as by `check --read-data`.
    #[arg(long)]
    pub read_data: bool,
    /// File or folder that still holds what was backed up, as the source itself or a restored copy; may be repeated. All of
    /// it is read.
    #[arg(long, value_name = "PATH")]
    pub source: Vec<PathBuf>,
    /// Another kloset that has what is lost: a copy of this one, or one with the same snapshots; @NAME, a bucket or a folder.
    #[arg(long, value_name = "REPOSITORY")]
    pub from: Option<String>,
    #[command(flatten)]
    pub other: OtherSecretArgs,
    /// Does what the plan says.
    #[arg(long)]
    pub apply: bool,
}

/// Runs the command.
pub(crate) fn run(args: RepairArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    for path in &args.source {
        std::fs::metadata(path).map_err(|error| CliError::usage(format!("--source {path:?}: {error}")))?;
    }
    if args.from.is_none() && args.other != OtherSecretArgs::default() {
        return Err(CliError::usage("the other kloset is not said: give --from"));
    }
    let kloset = Kloset::open(global)?;
    let other = args.from.as_ref().map(|from| open_other(&kloset, from, &args, global)).transpose()?;
    let options = RepairOptions { read_data: args.read_data, apply: args.apply };
    let monitor = Arc::new(Monitor::default());
    let progress = Progress::new(out, "repairing");
    let sources =
        Sources { args: &args, kloset: &kloset, other: other.as_ref(), monitor: &monitor, failed: RefCell::default() };
    let mut heal = |repo: &Repo, wanted: &Wanted<'_>| sources.heal(repo, wanted);
    let report = repair(&kloset.repo, kloset.runtime.handle(), options, &mut heal, &|at| progress.tell(at));
    drop(progress);
    let failed = sources.failed.into_inner();
    let report = report.map_err(|error| kloset.resolved.explain(error.into()))?;
    backup_report::tell_troubles(&monitor, out);
    for error in failed {
        out.warn(error);
    }
    if out.is_json() {
        let mut value = serde_json::to_value(&report).map_err(|error| CliError::failed(error.to_string()))?;
        value["message_type"] = "summary".into();
        value["is_whole"] = report.is_whole().into();
        out.json(&value)?;
    } else {
        tell(&report, out)?;
    }
    // Packs that an interrupted backup left are listed anew, and are no damage.
    let is_done = !report.check.is_damaged() || report.applied && report.is_whole();
    Ok(if is_done { Exit::Done } else { Exit::Damaged })
}

/// Opens the kloset that has what is lost.
fn open_other(kloset: &Kloset, from: &str, args: &RepairArgs, global: &Global) -> Result<Repo, CliError> {
    let resolved = ResolvedRepository::named(from, global)?;
    let store = resolved.open_store()?;
    kloset.open_other((&resolved, store), &args.other, global)
}

/// Where what is lost may be found.
struct Sources<'a> {
    args: &'a RepairArgs,
    kloset: &'a Kloset,
    other: Option<&'a Repo>,
    monitor: &'a Arc<Monitor>,
    /// What kept a folder from being read.
    failed: RefCell<Vec<BackupError>>,
}

impl Sources<'_> {
    /// Stores what is found of what is lost; the other kloset is asked first, since it has folders as they were.
    fn heal(&self, repo: &Repo, wanted: &Wanted<'_>) -> Result<HashSet<crate::repo::id::ChunkId>, RepoError> {
        let runtime = self.kloset.runtime.handle();
        let mut healed = HashSet::new();
        if let Some(other) = self.other {
            healed.extend(other::heal_from(repo, runtime, &other.without_cache(), wanted)?);
        }
        let mut lost = wanted.lost.clone();
        lost.content.retain(|id, _| !healed.contains(id));
        lost.trees.retain(|id, _| !healed.contains(id));
        if self.args.source.is_empty() || lost.content.is_empty() && lost.trees.is_empty() {
            return Ok(healed);
        }
        let skip = self.kloset.folder().map(PathBuf::from);
        match backup::heal(repo, runtime, (&self.args.source, skip), &lost, self.monitor) {
            Ok(found) => healed.extend(found),
            Err(BackupError::Repo(error)) => return Err(error),
            Err(error) => self.failed.borrow_mut().push(error),
        }
        Ok(healed)
    }
}

fn tell(report: &RepairReport, out: &mut Output) -> Result<(), CliError> {
    if !report.is_needed() {
        return out.line("nothing to repair: no damage found");
    }
    for damage in &report.check.damaged {
        tell_damage(damage, out)?;
    }
    let would = if report.applied { "" } else { "to be " };
    if report.packs_listed > 0 {
        out.line(format_args!("index: {} packs that no index run names {would}listed anew", report.packs_listed))?;
    }
    if report.salvaged > 0 {
        out.line(format_args!("salvage: {} chunks of damaged packs {would}stored anew", report.salvaged))?;
    }
    if report.lost > 0 {
        let (lost, healed) = (report.lost, report.healed);
        out.line(format_args!("lost: {lost} chunks, {healed} of them found in what was given and {would}stored anew"))?;
    }
    for verdict in &report.snapshots {
        tell_verdict(verdict, report.applied, out)?;
    }
    if !report.marked.is_empty() {
        let marked = report.marked.len();
        out.line(format_args!("mark: {marked} damaged packs {would}marked, so that no backup relies on them"))?;
    }
    for name in &report.set_aside {
        out.line(format_args!(
            "set aside: \"{name}\" {would}moved to \"damaged/{name}\", since no backup begins beside it"
        ))?;
    }
    for left in &report.left {
        out.line(format_args!("left: \"{}\": {}", safe(left.object.as_bytes()), left.advice))?;
    }
    let end = match (report.applied, report.is_whole()) {
        (true, true) => "repaired: everything that snapshots hold can be read",
        (true, false) => "repaired as far as it goes: something is lost or left",
        (false, true) if !report.check.is_damaged() => "no damage found; nothing is changed without --apply",
        (false, true) => "nothing is changed without --apply; everything would be readable again",
        (false, false) => {
            "nothing is changed without --apply; --source and --from name where lost content may still be found"
        }
    };
    out.line(end)
}

fn tell_verdict(verdict: &Verdict, applied: bool, out: &mut Output) -> Result<(), CliError> {
    let (id, lacks) = (verdict.snapshot.short(), verdict.paths_total);
    match (verdict.outcome, applied) {
        (Outcome::Healed, true) => out.line(format_args!("snapshot {id}: whole again"))?,
        (Outcome::Healed, false) => out.line(format_args!("snapshot {id}: would be whole again"))?,
        (Outcome::Corrected(by), true) => {
            out.line(format_args!("snapshot {id}: lacks {lacks} paths; {} is the corrected one", by.short()))?;
        }
        (Outcome::Corrected(_), false) => {
            out.line(format_args!("snapshot {id}: lacks {lacks} paths; would get a corrected one beside it"))?;
        }
        (Outcome::Unreadable, _) => out.line(format_args!("snapshot {id}: nothing of it can be read"))?,
    }
    for path in &verdict.paths {
        out.line(format_args!("  lost: {}", safe(&path.0)))?;
    }
    let untold = lacks.saturating_sub(verdict.paths.len() as u64);
    if untold > 0 {
        out.line(format_args!("  lost: {untold} more paths"))?;
    }
    Ok(())
}
