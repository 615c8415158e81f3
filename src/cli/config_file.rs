//! One config file: its shape, its checks, and how it is replaced.
//!
//! Promises that comments and order survive a change, that a reader sees the old file or the new
//! one and nothing between, that a new file is private, and that a file which others can read is
//! refused when it holds secrets. It does not know where files are looked for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use super::config::{KEYS, RepositoryEntry, is_secret};
use super::exit::CliError;
use super::retention::{self, NamedPolicy};

/// A config is a few kilobytes; what is larger is not one.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// A parsed and checked config file.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    document: DocumentMut,
}

impl ConfigFile {
    /// Reads and checks a file; `None` where there is none.
    pub(crate) fn load(path: &Path) -> Result<Option<ConfigFile>, LoadError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(LoadError::Io(path.to_owned(), error)),
        };
        let io = |error| LoadError::Io(path.to_owned(), error);
        let meta = file.metadata().map_err(io)?;
        let mut text = String::new();
        file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(io)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(wrong(path, "it is larger than 1 MiB"));
        }
        let file = ConfigFile::parse(path, &text)?;
        if file.holds_secrets() && meta.mode() & 0o077 != 0 {
            let mode = meta.mode() & 0o7777;
            let why = "it holds secrets and others can read it";
            return Err(wrong(path, format!("{why} (mode {mode:04o}): run `chmod 600 {}`", path.display())));
        }
        Ok(Some(file))
    }

    fn parse(path: &Path, text: &str) -> Result<ConfigFile, LoadError> {
        let document = text.parse::<DocumentMut>().map_err(|error| {
            // Not the whole error: it quotes the line, which may be a secret.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or("");
            let line = before.matches('\n').count() + 1;
            wrong(path, format!("line {line}: {}", error.message()))
        })?;
        let file = ConfigFile { path: path.to_owned(), document };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), LoadError> {
        let path = &self.path;
        for (key, item) in self.document.iter() {
            let known = match key {
                "default" => item.is_str(),
                "repositories" | "policies" => item.is_table_like(),
                _ => {
                    let known = "default, [repositories.NAME] and [policies.NAME]";
                    return Err(wrong(path, format!("key {key:?} is not known: there are {known}")));
                }
            };
            if !known {
                return Err(wrong(path, format!("{key:?} is of the wrong type")));
            }
        }
        for name in self.names() {
            check_name(&name).map_err(|error| wrong(path, error.message))?;
            let Some(table) = self.table(&name) else {
                return Err(wrong(path, format!("{name:?} is no table: write [repositories.{name}]")));
            };
            for (key, item) in table.iter() {
                check_key(key).map_err(|error| wrong(path, format!("[repositories.{name}]: {}", error.message)))?;
                if !item.is_str() && !item.is_bool() {
                    return Err(wrong(path, format!("[repositories.{name}]: {key} is neither text nor true or false")));
                }
            }
        }
        let policies = self.document.get("policies").map(retention::named).unwrap_or_default();
        for (name, policy) in policies {
            policy.map_err(|error| wrong(path, format!("[policies.{name}]: {error}")))?;
        }
        Ok(())
    }

    /// What is kept by the policy of that name.
    pub(crate) fn policy(&self, name: &str) -> Option<NamedPolicy> {
        let policies = retention::named(self.document.get("policies")?);
        policies.into_iter().find(|(other, _)| other == name)?.1.ok()
    }

    /// Names of the repositories in the order of the file.
    pub(crate) fn names(&self) -> Vec<String> {
        let tables = self.document.get("repositories").and_then(Item::as_table_like);
        tables.map(|tables| tables.iter().map(|(name, _)| name.to_owned()).collect()).unwrap_or_default()
    }

    /// What the file says about a repository.
    pub(crate) fn entry(&self, name: &str) -> Option<RepositoryEntry> {
        let text = |item: &Item| match item.as_bool() {
            Some(flag) => flag.to_string(),
            None => item.as_str().unwrap_or("").to_owned(),
        };
        let pairs = self.table(name)?.iter().map(|(key, item)| (key.to_owned(), text(item).into()));
        Some(RepositoryEntry { name: name.to_owned(), file: self.path.clone(), values: pairs.collect() })
    }

    /// Name of the default repository.
    pub(crate) fn default_name(&self) -> Option<&str> {
        self.document.get("default").and_then(Item::as_str)
    }

    /// Adds an empty repository.
    pub(crate) fn add(&mut self, name: &str) -> Result<(), CliError> {
        check_name(name)?;
        if self.table(name).is_some() {
            return Err(CliError::usage(format!(
                "repository {name:?} exists already: change it with `kloset-mount config repository set {name} KEY VALUE`"
            )));
        }
        let tables = self.document.entry("repositories").or_insert_with(|| {
            let mut tables = Table::new();
            tables.set_implicit(true);
            Item::Table(tables)
        });
        if let Some(tables) = tables.as_table_like_mut() {
            tables.insert(name, Item::Table(Table::new()));
        }
        Ok(())
    }

    /// Sets a value; keeps the comment behind the one before.
    pub(crate) fn set(&mut self, name: &str, key: &str, text: &str) -> Result<(), CliError> {
        check_key(key)?;
        let mut new = match text {
            "true" | "false" if super::config::is_flag(key) => value(text == "true"),
            _ => value(text),
        };
        let table = self.table_mut(name)?;
        if let (Some(old), Some(new)) = (table.get(key).and_then(Item::as_value), new.as_value_mut()) {
            *new.decor_mut() = old.decor().clone();
        }
        match table.get_mut(key) {
            Some(old) => *old = new,
            None => drop(table.insert(key, new)),
        }
        Ok(())
    }

    /// Takes a value away.
    pub(crate) fn unset(&mut self, name: &str, key: &str) -> Result<(), CliError> {
        check_key(key)?;
        match self.table_mut(name)?.remove(key) {
            Some(_) => Ok(()),
            None => Err(CliError::usage(format!("repository {name:?} has no {key}"))),
        }
    }

    /// Takes a repository away, and the default where it is that.
    pub(crate) fn remove(&mut self, name: &str) -> Result<(), CliError> {
        self.table_mut(name)?;
        if let Some(tables) = self.document.get_mut("repositories").and_then(Item::as_table_like_mut) {
            tables.remove(name);
        }
        if self.default_name() == Some(name) {
            self.document.remove("default");
        }
        Ok(())
    }

    /// Makes a repository the default.
    pub(crate) fn set_default(&mut self, name: &str) -> Result<(), CliError> {
        self.table_mut(name)?;
        self.document["default"] = value(name);
        Ok(())
    }

    fn table(&self, name: &str) -> Option<&dyn TableLike> {
        self.document.get("repositories")?.as_table_like()?.get(name)?.as_table_like()
    }

    fn table_mut(&mut self, name: &str) -> Result<&mut dyn TableLike, CliError> {
        let missing = unknown(name, &self.path);
        let tables = self.document.get_mut("repositories").and_then(Item::as_table_like_mut);
        tables.and_then(|tables| tables.get_mut(name)).and_then(Item::as_table_like_mut).ok_or(missing)
    }

    fn holds_secrets(&self) -> bool {
        let names = self.names();
        let tables = names.iter().filter_map(|name| self.table(name));
        tables.into_iter().any(|table| table.iter().any(|(key, _)| is_secret(key)))
    }
}

