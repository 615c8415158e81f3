//! What is told of many snapshots at once: `find`, `versions`, `diff`, `info`, held against each snapshot by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use kloset_mount::repo::RepoError;
use kloset_mount::repo::diff::diff;
use kloset_mount::repo::find::{Hit, Query, find};
use kloset_mount::repo::path::Found;
use kloset_mount::repo::pattern::Pattern;
use kloset_mount::repo::usage::measure;
use kloset_mount::repo::wanted::{Rooted, Wanted, choose};
use serde_json::Value;

use crate::support::kloset::{Kloset, runtime};
use crate::support::local::Local;
use crate::support::random::noise;
use crate::support::stores::{Operation, Recording};
use crate::support::tree::{Entry, Kind, Source};

/// Memory of the reader: all of it stays.
const READER_BYTES: usize = 64 << 20;
/// Snapshots of the changing tree.
const ROUNDS: usize = 12;

/// A tree that changes a little from one snapshot to the next; one folder has more than a page.
struct Changing {
    recording: Recording,
    kloset: Kloset,
    source: Source,
}

impl Changing {
    fn new() -> Changing {
        let recording = Recording::in_memory();
        let kloset = Kloset::create(recording.clone());
        let source = Source::new();
        for folder in 0..10 {
            for file in 0..10 {
                source.file(format!("f{folder}/sub/{file}.txt"), format!("{folder} {file}"));
            }
        }
        for file in 0..4200 {
            source.file(format!("many/{file:04}.dat"), "");
        }
        for round in 0..ROUNDS {
            source.file(format!("f{}/sub/3.txt", round % 4), format!("round {}", round / 4));
            source.file(format!("f1/new{round}.txt"), "new");
            source.file(format!("many/{:04}.dat", round * 7), format!("{round}"));
            if round > 2 {
                fs::remove_file(source.at(format!("f1/new{}.txt", round - 3))).unwrap();
            }
            if round == 6 {
                fs::rename(source.at("f9"), source.at("moved")).unwrap();
            }
            kloset.backup(source.path());
        }
        Changing { recording, kloset, source }
    }

    fn rooted(&self) -> Vec<Rooted> {
        let names = self.kloset.snapshots().unwrap();
        runtime().block_on(choose(&self.kloset.0, &names, &Wanted::default())).unwrap().snapshots
    }

    fn find(&self, pattern: &str) -> Vec<Hit> {
        let query = Query {
            patterns: vec![Pattern::parse(pattern, false).unwrap()],
            kinds: vec![],
            oldest: None,
            newest: None,
        };
        let reader = self.kloset.0.reader(READER_BYTES);
        let found = runtime().block_on(find(&reader, &self.rooted(), query)).unwrap();
        let mut hits = Vec::new();
        found
            .each(|hit| {
                hits.push(hit);
                Ok::<_, ()>(())
            })
            .unwrap();
        hits
    }

    /// All that is in each snapshot: paths, and what tells their contents.
    fn all(&self) -> Vec<Vec<(Vec<u8>, String)>> {
        let entry = |(path, entry): (Vec<u8>, Entry)| {
            let content = match &entry.kind {
                Kind::File { bytes, hash, .. } => format!("{bytes} {hash}"),
                _ => String::new(),
            };
            ([b"/", &path[..]].concat(), content)
        };
        let of = |name| self.kloset.dump(name, Path::new("/")).unwrap().into_iter().map(entry).collect();
        self.kloset.snapshots().unwrap().into_iter().map(of).collect()
    }
}

/// What a search of each snapshot by itself finds: path and content, and the numbers of its snapshots.
fn found_one_by_one(all: &[Vec<(Vec<u8>, String)>], pattern: &str) -> BTreeMap<(Vec<u8>, String), BTreeSet<usize>> {
    let pattern = Pattern::parse(pattern, false).unwrap();
    let mut out: BTreeMap<_, BTreeSet<usize>> = BTreeMap::new();
    for (number, snapshot) in all.iter().enumerate() {
        for found in snapshot.iter().filter(|(path, _)| pattern.fits(path)) {
            out.entry(found.clone()).or_default().insert(number);
        }
    }
    out
}

