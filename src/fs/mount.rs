//! Mounting on a folder, and taking the mount away again.
//!
//! Promises that a mount which was reported is answered for, that an unusable mount point is refused with what to do
//! about it, and that only our own mounts are ever taken away. As root it raises the kernel's readahead for this mount,
//! since sequential reads come 128 KiB at a time otherwise. It knows no terminal and no signals.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fuser::{BackgroundSession, Config, INodeNo, MountOption, Notifier, Session, SessionACL};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use tokio::runtime::Handle;

use super::deny::{self, Deny};
use super::errno::Reporter;
use super::fuse::{Fuse, TIMEOUT_DEFAULT};
use super::holders::{self, Holders};
use super::mountinfo::{self, MountInfo};
use super::roots::Stale;
use super::view::{View, ViewOptions};
use crate::repo::{Repo, RepoError};

/// Threads that read requests: each answers from memory at once, more than a few only wait for one another.
const THREADS_MAX: usize = 4;
/// The kernel's readahead for a mount, in KiB, where we may set it.
const READ_AHEAD_KIB: &str = "4096";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What the view shows.
    pub view: ViewOptions,
    /// Shown as the device by `df` and mount(8).
    pub source: String,
    /// Other users may look in.
    pub allow_other: bool,
    /// Root may look in, besides the user who mounts.
    pub allow_root: bool,
    /// Programs do not run.
    pub noexec: bool,
    /// Programs that get no content.
    pub deny: Vec<String>,
    /// No request waits longer for the store.
    pub timeout: Duration,
    /// The folder of a kloset on this machine, which the mount must not hide.
    pub kloset_folder: Option<PathBuf>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            view: ViewOptions::default(),
            source: String::new(),
            allow_other: false,
            allow_root: false,
            noexec: false,
            deny: deny::PROGRAMS.map(str::to_owned).into(),
            timeout: TIMEOUT_DEFAULT,
            kloset_folder: None,
        }
    }
}

/// Why a mount cannot be made or taken away.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The kloset could not be read.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The mount point cannot be used.
    #[error("mount point {0:?}: {1}")]
    Mountpoint(PathBuf, String),
    /// Programs are in the mount.
    #[error("{0:?} is in use {1}: close what is open in it, or take it away with `kloset-mount umount --lazy {0:?}`")]
    Busy(PathBuf, Holders),
    /// The system refuses.
    #[error("{0}")]
    Refused(String),
    /// The system fails.
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
}

/// A mount that is being served. It is taken away when this is dropped, unless somebody is in it.
pub struct Mounted {
    session: BackgroundSession,
    /// The folder, absolute.
    pub mountpoint: PathBuf,
    /// What is shown there.
    pub view: View,
    device: String,
}

/// Mounts a kloset on a folder; on return the kernel asks us about it.
///
/// # Errors
/// [`MountError`].
pub async fn mount(
    repo: Repo,
    options: &MountOptions,
    mountpoint: &Path,
    runtime: Handle,
) -> Result<Mounted, MountError> {
    let mountpoint = check(mountpoint, options.kloset_folder.as_deref())?;
    let clock = repo.env.clock.clone();
    let view = View::new(repo, options.view.clone()).await?;
    let (reporter, deny) = (Reporter::new(clock, view.status()), Deny::new(&options.deny));
    let fuse = Fuse::new(view.clone(), runtime.clone(), reporter, options.timeout).denying(deny);
    let (at, config, to_tell) = (mountpoint.clone(), config(options), fuse.notifier());
    let session = tokio::task::spawn_blocking(move || Session::new(fuse, at, &config)?.spawn()).await;
    let session = session.map_err(|error| MountError::Io("mounting", io::Error::other(error)))?;
    let session = session.map_err(|error| refused(&error, options))?;
    let notifier = session.notifier();
    let _ = to_tell.set(notifier.clone()); // only ever set here
    view.on_change(move |stale| {
        let notifier = notifier.clone();
        // The kernel holds a folder's lock while it waits for a lookup there, and wants it for this.
        runtime.spawn_blocking(move || drop_names(&notifier, &stale));
    });
    let mounts = mountinfo::read().map_err(|error| MountError::Io("reading /proc/self/mountinfo", error))?;
    let device = mountinfo::at(&mounts, &mountpoint).map(|mount| mount.device.clone()).unwrap_or_default();
    // Only root may, and without it everything works, only slower.
    let _ = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), READ_AHEAD_KIB);
    Ok(Mounted { session, mountpoint, view, device })
}

