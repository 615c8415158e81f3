//! `backup` as a program: what it prints, how it ends, what it reads from standard input.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::program::until;
use crate::support::tree::Source;

/// A kloset in a folder, and a source.
struct Local {
    home: Source,
    source: Source,
}

impl Local {
    fn new() -> Local {
        let local = Local { home: Source::new(), source: Source::new() };
        local.home.file("key", "ab".repeat(32));
        local.run(&["create"], b"");
        local.source.file("folder/a", "content");
        local
    }

    fn command(&self, line: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kloset-mount"));
        command
            .args(line)
            .current_dir(self.source.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("XDG_STATE_HOME", self.home.at("state"))
            .env("KLOSET_KEY_FILE", self.home.at("key"))
            .env("KLOSET_REPOSITORY", self.home.at("kloset"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, line: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(line).spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(input); // it may not want it
        child.wait_with_output().unwrap()
    }

    /// Runs a backup that ends with `code` and returns what it printed on standard output and error.
    #[track_caller]
    fn backup(&self, words: &[&str], input: &[u8], code: i32) -> (String, String) {
        let output = self.run(&[&["backup"], words].concat(), input);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (printed, told) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{words:?}: {printed}{told}");
        (printed, told)
    }

    fn cat(&self, path: &str) -> Vec<u8> {
        let output = self.run(&["cat", &format!("latest:{path}")], b"");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn snapshots(&self) -> usize {
        fs::read_dir(self.home.at("kloset/snapshots")).map_or(0, Iterator::count)
    }
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_summary_is_restics() {
    let local = Local::new();
    let (printed, _) = local.backup(&[".", "--json"], b"", 0);
    let summary = lines(&printed).pop().unwrap();
    assert_eq!(summary["message_type"], "summary");
    let numbers = [
        ("files_new", 1),
        ("files_changed", 0),
        ("files_unmodified", 0),
        ("total_files_processed", 1),
        ("total_bytes_processed", 7),
        ("data_added", 7),
        ("retries", 0),
    ];
    for (name, value) in numbers {
        assert_eq!(summary[name], value, "{name}");
    }
    assert!(summary["snapshot_id"].as_str().unwrap().len() == 32 && summary["total_duration"].is_f64());
    assert!(summary["requests"].as_u64().unwrap() >= 4 && summary["data_added_packed"].as_u64().unwrap() > 7);
    for name in ["backup_start", "backup_end"] {
        assert!(summary[name].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    }
    let (printed, told) = local.backup(&["."], b"", 0);
    assert!(printed.contains("1 files (0 new, 0 changed, 1 unmodified), 7 B; stored "), "{printed}");
    assert!(told.contains("0 B of content were new; ") && told.contains(" requests in "), "{told}");
    assert!(!local.backup(&[".", "-q"], b"", 0).1.contains("requests"));
}

#[test]
fn errors_and_ends_are_restics() {
    let local = Local::new();
    let list = local.source.file("list", "folder/a\ngone\n");
    let (printed, told) = local.backup(&["--json", "--files-from", list.to_str().unwrap()], b"", 3);
    let told = lines(&told);
    let of = |kind: &str| told.iter().find(|line| line["message_type"] == kind).unwrap();
    assert_eq!(of("error")["item"], local.source.at("gone").to_str().unwrap());
    assert!(of("error")["error"]["message"].as_str().unwrap().contains("No such file"));
    assert_eq!((&of("exit_error")["code"], &lines(&printed).pop().unwrap()["errors"]), (&3.into(), &1.into()));
    let (_, told) = local.backup(&["--json", "gone"], b"", 2);
    assert_eq!((&lines(&told)[0]["message_type"], &lines(&told)[0]["code"]), (&"exit_error".into(), &2.into()));
}

#[test]
fn lists_come_from_files_and_from_standard_input() {
    let local = Local::new();
    local.source.file("b\nc", "two lines");
    local.backup(&["--files-from", "-"], b"folder/a\n\n", 0);
    assert_eq!(local.cat(local.source.at("folder/a").to_str().unwrap()), b"content");
    local.backup(&["--files-from0", "-"], b"b\nc\0folder\0", 0);
    assert_eq!(local.cat(local.source.at("b\nc").to_str().unwrap()), b"two lines");
    assert_eq!(local.cat(local.source.at("folder/a").to_str().unwrap()), b"content");
    local.backup(&["--files-from", "-", "--stdin", "x"], b"", 2);
    assert!(local.backup(&["--files-from", "-"], b"", 2).1.contains("nothing to back up"));
    assert!(local.backup(&[], b"", 2).1.contains("PATH"));
    assert_eq!(local.snapshots(), 2);
}

#[test]
fn standard_input_and_commands_are_files() {
    let local = Local::new();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    local.backup(&["--stdin", "db/dump", "--command", "list=ls folder", "folder"], &content, 0);
    assert!(local.cat("/db/dump") == content && local.cat("/list") == b"a\n");
    let (_, told) = local.backup(&["folder", "--command", "dump=echo half; exit 4"], b"", 1);
    assert!(told.contains("exit status: 4") && told.contains("no snapshot was made"), "{told}");
    assert_eq!(local.snapshots(), 1);
}

#[test]
fn dry_runs_and_skipped_snapshots_say_so() {
    let local = Local::new();
    let (printed, _) = local.backup(&["folder", "--dry-run"], b"", 0);
    assert!(printed.starts_with("nothing was stored: 1 files (1 new, 0 changed"), "{printed}");
    let (printed, _) = local.backup(&["folder", "-n", "--json"], b"", 0);
    let summary = lines(&printed).pop().unwrap();
    assert_eq!((&summary["dry_run"], &summary["snapshot_id"]), (&true.into(), &Value::Null));
    assert_eq!(local.snapshots(), 0);
    local.backup(&["folder", "--time", "2020-01-02T03:04:05+01:00"], b"", 0);
    let (printed, stored) = local.source.quietly(|| {
        local.backup(&["folder"], b"", 0);
        let before = local.snapshots();
        let (printed, _) = local.backup(&["folder", "--skip-if-unchanged"], b"", 0);
        (printed, local.snapshots() - before)
    });
    assert_eq!(stored, 0);
    assert!(printed.starts_with("no snapshot, nothing changed: 1 files"), "{printed}");
    let mut names = fs::read_dir(local.home.at("kloset/snapshots")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.any(|name| name.to_str().unwrap().starts_with("20200102T020405000Z-")));
}

#[test]
fn explain_needs_no_kloset_and_makes_no_snapshot() {
    let local = Local::new();
    local.source.file("folder/.klosetignore", "a\n");
    local.source.file("patterns", "# some\n*.o\n");
    local.source.file("folder/x.o", "");
    let words =
        [".", "--exclude-file", "patterns", "--explain", "folder/a", "--explain", "folder/x.o", "--explain", "folder"];
    let (printed, _) = local.backup(&words, b"", 0);
    let at = |name: &str| local.source.at(name).display().to_string();
    let expected = [
        format!("\"{}\": left out: rule \"a\" of {}:1", at("folder/a"), at("folder/.klosetignore")),
        format!("\"{}\": left out: rule \"*.o\" of patterns:2", at("folder/x.o")),
        format!("\"{}\": taken: no rule fits", at("folder")),
    ];
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
    let (printed, _) = local.backup(&[".", "--no-klosetignore", "--explain", "folder/a", "--json"], b"", 0);
    let explained = &lines(&printed)[0];
    assert_eq!((&explained["taken"], &explained["reason"]), (&true.into(), &Value::Null));
    let mut without = local.command(&["backup", ".", "--explain", "folder/a"]);
    let output = without.env_remove("KLOSET_REPOSITORY").env_remove("KLOSET_KEY_FILE").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(local.snapshots(), 0);
}

#[test]
fn sigusr1_tells_how_far_it_is_and_lines_of_status_come_meanwhile() {
    let local = Local::new();
    let mut child = local.command(&["backup", "--stdin", "stream", "--json"]).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&[7; 100_000]).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let caught = || {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim().to_owned();
        u64::from_str_radix(&mask, 16).unwrap() & (1 << (10 - 1)) != 0
    };
    until("listening to SIGUSR1", caught);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let (printed, told) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(lines(&told)[0]["message_type"], "status");
    let printed = lines(&printed);
    assert_eq!(
        (&printed[0]["message_type"], &printed.last().unwrap()["message_type"]),
        (&"status".into(), &"summary".into())
    );
}

#[test]
fn a_backup_that_waits_for_standard_input_can_be_stopped() {
    let local = Local::new();
    let mut child = local.command(&["backup", "--stdin", "stream"]).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"begun").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(local.snapshots(), 0);
}
