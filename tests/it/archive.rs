//! `archive`: what other programs unpack is what was backed up, and what cannot be read never looks whole.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::local::Local;
use crate::support::random::noise;
use crate::support::tree::{Source, rsync_differences};

fn unpack(archive: &Path, to: &Path, words: &[&str]) {
    fs::create_dir(to).unwrap();
    let output = Command::new(words[0]).args(&words[1..]).arg(archive).current_dir(to).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A source of what tar can hold: everything but sockets.
fn fill(source: &Source) {
    source.file("plain", "content");
    source.file("empty", "");
    source.file("large", noise(3, 6_000_000));
    source.file("deep/er/file", "deep");
    source.file(format!("long/{}/{}", "d".repeat(200), "n".repeat(255)), "long");
    fs::write(source.path().join(OsStr::from_bytes(b"odd \xff\n")), "odd").unwrap();
    let long = [b"\xfe".repeat(120), b"x".to_vec()].concat();
    fs::write(source.path().join(OsStr::from_bytes(&long)), "odd and long").unwrap();
    fs::hard_link(source.at("large"), source.at("deep/again")).unwrap();
    std::os::unix::fs::symlink("x".repeat(150), source.at("far")).unwrap();
    std::os::unix::fs::symlink("plain", source.at("link")).unwrap();
    let pipe = source.at("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let sparse = fs::File::create(source.at("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 1 << 20).unwrap();
    let _ = xattr::set(source.at("plain"), "user.note", b"\0\xff\n"); // not every file system has them
    let acl = Command::new("setfacl").args(["-m", "u:1234:rwx"]).arg(source.at("empty")).output();
    let _ = acl; // nor every machine that
    if rustix::process::geteuid().is_root() {
        let device = rustix::fs::makedev(1, 3);
        let (kind, mode) = (rustix::fs::FileType::CharacterDevice, rustix::fs::Mode::from_raw_mode(0o666));
        rustix::fs::mknodat(rustix::fs::CWD, source.at("null"), kind, mode, device).unwrap();
        std::os::unix::fs::chown(source.at("plain"), Some(3_000_000_000), Some(77)).unwrap();
    }
    assert!(
        Command::new("touch")
            .args(["-d", "1969-12-31T23:59:55.25Z"])
            .arg(source.at("empty"))
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn what_tar_unpacks_is_what_was_backed_up() {
    let local = Local::new();
    let source = Source::new();
    fill(&source);
    let path = source.path().to_str().unwrap();
    local.says("full", &["backup", path], 0, "");
    let target = format!("latest:{path}");
    for (name, out) in [("a.tar", "tar"), ("a.tgz", "gzip"), ("a.tar.zst", "zstd")] {
        local.says("full", &["archive", &target, "-o", name], 0, "wrote");
        let flags = ["tar", "--xattrs", "--xattrs-include=*", "--acls", "-xpf"];
        if name == "a.tar.zst" && Command::new("zstd").arg("--version").output().is_err() {
            continue;
        }
        let to = local.home.at(out);
        unpack(&local.home.at(name), &to, &flags);
        let differing = rsync_differences(source.path(), &to);
        assert!(differing.is_empty(), "{name}: {differing:#?}");
    }
    let piped = local.run("full", &["archive", &target]);
    assert_eq!(piped.stdout, fs::read(local.home.at("a.tar")).unwrap(), "the same on standard output");
    local.says("full", &["archive", &target, "-o", "a.tar"], 1, "exists");
}

#[test]
fn what_unzip_unpacks_has_the_same_content_and_what_zip_cannot_hold_is_told() {
    let local = Local::new();
    let source = Source::new();
    source.file("a/b", "content");
    source.file("large", noise(4, 5_000_000));
    fs::hard_link(source.at("large"), source.at("again")).unwrap();
    std::os::unix::fs::symlink("a/b", source.at("link")).unwrap();
    assert!(Command::new("mkfifo").arg(source.at("pipe")).status().unwrap().success());
    let path = source.path().to_str().unwrap();
    local.says("full", &["backup", path], 0, "");
    let target = format!("latest:{path}");
    local.says("full", &["archive", &target, "-o", "a.zip"], 0, "1 devices, pipes and sockets, \"pipe\" first");
    if Command::new("unzip").arg("-v").stdout(Stdio::null()).status().is_err() {
        return;
    }
    let to = local.home.at("zip");
    unpack(&local.home.at("a.zip"), &to, &["unzip", "-q"]);
    for name in ["a/b", "large", "again"] {
        assert!(fs::read(to.join(name)).unwrap() == fs::read(source.at(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("a/b"));
    let piped = local.run("full", &["archive", &target, "--format", "zip"]);
    assert_eq!(piped.stdout, fs::read(local.home.at("a.zip")).unwrap(), "the same on standard output");
}

#[test]
fn an_archive_with_a_file_that_cannot_be_read_never_looks_whole() {
    let local = Local::new();
    local.home.file("source/m/large", noise(5, 3_000_000));
    local.home.file("source/z", "behind");
    local.says("full", &["backup", "source"], 0, "");
    // The largest pack is that of the content.
    let packs = fs::read_dir(local.home.at("kloset/packs")).unwrap().map(|folder| folder.unwrap().path());
    let packs = packs.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|pack| pack.unwrap().path());
    let pack = packs.max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let mut content = fs::read(&pack).unwrap();
    let middle = content.len() / 2;
    content[middle] ^= 1;
    fs::write(&pack, content).unwrap();
    for format in ["tar", "tar.gz", "tar.zst", "zip"] {
        let broken = local.run("full", &["archive", "latest", "--format", format]);
        let told = String::from_utf8_lossy(&broken.stderr).into_owned();
        assert_eq!(broken.status.code(), Some(14), "{format}: {told}");
        assert!(told.contains("source/m/large\" cannot be read, so the archive is not whole"), "{told}");
        let name = format!("broken.{format}");
        fs::write(local.home.at(&name), &broken.stdout).unwrap();
        let test: &[&str] = if format == "zip" { &["unzip", "-tq"] } else { &["tar", "-tf"] };
        if let Ok(tested) = Command::new(test[0]).args(&test[1..]).arg(local.home.at(&name)).output() {
            assert!(!tested.status.success(), "{format}: taken for whole");
        }
        let file = format!("to-file.{format}");
        local.says("full", &["archive", "latest", "-o", &file], 14, "cannot be read");
        assert!(!local.home.at(&file).exists() && !local.home.at(format!(".{file}.part")).exists());
    }
}
