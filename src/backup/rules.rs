//! Which paths are left out.
//!
//! Rules have the syntax of gitignore. `/etc/x` is that path alone, `x` is any file or folder of that name, `a/b` is
//! that pair anywhere; a later rule wins, `!` takes one back.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// A rule that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("exclude rule \"{rule}\": {problem}")]
pub struct RuleError {
    /// The rule.
    pub rule: String,
    /// What is wrong with it.
    pub problem: String,
}

/// The rules of one backup.
pub struct Rules(Option<Gitignore>);

impl Rules {
    /// Parses rules, one a line; empty lines and `#` comments are passed over.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn parse(lines: &[String]) -> Result<Self, RuleError> {
        let bad = |rule: &str, problem: ignore::Error| RuleError { rule: rule.into(), problem: problem.to_string() };
        let mut builder = GitignoreBuilder::new("/");
        for line in lines {
            builder.add_line(None, &anywhere(line)).map_err(|e| bad(line, e))?;
        }
        let rules = builder.build().map_err(|e| bad("", e))?;
        Ok(Self((!rules.is_empty()).then_some(rules)))
    }

    /// Tells whether an absolute path is left out by its own name; who walks from the top asks for each level.
    #[must_use]
    pub fn exclude(&self, path: &[u8], directory: bool) -> bool {
        match &self.0 {
            None => false,
            Some(rules) => rules.matched(Path::new(OsStr::from_bytes(path)), directory).is_ignore(),
        }
    }
}

/// Lets a rule with a slash in its middle hold anywhere, as one without does.
fn anywhere(line: &str) -> String {
    let (negation, rule) = line.strip_prefix('!').map_or(("", line), |rest| ("!", rest));
    let inner = rule.trim_end_matches('/');
    if inner.contains('/') && !rule.starts_with('/') && !rule.starts_with("**/") && !rule.starts_with('#') {
        format!("{negation}**/{rule}")
    } else {
        line.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rules: &[&str], path: &str, directory: bool, excluded: bool) {
        let lines: Vec<_> = rules.iter().map(ToString::to_string).collect();
        assert_eq!(Rules::parse(&lines).unwrap().exclude(path.as_bytes(), directory), excluded, "{rules:?} {path}");
    }

    #[test]
    fn rules_are_gitignores_with_absolute_paths() {
        check(&[], "/a", false, false);
        check(&["*.o"], "/home/x/a.o", false, true);
        check(&["/home/x"], "/home/x", true, true);
        check(&["/home/x"], "/srv/home/x", true, false);
        check(&["cache/"], "/a/cache", true, true);
        check(&["cache/"], "/a/cache", false, false);
        check(&["a/b"], "/x/a/b", false, true);
        check(&["*.o", "!keep.o"], "/keep.o", false, false);
        check(&["# note", ""], "/note", false, false);
    }
}
