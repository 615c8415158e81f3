//! What the sources promise about themselves: layers, headings, lengths, and that no test is forgotten.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each layer may import besides itself and the leaves; `docs/architecture.md` says why.
const LAYERS: &[(&str, &[&str])] = &[
    ("cli", &["backup", "fs", "restore", "rewrite", "sync", "ui", "repo", "store"]),
    ("ui", &["repo", "store"]),
    ("backup", &["repo", "store"]),
    ("restore", &["repo", "store"]),
    ("rewrite", &["repo", "store"]),
    ("sync", &["repo", "store"]),
    ("fs", &["repo", "store"]),
    ("repo", &["store"]),
    ("store", &[]),
];
/// What everybody may import and what imports nothing.
const LEAVES: &[&str] = &["cpu", "env", "monitor"];
/// The longest file.
const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns all Rust files below a folder, with their content.
fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let (mut folders, mut out) = (vec![root().join(below)], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let at = entry.unwrap().path();
            if at.is_dir() {
                folders.push(at);
            } else if at.extension().is_some_and(|end| end == "rs") {
                let content = fs::read_to_string(&at).unwrap();
                out.push((at.strip_prefix(root()).unwrap().to_owned(), content));
            }
        }
    }
    out.sort();
    assert!(!out.is_empty());
    out
}

/// Returns the top-level modules that a file names as `crate::x`, in one `use` or in braces.
fn imports(content: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut out = BTreeSet::new();
    for line in content.lines().map(str::trim_start).filter(|line| !line.starts_with("//")) {
        for (at, found) in line.match_indices("crate::") {
            if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue; // another crate's
            }
            let rest = &line[at + found.len()..];
            match rest.strip_prefix('{') {
                Some(several) => {
                    assert!(several.contains('}'), "one line for each import of several modules: {line}");
                    out.extend(several.split([',', '}']).map(|part| word(part.trim())));
                }
                None => drop(out.insert(word(rest))),
            }
        }
    }
    out.remove("");
    out
}

