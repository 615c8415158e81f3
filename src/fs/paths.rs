//! The inode numbers of the folders below `versions/`: from a number to a path, and back.
//!
//! A number is a hash of the parent's number and the name, so it is the same at every mount. An entry is there as long as
//! the kernel holds its number or that of something below it: about 100 bytes and the name. It knows nothing of
//! snapshots; whether there is such a path is for others to say.

use std::collections::HashMap;
use std::sync::Mutex;

use super::hash;

/// Set in the numbers of these folders and of nothing else below [`super::inodes::NODE_BIT`].
pub const PATH_BIT: u64 = 1 << 61;

/// The table of these folders; the one at the top, `versions/`, is not in it.
#[derive(Default)]
pub struct Paths(Mutex<HashMap<u64, Entry>>);

struct Entry {
    parent: u64,
    name: Box<[u8]>,
    lookups: u64,
    /// Entries whose parent this is.
    children: u32,
}

/// Where a folder is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Inode number of the folder above.
    pub parent: u64,
    /// Path below `versions/`, without a slash at either end.
    pub path: Vec<u8>,
}

impl Paths {
    /// Returns the number of a folder without counting a lookup.
    #[must_use]
    pub fn number(&self, parent: u64, name: &[u8]) -> u64 {
        free_or_own(&self.lock(), parent, name)
    }

    /// Counts a lookup of a folder and returns its number. The folder above must be known, or be `versions/`.
    #[must_use]
    pub fn remember(&self, parent: u64, name: &[u8]) -> u64 {
        let mut entries = self.lock();
        let number = free_or_own(&entries, parent, name);
        if let Some(entry) = entries.get_mut(&number) {
            entry.lookups += 1;
            return number;
        }
        if let Some(above) = entries.get_mut(&parent) {
            above.children += 1;
        }
        entries.insert(number, Entry { parent, name: name.into(), lookups: 1, children: 0 });
        number
    }

    /// Returns where a folder is.
    #[must_use]
    pub fn place(&self, number: u64) -> Option<Place> {
        let entries = self.lock();
        let entry = entries.get(&number)?;
        let (parent, mut names, mut above) = (entry.parent, vec![&*entry.name], entry.parent);
        while let Some(entry) = entries.get(&above) {
            names.push(&*entry.name);
            above = entry.parent;
        }
        names.reverse();
        Some(Place { parent, path: names.join(&b'/') })
    }

    /// Takes back lookups; with the last one the entry goes, and those above that were there for it alone.
    pub fn forget(&self, number: u64, lookups: u64) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(&number) else { return };
        entry.lookups = entry.lookups.saturating_sub(lookups);
        let mut at = number;
        while let Some(entry) = entries.get(&at).filter(|entry| entry.lookups == 0 && entry.children == 0) {
            let parent = entry.parent;
            entries.remove(&at);
            if let Some(above) = entries.get_mut(&parent) {
                above.children -= 1;
            }
            at = parent;
        }
        if entries.len() * 4 < entries.capacity() {
            let wanted = entries.len() * 2;
            entries.shrink_to(wanted);
        }
    }

    /// Returns how many folders are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Tells whether no folder is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Entry>> {
        self.0.lock().expect("no panic while held")
    }
}

/// Returns the number that belongs to a folder: the next one where another folder has taken it.
fn free_or_own(entries: &HashMap<u64, Entry>, parent: u64, name: &[u8]) -> u64 {
    let hash = blake3::Hasher::new().update(b"\0versions").update(&parent.to_le_bytes()).update(name).finalize();
    let mut number = hash::number(&hash) & (PATH_BIT - 1) | PATH_BIT;
    while entries.get(&number).is_some_and(|entry| entry.parent != parent || *entry.name != *name) {
        number = (number + 1) & (PATH_BIT - 1) | PATH_BIT;
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: u64 = 7;

    #[test]
    fn a_number_leads_to_its_path_and_is_the_same_in_every_table() {
        let (one, two) = (Paths::default(), Paths::default());
        let _ = two.remember(TOP, b"other");
        let number = |paths: &Paths| paths.remember(paths.remember(paths.remember(TOP, b"a"), b"b"), b"\xff");
        assert_eq!(number(&one), number(&two));
        let place = one.place(number(&one)).unwrap();
        assert_eq!(place.path, b"a/b/\xff");
        assert_eq!(one.place(place.parent).unwrap().path, b"a/b");
        assert_eq!(one.number(place.parent, b"\xff"), number(&one));
        assert_eq!(one.place(TOP), None);
    }

    #[test]
    fn what_is_forgotten_is_freed_and_what_is_above_a_known_one_is_not() {
        let paths = Paths::default();
        let above = paths.remember(TOP, b"a");
        let below = paths.remember(above, b"b");
        assert_eq!(paths.remember(TOP, b"a"), above);
        paths.forget(above, 2);
        assert_eq!((paths.len(), paths.place(below).unwrap().path), (2, b"a/b".to_vec()));
        paths.forget(below, 1);
        assert!(paths.is_empty());
        paths.forget(below, 1);
    }

    #[test]
    fn folders_whose_numbers_collide_stay_apart() {
        let paths = Paths::default();
        let number = paths.number(TOP, b"a");
        let taken = Entry { parent: TOP, name: (*b"taken").into(), lookups: 1, children: 0 };
        paths.lock().insert(number, taken);
        assert_eq!(paths.remember(TOP, b"a"), number + 1);
        assert_eq!(paths.place(number + 1).unwrap().path, b"a");
        assert_eq!(paths.place(number).unwrap().path, b"taken");
    }
}
