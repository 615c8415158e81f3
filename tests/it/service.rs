//! A mount as a part of the machine: systemd, mount(8) and fstab, users who are not root, and who is in it. On the real
//! kernel, with the program itself, over HTTP. Needs root and /dev/fuse, and passes over itself without.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::gate::Mode;
use crate::support::program::{Program, may_mount, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_kloset-mount");

fn program() -> Program {
    Program::new(&[("file", b"content\n"), ("sleep", &fs::read("/bin/sleep").unwrap())])
}

#[track_caller]
fn check_content(program: &Program) {
    assert_eq!(fs::read_to_string(program.latest().join("file")).unwrap(), "content\n");
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The next message that is not one of those that come again and again.
fn next(socket: &UnixDatagram, but: &str) -> String {
    let mut message = [0; 200];
    loop {
        let bytes = socket.recv(&mut message).unwrap();
        let message = String::from_utf8_lossy(&message[..bytes]).into_owned();
        if but.is_empty() || !message.starts_with(but) {
            return message;
        }
    }
}

/// systemd (`Type=notify`, with `-f`) is told when the mount can be used, that it is alive, at half of `WatchdogSec=`, and
/// that it ends. Being alive needs no store.
#[test]
fn systemd_is_told_that_a_mount_is_ready_alive_and_ending() {
    if !may_mount() {
        return;
    }
    let program = program();
    let socket = UnixDatagram::bind(program.at("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mountpoint = program.mountpoint();
    let mut command = program.command(&["mount", "-f", mountpoint.to_str().unwrap()]);
    command.env("NOTIFY_SOCKET", program.at("notify")).env("WATCHDOG_USEC", "100000");
    let mut child = command.stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(next(&socket, ""), format!("READY=1\nMAINPID={}\n", child.id()));
    check_content(&program);
    program.gate.set(Mode::Frozen);
    for _ in 0..3 {
        assert_eq!(next(&socket, ""), "WATCHDOG=1\n");
    }
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(next(&socket, "WATCHDOG=1"), "STOPPING=1\n");
    assert!(child.wait().unwrap().success());
}

/// Tells whether every thread of a process stands still.
fn is_stopped(pid: Pid) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    threads.all(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap().contains("State:\tT"))
}

/// It is told so only while the mount answers: the question goes through the kernel and waits for the mount.
#[test]
fn a_mount_that_does_not_answer_is_not_alive() {
    if !may_mount() {
        return;
    }
    let program = program();
    let serving = program.serve(&[]);
    let mountpoint = program.mountpoint();
    let words = ["ask-mount", mountpoint.to_str().unwrap()];
    program.done(&words);
    kill_process(serving.pid(), Signal::STOP).unwrap();
    until("stopped", || is_stopped(serving.pid()));
    let mut asking = program.command(&words).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(asking.try_wait().unwrap().is_none(), "answered by nobody");
    kill_process(serving.pid(), Signal::CONT).unwrap();
    assert!(asking.wait().unwrap().success());
    kill_process(serving.pid(), Signal::KILL).unwrap();
    until("dead", || !program.run(&words).status.success());
}

/// What `umount` refuses it explains: it names the programs that work in the mount, have a file of it open or run from
/// it, and mounts below it.
#[test]
fn umount_names_who_is_in_the_mount() {
    if !may_mount() {
        return;
    }
    let program = program();
    fs::set_permissions(program.source().join("sleep"), fs::Permissions::from_mode(0o755)).unwrap();
    program.backup(&[]);
    let mut serving = program.serve(&[]);
    let mountpoint = program.mountpoint();
    let umount = ["umount", mountpoint.to_str().unwrap()];
    let mut sleep = Command::new("sleep");
    let file = File::open(program.latest().join("file")).unwrap();
    let holders: [Child; 3] = [
        sleep.arg("600").current_dir(program.latest()).spawn().unwrap(),
        Command::new("sleep").arg("600").stdin(file).spawn().unwrap(),
        Command::new(program.latest().join("sleep")).arg("600").spawn().unwrap(),
    ];
    for mut holder in holders {
        let refused = program.run(&umount);
        assert_eq!(refused.status.code(), Some(1));
        let named = format!("sleep (pid {})", holder.id());
        assert!(told(&refused).contains(&named), "{named} is not in: {}", told(&refused));
        assert!(told(&refused).contains("--lazy"), "{}", told(&refused));
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
    program.done(&umount);
    assert!(serving.ends_well());
}

/// A mount namespace of its own, made ready by a line of the shell: a machine that is as a test needs it.
struct Namespace(Child);

impl Namespace {
    fn new(program: &Program, line: &str) -> Namespace {
        let line = format!("{line} && : > ready && exec sleep 600");
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount", "--propagation=private", "sh", "-c", &line]).current_dir(program.at("."));
        let namespace = Namespace(unshare.stdin(Stdio::null()).spawn().unwrap());
        until("a namespace", || program.at("ready").exists());
        namespace
    }

    /// A command in it, with nothing of a user's environment.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args([&format!("--mount=/proc/{}/ns/mnt", self.0.id()), "--wd=/"]).args(words);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its table of mounts.
    fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.0.id())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn has_mount_fuse() -> bool {
    let has = ["/sbin/mount.fuse3", "/sbin/mount.fuse"].iter().any(|helper| Path::new(helper).exists());
    if !has {
        eprintln!("passed over: there is no mount.fuse3");
    }
    has
}

/// The options with which nothing of a user's home is needed.
fn homeless(program: &Program) -> String {
    let (config, key, log) =
        (program.at(".config/kloset-mount/config.toml"), program.at("key"), program.at("mount.log"));
    format!("config={},key_file={},log_file={}", config.display(), key.display(), log.display())
}

/// `mount -t fuse.kloset-mount @s3 /mnt/backups -o ...` works, and so does a line of fstab: both go through mount.fuse(8),
/// with no environment of a user's. Options of mount(8) and fstab are understood, ours are followed, an unknown one is
/// named. umount(8) ends it.
#[test]
fn mount_and_fstab_mount_it_without_a_home() {
    if !may_mount() || !has_mount_fuse() {
        return;
    }
    let program = program();
    fs::create_dir(program.at("bin")).unwrap();
    symlink(PROGRAM, program.at("bin/kloset-mount")).unwrap();
    let machine = Namespace::new(&program, "mount --bind bin /usr/local/bin");
    let (mountpoint, options, file) = (program.mountpoint(), homeless(&program), program.latest().join("file"));
    let (at, file) = (mountpoint.to_str().unwrap(), file.to_str().unwrap());
    let (ordinary, cache) = ("ro,allow_other,_netdev,nofail,noauto,x-systemd.automount,noatime", program.at("cache"));
    let given = format!("{options},{ordinary},memory_limit=64MiB,cache_dir={},cache_size=8MiB", cache.display());
    machine.done(&["mount", "-t", "fuse.kloset-mount", "@s3", at, "-o", &given]);
    assert_eq!(machine.done(&["cat", file]), "content\n");
    until("kept in the cache", || cache.join("ledger").exists());
    assert!(machine.mounts().contains("fuse.kloset-mount kloset:@s3"), "{}", machine.mounts());
    machine.done(&["umount", at]);
    let fstab = program.at("fstab");
    fs::write(&fstab, format!("@s3 {at} fuse.kloset-mount {options},_netdev,refresh=60,timeout=20 0 0\n")).unwrap();
    machine.done(&["mount", "--fstab", fstab.to_str().unwrap(), at]);
    assert_eq!(machine.done(&["cat", file]), "content\n");
    machine.done(&["umount", at]);
    let refused = machine.run(&["mount", "-t", "fuse.kloset-mount", "@s3", at, "-o", &format!("{options},bogus=1")]);
    assert!(!refused.status.success() && told(&refused).contains("\"bogus=1\" is not known"), "{}", told(&refused));
    machine.done(&["mount", "-t", "fuse", "kloset-mount#@s3", at, "-o", &options]);
    assert_eq!(machine.done(&["cat", file]), "content\n");
    machine.done(&["/usr/local/bin/kloset-mount", "umount", at]);
    assert!(!machine.mounts().contains("kloset:@s3"), "{}", machine.mounts());
}

/// Linked to as `mount.kloset-mount` the program is a helper of mount(8), and fstab may say `kloset-mount` as the type.
#[test]
fn as_mount_kloset_mount_it_is_a_helper_of_mount() {
    if !may_mount() {
        return;
    }
    let program = program();
    let mountpoint = program.mountpoint();
    let helper = program.at("mount.kloset-mount");
    symlink(PROGRAM, &helper).unwrap();
    let mut command = Command::new(&helper);
    let options = format!("{},rw,noexec", homeless(&program));
    command.args(["@s3", mountpoint.to_str().unwrap(), "-n", "-o", &options, "-t", "kloset-mount"]);
    let output = command.env_clear().stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    check_content(&program);
    program.done(&["umount", mountpoint.to_str().unwrap()]);
}

/// A user who is not root mounts, reads and unmounts, by fusermount3. Nobody else looks in, root included. Where
/// /etc/fuse.conf lacks `user_allow_other`, `allow_other` is refused with what to do; that file is never changed.
#[test]
fn a_user_who_is_not_root_mounts_and_reads() {
    if !may_mount() || !Path::new("/usr/bin/fusermount3").exists() {
        return;
    }
    let conf = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let program = program();
    fs::copy(PROGRAM, program.at("kloset-mount")).unwrap();
    let mut chown = Command::new("chown");
    assert!(chown.args(["-R", "65534:65534"]).arg(program.at(".")).status().unwrap().success());
    // On most systems /dev/fuse is for everybody.
    let line = "mknod dev-fuse c 10 229 && chmod 666 dev-fuse && mount --bind dev-fuse /dev/fuse";
    let machine = Namespace::new(&program, line);
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let run = |words: &[&str]| {
        let mut command = machine.command(&[&["setpriv"], &user[..], words].concat());
        command.env("HOME", program.at("")).env("KLOSET_REPOSITORY", "@s3").env("KLOSET_KEY_FILE", program.at("key"));
        command.output().unwrap()
    };
    let (mountpoint, ours, file) = (program.mountpoint(), program.at("kloset-mount"), program.latest().join("file"));
    let [at, ours, file] = [&mountpoint, &ours, &file].map(|path| path.to_str().unwrap());
    let mounted = run(&[ours, "mount", at]);
    assert!(mounted.status.success(), "{}", told(&mounted));
    let read = run(&["cat", file]);
    assert_eq!(String::from_utf8_lossy(&read.stdout), "content\n", "{}", told(&read));
    assert!(machine.mounts().contains(&format!("{at} ")), "{}", machine.mounts());
    let by_root = machine.run(&["ls", at]);
    assert!(told(&by_root).contains("Permission denied"), "{by_root:?}");
    let ended = run(&[ours, "umount", at]);
    assert!(ended.status.success(), "{}", told(&ended));
    assert!(!machine.mounts().contains(&format!("{at} ")), "{}", machine.mounts());
    if !conf.lines().any(|line| line.trim() == "user_allow_other") {
        let refused = run(&[ours, "mount", at, "-o", "allow_other"]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(told(&refused).contains("\"user_allow_other\" in /etc/fuse.conf"), "{}", told(&refused));
    }
    assert_eq!(fs::read_to_string("/etc/fuse.conf").unwrap_or_default(), conf);
}

/// The units that mount.
fn units() -> Vec<(PathBuf, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| !path.to_string_lossy().contains("backup@"));
    files.map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

// The units in `scripts/systemd` ask for nothing that would put the service into a mount namespace of its own, where
// nobody else would see the mount.
#[test]
fn the_units_leave_the_mount_where_others_see_it() {
    const HIDES: [&str; 18] = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "MountAPIVFS",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateTmp",
        "PrivateUsers",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernel",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "RootDirectory",
    ];
    let units = units();
    assert!(units.len() >= 3);
    for (path, content) in units {
        for line in content.lines() {
            let hides = HIDES.iter().find(|word| line.starts_with(**word));
            assert!(hides.is_none(), "{path:?}: {line}");
        }
    }
}
