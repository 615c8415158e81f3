//! `umount`: ends a mount.

use std::path::PathBuf;

use clap::Args;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::output::Output;
use crate::fs;

/// Ends a mount, also one whose program has died.
#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Folder where the snapshots are shown.
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,
    /// Takes it away now and ends it when the last file in it is closed.
    #[arg(long)]
    pub lazy: bool,
}

/// Runs the command.
pub(crate) fn run(args: UmountArgs, _global: &Global, _out: &mut Output) -> Result<Exit, CliError> {
    fs::unmount(&args.mountpoint, args.lazy)?;
    Ok(Exit::Done)
}
