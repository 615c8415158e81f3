//! Which entries of the source are taken.
//!
//! Rules of the command line come first, then those of the files in the folders above an entry, the innermost first; what
//! nobody speaks of is taken. The walk and `explain` ask the same questions here, in the same order. A folder's
//! own files are looked for in its listing, which is at hand: a folder without them costs no system call.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Stat};

use super::rules::{Rule, RuleError, Rules, Ruling};
use crate::monitor::Monitor;

/// The file in a folder whose rules hold below it.
pub const IGNORE_FILE: &str = ".klosetignore";
/// git's.
const GIT_IGNORE_FILE: &str = ".gitignore";
/// What makes a folder a repository of git: rules from above end there.
const GIT: &str = ".git";
/// A file of rules is not longer: others are of a few hundred bytes, and a matcher takes many times that.
const IGNORE_FILE_BYTES_MAX: u64 = 256 << 10;

/// What is left out of a backup.
#[derive(Clone, Debug, Default)]
pub struct Excludes {
    /// Rules with the syntax of gitignore, on absolute paths.
    pub rules: Vec<Rule>,
    /// Whether the rules in files named [`IGNORE_FILE`] count.
    pub ignore_files: bool,
    /// Whether those in `.gitignore` count.
    pub git_ignore_files: bool,
    /// What makes a folder one whose content is left out.
    pub markers: Vec<Marker>,
    /// Regular files of more bytes are left out.
    pub larger_than: Option<u64>,
}

/// A file that says that what is beside it is to be left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Its name.
    pub name: Vec<u8>,
    /// What it begins with.
    pub header: Vec<u8>,
}

impl Marker {
    /// The marker of folders whose content can be had again (<https://bford.info/cachedir/>).
    #[must_use]
    pub fn cache() -> Self {
        Self { name: b"CACHEDIR.TAG".into(), header: b"Signature: 8a477f597d28d172789f06886806bc55".into() }
    }

    /// Tells whether the file of that name is one.
    fn is_in(&self, folder: impl AsFd) -> bool {
        if self.header.is_empty() {
            return true;
        }
        let bytes = u64::try_from(self.header.len()).unwrap_or(u64::MAX);
        open(folder, &self.name).and_then(|file| read(file, bytes)).is_ok_and(|begin| begin == self.header)
    }
}

/// What holds in every folder of a walk, whatever its own files say.
pub(super) struct Fixed<'a> {
    excludes: &'a Excludes,
    rules: Rules,
    one_file_system: bool,
    /// Folders that are never entered: the kloset's own.
    skip: HashSet<(u64, u64)>,
}

/// Chooses what is taken, for one walk.
pub(super) struct Select<'a> {
    fixed: Arc<Fixed<'a>>,
    /// The folders that the walk is in and that have rules of their own, innermost last.
    levels: Vec<Level>,
}

/// The rules of a folder's own files.
#[derive(Default)]
struct Level {
    own: Rules,
    git: Rules,
    /// It is a repository of git: no rules from above hold for git.
    is_git: bool,
}

/// What a folder's own files say of it; to be left again.
#[derive(Default)]
pub(super) struct Inside {
    marker: Option<usize>,
    has_level: bool,
}

/// Why an entry is taken or left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ground<'a> {
    Rule(Ruling<'a>),
    Marker(&'a Marker),
    LargerThan(u64),
}

impl Ground<'_> {
    /// Tells whether it leaves an entry out.
    pub(super) fn leaves_out(&self) -> bool {
        !matches!(self, Self::Rule(Ruling { leaves_out: false, .. }))
    }
}

impl<'a> Select<'a> {
    /// Begins above all folders.
    ///
    /// # Errors
    /// [`RuleError`].
    pub(super) fn new(
        excludes: &'a Excludes,
        one_file_system: bool,
        skip: HashSet<(u64, u64)>,
    ) -> Result<Self, RuleError> {
        let rules = Rules::anywhere(&excludes.rules)?;
        Ok(Self { fixed: Arc::new(Fixed { excludes, rules, one_file_system, skip }), levels: Vec::new() })
    }

