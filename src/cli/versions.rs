//! `versions`: lists what a path was over all snapshots.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use serde_json::{Map, Value};

use super::args::Global;
use super::cache::CacheArgs;
use super::chosen::{Chosen, ChosenArgs, snapshot_json};
use super::entries::{entry_json, long};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names::{self, safe};
use super::output::Output;
use crate::repo::READER_BYTES_DEFAULT;
use crate::repo::tree::NodeKind;
use crate::repo::versions::{Version, Versions, versions};

/// Lists what a path was over all snapshots: each content once, the newest first.
///
/// Each has the number of snapshots that have it, the first and the last of them, and mode, owner, size and time as the
/// last one has them. `kloset-mount cat SNAPSHOT:PATH` brings one back.
#[derive(Debug, Args)]
pub(crate) struct VersionsArgs {
    /// The path, as it was on the source machine.
    #[arg(value_name = "PATH")]
    target: OsString,
    #[command(flatten)]
    chosen: ChosenArgs,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs the command.
pub(crate) fn run(args: VersionsArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let path = args.target.into_vec();
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let mut chosen = Chosen::open(&kloset, &args.chosen, out)?;
    let reader = kloset.repo.reader(READER_BYTES_DEFAULT);
    let found = kloset.runtime.block_on(versions(&reader, &chosen.snapshots, &path));
    let found = found.map_err(|error| kloset.resolved.explain(error.into()))?;
    for (number, error) in &found.damaged {
        out.warn(format_args!("snapshot {}: {error}", chosen.name(*number).id.short()));
        chosen.exit = Exit::Damaged;
    }
    if found.versions.is_empty() && found.damaged.is_empty() {
        let looked = chosen.snapshots.len();
        return Err(CliError::failed(format!("no \"{}\" in any of {looked} snapshots", safe(&path))));
    }
    match out.is_json() {
        true => found.versions.iter().try_for_each(|version| out.json(&version_json(&chosen, version, &path)))?,
        false => tell(&chosen, &found, out)?,
    }
    Ok(chosen.exit)
}

fn tell(chosen: &Chosen, found: &Versions, out: &mut Output) -> Result<(), CliError> {
    for version in &found.versions {
        let node = version.node.as_ref();
        let target = node.and_then(|node| match &node.kind {
            NodeKind::Symlink(to) => Some(format!("-> {}", safe(to))),
            _ => None,
        });
        let text = node.map(|node| long(node)).unwrap_or_default() + &target.unwrap_or_default();
        out.line(format_args!("{}  {}", chosen.range(&version.snapshots), text.trim_end()))?;
    }
    if found.absent.count() > 0 {
        out.note(format_args!("{} of {} snapshots do not have it", found.absent.count(), chosen.snapshots.len()));
    }
    Ok(())
}

fn version_json(chosen: &Chosen, version: &Version, path: &[u8]) -> Value {
    let mut object = Map::new();
    match &version.node {
        Some(node) => object.extend(entry_json(node, path).as_object().cloned().unwrap_or_default()),
        None => names::add_path(&mut object, "path", path),
    }
    chosen.add_range(&mut object, &version.snapshots);
    let each: Vec<_> = version.snapshots.iter().map(|number| snapshot_json(chosen.name(number))).collect();
    object.insert("in".into(), each.into());
    object.into()
}
