//! `ls`: lists snapshots, or what is in one.

use std::ffi::OsString;
use std::io::{BufWriter, Write};

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Map, Value, json};

use super::args::Global;
use super::cache::CacheArgs;
use super::entries::{entry_json, local_time, long, long_json};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::lacks;
use super::names;
use super::output::Output;
use crate::repo::layout::SnapshotName;
use crate::repo::path::{self, Found, Nodes, leaf};
use crate::repo::snapshot::Manifest;
use crate::repo::tree::{Node, NodeKind, Time, TreeRef};
use crate::repo::{READER_BYTES_DEFAULT, Reader};

/// Bytes of a listing sent at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Lists all snapshots, or a folder of one.
///
/// What a snapshot lacks, because it could not be read, is told on standard error; with -l of all snapshots.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    /// Snapshot and folder: `latest`, `latest~2` or the first characters of an id, then :PATH.
    #[arg(value_name = "SNAPSHOT[:PATH]")]
    pub target: Option<OsString>,
    /// Shows mode, owner, size and time; of snapshots, what they lack. With --json, attributes, holes and inodes too.
    #[arg(short, long)]
    pub long: bool,
    /// Goes down into folders.
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// Only snapshots of this host.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Only snapshots with this tag; may be repeated.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Runs the command.
pub(crate) fn run(args: LsArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let target = args.target.as_ref().map(|target| names::split(target)).transpose()?;
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    match target {
        None => list_snapshots(&kloset, &args, out),
        Some((spec, path)) => list_folder(&kloset, &args, (&spec, path.unwrap_or_default()), out),
    }
}

fn list_snapshots(kloset: &Kloset, args: &LsArgs, out: &mut Output) -> Result<Exit, CliError> {
    let manifests = kloset.runtime.block_on(async {
        let names = kloset.repo.snapshots().await?;
        Ok::<_, crate::repo::RepoError>(kloset.repo.manifests(&names).await)
    })?;
    let mut exit = Exit::Done;
    let mut rows = Vec::new();
    for (name, manifest) in manifests {
        match manifest {
            Ok(manifest) if is_wanted(&manifest, args) => rows.push((name, manifest)),
            Ok(_) | Err(crate::repo::RepoError::NoSnapshot(_)) => {} // forgotten since it was listed
            Err(error @ crate::repo::RepoError::Damaged { .. }) => {
                out.warn(&error);
                exit = Exit::Damaged;
            }
            Err(error) => return Err(kloset.resolved.explain(error.into())),
        }
    }
    if out.is_json() {
        let rows: Vec<_> = rows.iter().map(|(name, manifest)| snapshot_json(*name, manifest)).collect();
        out.json(&rows)?;
    } else {
        print_table(&rows, out)?;
        rows.iter().filter(|_| args.long).for_each(|(_, manifest)| lacks::tell(manifest, b"", out));
    }
    Ok(exit)
}

fn is_wanted(manifest: &Manifest, args: &LsArgs) -> bool {
    args.host.as_ref().is_none_or(|host| *host == manifest.host) && args.tag.iter().all(|t| manifest.tags.contains(t))
}

pub(super) fn snapshot_json(name: SnapshotName, manifest: &Manifest) -> Value {
    json!({
        "id": name.id,
        "short_id": name.id.short(),
        "time": manifest.time,
        "end": manifest.end,
        "host": manifest.host,
        "user": manifest.user,
        "paths": manifest.paths,
        "tags": manifest.tags,
        "description": manifest.description,
        "parent": manifest.parent,
        "original": manifest.original,
        "program": manifest.program,
        "summary": manifest.summary,
        "incomplete": manifest.incomplete,
        "errors": manifest.errors_total,
        "error_list": lacks::list(manifest, b""),
    })
}

fn print_table(rows: &[(SnapshotName, Manifest)], out: &mut Output) -> Result<(), CliError> {
    let head = ["id", "time", "host", "tags", "files", "size", "paths"].map(str::to_owned);
    let mut table = vec![head];
    for (name, manifest) in rows {
        let paths: Vec<_> = manifest.paths.iter().map(|path| names::safe(&path.0)).collect();
        let incomplete = if manifest.incomplete { " (incomplete)" } else { "" };
        table.push([
            name.id.short(),
            local_time(Time { seconds: name.unix_ms.div_euclid(1000), nanos: 0 }),
            names::safe(manifest.host.as_bytes()),
            names::safe(manifest.tags.join(",").as_bytes()),
            manifest.summary.files.to_string(),
            HumanBytes(manifest.summary.bytes).to_string(),
            format!("{}{incomplete}", paths.join(" ")),
        ]);
    }
    let width = |column: usize| table.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..6).map(width).collect();
    for row in &table {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padding = " ".repeat(width - cell.chars().count());
            let numeric = matches!(column, 4 | 5);
            line += &if numeric { format!("{padding}{cell}  ") } else { format!("{cell}{padding}  ") };
        }
        out.line(format_args!("{line}{}", row[6]))?;
    }
    Ok(())
}

