//! `prune`: frees the space of what no snapshot needs; shows what it would do until it is told to do it.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::args::Global;
use super::exit::{CliError, Exit, exit_of};
use super::kloset::Kloset;
use super::output::Output;
use super::size::parse_size;
use super::status::parse_age;
use crate::repo::RepoError;
use crate::repo::layout::timestamp;
use crate::repo::prune::{Amount, GRACE_DEFAULT, PruneOptions, PrunePlan, PruneReport, Requests, Stage, apply, plan};
use crate::store::StoreError;

/// How often a log gets a line.
const LOG_EVERY: Duration = Duration::from_secs(30);
/// A day, in which minimum storage times are told.
const DAY_SECONDS: u64 = 24 * 3600;

/// Frees the space of what no snapshot needs.
///
/// Shows the plan and changes nothing unless --apply is given. What is not needed is marked, and deleted by a later run,
/// once it was marked for the grace period by the store's clock and is still not needed. Backups and mounts may go on
/// meanwhile.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Does what the plan says: deletes what was marked long enough ago, and marks anew.
    #[arg(long)]
    pub apply: bool,
    /// Then waits until what was marked may be deleted, and deletes it.
    #[arg(long, requires = "apply")]
    pub wait: bool,
    /// How long what is not needed stays marked before it is deleted [24h].
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub grace: Option<i64>,
    /// Lets --grace be less than 24h: only where no backup takes longer from its last look to its snapshot.
    #[arg(long)]
    pub allow_short_grace: bool,
    /// What may stay unneeded in packs that are kept, of all their bytes.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, default_value = "5%")]
    pub max_unused: u32,
    /// The most that is fetched to be written anew, as in 10GiB.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_repack_size: Option<u64>,
    /// After this time nothing more is written anew; another run goes on.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub max_time: Option<i64>,
    /// Days that the store bills for at least: what is deleted sooner is told.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_storage_days: u64,
}

/// Runs the command.
pub(crate) fn run(args: &PruneArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let options = options(args)?;
    let kloset = Kloset::open(global)?;
    let progress = Progress::new(out);
    let tell = |stage, done, total| progress.tell(stage, done, total);
    if !args.apply {
        let planned = kloset.runtime.block_on(plan(&kloset.repo, &options, &tell));
        drop(progress);
        let planned = planned.map_err(|error| explain(&kloset, error))?;
        return tell_plan(&planned, &options, out).map(|()| Exit::Done);
    }
    let mut first = true;
    loop {
        let done = kloset.runtime.block_on(apply(&kloset.repo, &options, &tell));
        let report = done.map_err(|error| explain(&kloset, error))?;
        tell_report(&report, &options, out)?;
        if !args.wait || !first {
            return Ok(Exit::Done);
        }
        first = false;
        if report.marked == 0 && report.plan.waiting.packs == 0 {
            return Ok(Exit::Done);
        }
        progress.clear();
        out.note(format_args!("waiting for {}", words(options.grace)));
        // A little longer: stores tell the time to the second.
        let time = options.grace + Duration::from_secs(2);
        kloset.runtime.block_on(async { tokio::time::sleep(time).await });
    }
}

fn options(args: &PruneArgs) -> Result<PruneOptions, CliError> {
    let time = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let grace = args.grace.map_or(GRACE_DEFAULT, time);
    if grace < GRACE_DEFAULT && !args.allow_short_grace {
        return Err(CliError::usage(
            "a grace period under 24h can take from a backup what it is about to use: say --allow-short-grace if none runs",
        ));
    }
    Ok(PruneOptions {
        grace,
        max_unused_permille: args.max_unused,
        max_repack_bytes: args.max_repack_size,
        max_time: args.max_time.map(time),
        min_storage: Duration::from_secs(args.min_storage_days.saturating_mul(DAY_SECONDS)),
    })
}

