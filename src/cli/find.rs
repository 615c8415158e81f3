//! `find`: finds files by name over all snapshots.

use std::io::{BufWriter, Write};

use clap::{Args, ValueEnum};
use jiff::tz::TimeZone;
use serde_json::Map;

use super::args::Global;
use super::cache::CacheArgs;
use super::chosen::{Chosen, ChosenArgs, snapshot_json, time_of};
use super::entries::{entry_json, long};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names;
use super::output::Output;
use crate::repo::READER_BYTES_DEFAULT;
use crate::repo::find::{Entry, Hit, Kind, Query, find};
use crate::repo::pattern::Pattern;
use crate::repo::tree::Time;

/// Bytes of a listing sent at once.
const BUFFER_BYTES: usize = 64 << 10;

/// Finds files by name over all snapshots.
///
/// Each path and content is one line, with the number of snapshots it stands in, the first and the last of them. A
/// pattern without a slash is held against names, one with a slash against whole paths: `*.conf`, `etc/*.conf`,
/// `/home/*/notes/**`. Ends with 0 whether or not something was found, with 14 where something could not be looked into.
#[derive(Debug, Args)]
pub(crate) struct FindArgs {
    /// Name or path, with `*`, `?`, `[...]`, `{a,b}` and `**`; one of several has to fit.
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<String>,
    /// Takes large and small letters for the same.
    #[arg(short, long)]
    ignore_case: bool,
    /// Only what was not modified before: 2026-11-01, 2026-11-01 13:00, or with a zone.
    #[arg(short = 'O', long, value_name = "TIME", value_parser = parse_time)]
    oldest: Option<Time>,
    /// Only what was not modified after.
    #[arg(short = 'N', long, value_name = "TIME", value_parser = parse_time)]
    newest: Option<Time>,
    /// Only files, folders or symbolic links; may be repeated.
    #[arg(long = "type", value_enum, value_name = "f|d|l")]
    kind: Vec<KindArg>,
    #[command(flatten)]
    chosen: ChosenArgs,
    /// One line for each snapshot.
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    /// Files.
    F,
    /// Folders.
    D,
    /// Symbolic links.
    L,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Kind {
        match kind {
            KindArg::F => Kind::File,
            KindArg::D => Kind::Directory,
            KindArg::L => Kind::Symlink,
        }
    }
}

/// Parses a time in the local zone, or in one that it names.
fn parse_time(text: &str) -> Result<Time, String> {
    let local = |at: jiff::civil::DateTime| at.to_zoned(TimeZone::system()).map(|at| at.timestamp());
    let at = text.parse::<jiff::Timestamp>().or_else(|_| text.parse().and_then(local));
    let at = at.map_err(|_| "write 2026-11-01, 2026-11-01 13:00 or 2026-11-01T13:00:00Z".to_owned())?;
    Ok(Time { seconds: at.as_second(), nanos: u32::try_from(at.subsec_nanosecond()).unwrap_or(0) })
}

/// Runs the command.
pub(crate) fn run(args: FindArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let parse = |text: &String| Pattern::parse(text, args.ignore_case).map_err(|e| CliError::usage(e.to_string()));
    let patterns = args.patterns.iter().map(parse).collect::<Result<_, _>>()?;
    let kinds = args.kind.iter().map(|kind| Kind::from(*kind)).collect();
    let query = Query { patterns, kinds, oldest: args.oldest, newest: args.newest };
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let mut chosen = Chosen::open(&kloset, &args.chosen, out)?;
    let reader = kloset.repo.reader(READER_BYTES_DEFAULT);
    let found = kloset.runtime.block_on(find(&reader, &chosen.snapshots, query));
    let found = found.map_err(|error| kloset.resolved.explain(error.into()))?;
    chosen.tell(found.walked(), out);
    let (json, terminal) = (out.is_json(), names::is_shown());
    let mut told = BufWriter::with_capacity(BUFFER_BYTES, out.stdout());
    found.each(|hit| match (json, args.all) {
        (true, all) => tell_json(&chosen, &hit, all, &mut told),
        (false, true) => tell_all(&chosen, &hit, terminal, &mut told),
        (false, false) => tell(&chosen, &hit, terminal, &mut told),
    })?;
    told.flush()?;
    Ok(chosen.exit)
}

fn tell(chosen: &Chosen, hit: &Hit, terminal: bool, out: &mut impl Write) -> Result<(), CliError> {
    for (entry, runs) in hit.contents() {
        write!(out, "{}  {}", chosen.range(&runs), long(&entry.node))?;
        out.write_all(&names::shown(&hit.path, terminal))?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn tell_all(chosen: &Chosen, hit: &Hit, terminal: bool, out: &mut impl Write) -> Result<(), CliError> {
    for (number, entry) in by_snapshot(hit) {
        let name = chosen.name(number);
        write!(out, "{}  {}  {}", name.id.short(), time_of(name), long(&entry.node))?;
        out.write_all(&names::shown(&hit.path, terminal))?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// Returns what a path was in each snapshot, the oldest first.
fn by_snapshot(hit: &Hit) -> Vec<(usize, &Entry)> {
    let each = hit.entries.iter().flat_map(|(entry, runs)| runs.iter().map(move |number| (number, &**entry)));
    let mut each: Vec<_> = each.collect();
    each.sort_by_key(|(number, _)| *number);
    each
}

fn tell_json(chosen: &Chosen, hit: &Hit, all: bool, out: &mut impl Write) -> Result<(), CliError> {
    let mut tell = |entry: &Entry, add: &dyn Fn(&mut Map<String, serde_json::Value>)| {
        let mut value = entry_json(&entry.node, &hit.path);
        let object = value.as_object_mut().expect("an entry is an object");
        add(object);
        writeln!(out, "{value}")
    };
    if all {
        for (number, entry) in by_snapshot(hit) {
            let snapshot = snapshot_json(chosen.name(number));
            tell(entry, &|object| drop(object.insert("snapshot".into(), snapshot.clone())))?;
        }
        return Ok(());
    }
    for (entry, runs) in hit.contents() {
        tell(&entry, &|object| chosen.add_range(object, &runs))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_understood() {
        let at = |text: &str| parse_time(text).map(|time| (time.seconds, time.nanos));
        assert_eq!(at("1970-01-02T00:00:01.5Z"), Ok((86_401, 500_000_000)));
        assert_eq!(at("1970-01-02T01:00:00+01:00"), Ok((86_400, 0)));
        for text in ["2026-11-01", "2026-11-01 13:00", "2026-11-01T13:00:01"] {
            assert!(at(text).is_ok(), "{text}");
        }
        for text in ["", "yesterday", "2026-13-01"] {
            assert!(at(text).is_err(), "{text}");
        }
    }
}
