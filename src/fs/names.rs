//! The names in the virtual top: of snapshots, hosts, tags and ids.
//!
//! Pure. A name never changes while its snapshot is there, whatever other snapshots come and go: the time is the
//! snapshot's own, and where two share a second the short id is added. No colons (Samba and file managers stumble over
//! them), no leading dots, no slashes.

use std::collections::HashMap;

use super::hash;
use crate::repo::layout::SnapshotName;

/// No name is longer, in bytes: Linux' `NAME_MAX`.
pub(super) const NAME_BYTES_MAX: usize = 255;
/// What is longer is not what programs know a file by.
const ENDING_BYTES_MAX: usize = 16;
/// Hex digits of a short id.
const SHORT_DIGITS: usize = 8;

/// The snapshots of a listing and what they are called.
#[derive(Debug, Default)]
pub struct Names {
    /// The snapshots, oldest first.
    pub snapshots: Vec<SnapshotName>,
    /// The name of each in `snapshots/`.
    pub times: Vec<String>,
    /// The name of each in `ids/`.
    pub ids: Vec<String>,
    /// Stands for the snapshots: another listing has another one.
    pub digest: u64,
    by_second: HashMap<String, Vec<usize>>,
}

impl Names {
    /// Names the snapshots of a listing that is sorted by time.
    #[must_use]
    pub fn new(snapshots: Vec<SnapshotName>) -> Self {
        let mut by_second: HashMap<String, Vec<usize>> = HashMap::new();
        let mut by_short: HashMap<String, usize> = HashMap::new();
        let mut digest = blake3::Hasher::new();
        for (at, name) in snapshots.iter().enumerate() {
            digest.update(&name.unix_ms.to_le_bytes()).update(name.id.as_bytes());
            by_second.entry(second(name)).or_default().push(at);
            *by_short.entry(name.id.short()).or_default() += 1;
        }
        let time = |name: &SnapshotName| match by_second[&second(name)].len() {
            1 => second(name),
            _ => with_id(name),
        };
        let id = |name: &SnapshotName| match by_short[&name.id.short()] {
            1 => name.id.short(),
            _ => name.id.to_string(),
        };
        let (times, ids) = (snapshots.iter().map(time).collect(), snapshots.iter().map(id).collect());
        let digest = hash::number(&digest.finalize());
        Self { snapshots, times, ids, digest, by_second }
    }

    /// Finds a snapshot by its name in `snapshots/`.
    ///
    /// Besides the name that is listed, both forms always work: the second alone means the oldest snapshot of that
    /// second, the second and the short id means that snapshot. So a path that was written down stays good.
    #[must_use]
    pub fn by_time(&self, name: &str) -> Option<usize> {
        if let Some(same) = self.by_second.get(name) {
            return same.first().copied();
        }
        let (second, _) = name.split_at_checked(name.len().checked_sub(SHORT_DIGITS + 1)?)?;
        let same = self.by_second.get(second)?;
        same.iter().copied().find(|at| with_id(&self.snapshots[*at]) == name)
    }

    /// Finds a snapshot by its name in `ids/`: any unambiguous beginning of its id of eight digits or more.
    #[must_use]
    pub fn by_id(&self, name: &str) -> Option<usize> {
        let digits = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
        if name.len() < SHORT_DIGITS || !name.bytes().all(digits) {
            return None;
        }
        let mut fitting = (0..self.snapshots.len()).filter(|at| self.snapshots[*at].id.to_string().starts_with(name));
        fitting.next().filter(|_| fitting.next().is_none())
    }

    /// Returns the place of a snapshot in the listing.
    #[must_use]
    pub fn position(&self, name: SnapshotName) -> Option<usize> {
        self.snapshots.binary_search(&name).ok()
    }
}

/// The time as `2026-11-22_13-58-00`, UTC.
fn second(name: &SnapshotName) -> String {
    let time = jiff::Timestamp::from_millisecond(name.unix_ms).expect("a snapshot's name holds a calendar time");
    time.strftime("%Y-%m-%d_%H-%M-%S").to_string()
}

fn with_id(name: &SnapshotName) -> String {
    format!("{}-{}", second(name), name.id.short())
}

/// Names a version of a file: the time of its snapshot, and what the file's own name ends with.
#[must_use]
pub fn of_version(time: &str, file: &[u8]) -> Vec<u8> {
    [time.as_bytes(), ending(file)].concat()
}

/// Returns the time in the name of a version, if it can be one.
#[must_use]
pub fn time_of_version<'a>(name: &'a [u8], file: &[u8]) -> Option<&'a str> {
    std::str::from_utf8(name.strip_suffix(ending(file))?).ok()
}

