//! The mount: snapshots as read-only folders.
//!
//! [`view`] is the filesystem in plain async Rust, without a kernel; [`fuse`] decodes the kernel's requests, hands them
//! over and replies, after a wait bounded by [`wait`]; [`mod@mount`] puts it on a folder and takes it away. [`roots`] is
//! the virtual top with [`names`] in it, [`listing`] how fresh it is, [`inodes`] the table of inode numbers, [`directory`] the way to a node, [`attr`] what stat(2) shows, [`xattrs`] what getxattr(2) does,
//! [`history`] what a path was over all snapshots, [`union`] the names in its folders, [`guard`] whom they let in,
//! [`paths`] the numbers of the folders that show it,
//! [`filter`] which snapshots are shown, [`deny`] who reads no content, [`status`] what was done so far,
//! [`readahead`] what to fetch before it is asked for, [`errno`] the one place where failures become numbers,
//! [`mountinfo`] the kernel's table of mounts, [`holders`] who keeps one from being taken away.

pub mod attr;
pub mod deny;
pub mod directory;
pub mod errno;
pub mod filter;
pub mod fuse;
pub mod guard;
mod hash;
pub mod history;
pub mod holders;
pub mod inodes;
mod lacks;
pub mod listing;
pub mod mount;
pub mod mountinfo;
pub mod names;
pub mod paths;
pub mod readahead;
pub mod roots;
pub mod status;
mod status_file;
pub mod union;
pub mod view;
pub mod wait;
pub mod xattrs;

pub use errno::FsError;
pub use mount::{MountError, MountOptions, Mounted, mount, unmount};
pub use view::{View, ViewOptions};
