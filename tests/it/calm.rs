//! A mount stays calm when the store does not: outages end, readers can be killed, and nothing hangs. On the real kernel,
//! with the program itself, over HTTP. Needs root and /dev/fuse, and passes over itself without.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Signal, kill_process};

use crate::support::gate::Mode;
use crate::support::mounted::drop_kernel_pages;
use crate::support::program::{Program, may_mount, until};
use crate::support::random::{noise, size};

/// More than kernel and mount together read ahead with [`LITTLE_MEMORY`].
const BIG_BYTES: usize = 24 << 20;
const LITTLE_MEMORY: [&str; 3] = ["--memory-limit", "8MiB", "--no-cache"];

fn eio(result: std::io::Result<impl Sized>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(Errno::IO.raw_os_error()))
}

/// Reads a file while the network is in `mode` for a while in the middle of it.
#[track_caller]
fn check_goes_on_after(mode: Mode) {
    if !may_mount() {
        return;
    }
    let content = noise(5, BIG_BYTES);
    let program = Program::new(&[("big", &content)]);
    let _serving = program.serve(&LITTLE_MEMORY);
    let mut file = File::open(program.latest().join("big")).unwrap();
    let mut read = vec![0; 1 << 20];
    file.read_exact(&mut read).unwrap();
    program.gate.set(mode);
    let rest = std::thread::spawn(move || {
        let outcome = file.read_to_end(&mut read);
        (outcome, read)
    });
    std::thread::sleep(Duration::from_secs(size(4, 60)));
    assert!(!rest.is_finished(), "the copy did not need the network any more");
    program.gate.set(Mode::Open);
    let (outcome, read) = rest.join().unwrap();
    assert!(outcome.is_ok(), "{mode:?}: {outcome:?}");
    assert!(read == content, "{mode:?}");
}

/// A copy goes on when the network comes back: after nothing came any more for a while, after every connection broke,
/// after the server answered 503.
#[test]
fn a_copy_goes_on_after_the_network_stood_still() {
    check_goes_on_after(Mode::Frozen);
}

/// A copy goes on when the network comes back: after nothing came any more for a while, after every connection broke,
/// after the server answered 503.
#[test]
fn a_copy_goes_on_after_connections_broke() {
    check_goes_on_after(Mode::Broken);
}

/// A copy goes on when the network comes back: after nothing came any more for a while, after every connection broke,
/// after the server answered 503.
#[test]
fn a_copy_goes_on_after_the_server_was_busy() {
    check_goes_on_after(Mode::Busy);
}

/// A store that does not come back is `EIO` at the deadline, told in the log. What was seen before is still shown, `df`
/// answers, and a later read tries again, without a new mount.
#[test]
fn a_store_that_is_gone_is_eio_by_the_deadline_and_what_was_seen_goes_on() {
    if !may_mount() {
        return;
    }
    let content = noise(6, BIG_BYTES);
    let program = Program::new(&[("big", &content), ("folder/a", b"a"), ("folder/b", b"bb")]);
    let serving = program.serve(&[&LITTLE_MEMORY[..], &["--timeout", "2", "--refresh", "1"]].concat());
    let root = program.latest();
    let look = || {
        let mut seen: Vec<_> = fs::read_dir(root.join("folder"))
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name(), entry.metadata().unwrap().len()))
            .collect();
        seen.sort();
        (seen, root.join("big").metadata().unwrap().size(), fs::read_dir(program.mountpoint()).unwrap().count())
    };
    let before = look();
    for mode in [Mode::Frozen, Mode::Broken] {
        program.gate.set(mode);
        let mut file = File::open(root.join("big")).unwrap();
        file.seek(SeekFrom::Start(BIG_BYTES as u64 / 2)).unwrap();
        assert!(eio(file.read_exact(&mut [0; 4096])), "{mode:?}");
        assert_eq!(look(), before, "{mode:?}");
        assert!(rustix::fs::statvfs(program.mountpoint()).unwrap().f_blocks > 0);
        assert!(Command::new("df").arg(program.mountpoint()).stdout(Stdio::null()).status().unwrap().success());
        assert!(serving.log().contains("no answer from the store within 2 s"), "{}", serving.log());
        program.gate.set(Mode::Open);
        until("back", || fs::read(root.join("big")).is_ok_and(|read| read == content));
        drop_kernel_pages(&File::open(root.join("big")).unwrap());
    }
}

