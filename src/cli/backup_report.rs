//! What a backup tells when it is done: for people, and as JSON in restic's shape, so that what reads restic's reads ours.

use indicatif::HumanBytes;

use super::asked;
use super::exit::{CliError, Exit};
use super::lacks;
use super::names::safe;
use super::output::Output;
use crate::backup::{BackupReport, Outcome};
use crate::monitor::Monitor;
use crate::repo::snapshot::ByteText;
use crate::store::StoreCounts;

/// Tells what went wrong since the last call.
pub(super) fn tell_troubles(monitor: &Monitor, out: &mut Output) {
    for (path, message) in monitor.take_troubles() {
        if out.is_json() {
            let (item, error) = (ByteText(path), serde_json::json!({"message": message}));
            let line = serde_json::json!({"message_type": "error", "error": error, "during": "archival", "item": item});
            out.warn_json(&line);
        } else {
            out.warn(format_args!("\"{}\": {message}", safe(&path)));
        }
    }
}

/// Tells what was backed up.
pub(super) fn tell(report: &BackupReport, counts: &StoreCounts, out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        out.json(&as_json(report, counts))?;
    } else {
        out.line(as_text(report))?;
        out.note(cost(report, counts));
        if report.resumed > 0 {
            out.note(format!("{} of the files had been read by a backup that was interrupted", report.resumed));
        }
    }
    if report.changed > 0 {
        let what = "files changed while they were read, each time: what was read last of them may be a mixture";
        out.warn(format_args!("{} {what}", report.changed));
    }
    if report.manifest.incomplete {
        let unreadable = report.manifest.errors_total - report.vanished - report.changed;
        let message = format!("incomplete: {unreadable} paths could not be read (exit code 3)");
        if out.is_json() {
            let code = Exit::Partial.code();
            out.warn_json(&serde_json::json!({"message_type": "exit_error", "code": code, "message": message}));
        } else {
            out.warn(message);
        }
    }
    Ok(())
}

fn as_json(report: &BackupReport, counts: &StoreCounts) -> serde_json::Value {
    let (manifest, summary) = (&report.manifest, &report.manifest.summary);
    let mut value = serde_json::json!({
        "message_type": "summary",
        "files_new": summary.files_new,
        "files_changed": summary.files_changed,
        "files_unmodified": summary.files_unmodified,
        "files_resumed": report.resumed,
        "data_blobs": summary.chunks_new,
        "data_added": summary.bytes_new,
        "data_added_packed": summary.bytes_stored,
        "total_files_processed": summary.files,
        "total_dirs_processed": summary.directories,
        "total_bytes_processed": summary.bytes,
        "total_duration": seconds(report),
        "backup_start": manifest.time,
        "backup_end": manifest.end,
        "time": manifest.time,
        "parent": manifest.parent,
        "incomplete": manifest.incomplete,
        "errors": manifest.errors_total,
        "error_list": lacks::list(manifest, b""),
        "vanished": report.vanished,
        "changed_while_read": report.changed,
    });
    asked::add(&mut value, counts);
    match report.outcome {
        Outcome::Saved => value["snapshot_id"] = report.name.id.to_string().into(),
        Outcome::Unchanged => value["unchanged"] = true.into(),
        Outcome::DryRun => value["dry_run"] = true.into(),
    }
    value
}

fn as_text(report: &BackupReport) -> String {
    let summary = &report.manifest.summary;
    let (begin, stored) = match report.outcome {
        Outcome::Saved => (format!("snapshot {}", report.name.id.short()), "stored"),
        Outcome::Unchanged => ("no snapshot, nothing changed".to_owned(), "stored"),
        Outcome::DryRun => ("nothing was stored".to_owned(), "would store"),
    };
    format!(
        "{begin}: {} files ({} new, {} changed, {} unmodified), {}; {stored} {}",
        summary.files,
        summary.files_new,
        summary.files_changed,
        summary.files_unmodified,
        HumanBytes(summary.bytes),
        HumanBytes(summary.bytes_stored),
    )
}

/// What it cost, beyond what is stored.
fn cost(report: &BackupReport, counts: &StoreCounts) -> String {
    let new = HumanBytes(report.manifest.summary.bytes_new);
    let again = asked::again(counts);
    format!("{new} of content were new; {} requests{again} in {:.1} s", counts.requests(), seconds(report))
}

fn seconds(report: &BackupReport) -> f64 {
    report.duration.as_secs_f64()
}
