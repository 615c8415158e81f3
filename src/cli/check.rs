//! `check`: holds a kloset against what its snapshots need.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::Global;
use super::asked;
use super::checked::Checked;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names;
use super::output::Output;
use super::process;
use super::repository::ResolvedRepository;
use super::subset::parse_subset;
use crate::cpu::Cpu;
use crate::env::Env;
use crate::repo::check::{
    self, CheckOptions, CheckProgress, CheckReport, CheckStage, Damage, SealsOptions, Subset, check,
};
use crate::repo::layout::SnapshotName;
use crate::store::StoreCounts;

/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Checks that everything the snapshots need is there and whole.
///
/// Ends with 14 where damaged or missing data was found.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Snapshots that are followed, or paths in them, as in `latest` or `latest:/etc`; --read-data reads what these need
    /// alone [default: everything].
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    pub only: Vec<OsString>,
    /// Also reads and opens all content.
    #[arg(long)]
    pub read_data: bool,
    /// Also reads and opens a part of the content: 3/7 (the third of seven), daily/week or daily/30 (another part each
    /// day, all of them in 7 or 30), weekly/year, 5% or 2GiB (so much, another part each day).
    #[arg(long, value_name = "PART", value_parser = parse_subset, conflicts_with = "read_data")]
    pub read_data_subset: Option<Subset>,
    /// Looks at the digests at the end of the packs alone, which takes no key: finds what has rotted or was cut, not what
    /// is missing. With --read-data-subset only at a part of them.
    #[arg(long, conflicts_with_all = ["read_data", "only"])]
    pub seals_only: bool,
    /// Goes on with a check that was interrupted: reads no pack again that it found whole.
    #[arg(long)]
    pub resume: bool,
}

/// Runs the command.
pub(crate) fn run(args: CheckArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let reads = args.read_data || args.read_data_subset.is_some();
    if args.resume && !reads && !args.seals_only {
        return Err(CliError::usage(
            "--resume is for a check that reads: add --read-data, --read-data-subset or --seals-only",
        ));
    }
    if args.seals_only {
        return check_seals(&args, global, out);
    }
    let kloset = Kloset::open(global)?;
    let only = only(&args, &kloset)?;
    let location = kloset.resolved.location.to_string();
    let noted = reads.then(|| Checked::begin(global, (&location, "data"), args.resume, out));
    let (checked, whole) = noted.map_or_else(Default::default, |(checked, whole)| (Some(checked), whole));
    let options = CheckOptions { read_data: reads, subset: args.read_data_subset, whole, only };
    let skipped = options.whole.len();
    let progress = Progress::new(out, "checking");
    let tell = |at: CheckProgress| {
        at.whole.iter().zip(&checked).for_each(|(pack, checked)| checked.note(*pack));
        progress.tell(at);
    };
    let report = kloset.runtime.block_on(check(&kloset.repo, options, &tell));
    drop(progress);
    let report = report.map_err(|error| kloset.resolved.explain(error.into()))?;
    checked.into_iter().for_each(Checked::end);
    let how = match (reads, &report.part) {
        (true, Some(part)) => format!("{part} of the content read"),
        (true, None) if !args.only.is_empty() => "their content read".to_owned(),
        (true, None) => "all content read".to_owned(),
        (false, _) => "content not read: use --read-data".to_owned(),
    };
    tell_all(&report, &Told { how, skipped, reads, is_seals: false, counts: kloset.repo.store.counts() }, out)
}

/// Finds the snapshots that were named, and their paths.
fn only(args: &CheckArgs, kloset: &Kloset) -> Result<Vec<(SnapshotName, Vec<u8>)>, CliError> {
    let mut only = Vec::new();
    for target in &args.only {
        let (spec, path) = names::split(target)?;
        let name = kloset.runtime.block_on(kloset.repo.resolve(&spec));
        let name = name.map_err(|error| kloset.resolved.explain(error.into()))?;
        only.push((name, path.unwrap_or_default()));
    }
    Ok(only)
}