/// Returns the layer that a file belongs to.
fn layer(file: &Path) -> String {
    file.components().nth(1).unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn imports_go_down_only() {
    for (file, content) in sources("src") {
        let layer = layer(&file);
        if layer == "lib" || layer == "main" {
            continue;
        }
        let allowed = match LAYERS.iter().find(|(name, _)| *name == layer) {
            Some((_, allowed)) => [allowed, LEAVES].concat(),
            None => {
                assert!(LEAVES.contains(&layer.as_str()), "{}: \"{layer}\" is no known layer", file.display());
                Vec::new()
            }
        };
        for import in imports(&content) {
            let known = import == layer || allowed.contains(&import.as_str());
            assert!(known, "{}: \"{layer}\" must not import \"{import}\"", file.display());
        }
    }
}

#[test]
fn the_reader_of_imports_sees_them_all() {
    let content = "use crate::repo::id;\n// use crate::no;\nlet x = crate::store::X; use crate::{cpu::Cpu, env};\n\
        use other_crate::z;";
    let found: Vec<_> = imports(content).into_iter().collect();
    assert_eq!(found, ["cpu", "env", "repo", "store"]);
}

#[test]
fn every_file_says_first_what_it_is() {
    for (file, content) in [sources("src"), sources("tests")].concat() {
        assert!(content.starts_with("//! "), "{} does not begin with //!", file.display());
    }
}

#[test]
fn no_file_is_long() {
    for (file, content) in [sources("src"), sources("tests")].concat() {
        let lines = content.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines, more than {LINES_MAX}", file.display());
    }
}

#[test]
fn only_the_command_line_prints() {
    let prints = ["println!", "print!", "dbg!", "io::stdout", "io::stderr"];
    for (file, content) in sources("src") {
        if layer(&file) == "cli" || layer(&file) == "main" {
            continue;
        }
        for (number, line) in (1..).zip(content.lines()) {
            let code = line.split("//").next().unwrap_or_default();
            let found = prints.iter().find(|word| code.contains(*word));
            assert!(found.is_none(), "{}:{number} has {found:?}", file.display());
        }
    }
}

#[test]
fn every_test_file_is_listed() {
    let lists = [
        ("tests/it", "tests/it/main.rs"),
        ("tests/it/support", "tests/it/support/mod.rs"),
        ("tests/sim", "tests/sim/main.rs"),
    ];
    for (folder, list) in lists {
        let listed = fs::read_to_string(root().join(list)).unwrap();
        for (file, _) in sources(folder) {
            let name = file.file_stem().unwrap().to_str().unwrap();
            if file.parent() == Some(Path::new(folder)) && name != "main" && name != "mod" {
                let found = listed.lines().any(|line| line.trim_start_matches("pub(crate) ") == format!("mod {name};"));
                assert!(found, "{} is not in {list}", file.display());
            }
        }
    }
}

/// Marks what comes before it, in a paragraph of the page, as held by nothing.
const UNHELD: &str = "*(Held by no test.)*";

/// Returns a text with single blanks.
fn flat(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the paragraphs of the comments above a file's tests.
fn test_comments(content: &str) -> Vec<String> {
    let (mut comment, mut is_test, mut out) = (String::new(), false, Vec::new());
    for line in content.lines().map(str::trim_start) {
        if let Some(text) = line.strip_prefix("///") {
            comment += &format!("{}\n", text.trim());
        } else if line.starts_with("#[") {
            is_test |= line == "#[test]" || line == "#[tokio::test]";
        } else {
            let paragraphs = std::mem::take(&mut comment);
            if std::mem::take(&mut is_test) {
                out.extend(paragraphs.split("\n\n").map(flat).filter(|paragraph| !paragraph.is_empty()));
            }
        }
    }
    out
}

/// Returns what of a paragraph no comment holds and no marker follows.
fn unheld(paragraph: &str, comments: &[String]) -> Vec<String> {
    let (mut out, marked) = (Vec::new(), paragraph.matches(UNHELD).count());
    for (number, part) in paragraph.split(UNHELD).enumerate() {
        let mut held = vec![false; part.len()];
        for comment in comments {
            part.match_indices(&**comment).for_each(|(at, found)| held[at..at + found.len()].fill(true));
        }
        let mut left: Vec<String> = part
            .char_indices()
            .collect::<Vec<_>>()
            .chunk_by(|a, b| held[a.0] == held[b.0])
            .filter(|run| !held[run[0].0])
            .map(|run| run.iter().map(|one| one.1).collect::<String>().trim().to_owned())
            .filter(|text| !text.is_empty())
            .collect();
        if number < marked && left.pop().is_none_or(|last| !part.trim_end().ends_with(&last)) {
            out.push(format!("{part}: marked as held by no test, and held"));
        }
        out.extend(left);
    }
    out
}

/// Every sentence of `docs/semantics.md` is the comment of a test or says that it is none; and what the tests named
/// there say in their comments is on the page.
#[test]
fn the_promises_of_the_mount_are_the_comments_of_its_tests() {
    let page = fs::read_to_string(root().join("docs/semantics.md")).unwrap();
    let (intro, promises) = page.split_once("\n## ").unwrap();
    let paragraphs: Vec<String> = promises.split("\n\n").skip(1).map(flat).filter(|p| !p.starts_with('#')).collect();
    let (mut comments, mut wrong, mut named_files) = (Vec::new(), Vec::new(), 0);
    for (file, content) in [sources("tests/it"), sources("src/fs")].concat() {
        let found = test_comments(&content);
        let name = file.file_name().unwrap().to_str().unwrap();
        if file.starts_with("tests/it") && intro.contains(&format!("{name}`")) && name != "tidy.rs" {
            named_files += 1;
            let missing = found.iter().filter(|comment| !paragraphs.iter().any(|text| text.contains(*comment)));
            wrong.extend(missing.map(|comment| format!("{}: not on the page: {comment}", file.display())));
        }
        comments.extend(found);
    }
    assert_eq!(named_files, intro.matches(".rs`").count() - 1, "the page names a file of tests that is not there");
    for paragraph in &paragraphs {
        wrong.extend(unheld(paragraph, &comments).into_iter().map(|text| format!("held by no test: {text}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn drift_between_page_and_comments_is_seen() {
    let comments = test_comments("/// One.\n/// Two.\n///\n/// Three.\n#[test]\nfn a() {}\n/// Four.\nfn b() {}\n");
    assert_eq!(comments, ["One. Two.", "Three."]);
    for (paragraph, expected) in [
        ("One. Two. Three.", vec![]),
        ("One. Two.", vec![]),
        ("One. Two, too. Three.", vec!["One. Two, too."]),
        ("Three. Four.", vec!["Four."]),
        ("Three. Four. *(Held by no test.)*", vec![]),
        ("Four. *(Held by no test.)* Three.", vec![]),
        ("Four. Three. *(Held by no test.)*", vec!["Four. Three. : marked as held by no test, and held"]),
    ] {
        assert_eq!(unheld(paragraph, &comments), expected, "{paragraph}");
    }
}
