//! What a backup is asked for: paths, and the names to take on the way to them.
//!
//! Paths are made absolute, with `.` and `..` taken out; a stream has a place among them but nothing on disk. Conflicts
//! are found here, before anything is read.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::BackupError;
use super::stream::Stream;
use crate::repo::tree::Name;

/// The names on the way to a path from the top.
pub(super) type Components = Vec<Vec<u8>>;

/// What is to be backed up.
#[derive(Default)]
pub(super) struct Targets {
    /// Of files and folders, sorted.
    pub(super) paths: Vec<Components>,
    /// Of streams, in their own order.
    pub(super) streams: Vec<Components>,
    /// Paths of lists that are not there, and what the system said.
    pub(super) missing: Vec<(Vec<u8>, Errno)>,
}

impl Targets {
    /// Looks at what was asked for: a path that was named has to be there, one of a list is noted if it is not.
    ///
    /// # Errors
    /// [`BackupError::Source`], [`BackupError::Nothing`].
    pub(super) fn new(named: &[PathBuf], listed: &[PathBuf], streams: &[Stream]) -> Result<Self, BackupError> {
        let mut targets = Self::default();
        for path in named {
            rustix::fs::lstat(path).map_err(|error| source(path, &error))?;
            targets.paths.push(components(path)?);
        }
        for path in listed {
            match rustix::fs::lstat(path) {
                Ok(_) => targets.paths.push(components(path)?),
                Err(error) => targets.missing.push((absolute(&components(path)?), error)),
            }
        }
        targets.paths.sort();
        targets.paths.dedup();
        for stream in streams {
            let at = stream_components(&stream.path)?;
            let mut all = targets.paths.iter().chain(&targets.streams);
            if let Some(other) = all.find(|other| at.starts_with(other) || other.starts_with(&at)) {
                let other = String::from_utf8_lossy(&absolute(other)).into_owned();
                return Err(source(
                    &stream.path,
                    &format!("its place is taken by \"{other}\", which is backed up as well"),
                ));
            }
            targets.streams.push(at);
        }
        if targets.paths.is_empty() && targets.streams.is_empty() {
            return Err(BackupError::Nothing);
        }
        Ok(targets)
    }

    /// Takes one path that is not looked for: a bucket's.
    pub(super) fn of_bucket(path: Components) -> Self {
        Self { paths: vec![path], ..Self::default() }
    }

    /// Returns all places in the snapshot, absolute and sorted.
    pub(super) fn absolute(&self) -> Vec<Vec<u8>> {
        let mut all: Vec<_> = self.paths.iter().chain(&self.streams).collect();
        all.sort();
        all.into_iter().map(|path| absolute(path)).collect()
    }

    /// Returns the innermost folder that holds all of them.
    pub(super) fn common(&self) -> Vec<u8> {
        let mut all = self.paths.iter().chain(&self.streams).map(|path| &path[..]);
        let first = all.next().unwrap_or_default();
        let common = all.fold(first, |common, path| {
            let same = common.iter().zip(path).take_while(|(a, b)| a == b).count();
            &common[..same]
        });
        absolute(common)
    }
}

/// Names to take in a folder: all of them, or those on the way to the targets.
#[derive(Default)]
pub(super) struct Selection {
    /// It is a target, or below one.
    pub(super) all: bool,
    /// It is the stream of that number.
    pub(super) stream: Option<usize>,
    /// It is on the way to a target that is on disk.
    pub(super) is_on_disk: bool,
    pub(super) below: BTreeMap<Vec<u8>, Selection>,
}

/// What is below a target.
pub(super) static EVERYTHING: Selection =
    Selection { all: true, stream: None, is_on_disk: true, below: BTreeMap::new() };

impl Selection {
    pub(super) fn of(targets: &Targets) -> Self {
        let mut selection = Self::default();
        targets.paths.iter().for_each(|path| selection.add(path));
        targets.streams.iter().enumerate().for_each(|(at, path)| selection.add_stream(path, at));
        selection
    }

    fn add(&mut self, components: &[Vec<u8>]) {
        self.is_on_disk = true;
        match components.split_first() {
            None => (self.all, self.below) = (true, BTreeMap::new()),
            Some(_) if self.all => {}
            Some((first, rest)) => self.below.entry(first.clone()).or_default().add(rest),
        }
    }

    fn add_stream(&mut self, components: &[Vec<u8>], at: usize) {
        match components.split_first() {
            None => self.stream = Some(at),
            Some((first, rest)) => self.below.entry(first.clone()).or_default().add_stream(rest, at),
        }
    }
}

