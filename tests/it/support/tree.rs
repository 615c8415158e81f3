//! Source trees on disk, and what must be equal of two of them.
//!
//! [`Source`] makes trees of everything a file system can hold; [`scan`] and [`dump_snapshot`] say what a folder on disk
//! and one in a snapshot hold, in the same words; [`differences`] compares. The root entry is the empty path.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use kloset_mount::repo::path::{self, Found, Nodes, leaf};
use kloset_mount::repo::tree::{FileContent, Node, NodeKind, TreeRef};
use kloset_mount::repo::{Reader, RepoError};
use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps};

use super::random::{Random, noise};

/// Everything that must be equal of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
    /// Of the source only: nobody can restore it.
    pub(crate) ctime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The first name of the same file, and how many names it has; of what is no directory.
    pub(crate) links: Option<(Vec<u8>, u32)>,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File { bytes: u64, hash: blake3::Hash, holes: Vec<(u64, u64)> },
    Directory,
    Symlink(Vec<u8>),
    Device(char, u32, u32),
    Fifo,
    Socket,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { bytes, hash, holes } => {
                write!(f, "file of {bytes} bytes, {}, {} holes {holes:?}", &hash.to_hex()[..8], holes.len())
            }
            Self::Directory => f.write_str("directory"),
            Self::Symlink(target) => write!(f, "link to \"{}\"", target.escape_ascii()),
            Self::Device(kind, major, minor) => write!(f, "device {kind} {major}:{minor}"),
            Self::Fifo => f.write_str("fifo"),
            Self::Socket => f.write_str("socket"),
        }
    }
}

/// A folder: all that is below it, by relative path.
pub(crate) type Dump = BTreeMap<Vec<u8>, Entry>;

/// Returns what differs, one line a difference.
pub(crate) fn differences(expected: &Dump, found: &Dump) -> Vec<String> {
    let mut out = Vec::new();
    for (path, entry) in expected {
        let shown = path.escape_ascii();
        match found.get(path) {
            None => out.push(format!("\"{shown}\" is missing: {:?}", entry.kind)),
            Some(other) if other != entry => out.push(format!("\"{shown}\":\n  {entry:?}\n  {other:?}")),
            Some(_) => {}
        }
    }
    let more = found.keys().filter(|path| !expected.contains_key(*path));
    out.extend(more.map(|path| format!("\"{}\" should not be there", path.escape_ascii())));
    out
}

/// Fails unless two folders hold the same.
#[track_caller]
pub(crate) fn assert_same(expected: &Dump, found: &Dump) {
    let differences = differences(expected, found);
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

/// Compares two real folders, a source and what was restored of it; what nobody can restore (ctime) aside.
pub(crate) fn compare(source: &Path, restored: &Path) -> Vec<String> {
    differences(&without_ctime(scan(source)), &without_ctime(scan(restored)))
}

/// Forgets the times that nobody can set.
pub(crate) fn without_ctime(mut dump: Dump) -> Dump {
    dump.values_mut().for_each(|entry| entry.ctime = None);
    dump
}

/// Returns what rsync would have to change in `target` to make it `source`, one line a change.
pub(crate) fn rsync_differences(source: &Path, target: &Path) -> Vec<String> {
    let slash = |path: &Path| [path.as_os_str().as_bytes(), b"/"].concat();
    let output = Command::new("rsync")
        .args(["-naHAX", "--delete", "--checksum", "--itemize-changes"])
        .args([OsStr::from_bytes(&slash(source)), OsStr::from_bytes(&slash(target))])
        .output()
        .expect("rsync is installed");
    assert!(output.status.success(), "rsync: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

/// Says what a folder on disk holds.
pub(crate) fn scan(root: &Path) -> Dump {
    let mut out = Dump::new();
    let mut first = HashMap::new();
    scan_into(root, Vec::new(), &mut first, &mut out);
    out
}

fn scan_into(at: &Path, relative: Vec<u8>, first: &mut HashMap<(u64, u64), Vec<u8>>, out: &mut Dump) {
    let stat = rustix::fs::lstat(at).unwrap();
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            let content = fs::read(at).unwrap();
            Kind::File { bytes: content.len() as u64, hash: blake3::hash(&content), holes: holes(at) }
        }
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink(fs::read_link(at).unwrap().as_os_str().as_bytes().to_vec()),
        FileType::CharacterDevice => device('c', stat.st_rdev),
        FileType::BlockDevice => device('b', stat.st_rdev),
        FileType::Fifo => Kind::Fifo,
        _ => Kind::Socket,
    };
    let is_directory = kind == Kind::Directory;
    let links = (!is_directory).then(|| {
        let name = first.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| relative.clone()).clone();
        (name, u32::try_from(stat.st_nlink).unwrap())
    });
    let mut xattrs: Vec<_> = xattr::list(at)
        .unwrap()
        .map(|name| (name.as_bytes().to_vec(), xattr::get(at, &name).unwrap().unwrap_or_default()))
        .collect();
    xattrs.sort_unstable();
    let entry = Entry {
        kind,
        mode: stat.st_mode & 0o7777,
        owner: (stat.st_uid, stat.st_gid),
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap()),
        ctime: Some((stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap())),
        xattrs,
        links,
    };
    out.insert(relative.clone(), entry);
    if is_directory {
        let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        for name in names {
            scan_into(&at.join(&name), child(&relative, name.as_bytes()), first, out);
        }
    }
}

