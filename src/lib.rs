//! kloset-mount: encrypted, deduplicated backups on any S3-compatible bucket, shown as read-only folders.
//!
//! Layers, imports only downward: [`cli`] parses, reads the environment, prints and exits; [`backup`], [`restore`],
//! [`rewrite`], [`sync`] and [`fs`] are clients of the kloset and do not know each other; [`repo`] is the format; [`store`]
//! is bytes under names. [`cpu`], [`mod@env`] and [`monitor`] are leaves that anyone may import. `docs/architecture.md` says why,
//! `tests/it/tidy.rs` holds it.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests choose their own numbers"))]

pub mod backup;
pub mod cli;
pub mod cpu;
pub mod env;
pub mod fs;
pub mod monitor;
pub mod repo;
pub mod restore;
pub mod rewrite;
pub mod store;
pub mod sync;
