//! The kernel's table of mounts, `/proc/self/mountinfo`.
//!
//! Pure parsing, and one function that reads the file. Looking here asks no file system, so a dead mount cannot hang
//! it. See proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// What the kernel calls our mounts.
pub const FS_TYPE: &str = "fuse.kloset-mount";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// Major and minor number of its device, as in `0:52`.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Its type.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
}

impl MountInfo {
    /// Tells whether the mount is one of ours.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }
}

/// Reads the mounts of this process' namespace, in the order in which they were made.
///
/// # Errors
/// What the system says.
pub fn read() -> std::io::Result<Vec<MountInfo>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// Returns the mount that is seen at a path: the last of those made there.
#[must_use]
pub fn at<'a>(mounts: &'a [MountInfo], mountpoint: &Path) -> Option<&'a MountInfo> {
    mounts.iter().rfind(|mount| mount.mountpoint == mountpoint)
}

fn parse(text: &[u8]) -> Vec<MountInfo> {
    text.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw`: optional fields end at the dash.
fn parse_line(line: &[u8]) -> Option<MountInfo> {
    let mut fields = line.split(|b| *b == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = String::from_utf8_lossy(rest.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    Some(MountInfo { device, mountpoint, fs_type, source })
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, behind)) = rest.split_first() {
        match (byte, behind) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', behind @ ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = behind;
            }
            _ => {
                out.push(byte);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_mount_at_a_path_is_the_one_that_is_seen() {
        let text = b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            30 22 0:51 / /mnt/my\\040backups ro,nosuid shared:5 master:1 - fuse.kloset-mount kloset:@s3 ro,user_id=0\n\
            31 22 0:52 / /mnt/my\\040backups ro - tmpfs none rw\n\
            short line\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 3);
        assert!(mounts[1].is_ours());
        assert_eq!(mounts[1].source, "kloset:@s3");
        let seen = at(&mounts, Path::new("/mnt/my backups")).unwrap();
        assert_eq!((seen.device.as_str(), seen.is_ours()), ("0:52", false));
        assert_eq!(at(&mounts, Path::new("/mnt")), None);
    }
}
