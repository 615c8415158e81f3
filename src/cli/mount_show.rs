//! What a mount shows of a kloset, as whose, and to which programs: the same on the command line and in `-o`.
//!
//! Pure. It does not know how mounting is done.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::Args;

use super::exit::CliError;
use crate::fs::deny::PROGRAMS;
use crate::fs::filter::Wanted;

/// What is to be shown.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ShowArgs {
    /// Shows the snapshots of this host only; may be repeated.
    #[arg(long, value_name = "HOST")]
    pub host: Vec<String>,
    /// Shows the snapshots with this tag only; repeated, with all of them.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Shows the snapshots of this source path only, or of what is above or below it; may be repeated.
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
    /// Whose everything is: archived for the stored owners (the default), me, or two numbers.
    #[arg(long, value_name = "archived|me|UID:GID", value_parser = Owner::parse)]
    pub owner: Option<Owner>,
    /// Lets you read all of it without root: everything is yours unless --owner says else, and readable; no ACLs.
    #[arg(long)]
    pub readable: bool,
    /// Programs that get no file content, or none; by default those that draw previews or fill an index.
    #[arg(long, value_name = "PROGRAM,...", value_delimiter = ',')]
    pub deny: Vec<String>,
}

/// Whose everything is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// As stored.
    Archived,
    /// Who mounts.
    Me,
    /// User and group.
    Is(u32, u32),
}

impl Owner {
    /// Parses `archived`, `me` or `UID:GID`.
    pub(crate) fn parse(text: &str) -> Result<Owner, String> {
        let numbers = || {
            let (uid, gid) = text.split_once(':')?;
            Some(Owner::Is(uid.parse().ok()?, gid.parse().ok()?))
        };
        match text {
            "archived" => Ok(Owner::Archived),
            "me" => Ok(Owner::Me),
            _ => numbers().ok_or_else(|| "write archived, me, or two numbers as in 1000:1000".to_owned()),
        }
    }
}

impl ShowArgs {
    /// Adds what `-o` says; the command line comes first.
    pub(crate) fn or(&self, options: &ShowArgs) -> ShowArgs {
        let more = |a: &[String], b: &[String]| [a, b].concat();
        ShowArgs {
            host: more(&self.host, &options.host),
            tag: more(&self.tag, &options.tag),
            path: [&self.path[..], &options.path].concat(),
            owner: self.owner.or(options.owner),
            readable: self.readable || options.readable,
            deny: if self.deny.is_empty() { options.deny.clone() } else { self.deny.clone() },
        }
    }

    /// The snapshots to show.
    pub(crate) fn wanted(&self) -> Wanted {
        let paths = self.path.iter().map(|path| path.as_os_str().as_bytes().to_vec()).collect();
        Wanted { hosts: self.host.clone(), tags: self.tag.clone(), paths }
    }

    /// User and group to show for everything; `me` is who mounts.
    pub(crate) fn owner(&self, me: (u32, u32)) -> (Option<u32>, Option<u32>) {
        let default = if self.readable { Owner::Me } else { Owner::Archived };
        match self.owner.unwrap_or(default) {
            Owner::Archived => (None, None),
            Owner::Me => (Some(me.0), Some(me.1)),
            Owner::Is(uid, gid) => (Some(uid), Some(gid)),
        }
    }

    /// Programs that get no content.
    pub(crate) fn denied(&self) -> Result<Vec<String>, CliError> {
        match self.deny.as_slice() {
            [] => Ok(PROGRAMS.map(str::to_owned).into()),
            [none] if none == "none" => Ok(Vec::new()),
            all if all.iter().any(|name| name == "none" || name.is_empty() || name.contains('/')) => {
                Err(CliError::usage("--deny takes names of programs without their folder, or none alone"))
            }
            all => Ok(all.to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_a_word_or_two_numbers() {
        assert_eq!(Owner::parse("archived"), Ok(Owner::Archived));
        assert_eq!(Owner::parse("me"), Ok(Owner::Me));
        assert_eq!(Owner::parse("10:20"), Ok(Owner::Is(10, 20)));
        for wrong in ["", "10", "10:", "anna:users", "-1:0"] {
            assert!(Owner::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_readable_is_mine_unless_somebody_else_s() {
        let of = |owner, readable| ShowArgs { owner, readable, ..ShowArgs::default() }.owner((7, 8));
        assert_eq!(of(None, false), (None, None));
        assert_eq!(of(None, true), (Some(7), Some(8)));
        assert_eq!(of(Some(Owner::Archived), true), (None, None));
        assert_eq!(of(Some(Owner::Is(1, 2)), false), (Some(1), Some(2)));
    }

    #[test]
    fn who_is_denied_is_the_list_or_nobody() {
        let of = |names: &[&str]| {
            ShowArgs { deny: names.iter().map(|name| (*name).to_owned()).collect(), ..ShowArgs::default() }.denied()
        };
        assert!(of(&[]).unwrap().contains(&"tumblerd".to_owned()));
        assert_eq!(of(&["none"]).unwrap(), Vec::<String>::new());
        assert_eq!(of(&["a", "b"]).unwrap(), ["a", "b"]);
        assert!(of(&["a", "none"]).is_err() && of(&["/bin/a"]).is_err());
    }
}
