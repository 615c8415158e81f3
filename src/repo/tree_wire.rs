//! The MessagePack form of trees and content pages.
//!
//! Maps have one-letter keys in a fixed order and leave out what is empty; unknown keys are skipped, so later versions
//! may add some. Packs and owners stand once in a table and are named by their place in it, in order of first use
//! (`docs/format.md`, "Tree").

use std::collections::HashMap;
use std::hash::Hash;

use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

use super::id::{ChunkId, PackId, SessionId};
use super::messagepack::{self, VERSION, encode};
use super::pack::{self, PACK_BYTES_MAX};
use super::tree::{
    BranchEntry, ChunkRef, Data, FileContent, HOLES_MAX, Identity, LINK_BYTES_MAX, Location, Name, Node, NodeKind,
    OWNER_NAME_BYTES_MAX, Owner, Page, TREE_BYTES_MAX, Time, TreeError, TreeRef, XATTR_BYTES_MAX, XATTR_NAME_BYTES_MAX,
};

/// Id, length, pack's place in the table, frame offset, frame length, offset in the raw frame.
#[derive(Serialize, Deserialize)]
struct WireChunk(ChunkId, u32, u32, u32, u32, u32);

/// Id, length, pack's place in the table, frame number, offset in the raw frame.
#[derive(Serialize, Deserialize)]
struct WireTree(ChunkId, u32, u32, u32, u32);

#[derive(Serialize)]
struct WirePage<'a> {
    v: u32,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    p: &'a [(SessionId, u32)],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    w: &'a [(u32, u32, &'a str, &'a str)],
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<&'a [WireNode<'a>]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<&'a [(&'a Bytes, u64, WireTree)]>,
}

#[derive(Serialize)]
struct WireNode<'a> {
    n: &'a Bytes,
    t: u8,
    m: u32,
    w: u32,
    mt: (i64, u32),
    ct: (i64, u32),
    i: (u64, u64, u32),
    #[serde(skip_serializing_if = "is_zero")]
    s: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    c: Vec<WireChunk>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cp: Vec<(u64, WireTree)>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    h: &'a [(u64, u64)],
    #[serde(skip_serializing_if = "Option::is_none")]
    r: Option<WireTree>,
    #[serde(skip_serializing_if = "Option::is_none")]
    l: Option<&'a Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    d: Option<(u32, u32)>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    x: Vec<(&'a Bytes, &'a Bytes)>,
}

#[derive(Deserialize)]
struct ReadPage {
    v: u32,
    #[serde(default)]
    p: Vec<(SessionId, u32)>,
    #[serde(default)]
    w: Vec<(u32, u32, String, String)>,
    n: Option<Vec<ReadNode>>,
    b: Option<Vec<(ByteBuf, u64, WireTree)>>,
}

#[derive(Deserialize)]
struct ReadNode {
    n: ByteBuf,
    t: u8,
    m: u32,
    w: u32,
    mt: (i64, u32),
    ct: (i64, u32),
    i: (u64, u64, u32),
    #[serde(default)]
    s: u64,
    #[serde(default)]
    c: Vec<WireChunk>,
    #[serde(default)]
    cp: Vec<(u64, WireTree)>,
    #[serde(default)]
    h: Vec<(u64, u64)>,
    r: Option<WireTree>,
    l: Option<ByteBuf>,
    d: Option<(u32, u32)>,
    #[serde(default)]
    x: Vec<(ByteBuf, ByteBuf)>,
}

#[derive(Serialize, Deserialize)]
struct WireContent {
    v: u32,
    p: Vec<(SessionId, u32)>,
    c: Vec<WireChunk>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A table that gives each value a place, in order of first use.
struct Table<T> {
    rows: Vec<T>,
    places: HashMap<T, u32>,
}

impl<T: Clone + Eq + Hash> Table<T> {
    fn new() -> Self {
        Self { rows: Vec::new(), places: HashMap::new() }
    }