fn source(path: &Path, problem: &dyn std::fmt::Display) -> BackupError {
    BackupError::Source { path: path.to_owned(), problem: problem.to_string() }
}

/// Returns the names on the way to a path, without `.` and `..`.
pub(super) fn components(path: &Path) -> Result<Components, BackupError> {
    let mut components = Vec::new();
    for component in std::path::absolute(path).map_err(|error| source(path, &error))?.components() {
        match component {
            Component::Normal(name) => components.push(name.as_bytes().to_vec()),
            Component::ParentDir => drop(components.pop()),
            _ => {}
        }
    }
    Ok(components)
}

/// Returns the names on the way to a stream's place, which is below the top, wherever the program runs.
fn stream_components(path: &Path) -> Result<Components, BackupError> {
    let components = components(&Path::new("/").join(path))?;
    let depth_max = super::walk::DEPTH_MAX;
    match components.iter().find(|name| Name::new(name).is_err()) {
        Some(_) => Err(source(path, &Errno::NAMETOOLONG)),
        None if components.is_empty() => Err(source(path, &"it is the name of no file")),
        None if components.len() > depth_max => Err(source(path, &Errno::NAMETOOLONG)),
        None => Ok(components),
    }
}

pub(super) fn absolute(target: &[Vec<u8>]) -> Vec<u8> {
    if target.is_empty() { b"/".to_vec() } else { target.iter().flat_map(|c| [b"/", &c[..]].concat()).collect() }
}

#[cfg(test)]
mod tests {
    use super::super::stream::StreamSource;
    use super::*;

    fn stream(path: &str) -> Stream {
        Stream { path: path.into(), source: StreamSource::Input }
    }

    #[track_caller]
    fn check(named: &[&str], streams: &[&str], expected: Result<&[&str], &str>) {
        let named: Vec<_> = named.iter().map(PathBuf::from).collect();
        let streams: Vec<_> = streams.iter().map(|path| stream(path)).collect();
        let found = Targets::new(&named, &[], &streams).map(|targets| targets.absolute());
        let found = found.map(|all| all.into_iter().map(|p| String::from_utf8(p).unwrap()).collect::<Vec<_>>());
        match (found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn paths_and_streams_have_places_that_do_not_overlap() {
        check(&["/proc/self/../..", "/proc/."], &[], Ok(&["/", "/proc"]));
        check(&["/proc"], &["dump.sql", "/a/../b/./c"], Ok(&["/b/c", "/dump.sql", "/proc"]));
        check(&["/proc"], &["/proc/x"], Err("its place is taken by \"/proc\""));
        check(&["/proc/self"], &["proc"], Err("its place is taken by \"/proc/self\""));
        check(&[], &["a", "a/b"], Err("its place is taken by \"/a\""));
        check(&[], &["a", "./a"], Err("its place is taken by \"/a\""));
        check(&[], &["/"], Err("no file"));
        check(&[], &[&"x".repeat(256)], Err("long"));
        check(&[], &[], Err("nothing"));
        check(&["/is not there"], &[], Err("No such file"));
    }

    #[test]
    fn many_paths_have_one_folder_in_common() {
        let of = |paths: &[&str]| {
            let paths = paths.iter().map(|path| components(Path::new(path)).unwrap()).collect();
            String::from_utf8(Targets { paths, ..Targets::default() }.common()).unwrap()
        };
        assert_eq!(of(&["/a/b/c", "/a/b/d/e", "/a/b"]), "/a/b");
        assert_eq!(of(&["/a/b", "/c"]), "/");
        assert_eq!(of(&["/a/b"]), "/a/b");
    }

    #[test]
    fn folders_on_the_way_to_streams_alone_are_not_on_disk() {
        let streams = vec![components(Path::new("/a/s")).unwrap(), components(Path::new("/b/c/s")).unwrap()];
        let paths = vec![components(Path::new("/a/x")).unwrap()];
        let top = Selection::of(&Targets { paths, streams, missing: Vec::new() });
        assert!(top.is_on_disk && top.below[&b"a"[..]].is_on_disk && !top.below[&b"b"[..]].is_on_disk);
        assert_eq!(top.below[&b"a"[..]].below[&b"s"[..]].stream, Some(0));
        assert_eq!(top.below[&b"b"[..]].below[&b"c"[..]].below[&b"s"[..]].stream, Some(1));
    }
}
