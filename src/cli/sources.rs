//! What a backup is of, from the words of the command line: paths, lists of paths, streams.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use clap::Args;

use super::buckets;
use super::exit::CliError;
use crate::backup::{BackupOptions, Stream, StreamSource};

/// A list is not longer: it is held in memory.
const LIST_BYTES_MAX: u64 = 1 << 30;

/// Options of what is backed up.
#[derive(Debug, Default, Args)]
pub(crate) struct SourceArgs {
    /// Files and folders; or a bucket, as @NAME of the config or s3://ENDPOINT/BUCKET/PREFIX.
    #[arg(value_name = "PATH", required_unless_present_any = ["files_from", "files_from0", "stdin", "command"])]
    pub paths: Vec<PathBuf>,
    /// File that lists paths to back up as well, one a line, just as they are; - is standard input. May be repeated.
    #[arg(long, value_name = "FILE", alias = "files-from-verbatim")]
    pub files_from: Vec<PathBuf>,
    /// The same, with a zero byte after each path, as of `find -print0`.
    #[arg(long, value_name = "FILE", alias = "files-from-raw")]
    pub files_from0: Vec<PathBuf>,
    /// Stores standard input as the file NAME: an absolute path in the snapshot, or one below its top.
    #[arg(long, value_name = "NAME")]
    pub stdin: Option<PathBuf>,
    /// Stores what a shell command writes as the file NAME; may be repeated. If it fails, there is no snapshot.
    #[arg(long, value_name = "NAME=COMMAND", value_parser = parse_command)]
    pub command: Vec<(PathBuf, String)>,
}

impl SourceArgs {
    /// Returns the bucket to be backed up, if it is one: it comes alone.
    pub(super) fn bucket(&self) -> Result<Option<&str>, CliError> {
        let Some(bucket) = self.paths.iter().find_map(|path| buckets::named(path.as_os_str())) else { return Ok(None) };
        let others = self.paths.len() - 1 + self.files_from.len() + self.files_from0.len() + self.command.len();
        if others > 0 || self.stdin.is_some() {
            let alone = "a bucket is backed up by itself, without other paths, lists and streams";
            return Err(CliError::usage(format!("\"{bucket}\": {alone} (a file of that name is ./{bucket})")));
        }
        Ok(Some(bucket))
    }

    /// Reads the lists.
    pub(super) fn into_options(self, options: BackupOptions) -> Result<BackupOptions, CliError> {
        let lists = self.files_from.iter().chain(&self.files_from0);
        let readers = lists.filter(|list| is_input(list)).count() + usize::from(self.stdin.is_some());
        if readers > 1 {
            return Err(CliError::usage("standard input can be read once: it is asked for more often"));
        }
        let mut listed = Vec::new();
        for (lists, end) in [(&self.files_from, b'\n'), (&self.files_from0, 0)] {
            for list in lists {
                let bad = |error| CliError::usage(format!("list \"{}\": {error}", list.display()));
                listed.extend(parse_list(&read(list).map_err(bad)?, end));
            }
        }
        let stdin = self.stdin.into_iter().map(|path| Stream { path, source: StreamSource::Input });
        let command = |(path, command)| Stream { path, source: StreamSource::Command(command) };
        let streams = stdin.chain(self.command.into_iter().map(command)).collect();
        Ok(BackupOptions { paths: self.paths, listed, streams, ..options })
    }
}

fn is_input(list: &Path) -> bool {
    list.as_os_str() == "-"
}

fn read(list: &Path) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    match is_input(list) {
        true => std::io::stdin().take(LIST_BYTES_MAX + 1).read_to_end(&mut content)?,
        false => std::fs::File::open(list)?.take(LIST_BYTES_MAX + 1).read_to_end(&mut content)?,
    };
    if content.len() as u64 > LIST_BYTES_MAX {
        return Err(std::io::Error::other(format!("more than {LIST_BYTES_MAX} bytes")));
    }
    Ok(content)
}

/// Returns the paths of a list; empty ones are passed over.
fn parse_list(content: &[u8], end: u8) -> impl Iterator<Item = PathBuf> {
    let paths = content.split(move |byte| *byte == end).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsString::from_vec(path.to_vec())))
}

fn parse_command(text: &str) -> Result<(PathBuf, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.is_empty() && !command.trim().is_empty() => {
            Ok((name.into(), command.to_owned()))
        }
        _ => Err("write a name and a command, as in db.sql='pg_dump db'".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_hold_paths_as_they_are() {
        let of = |content: &[u8], end| parse_list(content, end).map(PathBuf::into_os_string).collect::<Vec<_>>();
        assert_eq!(
            of(b"/a b\n\n# c\n x\xff", b'\n'),
            [OsString::from("/a b"), "# c".into(), OsString::from_vec(b" x\xff".to_vec())]
        );
        assert_eq!(of(b"a\nb\0c\0", 0), ["a\nb", "c"]);
        assert!(of(b"", b'\n').is_empty());
    }

    #[test]
    fn commands_have_a_name() {
        assert_eq!(parse_command("db.sql=dump --all=yes"), Ok(("db.sql".into(), "dump --all=yes".into())));
        for wrong in ["dump", "=dump", "db=", "db= "] {
            assert!(parse_command(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn standard_input_is_read_once() {
        let args = SourceArgs { stdin: Some("x".into()), files_from: vec!["-".into()], ..SourceArgs::default() };
        assert!(args.into_options(BackupOptions::default()).is_err());
    }
}
