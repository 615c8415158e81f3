//! Trees: what a directory holds, and what a file is made of.
//!
//! A tree is one page of nodes, or, for a huge directory, a branch over pages. Encoding is canonical MessagePack: the
//! same nodes give the same bytes, hence the same id (`docs/format.md`, "Tree"). Decoding checks everything once, so
//! that a [`Page`] which exists can be trusted. This file does not know where pages are stored.

use super::id::{ChunkId, PackId};
use super::tree_wire as wire;

/// No tree or list of chunks is longer, encoded.
pub const TREE_BYTES_MAX: usize = 8 << 20;
/// The longest name in a directory: Linux' `NAME_MAX`.
pub const NAME_BYTES_MAX: usize = 255;
/// A file of more chunks keeps their list outside its node, in content pages of this many.
pub const INLINE_CHUNKS_MAX: usize = 128;
/// Chunks in a content page.
pub const CONTENT_PAGE_CHUNKS: usize = 8192;
/// The most holes that a file's node records; of more, the smallest are stored as zeros.
pub const HOLES_MAX: usize = 16_384;
/// The most bytes of extended attributes of one node.
pub const XATTR_BYTES_MAX: usize = 1 << 20;
/// The longest name of an extended attribute: Linux' `XATTR_NAME_MAX`.
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// The longest target of a symbolic link: Linux' `PATH_MAX` less the zero at its end.
pub const LINK_BYTES_MAX: usize = 4095;
/// The longest user or group name.
pub const OWNER_NAME_BYTES_MAX: usize = 255;
/// Branches over branches: enough for 10^12 entries.
pub const BRANCH_DEPTH_MAX: usize = 4;

/// Why bytes are not a tree.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed tree: {0}")]
pub struct TreeError(pub String);

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// Its pack.
    pub pack: PackId,
    /// Its frame's offset in the pack, bytes.
    pub frame_offset: u32,
    /// Its frame's sealed length, bytes.
    pub frame_bytes: u32,
    /// Its offset in the raw frame, bytes.
    pub chunk_offset: u32,
}

/// All that is known of where a stored chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The chunk's length.
    pub bytes: u32,
    /// Its frame's number in the pack.
    pub frame: u32,
    /// Where it lies.
    pub location: Location,
}

/// A reference to a chunk of file content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRef {
    /// Its name.
    pub id: ChunkId,
    /// Its length.
    pub bytes: u32,
    /// Where it was stored.
    pub location: Location,
}

/// A reference to a chunk that holds a tree or a content page.
///
/// It tells the frame's number, not its offset: a parent is encoded before the frame of its children is sealed, and a
/// pack of trees is fetched whole, with its footer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TreeRef {
    /// Its name.
    pub id: ChunkId,
    /// Its length.
    pub bytes: u32,
    /// Its pack.
    pub pack: PackId,
    /// Its frame's number in the pack.
    pub frame: u32,
    /// Its offset in the raw frame.
    pub chunk_offset: u32,
}

impl TreeRef {
    /// Returns the reference to a chunk found by the index.
    #[must_use]
    pub fn from_placed(id: ChunkId, placed: &Placed) -> Self {
        Self {
            id,
            bytes: placed.bytes,
            pack: placed.location.pack,
            frame: placed.frame,
            chunk_offset: placed.location.chunk_offset,
        }
    }
}

/// A name in a directory: 1 to 255 bytes, no `/`, no NUL, not `.` or `..`; not necessarily UTF-8.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// [`TreeError`] if it cannot be a directory entry's.
    pub fn new(bytes: &[u8]) -> Result<Self, TreeError> {
        let bad = bytes.is_empty() || bytes.len() > NAME_BYTES_MAX || bytes == b"." || bytes == b"..";
        if bad || bytes.iter().any(|b| matches!(b, b'/' | 0)) {
            return Err(TreeError(format!("\"{}\" is not a name", bytes.escape_ascii())));
        }
        Ok(Self(bytes.into()))
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A moment: seconds since 1970 (before it: negative) and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// Who owns a node: numbers, and the names they had on the source machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// User name, empty if it had none.
    pub user: String,
    /// Group name, empty if it had none.
    pub group: String,
}

/// A node's identity on the source machine; nodes of one snapshot that share it are hard links of one file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device number of its file system.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// How many names it had.
    pub links: u32,
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky: at most 0o7777.
    pub mode: u32,
    /// Its owner.
    pub owner: Owner,
    /// When its content changed.
    pub mtime: Time,
    /// When its inode changed.
    pub ctime: Time,
    /// Its identity on the source machine.
    pub identity: Identity,
    /// Extended attributes, ACLs among them, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File(FileContent),
    /// A directory.
    Directory(TreeRef),
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    CharDevice(u32, u32),
    /// A block device: major, minor.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// What a regular file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileContent {
    /// Its length, holes included.
    pub bytes: u64,
    /// Holes in their order: offset and length, neither empty nor touching.
    pub holes: Vec<(u64, u64)>,
    /// What lies between the holes.
    pub data: Data,
}

