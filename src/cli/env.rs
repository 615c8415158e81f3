//! The environment of the process as a value: read once, at the start, here only.
//!
//! Promises that all of the program sees the same environment and that tests can hand in theirs.
//! An empty variable counts as not set, as `XDG_CONFIG_HOME=` and `AWS_PROFILE=` are used to.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use crate::store::Secret;

/// Name of our folder among those of others.
const OURS: &str = "kloset-mount";

/// Where programs keep things of one kind.
pub(crate) struct Place {
    /// The variable by which systemd names the folders that a service was given.
    pub systemd: &'static str,
    /// The variable of XDG, and what it is below the home where it is not set.
    pub xdg: (&'static str, &'static str),
    /// Our folder of root where there is no home, as for a service.
    pub of_root: &'static str,
}

/// Environment variables.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<OsString, OsString>);

/// Shows the names only: values may be secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// The environment of this process.
    pub(crate) fn of_process() -> Environment {
        Environment(std::env::vars_os().collect())
    }

    /// An environment of these variables only.
    #[cfg(test)]
    pub(crate) fn of<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Environment {
        let own = |(name, value): (&str, &str)| (name.into(), value.into());
        Environment(variables.into_iter().map(own).collect())
    }

    /// A variable as text; `None` where it is absent, empty or not UTF-8.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.raw(name)?.to_str()
    }

    /// A variable as a path.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.raw(name).map(PathBuf::from)
    }

    /// A variable as an absolute path; XDG says that relative ones are to be ignored.
    pub(crate) fn absolute_path(&self, name: &str) -> Option<PathBuf> {
        self.path(name).filter(|path| path.is_absolute())
    }

    /// A variable as a secret, whatever its bytes.
    pub(crate) fn secret(&self, name: &str) -> Option<Secret> {
        use std::os::unix::ffi::OsStrExt;
        self.raw(name).map(|value| Secret::new(value.as_bytes().to_vec()))
    }

    /// `$XDG_…_HOME`, or its default below `$HOME`; `None` where a service has neither.
    pub(crate) fn xdg(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let below = || Some(self.absolute_path("HOME")?.join(below_home));
        self.absolute_path(variable).or_else(below)
    }

    /// Our folder in a place; `None` where nobody says one.
    pub(crate) fn our_folder(&self, place: &Place, is_root: bool) -> Option<PathBuf> {
        // Of several folders that systemd gives, the first is for us.
        let given = self.text(place.systemd).and_then(|all| all.split(':').next()).map(PathBuf::from);
        given
            .filter(|folder| folder.is_absolute())
            .or_else(|| Some(self.xdg(place.xdg.0, place.xdg.1)?.join(OURS)))
            .or_else(|| is_root.then(|| place.of_root.into()))
    }

    fn raw(&self, name: &str) -> Option<&OsStr> {
        let value = self.0.get(OsStr::new(name))?;
        (!value.is_empty()).then_some(value.as_os_str())
    }
}
