//! Entries of a snapshot as people and programs read them: modes, owners, times, sizes.

use jiff::tz::TimeZone;
use serde_json::{Map, Value, json};

use super::names;
use crate::repo::tree::{Node, NodeKind, Time};

/// Returns what stands before the name in a long listing.
pub(super) fn long(node: &Node) -> String {
    let named = |name: &str, id: u32| if name.is_empty() { id.to_string() } else { names::safe(name.as_bytes()) };
    let size = match &node.kind {
        NodeKind::CharDevice(major, minor) | NodeKind::BlockDevice(major, minor) => format!("{major}, {minor}"),
        _ => bytes_of(node).to_string(),
    };
    format!(
        "{} {:>3} {:<8} {:<8} {:>12} {} ",
        mode_text(node),
        node.identity.links,
        named(&node.owner.user, node.owner.uid),
        named(&node.owner.group, node.owner.gid),
        size,
        local_time(node.mtime),
    )
}

/// Returns a time in the local zone.
pub(super) fn local_time(time: Time) -> String {
    match timestamp(time) {
        Some(at) => at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        None => format!("@{}", time.seconds), // no calendar has it
    }
}

fn time_text(time: Time) -> String {
    timestamp(time).map_or_else(|| format!("@{}", time.seconds), |at| at.to_string())
}

fn timestamp(time: Time) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.seconds, 0).ok()?.checked_add(jiff::SignedDuration::from_nanos(time.nanos.into())).ok()
}

/// Returns a node's length.
pub(super) fn bytes_of(node: &Node) -> u64 {
    match &node.kind {
        NodeKind::File(content) => content.bytes,
        NodeKind::Symlink(to) => to.len() as u64,
        _ => 0,
    }
}

/// Returns mode and type as `ls -l` writes them.
fn mode_text(node: &Node) -> String {
    let mut text = String::with_capacity(10);
    text.push(match &node.kind {
        NodeKind::File(_) => '-',
        NodeKind::Directory(_) => 'd',
        NodeKind::Symlink(_) => 'l',
        NodeKind::CharDevice(..) => 'c',
        NodeKind::BlockDevice(..) => 'b',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
    });
    for (shift, special, set, unset) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = node.mode >> shift;
        text.push(if bits & 4 > 0 { 'r' } else { '-' });
        text.push(if bits & 2 > 0 { 'w' } else { '-' });
        text.push(match (node.mode & special > 0, bits & 1 > 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// Returns all that is known of an entry but its content.
pub(super) fn long_json(node: &Node, path: &[u8]) -> Value {
    let mut value = entry_json(node, path);
    value["ctime"] = time_text(node.ctime).into();
    value["device_id"] = node.identity.device.into();
    value["inode"] = node.identity.inode.into();
    let attribute = |(name, bytes): &(Vec<u8>, Vec<u8>)| {
        let mut object = Map::new();
        names::add_path(&mut object, "name", name);
        names::add_path(&mut object, "value", bytes);
        Value::from(object)
    };
    value["xattrs"] = node.xattrs.iter().map(attribute).collect();
    if let NodeKind::File(file) = &node.kind {
        value["holes"] = json!(file.holes);
    }
    value
}

/// Returns what is shown of an entry.
pub(super) fn entry_json(node: &Node, path: &[u8]) -> Value {
    let mut out = Map::new();
    names::add_path(&mut out, "path", path);
    let kind = match &node.kind {
        NodeKind::File(_) => "file",
        NodeKind::Directory(_) => "dir",
        NodeKind::Symlink(_) => "symlink",
        NodeKind::CharDevice(..) => "chardev",
        NodeKind::BlockDevice(..) => "blockdev",
        NodeKind::Fifo => "fifo",
        NodeKind::Socket => "socket",
    };
    out.insert("type".into(), kind.into());
    out.insert("mode".into(), node.mode.into());
    out.insert("permissions".into(), mode_text(node).into());
    out.insert("uid".into(), node.owner.uid.into());
    out.insert("gid".into(), node.owner.gid.into());
    out.insert("user".into(), (*node.owner.user).into());
    out.insert("group".into(), (*node.owner.group).into());
    out.insert("size".into(), bytes_of(node).into());
    out.insert("mtime".into(), time_text(node.mtime).into());
    out.insert("links".into(), node.identity.links.into());
    match &node.kind {
        NodeKind::Symlink(to) => names::add_path(&mut out, "target", to),
        NodeKind::CharDevice(major, minor) | NodeKind::BlockDevice(major, minor) => {
            out.insert("device".into(), json!([major, minor]));
        }
        _ => {}
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::tree::{FileContent, Identity, Name, Owner};

    fn node(kind: NodeKind, mode: u32) -> Node {
        Node {
            name: Name::new(b"a\xff").unwrap(),
            kind,
            mode,
            owner: Owner { uid: 5, gid: 6, user: "anna".into(), group: String::new() },
            mtime: Time { seconds: -1, nanos: 500_000_000 },
            ctime: Time::default(),
            identity: Identity { links: 1, ..Identity::default() },
            xattrs: vec![],
        }
    }

    #[test]
    fn modes_are_written_as_ls_does() {
        let check = |kind: NodeKind, mode: u32, text: &str| assert_eq!(mode_text(&node(kind, mode)), text);
        check(NodeKind::File(FileContent::default()), 0o644, "-rw-r--r--");
        check(NodeKind::File(FileContent::default()), 0o6755, "-rwsr-sr-x");
        check(NodeKind::Fifo, 0o7000, "p--S--S--T");
        check(NodeKind::Symlink(vec![]), 0o1777, "lrwxrwxrwt");
    }

    #[test]
    fn an_entry_in_json_keeps_bytes_and_times_before_1970() {
        let value = entry_json(&node(NodeKind::Symlink(b"x".to_vec()), 0o777), b"/a\xff");
        assert_eq!(value["path_b64"], "L2H/");
        assert_eq!(value["mtime"], "1969-12-31T23:59:59.5Z");
        assert_eq!((&value["type"], &value["target"], &value["size"]), (&"symlink".into(), &"x".into(), &1.into()));
    }
}