impl FileContent {
    /// Returns how many bytes are not in holes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.bytes - self.holes.iter().map(|h| h.1).sum::<u64>()
    }
}

/// The chunks of a file, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// Few enough to stand in the node.
    Chunks(Vec<ChunkRef>),
    /// Lists of chunks, each with the bytes of content it stands for.
    Pages(Vec<(u64, TreeRef)>),
}

impl Default for Data {
    fn default() -> Self {
        Self::Chunks(Vec::new())
    }
}

/// One page of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Page {
    /// Nodes sorted by name.
    Leaf(Vec<Node>),
    /// Pages below, sorted by the first name in each.
    Branch(Vec<BranchEntry>),
}

/// A page below a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BranchEntry {
    /// The first name in it.
    pub first: Name,
    /// How many nodes are below it.
    pub nodes: u64,
    /// The page.
    pub page: TreeRef,
}

impl Page {
    /// Encodes the page.
    ///
    /// # Panics
    /// Never: a page is plain data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Leaf(nodes) => wire::encode_leaf(nodes),
            Self::Branch(entries) => wire::encode_branch(entries),
        }
    }

    /// Decodes a page and checks all of it.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn decode(raw: &[u8]) -> Result<Self, TreeError> {
        wire::decode_page(raw)
    }

    /// Returns every pack that the page refers to: of content, of content pages and of trees.
    pub fn for_each_pack(&self, mut seen: impl FnMut(PackId)) {
        match self {
            Self::Branch(entries) => entries.iter().for_each(|e| seen(e.page.pack)),
            Self::Leaf(nodes) => {
                for node in nodes {
                    match &node.kind {
                        NodeKind::Directory(tree) => seen(tree.pack),
                        NodeKind::File(FileContent { data: Data::Chunks(chunks), .. }) => {
                            chunks.iter().for_each(|c| seen(c.location.pack));
                        }
                        NodeKind::File(FileContent { data: Data::Pages(pages), .. }) => {
                            pages.iter().for_each(|p| seen(p.1.pack));
                        }
                        _ => {}
                    }
                }
            }
        }
    }
}

impl Page {
    /// Tells every content page that its files refer to, and the bytes of its chunks.
    pub fn for_each_list(&self, mut seen: impl FnMut(u64, TreeRef)) {
        let Self::Leaf(nodes) = self else { return };
        for node in nodes {
            if let NodeKind::File(FileContent { data: Data::Pages(pages), .. }) = &node.kind {
                pages.iter().for_each(|(bytes, at)| seen(*bytes, *at));
            }
        }
    }
}

/// Encodes a content page.
#[must_use]
pub fn encode_content_page(chunks: &[ChunkRef]) -> Vec<u8> {
    wire::encode_content_page(chunks)
}

