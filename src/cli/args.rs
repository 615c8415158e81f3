//! The command line: every command and every option that all commands share.
//!
//! What a command takes is declared beside it, in its own file. Nothing is looked up or opened
//! here.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory, Parser, Subcommand};

use super::env::Environment;
use super::size::parse_rate;
use super::{
    backup, cat, check, config_cmd, create, forget, key, ls, mount, prune, restore, status, systemd, umount, words,
};

/// Encrypted, deduplicated backups on any S3-compatible bucket, shown as read-only folders.
#[derive(Debug, Parser)]
#[command(name = "kloset-mount", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: GlobalArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Shorter and other word orders:
  kloset-mount @NAME MOUNTPOINT [-o OPTIONS]    the same as `mount -r @NAME MOUNTPOINT`
  kloset-mount at @NAME COMMAND ...             the same as `COMMAND -r @NAME ...`

Exit codes: 0 done, 1 error, 2 usage, 3 done but some source files could not be read, 10 no kloset
there, 12 wrong passphrase, 13 store unreachable or refused, 14 damaged data found, 15 stale, 75 a backup was
stopped by SIGTERM and goes on the next time, 130 interrupted.";

/// Options that every command takes, before or after its name.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GlobalArgs {
    /// Repository: @NAME of the config, s3://ENDPOINT[:PORT]/BUCKET[/PREFIX], or a folder
    /// [else $KLOSET_REPOSITORY, the config's default, a kloset in your data folder].
    #[arg(short, long, global = true, value_name = "REPOSITORY")]
    pub(crate) repository: Option<String>,
    /// Config file [else $KLOSET_CONFIG, then the user's, then /etc/kloset-mount/config.toml].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File that holds the passphrase.
    #[arg(long, global = true, value_name = "FILE", group = "secret")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Command that prints the passphrase.
    #[arg(long, global = true, value_name = "COMMAND", group = "secret")]
    pub(crate) passphrase_command: Option<String>,
    /// Key file to use instead of a passphrase.
    #[arg(long, global = true, value_name = "FILE", group = "secret")]
    pub(crate) key_file: Option<PathBuf>,
    /// The most that is sent to the store in a second, as in 5MiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_rate)]
    pub(crate) limit_upload: Option<u64>,
    /// The most that is fetched from the store in a second, as in 5MiB.
    #[arg(long, global = true, value_name = "SIZE", value_parser = parse_rate)]
    pub(crate) limit_download: Option<u64>,
    /// Writes the result as JSON, one value a line.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Tells errors and warnings only.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Tells more; twice for everything.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// What every command is given besides its own arguments.
#[derive(Clone, Debug, Default)]
pub(crate) struct Global {
    pub(crate) args: GlobalArgs,
    /// The environment of the process.
    pub(crate) env: Environment,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Creates a kloset.
    Create(create::CreateArgs),
    /// Backs up files and folders.
    Backup(backup::BackupArgs),
    /// Lists snapshots, or what is in one.
    Ls(ls::LsArgs),
    /// Writes a file of a snapshot to standard output.
    Cat(cat::CatArgs),
    /// Restores a snapshot, or a part of one, into a folder.
    Restore(restore::RestoreArgs),
    /// Shows all snapshots as read-only folders.
    Mount(mount::MountArgs),
    /// Ends a mount.
    Umount(umount::UmountArgs),
    /// Asks a mount for an answer.
    #[command(hide = true)]
    AskMount(systemd::AskArgs),
    /// Tells how old the newest whole backup is.
    Status(status::StatusArgs),
    /// Checks that everything the snapshots need is there and whole.
    Check(check::CheckArgs),
    /// Removes snapshots by policy or by name; shows a plan until told to apply it.
    Forget(forget::ForgetArgs),
    /// Frees the space of what no snapshot needs; shows a plan until told to apply it.
    Prune(prune::PruneArgs),
    /// Lists, adds, changes and removes passphrases and key files.
    Key(key::KeyArgs),
    /// Reads and changes the config.
    Config(config_cmd::ConfigArgs),
    /// Short for `config repository`.
    Store(config_cmd::RepositoryArgs),
}

/// Parses the words of a command line, in any of the word orders.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(words::rewrite(words, &valued_globals()))
}

/// Global options that take their value from the next word, as they are written.
fn valued_globals() -> Vec<String> {
    let command = Cli::command();
    let valued = command.get_arguments().filter(|arg| arg.get_action().takes_values());
    let spell = |arg: &clap::Arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        [long, short]
    };
    valued.flat_map(spell).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        let valued = valued_globals();
        for option in ["-r", "--repository", "--config", "--passphrase-file", "--key-file"] {
            assert!(valued.contains(&option.to_owned()), "{option} not in {valued:?}");
        }
    }

    #[test]
    fn the_word_orders_mean_the_same() {
        for line in ["k ls -r @s3 latest:/etc", "k -r @s3 ls latest:/etc", "k at @s3 ls latest:/etc"] {
            let cli = parse(words(line)).unwrap();
            assert_eq!(cli.global.repository.as_deref(), Some("@s3"), "{line}");
            assert!(matches!(cli.command, Command::Ls(_)), "{line}");
        }
        let cli = parse(words("k @s3 /mnt -o ro,allow_other")).unwrap();
        assert!(matches!(cli.command, Command::Mount(_)));
    }

    #[test]
    fn one_secret_is_enough() {
        assert!(parse(words("k ls --key-file a --passphrase-file b")).is_err());
    }
}
