//! The `-o` of mount(8) and fstab: what we follow, what is not ours, what is a mistake.
//!
//! Whatever a line of fstab needs and the command line can say can be said here, since mount(8) passes nothing else on.
//! Pure. An option that we do not know is refused by name, because one that is silently dropped
//! (a misspelt `allow_other`) costs more. `rw` is no mistake: mount(8) adds it wherever fstab does
//! not say `ro`. It does not know how mounting is done.

use std::path::PathBuf;
use std::time::Duration;

use super::args::{Global, GlobalArgs};
use super::cache::CacheArgs;
use super::exit::CliError;
use super::mount_show::{Owner, ShowArgs};
use super::size::parse_size;

/// What `-o` asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    /// Other users may look in.
    pub allow_other: bool,
    /// Root may look in, besides the user who mounts.
    pub allow_root: bool,
    /// The kernel enforces modes and owners.
    pub default_permissions: bool,
    /// Programs in the mount do not run.
    pub noexec: bool,
    /// Owner to show for everything.
    pub uid: Option<u32>,
    /// Group to show for everything.
    pub gid: Option<u32>,
    /// Name to show as the device in `df` and /proc/mounts.
    pub fsname: Option<String>,
    /// How fresh the list of snapshots is to be.
    pub refresh: Option<Refresh>,
    /// How long a request may wait for the store.
    pub timeout: Option<Duration>,
    /// Most memory for caches.
    pub memory_limit: Option<u64>,
    /// Where the cache on disk is, how large it may become, and whether there is one.
    pub cache: CacheArgs,
    /// File for the log of a mount in the background.
    pub log_file: Option<PathBuf>,
    /// Config file.
    pub config: Option<PathBuf>,
    /// File that holds the passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// Key file to use instead of a passphrase.
    pub key_file: Option<PathBuf>,
    /// The one snapshot to show, or the one folder of it.
    pub snapshot: Option<String>,
    /// What is to be shown, and as whose.
    pub show: ShowArgs,
}

/// When the list of snapshots is read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    /// When somebody looks and it is older than this.
    After(Duration),
    /// When SIGHUP comes.
    Never,
}

/// The longest age: a day.
const REFRESH_SECONDS_MAX: u64 = 24 * 3600;
/// The longest wait: whoever waits longer takes the mount for dead.
const TIMEOUT_SECONDS_MAX: u64 = 240;

impl Refresh {
    /// Parses a number of seconds, or `never`.
    pub(crate) fn parse(text: &str) -> Result<Refresh, String> {
        match (text, text.parse()) {
            ("never", _) => Ok(Refresh::Never),
            (_, Ok(seconds @ 1..=REFRESH_SECONDS_MAX)) => Ok(Refresh::After(Duration::from_secs(seconds))),
            _ => Err(format!("write seconds, 1 to {REFRESH_SECONDS_MAX}, or never")),
        }
    }
}

/// Parses how many seconds a request may wait for the store.
pub(crate) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ 1..=TIMEOUT_SECONDS_MAX) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("write seconds, 1 to {TIMEOUT_SECONDS_MAX}")),
    }
}

/// Options for mount(8), systemd and fstab themselves, and those that say what is so anyway.
const NOT_OURS: [&str; 36] = [
    "ro",
    "rw",
    "defaults",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "sync",
    "async",
    "atime",
    "noatime",
    "relatime",
    "diratime",
    "nodiratime",
    "strictatime",
    "nostrictatime",
    "norelatime",
    "lazytime",
    "nolazytime",
    "dirsync",
    "mand",
    "nomand",
    "iversion",
    "noiversion",
    "silent",
    "loud",
];

const OURS: &str = "allow_other, allow_root, default_permissions, noexec, uid=N, gid=N, fsname=TEXT, refresh=SECONDS|never, \
    timeout=SECONDS, memory_limit=SIZE, cache_dir=FOLDER, cache_size=SIZE, no_cache, log_file=FILE, config=FILE, passphrase_file=FILE, key_file=FILE, snapshot=SNAPSHOT[:PATH], \
    host=HOST, tag=TAG, path=PATH, owner=archived|me|UID:GID, readable, deny=PROGRAM:...|none";

