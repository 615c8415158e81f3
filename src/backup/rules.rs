//! Rules that leave paths out, with the syntax of gitignore.
//!
//! From lines to a matcher, and what it says of a path; a later rule wins, `!` takes one back. It reads no files and
//! does not know which rules come before which others: that is `select`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// A line of rules, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The line.
    pub text: String,
    /// For people: an option of the command line, or a file and the line in it.
    pub from: String,
}

/// A rule that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("exclude rule \"{rule}\": {problem}")]
pub struct RuleError {
    /// The rule.
    pub rule: String,
    /// What is wrong with it.
    pub problem: String,
}

/// What a rule says of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ruling<'a> {
    /// Left out, or taken back.
    pub(super) leaves_out: bool,
    pub(super) rule: &'a Rule,
}

/// A list of rules.
#[derive(Default)]
pub(super) struct Rules(Option<(Gitignore, Vec<Rule>)>);

impl Rules {
    /// Parses rules that hold anywhere, on absolute paths: `/etc/x` is that path alone, `x` is any file or folder of that
    /// name, `a/b` is that pair anywhere. Empty lines and `#` comments are passed over.
    ///
    /// # Errors
    /// [`RuleError`].
    pub(super) fn anywhere(lines: &[Rule]) -> Result<Self, RuleError> {
        let mut builder = GitignoreBuilder::new("/");
        for (at, Rule { text, .. }) in lines.iter().enumerate() {
            builder.add_line(Some(number(at)), &with_any_folder(text)).map_err(|e| bad(text, &e))?;
        }
        Self::build(&builder, lines.to_vec())
    }

    /// Parses the rules of a folder's own file, as git does: a rule with a slash that is not its last character is one
    /// place below the folder. What cannot be understood is returned and does not count.
    pub(super) fn below(folder: &[u8], file: &str, content: &[u8]) -> (Self, Vec<RuleError>) {
        let mut builder = GitignoreBuilder::new(OsStr::from_bytes(folder));
        let (mut lines, mut errors) = (Vec::new(), Vec::new());
        for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let text = String::from_utf8_lossy(line).into_owned();
            let added = match std::str::from_utf8(line) {
                Ok(line) => builder.add_line(Some(number(at)), line).map(drop).map_err(|e| bad(line, &e)),
                Err(error) => Err(bad(&text, &error)),
            };
            errors.extend(added.err());
            lines.push(Rule { text, from: format!("{file}:{}", at + 1) });
        }
        match Self::build(&builder, lines) {
            Ok(rules) => (rules, errors),
            Err(error) => (Self::default(), vec![error]),
        }
    }

    fn build(builder: &GitignoreBuilder, lines: Vec<Rule>) -> Result<Self, RuleError> {
        let rules = builder.build().map_err(|e| bad("", &e))?;
        Ok(Self((!rules.is_empty()).then_some((rules, lines))))
    }

    /// Tells whether there are no rules.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns what the last rule that fits says of an absolute path, by its own name; who walks from the top asks for
    /// each level.
    pub(super) fn ruling(&self, path: &[u8], directory: bool) -> Option<Ruling<'_>> {
        let (rules, lines) = self.0.as_ref()?;
        let (leaves_out, glob) = match rules.matched(OsStr::from_bytes(path), directory) {
            Match::None => return None,
            Match::Ignore(glob) => (true, glob),
            Match::Whitelist(glob) => (false, glob),
        };
        let at = glob.from().and_then(Path::to_str).and_then(|number| number.parse::<usize>().ok());
        at.and_then(|at| lines.get(at)).map(|rule| Ruling { leaves_out, rule })
    }
}

/// Rules that hold anywhere, for paths of a snapshot as for those of a backup.
pub struct PathRules(Rules);

impl PathRules {
    /// Parses rules.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn new(lines: &[Rule]) -> Result<Self, RuleError> {
        Rules::anywhere(lines).map(Self)
    }

    /// Tells whether an absolute path is left out by its own name; who walks from the top asks for each level.
    #[must_use]
    pub fn leaves_out(&self, path: &[u8], is_directory: bool) -> bool {
        self.0.ruling(path, is_directory).is_some_and(|ruling| ruling.leaves_out)
    }
}

/// A rule's place in its list, where the matcher has room for the name of a file.
fn number(at: usize) -> PathBuf {
    at.to_string().into()
}

fn bad(rule: &str, problem: &dyn std::fmt::Display) -> RuleError {
    RuleError { rule: rule.into(), problem: problem.to_string() }
}

/// Lets a rule with a slash in its middle hold anywhere, as one without does.
fn with_any_folder(line: &str) -> String {
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

    fn lines(rules: &[&str]) -> Vec<Rule> {
        rules.iter().map(|text| Rule { text: (*text).to_owned(), from: "--exclude".to_owned() }).collect()
    }

    #[track_caller]
    fn check(rules: &[&str], path: &str, directory: bool, excluded: bool) {
        let parsed = Rules::anywhere(&lines(rules)).unwrap();
        let ruling = parsed.ruling(path.as_bytes(), directory);
        assert_eq!(ruling.is_some_and(|r| r.leaves_out), excluded, "{rules:?} {path}");
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

    #[test]
    fn the_rule_that_decides_is_the_one_that_was_written() {
        let rules = Rules::anywhere(&lines(&["*.o", "a/b", "!keep.o"])).unwrap();
        for (path, leaves_out, text) in [("/x.o", true, "*.o"), ("/x/a/b", true, "a/b"), ("/keep.o", false, "!keep.o")]
        {
            let ruling = rules.ruling(path.as_bytes(), false).unwrap();
            assert_eq!((ruling.leaves_out, &*ruling.rule.text), (leaves_out, text), "{path}");
        }
    }

    #[test]
    fn a_folders_own_rules_hold_below_it_as_gits_do() {
        let content = b"# note\r\n/top\nin/side\n*.o\n!keep.o\ncache/\n\xff\xfe\n[z-a]\n";
        let (rules, errors) = Rules::below(b"/home/x", "/home/x/.klosetignore", content);
        let said =
            |path: &str, directory| rules.ruling(path.as_bytes(), directory).map(|r| (r.leaves_out, &*r.rule.from));
        assert_eq!(said("/home/x/top", false), Some((true, "/home/x/.klosetignore:2")));
        assert_eq!(said("/home/x/deep/top", false), None);
        assert_eq!(said("/home/x/in/side", false), Some((true, "/home/x/.klosetignore:3")));
        assert_eq!(said("/home/x/deep/in/side", false), None);
        assert_eq!(said("/home/x/deep/a.o", false), Some((true, "/home/x/.klosetignore:4")));
        assert_eq!(said("/home/x/deep/keep.o", false), Some((false, "/home/x/.klosetignore:5")));
        assert_eq!(said("/home/x/cache", true), Some((true, "/home/x/.klosetignore:6")));
        assert_eq!(said("/home/x/cache", false), None);
        let wrong: Vec<_> = errors.into_iter().map(|e| e.rule).collect();
        assert_eq!(wrong, ["\u{fffd}\u{fffd}", "[z-a]"]);
    }
}
