//! `forget`: removes snapshots by policy or by name; shows what it would do until it is told to do it.

use std::collections::BTreeSet;

use clap::Args;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::args::Global;
use super::cache::CacheArgs;
use super::config::Config;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::ls::snapshot_json;
use super::names::safe;
use super::output::Output;
use super::retention::{KeepArgs, NamedPolicy, parse_group_by};
use crate::repo::RepoError;
use crate::repo::forget::{Found, Group, GroupBy, GroupKey, Snapshot, find_all, find_named, forget, plan};
use crate::repo::layout::SnapshotName;
use crate::store::StoreError;

/// Removes snapshots: those that no rule keeps, or those that are named.
///
/// Shows the plan and changes nothing unless --apply is given. Days, weeks and so on are those of UTC. The space comes
/// back with `prune`.
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// Snapshots to remove: `latest`, `latest~2` or the first characters of an id.
    #[arg(value_name = "SNAPSHOT", conflicts_with_all = ["keep", "policy", "host", "tag", "group_by"])]
    pub snapshots: Vec<String>,
    #[command(flatten)]
    pub keep: KeepArgs,
    /// Keeps what [policies.NAME] of the config says.
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Holds the rules for snapshots of the same host, paths or tags together; "" for all in one [host,paths].
    #[arg(short, long, value_name = "host,paths,tags", value_parser = parse_group_by)]
    pub group_by: Option<GroupBy>,
    /// Looks at snapshots of this host only.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Looks at snapshots with this tag only; may be repeated.
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Does what the plan says.
    #[arg(long)]
    pub apply: bool,
    /// Lets rules remove all snapshots of a group.
    #[arg(long)]
    pub unsafe_allow_remove_all: bool,
    #[command(flatten)]
    pub cache: CacheArgs,
}

/// What is to become of the snapshots that were looked at.
struct Plan {
    groups: Vec<Group>,
    /// What cannot be opened: no group's.
    damaged: Vec<(SnapshotName, RepoError)>,
    /// To be deleted, oldest first.
    names: Vec<SnapshotName>,
    by_name: bool,
}

/// Runs the command.
pub(crate) fn run(args: ForgetArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let policy = policy(&args, global)?;
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let plan = match policy {
        Some(policy) => by_policy(&kloset, &args, &policy),
        None => by_name(&kloset, &args),
    };
    let plan = plan.map_err(|error| kloset.resolved.explain(error.into()))?;
    if !out.is_json() {
        tell(&plan, out)?;
    }
    for (name, error) in plan.damaged.iter().filter(|_| !plan.by_name) {
        out.warn(format_args!("{error}; no rule forgets it: `kloset-mount forget {}` does", name.id.short()));
    }
    let refused = !args.unsafe_allow_remove_all && !plan.by_name && plan.groups.iter().any(Group::would_be_empty);
    let (mut forgotten, mut failure) = (Vec::new(), None);
    if args.apply && !refused {
        let done = kloset.runtime.block_on(forget(&kloset.repo, &plan.names));
        (forgotten, failure) = (done.names, done.failure);
    }
    if out.is_json() {
        out.json(&plan_json(&plan, &args, &forgotten))?;
    }
    if refused {
        return Err(would_empty(&plan));
    }
    if let Some(error) = failure {
        return Err(kloset.resolved.explain(stopped(&error, forgotten.len(), plan.names.len())));
    }
    tell_end(&plan, args.apply, out)?;
    Ok(if plan.damaged.is_empty() || plan.by_name { Exit::Done } else { Exit::Damaged })
}

/// Returns the rules that were given, or nothing where snapshots are named.
fn policy(args: &ForgetArgs, global: &Global) -> Result<Option<NamedPolicy>, CliError> {
    if !args.snapshots.is_empty() {
        return Ok(None);
    }
    let policy = match &args.policy {
        Some(name) => Config::load(global)?.policy(name)?,
        None => NamedPolicy { rules: args.keep.rules(), group_by: None },
    };
    match policy.rules.is_empty() {
        true => {
            Err(CliError::usage("what to keep is not said: give --keep-daily 7 or the like, --policy, or a snapshot"))
        }
        false => Ok(Some(policy)),
    }
}

