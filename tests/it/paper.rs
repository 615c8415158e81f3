//! `key export --paper`: a sheet that opens the kloset however it comes back, and goes nowhere else.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::local::Local;

#[test]
fn a_sheet_opens_the_kloset_as_it_is_and_as_it_is_typed() {
    let local = Local::new();
    local.says("full", &["backup", "source"], 0, "");
    for sheet in ["sheet.txt", "sheet.html", "sheet.svg"] {
        let said = local.says("full", &["-vv", "key", "export", "--paper", "-o", sheet], 0, "added key slot");
        let content = fs::read_to_string(local.home.at(sheet)).unwrap();
        assert_eq!(fs::metadata(local.home.at(sheet)).unwrap().mode() & 0o777, 0o600);
        // After its number the line has digits and spaces alone: a path beside it may have a K, too.
        let of_line = |line: &str| {
            let line = line.trim_start_matches(' ').trim_end_matches("</text>");
            let (_, key) = if line.starts_with('<') { line.split_once('>')? } else { ("", line) };
            let digits = key.strip_prefix('K')?.chars().all(|c| c == ' ' || c.is_ascii_hexdigit());
            digits.then(|| key.to_owned())
        };
        let key: Vec<String> = content.lines().filter_map(of_line).filter(|line| line.len() == 27).collect();
        assert_eq!(key.len(), 4, "{content}");
        assert!(!said.contains(&key[0][3..17]), "the key is in the log: {said}");
        assert!(content.contains(local.home.at("kloset").to_str().unwrap()));
        local.home.file("typed", key.join("\n"));
        local.says("typed", &["ls"], 0, "source");
        if sheet != "sheet.svg" {
            fs::copy(local.home.at(sheet), local.home.at("saved")).unwrap();
            local.says("saved", &["ls"], 0, "source");
        }
        local.says("full", &["key", "export", "--paper", "-o", sheet], 2, "there already");
    }
    let listed = local.says("typed", &["key", "ls"], 0, "paper 20");
    assert_eq!(listed.matches("paper 20").count(), 3, "{listed}");
}

#[test]
fn a_sheet_goes_to_a_terminal_or_a_file_and_a_slip_is_told() {
    let local = Local::new();
    local.says("full", &["key", "export", "--paper"], 2, "only shown on a terminal");
    local.says("full", &["key", "export", "--paper", "-o", "no/such/folder"], 1, "no/such/folder");
    let listed = local.says("full", &["key", "ls"], 0, "full");
    assert!(!listed.contains("paper"), "no slot is left behind: {listed}");
    local.says("full", &["key", "export", "--paper", "-o", "sheet"], 0, "added key slot");
    let sheet = fs::read_to_string(local.home.at("sheet")).unwrap();
    local.home.file("slip", sheet.replace("K3 ", "K3 0"));
    local.says("slip", &["ls"], 2, "line K3 of the paper key");
}
