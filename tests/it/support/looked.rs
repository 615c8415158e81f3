//! A view without a kernel, with the blocking calls that tests want.

use std::collections::BTreeMap;

use kloset_mount::fs::attr::Attr;
use kloset_mount::fs::view::ROOT;
use kloset_mount::fs::{FsError, View, ViewOptions};

use super::switched::Kloset;

/// A view and the kloset behind it.
pub(crate) struct Looked<'a> {
    pub(crate) kloset: &'a Kloset,
    pub(crate) view: View,
}

impl Kloset {
    pub(crate) fn look(&self) -> Looked<'_> {
        self.look_with(ViewOptions::default())
    }

    pub(crate) fn look_with(&self, options: ViewOptions) -> Looked<'_> {
        let view = self.runtime.block_on(View::new(self.repo.clone(), options)).unwrap();
        Looked { kloset: self, view }
    }
}

impl Looked<'_> {
    pub(crate) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.kloset.runtime.block_on(work)
    }

    /// Follows a path of bytes and returns what it leads to.
    pub(crate) fn find(&self, path: &str) -> Option<Attr> {
        self.find_below(ROOT, path)
    }

    pub(crate) fn find_below(&self, from: u64, path: &str) -> Option<Attr> {
        let mut attr = self.run(self.view.getattr(from)).unwrap().attr;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            attr = self.run(self.view.lookup(attr.number, name.as_bytes())).unwrap().attr?;
        }
        Some(attr)
    }

    /// Lists a folder as the kernel does, `lines` at a time.
    pub(crate) fn list(&self, number: u64, lines: usize) -> BTreeMap<String, Attr> {
        let (mut all, listed) = (BTreeMap::new(), self.lines(number, lines));
        for (name, attr) in listed.unwrap() {
            assert!(all.insert(name, attr).is_none(), "listed twice");
        }
        all
    }

    /// The lines of a folder in their order, and the error that they end with.
    pub(crate) fn lines(&self, number: u64, lines: usize) -> Result<Vec<(String, Attr)>, (Vec<String>, FsError)> {
        let (mut all, mut offset) = (Vec::new(), 0);
        loop {
            let mut taken = 0;
            let listed = self.run(self.view.readdir(number, offset, false, &mut |line| {
                if taken == lines {
                    return true;
                }
                all.push((String::from_utf8_lossy(line.name).into_owned(), line.attr));
                (taken, offset) = (taken + 1, line.next);
                false
            }));
            match listed {
                // As the kernel has it: what came before an error is shown, and the error when it asks on.
                Err(error) if taken == 0 => return Err((all.into_iter().map(|line| line.0).collect(), error)),
                _ if taken == 0 => return Ok(all),
                _ => {}
            }
        }
    }

    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let dots = [".".to_owned(), "..".to_owned()];
        let names = self.list(self.find(path).unwrap().number, 100).into_keys();
        names.filter(|name| !dots.contains(name)).collect()
    }

    pub(crate) fn read_all(&self, number: u64, bytes: u64) -> Result<Vec<u8>, FsError> {
        let step = 100_003;
        let reads = (0..bytes.div_ceil(step)).map(|n| self.run(self.view.read(number, n * step, 100_003)));
        Ok(reads.collect::<Result<Vec<_>, _>>()?.concat())
    }
}
