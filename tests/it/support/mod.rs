//! What several tests share.

pub(crate) mod buckets;
pub(crate) mod gate;
pub(crate) mod guard;
pub(crate) mod kloset;
pub(crate) mod local;
pub(crate) mod looked;
pub(crate) mod mounted;
pub(crate) mod program;
pub(crate) mod quirky;
pub(crate) mod random;
pub(crate) mod rights;
pub(crate) mod s3;
pub(crate) mod scratch;
pub(crate) mod stores;
pub(crate) mod switched;
pub(crate) mod tree;
