//! `store doctor`: what a store can do, line by line, and what to do about it.
//!
//! Promises exit code 0 where everything holds that a kloset needs (put, get, list), else 13, and that nothing is written
//! into the config unless asked for. What is tried is in `store/doctor.rs`.

use serde_json::{Map, json};

use crate::env::Env;
use crate::store::doctor::{Report, Verdict, examine};

use super::args::Global;
use super::exit::{CliError, Exit};
use super::output::Output;
use super::process::runtime;
use super::repository::ResolvedRepository;

/// Runs `store doctor`.
pub(crate) fn run(name: Option<&str>, write: bool, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let repository = match name {
        Some(name) => ResolvedRepository::named(&format!("@{name}"), global)?,
        None => ResolvedRepository::resolve(global)?,
    };
    if write && repository.name.is_none() {
        return Err(CliError::usage("--write takes a repository of the config: name one"));
    }
    let examined = runtime()?.block_on(examine(&repository.location, &repository.s3, &Env::system()));
    let mut report = examined.map_err(|error| repository.explain(error.into()))?;
    for finding in &mut report.findings {
        finding.text = repository.explain(CliError::failed(std::mem::take(&mut finding.text))).message;
    }
    let written = match write && !report.settings.is_empty() {
        true => repository.write_settings(&report.settings)?,
        false => None,
    };
    let exit = if report.holds() { Exit::Done } else { Exit::Store };
    if out.is_json() {
        let mut value = as_json(&report);
        value["location"] = json!(repository.location.to_string());
        value["written"] = json!(written.map(|file| file.to_string_lossy().into_owned()));
        out.json(&value)?;
        return Ok(exit);
    }
    tell(&report, &repository, out)?;
    if let Some(file) = written {
        let settings: Vec<_> = report.settings.iter().map(|(key, value)| format!("{key} = {value}")).collect();
        out.line(format_args!("written to {}: {}", file.display(), settings.join(", ")))?;
    }
    Ok(exit)
}

fn tell(report: &Report, repository: &ResolvedRepository, out: &mut Output) -> Result<(), CliError> {
    let width = report.findings.iter().map(|finding| finding.what.len()).max().unwrap_or(0);
    for finding in &report.findings {
        let verdict = word(finding.verdict);
        out.line(format_args!("{verdict:4}  {:width$}  {}", finding.what, finding.text))?;
    }
    for name in &report.left {
        out.line(format_args!("left there: {name}"))?;
    }
    let label = repository.label();
    match report.holds() {
        true => out.line(format_args!("{label}: everything that a kloset needs works ({} requests)", report.requests)),
        false => out.line(format_args!("{label}: a kloset does not work here as it is ({} requests)", report.requests)),
    }
}

fn as_json(report: &Report) -> serde_json::Value {
    let finding = |finding: &crate::store::doctor::Finding| json!({"check": finding.what, "verdict": word(finding.verdict), "message": finding.text});
    let settings: Map<_, _> = report.settings.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    json!({
        "works": report.holds(),
        "findings": report.findings.iter().map(finding).collect::<Vec<_>>(),
        "settings": settings,
        "left": report.left,
        "requests": report.requests,
    })
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Note => "note",
        Verdict::Fail => "fail",
    }
}
