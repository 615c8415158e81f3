//! `diff`: lists what differs between two snapshots.

use std::ffi::OsString;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStringExt;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

use super::args::Global;
use super::cache::CacheArgs;
use super::entries::{bytes_of, entry_json};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names;
use super::output::Output;
use crate::repo::diff::{Change, Difference, diff};
use crate::repo::path::{self, Found};
use crate::repo::tree::{Node, NodeKind};
use crate::repo::{READER_BYTES_DEFAULT, Reader, RepoError};

/// Bytes of a listing sent at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Lists what differs between two snapshots.
///
/// `+` is new, `-` is gone, `M` has another content, `T` is something else; with --metadata, `U` has another mode, owner,
/// time or attribute and the same content. What is the same in both is not looked into.
#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// The older snapshot: `latest~1` or the first characters of an id.
    #[arg(value_name = "SNAPSHOT")]
    before: String,
    /// The newer snapshot.
    #[arg(value_name = "SNAPSHOT")]
    after: String,
    /// Only what is at or below this path.
    #[arg(value_name = "PATH")]
    path: Option<OsString>,
    /// Also lists what has the same content and another mode, owner, time or attribute.
    #[arg(long)]
    metadata: bool,
    /// Ends with 1 if anything is listed.
    #[arg(long)]
    exit_code: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

/// What differs, counted.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
struct Totals {
    added: u64,
    removed: u64,
    content: u64,
    metadata: u64,
    types: u64,
    /// Bytes of files that are new, or have another content.
    bytes_added: u64,
    /// Bytes of files that are gone, or had another content.
    bytes_removed: u64,
}

/// Runs the command.
pub(crate) fn run(args: DiffArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let path = args.path.clone().map(OsString::into_vec).unwrap_or_default();
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let reader = kloset.repo.reader(READER_BYTES_DEFAULT);
    let mut names = Vec::new();
    let mut sides = Vec::new();
    for spec in [&args.before, &args.after] {
        let found = kloset.runtime.block_on(async {
            let name = kloset.repo.resolve(spec).await?;
            let root = kloset.repo.manifest(name).await?.root.into();
            Ok((name, there(&reader, root, &path).await?))
        });
        let (name, found) = found.map_err(|error: RepoError| kloset.resolved.explain(error.into()))?;
        names.push(name);
        sides.push(found);
    }
    let [before, after] = &sides[..] else { unreachable!("two specs, two sides") };
    if before.is_none() && after.is_none() {
        return Err(CliError::failed(format!("no \"{}\" in either snapshot", names::safe(&path))));
    }
    let base: Vec<u8> =
        path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").flat_map(|c| [b"/", c].concat()).collect();
    let (json, terminal) = (out.is_json(), names::is_shown());
    let mut totals = Totals::default();
    let mut told = BufWriter::with_capacity(BUFFER_BYTES, out.stdout());
    kloset.runtime.block_on(diff(&reader, (before.as_ref(), after.as_ref()), &base, |difference| {
        if difference.change == Change::Metadata && !args.metadata {
            return Ok(());
        }
        totals.count(&difference);
        Ok::<_, CliError>(tell(&difference, json, terminal, &mut told)?)
    }))?;
    told.flush()?;
    drop(told);
    if json {
        let mut value = json!(totals);
        value["message_type"] = "statistics".into();
        (value["source_snapshot"], value["target_snapshot"]) = (json!(names[0].id), json!(names[1].id));
        out.json(&value)?;
    } else {
        tell_totals(&totals, out)?;
    }
    Ok(if args.exit_code && totals.is_any() { Exit::Error } else { Exit::Done })
}

/// Follows a path; one that is not there is no error.
async fn there(reader: &Reader, root: crate::repo::tree::TreeRef, path: &[u8]) -> Result<Option<Found>, RepoError> {
    match path::resolve(reader, root, path).await {
        Ok(found) => Ok(Some(found)),
        Err(RepoError::NoPath(_) | RepoError::NotA { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Totals {
    fn count(&mut self, difference: &Difference<'_>) {
        let counter = match difference.change {
            Change::Added => &mut self.added,
            Change::Removed => &mut self.removed,
            Change::Content => &mut self.content,
            Change::Metadata => &mut self.metadata,
            Change::Type => &mut self.types,
        };
        *counter += 1;
        if difference.change != Change::Metadata {
            self.bytes_added += difference.after.map_or(0, file_bytes);
            self.bytes_removed += difference.before.map_or(0, file_bytes);
        }
    }

    fn is_any(&self) -> bool {
        self.added + self.removed + self.content + self.metadata + self.types > 0
    }
}

fn file_bytes(node: &Node) -> u64 {
    if matches!(node.kind, NodeKind::File(_)) { bytes_of(node) } else { 0 }
}

fn tell(difference: &Difference<'_>, json: bool, terminal: bool, out: &mut impl Write) -> std::io::Result<()> {
    let Difference { path, change, before, after } = difference;
    if json {
        let mut object = Map::new();
        object.insert("message_type".into(), "change".into());
        names::add_path(&mut object, "path", path);
        object.insert("modifier".into(), change.letter().to_string().into());
        for (key, node) in [("before", before), ("after", after)] {
            object.extend(node.map(|node| (key.to_owned(), entry_json(node, path))));
        }
        return writeln!(out, "{}", Value::from(object));
    }
    write!(out, "{}  {:>21}  ", change.letter(), sizes(*before, *after))?;
    out.write_all(&names::shown(path, terminal))?;
    let is_folder = after.or(*before).is_some_and(|node| matches!(node.kind, NodeKind::Directory(_)));
    out.write_all(if is_folder { b"/\n" } else { b"\n" })
}

/// Returns the length before and after, of files only.
fn sizes(before: Option<&Node>, after: Option<&Node>) -> String {
    let size = |node: Option<&Node>| node.filter(|n| matches!(n.kind, NodeKind::File(_))).map(bytes_of);
    match (size(before), size(after)) {
        (Some(before), Some(after)) if before == after => after.to_string(),
        (Some(before), Some(after)) => format!("{before}>{after}"),
        (Some(bytes), None) | (None, Some(bytes)) => bytes.to_string(),
        (None, None) => String::new(),
    }
}

fn tell_totals(totals: &Totals, out: &mut Output) -> Result<(), CliError> {
    let Totals { added, removed, content, metadata, types, bytes_added, bytes_removed } = *totals;
    let metadata = if metadata > 0 { format!(", {metadata} other metadata") } else { String::new() };
    out.note(format_args!(
        "{added} new, {removed} gone, {content} other content, {types} other type{metadata}; {} came, {} went",
        HumanBytes(bytes_added),
        HumanBytes(bytes_removed),
    ));
    Ok(())
}
