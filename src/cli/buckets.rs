//! Buckets of objects that a backup is of, or that a restore is into: as they are named, opened, and kept off the kloset.
//!
//! They are named as repositories are, and opened with the keys of their own entry in the config. It does not know what is
//! done with them.

use std::ffi::OsStr;

use super::args::Global;
use super::exit::CliError;
use super::kloset::Kloset;
use super::repository::ResolvedRepository;
use crate::backup::BucketSource;
use crate::store::{self, StoreLocation};

/// A bucket that was named.
pub(crate) struct Bucket {
    pub(crate) resolved: ResolvedRepository,
    pub(crate) bucket: store::Bucket,
}

/// Returns the words that name a bucket where a path may stand, too.
pub(crate) fn named(text: &OsStr) -> Option<&str> {
    text.to_str().filter(|text| text.starts_with('@') || text.starts_with("s3://"))
}

impl Bucket {
    /// Opens a bucket without asking it.
    pub(crate) fn named(text: &str, global: &Global) -> Result<Bucket, CliError> {
        let resolved = ResolvedRepository::named(text, global)?;
        if let Some(folder) = resolved.folder() {
            let is_folder = format!("\"{text}\" is the folder {folder:?} and no bucket: name the folder");
            return Err(CliError::usage(is_folder));
        }
        let bucket = store::Bucket::open(&resolved.location, &resolved.s3);
        let bucket = bucket.map_err(|error| resolved.explain(error.into()))?;
        Ok(Bucket { resolved, bucket })
    }

    /// Returns it as a source, without the kloset that may be in it.
    pub(crate) fn source(&self, kloset: &Kloset) -> Result<BucketSource, CliError> {
        Ok(BucketSource { bucket: self.bucket.clone(), skip: self.keep_off(kloset)? })
    }

    /// Returns what the keys of the kloset begin with, if it is in this bucket; to be all of it is refused.
    pub(crate) fn keep_off(&self, kloset: &Kloset) -> Result<Option<String>, CliError> {
        let own = prefix_in(&kloset.resolved.location, &self.resolved.location);
        match own {
            Some(own) if self.bucket.prefix().starts_with(&own) => {
                Err(CliError::usage(format!("\"{}\" is where the kloset itself is", self.resolved.label())))
            }
            own => Ok(own),
        }
    }
}

/// Returns what the keys of a kloset begin with, if it is in the same bucket as another location.
fn prefix_in(kloset: &StoreLocation, other: &StoreLocation) -> Option<String> {
    let (StoreLocation::S3 { bucket, prefix, .. }, StoreLocation::S3 { bucket: others, .. }) = (kloset, other) else {
        return None;
    };
    let is_same = bucket == others && kloset.authority() == other.authority();
    is_same.then(|| if prefix.is_empty() { String::new() } else { format!("{prefix}/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_told_from_paths_by_their_first_words() {
        assert_eq!(named(OsStr::new("@s3")), Some("@s3"));
        assert_eq!(named(OsStr::new("s3://h/b/p")), Some("s3://h/b/p"));
        for path in ["./@s3", "/s3://h", "file:///x", "s3:", ""] {
            assert_eq!(named(OsStr::new(path)), None, "{path}");
        }
    }

    #[test]
    fn a_kloset_in_the_same_bucket_is_known_by_its_prefix() {
        let of = |kloset: &str, other: &str| prefix_in(&kloset.parse().unwrap(), &other.parse().unwrap());
        assert_eq!(of("s3://h/b/k", "s3://h/b"), Some("k/".to_owned()));
        assert_eq!(of("s3://h/b", "s3://h/b/x"), Some(String::new()));
        assert_eq!(
            (of("s3://h/b", "s3://h:1/b"), of("s3://h/b", "s3://h/c"), of("/k", "s3://h/b")),
            (None, None, None)
        );
    }
}
