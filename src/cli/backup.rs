//! `backup`: makes a snapshot of files and folders, or of a bucket.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;

use super::alive::Alive;
use super::args::Global;
use super::backup_report;
use super::buckets::Bucket;
use super::cache::CacheArgs;
use super::env::Place;
use super::excludes::{self, ExcludeArgs};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::progress::Progress;
use super::prometheus::{self, Run};
use super::repository::ResolvedRepository;
use super::signals;
use super::sources::SourceArgs;
use super::systemd::Systemd;
use crate::backup::{BackupError, BackupOptions, BackupReport, backup};
use crate::env::Clock;
use crate::monitor::Monitor;
use crate::store::StoreCounts;

/// Where is noted which files a backup has read, and which packs a check.
pub(crate) const JOURNALS: Place =
    Place { systemd: "STATE_DIRECTORY", xdg: ("XDG_STATE_HOME", ".local/state"), of_root: "/var/lib/kloset-mount" };

/// Backs up files and folders, or a bucket, into a new snapshot.
///
/// Ends with 3 where a snapshot was made but some files could not be read.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub sources: SourceArgs,
    #[command(flatten)]
    pub excludes: ExcludeArgs,
    /// Word to find the snapshot by; may be repeated.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Stays on the filesystem of each PATH.
    #[arg(short = 'x', long)]
    pub one_file_system: bool,
    /// Host name to note [default: this machine's].
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Text to note.
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Reads every file again, whatever the parent snapshot knows.
    #[arg(long, conflicts_with = "parent")]
    pub force: bool,
    /// Snapshot to compare with [default: the last of the same host and paths].
    #[arg(long, value_name = "SNAPSHOT")]
    pub parent: Option<String>,
    /// Time to give the snapshot, as in 2026-11-22T13:58:00+01:00 [default: now].
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub time: Option<i64>,
    /// Makes no snapshot if nothing is different from the parent snapshot.
    #[arg(long)]
    pub skip_if_unchanged: bool,
    /// Stores nothing and tells what would be stored.
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Longest time until what is stored is noted in the kloset, where a backup that is killed goes on [default: 60,
    /// more in a long backup].
    #[arg(long, value_name = "SECONDS")]
    pub checkpoint: Option<u32>,
    /// File to tell Prometheus' node_exporter in how the backup ended; replaced whole.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["dry_run", "explain"])]
    pub prometheus: Option<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs the command.
pub(crate) fn run(args: BackupArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let bucket = args.sources.bucket()?.map(str::to_owned);
    if !args.excludes.explain.is_empty() {
        if let Some(bucket) = bucket {
            return Err(CliError::usage(format!("--explain is for files and folders, and \"{bucket}\" is a bucket")));
        }
        // Who asks why has a kloset perhaps, but no need for its secret.
        let resolved = ResolvedRepository::resolve(global).ok();
        let paths = args.excludes.explain.clone();
        let options = options(args, global, resolved.as_ref().and_then(ResolvedRepository::folder))?;
        return excludes::tell(&paths, &options, out);
    }
    let Some(file) = args.prometheus.clone() else { return back_up(args, global, out, &mut None) };
    prometheus::check(&file)?;
    let (host, begun_ms, mut made) = (host(&args), Clock::System.unix_ms(), None);
    let result = back_up(args, global, out, &mut made);
    let exit = result.as_ref().map_or_else(|error| error.exit, |exit| *exit);
    let repository = ResolvedRepository::resolve(global).map(|resolved| resolved.label()).unwrap_or_default();
    let report = made.as_ref().map(|(report, counts)| (report, *counts));
    let ended_ms = Clock::System.unix_ms();
    let run = Run { host: &host, repository: &repository, begun_ms, ended_ms, exit, report };
    match prometheus::write(&file, &run) {
        Err(error) if result.is_ok() => {
            Err(CliError::failed(format!("{error}; the backup itself ended with {}", exit.code())))
        }
        Err(error) => {
            out.warn(error);
            result
        }
        Ok(()) => result,
    }
}

/// What a backup did, and what of it the store was asked.
type Made = Option<(BackupReport, StoreCounts)>;

fn back_up(args: BackupArgs, global: &Global, out: &mut Output, made: &mut Made) -> Result<Exit, CliError> {
    let named = args.sources.bucket()?.map(|text| Bucket::named(text, global)).transpose()?;
    if named.is_some() {
        refuse_options_of_folders(&args)?;
    }
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let mut options = options(args, global, kloset.folder())?;
    if let Some(named) = &named {
        options.paths.clear();
        options.bucket = Some(named.source(&kloset)?);
    }
    if !kloset.repo.keys.can_read() {
        out.note("this key can only write: no earlier snapshot can be compared with, and every file is read");
    }
    let monitor = Arc::new(Monitor::default());
    let progress = Progress::start(&monitor, out, "backing up");
    let signals = signals::watch(&monitor, progress.state())?;
    let alive = Alive::start(Systemd::of(global), progress.state(), &kloset.repo.store);
    let report = backup(&kloset.repo, kloset.runtime.handle(), &options, &monitor);
    drop(alive);
    let stopped = if signals.close() { Exit::Checkpoint } else { Exit::Interrupted };
    progress.finish();
    backup_report::tell_troubles(&monitor, out);
    let report = match report {
        Err(BackupError::Stopped) => return Err(CliError::new(stopped, BackupError::Stopped.to_string())),
        Err(BackupError::Repo(error)) => return Err(kloset.resolved.explain(error.into())),
        Err(BackupError::Bucket(error)) => return Err(explain(named.as_ref(), CliError::from(*error))),
        Err(error @ (BackupError::Stream(_) | BackupError::TooManyObjects)) => {
            return Err(CliError::failed(error.to_string()));
        }
        Err(error) => return Err(CliError::usage(error.to_string())),
        Ok(report) => report,
    };
    let counts = named.iter().fold(kloset.repo.store.counts(), |counts, named| counts.with(&named.bucket.counts()));
    let (report, counts) = made.insert((report, counts));
    backup_report::tell(report, counts, out)?;
    Ok(if report.manifest.incomplete { Exit::Partial } else { Exit::Done })
}

/// Options that speak of what only folders have.
fn refuse_options_of_folders(args: &BackupArgs) -> Result<(), CliError> {
    let given = [
        (args.one_file_system, "--one-file-system"),
        (args.excludes.exclude_caches, "--exclude-caches"),
        (!args.excludes.exclude_if_present.is_empty(), "--exclude-if-present"),
        (args.excludes.gitignore, "--gitignore"),
    ];
    match given.iter().find(|(is_given, _)| *is_given) {
        Some((_, option)) => Err(CliError::usage(format!("{option} is for folders and does not go with a bucket"))),
        None => Ok(()),
    }
}

fn explain(named: Option<&Bucket>, error: CliError) -> CliError {
    match named {
        Some(named) => named.resolved.explain(error),
        None => error,
    }
}

/// The host that a snapshot is of.
fn host(args: &BackupArgs) -> String {
    let uname = || rustix::system::uname().nodename().to_string_lossy().into_owned();
    args.host.clone().unwrap_or_else(uname)
}

fn options(args: BackupArgs, global: &Global, skip: Option<&Path>) -> Result<BackupOptions, CliError> {
    let host = host(&args);
    let user = uzers::get_current_username().or_else(|| global.env.path("USER").map(Into::into));
    let journals = global.env.our_folder(&JOURNALS, rustix::process::geteuid().is_root());
    let options = BackupOptions {
        excludes: args.excludes.excludes()?,
        one_file_system: args.one_file_system,
        tags: args.tag,
        description: args.description.unwrap_or_default(),
        host,
        user: user.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        force: args.force,
        parent: args.parent,
        skip: skip.map(PathBuf::from),
        time_unix_ms: args.time,
        skip_if_unchanged: args.skip_if_unchanged,
        dry_run: args.dry_run,
        journal_folder: journals.map(|folder| folder.join("journals")),
        list_every: args.checkpoint.map(|seconds| Duration::from_secs(seconds.into())),
        ..BackupOptions::default()
    };
    args.sources.into_options(options)
}

/// Milliseconds since 1970 of a time of RFC 3339.
fn parse_time(text: &str) -> Result<i64, String> {
    let time: jiff::Timestamp = text.parse().map_err(|_| "write a time as in 2026-11-22T13:58:00+01:00".to_owned())?;
    let is_printable = (1970..=9999).contains(&time.to_zoned(jiff::tz::TimeZone::UTC).year());
    if is_printable { Ok(time.as_millisecond()) } else { Err("its year is not in 1970 to 9999".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_an_offset_and_a_year_that_names_can_hold() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z"), Ok(1500));
        assert_eq!(parse_time("2026-11-22T13:58:00+01:00"), Ok(1_795_352_280_000));
        for wrong in ["2026-11-22", "2026-11-22T13:58:00", "1969-12-31T23:59:59Z", "yesterday", ""] {
            assert!(parse_time(wrong).is_err(), "{wrong}");
        }
    }
}
