//! All integration tests, in one binary: one link instead of one a file.
//!
//! Each module holds one feature against the real thing: a server over HTTP, the program itself, folders on disk, a
//! store that records or fails. `KLOSET_SLOW=1` asks for the long sizes of the same tests.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::print_stderr, reason = "tests are no library")]
#![allow(clippy::cast_possible_truncation, clippy::type_complexity, reason = "tests choose their own numbers")]

mod backup;
mod backup_cli;
mod buckets;
mod cache;
mod calm;
mod check;
mod cli_config;
mod crash;
mod excludes;
mod exerciser;
mod faults;
mod fixtures;
mod forget;
mod fresh;
mod key;
mod kill;
mod model;
mod mount;
mod moved;
mod posix_dir;
mod posix_read;
mod posix_ro;
mod programs;
mod prune;
mod requests;
mod restore;
mod resume;
mod roundtrip;
mod service;
mod shown;
mod sources;
mod store;
mod support;
mod tidy;
mod unattended;
mod versions;
mod view;
