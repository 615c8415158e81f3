//! The names of a kloset's objects.
//!
//! Names are built and parsed here only; a name that parses is exactly the one that would be built
//! (`docs/format.md`, "Objects").

use super::id::{JoinedId, MovedId, PackId, PendingId, RunId, SessionId, SlotId, SnapshotId};

/// The header's name.
pub const HEADER: &str = "kloset.json";
/// The folder of key slots.
pub const KEYS: &str = "keys";
/// The folder of packs.
pub const PACKS: &str = "packs";
/// The folder of index runs.
pub const INDEX: &str = "index";
/// The folder of snapshots.
pub const SNAPSHOTS: &str = "snapshots";
/// The folder of pending lists.
pub const PENDING: &str = "pending";

/// The folder that says where chunks went that a prune moved: below the index, so that one listing shows both.
pub const MOVED: &str = "index/moved";

/// The folder of joined index runs, below the index for the same reason.
pub const JOINED: &str = "index/joined";

/// Returns a key slot's name.
#[must_use]
pub fn slot_name(id: SlotId) -> String {
    format!("{KEYS}/{id}.json")
}

/// Returns an index run's name.
#[must_use]
pub fn run_name(id: RunId) -> String {
    format!("{INDEX}/{id}")
}

/// Returns a pending list's name.
#[must_use]
pub fn pending_name(id: PendingId) -> String {
    format!("{PENDING}/{id}")
}

/// Returns a joined index run's name.
#[must_use]
pub fn joined_name(id: JoinedId) -> String {
    format!("{JOINED}/{id}")
}

/// Parses a joined index run's name.
#[must_use]
pub fn parse_joined(name: &str) -> Option<JoinedId> {
    name.strip_prefix("index/joined/")?.parse().ok()
}

/// Returns the name of an object that says where moved chunks went.
#[must_use]
pub fn moved_name(id: MovedId) -> String {
    format!("{MOVED}/{id}")
}

/// Parses the name of an object that says where moved chunks went.
#[must_use]
pub fn parse_moved(name: &str) -> Option<MovedId> {
    name.strip_prefix("index/moved/")?.parse().ok()
}

/// Parses a key slot's name.
#[must_use]
pub fn parse_slot(name: &str) -> Option<SlotId> {
    name.strip_prefix("keys/")?.strip_suffix(".json")?.parse().ok()
}

/// Parses an index run's name.
#[must_use]
pub fn parse_run(name: &str) -> Option<RunId> {
    name.strip_prefix("index/")?.parse().ok()
}

/// Parses a pending list's name.
#[must_use]
pub fn parse_pending(name: &str) -> Option<PendingId> {
    name.strip_prefix("pending/")?.parse().ok()
}

/// Parses a pack's name.
#[must_use]
pub fn parse_pack(name: &str) -> Option<PackId> {
    let (session, number) = name.strip_prefix("packs/")?.split_once('/')?;
    let session: SessionId = session.parse().ok()?;
    let mut bytes = [0; 4];
    super::id::from_hex(number, &mut bytes)?;
    Some(PackId { session, number: u32::from_be_bytes(bytes) })
}

/// A snapshot's name: its time and its id. Names sort by time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName {
    /// When the snapshot was begun, milliseconds since 1970, UTC, years 1970 to 9999.
    pub unix_ms: i64,
    /// Its id.
    pub id: SnapshotId,
}

/// The last millisecond of the year 9999, the largest time a snapshot's name can hold.
pub const SNAPSHOT_UNIX_MS_MAX: i64 = 253_402_300_799_999;

impl SnapshotName {
    /// Returns the object's name, `snapshots/20261122T135800123Z-<id>`.
    #[must_use]
    pub fn object(&self) -> String {
        format!("{SNAPSHOTS}/{}-{}", self.compact_time(), self.id)
    }

    /// Returns the time as `20261122T135800123Z`.
    #[must_use]
    pub fn compact_time(&self) -> String {
        let time = timestamp(self.unix_ms);
        format!("{}{:03}Z", time.strftime("%Y%m%dT%H%M%S"), self.unix_ms.rem_euclid(1000))
    }

    /// Parses an object's name.
    #[must_use]
    pub fn parse(object: &str) -> Option<Self> {
        let (time, id) = object.strip_prefix("snapshots/")?.split_once('-')?;
        let (seconds, millis) = time.strip_suffix('Z')?.split_at_checked(15)?;
        let seconds = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", seconds).ok()?;
        let millis: i64 = millis.parse().ok()?;
        let unix_ms = seconds.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_second() * 1000 + millis;
        let name = Self { unix_ms, id: id.parse().ok()? };
        (name.unix_ms >= 0 && name.object() == object).then_some(name)
    }
}

/// Returns the moment `unix_ms`, held within what a snapshot's name can hold.
pub(crate) fn timestamp(unix_ms: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_millisecond(unix_ms.clamp(0, SNAPSHOT_UNIX_MS_MAX)).expect("the clamp keeps it in range")
}

/// The longest time in a header or a slot, in bytes.
const TIME_BYTES_MAX: usize = 40;

/// Tells whether `time` may be shown and bound as it is: a time from where nothing is authenticated yet.
pub(super) fn is_printable_time(time: &str) -> bool {
    time.len() <= TIME_BYTES_MAX && time.bytes().all(|b| matches!(b, b' '..=b'~'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_to_what_they_were_built_from_and_nothing_else_does() {
        let name = SnapshotName { unix_ms: 1_795_356_280_123, id: SnapshotId([0xab; 16]) };
        assert_eq!(name.object(), format!("snapshots/20261122T140440123Z-{}", name.id));
        assert_eq!(SnapshotName::parse(&name.object()), Some(name));
        for bad in ["snapshots/20261122T132440123-ab", "snapshots/", "snapshots/20261322T132440123Z-x", "keys/1.json"] {
            assert_eq!(SnapshotName::parse(bad), None, "{bad}");
        }
        let pack = PackId { session: SessionId([1; 32]), number: 0x12 };
        assert_eq!(parse_pack(&pack.to_string()), Some(pack));
        assert_eq!(parse_pack(&format!("{pack}.tmp")), None);
        assert_eq!(parse_slot(&slot_name(SlotId([3; 16]))), Some(SlotId([3; 16])));
        assert_eq!(parse_run(&run_name(RunId([3; 16]))), Some(RunId([3; 16])));
        let moved = moved_name(MovedId([3; 16]));
        assert_eq!(parse_moved(&moved), Some(MovedId([3; 16])));
        assert_eq!((parse_run(&moved), parse_pack(&moved), parse_moved(&run_name(RunId([3; 16])))), (None, None, None));
        let joined = joined_name(JoinedId([3; 16]));
        assert_eq!((parse_joined(&joined), parse_run(&joined)), (Some(JoinedId([3; 16])), None));
        assert_eq!(parse_pending(&pending_name(PendingId([3; 16]))), Some(PendingId([3; 16])));
    }
}