/// Compares a search over all snapshots with one of each: the same paths, as many contents, in the same snapshots.
#[track_caller]
fn check(changing: &Changing, all: &[Vec<(Vec<u8>, String)>], pattern: &str, least: usize) {
    let expected = found_one_by_one(all, pattern);
    let mut expected: Vec<_> = expected.into_iter().map(|((path, _), all)| (path, all)).collect();
    let mut found = Vec::new();
    for hit in changing.find(pattern) {
        for (_, runs) in hit.contents() {
            found.push((hit.path.clone(), runs.iter().collect::<BTreeSet<_>>()));
        }
    }
    let paths: Vec<_> = found.iter().map(|(path, _)| path.clone()).collect();
    assert!(paths.is_sorted_by_key(|path| path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>()));
    expected.sort();
    found.sort();
    assert!(found.len() >= least, "{pattern}: {} found", found.len());
    assert_eq!(found, expected, "{pattern}");
}

#[test]
fn a_search_over_all_snapshots_finds_what_a_search_of_each_one_finds() {
    let changing = Changing::new();
    let all = changing.all();
    for (pattern, least) in
        [("3.txt", 10), ("new*", ROUNDS), ("f1/**", 20), ("sub", 10), ("*.dat", 4200 + ROUNDS - 1), ("/nowhere", 0)]
    {
        check(&changing, &all, pattern, least);
    }
}

#[test]
fn a_search_fetches_every_manifest_and_every_pack_of_trees_once() {
    let changing = Changing::new();
    changing.recording.take_requests();
    assert!(!changing.find("3.txt").is_empty());
    let gets = changing.recording.take_requests();
    let gets: Vec<String> =
        gets.into_iter().filter(|(what, _)| *what == Operation::Get).map(|(_, name)| name).collect();
    let distinct: BTreeSet<&String> = gets.iter().collect();
    assert_eq!(gets.len(), distinct.len(), "nothing is fetched twice: {gets:?}");
    assert_eq!(gets.iter().filter(|name| name.starts_with("snapshots/")).count(), ROUNDS);
    assert!(gets.iter().filter(|name| name.starts_with("packs/")).count() <= ROUNDS + 1, "{gets:?}");
}

#[test]
fn what_differs_is_found_and_what_is_the_same_is_not_looked_into() {
    let changing = Changing::new();
    let rooted = changing.rooted();
    let reader = changing.kloset.0.reader(READER_BYTES);
    let between = |a: usize, b: usize| {
        let sides = [a, b].map(|at| Found::Root(rooted[at].root));
        let mut out = Vec::new();
        let told = diff(&reader, (Some(&sides[0]), Some(&sides[1])), b"", |difference| {
            let below = difference.path.strip_prefix(changing.source.path().as_os_str().as_encoded_bytes());
            let path = String::from_utf8(below.unwrap_or_default().to_vec()).unwrap();
            out.push(format!("{}{path}", difference.change.letter()));
            Ok::<_, RepoError>(())
        });
        runtime().block_on(told).unwrap();
        out.retain(|line| !line.starts_with('U'));
        out
    };
    assert_eq!(between(4, 4), [""; 0]);
    let forth = ["-/f1/new1.txt", "+/f1/new4.txt", "M/f0/sub/3.txt", "M/many/0028.dat"];
    let expected: BTreeSet<String> = forth.map(str::to_owned).into();
    assert_eq!(between(3, 4).into_iter().collect::<BTreeSet<_>>(), expected);
    let back: BTreeSet<String> = between(4, 3).into_iter().collect();
    assert!(back.contains("+/f1/new1.txt") && back.contains("-/f1/new4.txt") && back.len() == 4, "{back:?}");
    let moved = between(5, 6);
    let count = |start: &str| moved.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!((count("-/f9"), count("+/moved")), (12, 12), "{moved:?}");
    let pages = |reader: &kloset_mount::repo::Reader| reader.counts()[0].1.misses;
    let before = pages(&reader);
    between(5, 6);
    let fresh = changing.kloset.0.reader(READER_BYTES);
    let sides = [5, 6].map(|at| Found::Root(rooted[at].root));
    let told = diff(&fresh, (Some(&sides[0]), Some(&sides[1])), b"", |_| Ok::<_, RepoError>(()));
    runtime().block_on(told).unwrap();
    assert_eq!(pages(&reader), before, "all of it was in memory");
    assert!(pages(&fresh) < 60, "{} pages read of two times {}", pages(&fresh), 30);
}

