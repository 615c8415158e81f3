//! The main job by the program itself, on a folder and on an S3 server over HTTP: create, backup, mount, restore; what
//! comes back is what went in, by `rsync -naHAX --checksum`, by `diff -r` and by every field that stat(2) has.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::s3::{S3Server, S3ServerOptions};
use crate::support::tree::{Source, compare, rsync_differences};

/// One machine's use of the program: config, passphrase and mount point of its own.
struct Machine {
    home: tempfile::TempDir,
    mounted: Option<PathBuf>,
}

impl Machine {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), mounted: None }
    }

    fn run(&self, line: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kloset-mount"))
            .args(line)
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("XDG_STATE_HOME", self.home.path().join("state"))
            .env("KLOSET_PASSPHRASE", "correct horse battery staple")
            .env_remove("KLOSET_REPOSITORY")
            .output()
            .unwrap()
    }

    #[track_caller]
    fn done(&self, line: &[&str]) -> String {
        let output = self.run(line);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line:?}: {}\n{told}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn mount(&mut self, repository: &str) -> PathBuf {
        let point = self.home.path().join("mount point");
        std::fs::create_dir_all(&point).unwrap();
        self.done(&[repository, point.to_str().unwrap()]);
        self.mounted = Some(point.clone());
        point
    }

    #[track_caller]
    fn unmount(&mut self) {
        let point = self.mounted.take().expect("it was mounted");
        self.done(&["umount", point.to_str().unwrap()]);
        assert!(std::fs::read_dir(point).unwrap().next().is_none(), "nothing is mounted any more");
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(point) = self.mounted.take() {
            self.run(&["umount", "--lazy", point.to_str().unwrap()]);
        }
    }
}

#[track_caller]
fn assert_diff_finds_nothing(source: &Path, mounted: &Path) {
    // diff cannot compare devices, pipes and sockets and says so; those are held by `compare`.
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([source, mounted]).output().unwrap();
    let told = String::from_utf8_lossy(&diff.stdout).into_owned() + &String::from_utf8_lossy(&diff.stderr);
    let special = ["is a fifo", "is a socket", "is a character special file", "is a block special file"];
    let real: Vec<_> = told.lines().filter(|line| !special.iter().any(|s| line.contains(s))).collect();
    assert!(real.is_empty(), "{}", real.join("\n"));
}

fn below(root: &Path, absolute: &Path) -> PathBuf {
    root.join(absolute.strip_prefix("/").unwrap())
}

#[track_caller]
fn round_trip(machine: &mut Machine, repository: &str) {
    let source = Source::everything();
    let path = source.path().canonicalize().unwrap();
    machine.done(&["at", repository, "create"]);
    machine.done(&["at", repository, "backup", path.to_str().unwrap()]);
    let listed = machine.done(&["ls", "-r", repository, "--json"]);
    assert!(listed.contains(path.to_str().unwrap()), "{listed}");

    let point = machine.mount(repository);
    let mounted = below(&point.join("latest"), &path);
    assert_eq!(rsync_differences(&path, &mounted), Vec::<String>::new());
    assert_diff_finds_nothing(&path, &mounted);
    let copied = tempfile::tempdir().unwrap();
    let sizes = mounted.join("sizes");
    let copy = Command::new("cp").args([OsStr::new("-a"), sizes.as_os_str(), copied.path().as_os_str()]).status();
    assert!(copy.unwrap().success());
    assert_eq!(rsync_differences(&path.join("sizes"), &copied.path().join("sizes")), Vec::<String>::new());
    machine.unmount();

    let restored = tempfile::tempdir().unwrap();
    let to = restored.path().join("to");
    let spec = format!("latest:{}", path.display());
    machine.done(&["restore", "-r", repository, &spec, "--to", to.to_str().unwrap()]);
    assert_eq!(rsync_differences(&path, &to), Vec::<String>::new());
    assert_diff_finds_nothing(&path, &to);
    assert_eq!(compare(&path, &to), Vec::<String>::new());
    machine.done(&["check", "-r", repository, "--read-data"]);
}

#[test]
fn what_goes_into_a_folder_comes_back() {
    let mut machine = Machine::new();
    let kloset = machine.home.path().join("kloset").to_str().unwrap().to_owned();
    machine.done(&["config", "repository", "create", "local", &format!("location={kloset}")]);
    round_trip(&mut machine, "@local");
}

#[test]
fn what_goes_into_a_bucket_comes_back() {
    let mut machine = Machine::new();
    let served = tempfile::tempdir().unwrap();
    let server = S3Server::start(&S3ServerOptions {
        folder: served.path(),
        bucket: "mysuperbucket",
        access_key: "K",
        secret_key: "S",
        port: 0,
    })
    .unwrap();
    let set = |machine: &Machine, key: &str, value: &str| {
        machine.done(&["config", "repository", "set", "s3-krepository", key, value]);
    };
    machine.done(&["config", "repository", "create", "s3-krepository"]);
    set(&machine, "location", &format!("s3://127.0.0.1:{}/mysuperbucket/deep/prefix", server.port));
    set(&machine, "access_key", "K");
    set(&machine, "secret_access_key", "S");
    set(&machine, "use_tls", "false");
    round_trip(&mut machine, "@s3-krepository");
}
