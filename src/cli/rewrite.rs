//! `rewrite`: takes files out of snapshots; shows what would go until it is told to do it.

use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::args::Global;
use super::cache::CacheArgs;
use super::choice::ChoiceArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names::safe;
use super::output::Output;
use super::progress::Progress;
use super::{signals, tag};
use crate::backup::{PathRules, Rule};
use crate::monitor::Monitor;
use crate::repo::RepoError;
use crate::repo::layout::SnapshotName;
use crate::rewrite::{Cut, Replaced, RewriteError, Rewriter, delete_old};

/// Takes files out of snapshots: all of them, or those that are named or chosen.
///
/// Shows the plan and changes nothing unless --apply is given. Then a snapshot without the files is put for each that had
/// some, with a new id and the old time. The old ones stay unless --forget is given, and the space comes back with a prune
/// once they are gone.
#[derive(Debug, Args)]
pub(crate) struct RewriteArgs {
    /// Snapshots: `latest`, `latest~2` or the first characters of an id; without, all.
    #[arg(value_name = "SNAPSHOT")]
    pub snapshots: Vec<String>,
    /// Takes out what fits, by the rules of a backup's --exclude; may be repeated.
    #[arg(short, long, value_name = "PATTERN", required = true)]
    pub exclude: Vec<String>,
    /// Does what the plan says.
    #[arg(long)]
    pub apply: bool,
    /// Deletes the snapshots in whose place others were put.
    #[arg(long, requires = "apply")]
    pub forget: bool,
    #[command(flatten)]
    pub choice: ChoiceArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What was found, and done about it.
#[derive(Default)]
struct Done {
    cuts: Vec<Cut>,
    replaced: Vec<Replaced>,
    damaged: Vec<(SnapshotName, RepoError)>,
    failure: Option<RewriteError>,
}

/// Runs the command.
pub(crate) fn run(args: RewriteArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    args.choice.beside(&args.snapshots)?;
    let rule = |text: &String| Rule { text: text.clone(), from: "--exclude".to_owned() };
    let rules: Vec<_> = args.exclude.iter().map(rule).collect();
    let rules = PathRules::new(&rules).map_err(|error| CliError::usage(error.to_string()))?;
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let names = kloset.runtime.block_on(args.choice.find(&kloset.repo, &args.snapshots));
    let names = names.map_err(|error| kloset.resolved.explain(error.into()))?;
    let monitor = Arc::new(Monitor::default());
    let progress = Progress::start(&monitor, out, "rewriting");
    let signals = signals::watch(&monitor, progress.state())?;
    let leaves = |path: &[u8], is_directory: bool| rules.leaves_out(path, is_directory);
    let mut rewriter = Rewriter::new(&kloset.repo, kloset.runtime.handle(), &leaves, &monitor);
    let mut done = Done::default();
    for name in &names {
        match rewrite(&kloset, &mut rewriter, *name, &args, &mut done) {
            Ok(()) | Err(RewriteError::Repo(RepoError::NoSnapshot(_))) => {}
            Err(RewriteError::Repo(error @ RepoError::Damaged { .. })) => done.damaged.push((*name, error)),
            Err(error) => {
                done.failure = Some(error);
                break;
            }
        }
    }
    signals.close();
    progress.finish();
    tell(&done, &args, names.len(), out)?;
    match done.failure {
        Some(error) => Err(kloset.resolved.explain(tag::explain(error))),
        None if !done.damaged.is_empty() => Ok(Exit::Damaged),
        None => Ok(Exit::Done),
    }
}

fn rewrite(
    kloset: &Kloset,
    rewriter: &mut Rewriter<'_>,
    name: SnapshotName,
    args: &RewriteArgs,
    done: &mut Done,
) -> Result<(), RewriteError> {
    let Some(cut) = rewriter.look(name)? else { return Ok(()) };
    let replaced = if args.apply { Some(rewriter.apply(&cut, &args.exclude)) } else { None };
    done.cuts.push(cut.told());
    let Some(replaced) = replaced.transpose()? else { return Ok(()) };
    done.replaced.push(replaced);
    if args.forget { delete_old(&kloset.repo, kloset.runtime.handle(), replaced) } else { Ok(()) }
}

fn tell(done: &Done, args: &RewriteArgs, looked_at: usize, out: &mut Output) -> Result<(), CliError> {
    for (name, error) in &done.damaged {
        out.warn(format_args!("snapshot {} is left as it is: {error}", name.id.short()));
    }
    if out.is_json() {
        return out.json(&as_json(done, args, looked_at));
    }
    for cut in &done.cuts {
        let tally = &cut.tally;
        let (files, folders, size) = (tally.files + tally.others, tally.directories, HumanBytes(tally.bytes));
        let (id, time) = (cut.name.id.short(), &cut.manifest.time);
        out.line(format_args!("{id}  {time}  {files} files, {folders} folders, {size}"))?;
        for dropped in &cut.dropped {
            out.line(format_args!("  - {}", safe(&dropped.path.0)))?;
        }
        let untold = cut.dropped_total - cut.dropped.len() as u64;
        if untold > 0 {
            out.line(format_args!("  - and {untold} more"))?;
        }
    }
    for Replaced { old, new } in &done.replaced {
        out.line(format_args!("{} is {} now", old.id.short(), new.id.short()))?;
    }
    let found = done.cuts.len();
    if !args.apply {
        let end = "nothing is changed without --apply";
        return out.line(format_args!("would rewrite {found} of {looked_at} snapshots; {end}"));
    }
    out.line(format_args!("rewrote {} of {looked_at} snapshots", done.replaced.len()))?;
    match (done.replaced.is_empty(), args.forget) {
        (true, _) => {}
        (false, false) => {
            out.note("the old snapshots are still there, and the files in them: `--apply --forget` deletes them");
        }
        (false, true) => out.note("what was taken out is still in the store, sealed, until a prune"),
    }
    Ok(())
}

fn as_json(done: &Done, args: &RewriteArgs, looked_at: usize) -> Value {
    let cut = |cut: &Cut| {
        let dropped = cut.dropped.iter().map(|dropped| json!({"path": dropped.path, "tally": dropped.tally}));
        json!({
            "id": cut.name.id,
            "time": cut.manifest.time,
            "paths": dropped.collect::<Vec<_>>(),
            "paths_total": cut.dropped_total,
            "tally": cut.tally,
        })
    };
    let damaged = done.damaged.iter().map(|(name, error)| json!({"id": name.id, "message": error.to_string()}));
    let replaced = done.replaced.iter().map(|pair| json!({"old": pair.old.id, "new": pair.new.id}));
    json!({
        "message_type": "summary",
        "applied": args.apply,
        "forgotten": args.forget,
        "snapshots": looked_at,
        "to_rewrite": done.cuts.iter().map(cut).collect::<Vec<_>>(),
        "rewritten": replaced.collect::<Vec<_>>(),
        "damaged": damaged.collect::<Vec<_>>(),
    })
}
