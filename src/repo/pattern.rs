//! Patterns of names and paths, with the wildcards of a shell.
//!
//! Without a slash a pattern is held against names; with one against whole paths, at any depth unless it begins with a
//! slash. `*` and `?` stop at slashes, `**` does not.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};

/// The longest pattern.
const PATTERN_BYTES_MAX: usize = 4096;

/// A pattern that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("pattern \"{pattern}\": {problem}")]
pub struct PatternError {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it.
    pub problem: String,
}

/// A pattern.
#[derive(Debug)]
pub struct Pattern {
    /// What a name must be; anything without.
    name: Option<GlobMatcher>,
    /// What the path must be as well.
    path: Option<GlobMatcher>,
}

impl Pattern {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn parse(text: &str, ignore_case: bool) -> Result<Self, PatternError> {
        let bad = |problem: &str| PatternError { pattern: text.to_owned(), problem: problem.to_owned() };
        if text.len() > PATTERN_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        let inner = if text.len() > 1 { text.trim_end_matches('/') } else { text };
        if inner.is_empty() {
            return Err(bad("it is empty"));
        }
        let glob = |text: &str| {
            let mut builder = GlobBuilder::new(text);
            builder.literal_separator(true).case_insensitive(ignore_case).backslash_escape(true);
            builder.build().map(|glob| glob.compile_matcher()).map_err(|error| bad(&error.kind().to_string()))
        };
        let Some((_, last)) = inner.rsplit_once('/') else {
            return Ok(Self { name: Some(glob(inner)?), path: None });
        };
        let anywhere = if inner.starts_with('/') { inner.to_owned() } else { format!("**/{inner}") };
        // A slash in braces or brackets divides no names.
        let divides = !inner.contains(['{', '[', '\\']) && !last.contains("**");
        let name = if divides { Some(glob(last)?) } else { None };
        Ok(Self { name, path: Some(glob(&anywhere)?) })
    }

    /// Tells whether a path that ends with this name may fit.
    #[must_use]
    pub fn may_fit(&self, name: &[u8]) -> bool {
        self.name.as_ref().is_none_or(|glob| glob.is_match(as_path(name)))
    }

    /// Tells whether an absolute path fits.
    #[must_use]
    pub fn fits(&self, path: &[u8]) -> bool {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.may_fit(name) && self.path.as_ref().is_none_or(|glob| glob.is_match(as_path(path)))
    }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, fitting: &[&[u8]], others: &[&[u8]]) {
        let parsed = Pattern::parse(pattern, false).unwrap();
        for path in fitting {
            assert!(parsed.fits(path), "{pattern} fits {}", path.escape_ascii());
        }
        for path in others {
            assert!(!parsed.fits(path), "{pattern} does not fit {}", path.escape_ascii());
        }
    }

    #[test]
    fn names_fit_anywhere_and_paths_as_they_are_written() {
        check("*.conf", &[b"/a.conf", b"/x/y/\xff.conf"], &[b"/a.conf/b", b"/a.conf2", b"/A.CONF"]);
        check("/etc/*.conf", &[b"/etc/a.conf"], &[b"/x/etc/a.conf", b"/etc/x/a.conf"]);
        check("etc/*.conf", &[b"/etc/a.conf", b"/x/etc/a.conf"], &[b"/xetc/a.conf"]);
        check("/etc/**/a", &[b"/etc/a", b"/etc/x/y/a"], &[b"/a"]);
        check("/etc/**", &[b"/etc/a", b"/etc/x/y"], &[b"/x"]);
        check("/{etc/a,b}", &[b"/etc/a", b"/b"], &[b"/a"]);
        check("cache/", &[b"/x/cache"], &[b"/cache/x"]);
        check("[ab]?", &[b"/ac"], &[b"/cc", b"/a"]);
        check("\\*", &[b"/*"], &[b"/a"]);
        assert!(Pattern::parse("*.CONF", true).unwrap().fits(b"/a.conf"));
        for bad in ["", "[z-a]", "{a", &"x".repeat(5000)] {
            assert!(Pattern::parse(bad, false).is_err(), "{bad}");
        }
        assert!(Pattern::parse("//", false).is_err());
    }
}
