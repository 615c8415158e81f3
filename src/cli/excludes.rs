//! What a backup leaves out, from the words of the command line; and `--explain`, which says why.

use std::path::PathBuf;

use clap::Args;

use super::exit::{CliError, Exit};
use super::names::safe;
use super::output::Output;
use super::size::parse_size;
use crate::backup::{BackupOptions, Excludes, Explanation, Marker, Reason, Rule, explain};
use crate::monitor::Monitor;
use crate::repo::snapshot::ByteText;

/// Options of what is left out.
#[derive(Debug, Default, Args)]
pub(crate) struct ExcludeArgs {
    /// Leaves out what matches, in the syntax of .gitignore; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    pub exclude: Vec<String>,
    /// File of patterns to leave out, in the syntax of .gitignore; may be repeated.
    #[arg(long, value_name = "FILE")]
    pub exclude_file: Vec<PathBuf>,
    /// Leaves out what is in folders marked as caches by a CACHEDIR.TAG, but for that file.
    #[arg(long)]
    pub exclude_caches: bool,
    /// Leaves out what is in folders with a file of that name, but for that file; where HEADER is given, the file has
    /// to begin with it. May be repeated.
    #[arg(long, value_name = "NAME[:HEADER]", value_parser = parse_marker)]
    pub exclude_if_present: Vec<Marker>,
    /// Leaves out files that are larger.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub exclude_larger_than: Option<u64>,
    /// Leaves out what the .gitignore files in the folders say.
    #[arg(long)]
    pub gitignore: bool,
    /// Passes over the .klosetignore files in the folders.
    #[arg(long)]
    pub no_klosetignore: bool,
    /// Tells why PATH would be taken or left out, and backs nothing up; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub explain: Vec<PathBuf>,
}

impl ExcludeArgs {
    /// Reads the files of patterns.
    pub(super) fn excludes(&self) -> Result<Excludes, CliError> {
        let given = self.exclude.iter().map(|text| Rule { text: text.clone(), from: "--exclude".to_owned() });
        let mut rules: Vec<Rule> = given.collect();
        for file in &self.exclude_file {
            let bad = |error| CliError::usage(format!("exclude file \"{}\": {error}", file.display()));
            for (number, text) in (1..).zip(std::fs::read_to_string(file).map_err(bad)?.lines()) {
                rules.push(Rule { text: text.to_owned(), from: format!("{}:{number}", file.display()) });
            }
        }
        let mut markers = self.exclude_if_present.clone();
        markers.extend(self.exclude_caches.then(Marker::cache));
        Ok(Excludes {
            rules,
            ignore_files: !self.no_klosetignore,
            git_ignore_files: self.gitignore,
            markers,
            larger_than: self.exclude_larger_than,
        })
    }
}

fn parse_marker(text: &str) -> Result<Marker, String> {
    let (name, header) = text.split_once(':').unwrap_or((text, ""));
    if name.is_empty() || name.contains('/') {
        return Err("write the name of a file, as in .nobackup".to_owned());
    }
    Ok(Marker { name: name.into(), header: header.into() })
}

/// Tells of each path why it would be taken or left out.
pub(super) fn tell(paths: &[PathBuf], options: &BackupOptions, out: &mut Output) -> Result<Exit, CliError> {
    for path in paths {
        let monitor = Monitor::default();
        let explained = explain(options, path, &monitor).map_err(|error| CliError::usage(error.to_string()))?;
        for (path, message) in monitor.take_troubles() {
            out.warn(format_args!("\"{}\": {message}", safe(&path)));
        }
        if out.is_json() { out.json(&as_json(&explained))? } else { out.line(as_text(&explained))? }
    }
    Ok(Exit::Done)
}

fn as_json(explained: &Explanation) -> serde_json::Value {
    let reason = match &explained.reason {
        None => serde_json::Value::Null,
        Some(Reason::Rule(rule)) => serde_json::json!({"kind": "rule", "rule": rule.text, "from": rule.from}),
        Some(Reason::Marker(name)) => serde_json::json!({"kind": "marker", "name": ByteText(name.clone())}),
        Some(Reason::LargerThan(bytes)) => serde_json::json!({"kind": "larger_than", "bytes": bytes}),
        Some(Reason::OtherFileSystem) => serde_json::json!({"kind": "other_file_system"}),
        Some(Reason::Kloset) => serde_json::json!({"kind": "kloset"}),
        Some(Reason::BehindLink) => serde_json::json!({"kind": "behind_link"}),
        Some(Reason::NotAsked) => serde_json::json!({"kind": "not_asked"}),
    };
    serde_json::json!({
        "message_type": "explanation",
        "path": ByteText(explained.path.clone()),
        "taken": explained.taken,
        "decided_at": ByteText(explained.decided_at.clone()),
        "reason": reason,
    })
}

fn as_text(explained: &Explanation) -> String {
    let verdict = if explained.taken { "taken" } else { "left out" };
    let with = match explained.decided_at == explained.path {
        true => String::new(),
        false => format!(" with \"{}\"", safe(&explained.decided_at)),
    };
    let reason = match &explained.reason {
        None => "no rule fits".to_owned(),
        Some(Reason::Rule(rule)) => format!("rule \"{}\" of {}", rule.text, safe(rule.from.as_bytes())),
        Some(Reason::Marker(name)) => format!("\"{}\" is beside it", safe(name)),
        Some(Reason::LargerThan(bytes)) => format!("it is larger than {bytes} bytes"),
        Some(Reason::OtherFileSystem) => "it is on another filesystem".to_owned(),
        Some(Reason::Kloset) => "it is the kloset's own folder".to_owned(),
        Some(Reason::BehindLink) => "it is a link, which is not followed".to_owned(),
        Some(Reason::NotAsked) => "it is below none of the paths given".to_owned(),
    };
    format!("\"{}\": {verdict}{with}: {reason}", safe(&explained.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_have_a_name_and_perhaps_a_header() {
        assert_eq!(parse_marker(".nobackup"), Ok(Marker { name: b".nobackup".into(), header: Vec::new() }));
        assert_eq!(parse_marker("TAG:Sign: x"), Ok(Marker { name: b"TAG".into(), header: b"Sign: x".into() }));
        assert!(parse_marker("").is_err() && parse_marker("a/b").is_err() && parse_marker(":x").is_err());
    }

    #[test]
    fn what_decides_is_said_in_a_sentence() {
        let rule = Reason::Rule(Rule { text: "*.o".into(), from: "/x/.klosetignore:3".into() });
        for (taken, at, reason, expected) in [
            (false, "/x/a.o", Some(rule.clone()), "\"/x/a.o\": left out: rule \"*.o\" of /x/.klosetignore:3"),
            (false, "/x", Some(rule), "\"/x/a.o\": left out with \"/x\": rule \"*.o\" of /x/.klosetignore:3"),
            (true, "/x/a.o", None, "\"/x/a.o\": taken: no rule fits"),
        ] {
            let explained = Explanation { path: b"/x/a.o".into(), taken, decided_at: at.into(), reason };
            assert_eq!(as_text(&explained), expected);
        }
    }
}