/// Changes a file: locks its folder, reads, changes, checks, replaces. Makes what is absent.
pub(crate) fn change<T>(
    path: &Path,
    change: impl FnOnce(&mut ConfigFile) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let io = |error| CliError::from(LoadError::Io(path.to_owned(), error));
    // A link, as dotfile managers make them, is followed and stays.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io)?;
    let locked = File::open(folder).map_err(io)?;
    locked.lock().map_err(io)?;
    let mut file = match ConfigFile::load(&path)? {
        Some(file) => file,
        None => ConfigFile { path: path.clone(), document: DocumentMut::new() },
    };
    let done = change(&mut file)?;
    file.check()?;
    replace(&path, file.document.to_string().as_bytes()).map_err(io)?;
    locked.sync_all().map_err(io)?;
    Ok(done)
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {} // left over from a crash: the lock is ours
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    if let Ok(old) = fs::metadata(path) {
        // Under sudo the file stays its user's.
        std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// Why a config file is not used.
#[derive(Debug)]
pub(crate) enum LoadError {
    /// It cannot be read.
    Io(PathBuf, io::Error),
    /// Its content or mode is wrong.
    Wrong(CliError),
}

impl From<LoadError> for CliError {
    fn from(error: LoadError) -> CliError {
        match error {
            LoadError::Io(path, error) => CliError::failed(format!("config file {path:?}: {error}")),
            LoadError::Wrong(error) => error,
        }
    }
}

fn wrong(path: &Path, message: impl std::fmt::Display) -> LoadError {
    LoadError::Wrong(CliError::usage(format!("config file {path:?}: {message}")))
}

/// The error for a name that a file does not have.
pub(crate) fn unknown(name: &str, path: &Path) -> CliError {
    CliError::usage(format!(
        "repository {name:?} is not in config file {path:?}: make it with `kloset-mount config repository create {name}`"
    ))
}

fn check_name(name: &str) -> Result<(), CliError> {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if name.is_empty() || name.starts_with(['.', '-']) || !name.bytes().all(known) {
        return Err(CliError::usage(format!(
            "{name:?} is not a name for a repository: letters, digits, dots, dashes and underscores"
        )));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), CliError> {
    if KEYS.contains(&key) {
        return Ok(());
    }
    Err(CliError::usage(format!("key {key:?} is not known: there are {}", KEYS.join(", "))))
}