    fn place(&mut self, value: T) -> u32 {
        let next = u32::try_from(self.rows.len()).expect("a page has far fewer rows");
        *self.places.entry(value).or_insert_with_key(|value| {
            self.rows.push(value.clone());
            next
        })
    }
}

type Packs = Table<(SessionId, u32)>;

fn wire_chunk(packs: &mut Packs, c: &ChunkRef) -> WireChunk {
    let l = &c.location;
    let pack = packs.place((l.pack.session, l.pack.number));
    WireChunk(c.id, c.bytes, pack, l.frame_offset, l.frame_bytes, l.chunk_offset)
}

fn wire_tree(packs: &mut Packs, t: &TreeRef) -> WireTree {
    WireTree(t.id, t.bytes, packs.place((t.pack.session, t.pack.number)), t.frame, t.chunk_offset)
}

pub(super) fn encode_leaf(nodes: &[Node]) -> Vec<u8> {
    let (mut packs, mut owners) = (Packs::new(), Table::new());
    let wire: Vec<_> = nodes.iter().map(|node| wire_node(node, &mut packs, &mut owners)).collect();
    encode(&WirePage { v: VERSION, p: &packs.rows, w: &owners.rows, n: Some(&wire), b: None })
}

fn wire_node<'a>(node: &'a Node, packs: &mut Packs, owners: &mut Table<(u32, u32, &'a str, &'a str)>) -> WireNode<'a> {
    let owner = &node.owner;
    let mut wire = WireNode {
        n: Bytes::new(node.name.as_bytes()),
        t: 0,
        m: node.mode,
        w: owners.place((owner.uid, owner.gid, &owner.user, &owner.group)),
        mt: (node.mtime.seconds, node.mtime.nanos),
        ct: (node.ctime.seconds, node.ctime.nanos),
        i: (node.identity.device, node.identity.inode, node.identity.links),
        s: 0,
        c: Vec::new(),
        cp: Vec::new(),
        h: &[],
        r: None,
        l: None,
        d: None,
        x: node.xattrs.iter().map(|(name, value)| (Bytes::new(name), Bytes::new(value))).collect(),
    };
    match &node.kind {
        NodeKind::File(content) => {
            wire.s = content.bytes;
            wire.h = &content.holes;
            match &content.data {
                Data::Chunks(chunks) => wire.c = chunks.iter().map(|c| wire_chunk(packs, c)).collect(),
                Data::Pages(pages) => wire.cp = pages.iter().map(|(n, t)| (*n, wire_tree(packs, t))).collect(),
            }
        }
        NodeKind::Directory(tree) => (wire.t, wire.r) = (1, Some(wire_tree(packs, tree))),
        NodeKind::Symlink(target) => (wire.t, wire.l) = (2, Some(Bytes::new(target))),
        NodeKind::CharDevice(major, minor) => (wire.t, wire.d) = (3, Some((*major, *minor))),
        NodeKind::BlockDevice(major, minor) => (wire.t, wire.d) = (4, Some((*major, *minor))),
        NodeKind::Fifo => wire.t = 5,
        NodeKind::Socket => wire.t = 6,
    }
    wire
}

pub(super) fn encode_branch(entries: &[BranchEntry]) -> Vec<u8> {
    let mut packs = Packs::new();
    let wire: Vec<_> =
        entries.iter().map(|e| (Bytes::new(e.first.as_bytes()), e.nodes, wire_tree(&mut packs, &e.page))).collect();
    encode(&WirePage { v: VERSION, p: &packs.rows, w: &[], n: None, b: Some(&wire) })
}

pub(super) fn encode_content_page(chunks: &[ChunkRef]) -> Vec<u8> {
    let mut packs = Packs::new();
    let c = chunks.iter().map(|c| wire_chunk(&mut packs, c)).collect();
    encode(&WireContent { v: VERSION, p: packs.rows, c })
}

fn error(why: impl std::fmt::Display) -> TreeError {
    TreeError(why.to_string())
}

pub(super) fn decode_page(raw: &[u8]) -> Result<Page, TreeError> {
    let page = decode(raw, |page: &ReadPage| page.v)?;
    let owners: Vec<_> = page.w.into_iter().map(read_owner).collect::<Result<_, _>>()?;
    match (page.n, page.b) {
        (Some(nodes), None) => {
            let nodes: Vec<_> = nodes.into_iter().map(|n| read_node(n, &page.p, &owners)).collect::<Result<_, _>>()?;
            if !nodes.is_sorted_by(|a, b| a.name < b.name) {
                return Err(error("names are out of order"));
            }
            Ok(Page::Leaf(nodes))
        }
        (None, Some(entries)) => {
            let entries: Vec<_> = entries
                .into_iter()
                .map(|(first, nodes, page_ref)| {
                    let entry = BranchEntry { first: Name::new(&first)?, nodes, page: read_tree(&page_ref, &page.p)? };
                    if nodes > 0 { Ok(entry) } else { Err(error("a page without nodes")) }
                })
                .collect::<Result<_, TreeError>>()?;
            if entries.is_empty() || !entries.is_sorted_by(|a, b| a.first < b.first) {
                return Err(error("pages are out of order"));
            }
            Ok(Page::Branch(entries))
        }
        _ => Err(error("neither nodes nor pages")),
    }
}

