//! What can go wrong between us and a store, by what a caller does differently.
//!
//! Every variant names the store, and the operation and object where there is one, keeps its
//! source and says what to do. How a failure is judged is in `answer`, whether it is worth asking
//! again in `retry`. It does not print.

use std::error::Error;
use std::io;
use std::sync::Arc;

type Source = Box<dyn Error + Send + Sync>;

/// The operation, the object and the store of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What was being done: "reading", "writing", "listing", "deleting".
    pub operation: &'static str,
    /// Name of the object or folder, relative to the store; may be empty for "all of it".
    pub name: String,
    /// The store as shown to people.
    pub store: Arc<str>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name.as_str() {
            "" => write!(out, "{} {:?}", self.operation, self.store),
            name => write!(out, "{} {name:?} in {:?}", self.operation, self.store),
        }
    }
}

/// Why a store gave no answer that means anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// The host name has no address.
    UnknownHost,
    /// Nothing listens there.
    Refused,
    /// No answer in time.
    Timeout,
    /// TLS spoken to a port that speaks plain HTTP.
    TlsToPlain,
    /// Plain HTTP spoken to a port that speaks TLS.
    PlainToTls,
    /// The certificate is not one this machine trusts for that name.
    Certificate,
    /// The server asks for fewer requests.
    Busy,
    /// The server says that it is broken.
    Failing,
    /// The connection broke.
    Broken,
}

impl Outage {
    /// True for what may be over without anybody changing anything.
    pub(crate) fn may_end(self) -> bool {
        !matches!(self, Outage::TlsToPlain | Outage::PlainToTls | Outage::Certificate)
    }

    fn advice(self) -> &'static str {
        match self {
            Outage::UnknownHost => "the host name is unknown: check the endpoint of the location and the network",
            Outage::Refused => "nothing listens there: check host and port of the location, and that the server runs",
            Outage::Timeout => "no answer in time: check the network and firewalls",
            Outage::TlsToPlain => {
                "the port speaks plain HTTP, not TLS: set use_tls = false: \
                 `kloset-mount config repository set NAME use_tls false`"
            }
            Outage::PlainToTls => {
                "the port speaks TLS: set use_tls = true: \
                 `kloset-mount config repository set NAME use_tls true`"
            }
            Outage::Certificate => {
                "its certificate is not trusted: check the host name, or name the file of its authority: \
                 `kloset-mount config repository set NAME ca_file FILE`"
            }
            Outage::Busy => "the server is busy and stayed so: try again later",
            Outage::Failing => "the server is broken and stayed so: try again later",
            Outage::Broken => "the connection broke: check the network and try again",
        }
    }
}

/// A failure of a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No object has that name.
    #[error("no object {name:?} in {store:?}")]
    NotFound {
        /// Name of the object.
        name: String,
        /// The store as shown to people.
        store: Arc<str>,
    },
    /// An object of that name and with other content is there.
    #[error("object {name:?} is already in {store:?} with other content")]
    AlreadyExists {
        /// Name of the object.
        name: String,
        /// The store as shown to people.
        store: Arc<str>,
    },
    /// The object is longer than the reader accepts.
    #[error("object {name:?} in {store:?} is longer than {bytes_max} bytes: it is damaged or foreign")]
    TooLarge {
        /// Name of the object.
        name: String,
        /// The store as shown to people.
        store: Arc<str>,
        /// The most that the reader accepts.
        bytes_max: u64,
    },
    /// A range begins at or behind the end of the object.
    #[error("object {name:?} in {store:?} has {bytes} bytes: nothing is at {start}")]
    OutOfRange {
        /// Name of the object.
        name: String,
        /// The store as shown to people.
        store: Arc<str>,
        /// First byte asked for.
        start: u64,
        /// Length of the object.
        bytes: u64,
    },
    /// The folder of a store on this machine is not there.
    #[error("no kloset there: folder {store:?} does not exist: make one with `kloset-mount create`")]
    NoFolder {
        /// The folder.
        store: Arc<str>,
        /// What the system says.
        source: Option<io::Error>,
    },
    /// The store knows us and says no, or does not know us.
    #[error("{at}: denied: {detail}")]
    Denied {
        /// What was done and where.
        at: Box<Place>,
        /// What the store says and what to do.
        detail: String,
        /// The failure below.
        source: Source,
    },
    /// The bucket is not there.
    #[error("{at}: the bucket does not exist: create it with your provider, or correct the location")]
    NoSuchBucket {
        /// What was done and where.
        at: Box<Place>,
        /// The failure below.
        source: Source,
    },
    /// The request was signed for another region than the bucket's.
    #[error("{at}: the region is wrong ({detail}): `kloset-mount config repository set NAME region {}`",
        region.as_deref().unwrap_or("REGION"))]
    WrongRegion {
        /// What was done and where.
        at: Box<Place>,
        /// The right region, where the store says it.
        region: Option<String>,
        /// What the store says.
        detail: String,
        /// The failure below.
        source: Source,
    },
    /// No connection, or no usable answer.
    #[error("{at}: store not reachable: {} ({detail})", why.advice())]
    Unreachable {
        /// What was done and where.
        at: Box<Place>,
        /// The kind of outage.
        why: Outage,
        /// The failure in the network layer's words.
        detail: String,
        /// The failure below.
        source: Source,
    },
    /// No space is left, or the quota is used up.
    #[error("{at}: the store is full: free space or raise the quota ({detail})")]
    Full {
        /// What was done and where.
        at: Box<Place>,
        /// What the store says.
        detail: String,
        /// The failure below.
        source: Source,
    },
    /// The options of the store do not fit together; nothing was sent.
    #[error("store {store:?}: {detail}")]
    Misconfigured {
        /// The store as shown to people.
        store: Arc<str>,
        /// What is wrong and what to do.
        detail: String,
    },
    /// Anything else.
    #[error("{at}: {detail}")]
    Other {
        /// What was done and where.
        at: Box<Place>,
        /// What the store says.
        detail: String,
        /// The failure below.
        source: Source,
    },
}

impl StoreError {
    /// True where the object is not there, which some callers expect.
    pub fn is_not_found(&self) -> bool {
        matches!(self, StoreError::NotFound { .. })
    }

    /// Why there was no answer that means anything, if that is the failure.
    pub(crate) fn outage(&self) -> Option<Outage> {
        match self {
            StoreError::Unreachable { why, .. } => Some(*why),
            _ => None,
        }
    }

    /// What failed and how, in few words and without advice.
    pub(crate) fn brief(&self) -> String {
        match self {
            StoreError::Unreachable { at, detail, .. } => format!("{at}: {detail}"),
            error => error.to_string(),
        }
    }

    /// Adds how often and for how long it was asked again.
    pub(crate) fn after(mut self, repeats: usize, failing: std::time::Duration) -> StoreError {
        if let (1.., StoreError::Unreachable { detail, .. }) = (repeats, &mut self) {
            detail.push_str(&format!("; asked again {repeats} times, {:.0} s long", failing.as_secs_f64()));
        }
        self
    }
}