/// Milliseconds of a time like `30s` or `24h`.
fn parse_time(text: &str) -> Result<i64, String> {
    match text.strip_suffix('s').map(str::parse::<u32>) {
        Some(Ok(seconds)) => Ok(i64::from(seconds) * 1000),
        _ => parse_age(text).map_err(|_| "write a number and one of the units s, m, h, d and w, as in 24h".to_owned()),
    }
}

/// Thousandths of a share like `5%` or `2.5`.
fn parse_percent(text: &str) -> Result<u32, String> {
    let wrong = || "write a share from 0% to 100%, as in 5%".to_owned();
    let (whole, tenths) = text.trim_end_matches('%').split_once('.').unwrap_or((text.trim_end_matches('%'), "0"));
    let number = |digits: &str| digits.parse::<u32>().map_err(|_| wrong());
    let permille = number(whole)?.checked_mul(10).ok_or_else(wrong)? + number(tenths)?;
    if tenths.len() == 1 && permille <= 1000 { Ok(permille) } else { Err(wrong()) }
}

fn explain(kloset: &Kloset, error: RepoError) -> CliError {
    if let RepoError::Store(error) = &error
        && let StoreError::Denied { .. } = &**error
    {
        let why = "nothing that a snapshot needs was touched: pruning takes a key of the store that may put and delete";
        return kloset.resolved.explain(CliError::new(exit_of(error), format!("{why}: {error}")));
    }
    kloset.resolved.explain(error.into())
}

fn tell_plan(plan: &PrunePlan, options: &PruneOptions, out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        let mut value = plan_json(plan);
        value["message_type"] = "summary".into();
        value["applied"] = false.into();
        return out.json(&value);
    }
    let PrunePlan { total, requests, .. } = plan;
    out.line(format_args!(
        "{} snapshots need {} chunks in {} of {}",
        plan.snapshots,
        plan.chunks,
        shown(Amount { packs: total.packs - plan.mark.packs - plan.delete.packs, bytes: needed_bytes(plan) }),
        shown(*total),
    ))?;
    for (amount, what) in [
        (plan.delete, "to delete: marked long enough ago and not needed"),
        (plan.spare, "to spare: marked, and needed after all"),
        (plan.waiting, "marked not long enough ago"),
        (plan.mark, "to mark: not needed"),
        (plan.repack, "to write anew and mark: needed in part, or small"),
    ] {
        if amount.packs > 0 {
            out.line(format_args!("  {}  {what}", shown(amount)))?;
        }
    }
    if plan.repack.packs > 0 {
        let (read, written) = (HumanBytes(plan.repack.bytes), HumanBytes(plan.repack_bytes_written));
        out.line(format_args!("  {read} to fetch and {written} to send for that"))?;
    }
    tell_common(plan, options, out)?;
    let freed = plan.delete.bytes + plan.mark.bytes + plan.repack.bytes.saturating_sub(plan.repack_bytes_written);
    let Requests { lists, gets, puts, deletes } = requests;
    out.line(format_args!("requests: {lists} LIST, {gets} GET, {puts} PUT, {deletes} DELETE"))?;
    out.line(format_args!(
        "would free {} now and {} in the end; nothing is changed without --apply",
        HumanBytes(plan.delete.bytes),
        HumanBytes(freed)
    ))
}

fn tell_common(plan: &PrunePlan, options: &PruneOptions, out: &mut Output) -> Result<(), CliError> {
    if plan.unused_bytes > 0 {
        out.line(format_args!("  {} stay unneeded in packs that are kept", HumanBytes(plan.unused_bytes)))?;
    }
    if plan.early.packs > 0 {
        let days = options.min_storage.as_secs() / DAY_SECONDS;
        out.warn(format_args!("{} go before {days} days are over, which the store bills", shown(plan.early)));
    }
    Ok(())
}

