//! Which repository is meant, where it is, and what opens its store.
//!
//! `-r` or `at`, then `KLOSET_REPOSITORY`, then the config's default, then a local kloset in the
//! user's data folder. Nothing is sent and no prompt is shown until asked. It does not know what is
//! in a kloset.

use std::path::PathBuf;
use std::time::Duration;

use crate::store::{Rates, S3Options, Store, StoreLocation};

use super::args::Global;
use super::config::{Config, RepositoryEntry};
use super::config_file::change;
use super::exit::CliError;
use super::s3_options;
use super::secret::{Ask, Found, OtherSecretArgs, Places, Unlock};
use super::size::{parse_rate, parse_retry_budget};

/// Where a repository is.
#[derive(Clone, Debug)]
pub(crate) struct Located {
    pub(crate) location: StoreLocation,
    /// The key of the key service that encrypts its bucket.
    pub(crate) kms_key: Option<String>,
}

/// A repository that was named, with all that the config says about it.
#[derive(Clone, Debug)]
pub(crate) struct ResolvedRepository {
    /// Its name in the config, without `@`.
    pub name: Option<String>,
    /// Where it is.
    pub location: StoreLocation,
    /// How to talk to a bucket, keys included.
    pub s3: S3Options,
    entry: Option<RepositoryEntry>,
}

impl ResolvedRepository {
    /// Resolves what the command line, the environment and the config say.
    pub(crate) fn resolve(global: &Global) -> Result<ResolvedRepository, CliError> {
        let named = global.args.repository.as_deref().or_else(|| global.env.text("KLOSET_REPOSITORY"));
        match named {
            Some(text) => ResolvedRepository::named(text, global),
            None => ResolvedRepository::by_default(global),
        }
    }

