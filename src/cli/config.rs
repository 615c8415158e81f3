//! The config: which files there are, what a repository's entry means.
//!
//! The user's file first, then the machine's; a file that is named (`--config`, `KLOSET_CONFIG`)
//! is the only one. It does not know where secrets come from besides.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::store::{Secret, StoreLocation};

use super::args::Global;
use super::config_file::{ConfigFile, LoadError};
use super::env::Environment;
use super::exit::CliError;
use super::retention::NamedPolicy;

/// Everything that may be said about a repository.
pub(crate) const KEYS: [&str; 34] = [
    "location",
    "access_key",
    "access_key_file",
    "access_key_command",
    "secret_access_key",
    "secret_access_key_file",
    "secret_access_key_command",
    "session_token",
    "session_token_file",
    "session_token_command",
    "profile",
    "region",
    "use_tls",
    "tls_verify",
    "ca_file",
    "client_cert_file",
    "client_key_file",
    "proxy",
    "addressing",
    "endpoint_path",
    "storage_class",
    "sse",
    "sse_kms_key_id",
    "sse_customer_key",
    "sse_customer_key_file",
    "sse_customer_key_command",
    "allow_anonymous",
    "limit_upload",
    "limit_download",
    "retry_budget",
    "passphrase",
    "passphrase_file",
    "passphrase_command",
    "key_file",
];

/// True for keys whose value is never shown.
pub(crate) fn is_secret(key: &str) -> bool {
    ["secret_access_key", "session_token", "sse_customer_key", "passphrase"].contains(&key)
}

/// True for keys that are true or false.
pub(crate) fn is_flag(key: &str) -> bool {
    ["use_tls", "tls_verify", "allow_anonymous"].contains(&key)
}

/// The machine's config.
const SYSTEM_FILE: &str = "/etc/kloset-mount/config.toml";

/// What the config says about one repository.
#[derive(Clone, Debug)]
pub(crate) struct RepositoryEntry {
    /// Its name.
    pub name: String,
    /// The file that says so.
    pub file: PathBuf,
    pub(crate) values: BTreeMap<String, Secret>,
}

impl RepositoryEntry {
    /// A value as text.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.values.get(key)?.text().filter(|text| !text.is_empty())
    }

    /// A value as a secret.
    pub(crate) fn secret(&self, key: &str) -> Option<&Secret> {
        self.values.get(key).filter(|secret| !secret.is_empty())
    }

    /// A value as true or false.
    pub(crate) fn flag(&self, key: &str) -> Result<Option<bool>, CliError> {
        match self.text(key) {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(self.wrong(key, &format!("{other:?} is neither true nor false"))),
        }
    }

    /// A value as a path; a relative one is relative to the config file.
    pub(crate) fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(|text| self.folder().join(text))
    }

    /// Where the repository is.
    pub(crate) fn location(&self) -> Result<StoreLocation, CliError> {
        let Some(text) = self.text("location") else {
            let name = &self.name;
            return Err(CliError::usage(format!(
                "repository {name:?} has no location: `kloset-mount config repository set {name} location s3://ENDPOINT/BUCKET`"
            )));
        };
        let location = text.parse().map_err(|error| self.wrong("location", &format!("{error}")))?;
        Ok(match location {
            StoreLocation::Folder(folder) => StoreLocation::Folder(self.folder().join(folder)),
            bucket => bucket,
        })
    }

    /// An error about a value.
    pub(crate) fn wrong(&self, key: &str, what: &str) -> CliError {
        let (file, name) = (&self.file, &self.name);
        CliError::usage(format!("config file {file:?}: [repositories.{name}]: {key}: {what}"))
    }

    fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(Path::new("/"))
    }
}

/// All config files that are there, in the order in which they are asked.
#[derive(Debug)]
pub(crate) struct Config {
    files: Vec<ConfigFile>,
    searched: Vec<PathBuf>,
}

impl Config {
    /// Reads the files.
    pub(crate) fn load(global: &Global) -> Result<Config, CliError> {
        let mut config = Config { files: Vec::new(), searched: Vec::new() };
        if let Some(path) = named_file(global) {
            let missing = || CliError::usage(format!("config file {path:?} does not exist"));
            config.files.push(ConfigFile::load(&path)?.ok_or_else(missing)?);
            config.searched.push(path);
            return Ok(config);
        }
        if let Some(path) = user_file(&global.env) {
            config.files.extend(ConfigFile::load(&path)?);
            config.searched.push(path);
        }
        let system = PathBuf::from(SYSTEM_FILE);
        match ConfigFile::load(&system) {
            Ok(file) => config.files.extend(file),
            // Root's secrets are none of other users' business.
            Err(LoadError::Io(_, error)) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error.into()),
        }
        config.searched.push(system);
        Ok(config)
    }

    /// What is said about a repository.
    pub(crate) fn find(&self, name: &str) -> Result<RepositoryEntry, CliError> {
        if let Some(entry) = self.files.iter().find_map(|file| file.entry(name)) {
            return Ok(entry);
        }
        let files = self.searched();
        Err(CliError::usage(format!(
            "repository {name:?} is not in config file {files}: make it with `kloset-mount config repository create {name}`"
        )))
    }

    /// What is kept by a policy.
    pub(crate) fn policy(&self, name: &str) -> Result<NamedPolicy, CliError> {
        let missing = || CliError::usage(format!("there is no [policies.{name}] in config file {}", self.searched()));
        self.files.iter().find_map(|file| file.policy(name)).ok_or_else(missing)
    }

    fn searched(&self) -> String {
        let files: Vec<String> = self.searched.iter().map(|path| format!("{path:?}")).collect();
        files.join(" nor in ")
    }

    /// All repositories; of two with one name the first counts.
    pub(crate) fn entries(&self) -> Vec<RepositoryEntry> {
        let mut entries: Vec<RepositoryEntry> = Vec::new();
        for file in &self.files {
            for name in file.names() {
                if entries.iter().all(|entry| entry.name != name) {
                    entries.extend(file.entry(&name));
                }
            }
        }
        entries
    }

    /// Name of the default repository.
    pub(crate) fn default_name(&self) -> Option<&str> {
        self.files.iter().find_map(ConfigFile::default_name)
    }
}

/// The file that commands change.
pub(crate) fn file_to_change(global: &Global) -> PathBuf {
    let user = || user_file(&global.env);
    named_file(global).or_else(user).unwrap_or_else(|| PathBuf::from(SYSTEM_FILE))
}

fn named_file(global: &Global) -> Option<PathBuf> {
    global.args.config.clone().or_else(|| global.env.path("KLOSET_CONFIG"))
}

/// `None` where a service has no home; then there is the machine's file only.
fn user_file(env: &Environment) -> Option<PathBuf> {
    Some(env.xdg("XDG_CONFIG_HOME", ".config")?.join("kloset-mount/config.toml"))
}
