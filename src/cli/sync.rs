//! `sync`: copies to, from or with another repository the snapshots that are lacking there.

use std::sync::Arc;

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::args::Global;
use super::cache::{CacheArgs, FINISH_WAIT};
use super::choice::ChoiceArgs;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use super::progress::Progress;
use super::repository::ResolvedRepository;
use super::secret::OtherSecretArgs;
use super::signals;
use crate::monitor::Monitor;
use crate::repo::layout::SnapshotName;
use crate::repo::{Repo, RepoError};
use crate::sync::{Plan, Sides, SyncError, SyncOptions, SyncReport, plan, sync};

/// Copies the snapshots that another repository lacks: to it, from it, or both ways.
///
/// They keep their id, time and host. Between a kloset and its copy, sealed packs are copied as they are; between klosets
/// of other keys content is read, checked and sealed anew. What is there is not moved again, and nothing is deleted. The
/// other repository's secret comes from the --other options, $KLOSET_OTHER_PASSPHRASE, ..._FILE, ..._COMMAND,
/// $KLOSET_OTHER_KEY_FILE, a systemd credential, its entry in the config or a prompt; its copy needs none. Ends with 14
/// where snapshots could not be copied because of damaged data.
#[derive(Debug, Args)]
#[command(override_usage = "kloset-mount [at REPOSITORY] sync [SNAPSHOT]... to|from|with OTHER [OPTIONS]")]
pub(crate) struct SyncArgs {
    /// Snapshots, or none for all; then `to`, `from` or `with` and the other repository, as -r names one.
    #[arg(value_name = "SNAPSHOT... to|from|with OTHER", required = true)]
    pub words: Vec<String>,
    /// Makes the other repository first, as a copy of this one: same keys, same passphrases. One that is there is used.
    #[arg(long)]
    pub create_copy: bool,
    /// Tells which snapshots would be copied and copies nothing.
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub other: OtherSecretArgs,
    #[command(flatten)]
    pub choice: ChoiceArgs,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// Which way snapshots go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    To,
    From,
    With,
}

/// What the words say.
#[derive(Debug, PartialEq, Eq)]
struct Words<'a> {
    snapshots: &'a [String],
    way: Way,
    other: &'a str,
}

/// The other kloset.
struct Other {
    repo: Repo,
    resolved: ResolvedRepository,
}

/// What was done in one direction.
struct Done {
    from: String,
    to: String,
    plan: Plan,
    report: SyncReport,
    bytes_up: u64,
}

fn parse(words: &[String]) -> Result<Words<'_>, CliError> {
    let usage = || CliError::usage("write `sync [SNAPSHOT]... to|from|with OTHER`: @NAME, s3://... or a folder");
    let [snapshots @ .., way, other] = words else { return Err(usage()) };
    let way = match way.as_str() {
        "to" => Way::To,
        "from" => Way::From,
        "with" => Way::With,
        _ => return Err(usage()),
    };
    Ok(Words { snapshots, way, other })
}

/// Runs the command.
pub(crate) fn run(args: SyncArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let words = parse(&args.words)?;
    args.choice.beside(words.snapshots)?;
    if args.create_copy && (words.way != Way::To || args.dry_run) {
        return Err(CliError::usage("--create-copy goes with `to`, and not with --dry-run"));
    }
    let resolved = ResolvedRepository::named(words.other, global)?;
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    if resolved.location == kloset.resolved.location {
        return Err(CliError::usage(format!("{} is the repository itself", words.other)));
    }
    let other = Other::open(&kloset, resolved, &args, global)?;
    let mut done = Vec::new();
    if words.way != Way::From {
        done.push(one_way((&kloset, &other), true, &args, &words, out)?);
    }
    if words.way != Way::To && done.iter().all(|done| done.report.failure.is_none()) {
        done.push(one_way((&kloset, &other), false, &args, &words, out)?);
    }
    tell(&done, &args, out)?;
    let is_damaged = done.iter().any(|done| !done.report.damaged.is_empty());
    match done.into_iter().find_map(|done| Some((done.report.failure?, done.from, done.to))) {
        Some((failure, from, to)) => Err(explain((&kloset, &other), failure, (&from, &to))),
        None if is_damaged => Ok(Exit::Damaged),
        None => Ok(Exit::Done),
    }
}

