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
    /// In the place of the passphrase, which takes its time at every command.
    key: Option<PathBuf>,
}

impl Machine {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), mounted: None, key: None }
    }

    fn run(&self, line: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kloset-mount"))
            .args(line)
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("XDG_STATE_HOME", self.home.path().join("state"))
            .envs(self.key.as_ref().map(|key| ("KLOSET_KEY_FILE", key.as_os_str())))
            .envs(self.key.is_none().then_some(("KLOSET_PASSPHRASE", "correct horse battery staple")))
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
        self.mount_with(repository, &[])
    }

    #[track_caller]
    fn mount_with(&mut self, repository: &str, options: &[&str]) -> PathBuf {
        let point = self.home.path().join("mount point");
        std::fs::create_dir_all(&point).unwrap();
        self.done(&[&[repository, point.to_str().unwrap()], options].concat());
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

/// Starts a server with one bucket and names it in the config.
fn bucket(machine: &Machine, folder: &Path, name: &str) -> S3Server {
    let (bucket, access_key, secret_key) = ("bucket", "K", "S");
    let server = S3Server::start(&S3ServerOptions { folder, bucket, access_key, secret_key, port: 0 }).unwrap();
    let location = format!("location=s3://127.0.0.1:{}/bucket", server.port);
    let settings = [&location, "access_key=K", "secret_access_key=S", "use_tls=false"];
    machine.done(&[&["config", "repository", "create", name][..], &settings].concat());
    server
}

#[test]
fn what_is_synced_to_other_keys_on_another_server_and_back_is_the_source() {
    let mut machine = Machine::new();
    let served = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let names = ["first", "second", "third"];
    let _servers = [0, 1, 2].map(|at| bucket(&machine, served[at].path(), names[at]));
    let source = Source::everything();
    let path = source.path().canonicalize().unwrap();
    let key = machine.home.path().join("other.key");
    std::fs::write(&key, "cd".repeat(32)).unwrap();
    let key = key.to_str().unwrap().to_owned();
    let own = machine.home.path().join("own.key");
    std::fs::write(&own, "ab".repeat(32)).unwrap();
    machine.key = Some(own);
    machine.done(&["at", "@first", "create"]);
    machine.done(&["at", "@second", "create", "--key-file", &key]);
    machine.done(&["at", "@first", "backup", path.to_str().unwrap(), "--tag", "a"]);
    let told = |output: Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = machine.run(&["at", "@first", "sync", "to", "@second"]);
    assert_eq!(refused.status.code(), Some(12));
    assert!(told(refused).contains("--other-passphrase-file, KLOSET_OTHER_PASSPHRASE"));

    let other = ["--other-key-file", key.as_str()];
    let to_second = [&["at", "@first", "sync", "to", "@second"][..], &other].concat();
    let planned = machine.done(&[&to_second[..], &["--dry-run"]].concat());
    assert!(planned.contains("would copy 1 snapshots from @first to @second"), "{planned}");
    let none = machine.done(&[&to_second[..], &["--tag", "b"]].concat());
    assert!(none.contains("copied 0 snapshots from @first to @second, 0 B sent; 0 were there"), "{none}");
    assert!(machine.done(&to_second).contains("copied 1 snapshots from @first to @second"));
    let again = machine.done(&to_second);
    assert!(again.contains("copied 0 snapshots from @first to @second, 0 B sent; 1 were there already"), "{again}");

    // Back into a third one, with the keys of the first: from there it is what it was.
    let absent = machine.run(&["at", "@first", "sync", "to", "@third"]);
    assert_eq!(absent.status.code(), Some(10));
    assert!(told(absent).contains("--create-copy"));
    machine.done(&["at", "@first", "sync", "latest", "to", "@third", "--create-copy"]);
    machine.done(&["at", "@first", "tag", "latest", "--add", "b"]);
    let with = [&["at", "@first", "sync", "with", "@second"][..], &other].concat();
    let both = machine.done(&with);
    assert!(both.contains("copied 1 snapshots from @first to @second"), "{both}");
    assert!(both.contains("copied 0 snapshots from @second to @first"), "{both}");
    for (repository, options) in [("@first", &[][..]), ("@second", &["--key-file", key.as_str()]), ("@third", &[])] {
        let point = machine.mount_with(repository, options);
        let mounted = below(&point.join("latest"), &path);
        assert_eq!(rsync_differences(&path, &mounted), Vec::<String>::new(), "{repository}");
        machine.unmount();
        machine.done(&[&["check", "-r", repository, "--read-data"], options].concat());
    }
    let home = machine.home.path().join("home again").to_str().unwrap().to_owned();
    machine.done(&["create", "-r", &home]);
    let back = [&["sync", "-r", &home, "--tag", "b", "from", "@second"][..], &other].concat();
    assert!(machine.done(&back).contains("copied 1 snapshots from @second to"));
    let point = machine.mount(&home);
    assert_eq!(rsync_differences(&path, &below(&point.join("latest"), &path)), Vec::<String>::new());
    machine.unmount();
    let plan = machine.done(&["rewrite", "-r", &home, "--exclude", "sizes/"]);
    assert!(plan.contains("would rewrite 1 of 1 snapshots") && plan.contains("/sizes"), "{plan}");
    machine.done(&["rewrite", "-r", &home, "--exclude", "sizes/", "--apply", "--forget"]);
    let listed = machine.done(&["ls", "-r", &home, &format!("latest:{}", path.display())]);
    assert!(!listed.contains("sizes") && machine.done(&["ls", "-r", &home, "--json"]).contains("\"b\""), "{listed}");
    machine.done(&["check", "-r", &home, "--read-data"]);
}
