//! `restore`: writes a snapshot, or a part of one, into a folder or a bucket.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use indicatif::HumanBytes;

use super::args::Global;
use super::asked;
use super::buckets::{self, Bucket};
use super::cache::CacheArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::progress::Progress;
use super::repository::ResolvedRepository;
use super::{names, process, signals};
use crate::monitor::Monitor;
use crate::restore::{
    self, BucketRestoreOptions, RestoreError, RestoreOptions, RestoreReport, restore, restore_to_bucket,
};
use crate::store::StoreCounts;

/// Paths told to people before the rest is only counted.
const PATHS_TOLD: usize = 20;

/// Restores a snapshot, or a part of one, into a folder or a bucket.
///
/// With PATH, what is in PATH lands in DIR; without, the whole tree lands below DIR. In a bucket, what is from a bucket
/// gets its keys and metadata back. Ends with 14
/// where files could not be restored because of damaged data, with 1 where they could not for
/// another reason.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// Snapshot and path: `latest`, `latest~2` or the first characters of an id, then :PATH.
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    pub target: OsString,
    /// Folder to restore into, made if absent; or a bucket, as @NAME of the config or s3://ENDPOINT/BUCKET/PREFIX.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Tells what would be written and writes nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// What to do about files that are there already.
    #[arg(long, value_enum, default_value_t, value_name = "WHEN")]
    pub overwrite: Overwrite,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What to do about a file that is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Overwrite {
    /// Restores nothing if anything is in the way.
    #[default]
    Never,
    /// Writes it again.
    Always,
    /// Writes it again where size or time differ.
    IfChanged,
}

impl From<Overwrite> for restore::Overwrite {
    fn from(overwrite: Overwrite) -> Self {
        match overwrite {
            Overwrite::Never => Self::Never,
            Overwrite::Always => Self::Always,
            Overwrite::IfChanged => Self::IfChanged,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: RestoreArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let (spec, path) = names::split(&args.target)?;
    let bucket = buckets::named(args.to.as_os_str()).map(|text| Bucket::named(text, global)).transpose()?;
    process::raise_open_files();
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let snapshot = kloset.runtime.block_on(kloset.repo.resolve(&spec))?;
    let options =
        RestoreOptions { snapshot, path, target: args.to, overwrite: args.overwrite.into(), dry_run: args.dry_run };
    let monitor = Arc::new(Monitor::default());
    let keep_off = bucket.as_ref().map(|bucket| bucket.keep_off(&kloset)).transpose()?.flatten();
    let progress = Progress::start(&monitor, out, "restoring");
    let signals = signals::watch(&monitor, progress.state())?;
    let report = match &bucket {
        None => restore(&kloset.repo, kloset.runtime.handle(), &options, &monitor),
        Some(Bucket { bucket, .. }) => {
            let RestoreOptions { snapshot, path, overwrite, dry_run, .. } = options.clone();
            let options = BucketRestoreOptions { snapshot, path, bucket: bucket.clone(), keep_off, overwrite, dry_run };
            restore_to_bucket(&kloset.repo, kloset.runtime.handle(), &options, &monitor)
        }
    };
    signals.close();
    progress.finish();
    let report =
        report.map_err(|error| explain(&kloset, bucket.as_ref().map(|bucket| &bucket.resolved), error, out))?;
    let counts = kloset.repo.store.counts();
    tell(&report, &options, &counts, out)?;
    Ok(match report.damaged {
        0 if report.is_complete() => Exit::Done,
        0 => Exit::Error,
        _ => Exit::Damaged,
    })
}

fn explain(kloset: &Kloset, bucket: Option<&ResolvedRepository>, error: RestoreError, out: &mut Output) -> CliError {
    let message = error.to_string();
    match error {
        RestoreError::Repo(error) => kloset.resolved.explain(error.into()),
        RestoreError::Bucket(error) => bucket.unwrap_or(&kloset.resolved).explain((*error).into()),
        RestoreError::TooManyObjects => CliError::failed(message),
        RestoreError::Stopped => CliError::new(Exit::Interrupted, message),
        RestoreError::Target { .. } => CliError::failed(message),
        RestoreError::InTheWay { paths, .. } => {
            for path in paths.iter().take(PATHS_TOLD) {
                out.warn(format_args!("in the way: \"{}\"", names::safe(&path.0)));
            }
            CliError::failed(message)
        }
    }
}

fn tell(
    report: &RestoreReport,
    options: &RestoreOptions,
    counts: &StoreCounts,
    out: &mut Output,
) -> Result<(), CliError> {
    for failure in report.failures.iter().take(PATHS_TOLD) {
        out.warn(format_args!("not restored: \"{}\": {}", names::safe(&failure.path.0), failure.message));
    }
    let untold = report.failures_total.saturating_sub(PATHS_TOLD as u64);
    if untold > 0 {
        out.warn(format_args!("not restored: {untold} more paths, which --json names"));
    }
    for loss in &report.losses {
        let first = names::safe(&loss.first.0);
        out.warn(format_args!("{} of {} paths not set, \"{first}\" first: {}", loss.kind, loss.paths, loss.message));
    }
    if !report.unheld.is_empty() && !out.is_json() {
        let kinds: Vec<_> = report.unheld.iter().map(|unheld| format!("{} {}", unheld.paths, unheld.kind)).collect();
        out.warn(format_args!("what a bucket cannot hold: {}", kinds.join(", ")));
    }
    if out.is_json() {
        let mut value = serde_json::to_value(report).map_err(|error| CliError::failed(error.to_string()))?;
        value["message_type"] = "summary".into();
        value["snapshot_id"] = options.snapshot.id.to_string().into();
        value["dry_run"] = options.dry_run.into();
        asked::add(&mut value, counts);
        return out.json(&value);
    }
    out.line(summary(report, &options.target, options.dry_run))?;
    asked::tell_again(counts, out);
    for path in report.in_the_way.iter().take(PATHS_TOLD) {
        out.line(format_args!("there already: \"{}\"", names::safe(&path.0)))?;
    }
    Ok(())
}

fn summary(report: &RestoreReport, target: &Path, dry_run: bool) -> String {
    let verb = if dry_run { "would restore" } else { "restored" };
    let mut text = format!(
        "{verb} {} files, {}, {} folders and {} other entries into \"{}\"",
        report.files,
        HumanBytes(report.bytes),
        report.directories,
        report.others,
        target.display(),
    );
    for (count, what) in [
        (report.unchanged, "unchanged and left alone"),
        (report.failures_total, "not restored"),
        (report.in_the_way_total, "there already"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}
