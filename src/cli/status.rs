//! `status`: how old the newest whole backup of each host and set of paths is, and whether that is too old.
//!
//! Promises that no clock of a host that was backed up counts: a snapshot is as old as the store says it was put (the
//! server's clock for both ends; for a folder, its files' times and this machine's clock), and that only snapshots count
//! that lack nothing. Whose and whether whole stands in the manifests, so a key that reads is needed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::args::Global;
use super::cache::CacheArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names::safe;
use super::output::Output;
use crate::repo::forget::{Found, Snapshot, find_all};
use crate::repo::layout::{self, SnapshotName};
use crate::repo::snapshot::{ByteText, Manifest};

/// Tells how old the newest whole backup of each host and set of paths is.
///
/// Ends with 15 if one of them is older than --max-age, or none is there.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Age from which a backup is stale, as in 26h; units are m, h, d and w.
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub max_age: Option<i64>,
    /// Is content if one of the backups is not stale: for lists, whose paths are others each time.
    #[arg(long, requires = "max_age")]
    pub any: bool,
    /// Only backups of this host; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Only snapshots with this tag; repeated, with all of them.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only backups that this path is in; repeated, all of them.
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// A snapshot and when it was put, by the store's clock.
type Put = (SnapshotName, i64);

/// What there is of one host and set of paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Backup {
    whole: Option<Put>,
    incomplete: Option<Put>,
}

type Backups = BTreeMap<(String, Vec<ByteText>), Backup>;

/// Runs the command.
pub(crate) fn run(args: &StatusArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let (backups, found) = find(&kloset, args, out)?;
    let store = &kloset.repo.store;
    let now = store.date_unix_ms().unwrap_or_else(|| kloset.repo.env.clock.unix_ms());
    let judged = Judged { now, max_age: args.max_age };
    let stale = backups.values().filter(|backup| judged.is_stale(backup)).count();
    let is_stale =
        args.max_age.is_some() && if args.any { stale == backups.len() } else { stale > 0 || backups.is_empty() };
    if out.is_json() {
        let rows: Vec<Value> = backups.iter().map(|(key, backup)| judged.as_json(key, backup)).collect();
        let max_age = args.max_age.map(|age| age / 1000);
        let now = layout::timestamp(now).to_string();
        out.json(&json!({"store_time": now, "max_age_seconds": max_age, "stale": is_stale, "backups": rows}))?;
    } else {
        for (key, backup) in &backups {
            out.line(judged.as_text(key, backup))?;
        }
        match backups.len() {
            0 => out.warn("no snapshot fits"),
            all if is_stale => out.warn(format_args!("{stale} of {all} backups are stale")),
            _ => {}
        }
    }
    Ok(if is_stale { Exit::Stale } else { found })
}

/// Opens every manifest; what is damaged is told and counts for nothing.
fn find(kloset: &Kloset, args: &StatusArgs, out: &mut Output) -> Result<(Backups, Exit), CliError> {
    let found = kloset.runtime.block_on(find_all(&kloset.repo));
    let Found { snapshots, damaged } = found.map_err(|error| kloset.resolved.explain(error.into()))?;
    damaged.iter().for_each(|(_, error)| out.warn(error));
    let mut backups = Backups::new();
    for Snapshot { name, put_unix_ms, manifest } in snapshots {
        if fits(&manifest, args) {
            add(&mut backups, manifest, (name, put_unix_ms));
        }
    }
    Ok((backups, if damaged.is_empty() { Exit::Done } else { Exit::Damaged }))
}

fn fits(manifest: &Manifest, args: &StatusArgs) -> bool {
    let holds = |path: &PathBuf| manifest.paths.iter().any(|of| path.starts_with(Path::new(OsStr::from_bytes(&of.0))));
    (args.host.is_empty() || args.host.contains(&manifest.host))
        && args.tag.iter().all(|tag| manifest.tags.contains(tag))
        && args.path.iter().all(holds)
}

fn add(backups: &mut Backups, manifest: Manifest, put: Put) {
    let backup = backups.entry((manifest.host, manifest.paths)).or_default();
    let of = if manifest.incomplete { &mut backup.incomplete } else { &mut backup.whole };
    if of.is_none_or(|newest| newest.1 <= put.1) {
        *of = Some(put);
    }
}

/// What backups are held against: milliseconds, by the store's clock.
struct Judged {
    now: i64,
    max_age: Option<i64>,
}

