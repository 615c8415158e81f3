//! The word orders people are used to, turned into the one that the parser knows.
//!
//! `at @name COMMAND ...` is Plakar's; `@name MOUNTPOINT -o ...` is what mount(8) calls. Pure: from
//! words to words, before parsing. It does not know what a name means.
//!
//! Linked to as `mount.kloset-mount` it is a helper of mount(8), which calls it `mount.kloset-mount @name MOUNTPOINT
//! [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`; through mount.fuse(8) it is called as people do.

use std::ffi::{OsStr, OsString};
use std::path::Path;

/// What the program is called as a helper of mount(8).
const HELPERS: [&str; 2] = ["mount.kloset-mount", "mount.fuse.kloset-mount"];

/// Rewrites the words of a command line, program name included.
///
/// `valued` are the global options that take their value from the next word.
pub(crate) fn rewrite(words: Vec<OsString>, valued: &[String]) -> Vec<OsString> {
    let name = words.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str);
    if name.is_some_and(|name| HELPERS.contains(&name)) {
        return of_helper(words);
    }
    let first = first_word(&words, valued);
    let word = |index: usize| words.get(index).and_then(|word| word.to_str()).unwrap_or("");
    let with = |extra: &[&OsStr], skip: usize| {
        let (before, after) = words.split_at(first);
        let extra = extra.iter().map(|word| (*word).to_owned());
        before.iter().cloned().chain(extra).chain(after.iter().skip(skip).cloned()).collect()
    };
    let repository = OsStr::new("--repository");
    match word(first) {
        "at" if words.len() > first + 1 => with(&[repository, &words[first + 1]], 2),
        text if is_repository(text) => with(&[repository, &words[first], OsStr::new("mount")], 1),
        _ => words,
    }
}

/// Leaves out what mount(8) tells its helpers and we do not need: how much to say, where to note the mount, its type.
fn of_helper(words: Vec<OsString>) -> Vec<OsString> {
    let mut words = words.into_iter();
    let mut out: Vec<OsString> = words.next().into_iter().collect();
    let Some(repository) = words.next() else { return out };
    let mount = ["--repository".into(), repository, "mount".into()];
    out.extend(mount);
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-n" | "-s" | "-v" | "-w" | "-r") => {}
            Some("-t" | "-N") => drop(words.next()),
            _ => out.push(word),
        }
    }
    out
}

/// True for what can only be a repository, never a command.
fn is_repository(word: &str) -> bool {
    let starts = ["@", "s3://", "file://", "/", "./", "../"];
    starts.iter().any(|start| word.starts_with(start))
}

/// Index of the first word that is no global option.
fn first_word(words: &[OsString], valued: &[String]) -> usize {
    let mut index = 1;
    while let Some(word) = words.get(index).and_then(|word| word.to_str()) {
        if !word.starts_with('-') || word == "--" {
            break;
        }
        let takes_next = valued.iter().any(|option| option == word);
        index += if takes_next { 2 } else { 1 };
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(given: &str, expected: &str) {
        let words = given.split(' ').map(OsString::from).collect();
        let valued = ["-r", "--repository", "--config"].map(str::to_owned);
        let rewritten = rewrite(words, &valued);
        assert_eq!(rewritten.join(OsStr::new(" ")), expected);
    }

    #[test]
    fn plakars_order_is_understood() {
        check("k at @s3 backup /etc", "k --repository @s3 backup /etc");
        check("k at /srv/k ls", "k --repository /srv/k ls");
        check("k at @s3 backup @mys3", "k --repository @s3 backup @mys3");
        check("k --config f -v at @s3 ls", "k --config f -v --repository @s3 ls");
        check("k at @s3", "k --repository @s3");
        check("k at", "k at");
    }

    #[test]
    fn a_repository_as_first_word_is_mounted() {
        check("k @s3 /mnt", "k --repository @s3 mount /mnt");
        check("k @s3 /mnt -o ro,allow_other", "k --repository @s3 mount /mnt -o ro,allow_other");
        check("k s3://h:1/b /mnt", "k --repository s3://h:1/b mount /mnt");
        check("k /srv/k /mnt -o ro", "k --repository /srv/k mount /mnt -o ro");
        check("k -v @s3 /mnt", "k -v --repository @s3 mount /mnt");
    }

    #[test]
    fn as_a_helper_of_mount_it_understands_what_mount_says() {
        check("/sbin/mount.kloset-mount @s3 /mnt -o rw", "/sbin/mount.kloset-mount --repository @s3 mount /mnt -o rw");
        check("mount.kloset-mount k /mnt -n -v -t a.b -o ro", "mount.kloset-mount --repository k mount /mnt -o ro");
        check("mount.fuse.kloset-mount @s3 /mnt -s", "mount.fuse.kloset-mount --repository @s3 mount /mnt");
        check("mount.kloset-mount", "mount.kloset-mount");
    }

    #[test]
    fn the_usual_order_stays() {
        check("k ls -r @s3", "k ls -r @s3");
        check("k -r @s3 ls latest:/etc", "k -r @s3 ls latest:/etc");
        check("k backup /etc", "k backup /etc");
        check("k --help", "k --help");
        check("k", "k");
    }
}