/// A listing on its way out.
struct Listing<'a> {
    kloset: &'a Kloset,
    reader: Reader,
    long: bool,
    recursive: bool,
    json: bool,
    terminal: bool,
    entries: u64,
    out: BufWriter<&'a mut (dyn Write + Send)>,
}

fn list_folder(
    kloset: &Kloset,
    args: &LsArgs,
    (spec, path): (&str, Vec<u8>),
    out: &mut Output,
) -> Result<Exit, CliError> {
    let reader = kloset.repo.reader(READER_BYTES_DEFAULT);
    let (name, manifest) = kloset.runtime.block_on(async {
        let name = kloset.repo.resolve(spec).await?;
        Ok::<_, crate::repo::RepoError>((name, kloset.repo.manifest(name).await?))
    })?;
    let base: Vec<u8> =
        path.split(|b| *b == b'/').filter(|c| !c.is_empty() && *c != b".").flat_map(|c| [b"/", c].concat()).collect();
    if !out.is_json() {
        lacks::tell(&manifest, &base, out);
    }
    let found = kloset.runtime.block_on(path::resolve(&reader, manifest.root.into(), &path))?;
    let (json, terminal) = (out.is_json(), names::is_shown());
    let mut listing = Listing {
        kloset,
        reader,
        long: args.long,
        recursive: args.recursive,
        json,
        terminal,
        entries: 0,
        out: BufWriter::with_capacity(BUFFER_BYTES, out.stdout()),
    };
    if json {
        let mut head = Map::new();
        head.insert("snapshot_id".into(), name.id.to_string().into());
        names::add_path(&mut head, "path", if path.is_empty() { b"/" } else { &path });
        head.insert("incomplete".into(), manifest.incomplete.into());
        head.insert("error_list".into(), lacks::list(&manifest, &base));
        let head = Value::from(head).to_string();
        write!(listing.out, "{},\"entries\":[", head.trim_end_matches('}'))?;
    }
    match &found {
        Found::Root(tree) => listing.folder(*tree, &base, &base)?,
        Found::Node(node) => match &node.kind {
            NodeKind::Directory(tree) => listing.folder(*tree, &base, &base)?,
            _ => listing.entry(node, &base, node.name.as_bytes())?,
        },
    }
    if json {
        writeln!(listing.out, "]}}")?;
    }
    listing.out.flush()?;
    Ok(Exit::Done)
}

impl Listing<'_> {
    /// Lists a folder; `base` is the folder that was asked for.
    fn folder(&mut self, tree: TreeRef, folder: &[u8], base: &[u8]) -> Result<(), CliError> {
        let mut nodes = Nodes::new(&self.reader, tree);
        while let Some(page) = self.kloset.runtime.block_on(nodes.next_page())? {
            for node in leaf(&page) {
                let path = [folder, b"/", node.name.as_bytes()].concat();
                self.entry(node, &path, &path[base.len() + 1..])?;
                if let (true, NodeKind::Directory(tree)) = (self.recursive, &node.kind) {
                    self.folder(*tree, &path, base)?;
                }
            }
        }
        Ok(())
    }

    fn entry(&mut self, node: &Node, path: &[u8], shown: &[u8]) -> Result<(), CliError> {
        if self.json {
            if self.entries > 0 {
                self.out.write_all(b",")?;
            }
            self.entries += 1;
            let entry = if self.long { long_json(node, path) } else { entry_json(node, path) };
            return Ok(serde_json::to_writer(&mut self.out, &entry).map_err(std::io::Error::from)?);
        }
        if self.long {
            write!(self.out, "{}", long(node))?;
        }
        self.out.write_all(&names::shown(shown, self.terminal))?;
        if let (true, NodeKind::Symlink(to)) = (self.long, &node.kind) {
            self.out.write_all(b" -> ")?;
            self.out.write_all(&names::shown(to, self.terminal))?;
        }
        Ok(self.out.write_all(b"\n")?)
    }
}
