//! `info`: tells what snapshots take.

use clap::Args;
use indicatif::HumanBytes;
use serde_json::{Value, json};

use super::args::Global;
use super::cache::CacheArgs;
use super::chosen::{Chosen, ChosenArgs, snapshot_json, time_of};
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::output::Output;
use crate::repo::layout::{self, SnapshotName};
use crate::repo::usage::{Usage, measure};
use crate::repo::{READER_BYTES_DEFAULT, RepoError};

/// Tells what snapshots take: how much is in them, how much of it is stored, and what would go with each.
///
/// `size` is what a restore would write, `stored` what the store holds for it, trees included, `unique` what no other
/// snapshot needs. `dedup` is size over distinct content, `packed` distinct content over what is stored of it.
/// All snapshots are walked, whichever are shown.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Snapshots to show [all].
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
    #[command(flatten)]
    cache: CacheArgs,
}

/// Runs the command.
pub(crate) fn run(args: InfoArgs, global: &Global, out: &mut Output) -> Result<Exit, CliError> {
    let kloset = Kloset::open(global)?.with_cache(&args.cache, global);
    let mut chosen = Chosen::open(&kloset, &ChosenArgs::default(), out)?;
    let reader = kloset.repo.reader(READER_BYTES_DEFAULT);
    let measured = kloset.runtime.block_on(async {
        let names: Vec<SnapshotName> = chosen.snapshots.iter().map(|snapshot| snapshot.name).collect();
        let mut shown = Vec::new();
        for spec in &args.snapshots {
            shown.push(crate::repo::resolve_in(&names, spec)?);
        }
        let usages = measure(&reader, &chosen.snapshots).await?;
        let packs = kloset.repo.store.list(layout::PACKS).await?;
        let rows: Vec<(SnapshotName, Usage)> = names
            .into_iter()
            .zip(usages.snapshots.iter().copied())
            .filter(|(name, _)| shown.is_empty() || shown.contains(name))
            .collect();
        Ok::<_, RepoError>((rows, usages, packs.iter().map(|pack| pack.bytes).sum::<u64>()))
    });
    let (rows, usages, packs) = measured.map_err(|error| kloset.resolved.explain(error.into()))?;
    chosen.tell(&usages.walked, out);
    if out.is_json() {
        let each: Vec<_> = rows.iter().map(|(name, usage)| row_json(*name, usage)).collect();
        out.json(&json!({"snapshots": each, "all": usage_json(&usages.all), "packs_bytes": packs}))?;
        return Ok(chosen.exit);
    }
    out.line(format_args!("{:8}  {:19}  {HEAD}", "id", "time"))?;
    for (name, usage) in &rows {
        out.line(format_args!("{:8}  {:19}  {}", name.id.short(), time_of(*name), figures(usage, true)))?;
    }
    out.line(format_args!("{:8}  {:19}  {}", "all", "", figures(&usages.all, false)))?;
    out.note(format_args!("packs hold {}, the rest of them is unused or overhead", HumanBytes(packs)));
    Ok(chosen.exit)
}

const HEAD: &str = "     files        size      stored      unique   dedup  packed";

fn figures(usage: &Usage, with_unique: bool) -> String {
    let size = |bytes: u64| HumanBytes(bytes).to_string();
    let unique = if with_unique { size(usage.unique) } else { String::new() };
    let times = |factor: Option<f64>| factor.map_or_else(|| "-".to_owned(), |factor| format!("{factor:.2}x"));
    format!(
        "{:>10}  {:>10}  {:>10}  {:>10}  {:>6}  {:>6}",
        usage.files,
        size(usage.bytes),
        size(usage.stored()),
        unique,
        times(ratio(usage.bytes, usage.distinct_bytes)),
        times(ratio(usage.distinct_bytes, usage.content_stored)),
    )
}

/// Returns how often one goes into the other; nothing where there is nothing.
fn ratio(of: u64, over: u64) -> Option<f64> {
    #[allow(clippy::cast_precision_loss, reason = "two digits are shown")]
    (over > 0).then(|| of as f64 / over as f64)
}

fn row_json(name: SnapshotName, usage: &Usage) -> Value {
    let (mut value, snapshot) = (usage_json(usage), snapshot_json(name));
    for key in ["id", "short_id", "time"] {
        value[key] = snapshot[key].clone();
    }
    value
}

fn usage_json(usage: &Usage) -> Value {
    let mut value = json!(usage);
    value["stored"] = usage.stored().into();
    value["dedup"] = json!(ratio(usage.bytes, usage.distinct_bytes));
    value["compression"] = json!(ratio(usage.distinct_bytes, usage.content_stored));
    value
}