fn by_policy(kloset: &Kloset, args: &ForgetArgs, policy: &NamedPolicy) -> Result<Plan, RepoError> {
    let Found { mut snapshots, damaged } = kloset.runtime.block_on(find_all(&kloset.repo))?;
    snapshots.retain(|Snapshot { manifest, .. }| {
        args.host.as_ref().is_none_or(|host| *host == manifest.host)
            && args.tag.iter().all(|t| manifest.tags.contains(t))
    });
    let by = args.group_by.or(policy.group_by).unwrap_or_default();
    let groups = plan(snapshots, by, &policy.rules);
    let names: BTreeSet<_> = groups.iter().flat_map(Group::forgotten).map(|snapshot| snapshot.name).collect();
    Ok(Plan { groups, damaged, names: names.into_iter().collect(), by_name: false })
}

/// Who names a snapshot means it, be it damaged or the last one.
fn by_name(kloset: &Kloset, args: &ForgetArgs) -> Result<Plan, RepoError> {
    kloset.runtime.block_on(async {
        let mut names = BTreeSet::new();
        for spec in &args.snapshots {
            names.insert(kloset.repo.resolve(spec).await?);
        }
        let Found { snapshots, damaged } = find_named(&kloset.repo, &names).await?;
        let decisions = snapshots.into_iter().map(|snapshot| (snapshot, Vec::new())).collect();
        let groups = vec![Group { key: GroupKey::default(), decisions }];
        Ok(Plan { groups, damaged, names: names.into_iter().collect(), by_name: true })
    })
}

fn tell(plan: &Plan, out: &mut Output) -> Result<(), CliError> {
    for group in &plan.groups {
        if !plan.by_name {
            out.line(format_args!("{}:", title(&group.key)))?;
        }
        let rows = group.decisions.iter().map(|(snapshot, reasons)| row(snapshot, reasons, plan.by_name));
        table(&rows.collect::<Vec<_>>(), out)?;
    }
    for (name, error) in plan.damaged.iter().filter(|_| plan.by_name) {
        out.line(format_args!("  forget  {}  {}  damaged: {error}", name.id.short(), utc(name.unix_ms)))?;
    }
    Ok(())
}

/// Names a group by what its snapshots have in common.
fn title(key: &GroupKey) -> String {
    let mut parts = Vec::new();
    parts.extend(key.host.as_ref().map(|host| format!("host {}", safe(host.as_bytes()))));
    let paths = |paths: &BTreeSet<crate::repo::snapshot::ByteText>| {
        let paths: Vec<_> = paths.iter().map(|path| safe(&path.0)).collect();
        format!("paths {}", paths.join(" "))
    };
    parts.extend(key.paths.as_ref().map(paths));
    let tags = |tags: &BTreeSet<String>| match tags.is_empty() {
        true => "no tags".to_owned(),
        false => format!("tags {}", safe(tags.iter().map(String::as_str).collect::<Vec<_>>().join(",").as_bytes())),
    };
    parts.extend(key.tags.as_ref().map(tags));
    if parts.is_empty() { "all snapshots".to_owned() } else { parts.join(", ") }
}

fn row(snapshot: &Snapshot, reasons: &[String], by_name: bool) -> [String; 5] {
    let manifest = &snapshot.manifest;
    let mut why = match (reasons.is_empty(), by_name) {
        (true, true) => "named".to_owned(),
        (true, false) => "no rule keeps it".to_owned(),
        (false, _) => safe(reasons.join("; ").as_bytes()),
    };
    if manifest.incomplete {
        why += " (incomplete)";
    }
    if snapshot.is_doubtful() {
        why += &format!(" (came to the store {})", utc(snapshot.put_unix_ms));
    }
    let action = if reasons.is_empty() { "forget" } else { "keep" };
    let tags = safe(manifest.tags.join(",").as_bytes());
    [action.to_owned(), snapshot.name.id.short(), utc(snapshot.name.unix_ms), tags, why]
}

