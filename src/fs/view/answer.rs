//! What a view answers: plain values, each with how long it holds.

use std::time::Duration;

use super::super::attr::Attr;

/// Attributes and how long they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The attributes.
    pub attr: Attr,
    /// How long they may be kept.
    pub ttl: Duration,
}

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its attributes; `None` where there is no such name.
    pub attr: Option<Attr>,
    /// How long that holds.
    pub ttl: Duration,
}

/// One line of a listing.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// The name.
    pub name: &'a [u8],
    /// Its attributes; of `.` and `..` only number and kind are meant.
    pub attr: Attr,
    /// How long they hold.
    pub ttl: Duration,
    /// Where the listing goes on behind it.
    pub next: u64,
}

/// The answer to statfs(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Blocks in use; none is free.
    pub blocks: u64,
    /// Files.
    pub files: u64,
}