pub(super) fn decode_content_page(raw: &[u8]) -> Result<Vec<ChunkRef>, TreeError> {
    let page = decode(raw, |page: &WireContent| page.v)?;
    page.c.iter().map(|c| read_chunk(c, &page.p)).collect()
}

fn decode<T: serde::de::DeserializeOwned>(raw: &[u8], version: impl Fn(&T) -> u32) -> Result<T, TreeError> {
    if raw.len() > TREE_BYTES_MAX {
        return Err(error(format!("its length {} is over {TREE_BYTES_MAX}", raw.len())));
    }
    messagepack::decode(raw, version).map_err(error)
}

fn read_owner((uid, gid, user, group): (u32, u32, String, String)) -> Result<Owner, TreeError> {
    if user.len().max(group.len()) > OWNER_NAME_BYTES_MAX {
        return Err(error("an owner's name is too long"));
    }
    Ok(Owner { uid, gid, user, group })
}

fn read_pack(place: u32, packs: &[(SessionId, u32)]) -> Result<PackId, TreeError> {
    let &(session, number) = packs.get(place as usize).ok_or_else(|| error("a reference names no pack"))?;
    Ok(PackId { session, number })
}

fn read_chunk(c: &WireChunk, packs: &[(SessionId, u32)]) -> Result<ChunkRef, TreeError> {
    let &WireChunk(id, bytes, pack, frame_offset, frame_bytes, chunk_offset) = c;
    if !pack::chunk_fits(chunk_offset, bytes) {
        return Err(error("a chunk cannot be in its frame"));
    }
    if !pack::frame_fits(frame_offset, frame_bytes, PACK_BYTES_MAX) {
        return Err(error("a chunk's frame cannot be in its pack"));
    }
    let pack = read_pack(pack, packs)?;
    Ok(ChunkRef { id, bytes, location: Location { pack, frame_offset, frame_bytes, chunk_offset } })
}

fn read_tree(t: &WireTree, packs: &[(SessionId, u32)]) -> Result<TreeRef, TreeError> {
    let &WireTree(id, bytes, pack, frame, chunk_offset) = t;
    if !pack::chunk_fits(chunk_offset, bytes) || bytes as usize > TREE_BYTES_MAX {
        return Err(error("a tree's length or place cannot be"));
    }
    Ok(TreeRef { id, bytes, pack: read_pack(pack, packs)?, frame, chunk_offset })
}

fn read_time((seconds, nanos): (i64, u32)) -> Result<Time, TreeError> {
    if nanos < 1_000_000_000 { Ok(Time { seconds, nanos }) } else { Err(error("a time has over 10^9 ns")) }
}

fn read_node(node: ReadNode, packs: &[(SessionId, u32)], owners: &[Owner]) -> Result<Node, TreeError> {
    if node.m > 0o7777 {
        return Err(error("mode has more than permission bits"));
    }
    let xattr_bytes: usize = node.x.iter().map(|(name, value)| name.len() + value.len()).sum();
    if !node.x.is_sorted_by(|a, b| a.0 < b.0) || xattr_bytes > XATTR_BYTES_MAX {
        return Err(error("xattrs are out of order or too long"));
    }
    if node.x.iter().any(|(name, _)| !(1..=XATTR_NAME_BYTES_MAX).contains(&name.len())) {
        return Err(error("an xattr's name cannot be"));
    }
    let owner = owners.get(node.w as usize).ok_or_else(|| error("a node names no owner"))?.clone();
    Ok(Node {
        name: Name::new(&node.n)?,
        mode: node.m,
        owner,
        mtime: read_time(node.mt)?,
        ctime: read_time(node.ct)?,
        identity: Identity { device: node.i.0, inode: node.i.1, links: node.i.2 },
        kind: read_kind(node.t, node.s, &node, packs)?,
        xattrs: node.x.into_iter().map(|(name, value)| (name.into_vec(), value.into_vec())).collect(),
    })
}

