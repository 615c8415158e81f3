//! What the last backup did, as a file for Prometheus' node_exporter (its textfile collector).
//!
//! Promises that a reader finds the old file or the new one, never a part; that the file is written however a backup
//! ended, unless it was killed; and that the times of the last success and the last snapshot are taken over from the old
//! file. It holds names of host and repository and no secrets. It does not know who reads it.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::exit::{CliError, Exit};
use crate::backup::{BackupReport, Outcome};
use crate::store::StoreCounts;

/// The most that is read of the old file.
const FILE_BYTES_MAX: u64 = 1 << 20;
const SUCCESS: &str = "kloset_backup_last_success_timestamp_seconds";
const SNAPSHOT: &str = "kloset_backup_last_snapshot_timestamp_seconds";

/// How a backup ended.
pub(super) struct Run<'a> {
    /// The host it is of.
    pub(super) host: &'a str,
    /// The repository as people call it.
    pub(super) repository: &'a str,
    /// When it began and ended, milliseconds since 1970.
    pub(super) begun_ms: i64,
    pub(super) ended_ms: i64,
    pub(super) exit: Exit,
    /// What it did, if it came that far.
    pub(super) report: Option<(&'a BackupReport, StoreCounts)>,
}

/// Says beforehand what will not work: that the folder is not there.
pub(super) fn check(file: &Path) -> Result<(), CliError> {
    let folder = folder(file);
    match folder.is_dir() && file.file_name().is_some() {
        true => Ok(()),
        false => Err(CliError::usage(format!("--prometheus {file:?}: {folder:?} is no folder"))),
    }
}

/// Replaces the file.
pub(super) fn write(file: &Path, run: &Run<'_>) -> Result<(), CliError> {
    let old = read(file).unwrap_or_default(); // what cannot be read is not taken over
    replace(file, &text(&old, run)).map_err(|error| CliError::failed(format!("writing {file:?}: {error}")))
}

fn read(file: &Path) -> io::Result<String> {
    let mut old = String::new();
    fs::File::open(file)?.take(FILE_BYTES_MAX).read_to_string(&mut old)?;
    Ok(old)
}

/// Writes beside the file, under a name that node_exporter passes over, and puts that in its place.
fn replace(file: &Path, text: &str) -> io::Result<()> {
    let mut new = file.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(new);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        // For whoever node_exporter runs as, whatever the umask.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        file.sync_all()
    })();
    let put = written.and_then(|()| fs::rename(&new, file)).and_then(|()| fs::File::open(folder(file))?.sync_all());
    if put.is_err() {
        let _ = fs::remove_file(&new); // the first failure is told
    }
    put
}

