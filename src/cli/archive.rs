//! `archive`: writes a snapshot, or a part of one, as one file.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use indicatif::HumanBytes;

use super::args::Global;
use super::cache::CacheArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::progress::Progress;
use super::{names, signals};
use crate::monitor::Monitor;
use crate::restore::{ArchiveError, ArchiveFormat, ArchiveOptions, ArchiveReport, archive};

/// Bytes of an archive written at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes a snapshot, or a part of one, as a tar or zip archive.
///
/// With PATH, what is in PATH is at the top of the archive; without, the whole tree. Goes to standard output unless -o
/// names a file. If something cannot be read, the archive is broken off and the command ends with 14; a file is then not
/// there at all.
#[derive(Debug, Args)]
pub(crate) struct ArchiveArgs {
    /// Snapshot and path: `latest`, `latest~2` or the first characters of an id, then :PATH.
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    target: OsString,
    /// File to write; it must not be there yet.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Form of the archive [by the end of FILE's name, else tar].
    #[arg(long, value_enum, value_name = "FORM")]
    format: Option<FormatArg>,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FormatArg {
    /// tar, with everything that a snapshot holds but sockets and holes.
    Tar,
    /// The same, compressed by gzip.
    #[value(name = "tar.gz")]
    TarGz,
    /// The same, compressed by zstd.
    #[value(name = "tar.zst")]
    TarZst,
    /// zip: files, folders and symbolic links with mode and time.
    Zip,
}

impl FormatArg {
    /// Returns what the end of a file's name says.
    fn of_name(name: &OsStr) -> FormatArg {
        let name = name.to_string_lossy().to_ascii_lowercase();
        let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
        if ends(&[".zip"]) {
            Self::Zip
        } else if ends(&[".tar.gz", ".tgz"]) {
            Self::TarGz
        } else if ends(&[".tar.zst", ".tzst"]) {
            Self::TarZst
        } else {
            Self::Tar
        }
    }
}

impl From<FormatArg> for ArchiveFormat {
    fn from(format: FormatArg) -> ArchiveFormat {
        match format {
            FormatArg::Tar => ArchiveFormat::Tar,
            FormatArg::TarGz => ArchiveFormat::TarGz,
            FormatArg::TarZst => ArchiveFormat::TarZst,
            FormatArg::Zip => ArchiveFormat::Zip,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: ArchiveArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let (spec, path) = names::split(&args.target)?;
    let of_name = args.output.as_ref().map(|file| FormatArg::of_name(file.as_os_str()));
    let format = args.format.or(of_name).unwrap_or(FormatArg::Tar).into();
    if args.output.is_none() && names::is_shown() {
        return Err(CliError::usage("an archive is nothing for a terminal: give -o FILE, or send it elsewhere"));
    }
    if args.output.is_none() && out.is_json() {
        return Err(CliError::usage("standard output is for the archive: give -o FILE with --json"));
    }
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let snapshot = kloset.runtime.block_on(kloset.repo.resolve(&spec));
    let snapshot = snapshot.map_err(|error| kloset.resolved.explain(error.into()))?;
    let options = ArchiveOptions { snapshot, path, format };
    let monitor = Arc::new(Monitor::default());
    let progress = Progress::start(&monitor, out, "archiving");
    let signals = signals::watch(&monitor, progress.state())?;
    let handle = kloset.runtime.handle();
    let written = match &args.output {
        Some(file) => to_file(file, |to| archive(&kloset.repo, handle, &options, to, &monitor)),
        None => {
            let mut to = BufWriter::with_capacity(BUFFER_BYTES, out.stdout());
            archive(&kloset.repo, handle, &options, &mut to, &monitor)
        }
    };
    signals.close();
    progress.finish();
    let report = written.map_err(|error| explain(&kloset, error))?;
    tell(&report, args.output.as_deref(), out)?;
    Ok(Exit::Done)
}

fn explain(kloset: &Kloset, error: ArchiveError) -> CliError {
    let message = error.to_string();
    match error {
        ArchiveError::Repo(error) => kloset.resolved.explain(error.into()),
        ArchiveError::Unreadable { .. } => CliError::new(Exit::Damaged, message),
        ArchiveError::Write(error) if error.kind() == io::ErrorKind::BrokenPipe => error.into(),
        ArchiveError::Write(_) => CliError::failed(message),
        ArchiveError::Stopped => CliError::new(Exit::Interrupted, message),
    }
}

/// Writes beside the file and gives it its name when it is whole and on the disk.
fn to_file(
    file: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> Result<ArchiveReport, ArchiveError>,
) -> Result<ArchiveReport, ArchiveError> {
    let about = |error: io::Error| io::Error::new(error.kind(), format!("{file:?}: {error}"));
    if fs::symlink_metadata(file).is_ok() {
        return Err(about(io::Error::from(io::ErrorKind::AlreadyExists)).into());
    }
    let name = file.file_name().ok_or_else(|| about(io::Error::from(io::ErrorKind::InvalidFilename)))?;
    let part = file.with_file_name([OsStr::new("."), name, OsStr::new(".part")].join(OsStr::new("")));
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .map_err(|error| io::Error::new(error.kind(), format!("{part:?}: {error}")))?;
    let mut to = BufWriter::with_capacity(BUFFER_BYTES, &opened);
    let written = write(&mut to).and_then(|report| {
        to.flush().and_then(|()| opened.sync_all()).and_then(|()| fs::rename(&part, file)).map_err(about)?;
        Ok(report)
    });
    if written.is_err() {
        let _ = fs::remove_file(&part); // the failure before is what is told
    }
    written
}

fn tell(report: &ArchiveReport, file: Option<&Path>, out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        let mut value = serde_json::to_value(report).map_err(|error| CliError::failed(error.to_string()))?;
        value["message_type"] = "summary".into();
        return out.json(&value);
    }
    for unheld in &report.unheld {
        let first = names::safe(&unheld.first.0);
        out.warn(format_args!("what the archive cannot hold: {} {}, \"{first}\" first", unheld.paths, unheld.kind));
    }
    let ArchiveReport { files, directories, others, bytes, .. } = report;
    let what = format!("{files} files, {}, {directories} folders and {others} other entries", HumanBytes(*bytes));
    match file {
        Some(file) => {
            let file = names::safe(file.as_os_str().as_encoded_bytes());
            out.line(format_args!("wrote {what} into \"{file}\""))?;
        }
        None => out.note(format_args!("wrote {what}")),
    }
    Ok(())
}
