//! The program itself over a kloset in a folder, with key files.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::tree::Source;

/// A kloset in a folder, and key files.
pub(crate) struct Local {
    pub(crate) home: Source,
}

impl Local {
    pub(crate) fn new() -> Local {
        let local = Local { home: Source::new() };
        for (name, byte) in [("full", "ab"), ("writer", "cd"), ("other", "ef")] {
            local.home.file(name, byte.repeat(32));
        }
        local.home.file("source/file", "content");
        local.home.file("phrase", "correct-horse-battery-staple\n");
        local.says("full", &["create"], 0, "created");
        local
    }

    pub(crate) fn run(&self, key: &str, words: &[&str]) -> Output {
        self.command(key, words).output().unwrap()
    }

    pub(crate) fn command(&self, key: &str, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command.args(words).current_dir(self.home.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", self.home.path());
        match key {
            "phrase" => command.env("KLOSET_PASSPHRASE_FILE", self.home.at(key)),
            _ => command.env("KLOSET_KEY_FILE", self.home.at(key)),
        };
        command.env("KLOSET_REPOSITORY", self.home.at("kloset"));
        command
    }

    /// Runs a command that ends well and returns what it printed, line by line as JSON.
    #[track_caller]
    pub(crate) fn json(&self, words: &[&str]) -> Vec<Value> {
        let output = self.run("full", &[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        let lines = output.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    /// Runs a command that ends with `code` and says something; returns all that it said.
    #[track_caller]
    pub(crate) fn says(&self, key: &str, words: &[&str], code: i32, expected: &str) -> String {
        let output = self.run(key, words);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(code), "{words:?}: {said}");
        assert!(said.contains(expected), "{words:?}: {said}");
        said
    }
}