fn child(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn device(kind: char, number: u64) -> Kind {
    Kind::Device(kind, rustix::fs::major(number), rustix::fs::minor(number))
}

fn holes(at: &Path) -> Vec<(u64, u64)> {
    let file = fs::File::open(at).unwrap();
    let end = file.metadata().unwrap().len();
    let (mut out, mut from) = (Vec::new(), 0);
    while from < end {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(from)).unwrap();
        if hole >= end {
            break;
        }
        from = rustix::fs::seek(&file, SeekFrom::Data(hole)).unwrap_or(end);
        out.push((hole, from - hole));
    }
    out
}

/// Says what a snapshot holds of `folder`, reading all of it.
pub(crate) async fn dump_snapshot(reader: &Reader, root: TreeRef, folder: &Path) -> Result<Dump, RepoError> {
    let mut out = Dump::new();
    let mut first = HashMap::new();
    let mut stack = match path::resolve(reader, root, folder.as_os_str().as_bytes()).await? {
        Found::Root(tree) => vec![(Vec::new(), tree)],
        Found::Node(node) => {
            out.insert(Vec::new(), entry(reader, &node, Vec::new(), &mut first).await?);
            match &node.kind {
                NodeKind::Directory(tree) => vec![(Vec::new(), *tree)],
                _ => Vec::new(),
            }
        }
    };
    // Depth first, in the order of the names, as a walk on disk goes: links are told by their first name.
    let mut nodes_at: Vec<(Vec<u8>, Vec<Node>)> = Vec::new();
    loop {
        if let Some((relative, tree)) = stack.pop() {
            let mut nodes = Vec::new();
            let mut pages = Nodes::new(reader, tree);
            while let Some(page) = pages.next_page().await? {
                nodes.extend_from_slice(leaf(&page));
            }
            nodes.reverse();
            nodes_at.push((relative, nodes));
        }
        let Some((relative, nodes)) = nodes_at.last_mut() else { return Ok(out) };
        match nodes.pop() {
            None => drop(nodes_at.pop()),
            Some(node) => {
                let at = child(relative, node.name.as_bytes());
                out.insert(at.clone(), entry(reader, &node, at.clone(), &mut first).await?);
                if let NodeKind::Directory(tree) = node.kind {
                    stack.push((at, tree));
                }
            }
        }
    }
}

async fn entry(
    reader: &Reader,
    node: &Node,
    relative: Vec<u8>,
    first: &mut HashMap<(u64, u64), Vec<u8>>,
) -> Result<Entry, RepoError> {
    let kind = match &node.kind {
        NodeKind::File(content) => {
            let hash = hash(reader, content).await?;
            Kind::File { bytes: content.bytes, hash, holes: content.holes.clone() }
        }
        NodeKind::Directory(_) => Kind::Directory,
        NodeKind::Symlink(target) => Kind::Symlink(target.clone()),
        NodeKind::CharDevice(major, minor) => Kind::Device('c', *major, *minor),
        NodeKind::BlockDevice(major, minor) => Kind::Device('b', *major, *minor),
        NodeKind::Fifo => Kind::Fifo,
        NodeKind::Socket => Kind::Socket,
    };
    let links = (kind != Kind::Directory).then(|| {
        let identity = (node.identity.device, node.identity.inode);
        (first.entry(identity).or_insert(relative).clone(), node.identity.links)
    });
    Ok(Entry {
        kind,
        mode: node.mode,
        owner: (node.owner.uid, node.owner.gid),
        mtime: (node.mtime.seconds, node.mtime.nanos),
        ctime: Some((node.ctime.seconds, node.ctime.nanos)),
        xattrs: node.xattrs.clone(),
        links,
    })
}

