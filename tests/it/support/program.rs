//! The program itself over a kloset on a real S3 server, behind a network that can be switched.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use kloset_mount::fs::mountinfo::{self, MountInfo};
use rustix::io::Errno;

use super::gate::Gate;
use super::s3::{S3Server, S3ServerOptions};

const ACCESS_KEY: &str = "K";
const SECRET_KEY: &str = "S";

/// Whether this machine lets us mount.
pub(crate) fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !may {
        eprintln!("passed over: mounting needs root and /dev/fuse");
    }
    may
}

/// Waits until something is so, for a minute at most.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(60), "not {what} after a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A kloset in a bucket, a source, a mount point and what a user has at home.
pub(crate) struct Program {
    pub(crate) gate: Gate,
    _server: S3Server,
    home: tempfile::TempDir,
}

impl Program {
    /// Makes a kloset and a source of `files` under their names, and backs it up.
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Program {
        Program::over(files, S3Server::start)
    }

    /// The same over a server of one's own.
    pub(crate) fn over(
        files: &[(&str, &[u8])],
        start: impl FnOnce(&S3ServerOptions<'_>) -> io::Result<S3Server>,
    ) -> Program {
        let home = tempfile::tempdir().unwrap();
        let options = S3ServerOptions {
            folder: &home.path().join("s3"),
            bucket: "bucket",
            access_key: ACCESS_KEY,
            secret_key: SECRET_KEY,
            port: 0,
        };
        let server = start(&options).unwrap();
        let gate = Gate::to(server.port);
        let program = Program { gate, _server: server, home };
        fs::create_dir(program.at("mnt")).unwrap();
        fs::write(program.at("key"), "ab".repeat(32)).unwrap();
        fs::set_permissions(program.at("key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(program.source()).unwrap();
        for (name, content) in files {
            fs::create_dir_all(program.source().join(name).parent().unwrap()).unwrap();
            fs::write(program.source().join(name), content).unwrap();
        }
        let location = format!("s3://127.0.0.1:{}/bucket/kloset", program.gate.port);
        program.done(&[
            "store",
            "add",
            "s3",
            &location,
            &format!("access_key={ACCESS_KEY}"),
            &format!("secret_access_key={SECRET_KEY}"),
            "use_tls=false",
        ]);
        program.done(&["create"]);
        program.backup(&[]);
        program
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.home.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn source(&self) -> PathBuf {
        self.at("source")
    }

    pub(crate) fn mountpoint(&self) -> PathBuf {
        self.at("mnt")
    }

    /// Where the source is in the newest snapshot.
    pub(crate) fn latest(&self) -> PathBuf {
        self.at("mnt/latest").join(self.source().strip_prefix("/").unwrap())
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", self.home.path())
            .env("KLOSET_REPOSITORY", "@s3")
            .env("KLOSET_KEY_FILE", self.at("key"))
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn done(&self, words: &[&str]) {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    pub(crate) fn backup(&self, options: &[&str]) {
        let source = self.source();
        self.done(&[&["backup", source.to_str().unwrap()], options].concat());
    }

    /// Mounts and waits until the mount can be used.
    pub(crate) fn serve(&self, options: &[&str]) -> Serving<'_> {
        let mountpoint = self.mountpoint();
        let log = self.at("log");
        let mut command = self.command(&[&["mount", "-f", mountpoint.to_str().unwrap()], options].concat());
        let child = command.stderr(fs::File::create(&log).unwrap()).stdout(Stdio::null()).spawn().unwrap();
        until("mounted", || mountinfo::at(&mountinfo::read().unwrap(), &mountpoint).is_some_and(MountInfo::is_ours));
        until("usable", || fs::read_dir(&mountpoint).is_ok_and(|mut all| all.next().is_some()));
        Serving { program: self, child, log }
    }
}

/// Waits until a mount that nobody serves is told as such; what the kernel still knows of it for a second is never nothing.
#[track_caller]
pub(crate) fn assert_dead(mountpoint: &Path) {
    until("dead", || match fs::read_dir(mountpoint).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(found) => {
            assert!(!found.is_empty(), "an empty folder, and a copy of it would be empty");
            false
        }
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()), "{error}");
            true
        }
    });
}

/// A mount that is being served; taken away when dropped, and killed, so that nobody hangs in it.
pub(crate) struct Serving<'a> {
    program: &'a Program,
    child: Child,
    log: PathBuf,
}

impl Serving<'_> {
    pub(crate) fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// What it has told so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end and tells whether that was a good one.
    pub(crate) fn ends_well(&mut self) -> bool {
        until("ended", || self.child.try_wait().unwrap().is_some());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = kloset_mount::fs::unmount(&self.program.mountpoint(), true);
    }
}
