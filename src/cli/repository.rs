//! Which repository is meant, where it is, and what opens its store.
//!
//! `-r` or `at`, then `KLOSET_REPOSITORY`, then the config's default, then a local kloset in the
//! user's data folder. Nothing is sent and no prompt is shown until asked. It does not know what is
//! in a kloset.

use std::time::Duration;

use crate::store::{Rates, S3Options, Store, StoreLocation};

use super::args::Global;
use super::config::{Config, RepositoryEntry};
use super::exit::CliError;
use super::secret::{Ask, Found, Places, Unlock};
use super::size::{parse_rate, parse_retry_budget};

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
            if let Some(entry) = &entry {
                follow_entry(&mut s3, entry)?;
            }
            let region = global.env.text("AWS_REGION").or_else(|| global.env.text("AWS_DEFAULT_REGION"));
            s3.region_fallback = region.map(str::to_owned);
            if !s3.allow_anonymous {
                let places = Places { flags: &global.args, env: &global.env, entry: entry.as_ref() };
                let keys_from = places.add_s3_keys(&mut s3)?;
                tracing::debug!("keys from {}", keys_from.join(", "));
            }
        }
        s3.rates = rates(global, entry.as_ref())?;
        s3.retry.budget = retry_budget(global, entry.as_ref())?.unwrap_or(s3.retry.budget);
        let name = entry.as_ref().map(|entry| entry.name.clone());
        Ok(ResolvedRepository { name, location, s3, entry })
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
        let places = Places { flags: &global.args, env: &global.env, entry: self.entry.as_ref() };
        places.unlock(&self.label(), ask)
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

fn follow_entry(s3: &mut S3Options, entry: &RepositoryEntry) -> Result<(), CliError> {
    s3.region = entry.text("region").map(str::to_owned);
    s3.use_tls = entry.flag("use_tls")?.unwrap_or(s3.use_tls);
    s3.allow_anonymous = entry.flag("allow_anonymous")?.unwrap_or(false);
    if let Some(text) = entry.text("addressing") {
        s3.addressing = text.parse().map_err(|error: String| entry.wrong("addressing", &error))?;
    }
    Ok(())
}
