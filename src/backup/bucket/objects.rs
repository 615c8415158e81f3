//! All objects of a bucket in the order of the trees.
//!
//! A listing comes in the order of whole keys, in which `a-b` stands before `a/b`; trees hold `a` first. So all of it is
//! held and sorted: about 60 bytes an object, and its path and entity tag, which makes 200 MB of a million ordinary ones.

use crate::repo::bucket_names as names;
use crate::store::bucket::Listed;

/// No more objects are held: 3 GB.
const OBJECTS_MAX: usize = 16 << 20;
/// Between the names of a path: no name has it, and it sorts before all that they have.
pub(super) const SEPARATOR: u8 = 0;

/// An object of the listing.
pub(super) struct Entry {
    /// The names on its way below the bucket, then its entity tag: one piece of memory.
    path_and_etag: Box<[u8]>,
    path_bytes: u32,
    pub(super) bytes: u64,
    pub(super) modified_unix_ms: i64,
}

impl Entry {
    fn new(path: &[u8], etag: &[u8], bytes: u64, modified_unix_ms: i64) -> Self {
        let path_bytes = u32::try_from(path.len()).expect("a key makes at most 10 KB of path");
        Self { path_and_etag: [path, etag].concat().into(), path_bytes, bytes, modified_unix_ms }
    }

    /// Its names, with [`SEPARATOR`] between them.
    pub(super) fn path(&self) -> &[u8] {
        &self.path_and_etag[..self.path_bytes as usize]
    }

    /// Its entity tag, without quotes.
    pub(super) fn etag(&self) -> &[u8] {
        &self.path_and_etag[self.path_bytes as usize..]
    }

    /// Its key.
    pub(super) fn key(&self) -> String {
        names::key(self.path().split(|byte| *byte == SEPARATOR)).expect("its path was made of a key")
    }
}

/// All objects.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) entries: Vec<Entry>,
    /// Keys that no path can hold.
    pub(super) nameless: Vec<String>,
}

impl Objects {
    /// Adds an object of the listing.
    pub(super) fn add(&mut self, object: &Listed) {
        match names::components(&object.key) {
            Some(names) => {
                let path = names.join(&SEPARATOR);
                self.entries.push(Entry::new(&path, object.etag.as_bytes(), object.bytes, object.modified_unix_ms));
            }
            None => self.nameless.push(object.key.clone()),
        }
    }

    /// Tells whether there are more than can be held.
    pub(super) fn is_full(&self) -> bool {
        self.entries.len() + self.nameless.len() > OBJECTS_MAX
    }

    /// Puts them into the order of the trees. An object whose key is also a folder's moves into that folder.
    pub(super) fn sort(&mut self) {
        self.entries.sort_unstable_by(|a, b| a.path().cmp(b.path()));
        self.entries.dedup_by(|b, a| a.path() == b.path()); // a key may be listed twice when it is put meanwhile
        let mut moved = false;
        for at in 1..self.entries.len() {
            let (this, next) = (&self.entries[at - 1], &self.entries[at]);
            let below = next.path().strip_prefix(this.path());
            if below.is_some_and(|below| below.first() == Some(&SEPARATOR)) {
                let path = [this.path(), &[SEPARATOR], names::OBJECT].concat();
                self.entries[at - 1] = Entry::new(&path, this.etag(), this.bytes, this.modified_unix_ms);
                moved = true;
            }
        }
        if moved {
            self.entries.sort_unstable_by(|a, b| a.path().cmp(b.path()));
        }
    }

    /// How many there are, and their bytes.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.entries.len() as u64, self.entries.iter().map(|entry| entry.bytes).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_stand_in_the_order_of_the_trees() {
        let mut objects = Objects::default();
        for key in ["a", "a-b", "a/", "a//c", "a/b", "a/b", "b", "\0"] {
            objects.add(&Listed { key: key.to_owned(), etag: "e".to_owned(), ..Listed::default() });
        }
        objects.sort();
        let shown = |entry: &Entry| String::from_utf8_lossy(entry.path()).replace('\0', "/");
        let paths: Vec<_> = objects.entries.iter().map(shown).collect();
        assert_eq!(paths, ["a/%empty/%object", "a/%empty/c", "a/%object", "a/b", "a-b", "b"]);
        let keys: Vec<_> = objects.entries.iter().map(Entry::key).collect();
        assert_eq!(keys, ["a/", "a//c", "a", "a/b", "a-b", "b"]);
        assert!(objects.entries.iter().all(|entry| entry.etag() == b"e"));
        assert_eq!(objects.nameless, ["\0"]);
    }
}