fn table(rows: &[[String; 5]], out: &mut Output) -> Result<(), CliError> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..4).map(width).collect();
    for row in rows {
        let cells = row.iter().zip(&widths).filter(|(_, width)| **width > 0);
        let cells = cells.map(|(cell, width)| format!("  {cell}{}", " ".repeat(width - cell.chars().count())));
        out.line(format_args!("{}  {}", cells.collect::<String>(), row[4]))?;
    }
    Ok(())
}

fn utc(unix_ms: i64) -> String {
    let at = crate::repo::layout::timestamp(unix_ms).to_zoned(TimeZone::UTC);
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

fn tell_end(plan: &Plan, applied: bool, out: &mut Output) -> Result<(), CliError> {
    if out.is_json() {
        return Ok(());
    }
    let (forget, all) = (plan.names.len(), plan.groups.iter().map(|group| group.decisions.len()).sum::<usize>());
    let of = if plan.by_name { String::new() } else { format!(" of {all}") };
    if !applied {
        return out.line(format_args!("would forget {forget}{of} snapshots; nothing is changed without --apply"));
    }
    out.line(format_args!("forgot {forget}{of} snapshots"))?;
    if forget > 0 {
        out.note("their space is not free yet: that takes `kloset-mount prune`");
    }
    Ok(())
}

/// Returns the plan with restic's groups in it.
fn plan_json(plan: &Plan, args: &ForgetArgs, forgotten: &[SnapshotName]) -> Value {
    let damaged = plan.damaged.iter().map(|(name, error)| json!({"id": name.id, "message": error.to_string()}));
    json!({
        "message_type": "summary",
        "applied": args.apply,
        "groups": plan.groups.iter().map(group_json).collect::<Vec<_>>(),
        "damaged": damaged.collect::<Vec<_>>(),
        "to_forget": plan.names.iter().map(|name| name.id).collect::<Vec<_>>(),
        "forgotten": forgotten.iter().map(|name| name.id).collect::<Vec<_>>(),
    })
}

fn group_json(group: &Group) -> Value {
    let shown = |snapshot: &Snapshot| {
        let mut value = snapshot_json(snapshot.name, &snapshot.manifest);
        value["put"] = crate::repo::layout::timestamp(snapshot.put_unix_ms).to_string().into();
        value
    };
    let kept = group.decisions.iter().filter(|(_, reasons)| !reasons.is_empty());
    let reasons = kept.clone().map(|(snapshot, reasons)| json!({"snapshot": shown(snapshot), "matches": reasons}));
    json!({
        "host": group.key.host,
        "paths": group.key.paths,
        "tags": group.key.tags,
        "keep": kept.clone().map(|(snapshot, _)| shown(snapshot)).collect::<Vec<_>>(),
        "remove": group.forgotten().map(shown).collect::<Vec<_>>(),
        "reasons": reasons.collect::<Vec<_>>(),
    })
}

fn would_empty(plan: &Plan) -> CliError {
    let empty: Vec<_> =
        plan.groups.iter().filter(|group| group.would_be_empty()).map(|group| title(&group.key)).collect();
    CliError::failed(format!(
        "nothing was forgotten: the rules keep no snapshot of {}: widen them, or say --unsafe-allow-remove-all",
        empty.join("; ")
    ))
}

/// Says how far a deletion came that the store ended.
fn stopped(error: &StoreError, done: usize, all: usize) -> CliError {
    let exit = super::exit::exit_of(error);
    let why = match error {
        StoreError::Denied { .. } => "forgetting takes a key of the store that may delete: ",
        _ => "",
    };
    CliError::new(exit, format!("{done} of {all} snapshots are forgotten, the others are whole: {why}{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Place;

    #[test]
    fn a_store_that_refuses_ends_with_13_and_says_what_is_gone() {
        let at = Place { operation: "deleting", name: "snapshots/x".to_owned(), store: "s3://h/b".into() };
        let denied = StoreError::Denied { at: at.into(), detail: "403".to_owned(), source: "403".into() };
        let error = stopped(&denied, 1, 3);
        assert_eq!(error.exit, Exit::Store);
        let words =
            "1 of 3 snapshots are forgotten, the others are whole: forgetting takes a key of the store that may delete";
        assert!(error.message.starts_with(words), "{error}");
    }
}