impl MountOptions {
    /// Parses the values of all `-o`, each a list separated by commas.
    pub(crate) fn parse(lists: &[String]) -> Result<MountOptions, CliError> {
        let mut options = MountOptions::default();
        for option in lists.iter().flat_map(|list| list.split(',')) {
            options.follow(option.trim())?;
        }
        if options.cache.contradicts_itself() {
            return Err(CliError::usage("mount option no_cache: leave it out, or cache_dir and cache_size"));
        }
        Ok(options)
    }

    /// Returns what all commands share with what is said here; what the command line says itself comes first.
    pub(crate) fn over(&self, global: &Global) -> Result<Global, CliError> {
        if self.passphrase_file.is_some() && self.key_file.is_some() {
            return Err(CliError::usage("mount options passphrase_file and key_file: one secret is enough"));
        }
        let mut args = global.args.clone();
        args.config = args.config.or_else(|| self.config.clone());
        let GlobalArgs { passphrase_file, passphrase_command, key_file, .. } = &mut args;
        if passphrase_file.is_none() && passphrase_command.is_none() && key_file.is_none() {
            *passphrase_file = self.passphrase_file.clone();
            *key_file = self.key_file.clone();
        }
        Ok(Global { args, env: global.env.clone() })
    }

    fn follow(&mut self, option: &str) -> Result<(), CliError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        match (name, value) {
            ("allow_other", None) => self.allow_other = true,
            ("allow_root", None) => self.allow_root = true,
            ("default_permissions", None) => self.default_permissions = true,
            ("noexec", None) => self.noexec = true,
            ("uid", Some(value)) => self.uid = Some(number(option, value)?),
            ("gid", Some(value)) => self.gid = Some(number(option, value)?),
            ("fsname", Some(value)) => self.fsname = Some(value.to_owned()),
            ("refresh", Some(value)) => self.refresh = Some(Refresh::parse(value).map_err(|e| wrong(option, &e))?),
            ("timeout", Some(value)) => self.timeout = Some(parse_timeout(value).map_err(|e| wrong(option, &e))?),
            ("memory_limit", Some(value)) => {
                self.memory_limit = Some(parse_size(value).map_err(|e| wrong(option, &e))?);
            }
            ("cache_dir", Some(value)) => self.cache.cache_dir = Some(file(option, value)?),
            ("cache_size", Some(value)) => {
                self.cache.cache_size = Some(parse_size(value).map_err(|e| wrong(option, &e))?);
            }
            ("no_cache", None) => self.cache.no_cache = true,
            ("log_file", Some(value)) => self.log_file = Some(file(option, value)?),
            ("config", Some(value)) => self.config = Some(file(option, value)?),
            ("passphrase_file", Some(value)) => self.passphrase_file = Some(file(option, value)?),
            ("key_file", Some(value)) => self.key_file = Some(file(option, value)?),
            ("snapshot", Some(value)) => self.snapshot = Some(value.to_owned()),
            ("host", Some(value)) => self.show.host.push(value.to_owned()),
            ("tag", Some(value)) => self.show.tag.push(value.to_owned()),
            ("path", Some(value)) => self.show.path.push(PathBuf::from(value)),
            ("owner", Some(value)) => self.show.owner = Some(Owner::parse(value).map_err(|e| wrong(option, &e))?),
            ("readable", None) => self.show.readable = true,
            // A comma would begin another option.
            ("deny", Some(value)) => self.show.deny = value.split(':').map(str::to_owned).collect(),
            // mount(8) notes who has mounted with the option `user`.
            ("" | "subtype" | "comment" | "user", _) => {}
            (name, None) if NOT_OURS.contains(&name) => {}
            (name, _) if name.starts_with("x-") || name.starts_with("X-") => {}
            _ => {
                return Err(CliError::usage(format!(
                    "mount option {option:?} is not known: there are {OURS}, and those of fstab"
                )));
            }
        }
        Ok(())
    }
}

fn number(option: &str, value: &str) -> Result<u32, CliError> {
    value.parse().map_err(|_| wrong(option, &format!("{value:?} is not a number")))
}

/// A file or folder by its whole path: nobody knows from which folder fstab is read.
fn file(option: &str, value: &str) -> Result<PathBuf, CliError> {
    match value.starts_with('/') {
        true => Ok(PathBuf::from(value)),
        false => Err(wrong(option, "write the whole path, from / on")),
    }
}

fn wrong(option: &str, problem: &str) -> CliError {
    CliError::usage(format!("mount option {option:?}: {problem}"))
}

#[cfg(test)]
#[path = "mount_options_tests.rs"]
mod tests;