    /// Returns what holds everywhere, for who looks ahead.
    pub(super) fn fixed(&self) -> &Arc<Fixed<'a>> {
        &self.fixed
    }

    /// Tells whether nothing else decides in the folder entered last.
    pub(super) fn is_plain(&self, inside: &Inside) -> bool {
        self.levels.is_empty() && inside.marker.is_none()
    }

    /// Enters a folder that is taken whole: looks for its own files among its sorted names.
    pub(super) fn enter(&mut self, folder: &OwnedFd, path: &[u8], names: &[Vec<u8>], monitor: &Monitor) -> Inside {
        let excludes = self.fixed.excludes;
        let marker = excludes.markers.iter().position(|marker| has(names, &marker.name) && marker.is_in(folder));
        let rules = |name: &str, counts: bool| {
            if counts && has(names, name.as_bytes()) { rules_of(folder, path, name, monitor) } else { Rules::default() }
        };
        let level = Level {
            own: rules(IGNORE_FILE, excludes.ignore_files),
            git: rules(GIT_IGNORE_FILE, excludes.git_ignore_files),
            is_git: excludes.git_ignore_files && has(names, GIT.as_bytes()),
        };
        let has_level = level.is_git || !level.own.is_empty() || !level.git.is_empty();
        self.levels.extend(has_level.then_some(level));
        Inside { marker, has_level }
    }

    /// Leaves the folder entered last.
    pub(super) fn leave(&mut self, inside: Inside) {
        if inside.has_level {
            self.levels.pop();
        }
    }

    /// Returns what decides about the entry at the path, in the folder entered last; `None`: it is taken.
    pub(super) fn ground(&self, inside: &Inside, path: &[u8], stat: &Stat) -> Option<Ground<'_>> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if let Some(marker) = inside.marker.and_then(|at| self.fixed.excludes.markers.get(at))
            && path.rsplit(|byte| *byte == b'/').next().is_none_or(|name| name != marker.name)
        {
            return Some(Ground::Marker(marker));
        }
        let ruling = self.ruling(path, kind == FileType::Directory);
        if let Some(bytes_max) = self.fixed.excludes.larger_than
            && !ruling.is_some_and(|ruling| ruling.leaves_out)
            && kind == FileType::RegularFile
            && u64::try_from(stat.st_size).is_ok_and(|bytes| bytes > bytes_max)
        {
            return Some(Ground::LargerThan(bytes_max));
        }
        ruling.map(Ground::Rule)
    }

    /// Tells whether an object of a bucket, of that many bytes, or a folder of it is left out.
    pub(super) fn leaves_out_object(&self, path: &[u8], bytes: Option<u64>) -> bool {
        self.ruling(path, bytes.is_none()).is_some_and(|ruling| ruling.leaves_out)
            || self.fixed.excludes.larger_than.zip(bytes).is_some_and(|(bytes_max, bytes)| bytes > bytes_max)
    }

    fn ruling(&self, path: &[u8], directory: bool) -> Option<Ruling<'_>> {
        if let Some(ruling) = self.fixed.rules.ruling(path, directory) {
            return Some(ruling);
        }
        let mut in_git = true;
        for level in self.levels.iter().rev() {
            let git = || if in_git { level.git.ruling(path, directory) } else { None };
            if let Some(ruling) = level.own.ruling(path, directory).or_else(git) {
                return Some(ruling);
            }
            in_git &= !level.is_git;
        }
        None
    }
}

impl Fixed<'_> {
    /// Tells whether a folder with these sorted names has no files that could say anything of what is in it.
    pub(super) fn is_silent(&self, names: &[Vec<u8>]) -> bool {
        let Excludes { markers, ignore_files, git_ignore_files, .. } = self.excludes;
        !(markers.iter().any(|marker| has(names, &marker.name))
            || *ignore_files && has(names, IGNORE_FILE.as_bytes())
            || *git_ignore_files && (has(names, GIT_IGNORE_FILE.as_bytes()) || has(names, GIT.as_bytes())))
    }

    /// Tells whether a folder is taken and its entries walked, where nothing else decides.
    pub(super) fn walks(&self, device: Option<u64>, path: &[u8], stat: &Stat) -> bool {
        self.enters(device, stat) && !self.rules.ruling(path, true).is_some_and(|ruling| ruling.leaves_out)
    }

    /// Tells whether a folder's entries are to be walked, in a folder on `device`.
    pub(super) fn enters(&self, device: Option<u64>, stat: &Stat) -> bool {
        !self.is_foreign(device, stat) && !self.is_skipped(stat)
    }

    /// Tells whether a folder is on another file system, and that matters.
    pub(super) fn is_foreign(&self, device: Option<u64>, stat: &Stat) -> bool {
        self.one_file_system && device.is_some_and(|device| device != stat.st_dev)
    }

    /// Tells whether a folder is the kloset's own.
    pub(super) fn is_skipped(&self, stat: &Stat) -> bool {
        self.skip.contains(&(stat.st_dev, stat.st_ino))
    }
}

/// Tells whether a name is among sorted ones.
fn has(names: &[Vec<u8>], name: &[u8]) -> bool {
    names.binary_search_by(|other| other.as_slice().cmp(name)).is_ok()
}

/// Reads the rules in a file of a folder. What cannot be read or understood is told and leaves nothing out.
fn rules_of(folder: &OwnedFd, path: &[u8], name: &str, monitor: &Monitor) -> Rules {
    let file = [path, b"/", name.as_bytes()].concat();
    let tell = |problem: String| monitor.trouble(&file, format!("its rules do not count: {problem}"));
    let content = open(folder, name.as_bytes()).and_then(|file| read(file, IGNORE_FILE_BYTES_MAX + 1));
    let content = match content {
        Ok(content) if content.len() as u64 <= IGNORE_FILE_BYTES_MAX => content,
        Ok(_) => {
            tell(format!("more than {IGNORE_FILE_BYTES_MAX} bytes"));
            return Rules::default();
        }
        Err(error) => {
            tell(error.to_string());
            return Rules::default();
        }
    };
    let (rules, errors) = Rules::below(path, &String::from_utf8_lossy(&file), &content);
    for error in errors {
        monitor.trouble(&file, format!("this rule does not count: \"{}\": {}", error.rule, error.problem));
    }
    rules
}

/// Opens a regular file in a folder, as those are opened that are backed up.
fn open(folder: impl AsFd, name: &[u8]) -> std::io::Result<File> {
    let file = super::read::open(folder, name)?;
    let is_file = file.metadata()?.is_file();
    if is_file { Ok(file) } else { Err(std::io::Error::other("it is no regular file")) }
}

/// Reads the first bytes of a file.
fn read(file: File, bytes_max: u64) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(bytes_max).read_to_end(&mut content)?;
    Ok(content)
}
