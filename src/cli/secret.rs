//! Where secrets come from, in one order for all of them; the first that is there wins.
//!
//! A flag naming a file or command, our own environment variable, a systemd credential, the config
//! (value, `_file`, `_command`), a prompt if there is a terminal; for the keys of a bucket see
//! `s3_keys`. Each secret comes with the words that say where it was found. Nothing is taken from
//! the command line itself. It does not know what a secret opens.

use std::fs::File;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;

use crate::store::Secret;

use super::args::GlobalArgs;
use super::config::RepositoryEntry;
use super::env::Environment;
use super::exit::{CliError, Exit};

/// No passphrase or key file is longer; a file that is, is the wrong one.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// What opens a key slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unlock {
    /// A passphrase, without the line's end.
    Passphrase(Secret),
    /// The whole content of a key file.
    KeyFile(Secret),
}

/// Whether a person may be asked, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// Never, as in a mount that systemd starts.
    Never,
    /// To open what exists.
    Once,
    /// To make something new, where a slip of the finger would lock it for ever.
    Twice,
}

/// Where the secret of a new key slot comes from, if nobody is to be asked for it.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct NewSecretArgs {
    /// File that holds the new passphrase.
    #[arg(long, value_name = "FILE", group = "new_secret")]
    pub(crate) new_passphrase_file: Option<PathBuf>,
    /// Command that prints the new passphrase.
    #[arg(long, value_name = "COMMAND", group = "new_secret")]
    pub(crate) new_passphrase_command: Option<String>,
    /// New key file: 64 hex digits.
    #[arg(long, value_name = "FILE", group = "new_secret")]
    pub(crate) new_key_file: Option<PathBuf>,
}

impl NewSecretArgs {
    /// Finds the new secret; asks twice on the terminal if none is named.
    pub(crate) fn find(&self, what: &str) -> Result<Found<Unlock>, CliError> {
        let found = match (&self.new_passphrase_file, &self.new_passphrase_command, &self.new_key_file) {
            (Some(path), ..) => passphrase_file(path, "--new-passphrase-file")?,
            (_, Some(command), _) => passphrase_command(command, "--new-passphrase-command")?,
            (.., Some(path)) => key_file(path, "--new-key-file")?,
            _ if !std::io::stdin().is_terminal() => {
                let ways = "--new-passphrase-file, --new-passphrase-command or --new-key-file";
                return Err(CliError::usage(format!(
                    "the new secret is not said: give {ways}; there is no terminal to ask on"
                )));
            }
            _ => None,
        };
        match found {
            Some(found) => not_empty(found),
            None => not_empty(prompt(&format!("the new key slot of {what}"), false, Ask::Twice)?),
        }
    }
}

/// Where the secret of a second repository comes from: the other options are the first one's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct OtherSecretArgs {
    /// File that holds the passphrase of the other repository.
    #[arg(long, value_name = "FILE", group = "other_secret")]
    pub(crate) other_passphrase_file: Option<PathBuf>,
    /// Command that prints the passphrase of the other repository.
    #[arg(long, value_name = "COMMAND", group = "other_secret")]
    pub(crate) other_passphrase_command: Option<String>,
    /// Key file of the other repository.
    #[arg(long, value_name = "FILE", group = "other_secret")]
    pub(crate) other_key_file: Option<PathBuf>,
}

/// A value and where it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found<T> {
    /// The value.
    pub value: T,
    /// As in `KLOSET_PASSPHRASE` or `config file "...": passphrase_file`.
    pub from: String,
}

/// The places that are searched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    pub(crate) flags: &'a GlobalArgs,
    pub(crate) env: &'a Environment,
    pub(crate) entry: Option<&'a RepositoryEntry>,
    /// If it is the second repository of a command.
    pub(crate) other: Option<&'a OtherSecretArgs>,
}

type Search<T> = Result<Option<Found<T>>, CliError>;