fn folder(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns the new text.
fn text(old: &str, run: &Run<'_>) -> String {
    let labels = format!("{{host=\"{}\",repository=\"{}\"}}", escape(run.host), escape(run.repository));
    let mut metrics = Metrics { labels, text: String::new() };
    let (begun, ended) = (seconds(run.begun_ms), seconds(run.ended_ms));
    let is_success = run.exit == Exit::Done;
    let made = run.report.is_some_and(|(report, _)| report.outcome == Outcome::Saved);
    metrics.add("kloset_backup_success", "1 if the last backup ended well and lacks nothing.", u8::from(is_success));
    metrics.add("kloset_backup_exit_code", "Exit code of the last backup.", run.exit.code());
    metrics.add("kloset_backup_start_timestamp_seconds", "When the last backup began.", &begun);
    metrics.add("kloset_backup_end_timestamp_seconds", "When the last backup ended.", &ended);
    let kept = |name: &str, is_now: bool| if is_now { Some(ended.clone()) } else { metrics.value_in(old, name) };
    let (success, snapshot) = (kept(SUCCESS, is_success), kept(SNAPSHOT, made));
    if let Some(at) = success {
        metrics.add(SUCCESS, "When a backup ended well and lacked nothing.", at);
    }
    if let Some(at) = snapshot {
        metrics.add(SNAPSHOT, "When a snapshot was made, perhaps an incomplete one.", at);
    }
    if let Some((report, counts)) = &run.report {
        metrics.add_report(report, counts);
    }
    metrics.text
}

struct Metrics {
    labels: String,
    text: String,
}

impl Metrics {
    /// Adds a gauge. All are of the last run, hence no counters.
    fn add(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        let labels = &self.labels;
        let lines = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}");
        lines.expect("a string takes everything");
    }

    fn add_report(&mut self, report: &BackupReport, counts: &StoreCounts) {
        let (manifest, summary) = (&report.manifest, &report.manifest.summary);
        let unreadable = manifest.errors_total - report.vanished - report.changed;
        self.add("kloset_backup_duration_seconds", "How long it took.", report.duration.as_secs_f64());
        for (name, help, value) in [
            ("files", "Files in the source.", summary.files),
            ("files_new", "Files that the snapshot before did not have.", summary.files_new),
            ("files_changed", "Files that differ from the snapshot before.", summary.files_changed),
            ("files_unmodified", "Files taken over unread.", summary.files_unmodified),
            ("directories", "Directories in the source.", summary.directories),
            ("source_bytes", "Bytes of all files in the source.", summary.bytes),
            ("new_bytes", "Bytes of content that the kloset did not have.", summary.bytes_new),
            ("stored_bytes", "Bytes that were put into the store.", summary.bytes_stored),
            ("unreadable_paths", "Paths that could not be read.", unreadable),
            ("vanished_paths", "Paths that went away meanwhile.", report.vanished),
            ("changed_files", "Files that changed whenever they were read.", report.changed),
            ("requests", "Requests to the store.", counts.requests()),
            ("retries", "Requests to the store that failed and were sent again.", counts.http_retries),
            ("slow_downs", "Requests that the store answered with the wish for fewer.", counts.slow_downs),
        ] {
            self.add(&format!("kloset_backup_{name}"), help, value);
        }
    }

    /// Finds the value of a metric with the same labels in a text of ours.
    fn value_in(&self, old: &str, name: &str) -> Option<String> {
        let value = |line: &str| Some(line.strip_prefix(name)?.strip_prefix(&*self.labels)?.trim().to_owned());
        old.lines().find_map(value).filter(|value| value.parse::<f64>().is_ok_and(f64::is_finite))
    }
}

fn seconds(unix_ms: i64) -> String {
    format!("{}.{:03}", unix_ms.div_euclid(1000), unix_ms.rem_euclid(1000))
}

/// A value of a label, as the format wants it.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(exit: Exit, ended_ms: i64) -> Run<'static> {
        Run { host: "a\"b\\c\nd", repository: "@s3", begun_ms: 1_000, ended_ms, exit, report: None }
    }

    #[test]
    fn a_failure_keeps_the_time_of_the_last_success() {
        let labels = r#"{host="a\"b\\c\nd",repository="@s3"}"#;
        let has = |text: &str, line: &str| text.lines().any(|l| l == line.replace('$', labels));
        let never = text("", &run(Exit::Store, 2_500));
        assert!(has(&never, "kloset_backup_success$ 0") && has(&never, "kloset_backup_exit_code$ 13"), "{never}");
        assert!(has(&never, "kloset_backup_end_timestamp_seconds$ 2.500") && !never.contains(SUCCESS), "{never}");
        let good = text(&never, &run(Exit::Done, 7_001));
        let at = "kloset_backup_last_success_timestamp_seconds$ 7.001";
        assert!(has(&good, "kloset_backup_success$ 1") && has(&good, at), "{good}");
        let bad = text(&good, &run(Exit::Partial, 9_000));
        assert!(has(&bad, "kloset_backup_success$ 0") && has(&bad, at), "{bad}");
        let other = text(&good, &Run { repository: "@other", ..run(Exit::Error, 9_000) });
        assert!(!other.contains(SUCCESS), "{other}");
        let damaged = text(&good.replace("7.001", "NaN"), &run(Exit::Error, 9_000));
        assert!(!damaged.contains(SUCCESS), "{damaged}");
    }

    #[test]
    fn every_metric_is_announced_once_and_has_its_unit() {
        let text = text("", &run(Exit::Done, 7_001));
        let names: Vec<&str> =
            text.lines().filter(|l| !l.starts_with('#')).map(|l| l.split('{').next().unwrap()).collect();
        for name in &names {
            assert_eq!(text.matches(&format!("# TYPE {name} gauge\n")).count(), 1, "{text}");
            assert_eq!(text.matches(&format!("# HELP {name} ")).count(), 1, "{text}");
        }
        assert!(text.ends_with('\n') && names.len() == 5, "{text}");
    }
}
