//! `config repository`, `store` and the ways in, held on the real program.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::support::s3::{S3Server, S3ServerOptions};

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Home {
        Home(tempfile::tempdir().unwrap())
    }

    fn config(&self) -> PathBuf {
        self.0.path().join("config/kloset-mount/config.toml")
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command
            .args(line.split_whitespace())
            .env_clear()
            .env("XDG_CONFIG_HOME", self.0.path().join("config"))
            .env("XDG_DATA_HOME", self.0.path().join("data"))
            .env("XDG_STATE_HOME", self.0.path().join("state"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    #[track_caller]
    fn done(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    #[track_caller]
    fn fails(&self, line: &str, code: i32, message: &str) {
        let output = self.run(line);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {told}");
        assert!(told.contains(message), "{line}: {told}");
        assert_eq!(text(&output.stdout), "", "{line}");
    }

    fn connector_page(&self) {
        for line in [
            "config repository create s3-krepository",
            "config repository set s3-krepository location s3://s3.fr-par.scw.cloud/mysuperbucket",
            "config repository set s3-krepository access_key KEY",
            "config repository set s3-krepository secret_access_key HIDDEN",
            "config repository set s3-krepository use_tls false",
        ] {
            assert_eq!(self.done(line), "");
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_connector_pages_lines_work() {
    let home = Home::new();
    home.connector_page();
    let expected = "[repositories.s3-krepository]\n\
        location = \"s3://s3.fr-par.scw.cloud/mysuperbucket\"\n\
        access_key = \"KEY\"\n\
        secret_access_key = \"HIDDEN\"\n\
        use_tls = false\n";
    assert_eq!(fs::read_to_string(home.config()).unwrap(), expected);
    let mode = |path: PathBuf| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(home.config()), 0o600);
    assert_eq!(mode(home.config().parent().unwrap().to_owned()), 0o700);
    let list = home.done("config repository ls");
    assert_eq!(list, "  s3-krepository  s3://s3.fr-par.scw.cloud/mysuperbucket\n");
}

#[test]
fn secrets_are_masked_unless_asked_for() {
    let home = Home::new();
    home.connector_page();
    let shown = home.done("config repository show s3-krepository");
    assert!(shown.contains("secret_access_key = \"***\""), "{shown}");
    assert!(shown.contains("access_key = \"KEY\""), "{shown}");
    assert!(!shown.contains("HIDDEN"), "{shown}");
    let json = home.done("--json store show @s3-krepository");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["secret_access_key"], "***");
    assert_eq!(json["use_tls"], false);
    assert!(home.done("store show --secrets").contains("HIDDEN"));
}

#[test]
fn comments_survive_a_change() {
    let home = Home::new();
    home.connector_page();
    let commented = "# kept: top\ndefault = \"a\" # kept: default\n\n[repositories.a]\n\
        # kept: above\nlocation = \"/k\" # kept: beside\n\n[repositories.b] # kept: table\n";
    fs::write(home.config(), commented).unwrap();
    home.done("store set a location s3://h/b");
    home.done("store set a region=garage access_key=K");
    home.done("store add c /srv/k use_tls=true");
    home.done("store unset a access_key");
    let after = fs::read_to_string(home.config()).unwrap();
    for kept in ["top", "default", "above", "beside", "table"] {
        assert!(after.contains(&format!("# kept: {kept}")), "{after}");
    }
    assert!(after.contains("location = \"s3://h/b\" # kept: beside"), "{after}");
    assert!(after.contains("[repositories.c]\nlocation = \"/srv/k\""), "{after}");
    assert!(!after.contains("access_key"), "{after}");
    home.done("store rm a");
    assert!(!fs::read_to_string(home.config()).unwrap().contains("default ="));
    home.done("config repository default c");
    assert_eq!(home.done("config repository default"), "c\n");
}

#[test]
fn a_file_with_secrets_that_others_can_read_is_refused() {
    let home = Home::new();
    home.connector_page();
    fs::set_permissions(home.config(), fs::Permissions::from_mode(0o640)).unwrap();
    home.fails("store ls", 2, "chmod 600 ");
    home.fails("store set s3-krepository region x", 2, "mode 0640");
    fs::write(home.config(), "[repositories.a]\nlocation = \"/k\"\n").unwrap();
    home.done("store ls");
}

#[test]
fn mistakes_are_usage_errors_and_leave_the_file_alone() {
    let home = Home::new();
    home.connector_page();
    let before = fs::read_to_string(home.config()).unwrap();
    home.fails("store set s3-krepository acess_key K", 2, "there are location, access_key");
    home.fails("store set s3-krepository use_tls maybe", 2, "true or false");
    home.fails("store set s3-krepository location https://h/b", 2, "write s3://h/b");
    home.fails("store set s3-krepository addressing dns", 2, "auto, path, virtual");
    home.fails("store set absent region x", 2, "config repository create absent");
    home.fails("store create s3-krepository", 2, "exists already");
    home.fails("store create a/b", 2, "not a name");
    home.fails("store ping -r @absent", 2, "not in config file");
    home.fails("nonsense", 2, "nonsense");
    assert_eq!(fs::read_to_string(home.config()).unwrap(), before);

    fs::write(home.config(), "[repositories.a]\nlocaton = \"/k\"\n").unwrap();
    home.fails("store ls", 2, "key \"locaton\" is not known: there are location,");
    fs::write(home.config(), "[repositories.a]\npassphrase = \"HIDDEN\n").unwrap();
    let output = home.run("store ls");
    let told = text(&output.stderr);
    assert!(told.contains("line 2") && !told.contains("HIDDEN"), "{told}");
    home.fails("--config /absent/file store ls", 2, "does not exist");
}

#[test]
fn failures_are_json_when_asked() {
    let home = Home::new();
    for (line, code) in [("--json store rm absent", 2), ("nonsense --json", 2)] {
        let output = home.run(line);
        assert_eq!(output.status.code(), Some(code));
        let told: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(told["message_type"], "exit_error");
        assert_eq!(told["code"], code);
        assert!(!told["message"].as_str().unwrap().is_empty());
    }
}

#[test]
fn a_secret_can_come_from_standard_input() {
    let home = Home::new();
    home.connector_page();
    let mut command = home.command("store set s3-krepository secret_access_key -");
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"from stdin\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(home.done("store show --secrets").contains("\"from stdin\""));
}

#[test]
fn it_starts_without_a_home() {
    let home = Home::new();
    let mut command = home.command("store ls");
    let output = command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME").output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut command = home.command("store ping");
    let output = command.env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("KLOSET_REPOSITORY"));
}

#[test]
fn ping_tells_what_is_wrong_with_a_store() {
    let home = Home::new();
    let options =
        S3ServerOptions { folder: home.0.path(), bucket: "bucket", access_key: "K", secret_key: "S", port: 0 };
    let server = S3Server::start(&options).unwrap();
    let port = server.port;
    home.done(&format!("store add s3 s3://127.0.0.1:{port}/bucket access_key=K secret_access_key=S"));
    home.fails("store ping s3", 13, "`kloset-mount config repository set s3 use_tls false`");
    home.done("store set s3 use_tls false");
    assert_eq!(home.done("store ping s3"), "@s3 is reachable: no kloset is there yet\n");
    let json: serde_json::Value = serde_json::from_str(&home.done("at @s3 store ping --json")).unwrap();
    assert_eq!(json["reachable"], true);
    home.done("store set s3 secret_access_key X");
    home.fails("store ping s3", 13, "check secret_access_key");
    home.done(&format!("store set s3 location s3://127.0.0.1:{port}/absent"));
    home.done("store set s3 secret_access_key S");
    home.fails("store ping s3", 13, "the bucket does not exist");
    home.fails("store ping -r /absent/kloset", 10, "no kloset there");
    drop(server);
    home.fails("store ping s3", 13, "nothing listens there");
}