impl Places<'_> {
    /// Finds what opens the kloset; `what` names it in the prompt.
    pub(crate) fn unlock(&self, what: &str, ask: Ask) -> Result<Found<Unlock>, CliError> {
        for search in [Self::of_flags, Self::of_environment, Self::of_credentials, Self::of_config] {
            if let Some(found) = search(self)? {
                return not_empty(found);
            }
        }
        not_empty(prompt(what, self.other.is_some(), ask)?)
    }

    fn of_flags(&self) -> Search<Unlock> {
        let (file, command, key) = match self.other {
            None => (&self.flags.passphrase_file, &self.flags.passphrase_command, &self.flags.key_file),
            Some(other) => (&other.other_passphrase_file, &other.other_passphrase_command, &other.other_key_file),
        };
        let flag = |name: &str| format!("--{}{name}", if self.other.is_some() { "other-" } else { "" });
        if let Some(path) = file {
            return passphrase_file(path, &flag("passphrase-file"));
        }
        if let Some(command) = command {
            return passphrase_command(command, &flag("passphrase-command"));
        }
        key.as_deref().map_or(Ok(None), |path| key_file(path, &flag("key-file")))
    }

    fn of_environment(&self) -> Search<Unlock> {
        let variable = |name: &str| format!("KLOSET_{}{name}", if self.other.is_some() { "OTHER_" } else { "" });
        let [passphrase, file, command, key] =
            ["PASSPHRASE", "PASSPHRASE_FILE", "PASSPHRASE_COMMAND", "KEY_FILE"].map(variable);
        if let Some(secret) = self.env.secret(&passphrase) {
            return found(Unlock::Passphrase(secret), &passphrase);
        }
        if let Some(path) = self.env.path(&file) {
            return passphrase_file(&path, &file);
        }
        if let Some(text) = self.env.text(&command) {
            return passphrase_command(text, &command);
        }
        self.env.path(&key).map_or(Ok(None), |path| key_file(&path, &key))
    }

    fn of_credentials(&self) -> Search<Unlock> {
        if let Some(path) = self.credential("passphrase", self.other.is_some()) {
            return passphrase_file(&path, &format!("systemd credential {path:?}"));
        }
        let path = self.credential("key_file", self.other.is_some());
        path.map_or(Ok(None), |path| key_file(&path, &format!("systemd credential {path:?}")))
    }

    fn of_config(&self) -> Search<Unlock> {
        if let Some(found) = self.config_value("passphrase")? {
            let Found { value, from } = found;
            return Ok(Some(Found { value: Unlock::Passphrase(value), from }));
        }
        let Some(entry) = self.entry else {
            return Ok(None);
        };
        let path = entry.path("key_file");
        path.map_or(Ok(None), |path| key_file(&path, &origin(entry, "key_file")))
    }

    /// A secret from a credential, else from the config.
    pub(super) fn own(&self, key: &str) -> Search<Secret> {
        match self.credential(key, false) {
            Some(path) => {
                let from = format!("systemd credential {path:?}");
                Ok(Some(Found { value: line(read(&path, &from)?), from }))
            }
            None => self.config_value(key),
        }
    }

    /// Where [`Places::own`] would find a secret; nothing is read.
    pub(super) fn origin_of(&self, key: &str) -> Option<String> {
        if let Some(path) = self.credential(key, false) {
            return Some(format!("systemd credential {path:?}"));
        }
        let entry = self.entry?;
        let keys = [key.to_owned(), format!("{key}_file"), format!("{key}_command")];
        keys.iter().find(|key| entry.secret(key).is_some()).map(|key| origin(entry, key))
    }

    /// A value of the config, or what its `_file` or `_command` gives.
    fn config_value(&self, key: &str) -> Search<Secret> {
        let Some(entry) = self.entry else {
            return Ok(None);
        };
        if let Some(secret) = entry.secret(key) {
            return Ok(Some(Found { value: secret.clone(), from: origin(entry, key) }));
        }
        let file_key = format!("{key}_file");
        if let Some(path) = entry.path(&file_key) {
            let from = origin(entry, &file_key);
            return Ok(Some(Found { value: line(read(&path, &from)?), from }));
        }
        let command_key = format!("{key}_command");
        let Some(command) = entry.text(&command_key) else {
            return Ok(None);
        };
        let from = origin(entry, &command_key);
        Ok(Some(Found { value: line(run(command, &from)?), from }))
    }

    /// File of a systemd credential: for this repository, else for the program, by another name if it is for the other one.
    fn credential(&self, key: &str, is_other: bool) -> Option<PathBuf> {
        let folder = self.env.absolute_path("CREDENTIALS_DIRECTORY")?;
        let own = self.entry.map(|entry| folder.join(format!("{}.{key}", entry.name)));
        let shared = folder.join(format!("kloset-mount.{}{key}", if is_other { "other_" } else { "" }));
        own.into_iter().chain([shared]).find(|path| path.exists())
    }
}