/// Returns the last dot of a name and what follows, by which programs know a file; empty where that is nothing, too long,
/// or all of the name.
fn ending(file: &[u8]) -> &[u8] {
    let dot = file.iter().rposition(|b| *b == b'.').filter(|dot| *dot > 0);
    let ending = dot.map_or(&[][..], |dot| &file[dot..]);
    if (2..=ENDING_BYTES_MAX).contains(&ending.len()) { ending } else { &[] }
}

/// Makes a directory's name of a host or a tag.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut name: String = text.chars().map(|c| if matches!(c, '/' | '\0') { '_' } else { c }).collect();
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    if name.is_empty() || name.starts_with('.') {
        let rest = name.strip_prefix('.').unwrap_or_default();
        return format!("_{rest}");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::id::SnapshotId;

    fn snapshot(unix_ms: i64, first: u8, rest: u8) -> SnapshotName {
        let mut id = [first; 16];
        id[4..].fill(rest);
        SnapshotName { unix_ms, id: SnapshotId(id) }
    }

    /// Where two snapshots share a second, their names end with the short id: `2026-11-22_13-58-00-3f2a91c0`.
    #[test]
    fn a_snapshot_is_named_by_its_second_and_by_its_id_where_that_is_shared() {
        let names = Names::new(vec![snapshot(1_795_355_880_000, 1, 1), snapshot(1_795_355_880_900, 2, 2)]);
        assert_eq!(names.times, ["2026-11-22_13-58-00-01010101", "2026-11-22_13-58-00-02020202"]);
        let alone = Names::new(vec![snapshot(1_795_355_880_900, 2, 2)]);
        assert_eq!(alone.times, ["2026-11-22_13-58-00"]);
    }

    /// That form always works, also where it is not listed, and the time alone then means the oldest snapshot of that
    /// second: a path that was written down stays good, whatever other snapshots come and go.
    #[test]
    fn a_name_that_was_good_stays_good_when_others_come_and_go() {
        let (a, b) = (snapshot(1_795_355_880_000, 1, 1), snapshot(1_795_355_880_900, 2, 2));
        let (alone, both) = (Names::new(vec![a]), Names::new(vec![a, b]));
        for name in alone.times.iter().chain(&both.times[..1]) {
            assert_eq!(alone.by_time(name), Some(0), "{name}");
            assert_eq!(both.by_time(name), Some(0), "{name}");
        }
        assert_eq!(both.by_time("2026-11-22_13-58-00-02020202"), Some(1));
        for none in ["2026-11-22_13-58-00-03030303", "2026-11-22_13-58-01", "", "é", "-01010101"] {
            assert_eq!(both.by_time(none), None, "{none}");
        }
    }

    /// In `ids/` a snapshot is named by the first eight digits of its id, by all 32 where eight are ambiguous; any
    /// unambiguous beginning from eight digits on works.
    #[test]
    fn an_id_is_eight_digits_and_all_of_them_where_that_is_ambiguous() {
        let names = Names::new(vec![snapshot(1, 1, 1), snapshot(2, 1, 2), snapshot(3, 3, 3)]);
        assert_eq!(names.ids[0].len(), 32);
        assert_eq!(names.ids[2], "03030303");
        assert_eq!(names.by_id(&names.ids[1]), Some(1));
        assert_eq!(names.by_id("0303030303"), Some(2));
        for none in ["01010101", "0303", "", "zzzzzzzz", "04040404"] {
            assert_eq!(names.by_id(none), None, "{none}");
        }
    }

    #[test]
    fn a_version_is_named_by_its_time_and_the_end_of_its_file() {
        let long = format!("a.{}", "x".repeat(16));
        for (file, end) in [("a.txt", ".txt"), ("b.tar.gz", ".gz"), (".bashrc", ""), ("a.", ""), ("a", ""), (&long, "")]
        {
            let name = of_version("T", file.as_bytes());
            assert_eq!(String::from_utf8_lossy(&name), format!("T{end}"));
            assert_eq!(time_of_version(&name, file.as_bytes()), Some("T"));
        }
        assert_eq!(time_of_version(b"T.doc", b"a.txt"), None);
    }

    /// Slashes and NULs in hosts and tags become `_`, and so does a dot at the beginning.
    #[test]
    fn hosts_and_tags_become_names() {
        for (text, name) in [("a/b", "a_b"), (".x", "_x"), ("..", "_."), ("", "_"), ("a b\0", "a b_"), ("é", "é")] {
            assert_eq!(escape(text), name);
        }
        assert!(escape(&"é".repeat(200)).len() <= 255);
    }
}
