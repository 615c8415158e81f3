//! `tag`: adds, removes and sets tags of snapshots.

use clap::Args;
use serde_json::json;

use super::args::Global;
use super::choice::ChoiceArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names::safe;
use super::output::Output;
use crate::repo::RepoError;
use crate::repo::layout::SnapshotName;
use crate::rewrite::{Replaced, RewriteError, TagChange, retag};
use crate::store::StoreError;

/// Adds, removes and sets tags of snapshots.
///
/// What is in a store never changes: a snapshot with the new tags is put, with a new id and the old time, and the old one
/// is deleted, which takes a key of the store that may delete.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Snapshots: `latest`, `latest~2` or the first characters of an id.
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// Adds a tag; may be repeated.
    #[arg(long, value_name = "TAG")]
    pub add: Vec<String>,
    /// Takes a tag away; may be repeated.
    #[arg(long, value_name = "TAG")]
    pub remove: Vec<String>,
    /// Replaces all tags by this one; may be repeated. "" for no tag at all.
    #[arg(long, value_name = "TAG")]
    pub set: Vec<String>,
    /// Changes all snapshots.
    #[arg(long, conflicts_with_all = ["snapshots", "host", "tag", "path"])]
    pub all: bool,
    #[command(flatten)]
    pub choice: ChoiceArgs,
}

/// Runs the command.
pub(crate) fn run(args: TagArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let change = change(&args)?;
    args.choice.beside(&args.snapshots)?;
    if args.snapshots.is_empty() && args.choice.is_all() && !args.all {
        return Err(CliError::usage("which snapshots is not said: name them, or use --host, --tag, --path or --all"));
    }
    let kloset = Kloset::open(global)?;
    let names = kloset.runtime.block_on(args.choice.find(&kloset.repo, &args.snapshots));
    let names = names.map_err(|error| kloset.resolved.explain(error.into()))?;
    let (mut changed, mut damaged, mut failure) = (Vec::new(), 0, None);
    for name in &names {
        match retag(&kloset.repo, kloset.runtime.handle(), *name, &change) {
            Ok(replaced) => changed.extend(replaced),
            Err(RewriteError::Repo(error @ RepoError::Damaged { .. })) => {
                damaged += 1;
                out.warn(format_args!("not changed: {error}"));
            }
            Err(error) => {
                failure = Some(error);
                break;
            }
        }
    }
    tell(&names, &changed, out)?;
    match failure {
        Some(error) => Err(kloset.resolved.explain(explain(error))),
        None if damaged > 0 => Ok(Exit::Damaged),
        None => Ok(Exit::Done),
    }
}

fn change(args: &TagArgs) -> Result<TagChange, CliError> {
    if args.add.is_empty() && args.remove.is_empty() && args.set.is_empty() {
        return Err(CliError::usage("what to change is not said: give --add, --remove or --set"));
    }
    let set = args.set.iter().filter(|tag| !tag.is_empty()).cloned().collect();
    let set = (!args.set.is_empty()).then_some(set);
    match args.add.iter().any(String::is_empty) {
        true => Err(CliError::usage("a tag has at least one character")),
        false => Ok(TagChange { set, add: args.add.clone(), remove: args.remove.clone() }),
    }
}

fn tell(names: &[SnapshotName], changed: &[Replaced], out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        let pairs = changed.iter().map(|pair| json!({"old": pair.old.id, "new": pair.new.id}));
        return out.json(&json!({
            "message_type": "summary",
            "snapshots": names.len(),
            "changed": pairs.collect::<Vec<_>>(),
        }));
    }
    for Replaced { old, new } in changed {
        out.line(format_args!("{} is {} now", old.id.short(), safe(new.id.short().as_bytes())))?;
    }
    out.line(format_args!("changed the tags of {} of {} snapshots", changed.len(), names.len()))
}

/// Says what became of a snapshot that is only half replaced.
pub(super) fn explain(error: RewriteError) -> CliError {
    let message = error.to_string();
    match error {
        RewriteError::Repo(error) => error.into(),
        RewriteError::Stopped => CliError::new(Exit::Interrupted, message),
        RewriteError::NotDeleted { source, .. } => {
            let why = match &source {
                StoreError::Denied { .. } => ": it takes a key of the store that may delete; with one, the same again",
                _ => ": the same again",
            };
            let rest = "deletes it. Both are whole, nothing is lost";
            CliError::new(super::exit::exit_of(&source), format!("{message}{why} {rest}"))
        }
    }
}
