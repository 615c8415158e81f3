//! `ls`: lists snapshots, or what is in one.

use std::ffi::OsString;
use std::io::{BufWriter, Write};

use clap::Args;
use indicatif::HumanBytes;
use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::args::Global;
use super::cache::CacheArgs;
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
    /// Shows mode, owner, size and time; of snapshots, what they lack.
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

fn local_time(time: Time) -> String {
    match timestamp(time) {
        Some(at) => at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        None => format!("@{}", time.seconds), // no calendar has it
    }
}

fn timestamp(time: Time) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, 0).ok()?.checked_add(jiff::SignedDuration::from_nanos(time.nanos.into())).ok()
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
            return Ok(serde_json::to_writer(&mut self.out, &entry_json(node, path)).map_err(std::io::Error::from)?);
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

/// Returns what stands before the name in a long listing.
fn long(node: &Node) -> String {
    let named = |name: &str, id: u32| if name.is_empty() { id.to_string() } else { names::safe(name.as_bytes()) };
    let size = match &node.kind {
        NodeKind::CharDevice(major, minor) | NodeKind::BlockDevice(major, minor) => format!("{major}, {minor}"),
        _ => bytes_of(node).to_string(),
    };
    format!(
        "{} {:>3} {:<8} {:<8} {:>12} {} ",
        mode_text(node),
        node.identity.links,
        named(&node.owner.user, node.owner.uid),
        named(&node.owner.group, node.owner.gid),
        size,
        local_time(node.mtime),
    )
}

fn bytes_of(node: &Node) -> u64 {
    match &node.kind {
        NodeKind::File(content) => content.bytes,
        NodeKind::Symlink(to) => to.len() as u64,
        _ => 0,
    }
}

/// Returns mode and type as `ls -l` writes them.
fn mode_text(node: &Node) -> String {
    let mut text = String::with_capacity(10);
    text.push(match &node.kind {
        NodeKind::File(_) => '-',
        NodeKind::Directory(_) => 'd',
        NodeKind::Symlink(_) => 'l',
        NodeKind::CharDevice(..) => 'c',
        NodeKind::BlockDevice(..) => 'b',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
    });
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = node.mode >> shift;
        text.push(if bits & 4 > 0 { 'r' } else { '-' });
        text.push(if bits & 2 > 0 { 'w' } else { '-' });
        text.push(match (node.mode & special > 0, bits & 1 > 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn entry_json(node: &Node, path: &[u8]) -> Value {
    let mut out = Map::new();
    names::add_path(&mut out, "path", path);
    let kind = match &node.kind {
        NodeKind::File(_) => "file",
        NodeKind::Directory(_) => "dir",
        NodeKind::Symlink(_) => "symlink",
        NodeKind::CharDevice(..) => "chardev",
        NodeKind::BlockDevice(..) => "blockdev",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
    };
    out.insert("type".into(), kind.into());
    out.insert("mode".into(), node.mode.into());
    out.insert("permissions".into(), mode_text(node).into());
    out.insert("uid".into(), node.owner.uid.into());
    out.insert("gid".into(), node.owner.gid.into());
    out.insert("user".into(), (*node.owner.user).into());
    out.insert("group".into(), (*node.owner.group).into());
    out.insert("size".into(), bytes_of(node).into());
    let time = timestamp(node.mtime).map_or_else(|| format!("@{}", node.mtime.seconds), |t| t.to_string());
    out.insert("mtime".into(), time.into());
    out.insert("links".into(), node.identity.links.into());
    match &node.kind {
        NodeKind::Symlink(to) => names::add_path(&mut out, "target", to),
        NodeKind::CharDevice(major, minor) | NodeKind::BlockDevice(major, minor) => {
            out.insert("device".into(), json!([major, minor]));
        }
        _ => {}
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::tree::{FileContent, Identity, Name, Owner};

    fn node(kind: NodeKind, mode: u32) -> Node {
        Node {
            name: Name::new(b"a\xff").unwrap(),
            kind,
            mode,
            owner: Owner { uid: 5, gid: 6, user: "anna".into(), group: String::new() },
            mtime: Time { seconds: -1, nanos: 500_000_000 },
            ctime: Time::default(),
            identity: Identity { links: 1, ..Identity::default() },
            xattrs: vec![],
        }
    }

    #[test]
    fn modes_are_written_as_ls_does() {
        let check = |kind: NodeKind, mode: u32, text: &str| assert_eq!(mode_text(&node(kind, mode)), text);
        check(NodeKind::File(FileContent::default()), 0o644, "-rw-r--r--");
        check(NodeKind::File(FileContent::default()), 0o6755, "-rwsr-sr-x");
        check(NodeKind::Fifo, 0o7000, "p--S--S--T");
        check(NodeKind::Symlink(vec![]), 0o1777, "lrwxrwxrwt");
    }

    #[test]
    fn an_entry_in_json_keeps_bytes_and_times_before_1970() {
        let value = entry_json(&node(NodeKind::Symlink(b"x".to_vec()), 0o777), b"/a\xff");
        assert_eq!(value["path_b64"], "L2H/");
        assert_eq!(value["mtime"], "1969-12-31T23:59:59.5Z");
        assert_eq!((&value["type"], &value["target"], &value["size"]), (&"symlink".into(), &"x".into(), &1.into()));
    }
}
