//! `check`: holds a kloset against what its snapshots need.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::Global;
use super::asked;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names;
use super::output::Output;
use crate::repo::check::{CheckOptions, CheckProgress, CheckReport, CheckStage, Damage, check};

/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Checks that everything the snapshots need is there and whole.
///
/// Ends with 14 where damaged or missing data was found.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Also reads and opens all content.
    #[arg(long)]
    pub read_data: bool,
}

/// Runs the command.
pub(crate) fn run(args: CheckArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let kloset = Kloset::open(global)?;
    let options = CheckOptions { read_data: args.read_data };
    let progress = Progress::new(out);
    let checked = kloset.runtime.block_on(check(&kloset.repo, options, &|at| progress.tell(at)));
    drop(progress);
    let report = checked.map_err(|error| kloset.resolved.explain(error.into()))?;
    let counts = kloset.repo.store.counts();
    if out.is_json() {
        let mut value = serde_json::to_value(&report).map_err(|error| CliError::failed(error.to_string()))?;
        value["message_type"] = "summary".into();
        value["is_damaged"] = report.is_damaged().into();
        value["read_data"] = options.read_data.into();
        asked::add(&mut value, &counts);
        out.json(&value)?;
    } else {
        tell(&report, options, out)?;
        asked::tell_again(&counts, out);
    }
    Ok(if report.is_damaged() { Exit::Damaged } else { Exit::Done })
}

fn tell(report: &CheckReport, options: CheckOptions, out: &mut Output) -> Result<(), CliError> {
    for damage in &report.damaged {
        tell_damage(damage, out)?;
    }
    for note in &report.notes {
        let first = note.names.first().map(String::as_str).unwrap_or_default();
        let (objects, bytes) = (note.objects, HumanBytes(note.bytes));
        out.line(format_args!(
            "note: {}: {objects} ({bytes}), \"{}\" first",
            note.kind,
            names::safe(first.as_bytes())
        ))?;
    }
    let counts = &report.counts;
    if counts.moved > 0 {
        out.line(format_args!("note: {} references found elsewhere by the index, as after a prune", counts.moved))?;
    }
    let how = if options.read_data { "all content read" } else { "content not read: use --read-data" };
    let looked = format!(
        "{} snapshots, {} trees, {} packs ({}), {how}",
        counts.snapshots,
        counts.trees,
        counts.packs,
        HumanBytes(counts.bytes),
    );
    if !report.is_damaged() {
        return out.line(format_args!("no damage found: {looked}"));
    }
    let hurt = report.snapshots_affected().len();
    out.line(format_args!("{} objects damaged or missing, {hurt} snapshots affected: {looked}", report.damaged.len()))
}

fn tell_damage(damage: &Damage, out: &mut Output) -> Result<(), CliError> {
    let kind = if damage.missing { "missing" } else { "damaged" };
    let object = names::safe(damage.object.as_bytes());
    match damage.problem.as_str() {
        "missing" => out.line(format_args!("{kind}: \"{object}\""))?,
        problem => out.line(format_args!("{kind}: \"{object}\": {problem}"))?,
    }
    if !damage.snapshots.is_empty() {
        let ids: Vec<_> = damage.snapshots.iter().map(crate::repo::id::SnapshotId::short).collect();
        out.line(format_args!("  snapshots: {}", ids.join(" ")))?;
    }
    for path in &damage.paths {
        out.line(format_args!("  lost: {}:{}", path.snapshot.short(), names::safe(&path.path.0)))?;
    }
    let untold = damage.paths_total.saturating_sub(damage.paths.len() as u64);
    if untold > 0 {
        out.line(format_args!("  lost: {untold} more paths"))?;
    }
    Ok(())
}

/// What is shown while a check runs: a line that moves on a terminal, a line now and then elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    told: Mutex<Instant>,
}

impl Progress {
    fn new(out: &Output) -> Self {
        let terminal = std::io::stderr().is_terminal() && !out.is_json() && !out.is_quiet();
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template"));
            bar
        });
        Self { bar, quiet: out.is_quiet() || out.is_json(), told: Mutex::new(Instant::now()) }
    }

    #[allow(clippy::print_stderr)] // progress is no result and no failure
    fn tell(&self, at: CheckProgress) {
        let what = match at.stage {
            CheckStage::Objects => "looking at objects",
            CheckStage::Packs => "reading packs",
            CheckStage::Snapshots => "following snapshots",
        };
        let text = format!("checking: {what}: {} of {}, {} read", at.done, at.total, HumanBytes(at.bytes));
        if let Some(bar) = &self.bar {
            bar.set_message(text);
            return bar.tick();
        }
        let mut told = self.told.lock().expect("no panic while held");
        if !self.quiet && told.elapsed() >= LOG_EVERY {
            *told = Instant::now();
            eprintln!("{text}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
