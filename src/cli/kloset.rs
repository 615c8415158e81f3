//! Opening the kloset that a command is about.
//!
//! Brings together which repository is meant, its secret, the runtime and the CPU pool; and says how a failure of the
//! kloset ends the program.

use zeroize::Zeroizing;

use super::args::Global;
use super::cache::{CacheArgs, FINISH_WAIT};
use super::exit::{CliError, Exit};
use super::process;
use super::repository::ResolvedRepository;
use super::secret::{Ask, Unlock};
use super::strength::StrengthArgs;
use crate::cpu::Cpu;
use crate::env::Env;
use crate::repo::keyslot::SlotSecret;
use crate::repo::{CreateOptions, Repo, RepoError};
use crate::store::StoreError;

/// An opened kloset and what drives it.
pub(crate) struct Kloset {
    /// The kloset.
    pub(crate) repo: Repo,
    /// Network and timers.
    pub(crate) runtime: tokio::runtime::Runtime,
    /// Where it is.
    pub(crate) resolved: ResolvedRepository,
}

impl Kloset {
    /// Opens the kloset that the command line, the environment or the config names.
    pub(crate) fn open(global: &Global) -> Result<Self, CliError> {
        let resolved = ResolvedRepository::resolve(global)?;
        let store = resolved.open_store()?;
        let secret = slot_secret(resolved.unlock(global, Ask::Once)?.value)?;
        Self::open_with(resolved, store, &secret)
    }

    /// Opens a kloset whose secret is at hand.
    pub(crate) fn open_with(
        resolved: ResolvedRepository,
        store: crate::store::Store,
        secret: &SlotSecret,
    ) -> Result<Self, CliError> {
        let (runtime, env) = (process::runtime()?, Env::system());
        let cpu = Cpu::new(env.parallelism);
        let repo = runtime.block_on(Repo::open(store, secret, env, cpu));
        let repo = repo.map_err(|error| resolved.explain(error.into()))?;
        Ok(Self { repo, runtime, resolved })
    }

    /// Makes a new kloset.
    pub(crate) fn create(global: &Global, options: &CreateOptions, strength: StrengthArgs) -> Result<Self, CliError> {
        let resolved = ResolvedRepository::resolve(global)?;
        let secret = slot_secret(resolved.unlock(global, Ask::Twice)?.value)?;
        strength.judge(&secret)?;
        let (runtime, env) = (process::runtime()?, Env::system());
        let cpu = Cpu::new(env.parallelism);
        let store = resolved.create_store()?;
        let repo = runtime.block_on(Repo::create(store, &secret, options, env, cpu));
        let repo = repo.map_err(|error| resolved.explain(error.into()))?;
        Ok(Self { repo, runtime, resolved })
    }

    /// Puts a cache on disk below what is read from a bucket, if there is to be one.
    pub(crate) fn with_cache(mut self, args: &CacheArgs, global: &Global) -> Self {
        if self.folder().is_none()
            && let Some(options) = args.options(&global.env)
        {
            match self.repo.with_cache(&options) {
                Ok(repo) => self.repo = repo,
                Err(error) => tracing::info!("no cache: {error}"),
            }
        }
        self
    }

    /// Returns the folder that holds the kloset, if it is one.
    pub(crate) fn folder(&self) -> Option<&std::path::Path> {
        self.resolved.folder()
    }
}

impl Drop for Kloset {
    /// Lets what was fetched last be kept as well: a short command would end before it is.
    fn drop(&mut self) {
        if let Some(cache) = self.repo.cache() {
            cache.finish(FINISH_WAIT);
        }
    }
}

/// Turns what was found into what opens a slot.
pub(crate) fn slot_secret(unlock: Unlock) -> Result<SlotSecret, CliError> {
    let text = |secret: &crate::store::Secret, what: &str| {
        let text = secret.text().ok_or_else(|| CliError::usage(format!("the {what} is not UTF-8")))?;
        Ok::<_, CliError>(Zeroizing::new(text.to_owned()))
    };
    match unlock {
        Unlock::Passphrase(secret) => Ok(SlotSecret::Passphrase(text(&secret, "passphrase")?)),
        Unlock::KeyFile(secret) => {
            SlotSecret::parse_key_file(&text(&secret, "key file")?).map_err(|e| CliError::usage(e.to_string()))
        }
    }
}

impl From<RepoError> for CliError {
    fn from(error: RepoError) -> CliError {
        let exit = match &error {
            RepoError::Store(store) => return store_error(store),
            RepoError::NoKloset(_) => Exit::NoKloset,
            RepoError::WrongSecret { .. } => Exit::WrongPassphrase,
            RepoError::Damaged { .. } | RepoError::Header(_) => Exit::Damaged,
            RepoError::KlosetExists(_)
            | RepoError::Slot(_)
            | RepoError::KeySlot { .. }
            | RepoError::WriteOnly
            | RepoError::NoSnapshot(_)
            | RepoError::AmbiguousSnapshot(_)
            | RepoError::NoPath(_)
            | RepoError::NotA { .. }
            | RepoError::TooLong { .. }
            | RepoError::Pruned(_)
            | RepoError::PruneAtWork => Exit::Error,
        };
        CliError::new(exit, error.to_string())
    }
}

fn store_error(error: &StoreError) -> CliError {
    let exit = super::exit::exit_of(error);
    CliError::new(exit, error.to_string())
}