impl Judged {
    fn age(&self, put: Put) -> i64 {
        self.now.saturating_sub(put.1).max(0)
    }

    fn is_stale(&self, backup: &Backup) -> bool {
        self.max_age.is_some_and(|max| backup.whole.is_none_or(|put| self.age(put) > max))
    }

    fn as_text(&self, (host, paths): &(String, Vec<ByteText>), backup: &Backup) -> String {
        let paths: Vec<String> = paths.iter().map(|path| safe(&path.0)).collect();
        let told = |put: Put| format!("{} ago (snapshot {})", age_text(self.age(put)), put.0.id.short());
        let stale = if self.is_stale(backup) { "stale, " } else { "" };
        let whole = backup.whole.map_or("never whole".to_owned(), |put| format!("whole {}", told(put)));
        let later = backup.incomplete.filter(|put| backup.whole.is_none_or(|whole| whole.1 < put.1));
        let later = later.map_or(String::new(), |put| format!(", incomplete {}", told(put)));
        format!("{} {}: {stale}{whole}{later}", safe(host.as_bytes()), paths.join(" "))
    }

    fn as_json(&self, (host, paths): &(String, Vec<ByteText>), backup: &Backup) -> Value {
        let of = |put: Option<Put>| {
            put.map(|put| {
                json!({
                    "snapshot_id": put.0.id,
                    "time": layout::timestamp(put.0.unix_ms).to_string(),
                    "stored": layout::timestamp(put.1).to_string(),
                    "age_seconds": self.age(put) / 1000,
                })
            })
        };
        json!({
            "host": host,
            "paths": paths,
            "stale": self.is_stale(backup),
            "whole": of(backup.whole),
            "incomplete": of(backup.incomplete),
        })
    }
}

/// An age in its two largest units.
fn age_text(ms: i64) -> String {
    let minutes = ms / 60_000;
    match (minutes / 1440, minutes / 60 % 24, minutes % 60) {
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// Milliseconds of an age like `26h`.
pub(super) fn parse_age(text: &str) -> Result<i64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: i64 = match text.get(digits.len()..).unwrap_or("") {
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 604_800_000,
        _ => return Err("write a number and one of the units m, h, d and w, as in 26h".to_owned()),
    };
    let number: u32 = digits.parse().map_err(|_| "write a number and a unit, as in 26h".to_owned())?;
    Ok(i64::from(number) * unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::id::SnapshotId;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn ages_have_a_number_and_a_unit() {
        for (text, hours) in [("26h", 26), ("120m", 2), ("2d", 48), ("1w", 168)] {
            assert_eq!(parse_age(text), Ok(hours * HOUR), "{text}");
        }
        for text in ["", "26", "h", "-1h", "1.5h", "26 h", "26hours", "99999999999h"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
        let told = [3 * 60_000, 26 * 60_000 + 3 * HOUR, 50 * HOUR].map(age_text);
        assert_eq!(told, ["3 min", "3 h 26 min", "2 d 2 h"]);
    }

    #[test]
    fn only_what_is_whole_and_put_lately_by_the_stores_clock_is_fresh() {
        // Its own clock says that it is of 1970, or of the future.
        let put = |unix_ms: i64, hours: i64| Some((SnapshotName { unix_ms, id: SnapshotId([7; 16]) }, hours * HOUR));
        let judged = Judged { now: 100 * HOUR, max_age: Some(26 * HOUR) };
        for (whole, incomplete, stale) in [
            (put(0, 80), None, false),
            (put(HOUR * 1000, 73), None, true),
            (put(0, 74), None, false),
            (put(0, 101), None, false),
            (None, put(0, 99), true),
            (put(0, 50), put(0, 99), true),
            (None, None, true),
        ] {
            let backup = Backup { whole, incomplete };
            assert_eq!(judged.is_stale(&backup), stale, "{backup:?}");
            assert!(!Judged { max_age: None, ..judged }.is_stale(&backup));
        }
        let key = ("h".to_owned(), vec![ByteText(b"/a".to_vec())]);
        let text = judged.as_text(&key, &Backup { whole: put(0, 50), incomplete: put(0, 99) });
        assert_eq!(
            text,
            "h /a: stale, whole 2 d 2 h ago (snapshot 07070707), incomplete 1 h 0 min ago (snapshot 07070707)"
        );
    }
}
