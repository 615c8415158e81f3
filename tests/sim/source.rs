//! What the hosts of a simulation back up: real folders of a few small files, and what is in them.
//!
//! Contents come from a small pool, so that hosts share them, and what was given up comes back. Each write has a time
//! of its own: two in one tick of the kernel's clock would look the same. Folders lie one in another and not side by side,
//! so that a backup has one way to go through them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;

use crate::random::{Random, noise};

/// Paths below a source, and what the files hold.
pub(crate) type Model = BTreeMap<String, Bytes>;

const NAMES: [&str; 4] = ["a", "b", "sub/c", "sub/d"];
/// Contents in the pool.
const CONTENTS: u64 = 12;
const CONTENT_BYTES_MAX: u64 = 5000;

/// A folder to be backed up.
pub(crate) struct Source {
    folder: PathBuf,
    pub(crate) model: Model,
    /// What each file holds, by the number of the content,
    holds: BTreeMap<&'static str, u64>,
    /// and what they held before each change.
    past: Vec<BTreeMap<&'static str, u64>>,
    writes: u64,
    /// Whether a change waits until the file system gives it another time than what was before it: a folder to which a file
    /// came and went again is otherwise a changed one only if that took long enough.
    pub(crate) is_patient: bool,
}

impl Source {
    /// Makes an empty folder.
    pub(crate) fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(folder.join("sub")).unwrap();
        Self { folder, model: Model::new(), holds: BTreeMap::new(), past: Vec::new(), writes: 0, is_patient: false }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.folder
    }

    /// Writes or removes some files, or makes all what they were once.
    pub(crate) fn change(&mut self, random: &mut Random) {
        if random.below(3) == 0 && !self.past.is_empty() {
            return self.go_back(random);
        }
        let mut next = self.holds.clone();
        for _ in 0..=random.below(3) {
            let (name, content) = (*random.one(&NAMES), random.below(CONTENTS + 3));
            next.remove(name);
            if content < CONTENTS {
                next.insert(name, content);
            }
        }
        self.become_as(next);
    }

    /// Makes all files what they were long ago, which nobody needs any more as a rule.
    pub(crate) fn go_back(&mut self, random: &mut Random) {
        let old = &self.past[..self.past.len().div_ceil(2)];
        if !old.is_empty() {
            self.become_as(random.one(old).clone());
        }
    }

    fn become_as(&mut self, next: BTreeMap<&'static str, u64>) {
        if self.is_patient {
            self.let_a_tick_pass();
        }
        let before = std::mem::replace(&mut self.holds, next);
        for name in NAMES {
            match (before.get(name), self.holds.get(name).copied()) {
                (before, Some(content)) if before != Some(&content) => self.write(name, content),
                (Some(_), None) => self.remove(name),
                _ => {}
            }
        }
        self.past.extend(Some(before).filter(|before| !before.is_empty()));
    }

    fn let_a_tick_pass(&self) {
        let at = self.folder.with_extension("tick");
        let now = || {
            fs::write(&at, []).unwrap();
            let meta = fs::metadata(&at).unwrap();
            (meta.ctime(), meta.ctime_nsec())
        };
        let before = now();
        while now() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn write(&mut self, name: &str, content: u64) {
        let bytes = 300 + u64::from(blake3::hash(&content.to_le_bytes()).as_bytes()[0]) * 97 % CONTENT_BYTES_MAX;
        let content: Bytes = noise(content, usize::try_from(bytes).unwrap()).into();
        self.writes += 1;
        let at = self.folder.join(name);
        fs::write(&at, &content).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + self.writes);
        File::options().write(true).open(&at).unwrap().set_modified(time).unwrap();
        self.model.insert(name.to_owned(), content);
    }

    fn remove(&mut self, name: &str) {
        self.model.remove(name);
        fs::remove_file(self.folder.join(name)).unwrap();
    }
}