/// Has the kernel drop names that it may hold; it asks for them again when somebody looks.
fn drop_names(notifier: &Notifier, stale: &[Stale]) {
    for Stale { parent, name } in stale {
        if let Err(error) = notifier.inval_entry(INodeNo(*parent), OsStr::new(&**name)) {
            tracing::debug!("the kernel keeps {name:?} for its second: {error}");
        }
    }
}

impl Mounted {
    /// Returns what can take the mount away while [`Mounted::wait`] waits.
    #[must_use]
    pub fn unmounter(&self) -> Unmounter {
        Unmounter { mountpoint: self.mountpoint.clone(), device: self.device.clone() }
    }

    /// Blocks until the mount was taken away and the last file in it is closed.
    ///
    /// # Errors
    /// What serving failed of.
    pub fn wait(self) -> io::Result<()> {
        self.session.join()
    }
}

/// Takes one mount away, and nothing that was mounted there since.
#[derive(Clone, Debug)]
pub struct Unmounter {
    mountpoint: PathBuf,
    device: String,
}

impl Unmounter {
    /// Returns the folder, absolute.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Tells whether the mount is what is seen at its folder.
    ///
    /// # Errors
    /// [`MountError::Io`].
    pub fn is_seen(&self) -> Result<bool, MountError> {
        Ok(seen_at(&self.mountpoint)?.is_some_and(|mount| mount.device == self.device))
    }

    /// Takes the mount away; with `lazy`, now, though files in it stay open until they are closed.
    ///
    /// # Errors
    /// [`MountError::Busy`], [`MountError`].
    pub fn unmount(&self, lazy: bool) -> Result<(), MountError> {
        match self.is_seen()? {
            true => take_away(&self.mountpoint, lazy),
            false => Ok(()),
        }
    }
}

/// Takes a mount of ours away, dead or alive.
///
/// # Errors
/// [`MountError::Mountpoint`] where there is none of ours, [`MountError::Busy`], [`MountError`].
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let mountpoint = absolute(mountpoint)?;
    match seen_at(&mountpoint)? {
        Some(mount) if mount.is_ours() => take_away(&mountpoint, lazy),
        Some(mount) => {
            let problem = format!("a mount of type {:?}, not one of kloset-mount", mount.fs_type);
            Err(MountError::Mountpoint(mountpoint, problem))
        }
        None => Err(MountError::Mountpoint(mountpoint, "nothing is mounted there".to_owned())),
    }
}

fn take_away(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(mountpoint)),
        Err(Errno::PERM) => take_away_as_user(mountpoint, lazy),
        Err(error) => Err(MountError::Io("unmounting", error.into())),
    }
}

fn busy(mountpoint: &Path) -> MountError {
    let mounts = mountinfo::read().unwrap_or_default();
    let holders = mountinfo::at(&mounts, mountpoint).map(|mount| holders::find(mount, &mounts));
    MountError::Busy(mountpoint.to_owned(), holders.unwrap_or_default())
}

/// Users may not unmount; the set-user-id helper that mounted for them does it.
fn take_away_as_user(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    for helper in ["fusermount3", "fusermount"] {
        let arguments = if lazy { "-uz" } else { "-u" };
        let output = match Command::new(helper).arg(arguments).arg("--").arg(mountpoint).output() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            output => output.map_err(|error| MountError::Io("running fusermount3", error))?,
        };
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return match output.status.success() {
            true => Ok(()),
            false if said.contains("busy") => Err(busy(mountpoint)),
            false => Err(MountError::Refused(said)),
        };
    }
    Err(MountError::Refused(NO_HELPER.to_owned()))
}

const NO_HELPER: &str = "there is no fusermount3, which mounts for users who are not root: install the package fuse3";