impl Other {
    fn open(kloset: &Kloset, resolved: ResolvedRepository, args: &SyncArgs, global: &Global) -> Result<Self, CliError> {
        let store = if args.create_copy { resolved.create_store() } else { resolved.open_store() };
        let hint = |error: CliError| no_kloset(error, &resolved.label());
        let store = store.map_err(hint)?;
        let failed = |error: RepoError| hint(resolved.explain(error.into()));
        let (own, runtime) = (&kloset.repo, &kloset.runtime);
        let repo = match args.create_copy {
            true => runtime.block_on(own.create_replica(store)).map_err(failed)?,
            false => kloset.open_other((&resolved, store), &args.other, global).map_err(hint)?,
        };
        Ok(Self { repo: with_cache(repo, &resolved, &args.cache, global), resolved })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if let Some(cache) = self.repo.cache() {
            cache.finish(FINISH_WAIT);
        }
    }
}

/// Says how to make what is not there.
fn no_kloset(error: CliError, label: &str) -> CliError {
    match error.exit {
        Exit::NoKloset => CliError::new(
            Exit::NoKloset,
            format!(
                "{}; to make one with other keys: `kloset-mount at {label} create`; to make a copy with the same: \
                 --create-copy",
                error.message
            ),
        ),
        _ => error,
    }
}

fn with_cache(repo: Repo, resolved: &ResolvedRepository, args: &CacheArgs, global: &Global) -> Repo {
    let options = args.options(&global.env).filter(|_| resolved.folder().is_none());
    match options.map(|options| repo.with_cache(&options)) {
        Some(Ok(cached)) => cached,
        Some(Err(error)) => {
            tracing::info!("no cache: {error}");
            repo
        }
        None => repo,
    }
}

/// Copies what one side lacks.
fn one_way(
    (kloset, other): (&Kloset, &Other),
    is_to: bool,
    args: &SyncArgs,
    words: &Words<'_>,
    out: &mut Output,
) -> Result<Done, CliError> {
    let (own_label, other_label) = (kloset.resolved.label(), other.resolved.label());
    let ((from, to), (from_label, to_label)) = match is_to {
        true => ((&kloset.repo, &other.repo), (own_label, other_label)),
        false => ((&other.repo, &kloset.repo), (other_label, own_label)),
    };
    let sides = Sides { from, to, runtime: kloset.runtime.handle() };
    let failed = |error| explain((kloset, other), error, (&from_label, &to_label));
    let wanted = kloset.runtime.block_on(wanted(from, to, args, words)).map_err(&failed)?;
    let named = !words.snapshots.is_empty();
    let plan = kloset.runtime.block_on(plan(sides, &wanted, named)).map_err(&failed)?;
    let sent_before = to.store.counts().bytes_up;
    let mut report = SyncReport::default();
    if !args.dry_run {
        let monitor = Arc::new(Monitor::default());
        let progress = Progress::start(&monitor, out, "syncing");
        let signals = signals::watch(&monitor, progress.state())?;
        report = sync(sides, &plan.missing, SyncOptions::default(), &monitor);
        signals.close();
        progress.finish();
    }
    let bytes_up = to.store.counts().bytes_up - sent_before;
    Ok(Done { from: from_label, to: to_label, plan, report, bytes_up })
}

/// Finds the snapshots that were asked for; of two that are synced with each other, either may have what is named.
async fn wanted(from: &Repo, to: &Repo, args: &SyncArgs, words: &Words<'_>) -> Result<Vec<SnapshotName>, SyncError> {
    let mut specs = Vec::new();
    for spec in words.snapshots {
        match from.resolve(spec).await {
            Ok(_) => specs.push(spec.clone()),
            Err(error @ RepoError::NoSnapshot(_)) => {
                let is_there = words.way == Way::With && to.resolve(spec).await.is_ok();
                if !is_there {
                    return Err(SyncError::From(error));
                }
            }
            Err(error) => return Err(SyncError::From(error)),
        }
    }
    if specs.is_empty() && !words.snapshots.is_empty() {
        return Ok(Vec::new());
    }
    args.choice.find(from, &specs).await.map_err(SyncError::From)
}