#[test]
fn what_snapshots_take_adds_up() {
    let recording = Recording::in_memory();
    let kloset = Kloset::create(recording.clone());
    let source = Source::new();
    source.file("kept", noise(1, 300_000));
    source.file("copy", noise(1, 300_000));
    kloset.backup(source.path());
    source.file("more", noise(2, 100_000));
    kloset.backup(source.path());
    fs::remove_file(source.at("more")).unwrap();
    kloset.backup(source.path());
    let names = kloset.snapshots().unwrap();
    let rooted = runtime().block_on(choose(&kloset.0, &names, &Wanted::default())).unwrap().snapshots;
    let usages = runtime().block_on(measure(&kloset.0.reader(READER_BYTES), &rooted)).unwrap();
    let [first, second, third] = usages.snapshots[..] else { panic!("{usages:?}") };
    assert_eq!((first.files, first.bytes, first.distinct_bytes), (2, 600_000, 300_000));
    assert_eq!((second.files, second.bytes, second.distinct_bytes), (3, 700_000, 400_000));
    assert!(second.unique > 100_000 && second.unique < 130_000, "{second:?}");
    assert!(first.unique < 2_000 && third.unique < 2_000, "only trees: {first:?} {third:?}");
    assert_eq!((usages.all.bytes, usages.all.distinct_bytes), (1_900_000, 400_000));
    let packs: u64 = runtime().block_on(kloset.0.store.list("packs")).unwrap().iter().map(|object| object.bytes).sum();
    assert!(usages.all.stored() <= packs && packs < usages.all.stored() + 60_000, "{packs}: {usages:?}");
    assert!(usages.all.content_stored < 430_000);
}

/// A local kloset with three snapshots of a folder.
fn three() -> (Local, String) {
    let local = Local::new();
    local.home.file("source/sub/same", "same");
    local.says("full", &["backup", "source", "--tag", "old"], 0, "");
    local.home.file("source/file", "other content");
    local.home.file("source/new", "new");
    local.says("full", &["backup", "source"], 0, "");
    local.home.file("source/file", "content");
    fs::remove_file(local.home.at("source/new")).unwrap();
    local.says("full", &["backup", "source"], 0, "");
    let at = local.home.at("source").to_str().unwrap().to_owned();
    (local, at)
}

