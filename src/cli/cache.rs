//! Where the cache on disk is, how large it may become, and whether there is one.
//!
//! Only a bucket has one: a folder is as near as its cache would be. It does not know what is in it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::env::Environment;
use crate::store::CacheOptions;

/// Name of our folder among the caches of others.
const FOLDER: &str = "kloset-mount";
/// The folder of root where there is no home, as for a service.
const ROOT_FOLDER: &str = "/var/cache/kloset-mount";
/// A command that is done waits so long for its cache to be written.
pub(super) const FINISH_WAIT: Duration = Duration::from_secs(3);

/// Options of the commands that read through a cache.
#[derive(Clone, Debug, Args)]
pub(crate) struct CacheArgs {
    /// Folder of the cache of what was fetched from a bucket, encrypted as it is there
    /// [else $CACHE_DIRECTORY, $XDG_CACHE_HOME/kloset-mount, ~/.cache/kloset-mount].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Most that the cache takes on disk, all klosets together.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_size)]
    pub cache_size: u64,
    /// Keeps nothing on disk and reads nothing from there.
    #[arg(long, conflicts_with_all = ["cache_dir", "cache_size"])]
    pub no_cache: bool,
}

impl CacheArgs {
    /// Returns what was asked for, or `None` where there is to be no cache.
    pub(crate) fn options(&self, env: &Environment) -> Option<CacheOptions> {
        if self.no_cache || self.cache_size == 0 {
            return None;
        }
        let folder = match &self.cache_dir {
            // A mount in the background leaves the folder it was started in.
            Some(folder) => std::path::absolute(folder).ok(),
            None => by_default(env, rustix::process::geteuid().is_root()),
        };
        if folder.is_none() {
            tracing::info!("no cache: there is no home, --cache-dir says where to put it");
        }
        Some(CacheOptions { folder: folder?, bytes_max: self.cache_size })
    }
}

fn by_default(env: &Environment, is_root: bool) -> Option<PathBuf> {
    // systemd names all folders of CacheDirectory=, the first is for us.
    let given = env.text("CACHE_DIRECTORY").and_then(|all| all.split(':').next()).map(PathBuf::from);
    given
        .filter(|folder| folder.is_absolute())
        .or_else(|| Some(env.xdg("XDG_CACHE_HOME", ".cache")?.join(FOLDER)))
        .or_else(|| is_root.then(|| PathBuf::from(ROOT_FOLDER)))
}

/// Bytes of a size like `128MiB`, `64M`, `1GiB` or `1048576`.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or("").to_ascii_lowercase();
    let shift = match unit.trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        _ => return Err(format!("the unit {unit:?} is not one of: KiB, MiB, GiB")),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number and a unit, as in 128MiB".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "too large".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_first_that_is_said() {
        let all = [("CACHE_DIRECTORY", "/s/k:/s/l"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        for (from, expected) in [(0, "/s/k"), (1, "/x/kloset-mount"), (2, "/h/.cache/kloset-mount"), (3, ROOT_FOLDER)] {
            let env = Environment::of(all[from..].iter().copied());
            assert_eq!(by_default(&env, true), Some(expected.into()));
        }
        assert_eq!(by_default(&Environment::default(), false), None);
        let relative = Environment::of([("CACHE_DIRECTORY", "x"), ("XDG_CACHE_HOME", "y"), ("HOME", "/h")]);
        assert_eq!(by_default(&relative, false), Some("/h/.cache/kloset-mount".into()));
    }

    #[test]
    fn nothing_is_kept_where_nothing_may_be() {
        let args = CacheArgs { cache_dir: Some("/c".into()), cache_size: 5, no_cache: false };
        assert_eq!(args.options(&Environment::default()).unwrap().folder, PathBuf::from("/c"));
        assert!(CacheArgs { no_cache: true, ..args.clone() }.options(&Environment::default()).is_none());
        assert!(CacheArgs { cache_size: 0, ..args }.options(&Environment::default()).is_none());
    }

    #[test]
    fn sizes_are_understood() {
        for (text, bytes) in [("128MiB", 128 << 20), ("64M", 64 << 20), ("1gib", 1 << 30), ("5", 5), ("7B", 7)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "1TiB", "-1", "1.5G", "99999999999G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
