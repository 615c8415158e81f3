//! Going into the background: the program starts itself again and waits until that one is ready.
//!
//! The child gets the same words and environment, one variable more, and the secret through its standard input, so
//! that nobody is asked twice. It tells what goes wrong on the terminal as long as its parent waits; when it is ready it
//! writes one line to its standard output, and from then on writes to its log file only. No threads are forked.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::output::Output;
use super::secret::Unlock;
use crate::store::Secret;

/// Set for the one in the background.
const VARIABLE: &str = "KLOSET_MOUNT_IN_BACKGROUND";
/// What it says when the mount can be used.
const READY: &str = "ready\n";
/// Heaps of the C library in the background: each thread's own would keep a quarter more memory than the caches use, for
/// no speed. Measured while 512 MiB were read: 220 MB with eight, 175 MB with two.
const ARENAS_MAX: &str = "2";
/// What stands before the secret in the pipe.
const PASSPHRASE: u8 = b'p';
const KEY_FILE: u8 = b'k';
/// No passphrase or key file is longer.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// Tells whether this process is the one in the background.
pub(crate) fn is_child(global: &Global) -> bool {
    global.env.text(VARIABLE).is_some()
}

/// Starts this program again in the background and returns when it is ready or has failed, which it tells itself.
pub(crate) fn start(secret: &Unlock, mountpoint: &Path, out: &mut Output) -> Result<Exit, CliError> {
    let failed = |error| CliError::failed(format!("starting in the background: {error}"));
    let mut words = std::env::args_os();
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        // Its name says in which order the words are.
        .arg0(words.next().unwrap_or_default())
        .args(words)
        .env(VARIABLE, "1")
        .env("MALLOC_ARENA_MAX", ARENAS_MAX)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (kind, bytes) = match secret {
        Unlock::Passphrase(secret) => (PASSPHRASE, secret.bytes()),
        Unlock::KeyFile(secret) => (KEY_FILE, secret.bytes()),
    };
    if let Some(mut pipe) = child.stdin.take() {
        // One that has died already is asked for its exit code below.
        let _ = pipe.write_all(&[kind]).and_then(|()| pipe.write_all(bytes));
    }
    let mut line = String::new();
    if let Some(pipe) = child.stdout.take() {
        BufReader::new(pipe).read_line(&mut line).map_err(failed)?;
    }
    if line == READY {
        tell(mountpoint, out)?;
        return Ok(Exit::Done);
    }
    let status = child.wait().map_err(failed)?;
    match status.code().and_then(exit_of) {
        Some(exit) => Ok(exit),
        None => Err(CliError::failed(format!("the mount in the background ended before it was ready: {status}"))),
    }
}

/// Tells that the mount is there.
pub(crate) fn tell(mountpoint: &Path, out: &mut Output) -> Result<(), CliError> {
    let shown = mountpoint.display();
    if out.is_json() {
        return out.json(&serde_json::json!({"message_type": "mounted", "mountpoint": shown.to_string()}));
    }
    out.note(format_args!("the snapshots are in {shown}: `kloset-mount umount {shown}` takes them away"));
    Ok(())
}

fn exit_of(code: i32) -> Option<Exit> {
    let all = [
        Exit::Error,
        Exit::Usage,
        Exit::NoKloset,
        Exit::WrongPassphrase,
        Exit::Store,
        Exit::Damaged,
        Exit::Interrupted,
        Exit::BrokenPipe,
    ];
    all.into_iter().find(|exit| i32::from(exit.code()) == code)
}

/// In the background: leaves the terminal's session and takes the secret from the pipe.
pub(crate) fn take_secret() -> Result<Unlock, CliError> {
    // A session of its own, so that neither Ctrl-C nor the end of the terminal reaches it.
    match rustix::process::setsid() {
        Ok(_) | Err(Errno::PERM) => {}
        Err(error) => return Err(CliError::failed(format!("leaving the terminal: {error}"))),
    }
    let mut bytes = Vec::with_capacity(4096);
    let read = std::io::stdin().lock().take(SECRET_BYTES_MAX + 1).read_to_end(&mut bytes);
    read.map_err(|error| CliError::failed(format!("taking over the secret: {error}")))?;
    let kind = (!bytes.is_empty()).then(|| bytes.remove(0));
    match kind {
        Some(PASSPHRASE) => Ok(Unlock::Passphrase(Secret::new(bytes))),
        Some(KEY_FILE) => Ok(Unlock::KeyFile(Secret::new(bytes))),
        _ => Err(CliError::usage(format!("{VARIABLE} is for the program itself: unset it"))),
    }
}

/// In the background: opens the file that the log will go to.
pub(crate) fn open_log(chosen: Option<&Path>, global: &Global) -> Result<File, CliError> {
    let path = match (chosen, global.env.xdg("XDG_STATE_HOME", ".local/state")) {
        (Some(path), _) => path.to_owned(),
        (None, Some(state)) => state.join("kloset-mount/mount.log"),
        (None, None) => PathBuf::from("/var/log/kloset-mount.log"),
    };
    let opened = open_file(&path);
    match opened {
        // Not asked for by anybody, hence no reason not to mount.
        Err(error) if chosen.is_none() => {
            tracing::warn!("log file {path:?}: {error}: this mount will have no log");
            let null = OpenOptions::new().write(true).open("/dev/null");
            null.map_err(|error| CliError::failed(format!("/dev/null: {error}")))
        }
        opened => opened.map_err(|error| CliError::usage(format!("log file {path:?}: {error}"))),
    }
}

fn open_file(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// In the background: says that the mount can be used, and lets go of terminal and working directory.
///
/// An error means that nobody waits any more.
pub(crate) fn detach(log: &File) -> Result<(), CliError> {
    let failed = |error: Errno| CliError::failed(format!("going into the background: {error}"));
    rustix::process::chdir("/").map_err(failed)?;
    rustix::stdio::dup2_stderr(log).map_err(failed)?;
    let mut stdout = std::io::stdout();
    stdout.write_all(READY.as_bytes()).and_then(|()| stdout.flush())?;
    let null = File::open("/dev/null").map_err(|error| CliError::failed(format!("/dev/null: {error}")))?;
    rustix::stdio::dup2_stdin(&null).map_err(failed)?;
    rustix::stdio::dup2_stdout(log).map_err(failed)
}