/// Checks what can be known before mounting; returns the mount point as an absolute path.
///
/// # Errors
/// [`MountError`].
pub fn check(mountpoint: &Path, kloset_folder: Option<&Path>) -> Result<PathBuf, MountError> {
    let refuse = |problem: &str| Err(MountError::Mountpoint(mountpoint.to_owned(), problem.to_owned()));
    let dead = || {
        let clear = format!("kloset-mount umount {}", mountpoint.display());
        format!("a mount whose program has died is there: `{clear}` clears it")
    };
    match std::fs::metadata(mountpoint) {
        Ok(found) if !found.is_dir() => return refuse("it is not a folder"),
        Ok(_) => {}
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => return refuse("it does not exist: make the folder first"),
            Some(Errno::NOTCONN) => return refuse(&dead()),
            _ => return refuse(&error.to_string()),
        },
    }
    let absolute = absolute(mountpoint)?;
    if seen_at(&absolute)?.is_some_and(|mount| mount.is_ours()) {
        // The kernel may still know attributes and listings of a mount that nobody serves any more; this it always asks.
        if rustix::fs::statfs(&absolute).err() == Some(Errno::NOTCONN) {
            return refuse(&dead());
        }
        return refuse("a kloset is mounted there already: `kloset-mount umount` takes it away");
    }
    let folder = kloset_folder.and_then(|folder| folder.canonicalize().ok());
    if folder.is_some_and(|folder| folder.starts_with(&absolute)) {
        return refuse("the kloset itself is in it, and the mount would hide it: choose another folder");
    }
    check_device()?;
    Ok(absolute)
}

fn check_device() -> Result<(), MountError> {
    let problem = match File::options().read(true).write(true).open("/dev/fuse") {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            "there is no /dev/fuse: run `modprobe fuse`, or pass it in to the container".to_owned()
        }
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            "/dev/fuse is not for this user: have root run `chmod 666 /dev/fuse`, as it is on most systems".to_owned()
        }
        Err(error) => format!("/dev/fuse: {error}"),
    };
    Err(MountError::Refused(problem))
}

/// Makes a path absolute without asking the file system at its end, which may be dead.
fn absolute(path: &Path) -> Result<PathBuf, MountError> {
    let failed = |error| MountError::Io("finding the mount point", error);
    let whole = std::path::absolute(path).map_err(failed)?;
    match (whole.parent(), whole.file_name()) {
        (Some(parent), Some(name)) => {
            let below = parent.canonicalize().map_err(failed)?.join(name);
            // A link is followed; what cannot be asked is no link.
            Ok(if below.is_symlink() { below.canonicalize().map_err(failed)? } else { below })
        }
        _ => whole.canonicalize().map_err(failed),
    }
}

fn seen_at(mountpoint: &Path) -> Result<Option<MountInfo>, MountError> {
    let mounts = mountinfo::read().map_err(|error| MountError::Io("reading /proc/self/mountinfo", error))?;
    Ok(mountinfo::at(&mounts, mountpoint).cloned())
}

fn config(options: &MountOptions) -> Config {
    let cores = std::thread::available_parallelism().map_or(2, NonZeroUsize::get);
    let mut config = Config::default();
    config.acl = match (options.allow_other, options.allow_root) {
        (true, _) => SessionACL::All,
        (false, true) => SessionACL::RootAndOwner,
        (false, false) => SessionACL::Owner,
    };
    config.n_threads = Some(cores.clamp(1, THREADS_MAX));
    config.clone_fd = true;
    // A comma or backslash would begin another option, and the kernel takes no empty name.
    let source: String = options.source.chars().map(|c| if matches!(c, ',' | '\\') { '_' } else { c }).collect();
    let source = if source.is_empty() { "kloset".to_owned() } else { source };
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoDev,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        if options.noexec { MountOption::NoExec } else { MountOption::Exec },
        MountOption::FSName(source),
        // As an option of its own kind it would be dropped where root mounts without the helper.
        MountOption::CUSTOM("subtype=kloset-mount".to_owned()),
    ];
    config
}

fn refused(error: &io::Error, options: &MountOptions) -> MountError {
    let said = error.to_string();
    if error.kind() == ErrorKind::PermissionDenied && (options.allow_other || options.allow_root) {
        let fix = "\"user_allow_other\" in /etc/fuse.conf";
        return MountError::Refused(format!(
            "allow_other needs the line {fix}: ask root to add it, or leave the option out"
        ));
    }
    match error.kind() {
        ErrorKind::NotFound => MountError::Refused(NO_HELPER.to_owned()),
        _ => MountError::Refused(format!("mounting: {}", said.trim())),
    }
}
