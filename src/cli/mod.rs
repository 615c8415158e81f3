//! The command line: parses, reads environment and terminal, prints, exits.
//!
//! The only layer that knows a terminal, the environment, the config file and exit codes. One
//! command a file; what each does is in the layers below.

mod alive;
mod args;
mod background;
mod backup;
mod backup_report;
mod buckets;
mod cache;
mod cat;
mod check;
mod config;
mod config_cmd;
mod config_file;
mod create;
mod env;
mod excludes;
mod exit;
mod forget;
mod key;
mod kloset;
mod lacks;
mod ls;
mod mount;
mod mount_options;
mod mount_show;
mod names;
mod output;
mod process;
mod progress;
mod prometheus;
mod prune;
mod repository;
mod restore;
mod retention;
mod secret;
mod serve;
mod signals;
mod size;
mod sources;
mod status;
mod strength;
mod systemd;
mod umount;
mod words;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;

use args::{Cli, Command};

pub(crate) use args::Global;
pub(crate) use exit::{CliError, Exit};
pub(crate) use output::Output;

/// Runs the program.
pub fn main() -> ExitCode {
    process::harden();
    process::tell_panics();
    let words: Vec<OsString> = std::env::args_os().collect();
    match std::panic::catch_unwind(|| run(words)) {
        Ok(exit) => exit.into(),
        Err(_) => Exit::Error.into(), // told by the hook
    }
}

fn run(words: Vec<OsString>) -> Exit {
    let wants_json = words.iter().any(|word| word == "--json");
    let cli = match args::parse(words) {
        Ok(cli) => cli,
        Err(error) => return tell_usage(&error, wants_json),
    };
    let global = Global { args: cli.global.clone(), env: env::Environment::of_process() };
    let mut out = Output::of_process(global.args.json, global.args.quiet);
    if let Err(error) = process::start_log(&global) {
        out.fail(&error);
        return error.exit;
    }
    let result = dispatch(cli, &global, &mut out).and_then(|exit| {
        out.flush()?;
        Ok(exit)
    });
    match result {
        Ok(exit) => exit,
        Err(CliError { exit: Exit::BrokenPipe, .. }) => Exit::BrokenPipe,
        Err(error) => {
            out.fail(&error);
            error.exit
        }
    }
}

fn dispatch(cli: Cli, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    match cli.command {
        Command::Create(args) => create::run(args, global, out),
        Command::Backup(args) => backup::run(args, global, out),
        Command::Ls(args) => ls::run(args, global, out),
        Command::Cat(args) => cat::run(args, global, out),
        Command::Restore(args) => restore::run(args, global, out),
        Command::Mount(args) => mount::run(args, global, out),
        Command::Umount(args) => umount::run(args, global, out),
        Command::AskMount(args) => systemd::run_ask(&args),
        Command::Status(args) => status::run(&args, global, out),
        Command::Check(args) => check::run(args, global, out),
        Command::Forget(args) => forget::run(args, global, out),
        Command::Prune(args) => prune::run(&args, global, out),
        Command::Key(args) => key::run(args, global, out),
        Command::Config(args) => config_cmd::run(args, global, out),
        Command::Store(args) => config_cmd::run_repository(args, global, out),
    }
}

/// Tells what is wrong with a command line, or the help and version that were asked for.
fn tell_usage(error: &clap::Error, wants_json: bool) -> Exit {
    let asked = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if wants_json && !asked {
        let message = error.render().to_string();
        let message = message.trim_start_matches("error: ").trim_end();
        Output::of_process(true, false).fail(&CliError::usage(message));
    } else if error.print().is_err() {
        return Exit::BrokenPipe;
    }
    if asked { Exit::Done } else { Exit::Usage }
}