/// A program that waits for a silent store can be killed, whatever it waits for: it does not stay until the deadline.
#[test]
fn a_killed_reader_dies_though_the_store_is_silent() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&[("big", &noise(7, BIG_BYTES))]);
    let mut serving = program.serve(&[&LITTLE_MEMORY[..], &["--timeout", "240"]].concat());
    // A look into a snapshot that was not looked into needs its manifest, and such a request waits in the kernel.
    program.gate.set(Mode::Frozen);
    check_dies(&program, &mut Command::new("stat"), Signal::KILL);
    program.gate.set(Mode::Open);
    let size = program.latest().join("big").metadata().unwrap().len();
    assert_eq!(size, BIG_BYTES as u64);
    program.gate.set(Mode::Frozen);
    check_dies(&program, &mut Command::new("cat"), Signal::KILL);
    check_dies(&program, &mut Command::new("cat"), Signal::TERM);
    check_dies(&program, Command::new("dd").args(["iflag=direct", "status=none", "skip=20"]), Signal::KILL);
    assert!(serving.is_running());
    program.gate.set(Mode::Open);
    assert!(fs::read(program.latest().join("big")).unwrap() == noise(7, BIG_BYTES));
}

#[track_caller]
fn check_dies(program: &Program, command: &mut Command, signal: Signal) {
    let big = program.latest().join("big");
    let named = if command.get_program() == "dd" { format!("if={}", big.display()).into() } else { big };
    let mut child = command.arg(named).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "{command:?} did not wait for the store");
    kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
    until("dead", || child.try_wait().unwrap().is_some());
}

/// A mount can be taken away while somebody in it waits (`umount --lazy`); who waits gets his answer when the store is
/// back, and then the program ends well.
#[test]
fn a_busy_mount_goes_out_of_sight_though_the_store_is_silent() {
    if !may_mount() {
        return;
    }
    let content = noise(8, BIG_BYTES);
    let program = Program::new(&[("big", &content)]);
    let mut serving = program.serve(&LITTLE_MEMORY);
    let mut file = File::open(program.latest().join("big")).unwrap();
    program.gate.set(Mode::Frozen);
    let reader = std::thread::spawn(move || {
        let mut read = Vec::new();
        file.read_to_end(&mut read).map(|_| read)
    });
    std::thread::sleep(Duration::from_millis(500));
    let mountpoint = program.mountpoint();
    let refused = program.run(&["umount", mountpoint.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--lazy"), "{refused:?}");
    program.done(&["umount", "--lazy", mountpoint.to_str().unwrap()]);
    assert_eq!(fs::read_dir(&mountpoint).unwrap().count(), 0);
    program.gate.set(Mode::Open);
    assert!(reader.join().unwrap().unwrap() == content);
    assert!(serving.ends_well());
}

/// Who looks waits two seconds for it at most, and only for one that has just begun.
#[test]
fn a_look_at_the_list_waits_two_seconds_for_a_silent_store() {
    if !may_mount() {
        return;
    }
    let program = Program::new(&[("file", b"content\n")]);
    let _serving = program.serve(&["--refresh", "1", "--no-cache"]);
    let look = || {
        let begun = Instant::now();
        assert_eq!(fs::read_dir(program.mountpoint().join("snapshots")).unwrap().count(), 1);
        begun.elapsed()
    };
    look();
    program.gate.set(Mode::Frozen);
    std::thread::sleep(Duration::from_millis(1500));
    let (first, second) = (look(), look());
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&first), "{first:?}");
    assert!(second < Duration::from_secs(1), "{second:?}");
}

/// Any number of programs may read at once, each the truth.
#[test]
fn sixty_four_readers_at_once_read_the_truth() {
    if !may_mount() {
        return;
    }
    let files: Vec<(String, Vec<u8>)> = (0..16).map(|n| (format!("file {n}"), noise(n, 1 << 20))).collect();
    let borrowed: Vec<(&str, &[u8])> = files.iter().map(|(name, content)| (&**name, &**content)).collect();
    let program = Program::new(&borrowed);
    let _serving = program.serve(&LITTLE_MEMORY);
    let root = program.latest();
    std::thread::scope(|scope| {
        for reader in 0..64 {
            let (root, files) = (&root, &files);
            scope.spawn(move || {
                for step in 0..files.len() {
                    let (name, content) = &files[(reader * 7 + step * 3) % files.len()];
                    assert!(fs::read(root.join(name)).unwrap() == *content, "{name}");
                }
            });
        }
    });
}