fn read_kind(kind: u8, bytes: u64, node: &ReadNode, packs: &[(SessionId, u32)]) -> Result<NodeKind, TreeError> {
    let device = || node.d.ok_or_else(|| error("a device has no number"));
    Ok(match kind {
        0 => NodeKind::File(read_content(bytes, node, packs)?),
        1 => NodeKind::Directory(read_tree(node.r.as_ref().ok_or_else(|| error("a directory has no tree"))?, packs)?),
        2 => NodeKind::Symlink(read_target(node.l.as_ref())?),
        3 => device().map(|(major, minor)| NodeKind::CharDevice(major, minor))?,
        4 => device().map(|(major, minor)| NodeKind::BlockDevice(major, minor))?,
        5 => NodeKind::Fifo,
        6 => NodeKind::Socket,
        _ => return Err(error("an unknown type of node")),
    })
}

fn read_target(target: Option<&ByteBuf>) -> Result<Vec<u8>, TreeError> {
    let fits = target.filter(|target| (1..=LINK_BYTES_MAX).contains(&target.len()));
    fits.map(|target| target.to_vec()).ok_or_else(|| error("a link has no target that can be"))
}

fn read_content(bytes: u64, node: &ReadNode, packs: &[(SessionId, u32)]) -> Result<FileContent, TreeError> {
    if !node.c.is_empty() && !node.cp.is_empty() {
        return Err(error("a file has both chunks and content pages"));
    }
    let data = if node.cp.is_empty() {
        Data::Chunks(node.c.iter().map(|c| read_chunk(c, packs)).collect::<Result<_, _>>()?)
    } else {
        let page = |(n, t): &(u64, WireTree)| Ok((*n, read_tree(t, packs)?));
        Data::Pages(node.cp.iter().map(page).collect::<Result<_, TreeError>>()?)
    };
    check_holes(&node.h, bytes)?;
    let stored = match &data {
        Data::Chunks(chunks) => sum(chunks.iter().map(|c| u64::from(c.bytes))),
        Data::Pages(pages) => sum(pages.iter().map(|p| p.0)),
    };
    let total = stored.and_then(|n| n.checked_add(sum(node.h.iter().map(|h| h.1))?));
    if total != Some(bytes) {
        return Err(error("a file's length is not that of its chunks and holes"));
    }
    Ok(FileContent { bytes, holes: node.h.clone(), data })
}

fn sum(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    numbers.try_fold(0_u64, u64::checked_add)
}

fn check_holes(holes: &[(u64, u64)], bytes: u64) -> Result<(), TreeError> {
    let mut free_from = 0;
    for (n, &(offset, length)) in holes.iter().enumerate() {
        let touches = n > 0 && offset <= free_from;
        let end = offset.checked_add(length).filter(|&end| end <= bytes);
        free_from = end.filter(|_| length > 0 && !touches).ok_or_else(|| error("a hole cannot be where it is"))?;
    }
    if holes.len() > HOLES_MAX { Err(error("too many holes")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::tree::tests::{chunk, node, tree};
    use super::*;

    #[test]
    fn a_file_has_chunks_or_content_pages_not_both() {
        let file = node(b"a", NodeKind::File(FileContent::default()));
        let check = |chunks: &[ChunkRef], pages: &[(u64, TreeRef)]| {
            let (mut packs, mut owners) = (Packs::new(), Table::new());
            let mut wire = wire_node(&file, &mut packs, &mut owners);
            wire.s = 10;
            wire.c = chunks.iter().map(|c| wire_chunk(&mut packs, c)).collect();
            wire.cp = pages.iter().map(|(n, t)| (*n, wire_tree(&mut packs, t))).collect();
            decode_page(&encode(&WirePage { v: VERSION, p: &packs.rows, w: &owners.rows, n: Some(&[wire]), b: None }))
        };
        assert!(check(&[chunk(1, 10)], &[]).is_ok());
        assert!(check(&[], &[(10, tree(2))]).is_ok());
        assert_eq!(check(&[chunk(1, 10)], &[(10, tree(2))]), Err(error("a file has both chunks and content pages")));
    }
}
