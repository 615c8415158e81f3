//! Backups that nobody watches: limits, `status`, Prometheus' file, systemd, many hosts at once. With the program itself,
//! over HTTP.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::support::program::Program;
use crate::support::random::noise;

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs a command that ends with `code` and returns what it printed.
#[track_caller]
fn ends(program: &Program, words: &[&str], code: i32) -> String {
    let output = program.run(words);
    let printed = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{words:?}: {printed}{}", told(&output));
    printed
}

fn objects(program: &Program, folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![program.at("s3/bucket/kloset").join(folder)];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

#[test]
fn limits_hold_in_both_directions_and_change_no_bytes() {
    let program = Program::new(&[]);
    let content = noise(1, 96 << 10);
    fs::write(program.source().join("file"), &content).unwrap();
    // An eighth of a second's worth is free.
    let least = Duration::from_millis(1000 * (96 - 16) / 128);
    let begun = Instant::now();
    program.backup(&["--limit-upload", "128KiB"]);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    let file = format!("latest:{}/file", program.source().display());
    let begun = Instant::now();
    program.done(&["store", "set", "s3", "limit_download", "128KiB"]);
    let output = program.run(&["cat", &file, "--no-cache"]);
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    assert!(output.stdout == content, "{}", told(&output));
    assert!(program.run(&["cat", &file, "--no-cache", "--limit-download", "1GiB"]).stdout == content);
    program.done(&["store", "set", "s3", "limit_download", "1"]);
    let refused = program.run(&["ls"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(told(&refused).contains("limit_download"), "{}", told(&refused));
    ends(&program, &["ls", "--limit-upload", "1KiB"], 2);
}

/// Makes all snapshots that are there older by the store's clock.
fn age(program: &Program, hours: u64) {
    for object in objects(program, "snapshots") {
        let then = SystemTime::now() - Duration::from_secs(hours * 3600 + 600);
        fs::File::options().write(true).open(object).unwrap().set_modified(then).unwrap();
    }
}

#[test]
fn status_goes_by_the_stores_clock_and_ends_with_15_when_stale() {
    let program = Program::new(&[("file", b"x")]);
    let status = |words: &[&str], code| ends(&program, &[&["status"], words].concat(), code);
    age(&program, 30);
    let text = status(&[], 0);
    assert!(text.contains(": whole 1 d 6 h ago (snapshot ") && text.lines().count() == 1, "{text}");
    assert!(status(&["--max-age", "26h"], 15).contains(": stale, whole 1 d 6 h ago"));
    status(&["--max-age", "2d"], 0);
    // What its own clock says is of no account.
    program.backup(&["--time", "2001-01-01T00:00:00Z", "--tag", "old", "--host", "other"]);
    status(&["--max-age", "26h", "--host", "other"], 0);
    let json: Value = serde_json::from_str(&status(&["--max-age", "26h", "--json"], 15)).unwrap();
    assert_eq!((&json["stale"], &json["max_age_seconds"]), (&true.into(), &(26 * 3600).into()));
    let rows = json["backups"].as_array().unwrap();
    let other = rows.iter().find(|row| row["host"] == "other").unwrap();
    assert_eq!(
        (rows.len(), &other["stale"], &other["whole"]["time"]),
        (2, &false.into(), &"2001-01-01T00:00:00Z".into())
    );
    assert!(other["whole"]["age_seconds"].as_i64().unwrap() < 3600, "{json}");
    status(&["--max-age", "26h", "--any"], 0);
    status(&["--max-age", "26h", "--tag", "old"], 0);
    status(&["--max-age", "26h", "--tag", "none"], 15);
    let source = program.source();
    let (source, inside) = (source.to_str().unwrap(), source.join("file"));
    status(&["--max-age", "2d", "--path", inside.to_str().unwrap(), "--path", source], 0);
    status(&["--max-age", "2d", "--path", "/"], 15);
    status(&["--any"], 2);
}

#[test]
fn an_incomplete_snapshot_does_not_make_a_backup_fresh() {
    let program = Program::new(&[("file", b"x")]);
    let list = program.at("list");
    fs::write(&list, format!("{}\n", program.source().display())).unwrap();
    let words = ["backup", "--host", "h", "--files-from", list.to_str().unwrap()];
    program.done(&words);
    age(&program, 30);
    let missing = program.source().join("missing");
    fs::write(&list, format!("{}\n{}\n", program.source().display(), missing.display())).unwrap();
    ends(&program, &words, 3);
    let text = ends(&program, &["status", "--max-age", "26h", "--host", "h"], 15);
    assert!(text.contains(": stale, whole 1 d 6 h ago") && text.contains("), incomplete 0 min ago"), "{text}");
    // What it lacks is told by `ls`.
    let missing = missing.to_str().unwrap();
    let lacks = format!("lacks \"{missing}\": No such file");
    for words in [&["ls", "latest"][..], &["ls", "-l"], &["ls", &format!("latest:{}", program.source().display())]] {
        let output = program.run(words);
        assert!(output.status.success() && told(&output).contains(&lacks), "{words:?}: {}", told(&output));
    }
    assert!(!told(&program.run(&["ls", "latest:/tmp", "-q"])).contains("lacks \"/etc"));
    for words in [&["ls", "latest", "--json"][..], &["ls", "--json"]] {
        let value: Value = serde_json::from_str(&ends(&program, words, 0)).unwrap();
        let of = value.as_array().map_or(&value, |rows| rows.last().unwrap());
        assert_eq!((&of["incomplete"], &of["error_list"][0]["item"]), (&true.into(), &missing.into()), "{value}");
    }
}

#[test]
fn prometheus_gets_a_whole_file_however_the_backup_ends() {
    let program = Program::new(&[("file", b"content")]);
    let folder = program.at("metrics");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("backup.prom");
    let (at, source) = (file.to_str().unwrap(), program.source());
    let words = ["backup", source.to_str().unwrap(), "--host", "h", "--prometheus", at];
    let value = |name: &str| {
        let text = fs::read_to_string(&file).unwrap();
        let name = format!("kloset_backup_{name}{{host=\"h\",repository=\"@s3\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)).map(|value| value.parse::<f64>().unwrap())
    };
    ends(&program, &words, 0);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!((value("success"), value("exit_code")), (Some(1.), Some(0.)));
    assert_eq!((value("files"), value("source_bytes"), value("unreadable_paths")), (Some(1.), Some(7.), Some(0.)));
    assert!(value("requests").unwrap() > 4.);
    let last = value("last_success_timestamp_seconds");
    assert!(last > Some(1.7e9) && value("last_snapshot_timestamp_seconds") == last);
    ends(&program, &[&words[..], &["--key-file", "/dev/null"]].concat(), 2);
    assert_eq!((value("success"), value("exit_code"), value("files")), (Some(0.), Some(2.), None));
    assert_eq!(value("last_success_timestamp_seconds"), last);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    ends(&program, &["backup", "x", "--prometheus", "/nowhere/x.prom"], 2);
    ends(&program, &["backup", "x", "-n", "--prometheus", at], 2);
}

#[test]
fn systemd_hears_of_a_backup_that_it_is_alive_only_while_something_is_done() {
    let program = Program::new(&[]);
    let socket = UnixDatagram::bind(program.at("notify")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut command = program.command(&["backup", "--stdin", "stream"]);
    command.env("NOTIFY_SOCKET", program.at("notify")).env("WATCHDOG_USEC", "200000");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let next = || {
        let mut message = [0; 300];
        let bytes = socket.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..bytes]).into_owned()
    };
    assert_eq!(next(), format!("READY=1\nMAINPID={}\n", child.id()));
    let is_alive = |message: &str| message.starts_with("STATUS=backing up: ") && message.ends_with("\nWATCHDOG=1\n");
    // What begins the backup is done soon; then nothing comes any more.
    let (begun, mut silent) = (Instant::now(), 0);
    while silent < 4 {
        silent = if is_alive(&next()) { 0 } else { silent + 1 };
        assert!(begun.elapsed() < Duration::from_secs(60), "alive without doing anything");
    }
    input.write_all(&noise(1, 6 << 20)).unwrap();
    while !is_alive(&next()) {
        assert!(begun.elapsed() < Duration::from_secs(60), "not alive although it works");
    }
    drop(input);
    while next() != "STOPPING=1\n" {}
    assert!(child.wait().unwrap().success());
}

#[test]
fn the_units_of_a_backup_are_what_systemd_understands_and_expose_little() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        return eprintln!("passed over: there is no systemd-analyze");
    }
    let (units, folder) = (Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/systemd"), tempfile::tempdir().unwrap());
    let (service, timer) = ("kloset-mount-backup@s3.service", "kloset-mount-backup@s3.timer");
    for name in [service, timer] {
        let unit = fs::read_to_string(units.join(name.replace("s3", ""))).unwrap();
        assert!(name == timer || unit.contains("/usr/local/bin/kloset-mount at @%i backup"));
        let unit = unit.replace("/usr/local/bin/kloset-mount", env!("CARGO_BIN_EXE_kloset-mount"));
        fs::write(folder.path().join(name), unit).unwrap();
    }
    let analyze = |words: &[&str]| {
        let output = Command::new("systemd-analyze").args(words).current_dir(folder.path()).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && told(&output).is_empty(), "{words:?}: {printed}{}", told(&output));
    };
    let [service, timer] = [service, timer].map(|name| format!("./{name}"));
    analyze(&["verify", "--man=no", &service, &timer]);
    analyze(&["security", "--offline=true", "--threshold=30", "--no-pager", &service]);
}

#[test]
fn many_hosts_back_up_into_one_kloset_at_once() {
    const HOSTS: usize = 5;
    let program = Program::new(&[]);
    let (shared, own) = (noise(7, 600 << 10), 64 << 10);
    let tree = |host: usize| program.at(&format!("host{host}"));
    for host in 0..HOSTS {
        fs::create_dir(tree(host)).unwrap();
        for (part, content) in shared.chunks(20 << 10).enumerate() {
            fs::write(tree(host).join(format!("shared{part}")), content).unwrap();
        }
        fs::write(tree(host).join("own"), noise(100 + host as u64, own)).unwrap();
    }
    let began = |host: usize| {
        let words = ["backup", &tree(host).display().to_string(), "--host", &format!("host{host}")];
        program.command(&words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let hosts: Vec<_> = (0..HOSTS).map(began).collect();
    for child in hosts {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", told(&output));
    }
    ends(&program, &["check", "--read-data"], 0);
    let rows: Value = serde_json::from_str(&ends(&program, &["ls", "--json"], 0)).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), HOSTS + 1);
    for host in 0..HOSTS {
        let row = rows.as_array().unwrap().iter().find(|row| row["host"] == format!("host{host}")).unwrap();
        assert_eq!((&row["incomplete"], &row["summary"]["files"]), (&false.into(), &31.into()));
        let (id, to) = (row["id"].as_str().unwrap(), program.at(&format!("restored{host}")));
        let from = format!("{id}:{}", tree(host).display());
        program.done(&["restore", &from, "--to", to.to_str().unwrap()]);
        let same = Command::new("diff").arg("-r").args([tree(host), to]).status().unwrap();
        assert!(same.success());
    }
    // A race costs what each of them has stored again, and no more.
    let stored: u64 = objects(&program, "packs").iter().map(|pack| pack.metadata().unwrap().len()).sum();
    let most = HOSTS * (shared.len() + own) + (HOSTS << 16);
    assert!(stored <= most as u64, "{stored} bytes are stored, {most} if all is stored by each");
    let begun = objects(&program, "packs").len();
    program.done(&["backup", tree(0).to_str().unwrap(), "--host", "late"]);
    let new = objects(&program, "packs").len() - begun;
    assert!(new <= 1, "{new} packs although all content was known");
}