async fn hash(reader: &Reader, content: &FileContent) -> Result<blake3::Hash, RepoError> {
    const STEP_BYTES: u64 = 1 << 20;
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    while at < content.bytes {
        let part = reader.read(content, at..at + STEP_BYTES).await?;
        assert!(!part.is_empty(), "a read inside a file brings nothing");
        hasher.update(&part);
        at += part.len() as u64;
    }
    Ok(hasher.finalize())
}

/// A folder to be backed up, gone when dropped.
pub(crate) struct Source(tempfile::TempDir);

impl Source {
    pub(crate) fn new() -> Self {
        Self(tempfile::Builder::new().prefix("kloset-source-").tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns the path of something in it; names are bytes.
    pub(crate) fn at(&self, name: impl AsRef<[u8]>) -> PathBuf {
        self.path().join(OsStr::from_bytes(name.as_ref()))
    }

    /// Writes a file, and the folders above it.
    pub(crate) fn file(&self, name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> PathBuf {
        let at = self.at(name);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(&at, content).unwrap();
        at
    }

    pub(crate) fn folder(&self, name: impl AsRef<[u8]>) -> PathBuf {
        let at = self.at(name);
        fs::create_dir_all(&at).unwrap();
        at
    }

    /// Repeats `work` until nothing changed above the source meanwhile: a snapshot holds the folders on the way to its
    /// source too, and other tests make folders beside it.
    pub(crate) fn quietly<T>(&self, mut work: impl FnMut() -> T) -> T {
        const ATTEMPTS_MAX: usize = 3000;
        let above = || -> Vec<_> {
            let stats = self.path().ancestors().skip(1).map(|at| rustix::fs::stat(at).unwrap());
            stats.map(|stat| (stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec)).collect()
        };
        for _ in 0..ATTEMPTS_MAX {
            let before = above();
            let done = work();
            if above() == before {
                return done;
            }
        }
        panic!("the folders above {:?} never stand still", self.path());
    }

    pub(crate) fn scan(&self) -> Dump {
        scan(self.path())
    }

    /// Makes one of everything: kinds, names, attributes, times, sizes.
    pub(crate) fn everything() -> Self {
        let source = Self::new();
        source.kinds();
        source.names();
        source.sizes();
        source.attributes();
        source
    }

    fn kinds(&self) {
        let file = self.file("kinds/file", b"content");
        fs::hard_link(&file, self.at("kinds/second name")).unwrap();
        self.folder("another folder");
        fs::hard_link(&file, self.at("another folder/third name")).unwrap();
        self.folder("kinds/empty folder");
        std::os::unix::fs::symlink("../kinds/file", self.at("kinds/link")).unwrap();
        std::os::unix::fs::symlink(OsStr::from_bytes(b"/nowhere/\xff\n"), self.at("kinds/dangling")).unwrap();
        fs::hard_link(self.at("kinds/link"), self.at("kinds/second name of the link")).unwrap();
        let make = |name: &str, kind, number| {
            rustix::fs::mknodat(CWD, self.at(name), kind, Mode::from_raw_mode(0o640), number).unwrap();
        };
        make("kinds/fifo", FileType::Fifo, 0);
        drop(std::os::unix::net::UnixListener::bind(self.at("kinds/socket")).unwrap());
        if is_root() {
            make("kinds/char", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
            make("kinds/block", FileType::BlockDevice, rustix::fs::makedev(259, 70_000));
        }
    }

    fn names(&self) {
        let names: &[&[u8]] = &[
            b"-dash",
            b"-",
            b"new\nline",
            b"\xff\xfe not UTF-8",
            b" ",
            b"back\\slash",
            b"\x01",
            "ü".as_bytes(),
            b"...",
        ];
        for name in names {
            self.file([b"names/", *name].concat(), name);
            self.file([b"names of folders/", *name, b"/inside"].concat(), name);
        }
        self.file([b"names/".to_vec(), vec![b'x'; 255]].concat(), "long");
        self.file([b"names/".to_vec(), vec![0xff; 255]].concat(), "long and no text");
    }

    fn sizes(&self) {
        for bytes in
            [0, 1, 1023, 1024, 1025, 2048, 4095, 4096, 8191, 8192, 8193, 100_000, 262_144, 1_048_576, 1_500_001]
        {
            self.file(format!("sizes/{bytes}"), noise(bytes, usize::try_from(bytes).unwrap()));
        }
        self.file("sizes/zeros", vec![0; 50_000]);
        self.file("sizes/twice", noise(100_000, 100_000));
        self.sparse("sparse/hole first", &[(1 << 20, b"end")], (1 << 20) + 3);
        self.sparse("sparse/hole last", &[(0, b"start")], 1 << 20);
        self.sparse("sparse/holes", &[(0, &noise(1, 9000)), (100_000, &noise(2, 4096)), (2_000_000, b"x")], 3_000_000);
        self.sparse("sparse/all hole", &[], 5_000_000);
    }

    /// Writes a file of parts with holes between them.
    pub(crate) fn sparse(&self, name: &str, parts: &[(u64, &[u8])], bytes: u64) {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(self.file(name, "")).unwrap();
        file.set_len(bytes).unwrap();
        for (offset, part) in parts {
            file.write_all_at(part, *offset).unwrap();
        }
    }

    fn attributes(&self) {
        let attributed = self.file("attributes/file", "x");
        let folder = self.folder("attributes/folder");
        let link = self.at("attributes/link");
        std::os::unix::fs::symlink("file", &link).unwrap();
        for at in [&attributed, &folder] {
            xattr::set(at, "user.empty", b"").unwrap();
            xattr::set(at, "user.long", &noise(5, 2000)).unwrap();
            xattr::set(at, OsStr::from_bytes(b"user.\xff"), &[0, 255]).unwrap();
        }
        set_acl(&attributed, "u:12345:r--,g:54321:rw-,m::rw-");
        set_acl(&folder, "u:12345:rwx,d:u:12345:r-x,d:g::r-x,d:o::---,d:u::rwx");
        if is_root() {
            xattr::set(&attributed, "trusted.kloset", b"root only").unwrap();
            xattr::set(&link, "trusted.link", b"of the link itself").unwrap();
            std::os::unix::fs::chown(self.file("attributes/owned", ""), Some(12_345), Some(4_294_967_290)).unwrap();
            std::os::unix::fs::lchown(&link, Some(1), Some(2)).unwrap();
        }
        for (name, mode) in [("suid", 0o4755), ("sgid", 0o2711), ("sticky", 0o1777), ("none", 0o000), ("all", 0o7777)] {
            set_mode(&self.file(format!("attributes/{name}"), name), mode);
        }
        set_mode(&self.folder("attributes/sgid and sticky folder"), 0o3775);
        let times = [("before 1970", -1, 1), ("long before", -2_000_000_000, 999_999_999), ("later", 4_000_000_000, 5)];
        for (name, seconds, nanos) in times {
            set_mtime(&self.file(format!("attributes/{name}"), name), seconds, nanos);
        }
        set_mtime(&link, -7, 7);
        set_mtime(&folder, -86_400, 123_456_789);
    }

    /// Makes a random tree, a few levels deep, with names and contents that meet again.
    pub(crate) fn random(seed: u64, files: u64) -> Self {
        let source = Self::new();
        source.grow(seed, files);
        source
    }

    /// Adds random files, over some of those that are there.
    pub(crate) fn grow(&self, seed: u64, files: u64) {
        let mut random = Random::new(seed);
        for _ in 0..files {
            let depth = random.below(4);
            let mut name = Vec::new();
            for _ in 0..depth {
                name.extend_from_slice(random.one(&["a", "b", "c-", "\u{e9}"]).as_bytes());
                name.push(b'/');
            }
            name.extend_from_slice(format!("f{}", random.below(40)).as_bytes());
            let bytes = *random.one(&[0, 1, 1023, 1024, 5000, 8192, 8193, 40_000]);
            let content = noise(random.below(50), bytes);
            self.file(name, content);
        }
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

pub(crate) fn set_mode(at: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
}

/// Sets when the content changed; a link's own time.
pub(crate) fn set_mtime(at: &Path, seconds: i64, nanos: i64) {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos };
    let times = Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_acl(at: &Path, acl: &str) {
    let done = Command::new("setfacl").args(["-m", acl]).arg(at).status();
    match done {
        Ok(status) => assert!(status.success(), "setfacl {acl}"),
        // Without the tool: the bytes of `u:12345:r--` as the kernel takes them.
        Err(_) => {
            let entries: [(u16, u16, u32); 5] = [(1, 6, !0), (2, 4, 12_345), (4, 4, !0), (16, 6, !0), (32, 4, !0)];
            let mut bytes = 2_u32.to_le_bytes().to_vec();
            for (tag, permission, id) in entries {
                bytes.extend([&tag.to_le_bytes()[..], &permission.to_le_bytes(), &id.to_le_bytes()].concat());
            }
            xattr::set(at, "system.posix_acl_access", &bytes).unwrap();
        }
    }
}