/// Looks at the digests of packs: neither secret nor kloset is opened.
fn check_seals(args: &CheckArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let resolved = ResolvedRepository::resolve(global)?;
    let store = resolved.open_store()?;
    let (runtime, env) = (process::runtime()?, Env::system());
    let (checked, whole) = Checked::begin(global, (&resolved.location.to_string(), "seals"), args.resume, out);
    let skipped = whole.len();
    let options = SealsOptions { subset: args.read_data_subset, whole, unix_ms: env.clock.unix_ms() };
    let progress = Progress::new(out, "checking");
    let tell = |at: CheckProgress| {
        at.whole.iter().for_each(|pack| checked.note(*pack));
        progress.tell(at);
    };
    let report = runtime.block_on(check::check_seals(&store, &Cpu::new(env.parallelism), &options, &tell));
    drop(progress);
    let report = report.map_err(|error| resolved.explain(error.into()))?;
    checked.end();
    let part = report.part.map_or_else(|| "all of them".to_owned(), |part| part.to_string());
    let how = format!("digests of {part}; index, snapshots and what is missing take a key to check");
    tell_all(&report, &Told { how, skipped, reads: true, is_seals: true, counts: store.counts() }, out)
}

/// How the check was made.
struct Told {
    how: String,
    /// Packs that an interrupted check found whole.
    skipped: usize,
    reads: bool,
    is_seals: bool,
    counts: StoreCounts,
}

fn tell_all(report: &CheckReport, told: &Told, out: &mut Output) -> Result<Exit, CliError> {
    if out.is_json() {
        let mut value = serde_json::to_value(report).map_err(|error| CliError::failed(error.to_string()))?;
        value["message_type"] = "summary".into();
        value["is_damaged"] = report.is_damaged().into();
        value["read_data"] = (told.reads && !told.is_seals).into();
        value["seals_only"] = told.is_seals.into();
        value["packs_known_whole"] = told.skipped.into();
        asked::add(&mut value, &told.counts);
        out.json(&value)?;
    } else {
        tell(report, told, out)?;
        asked::tell_again(&told.counts, out);
    }
    Ok(if report.is_damaged() { Exit::Damaged } else { Exit::Done })
}

fn tell(report: &CheckReport, told: &Told, out: &mut Output) -> Result<(), CliError> {
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
    if told.skipped > 0 {
        out.line(format_args!("note: {} packs were found whole before the check was interrupted", told.skipped))?;
    }
    let packs = format!("{} packs ({}), {}", counts.packs, HumanBytes(counts.bytes), told.how);
    let looked = match told.is_seals {
        true => packs,
        false => format!("{} snapshots, {} trees, {packs}", counts.snapshots, counts.trees),
    };
    if !report.is_damaged() {
        return out.line(format_args!("no damage found: {looked}"));
    }
    let damaged = report.damaged.len();
    if told.is_seals {
        return out.line(format_args!("{damaged} packs damaged: {looked}"));
    }
    let hurt = report.snapshots_affected().len();
    out.line(format_args!("{damaged} objects damaged or missing, {hurt} snapshots affected: {looked}"))
}

/// Tells of one damaged object and who suffers.
pub(crate) fn tell_damage(damage: &Damage, out: &mut Output) -> Result<(), CliError> {
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
pub(crate) struct Progress {
    /// As in "checking".
    doing: &'static str,
    bar: Option<ProgressBar>,
    quiet: bool,
    told: Mutex<Instant>,
}

impl Progress {
    pub(crate) fn new(out: &Output, doing: &'static str) -> Self {
        let terminal = std::io::stderr().is_terminal() && !out.is_json() && !out.is_quiet();
        let bar = terminal.then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template"));
            bar
        });
        Self { doing, bar, quiet: out.is_quiet() || out.is_json(), told: Mutex::new(Instant::now()) }
    }

    #[allow(clippy::print_stderr)] // progress is no result and no failure
    pub(crate) fn tell(&self, at: CheckProgress) {
        let what = match at.stage {
            CheckStage::Objects => "looking at objects",
            CheckStage::Packs => "reading packs",
            CheckStage::Snapshots => "following snapshots",
        };
        let doing = self.doing;
        let text = format!("{doing}: {what}: {} of {}, {} read", at.done, at.total, HumanBytes(at.bytes));
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