fn tell_report(report: &PruneReport, options: &PruneOptions, out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        return out.json(&report_json(report));
    }
    let PruneReport { plan, deleted, marked, repacked } = report;
    out.line(format_args!("deleted {}, marked {marked} packs", shown(*deleted)))?;
    if repacked.packs > 0 {
        let (read, written) = (HumanBytes(repacked.bytes_read), HumanBytes(repacked.bytes_written));
        out.line(format_args!("wrote {} packs anew: {read} fetched, {written} sent", repacked.packs))?;
    }
    let left = plan.repack.packs - repacked.packs;
    if left > 0 {
        out.note(format_args!("{left} packs are left to be written anew: another run goes on"));
    }
    if plan.spare.packs > 0 {
        out.line(format_args!("spared {}: marked, and needed after all", shown(plan.spare)))?;
    }
    tell_common(plan, options, out)?;
    if *marked > 0 {
        let grace = words(options.grace);
        out.note(format_args!("what is marked is deleted by the first `prune --apply` after {grace}"));
    } else if let Some(due) = plan.due_unix_ms {
        let due = timestamp(due).to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%SZ").to_string();
        out.note(format_args!("what waits may be deleted after {due}"));
    }
    Ok(())
}

fn needed_bytes(plan: &PrunePlan) -> u64 {
    plan.total.bytes.saturating_sub(plan.mark.bytes + plan.delete.bytes)
}

fn shown(amount: Amount) -> String {
    format!("{} packs ({})", amount.packs, HumanBytes(amount.bytes))
}

fn words(time: Duration) -> String {
    match time.as_secs() {
        seconds if seconds >= 3600 && seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds => format!("{seconds} s"),
    }
}

fn amount_json(amount: Amount) -> Value {
    json!({"packs": amount.packs, "bytes": amount.bytes})
}

fn plan_json(plan: &PrunePlan) -> Value {
    let Requests { lists, gets, puts, deletes } = plan.requests;
    json!({
        "snapshots": plan.snapshots,
        "trees": plan.trees,
        "chunks": plan.chunks,
        "total": amount_json(plan.total),
        "delete": amount_json(plan.delete),
        "spare": amount_json(plan.spare),
        "waiting": amount_json(plan.waiting),
        "due": plan.due_unix_ms.map(|due| timestamp(due).to_string()),
        "mark": amount_json(plan.mark),
        "repack": amount_json(plan.repack),
        "repack_bytes_read": plan.repack.bytes,
        "repack_bytes_written": plan.repack_bytes_written,
        "unused_bytes": plan.unused_bytes,
        "early": amount_json(plan.early),
        "index_runs": {"all": plan.runs.0, "rewritten": plan.runs.1, "written": plan.runs.2},
        "requests": {"list": lists, "get": gets, "put": puts, "delete": deletes},
    })
}

fn report_json(report: &PruneReport) -> Value {
    json!({
        "message_type": "summary",
        "applied": true,
        "plan": plan_json(&report.plan),
        "deleted": amount_json(report.deleted),
        "marked": {"packs": report.marked},
        "repacked": {
            "packs": report.repacked.packs,
            "bytes_read": report.repacked.bytes_read,
            "bytes_written": report.repacked.bytes_written,
        },
    })
}

/// What is shown while a prune runs: a line that moves on a terminal, a line now and then elsewhere.
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
    fn tell(&self, stage: Stage, done: u64, total: u64) {
        let what = match stage {
            Stage::Listing => "looking at objects",
            Stage::Trees => "reading packs of trees",
            Stage::Index => "reading index runs",
            Stage::Delete => "deleting",
            Stage::Repack => "writing packs anew",
        };
        let text = format!("pruning: {what}: {done} of {total}");
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

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_may_be_seconds() {
        assert_eq!((parse_time("30s"), parse_time("24h")), (Ok(30_000), Ok(24 * 3_600_000)));
        assert!(parse_time("s").is_err() && parse_time("30").is_err() && parse_time("-1s").is_err());
    }

    #[test]
    fn shares_are_understood() {
        for (text, permille) in [("5%", 50), ("5", 50), ("2.5%", 25), ("0", 0), ("100%", 1000)] {
            assert_eq!(parse_percent(text), Ok(permille), "{text}");
        }
        for text in ["", "%", "101%", "-1", "2.55", "a lot", "99999999999"] {
            assert!(parse_percent(text).is_err(), "{text}");
        }
    }
}
