//! `backup`: makes a snapshot of files and folders.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;

use super::args::Global;
use super::cache::CacheArgs;
use super::excludes::{self, ExcludeArgs};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::progress::Progress;
use super::repository::ResolvedRepository;
use crate::backup::{BackupError, BackupOptions, BackupReport, backup};
use crate::monitor::Monitor;
use crate::repo::snapshot::ByteText;

/// Backs up files and folders into a new snapshot.
///
/// Ends with 3 where a snapshot was made but some files could not be read.
#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    /// Files and folders.
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
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
    let monitor = Arc::new(Monitor::default());
    let progress = Progress::start(&monitor, out, "backing up");
    let signals = stop_on_signals(&monitor)?;
    let report = backup(&kloset.repo, kloset.runtime.handle(), &options, &monitor);
    signals.close();
    progress.finish();
    for (path, message) in monitor.take_troubles() {
        tell_trouble(out, &path, &message);
    }
    let report = match report {
        Err(BackupError::Stopped) => return Err(CliError::new(Exit::Interrupted, BackupError::Stopped.to_string())),
        Err(BackupError::Repo(error)) => return Err(kloset.resolved.explain(error.into())),
        Err(error @ (BackupError::Rule(_) | BackupError::Source { .. } | BackupError::Texts(_))) => {
            return Err(CliError::usage(error.to_string()));
        }
        Ok(report) => report,
    };
    tell_summary(&report, out)?;
    Ok(if report.manifest.incomplete { Exit::Partial } else { Exit::Done })
}

fn options(args: BackupArgs, global: &Global, skip: Option<&Path>) -> Result<BackupOptions, CliError> {
    let uname = rustix::system::uname();
    let host = args.host.unwrap_or_else(|| uname.nodename().to_string_lossy().into_owned());
    let user = uzers::get_current_username().or_else(|| global.env.path("USER").map(Into::into));
    Ok(BackupOptions {
        paths: args.paths,
        excludes: args.excludes.excludes()?,
        one_file_system: args.one_file_system,
        tags: args.tag,
        description: args.description.unwrap_or_default(),
        host,
        user: user.map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        force: args.force,
        parent: args.parent,
        skip: skip.map(PathBuf::from),
    })
}

/// Lets the first SIGINT or SIGTERM stop the work in order, and the second end the program.
pub(super) fn stop_on_signals(monitor: &Arc<Monitor>) -> Result<signal_hook::iterator::Handle, CliError> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let failed = |error: std::io::Error| CliError::failed(format!("waiting for signals: {error}"));
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(failed)?;
    let (handle, monitor) = (signals.handle(), monitor.clone());
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if monitor.stopped() {
                std::process::exit(Exit::Interrupted.code().into());
            }
            monitor.stop();
        }
    });
    Ok(handle)
}

fn tell_trouble(out: &mut Output, path: &[u8], message: &str) {
    if out.is_json() {
        let path = ByteText(path.to_vec());
        let error = serde_json::json!({"message": message});
        out.warn_json(&serde_json::json!({"message_type": "error", "error": error, "during": "backup", "item": path}));
    } else {
        out.warn(format_args!("\"{}\": {message}", path.escape_ascii()));
    }
}

fn tell_summary(report: &BackupReport, out: &mut Output) -> Result<(), CliError> {
    let (manifest, summary) = (&report.manifest, &report.manifest.summary);
    if out.is_json() {
        return out.json(&serde_json::json!({
            "message_type": "summary",
            "snapshot_id": report.name.id,
            "time": manifest.time,
            "parent": manifest.parent,
            "files_new": summary.files_new,
            "files_changed": summary.files_changed,
            "files_unmodified": summary.files_unmodified,
            "total_files_processed": summary.files,
            "total_bytes_processed": summary.bytes,
            "data_added": summary.bytes_new,
            "data_added_packed": summary.bytes_stored,
            "incomplete": manifest.incomplete,
            "errors": manifest.errors_total,
        }));
    }
    out.line(format_args!(
        "snapshot {}: {} files ({} new, {} changed, {} unmodified), {}; stored {}",
        report.name.id.short(),
        summary.files,
        summary.files_new,
        summary.files_changed,
        summary.files_unmodified,
        HumanBytes(summary.bytes),
        HumanBytes(summary.bytes_stored),
    ))?;
    if manifest.incomplete {
        let unreadable = manifest.errors_total - report.vanished;
        out.warn(format_args!("incomplete: {unreadable} paths could not be read (exit code 3)"));
    }
    Ok(())
}