    /// Returns the folder that holds the kloset, if it is one.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        match &self.location {
            StoreLocation::Folder(path) => Some(path),
            StoreLocation::S3 { .. } => None,
        }
    }

    /// Resolves `@name` or a location.
    pub(crate) fn named(text: &str, global: &Global) -> Result<ResolvedRepository, CliError> {
        match text.strip_prefix('@') {
            Some(name) => ResolvedRepository::of(Some(Config::load(global)?.find(name)?), None, global),
            None => ResolvedRepository::of(None, Some(text.parse()?), global),
        }
    }

    fn by_default(global: &Global) -> Result<ResolvedRepository, CliError> {
        let config = Config::load(global)?;
        if let Some(name) = config.default_name() {
            return ResolvedRepository::of(Some(config.find(name)?), None, global);
        }
        let Some(data) = global.env.xdg("XDG_DATA_HOME", ".local/share") else {
            let ways = "-r @NAME, KLOSET_REPOSITORY, or `kloset-mount config repository default NAME`";
            return Err(CliError::usage(format!("which repository is not said: use {ways}")));
        };
        let location = StoreLocation::Folder(data.join("kloset-mount/kloset"));
        ResolvedRepository::of(None, Some(location), global)
    }

    fn of(
        entry: Option<RepositoryEntry>,
        location: Option<StoreLocation>,
        global: &Global,
    ) -> Result<ResolvedRepository, CliError> {
        let location = match (location, &entry) {
            (Some(location), _) => location,
            (None, Some(entry)) => entry.location()?,
            (None, None) => return Err(CliError::usage("no repository is named")),
        };
        let mut s3 = S3Options::default();
        if matches!(location, StoreLocation::S3 { .. }) {
            let places = Places { flags: &global.args, env: &global.env, entry: entry.as_ref(), other: None };
            s3_options::follow(&places, &location, &mut s3)?;
            if !s3.allow_anonymous {
                let keys_from = places.add_s3_keys(&location, &mut s3)?;
                tracing::debug!("keys from {}", keys_from.join(", "));
            }
        }
        s3.rates = rates(global, entry.as_ref())?;
        s3.retry.budget = retry_budget(global, entry.as_ref())?.unwrap_or(s3.retry.budget);
        let name = entry.as_ref().map(|entry| entry.name.clone());
        Ok(ResolvedRepository { name, location, s3, entry })
    }

    /// Where a repository is, without a look at its keys.
    pub(crate) fn location_of(name: Option<&str>, global: &Global) -> Result<Located, CliError> {
        let named = match name {
            Some(name) => Some(format!("@{name}")),
            None => global.args.repository.clone().or_else(|| global.env.text("KLOSET_REPOSITORY").map(str::to_owned)),
        };
        let name = match named.as_deref().map(|text| (text, text.strip_prefix('@'))) {
            Some((text, None)) => return Ok(Located { location: text.parse()?, kms_key: None }),
            Some((_, Some(name))) => Some(name.to_owned()),
            None => None,
        };
        let config = Config::load(global)?;
        let none = || CliError::usage("which repository is not said: name one");
        let name = name.or_else(|| config.default_name().map(str::to_owned)).ok_or_else(none)?;
        let entry = config.find(&name)?;
        Ok(Located { location: entry.location()?, kms_key: entry.text("sse_kms_key_id").map(str::to_owned) })
    }

    /// Writes the region that the store named into the config, so that it need not be asked for again.
    pub(crate) fn remember_region(&self, learned: Option<String>) {
        let (Some(region), Some(entry)) = (learned, &self.entry) else { return };
        let (name, file) = (&entry.name, &entry.file);
        match change(file, |file| file.set(name, "region", &region)) {
            Ok(()) if entry.text("region").is_some() => {
                tracing::warn!("the region of @{name} is {region}, says the store: that is in {file:?} now");
            }
            Ok(()) => tracing::info!("the region of @{name} is {region}: remembered in {file:?}"),
            // As of a service under the machine's config.
            Err(error) => tracing::info!("the region of @{name} is {region}, which is not remembered: {error}"),
        }
    }

    /// Writes settings into the config, where the repository is in one; returns the file.
    pub(crate) fn write_settings(&self, settings: &[(&str, String)]) -> Result<Option<PathBuf>, CliError> {
        let Some(entry) = &self.entry else { return Ok(None) };
        change(&entry.file, |file| settings.iter().try_for_each(|(key, value)| file.set(&entry.name, key, value)))?;
        Ok(Some(entry.file.clone()))
    }

    /// As people call it: `@name`, else its location.
    pub(crate) fn label(&self) -> String {
        match &self.name {
            Some(name) => format!("@{name}"),
            None => self.location.to_string(),
        }
    }

    /// Opens the store of a kloset that is there.
    pub(crate) fn open_store(&self) -> Result<Store, CliError> {
        Store::open(&self.location, &self.s3).map_err(|error| self.explain(error.into()))
    }

    /// Opens the store for a kloset to be made; a missing folder is made.
    pub(crate) fn create_store(&self) -> Result<Store, CliError> {
        let store = Store::open_or_create_folder(&self.location, &self.s3);
        store.map_err(|error| self.explain(error.into()))
    }

    /// Finds the passphrase or key file; asks on the terminal as the last resort.
    pub(crate) fn unlock(&self, global: &Global, ask: Ask) -> Result<Found<Unlock>, CliError> {
        let places = Places { flags: &global.args, env: &global.env, entry: self.entry.as_ref(), other: None };
        places.unlock(&self.label(), ask)
    }

    /// Finds the passphrase or key file where this is the second repository of a command.
    pub(crate) fn unlock_other(&self, other: &OtherSecretArgs, global: &Global) -> Result<Found<Unlock>, CliError> {
        let places = Places { flags: &global.args, env: &global.env, entry: self.entry.as_ref(), other: Some(other) };
        places.unlock(&self.label(), Ask::Once)
    }

    /// Puts the repository's own name into the commands that an error tells people to type.
    pub(crate) fn explain(&self, error: CliError) -> CliError {
        match &self.name {
            Some(name) => CliError::new(error.exit, error.message.replace(" set NAME ", &format!(" set {name} "))),
            None => error,
        }
    }
}

/// The limits of the command line, else those of the config.
fn rates(global: &Global, entry: Option<&RepositoryEntry>) -> Result<Rates, CliError> {
    let of = |flag: Option<u64>, key: &str| match entry.and_then(|entry| Some((entry, entry.text(key)?))) {
        Some((entry, text)) if flag.is_none() => parse_rate(text).map(Some).map_err(|what| entry.wrong(key, &what)),
        _ => Ok(flag),
    };
    let (up, down) = (global.args.limit_upload, global.args.limit_download);
    Ok(Rates { up: of(up, "limit_upload")?, down: of(down, "limit_download")? })
}

/// The time of the command line, else that of the config.
fn retry_budget(global: &Global, entry: Option<&RepositoryEntry>) -> Result<Option<Duration>, CliError> {
    let key = "retry_budget";
    match entry.and_then(|entry| Some((entry, entry.text(key)?))) {
        Some((entry, text)) if global.args.retry_budget.is_none() => {
            parse_retry_budget(text).map(Some).map_err(|what| entry.wrong(key, &what))
        }
        _ => Ok(global.args.retry_budget),
    }
}
