//! Serving a mount until somebody ends it.
//!
//! SIGTERM and SIGINT take the mount away; where a program is still in it, it is taken out of sight at once and this
//! process goes on until the last file in it is closed. A second one ends it there and then. `umount` and
//! `fusermount3 -u` from outside end it too. Each of these is a good end. SIGHUP lists the snapshots.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::args::Global;
use super::background;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::mount::MountArgs;
use super::mount_options::MountOptions;
use super::output::Output;
use super::systemd::Systemd;
use crate::fs::mount::Unmounter;
use crate::fs::{self, MountError, Mounted, View, ViewOptions};

/// What to serve, and how.
pub(crate) struct Serving<'a> {
    /// The command's arguments.
    pub(crate) args: &'a MountArgs,
    /// Its `-o`.
    pub(crate) options: &'a MountOptions,
    /// Whether a parent waits for this process to be ready.
    pub(crate) is_child: bool,
}

/// Mounts and serves until the mount is gone.
pub(crate) fn serve(
    kloset: &Kloset,
    serving: &Serving<'_>,
    global: &Global,
    out: &mut Output,
) -> Result<Exit, CliError> {
    kloset.runtime.block_on(async {
        let log = match serving.is_child {
            true => Some(background::open_log(serving.args.log_file(serving.options), global)?),
            false => None,
        };
        let mut signals = Signals::new()?;
        let mounted = mount(kloset, serving).await?;
        let (unmounter, view) = (mounted.unmounter(), mounted.view.clone());
        let told = match &log {
            Some(log) => background::detach(log),
            None => background::tell(&mounted.mountpoint, out).and_then(|()| out.flush()),
        };
        if let Err(error) = told {
            let _ = unmounter.unmount(true);
            return Err(error);
        }
        let systemd = Systemd::of(global);
        systemd.ready();
        let served = serve_apart(mounted);
        let ended = tokio::select! {
            ended = wait(served, &mut signals, &unmounter, &view) => ended,
            () = systemd.stay_alive(&unmounter) => unreachable!("it returns never"),
        };
        systemd.stopping();
        ended
    })
}

async fn mount(kloset: &Kloset, serving: &Serving<'_>) -> Result<Mounted, CliError> {
    let Serving { args, options, .. } = serving;
    let explain = |error: MountError| kloset.resolved.explain(error.into());
    let (only, path) = match args.snapshot(options)? {
        Some((text, path)) => (Some(kloset.repo.resolve(&text).await.map_err(|error| explain(error.into()))?), path),
        None => (None, Vec::new()),
    };
    let (show, mountpoint) = (args.show.or(&options.show), args.mountpoint()?);
    let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (uid, gid) = show.owner(me);
    let view = ViewOptions {
        only,
        path,
        wanted: show.wanted(),
        memory_bytes: args.memory_bytes(options),
        refresh: args.refresh(options),
        owner: me,
        uid: options.uid.or(uid),
        gid: options.gid.or(gid),
        readable: show.readable,
    };
    let MountOptions { allow_other, allow_root, noexec, fsname, .. } = serving.options.clone();
    let options = fs::MountOptions {
        view,
        deny: show.denied()?,
        source: fsname.unwrap_or_else(|| format!("kloset:{}", kloset.resolved.label())),
        allow_other: allow_other || serving.args.allow_other,
        allow_root,
        noexec,
        timeout: serving.args.timeout(serving.options),
        kloset_folder: kloset.folder().map(Into::into),
    };
    let runtime = kloset.runtime.handle().clone();
    // Not looked at from here: who is killed while it waits for itself holds the mount for ever, since the kernel lets it
    // go only when all threads are gone.
    fs::mount(kloset.repo.clone(), &options, mountpoint, runtime).await.map_err(explain)
}

/// Serves in a thread that the end of this process does not wait for, as it would for one of the runtime's.
fn serve_apart(mounted: Mounted) -> oneshot::Receiver<std::io::Result<()>> {
    let (told, served) = oneshot::channel();
    std::thread::spawn(move || told.send(mounted.wait()));
    served
}

async fn wait(
    mut served: oneshot::Receiver<std::io::Result<()>>,
    signals: &mut Signals,
    unmounter: &Unmounter,
    view: &View,
) -> Result<Exit, CliError> {
    let mut is_detached = false;
    loop {
        let Signals { terminate, interrupt, hangup } = &mut *signals;
        let asked_to_end = tokio::select! {
            ended = &mut served => return match ended {
                Ok(Ok(())) => Ok(Exit::Done),
                Ok(Err(error)) => Err(CliError::failed(format!("serving the mount: {error}"))),
                Err(error) => Err(CliError::failed(format!("serving the mount: {error}"))),
            },
            _ = terminate.recv() => true,
            _ = interrupt.recv() => true,
            _ = hangup.recv() => false,
        };
        if !asked_to_end {
            let view = view.clone();
            tokio::spawn(async move { view.renew().await });
        } else if is_detached {
            return Ok(Exit::Done); // the kernel ends what is still open with an error
        } else {
            is_detached = end(unmounter).await?;
        }
    }
}

/// Takes the mount away; returns whether somebody is still in it.
async fn end(unmounter: &Unmounter) -> Result<bool, CliError> {
    let unmounter = unmounter.clone();
    let unmount = tokio::task::spawn_blocking(move || match unmounter.unmount(false) {
        Err(MountError::Busy(mountpoint, holders)) => {
            tracing::warn!("{mountpoint:?} is in use {holders}: out of sight now, it ends with the last file in it");
            unmounter.unmount(true).map(|()| true)
        }
        done => done.map(|()| false),
    });
    let done = unmount.await.map_err(|error| CliError::failed(format!("unmounting: {error}")))?;
    Ok(done?)
}

/// The signals that a mount listens to.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, CliError> {
        let listen = |kind| signal(kind).map_err(|error| CliError::failed(format!("listening for signals: {error}")));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
}
