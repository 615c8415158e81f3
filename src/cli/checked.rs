//! What a check that reads packs has found whole so far, so that one that was interrupted can be gone on with.
//!
//! A file of one pack a line in the folder for state, begun anew by each check and removed at its end. It is a note to
//! ourselves and nothing is believed of it but that these packs need not be read now; what cannot be noted costs only that.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::args::Global;
use super::backup::JOURNALS;
use super::output::Output;
use crate::repo::id::{PackId, to_hex};
use crate::repo::layout;

/// No note is longer: a kloset of 20 TB has a million packs.
const BYTES_MAX: u64 = 256 << 20;

/// The packs found whole by the check that is running, and by one that was interrupted.
pub(crate) struct Checked {
    path: Option<PathBuf>,
    file: Mutex<Option<File>>,
}

impl Checked {
    /// Begins a note for a check of `what` in the kloset at `location`; returns it and, with `resume`, the packs that an
    /// interrupted check found whole.
    pub(crate) fn begin(
        global: &Global,
        (location, what): (&str, &str),
        resume: bool,
        out: &mut Output,
    ) -> (Checked, HashSet<PackId>) {
        let folder = global.env.our_folder(&JOURNALS, rustix::process::geteuid().is_root());
        let stem = to_hex(&blake3::hash(location.as_bytes()).as_bytes()[..16]);
        let path = folder.map(|folder| folder.join("checks").join(format!("{stem}-{what}")));
        let whole = match &path {
            Some(path) if resume => read(path).unwrap_or_else(|error| {
                out.warn(format_args!("{path:?}: {error}: nothing is known of an interrupted check"));
                HashSet::new()
            }),
            _ => HashSet::new(),
        };
        let opened = path.as_deref().map(|path| open(path, resume)).transpose();
        let file = opened.unwrap_or_else(|error| {
            tracing::info!("this check could not be gone on with, should it be interrupted: {error}");
            None
        });
        (Checked { path, file: Mutex::new(file) }, whole)
    }

    /// Notes that a pack is whole.
    pub(crate) fn note(&self, pack: PackId) {
        let mut file = self.file.lock().expect("no panic while held");
        // Half a line is no pack's name: what is torn is passed over when it is read.
        if let Some(open) = &mut *file
            && let Err(error) = writeln!(open, "{pack}")
        {
            tracing::info!("this check could not be gone on with, should it be interrupted: {error}");
            *file = None;
        }
    }

    /// Forgets all: the check came to its end.
    pub(crate) fn end(self) {
        if let Some(path) = &self.path
            && let Err(error) = fs::remove_file(path)
        {
            tracing::debug!("{path:?}: {error}");
        }
    }
}

fn open(path: &Path, resume: bool) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    let mut options = OpenOptions::new();
    options.create(true).mode(0o600);
    if resume {
        options.append(true)
    } else {
        options.write(true).truncate(true)
    };
    let mut file = options.open(path)?;
    if resume {
        writeln!(file)?; // ends a line that was cut off
    }
    Ok(file)
}

fn read(path: &Path) -> std::io::Result<HashSet<PackId>> {
    let mut content = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(HashSet::new()),
        file => file?.take(BYTES_MAX).read_to_end(&mut content)?,
    };
    let lines = content.split(|byte| *byte == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
    Ok(lines.filter_map(layout::parse_pack).collect())
}

#[cfg(test)]
mod tests {
    use super::super::args::GlobalArgs;
    use super::super::env::Environment;
    use super::*;
    use crate::repo::id::SessionId;

    #[test]
    fn a_check_goes_on_where_one_was_cut_off_and_not_after_one_that_ended() {
        let home = tempfile::tempdir().unwrap();
        let env = Environment::of([("XDG_STATE_HOME", home.path().to_str().unwrap())]);
        let global = Global { args: GlobalArgs::default(), env };
        let mut out = Output::new(false, true, Box::new(std::io::sink()), Box::new(std::io::sink()));
        let pack = |number| PackId { session: SessionId([7; 32]), number };
        let mut begin = |what, resume| Checked::begin(&global, ("s3://h/b", what), resume, &mut out);

        let (first, whole) = begin("data", true);
        assert!(whole.is_empty());
        (0..3).for_each(|n| first.note(pack(n)));
        let path = first.path.clone().unwrap();
        drop(first);
        let cut = fs::read(&path).unwrap();
        fs::write(&path, &cut[..cut.len() - 5]).unwrap();
        let (second, whole) = begin("data", true);
        assert_eq!(whole, HashSet::from([pack(0), pack(1)]));
        second.note(pack(9));
        assert_eq!(begin("data", true).1, HashSet::from([pack(0), pack(1), pack(9)]));
        assert!(begin("seals", true).1.is_empty());
        second.end();
        assert!(begin("data", true).1.is_empty());
        let (third, _) = begin("data", false);
        third.note(pack(4));
        assert!(begin("data", false).1.is_empty());
        assert!(begin("data", true).1.is_empty(), "a check that was begun anew knows nothing of the one before");
    }
}
