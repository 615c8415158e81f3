//! `cat`: writes a file of a snapshot to standard output.

use std::ffi::OsString;
use std::io::Write;
use std::ops::Range;

use clap::Args;
use futures::StreamExt;
use tokio::runtime::Handle;

use super::args::Global;
use super::cache::CacheArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names;
use super::output::Output;
use crate::repo::reader::pieces;
use crate::repo::tree::{Data, FileContent};
use crate::repo::{READER_BYTES_DEFAULT, Reader, path};

/// Chunks being fetched at once: about 16 MiB.
const CHUNKS_AHEAD: usize = 16;
/// How much of the list of chunks is looked at together.
const LIST_BYTES: u64 = 256 << 20;
/// Zeros written at once for a hole.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Writes a file of a snapshot to standard output.
#[derive(Debug, Args)]
pub(crate) struct CatArgs {
    /// Snapshot and file, as in `latest:/etc/fstab`.
    #[arg(value_name = "SNAPSHOT:PATH")]
    pub target: OsString,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs the command.
pub(crate) fn run(args: CatArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let (spec, path) = names::split(&args.target)?;
    let path = path.ok_or_else(|| CliError::usage("which file is not said: write SNAPSHOT:PATH"))?;
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let reader = kloset.repo.reader(READER_BYTES_DEFAULT);
    let found = kloset.runtime.block_on(async {
        let name = kloset.repo.resolve(&spec).await?;
        let root = kloset.repo.manifest(name).await?.root.into();
        path::resolve(&reader, root, &path).await
    })?;
    write(&reader, kloset.runtime.handle(), found.file(&path)?, out.stdout())?;
    Ok(Exit::Done)
}

/// Writes a file's content in its order, holes as zeros.
fn write(reader: &Reader, runtime: &Handle, file: &FileContent, out: &mut dyn Write) -> Result<(), CliError> {
    for (hole, part) in pieces(&file.holes, 0..file.bytes) {
        if hole {
            write_zeros(part.end - part.start, out)?;
        } else {
            write_data(reader, runtime, (&file.data, part), out)?;
        }
    }
    Ok(())
}

fn write_zeros(mut bytes: u64, out: &mut dyn Write) -> Result<(), CliError> {
    while bytes > 0 {
        let now = usize::try_from(bytes).unwrap_or(usize::MAX).min(ZEROS.len());
        out.write_all(&ZEROS[..now])?;
        bytes -= now as u64;
    }
    Ok(())
}

fn write_data(
    reader: &Reader,
    runtime: &Handle,
    (data, range): (&Data, Range<u64>),
    out: &mut dyn Write,
) -> Result<(), CliError> {
    let mut at = range.start;
    while at < range.end {
        let part = at..(at + LIST_BYTES).min(range.end);
        let chunks = runtime.block_on(reader.chunks_in(data, part.clone()))?;
        let mut fetched = futures::stream::iter(chunks)
            .map(|(start, chunk)| {
                let reader = reader.clone();
                let raw = runtime.spawn(async move { reader.chunk(&chunk).await });
                async move { (start, raw.await) }
            })
            .buffered(CHUNKS_AHEAD);
        while let Some((start, raw)) = runtime.block_on(fetched.next()) {
            let raw = raw.map_err(|error| CliError::failed(error.to_string()))??;
            let within = |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(usize::MAX).min(raw.len());
            out.write_all(&raw[within(part.start)..within(part.end)])?;
        }
        at = part.end;
    }
    Ok(())
}