/// Decodes a content page.
///
/// # Errors
/// [`TreeError`].
pub fn decode_content_page(raw: &[u8]) -> Result<Vec<ChunkRef>, TreeError> {
    wire::decode_content_page(raw)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::id::SessionId;
    use super::*;

    pub(crate) fn pack(n: u8) -> PackId {
        PackId { session: SessionId([n; 32]), number: u32::from(n) }
    }

    pub(crate) fn chunk(n: u8, bytes: u32) -> ChunkRef {
        let location = Location { pack: pack(n), frame_offset: 8, frame_bytes: 90, chunk_offset: u32::from(n) };
        ChunkRef { id: ChunkId([n; 32]), bytes, location }
    }

    pub(crate) fn tree(n: u8) -> TreeRef {
        TreeRef { id: ChunkId([n; 32]), bytes: 10, pack: pack(n), frame: 3, chunk_offset: 17 }
    }

    pub(crate) fn node(name: &[u8], kind: NodeKind) -> Node {
        Node {
            name: Name::new(name).unwrap(),
            kind,
            mode: 0o4755,
            owner: Owner { uid: 1000, gid: 100, user: "anna".into(), group: String::new() },
            mtime: Time { seconds: -5, nanos: 999_999_999 },
            ctime: Time { seconds: 1 << 40, nanos: 1 },
            identity: Identity { device: 1 << 50, inode: 77, links: 2 },
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255]), (b"user.b".to_vec(), vec![])],
        }
    }

    pub(crate) fn one_of_each() -> Page {
        let sparse = FileContent {
            bytes: 100,
            holes: vec![(0, 10), (50, 20)],
            data: Data::Chunks(vec![chunk(1, 30), chunk(2, 40)]),
        };
        let huge = FileContent { bytes: 70, holes: vec![], data: Data::Pages(vec![(40, tree(3)), (30, tree(1))]) };
        Page::Leaf(vec![
            node(b"\n", NodeKind::File(FileContent::default())),
            node(b"a", NodeKind::File(sparse)),
            node(b"b", NodeKind::File(huge)),
            node(b"c", NodeKind::Directory(tree(9))),
            node(b"d", NodeKind::Symlink(b"../\xff".to_vec())),
            node(b"e", NodeKind::CharDevice(1, 3)),
            node(b"f", NodeKind::BlockDevice(8, 1 << 19)),
            node(b"g", NodeKind::Fifo),
            node(&[0xff; 255], NodeKind::Socket),
        ])
    }

    #[test]
    fn a_page_of_every_kind_round_trips() {
        let page = one_of_each();
        assert_eq!(Page::decode(&page.encode()).unwrap(), page);
        let branch = Page::Branch(vec![
            BranchEntry { first: Name::new(b"a").unwrap(), nodes: 1000, page: tree(1) },
            BranchEntry { first: Name::new(b"b").unwrap(), nodes: 1 << 40, page: tree(2) },
        ]);
        assert_eq!(Page::decode(&branch.encode()).unwrap(), branch);
        assert_eq!(Page::decode(&Page::Leaf(vec![]).encode()).unwrap(), Page::Leaf(vec![]));
        let chunks = vec![chunk(1, 5), chunk(2, 6), chunk(1, 7)];
        assert_eq!(decode_content_page(&encode_content_page(&chunks)).unwrap(), chunks);
    }

    #[test]
    fn a_page_names_every_pack_it_needs() {
        let mut packs = Vec::new();
        one_of_each().for_each_pack(|p| packs.push(p));
        assert_eq!(packs, [pack(1), pack(2), pack(3), pack(1), pack(9)]);
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut Vec<Node>), why: &str) {
        let Page::Leaf(mut nodes) = one_of_each() else { unreachable!() };
        change(&mut nodes);
        let error = Page::decode(&Page::Leaf(nodes).encode()).unwrap_err();
        assert!(error.0.contains(why), "{error}");
    }

    fn content(node: &mut Node) -> &mut FileContent {
        let NodeKind::File(content) = &mut node.kind else { unreachable!() };
        content
    }

    fn chunk_of(node: &mut Node) -> &mut ChunkRef {
        let Data::Chunks(chunks) = &mut content(node).data else { unreachable!() };
        &mut chunks[0]
    }

    #[test]
    fn what_cannot_be_is_refused() {
        refused(|n| n.swap(0, 1), "order");
        refused(|n| n[1].name = n[0].name.clone(), "order");
        refused(|n| n[0].mode = 0o10000, "mode");
        refused(|n| n[0].mtime.nanos = 1_000_000_000, "time");
        refused(|n| content(&mut n[1]).bytes = 101, "length");
        refused(|n| content(&mut n[1]).holes[1].0 = 5, "hole");
        refused(|n| content(&mut n[1]).holes[1] = (90, 20), "hole");
        refused(|n| content(&mut n[1]).holes[0] = (u64::MAX, 2), "hole");
        refused(|n| n[1].xattrs.swap(0, 1), "xattr");
        refused(|n| n[1].xattrs[0].0.clear(), "xattr");
        refused(|n| n[1].xattrs[1].0 = vec![b'z'; 256], "xattr");
        refused(|n| n[4].kind = NodeKind::Symlink(vec![]), "target");
        refused(|n| n[4].kind = NodeKind::Symlink(vec![b'x'; 4096]), "target");
        refused(|n| n[0].owner.user = "u".repeat(256), "owner");
        refused(|n| n[3].kind = NodeKind::Directory(TreeRef { bytes: 0, ..tree(1) }), "length");
        refused(|n| n[3].kind = NodeKind::Directory(TreeRef { bytes: (8 << 20) + 1, ..tree(1) }), "length");
        refused(|n| chunk_of(&mut n[1]).location.frame_bytes = 40, "frame");
        refused(|n| chunk_of(&mut n[1]).location.frame_offset = 64 << 20, "frame");
        refused(|n| chunk_of(&mut n[1]).location.chunk_offset = 17 << 20, "frame");
        let branch = |nodes| Page::Branch(vec![BranchEntry { first: Name::new(b"a").unwrap(), nodes, page: tree(1) }]);
        assert!(Page::decode(&branch(1).encode()).is_ok());
        assert!(Page::decode(&branch(0).encode()).is_err());
        assert!(Page::decode(&[&branch(1).encode()[..], &[0]].concat()).is_err());
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(Name::new(name).is_err());
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(mut at in 0_usize..2000, to: u8, cut in 0_usize..2000) {
            let mut raw = one_of_each().encode();
            at %= raw.len();
            raw[at] = to;
            let _ = Page::decode(&raw);
            let _ = Page::decode(&raw[..cut.min(raw.len())]);
        }
    }
}
