//! The one place that prints: results to standard output, all else to standard error.
//!
//! Promises that with `--json` standard output holds JSON only, whether or not it is a terminal,
//! and that a failure is told exactly once. It does not decide what is worth telling.

use std::io::{self, Write};

use serde::Serialize;

use super::exit::CliError;

/// Where a command writes.
pub(crate) struct Output {
    json: bool,
    quiet: bool,
    stdout: Box<dyn Write + Send>,
    stderr: Box<dyn Write + Send>,
}

impl Output {
    /// Writes to the process's own standard output and error.
    pub(crate) fn of_process(json: bool, quiet: bool) -> Output {
        Output::new(json, quiet, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    /// Writes to the given places.
    pub(crate) fn new(json: bool, quiet: bool, stdout: Box<dyn Write + Send>, stderr: Box<dyn Write + Send>) -> Output {
        Output { json, quiet, stdout, stderr }
    }

    /// True where the result is asked for as JSON.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// True where progress and notes are not wanted.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Standard output, for results that are bytes.
    pub(crate) fn stdout(&mut self) -> &mut (dyn Write + Send) {
        &mut self.stdout
    }

    /// One line of the result for people.
    pub(crate) fn line(&mut self, text: impl std::fmt::Display) -> Result<(), CliError> {
        Ok(writeln!(self.stdout, "{text}")?)
    }

    /// One line of the result as JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> Result<(), CliError> {
        let text = serde_json::to_string(value).map_err(|error| CliError::failed(format!("writing JSON: {error}")))?;
        self.line(text)
    }

    /// Tells people something that is no result; silent with `--quiet`.
    pub(crate) fn note(&mut self, text: impl std::fmt::Display) {
        if !self.quiet {
            self.message(text);
        }
    }

    /// Warns people, also with `--quiet`.
    pub(crate) fn warn(&mut self, text: impl std::fmt::Display) {
        if self.json {
            let text = text.to_string();
            self.message(serde_json::json!({"message_type": "warning", "message": text}));
        } else {
            self.message(format_args!("warning: {text}"));
        }
    }

    /// Tells something that is no result as one JSON value on standard error.
    pub(crate) fn warn_json(&mut self, value: &serde_json::Value) {
        self.message(value);
    }

    /// Tells the failure that ends the program.
    pub(crate) fn fail(&mut self, error: &CliError) {
        if self.json {
            self.message(serde_json::json!({
                "message_type": "exit_error",
                "code": error.exit.code(),
                "message": error.message,
            }));
        } else {
            self.message(format_args!("kloset-mount: {error}"));
        }
    }

    /// Sends on what is buffered.
    pub(crate) fn flush(&mut self) -> Result<(), CliError> {
        Ok(self.stdout.flush()?)
    }

    fn message(&mut self, text: impl std::fmt::Display) {
        // Nobody is left to be told that nobody reads standard error.
        let _ = writeln!(self.stderr, "{text}");
    }
}