#[test]
fn find_tells_each_content_once_and_chooses() {
    let (local, at) = three();
    let found = local.json(&["find", "file"]);
    let counts: Vec<_> = found.iter().map(|hit| (hit["snapshots"].clone(), hit["size"].clone())).collect();
    assert_eq!(counts, [(2.into(), 7.into()), (1.into(), 13.into())]);
    assert_eq!((&found[0]["path"], &found[0]["type"]), (&format!("{at}/file").into(), &"file".into()));
    assert_ne!(found[0]["first"], found[0]["last"]);
    assert_eq!(local.json(&["find", "file", "--all"]).len(), 3);
    assert_eq!(local.json(&["find", "SAME"]).len(), 0);
    assert_eq!(local.json(&["find", "-i", "SAME"]).len(), 1);
    assert_eq!(local.json(&["find", "s*", "--type", "d"]).len(), 2, "source and sub");
    assert_eq!(local.json(&["find", "file", "--tag", "old"]).len(), 1);
    assert_eq!(local.json(&["find", "file", "--snapshot", "latest~1"])[0]["size"], 13);
    assert_eq!(local.json(&["find", "file", "--host", "nobody"]).len(), 0);
    assert_eq!(local.json(&["find", "file", "--oldest", "2999-01-01"]).len(), 0);
    assert_eq!(local.json(&["find", "file", "--newest", "2999-01-01"]).len(), 2);
    let said = local.says("full", &["find", "file", "new"], 0, &format!("{at}/new\n"));
    assert_eq!(said.lines().count(), 3, "{said}");
    local.says("full", &["find", "[z-a]"], 2, "pattern");
    local.says("full", &["find", "x", "--newest", "soon"], 2, "2026-11-01");
}

#[test]
fn versions_are_told_newest_first() {
    let (local, at) = three();
    let path = format!("{at}/file");
    let versions = local.json(&["versions", &path]);
    let sizes: Vec<_> =
        versions.iter().map(|version| (version["size"].clone(), version["snapshots"].clone())).collect();
    assert_eq!(sizes, [(7.into(), 2.into()), (13.into(), 1.into())]);
    assert_eq!(versions[0]["in"].as_array().unwrap().len(), 2);
    let said = local.says("full", &["versions", &format!("{at}/new")], 0, "2 of 3 snapshots do not have it");
    assert_eq!(said.lines().count(), 2, "{said}");
    assert_eq!(local.json(&["versions", &format!("{at}/sub")]).len(), 1, "a folder that stayed the same");
    local.says("full", &["versions", "/nowhere"], 1, "in any of 3 snapshots");
}

#[test]
fn diff_tells_what_came_went_and_changed() {
    let (local, at) = three();
    let said = local.says("full", &["diff", "latest~1", "latest"], 0, "0 new, 1 gone, 1 other content");
    assert!(said.contains(&format!("{at}/new\n")) && said.contains("13>7"), "{said}");
    let changes = local.json(&["diff", "latest~2", "latest~1", &at]);
    let letters: Vec<_> = changes.iter().map(|change| change["modifier"].clone()).collect();
    assert_eq!(letters, ["M".into(), "+".into(), Value::Null]);
    assert_eq!((&changes[2]["added"], &changes[2]["content"]), (&1.into(), &1.into()));
    assert_eq!(local.json(&["diff", "latest~2", "latest", &format!("{at}/sub")]).len(), 1, "only the totals");
    local.says("full", &["diff", "latest", "latest", "--exit-code"], 0, "0 new");
    local.says("full", &["diff", "latest~1", "latest", "--exit-code"], 1, "1 gone");
    local.says("full", &["diff", "latest~2", "latest", &format!("{at}/file"), "--metadata"], 0, "1 other metadata");
    local.says("full", &["diff", "latest", "latest", "/nowhere"], 1, "in either snapshot");
}

#[test]
fn info_and_long_listings_are_told() {
    let (local, at) = three();
    let info = local.json(&["info"]).remove(0);
    assert_eq!(info["snapshots"].as_array().unwrap().len(), 3);
    assert_eq!((&info["snapshots"][1]["files"], &info["snapshots"][1]["bytes"]), (&3.into(), &20.into()));
    assert_eq!(local.json(&["info", "latest"])[0]["snapshots"].as_array().unwrap().len(), 1);
    local.says("full", &["info"], 0, "packs hold");
    local.says("full", &["info", "zz"], 1, "no snapshot");
    let listed = local.json(&["ls", "--long", "-R", &format!("latest:{at}")]).remove(0);
    let file = listed["entries"].as_array().unwrap().iter().find(|entry| entry["type"] == "file").unwrap();
    assert!(file["ctime"].is_string() && file["inode"].is_u64() && file["xattrs"].is_array(), "{file}");
}
