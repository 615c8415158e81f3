//! `backup`: makes a snapshot of files and folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use super::args::Global;
use super::backup_report;
use super::cache::CacheArgs;
use super::excludes::{self, ExcludeArgs};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::progress::Progress;
use super::repository::ResolvedRepository;
use super::signals;
use super::sources::SourceArgs;
use crate::backup::{BackupError, BackupOptions, backup};
use crate::monitor::Monitor;

/// Backs up files and folders into a new snapshot.
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
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs the command.
pub(crate) fn run(args: BackupArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    if !args.excludes.explain.is_empty() {
        // Who asks why has a kloset perhaps, but no need for its secret.
        let resolved = ResolvedRepository::resolve(global).ok();
        let paths = args.excludes.explain.clone();
        let options = options(args, global, resolved.as_ref().and_then(ResolvedRepository::folder))?;
        return excludes::tell(&paths, &options, out);
    }
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let options = options(args, global, kloset.folder())?;
    if !kloset.repo.keys.can_read() {
        out.note("this key can only write: no earlier snapshot can be compared with, and every file is read");
    }
    let monitor = Arc::new(Monitor::default());
    let progress = Progress::start(&monitor, out, "backing up");
    let signals = signals::watch(&monitor, progress.state())?;
    let report = backup(&kloset.repo, kloset.runtime.handle(), &options, &monitor);
    signals.close();
    progress.finish();
    backup_report::tell_troubles(&monitor, out);
    let report = match report {
        Err(BackupError::Stopped) => return Err(CliError::new(Exit::Interrupted, BackupError::Stopped.to_string())),
        Err(BackupError::Repo(error)) => return Err(kloset.resolved.explain(error.into())),
        Err(error @ BackupError::Stream(_)) => return Err(CliError::failed(error.to_string())),
        Err(error) => return Err(CliError::usage(error.to_string())),
        Ok(report) => report,
    };
    backup_report::tell(&report, &kloset.repo.store.counts(), out)?;
    Ok(if report.manifest.incomplete { Exit::Partial } else { Exit::Done })
}

fn options(args: BackupArgs, global: &Global, skip: Option<&Path>) -> Result<BackupOptions, CliError> {
    let uname = rustix::system::uname();
    let host = args.host.unwrap_or_else(|| uname.nodename().to_string_lossy().into_owned());
    let user = uzers::get_current_username().or_else(|| global.env.path("USER").map(Into::into));
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
