//! `create`: makes a kloset where there is none.

use clap::Args;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::strength::StrengthArgs;
use crate::repo::CreateOptions;

/// Creates a kloset in the repository that `-r`, `at` or the config names.
///
/// The passphrase is asked for twice, or comes from --passphrase-file, --passphrase-command,
/// --key-file, the environment, a systemd credential or the config.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Label of the first key slot: whose it is.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub label: String,
    #[command(flatten)]
    pub strength: StrengthArgs,
}

/// Runs the command.
pub(crate) fn run(args: CreateArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let options = CreateOptions { label: args.label, ..CreateOptions::default() };
    let kloset = Kloset::create(global, &options, args.strength)?;
    let (id, store) = (kloset.repo.header.id, kloset.repo.store.description());
    if out.is_json() {
        out.json(&serde_json::json!({"message_type": "created", "id": id, "location": store}))?;
    } else {
        out.line(format_args!("created kloset {} in {store}", id.short()))?;
        out.note("without its passphrase or key file nobody can read it, you included: keep a copy elsewhere");
    }
    Ok(Exit::Done)
}