fn origin(entry: &RepositoryEntry, key: &str) -> String {
    format!("config file {:?}: [repositories.{}]: {key}", entry.file, entry.name)
}

fn found<T>(value: T, from: &str) -> Search<T> {
    Ok(Some(Found { value, from: from.to_owned() }))
}

fn passphrase_file(path: &Path, from: &str) -> Search<Unlock> {
    found(Unlock::Passphrase(line(read(path, from)?)), from)
}

fn passphrase_command(command: &str, from: &str) -> Search<Unlock> {
    found(Unlock::Passphrase(line(run(command, from)?)), from)
}

fn key_file(path: &Path, from: &str) -> Search<Unlock> {
    found(Unlock::KeyFile(read(path, from)?), from)
}

fn not_empty(found: Found<Unlock>) -> Result<Found<Unlock>, CliError> {
    let (Unlock::Passphrase(secret) | Unlock::KeyFile(secret)) = &found.value;
    match secret.is_empty() {
        false => Ok(found),
        true => Err(CliError::usage(format!("{}: the passphrase or key is empty", found.from))),
    }
}

fn read(path: &Path, from: &str) -> Result<Secret, CliError> {
    let failed = |error| CliError::usage(format!("{from}: reading {path:?}: {error}"));
    let file = File::open(path).map_err(failed)?;
    bounded(file, from)
}

fn run(command: &str, from: &str) -> Result<Secret, CliError> {
    let failed = |error| CliError::usage(format!("{from}: running {command:?}: {error}"));
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = shell.spawn().map_err(failed)?;
    let secret = child.stdout.take().map(|stdout| bounded(stdout, from)).transpose();
    let status = child.wait().map_err(failed)?;
    if !status.success() {
        return Err(CliError::usage(format!("{from}: {command:?} failed: {status}")));
    }
    Ok(secret?.unwrap_or_else(|| Secret::new(Vec::new())))
}

fn bounded(from_where: impl Read, from: &str) -> Result<Secret, CliError> {
    let mut content = Vec::new();
    let read = from_where.take(SECRET_BYTES_MAX + 1).read_to_end(&mut content);
    let secret = Secret::new(content);
    read.map_err(|error| CliError::usage(format!("{from}: {error}")))?;
    if secret.bytes().len() as u64 > SECRET_BYTES_MAX {
        return Err(CliError::usage(format!("{from}: it is longer than 64 KiB: this is no secret")));
    }
    Ok(secret)
}

/// Without the line's end that editors and `echo` add.
pub(crate) fn line(secret: Secret) -> Secret {
    let text = secret.bytes();
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let text = text.strip_suffix(b"\r").unwrap_or(text);
    if text.len() == secret.bytes().len() { secret } else { Secret::new(text.to_vec()) }
}

fn prompt(what: &str, is_other: bool, ask: Ask) -> Result<Found<Unlock>, CliError> {
    let (flag, variable) = if is_other { ("other-", "OTHER_") } else { ("", "") };
    if ask == Ask::Never || !std::io::stdin().is_terminal() {
        return Err(CliError::new(
            Exit::WrongPassphrase,
            format!(
                "there is no passphrase for {what}: give --{flag}passphrase-file, KLOSET_{variable}PASSPHRASE, a systemd \
                 credential or passphrase_file in the config; there is no terminal to ask on"
            ),
        ));
    }
    let ask_once = |words: String| {
        let failed = |error| CliError::failed(format!("asking for the passphrase: {error}"));
        rpassword::prompt_password(words).map(Secret::from).map_err(failed)
    };
    let secret = ask_once(format!("passphrase for {what}: "))?;
    if ask == Ask::Twice && ask_once("the same again: ".to_owned())? != secret {
        return Err(CliError::usage("the two passphrases differ: nothing was done"));
    }
    Ok(Found { value: Unlock::Passphrase(secret), from: "prompt".to_owned() })
}

#[cfg(test)]
#[path = "secret_tests.rs"]
mod tests;
