//! Who is in a mount: the programs that keep it from being taken away.
//!
//! Looks at `/proc` only and never at the mount, which may be dead or wait for its store. Without root one's own
//! programs are seen and no others; the kernel's own holders (an NFS export, a loop device) are never seen.

use std::fmt;
use std::path::Path;

use super::mountinfo::MountInfo;

/// As many are named; the rest is counted.
const NAMED_MAX: usize = 8;

/// A program in a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Its name as the kernel knows it, at most 15 bytes.
    pub name: String,
}

/// Programs and mounts that are in a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Programs, by process number.
    pub programs: Vec<Holder>,
    /// Mounts on folders in it.
    pub mounts: Vec<String>,
}

/// As in `by cat (pid 12) and bash (pid 7)`.
impl fmt::Display for Holders {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let programs = self.programs.iter().map(|Holder { pid, name }| format!("{name} (pid {pid})"));
        let all: Vec<String> = programs.chain(self.mounts.iter().map(|at| format!("a mount on {at}"))).collect();
        match all.len() {
            0 => out.write_str("by what cannot be seen from here: look again as root"),
            1..=NAMED_MAX => write!(out, "by {}", all.join(", ")),
            more => write!(out, "by {} and {} more", all[..NAMED_MAX].join(", "), more - NAMED_MAX),
        }
    }
}

/// Finds who works in a mount, has something of it open or mapped, or runs from it.
#[must_use]
pub fn find(mount: &MountInfo, mounts: &[MountInfo]) -> Holders {
    let below = |other: &&MountInfo| other.mountpoint != mount.mountpoint && is_in(&other.mountpoint, mount);
    let mut holders = Holders {
        programs: Vec::new(),
        mounts: mounts.iter().filter(below).map(|other| other.mountpoint.display().to_string()).collect(),
    };
    let Ok(processes) = std::fs::read_dir("/proc") else { return holders };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if holds(&process.path(), mount) {
            holders.programs.push(Holder { pid, name: name_of(pid).unwrap_or_else(|| "?".to_owned()) });
        }
    }
    holders.programs.sort_unstable_by_key(|holder| holder.pid);
    holders
}

/// Returns what the kernel calls a process, or a thread of one; nothing in it that moves a cursor.
#[must_use]
pub fn name_of(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(&name)).into_owned();
    Some(name.chars().map(|c| if c.is_control() { '?' } else { c }).collect())
}

fn holds(process: &Path, mount: &MountInfo) -> bool {
    let leads_there = |link: &Path| std::fs::read_link(link).is_ok_and(|target| is_in(&target, mount));
    ["cwd", "root", "exe"].iter().any(|link| leads_there(&process.join(link)))
        || std::fs::read_dir(process.join("fd")).is_ok_and(|open| open.flatten().any(|open| leads_there(&open.path())))
        || std::fs::read(process.join("maps")).is_ok_and(|maps| is_mapped(&maps, &mount.device))
}

fn is_in(path: &Path, mount: &MountInfo) -> bool {
    path.starts_with(&mount.mountpoint)
}

/// Tells whether a `/proc/<pid>/maps` has a file of the device: hexadecimal there, decimal in the table of mounts.
fn is_mapped(maps: &[u8], device: &str) -> bool {
    let number = |text: &str, radix| u32::from_str_radix(text, radix).ok();
    let parse = |text: &str, radix| {
        let (major, minor) = text.split_once(':')?;
        Some((number(major, radix)?, number(minor, radix)?))
    };
    let Some(wanted) = parse(device, 10) else { return false };
    let mut devices = maps.split(|b| *b == b'\n').filter_map(|line| line.split(|b| *b == b' ').nth(3));
    devices.any(|field| std::str::from_utf8(field).ok().and_then(|text| parse(text, 16)) == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_files_are_found_by_their_device() {
        let maps = b"7f0a-7f0b r-xp 00000000 08:01 131 /usr/bin/cat\n7f0b-7f0c r--p 00000000 00:34 77 /mnt/x\n";
        assert!(is_mapped(maps, "0:52"));
        assert!(is_mapped(maps, "8:1"));
        assert!(!is_mapped(maps, "0:34"));
        assert!(!is_mapped(maps, ""));
        assert!(!is_mapped(b"", "0:52"));
    }

    #[test]
    fn some_are_named_and_the_rest_is_counted() {
        let program = |pid| Holder { pid, name: "cat".to_owned() };
        let of = |programs: Vec<_>| Holders { programs, mounts: Vec::new() }.to_string();
        assert_eq!(of(vec![program(1), program(2)]), "by cat (pid 1), cat (pid 2)");
        assert!(of((0..11).map(program).collect()).ends_with("cat (pid 7) and 3 more"));
        assert!(of(Vec::new()).contains("root"));
        let mounts = vec!["/mnt/x/y".to_owned()];
        assert_eq!(Holders { programs: Vec::new(), mounts }.to_string(), "by a mount on /mnt/x/y");
    }
}