/// Says of which repository a failure is.
fn explain((kloset, other): (&Kloset, &Other), error: SyncError, (from, to): (&str, &str)) -> CliError {
    let of = |label: &str, error: RepoError| {
        let message = match &error {
            RepoError::WriteOnly => Some("its key can only write: to copy from it takes one that can read".to_owned()),
            RepoError::Pruned(packs) => Some(format!(
                "{packs} packs that were needed there were marked for deletion meanwhile: run the sync again"
            )),
            _ => None,
        };
        let side = if label == kloset.resolved.label() { &kloset.resolved } else { &other.resolved };
        let error = side.explain(error.into());
        CliError::new(error.exit, format!("{label}: {}", message.unwrap_or(error.message)))
    };
    let message = error.to_string();
    match error {
        SyncError::From(error) => of(from, error),
        SyncError::To(error) => of(to, error),
        SyncError::BaseGone(_) => CliError::failed(format!("{to}: {message}")),
        SyncError::Stopped => CliError::new(Exit::Interrupted, message),
    }
}

fn tell(all: &[Done], args: &SyncArgs, out: &mut Output) -> Result<(), CliError> {
    for Done { from, report, .. } in all {
        for (name, error) in &report.damaged {
            out.warn(format_args!("{from}: snapshot {} is not copied: {error}", name.id.short()));
        }
    }
    if out.is_json() {
        let ways: Vec<_> = all.iter().map(as_json).collect();
        return out.json(&json!({"message_type": "summary", "dry_run": args.dry_run, "directions": ways}));
    }
    for Done { from, to, plan, report, bytes_up } in all {
        let names = if args.dry_run { &plan.missing } else { &report.copied };
        for name in names {
            out.line(format_args!("{}  {}", name.id.short(), crate::repo::layout::timestamp(name.unix_ms)))?;
        }
        let verb = if args.dry_run { "would copy" } else { "copied" };
        let sent = if args.dry_run { String::new() } else { format!(", {} sent", HumanBytes(*bytes_up)) };
        let (count, there) = (names.len(), plan.there);
        out.line(format_args!("{verb} {count} snapshots from {from} to {to}{sent}; {there} were there already"))?;
        if !plan.replaced.is_empty() {
            let replaced = plan.replaced.len();
            out.note(format_args!(
                "{replaced} snapshots of {from} are not copied: {to} has others in their place, tagged or rewritten; \
                 who names them gets them"
            ));
        }
    }
    Ok(())
}

fn as_json(Done { from, to, plan, report, bytes_up }: &Done) -> Value {
    let ids = |names: &[SnapshotName]| names.iter().map(|name| name.id).collect::<Vec<_>>();
    let damaged = report.damaged.iter().map(|(name, error)| json!({"id": name.id, "message": error.to_string()}));
    json!({
        "from": from,
        "to": to,
        "to_copy": ids(&plan.missing),
        "there": plan.there,
        "replaced": ids(&plan.replaced),
        "copied": ids(&report.copied),
        "gone": ids(&report.gone),
        "damaged": damaged.collect::<Vec<_>>(),
        "bytes_sent": bytes_up,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_two_words_say_where_and_which_way() {
        let all = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let words = all("latest 1a to @b");
        let parsed = parse(&words).unwrap();
        assert_eq!((parsed.snapshots, parsed.way, parsed.other), (&words[..2], Way::To, "@b"));
        assert_eq!(parse(&all("with /srv/k")).unwrap().way, Way::With);
        for wrong in ["", "to", "@b", "to @b now", "onto @b"] {
            assert_eq!(parse(&all(wrong)).unwrap_err().exit, Exit::Usage, "{wrong}");
        }
    }
}
