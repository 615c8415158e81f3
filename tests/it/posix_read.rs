//! Every way to read a file brings the same bytes: pread, readv, sendfile, splice, `O_DIRECT`, many threads. On the real
//! kernel. Needs root and /dev/fuse, and passes over itself without.
//!
//! mmap(2) is in the exerciser: a process that serves a mount must not touch pages of it, since the fault may keep the
//! lock that the answer needs. exec(2), below, maps in another process.

use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use kloset_mount::fs::MountOptions;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, pipe, splice};

use crate::support::mounted::{Guard, drop_kernel_pages, mounted_source, source};
use crate::support::program::may_mount;
use crate::support::random::Random;
use crate::support::switched::{Kloset, noise};

const BIG_BYTES: usize = 9 << 20;
/// Longer than any file; the longest read from there still ends at an offset, which Linux wants.
const FAR: u64 = (i64::MAX as u64) - 100_000;

fn open_direct(at: &Path) -> File {
    let flags = i32::try_from(OFlags::DIRECT.bits()).unwrap();
    fs::OpenOptions::new().read(true).custom_flags(flags).open(at).unwrap()
}

/// A read brings what is there: whole inside the file, less over its end, nothing at its end and however far behind,
/// and with `O_DIRECT` the same, at any offset and length.
#[test]
fn reads_end_where_the_file_does() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let latest = guard.latest(source.path());
    for name in ["empty", "small", "sparse", "big"] {
        let content = fs::read(source.path().join(name)).unwrap();
        let end = content.len() as u64;
        let files = [File::open(latest.join(name)).unwrap(), open_direct(&latest.join(name))];
        for (how, file) in ["by the kernel's pages", "past them"].into_iter().zip(&files) {
            for at in [0, 1, 511, 4095, 4096, 100_001, end.saturating_sub(1), end, end + 1, end + 4096, FAR] {
                for bytes in [0, 1, 4095, 4096, 70_000] {
                    let mut read = vec![0xaa; bytes];
                    let came = file.read_at(&mut read, at).unwrap();
                    let from = usize::try_from(at.min(end)).unwrap();
                    let expected = &content[from..content.len().min(from + bytes)];
                    assert!(read[..came] == *expected, "{name}, {how}: {came} of {bytes} at {at}");
                }
            }
        }
        assert_eq!(rustix::io::pread(&files[0], &mut [0; 1][..], u64::MAX), Err(Errno::INVAL));
    }
    let error = File::open(latest.join("deep")).unwrap().read(&mut [0; 10]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ISDIR.raw_os_error()));
}

/// readv(2), sendfile(2) and splice(2) bring the same bytes as read(2). Blocks are never shared with another
/// file system (`FICLONE`), and copy_file_range(2) may be refused between two of them: programs then read and write.
#[test]
fn whatever_reads_brings_the_same_bytes() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let big = guard.latest(source.path()).join("big");
    let content = noise(BIG_BYTES);
    let mut file = File::open(&big).unwrap();
    drop_kernel_pages(&file);
    let (mut head, mut rest) = (vec![0; 77], vec![0; 4096]);
    file.seek(SeekFrom::Start(3_000_001)).unwrap();
    let came = file.read_vectored(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut rest)]).unwrap();
    assert!(came == 77 + 4096 && [head, rest].concat() == content[3_000_001..][..came]);

    drop_kernel_pages(&file);
    let out = tempfile::tempdir().unwrap();
    let sent = File::create_new(out.path().join("sent")).unwrap();
    let (mut at, mut left) = (0, BIG_BYTES);
    while left > 0 {
        left -= rustix::fs::sendfile(&sent, &file, Some(&mut at), left).unwrap();
    }
    assert!(fs::read(out.path().join("sent")).unwrap() == content, "sendfile");

    drop_kernel_pages(&file);
    check_splice(&file, &content);

    // Between two file systems Linux may say that it cannot, and then programs read and write.
    let copied = File::create_new(out.path().join("copied")).unwrap();
    match rustix::fs::copy_file_range(&file, Some(&mut 0), &copied, None, BIG_BYTES) {
        Ok(came) => assert!(came > 0 && fs::read(out.path().join("copied")).unwrap() == content[..came]),
        Err(error) => assert!(matches!(error, Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL), "{error}"),
    }
    fs::copy(&big, out.path().join("copied")).unwrap();
    assert!(fs::read(out.path().join("copied")).unwrap() == content, "copy");
    assert!(matches!(rustix::fs::ioctl_ficlone(&copied, &file), Err(Errno::XDEV | Errno::OPNOTSUPP)));
}

