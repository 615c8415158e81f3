//! The bucket of a simulation: objects, when each was put, and what an operation makes of them.
//!
//! Plain data, no waiting: an operation takes effect here at once and whole. Times are those of a virtual clock, to the
//! second, as a store's are. It does not know what the objects mean.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, Result};

/// One request.
#[derive(Clone)]
pub(crate) enum Op {
    Put {
        name: String,
        content: Bytes,
        is_new: bool,
    },
    Get {
        name: String,
    },
    /// One page of a listing, behind a name.
    List {
        folder: String,
        behind: Option<String>,
    },
    Delete {
        name: String,
    },
    /// Nothing: an actor that takes its time.
    Pause,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { name, .. } => write!(f, "put {name}"),
            Self::Get { name } => write!(f, "get {name}"),
            Self::List { folder, behind: None } => write!(f, "list {folder}/"),
            Self::List { folder, behind: Some(behind) } => write!(f, "list {folder}/ behind {behind}"),
            Self::Delete { name } => write!(f, "delete {name}"),
            Self::Pause => f.write_str("pause"),
        }
    }
}

impl Op {
    /// Tells whether it changes something below a folder.
    pub(crate) fn puts_below(&self, folder: &str) -> bool {
        matches!(self, Self::Put { name, .. } if name.starts_with(folder))
    }
}

/// What a request brings.
pub(crate) enum Answer {
    Done,
    Object(Bytes, ObjectMeta),
    /// A page, and whether there is more behind it.
    Page(Vec<ObjectMeta>, bool),
}

/// Something that an operation changed.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) by: usize,
    pub(crate) name: String,
    pub(crate) is_put: bool,
}

/// How stores differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    /// Objects in one page of a listing.
    pub(crate) page: usize,
    /// Overwrites in spite of create-if-absent.
    pub(crate) ignores_condition: bool,
    /// Says that what is to be deleted is not there.
    pub(crate) misses_deleted: bool,
}

/// The objects.
pub(crate) struct Bucket {
    objects: BTreeMap<String, (Bytes, i64)>,
    habits: Habits,
}

impl Bucket {
    pub(crate) fn new(habits: Habits) -> Self {
        Self { objects: BTreeMap::new(), habits }
    }

    /// Returns the names of all objects below a folder.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        self.objects.keys().filter(|name| name.starts_with(folder)).cloned().collect()
    }

    /// Takes one operation; tells what it changed.
    pub(crate) fn apply(&mut self, op: &Op, now_ms: i64) -> (Result<Answer>, Option<(String, bool)>) {
        match op {
            Op::Put { name, is_new: true, .. } if self.keeps(name) => {
                let source = "it is there".into();
                (Err(Error::AlreadyExists { path: name.clone(), source }), None)
            }
            Op::Put { name, content, .. } => {
                self.objects.insert(name.clone(), (content.clone(), now_ms));
                (Ok(Answer::Done), Some((name.clone(), true)))
            }
            Op::Get { name } => (self.get(name), None),
            Op::List { folder, behind } => (Ok(self.list(folder, behind.as_deref())), None),
            Op::Delete { name } => match self.objects.remove(name) {
                Some(_) => (Ok(Answer::Done), Some((name.clone(), false))),
                None if self.habits.misses_deleted => (Err(missing(name)), None),
                None => (Ok(Answer::Done), None),
            },
            Op::Pause => (Ok(Answer::Done), None),
        }
    }

    fn keeps(&self, name: &str) -> bool {
        !self.habits.ignores_condition && self.objects.contains_key(name)
    }

    fn get(&self, name: &str) -> Result<Answer> {
        let (content, put_ms) = self.objects.get(name).ok_or_else(|| missing(name))?;
        Ok(Answer::Object(content.clone(), meta(name, content, *put_ms)))
    }

    fn list(&self, folder: &str, behind: Option<&str>) -> Answer {
        let from = behind.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        let below = |name: &str| folder.is_empty() || name.strip_prefix(folder).is_some_and(|r| r.starts_with('/'));
        let mut found = self.objects.range::<str, _>((from, std::ops::Bound::Unbounded)).filter(|o| below(o.0));
        let page =
            found.by_ref().take(self.habits.page).map(|(name, (content, ms))| meta(name, content, *ms)).collect();
        Answer::Page(page, found.next().is_some())
    }
}

fn meta(name: &str, content: &Bytes, put_ms: i64) -> ObjectMeta {
    let second = u64::try_from(put_ms / 1000).expect("the clock begins after 1970");
    let last_modified = (UNIX_EPOCH + Duration::from_secs(second)).into();
    ObjectMeta { location: Path::from(name), last_modified, size: content.len() as u64, e_tag: None, version: None }
}

fn missing(name: &str) -> Error {
    Error::NotFound { path: name.to_owned(), source: "it is not there".into() }
}
