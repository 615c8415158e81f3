//! Where the cache on disk is, how large it may become, and whether there is one.
//!
//! Only a bucket has one: a folder is as near as its cache would be. It does not know what is in it.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::env::{Environment, Place};
use super::size::parse_size;
use crate::store::CacheOptions;

/// Where it is unless told otherwise.
const PLACE: Place =
    Place { systemd: "CACHE_DIRECTORY", xdg: ("XDG_CACHE_HOME", ".cache"), of_root: "/var/cache/kloset-mount" };
/// A command that is done waits so long for its cache to be written.
pub(super) const FINISH_WAIT: Duration = Duration::from_secs(3);

/// Bytes that the cache takes at most, unless told otherwise.
const BYTES_MAX_DEFAULT: u64 = 1 << 30;

/// Options of the commands that read through a cache; a mount takes them in `-o`, too.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CacheArgs {
    /// Folder of the cache of what was fetched from a bucket, encrypted as it is there
    /// [else $CACHE_DIRECTORY, $XDG_CACHE_HOME/kloset-mount, ~/.cache/kloset-mount].
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Most that the cache takes on disk, all klosets together; 1GiB by default.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub cache_size: Option<u64>,
    /// Keeps nothing on disk and reads nothing from there.
    #[arg(long, conflicts_with_all = ["cache_dir", "cache_size"])]
    pub no_cache: bool,
}

impl CacheArgs {
    /// Adds what `-o` says; the command line comes first.
    pub(crate) fn or(&self, options: &CacheArgs) -> CacheArgs {
        let is_wanted_here = self.cache_dir.is_some() || self.cache_size.is_some();
        CacheArgs {
            cache_dir: self.cache_dir.clone().or_else(|| options.cache_dir.clone()),
            cache_size: self.cache_size.or(options.cache_size),
            no_cache: self.no_cache || options.no_cache && !is_wanted_here,
        }
    }

    /// Tells whether it asks for a cache and for none.
    pub(crate) fn contradicts_itself(&self) -> bool {
        self.no_cache && (self.cache_dir.is_some() || self.cache_size.is_some())
    }

    /// Returns what was asked for, or `None` where there is to be no cache.
    pub(crate) fn options(&self, env: &Environment) -> Option<CacheOptions> {
        let bytes_max = self.cache_size.unwrap_or(BYTES_MAX_DEFAULT);
        if self.no_cache || bytes_max == 0 {
            return None;
        }
        let folder = match &self.cache_dir {
            // A mount in the background leaves the folder it was started in.
            Some(folder) => std::path::absolute(folder).ok(),
            None => env.our_folder(&PLACE, rustix::process::geteuid().is_root()),
        };
        if folder.is_none() {
            tracing::info!("no cache: there is no home, --cache-dir says where to put it");
        }
        Some(CacheOptions { folder: folder?, bytes_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_is_the_first_that_is_said() {
        let all = [("CACHE_DIRECTORY", "/s/k:/s/l"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        for (from, expected) in [(0, "/s/k"), (1, "/x/kloset-mount"), (2, "/h/.cache/kloset-mount"), (3, PLACE.of_root)]
        {
            let env = Environment::of(all[from..].iter().copied());
            assert_eq!(env.our_folder(&PLACE, true), Some(expected.into()));
        }
        assert_eq!(Environment::default().our_folder(&PLACE, false), None);
        let relative = Environment::of([("CACHE_DIRECTORY", "x"), ("XDG_CACHE_HOME", "y"), ("HOME", "/h")]);
        assert_eq!(relative.our_folder(&PLACE, false), Some("/h/.cache/kloset-mount".into()));
    }

    #[test]
    fn nothing_is_kept_where_nothing_may_be() {
        let args = CacheArgs { cache_dir: Some("/c".into()), ..CacheArgs::default() };
        let options = args.options(&Environment::default()).unwrap();
        assert_eq!((options.folder, options.bytes_max), (PathBuf::from("/c"), 1 << 30));
        assert!(CacheArgs { no_cache: true, ..args.clone() }.options(&Environment::default()).is_none());
        assert!(CacheArgs { cache_size: Some(0), ..args }.options(&Environment::default()).is_none());
    }

    #[test]
    fn the_command_line_comes_before_the_mount_options() {
        let none = CacheArgs { no_cache: true, ..CacheArgs::default() };
        let some = CacheArgs { cache_dir: Some("/c".into()), cache_size: Some(5), no_cache: false };
        let small = CacheArgs { cache_size: Some(3), ..CacheArgs::default() };
        assert_eq!(CacheArgs::default().or(&some), some);
        assert_eq!(small.or(&some), CacheArgs { cache_size: Some(3), ..some.clone() });
        assert!(CacheArgs::default().or(&none).no_cache);
        assert!(!small.or(&none).no_cache);
        assert!(none.or(&some).options(&Environment::default()).is_none());
    }
}