/// Moves the file through a pipe without copying, from an odd offset on.
#[track_caller]
fn check_splice(file: &File, content: &[u8]) {
    let (read_end, write_end) = pipe().unwrap();
    let (mut at, mut read) = (12_345, vec![0; 64 << 10]);
    while at < content.len() as u64 {
        let from = usize::try_from(at).unwrap();
        let came = splice(file, Some(&mut at), &write_end, None, read.len(), SpliceFlags::empty()).unwrap();
        let mut left = &mut read[..came];
        while !left.is_empty() {
            let moved = rustix::io::read(&read_end, &mut *left).unwrap();
            left = &mut left[moved..];
        }
        assert!(came > 0 && read[..came] == content[from..][..came], "{came} bytes at {from}");
    }
}

/// Any number of programs may read at once, each the truth.
#[test]
fn thirty_two_threads_read_one_file() {
    let Some((_kloset, source, guard)) = mounted_source() else { return };
    let big = guard.latest(source.path()).join("big");
    let (content, shared) = (noise(BIG_BYTES), File::open(&big).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..32 {
            let (content, shared, big) = (&content, &shared, &big);
            scope.spawn(move || {
                let mut random = Random::new(thread);
                let own = if thread % 2 == 0 { File::open(big).unwrap() } else { open_direct(big) };
                for file in [shared, &own].into_iter().cycle().take(60) {
                    let at = usize::try_from(random.below(BIG_BYTES as u64)).unwrap();
                    let bytes = usize::try_from(random.below(60_000)).unwrap().min(BIG_BYTES - at);
                    let mut read = vec![0; bytes];
                    file.read_exact_at(&mut read, at as u64).unwrap();
                    assert!(read == content[at..][..bytes], "thread {thread}: {bytes} bytes at {at}");
                }
            });
        }
    });
}

/// Programs run from the mount, unless it was made with `noexec`. Set-user-id bits are shown but do not work, nor do
/// devices.
#[test]
fn programs_can_be_run_from_the_mount() {
    if !may_mount() {
        return;
    }
    let (kloset, source) = (Kloset::new(), source());
    let program = source.path().join("program");
    fs::copy("/usr/bin/id", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    std::os::unix::fs::chown(&program, Some(0), None).unwrap();
    // chown(2) takes the bit away.
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    kloset.backup(source.path());
    let guard = Guard::with(&kloset, &MountOptions { allow_other: true, ..MountOptions::default() });
    let shown = guard.latest(source.path()).join("program");
    assert_eq!(shown.metadata().unwrap().permissions().mode() & 0o7777, 0o4755);
    use std::os::unix::process::CommandExt;
    let output = Command::new(&shown).arg("-u").uid(1000).gid(1000).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1000\n", "{output:?}");
    let flags = rustix::fs::statvfs(guard.path()).unwrap().f_flag;
    assert!(flags.contains(rustix::fs::StatVfsMountFlags::RDONLY | rustix::fs::StatVfsMountFlags::NOSUID));
    drop(guard);
    let guard = Guard::with(&kloset, &MountOptions { noexec: true, ..MountOptions::default() });
    let error = Command::new(guard.latest(source.path()).join("program")).output().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ACCESS.raw_os_error()));
}
