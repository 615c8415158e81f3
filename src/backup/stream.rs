//! Content that is no file: standard input, and what commands write.
//!
//! It is read to its end, cut and hashed as a large file is. A command that fails leaves no snapshot: half a dump must not
//! look like a backup. Of standard input nobody can tell whether its writer failed.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crossbeam_channel::Sender;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::meta::{self, Owners};
use super::read::{self, Answer, FileRead, ReadContext, Window};
use crate::repo::tree::{FileContent, Identity, Name, Node, NodeKind, Time};

/// How long a stream may be silent before the wish to stop is looked at again.
const LOOK_EVERY: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// Content to be stored as a file.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Its place in the snapshot; a relative one is below the top.
    pub path: PathBuf,
    /// Where it comes from.
    pub source: StreamSource,
}

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub enum StreamSource {
    /// Standard input.
    Input,
    /// What a command of `/bin/sh` writes.
    Command(String),
}

/// Why a stream was not read to a good end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Standard input failed.
    #[error("reading standard input: {0}; no snapshot was made")]
    Input(std::io::Error),
    /// A command could not be run, or failed.
    #[error("command \"{command}\": {problem}; no snapshot was made")]
    Command {
        /// The command.
        command: String,
        /// What happened.
        problem: String,
    },
}

/// Returns what streams are stored as: readable by whom the backup runs as, since nobody knows what they hold.
pub(super) fn node(unix_ms: i64) -> Node {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let time = Time {
        seconds: unix_ms.div_euclid(1000),
        nanos: u32::try_from(unix_ms.rem_euclid(1000) * 1_000_000).unwrap_or_default(),
    };
    Node {
        name: Name::new(b"stream").expect("a plain name"),
        kind: NodeKind::File(FileContent::default()),
        mode: 0o600,
        owner: Owners::default().owner(uid, gid),
        mtime: time,
        ctime: time,
        identity: Identity { device: 0, inode: 0, links: 1 },
        xattrs: Vec::new(),
    }
}

/// Reads a stream to its end and hands its chunks to `answers`; `None` if nobody wants them any more.
///
/// # Errors
/// [`StreamError`].
pub(super) fn read(
    context: &ReadContext,
    source: &StreamSource,
    answers: &Sender<Answer>,
) -> Result<Option<FileRead>, StreamError> {
    match source {
        StreamSource::Input => {
            let input = rustix::io::dup(std::io::stdin()).map_err(|error| StreamError::Input(error.into()))?;
            cut(context, input, answers).map_err(StreamError::Input)
        }
        StreamSource::Command(command) => {
            let failed = |problem: String| StreamError::Command { command: command.clone(), problem };
            let mut child = start(command).map_err(|error| failed(error.to_string()))?;
            let output = child.stdout.take().expect("its output is a pipe").into();
            let read = cut(context, output, answers);
            if !matches!(read, Ok(Some(_))) {
                let _ = child.kill(); // it may have ended
            }
            let status = child.wait().map_err(|error| failed(error.to_string()))?;
            match read.map_err(|error| failed(error.to_string()))? {
                Some(_) if !status.success() && !context.monitor.stopped() => Err(failed(status.to_string())),
                read => Ok(read),
            }
        }
    }
}

fn start(command: &str) -> std::io::Result<Child> {
    Command::new("/bin/sh").arg("-c").arg(command).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}

fn cut(context: &ReadContext, input: OwnedFd, answers: &Sender<Answer>) -> std::io::Result<Option<FileRead>> {
    let stat = rustix::fs::fstat(&input)?;
    let (mtime, ctime) = (meta::mtime(&stat), meta::ctime(&stat));
    let mut input = File::from(input);
    let (mut window, mut ended) = (Window::default(), false);
    let (mut chunks, mut bytes) = (Vec::new(), 0);
    while !ended {
        if !has_more(&input, context)? {
            return Ok(None);
        }
        ended = window.fill(u64::MAX, |room| input.read(room))? == 0;
        let mut hand_over = |id, content: &[u8]| {
            chunks.push((id, read::length(content)));
            bytes += content.len() as u64;
            context.monitor.bytes.fetch_add(content.len() as u64, std::sync::atomic::Ordering::Relaxed);
            answers.send(Answer::Chunk(id, content.into())).is_ok()
        };
        if !window.cut(context, ended, &mut hand_over) {
            return Ok(None);
        }
    }
    context.monitor.file(0);
    let (xattrs, holes, places, changed) = (Vec::new(), Vec::new(), Vec::new(), false);
    let (inode, xattr_error) = (None, None);
    Ok(Some(FileRead { inode, mtime, ctime, xattrs, xattr_error, bytes, holes, chunks, places, changed }))
}

/// Waits until there is something to be read, or the end; `false` if everything is to stop.
fn has_more(input: &File, context: &ReadContext) -> std::io::Result<bool> {
    while !context.monitor.stopped() {
        match rustix::event::poll(&mut [PollFd::new(input, PollFlags::IN)], Some(&LOOK_EVERY)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}
