//! `mount`: shows all snapshots as read-only folders.
//!
//! In the background unless told otherwise: the program starts itself again, hands over the secret through a pipe and
//! returns when the mount can be used. The one that serves is below, in [`super::serve`].

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::args::Global;
use super::cache::CacheArgs;
use super::exit::{CliError, Exit};
use super::kloset::{Kloset, slot_secret};
use super::mount_options::{MountOptions, Refresh, parse_timeout};
use super::mount_show::ShowArgs;
use super::output::Output;
use super::repository::ResolvedRepository;
use super::secret::Ask;
use super::size::parse_size;
use super::{background, names, serve};
use crate::fs::{self, MountError};
use crate::repo::READER_BYTES_DEFAULT;

/// Shows all snapshots, or one, or a folder of one, as read-only folders.
///
/// Returns when the folder can be used; the mount goes on in the background until `umount` or SIGTERM. SIGHUP makes it
/// look for new snapshots at once. Its log goes to --log-file, else to kloset-mount/mount.log in $XDG_STATE_HOME or ~/.local/state.
#[derive(Debug, Args)]
#[command(override_usage = "kloset-mount mount [OPTIONS] [SNAPSHOT[:PATH]] <MOUNTPOINT>")]
pub(crate) struct MountArgs {
    /// Folder to show them in; with two words, the first is the one snapshot to show, or the folder of it.
    #[arg(required = true, num_args = 1..=2, value_name = "MOUNTPOINT")]
    pub words: Vec<PathBuf>,
    /// Stays in the foreground.
    #[arg(short, long)]
    pub foreground: bool,
    /// Mount options as mount(8) and fstab give them, separated by commas; may be repeated.
    #[arg(short, value_name = "OPTIONS")]
    pub options: Vec<String>,
    /// Lets other users look in as well; modes and owners are enforced.
    #[arg(long)]
    pub allow_other: bool,
    /// How old the list of snapshots may be for who looks at it, in seconds, or never to read it again; 10 by default.
    #[arg(long, value_name = "SECONDS", value_parser = Refresh::parse)]
    pub refresh: Option<Refresh>,
    /// How long a read waits for the store before it is an error, in seconds; 60 by default.
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout)]
    pub timeout: Option<Duration>,
    #[command(flatten)]
    pub show: ShowArgs,
    /// File for the log of a mount in the background.
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Most memory for caches, as in 64MiB; 128MiB by default.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_limit: Option<u64>,
    #[command(flatten)]
    pub cache: CacheArgs,
}

impl MountArgs {
    /// How long a request may wait for the store.
    pub(crate) fn timeout(&self, options: &MountOptions) -> Duration {
        self.timeout.or(options.timeout).unwrap_or(fs::fuse::TIMEOUT_DEFAULT)
    }

    /// How old the list of snapshots may be; `None` for any age.
    pub(crate) fn refresh(&self, options: &MountOptions) -> Option<Duration> {
        match self.refresh.or(options.refresh) {
            Some(Refresh::Never) => None,
            Some(Refresh::After(age)) => Some(age),
            None => Some(fs::listing::REFRESH_DEFAULT),
        }
    }

    /// About how much memory caches may take.
    pub(crate) fn memory_bytes(&self, options: &MountOptions) -> usize {
        let limit = self.memory_limit.or(options.memory_limit);
        limit.map_or(READER_BYTES_DEFAULT, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// File for the log, if one is chosen.
    pub(crate) fn log_file<'a>(&'a self, options: &'a MountOptions) -> Option<&'a Path> {
        self.log_file.as_deref().or(options.log_file.as_deref())
    }

    /// The folder to mount on.
    pub(crate) fn mountpoint(&self) -> Result<&PathBuf, CliError> {
        self.words.last().ok_or_else(|| CliError::usage("the folder to mount on is missing"))
    }

    /// The one snapshot to show, if one is given, and the folder of it, empty for its root.
    pub(crate) fn snapshot(&self, options: &MountOptions) -> Result<Option<(String, Vec<u8>)>, CliError> {
        let given = match (self.words.as_slice(), &options.snapshot) {
            ([snapshot, _], _) => snapshot.as_os_str(),
            (_, Some(snapshot)) => OsStr::new(snapshot),
            _ => return Ok(None),
        };
        if !self.show.or(&options.show).wanted().is_all() {
            let words = "--host, --tag and --path choose among snapshots: leave them out to show one";
            return Err(CliError::usage(words));
        }
        let (snapshot, path) = names::split(given)?;
        Ok(Some((snapshot, path.unwrap_or_default())))
    }
}

/// Runs the command.
pub(crate) fn run(args: MountArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let (mountpoint, options) = (args.mountpoint()?, MountOptions::parse(&args.options)?);
    args.snapshot(&options)?;
    args.show.or(&options.show).denied()?;
    let global = &options.over(global)?;
    let mut resolved = ResolvedRepository::resolve(global)?;
    // It is asked again for as long as somebody may be waiting for it.
    resolved.s3.retry.budget = resolved.s3.retry.budget.max(args.timeout(&options));
    // Before anybody is asked for a passphrase.
    fs::mount::check(mountpoint, resolved.folder())?;
    let is_child = background::is_child(global);
    if !is_child && !args.foreground {
        let secret = resolved.unlock(global, Ask::Once)?.value;
        return background::start(&secret, mountpoint, out);
    }
    let unlock = match is_child {
        true => background::take_secret()?,
        false => resolved.unlock(global, Ask::Once)?.value,
    };
    let store = resolved.open_store()?;
    let kloset = Kloset::open_with(resolved, store, &slot_secret(unlock)?)?;
    let kloset = kloset.with_cache(&args.cache.or(&options.cache), global);
    serve::serve(&kloset, &serve::Serving { args: &args, options: &options, is_child }, global, out)
}

impl From<MountError> for CliError {
    fn from(error: MountError) -> CliError {
        match error {
            MountError::Repo(error) => error.into(),
            MountError::Mountpoint(..) => CliError::usage(error.to_string()),
            MountError::Busy(..) | MountError::Refused(_) | MountError::Io(..) => CliError::failed(error.to_string()),
        }
    }
}
