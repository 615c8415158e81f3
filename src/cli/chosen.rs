//! The snapshots that a command over many of them is about.

use clap::Args;
use serde_json::{Map, Value, json};

use super::choice::ChoiceArgs;
use super::entries::local_time;
use super::exit::{CliError, Exit};
use super::kloset::Kloset;
use super::names::safe;
use super::output::Output;
use crate::repo::distinct::Walked;
use crate::repo::layout::SnapshotName;
use crate::repo::runs::Runs;
use crate::repo::tree::Time;
use crate::repo::wanted::{Rooted, choose};

/// Which snapshots are looked at; all without.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ChosenArgs {
    #[command(flatten)]
    choice: ChoiceArgs,
    /// Only this snapshot: `latest`, `latest~2` or the first characters of an id; may be repeated.
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Vec<String>,
}

/// The snapshots that are looked at, oldest first.
pub(super) struct Chosen {
    pub(super) snapshots: Vec<Rooted>,
    pub(super) exit: Exit,
}

impl Chosen {
    /// Opens the manifests; one that is damaged is told, and ends the command with 14.
    pub(super) fn open(kloset: &Kloset, args: &ChosenArgs, out: &mut Output) -> Result<Self, CliError> {
        let chosen = kloset.runtime.block_on(async {
            let mut names = kloset.repo.snapshots().await?;
            if !args.snapshot.is_empty() {
                let mut named = Vec::new();
                for spec in &args.snapshot {
                    named.push(crate::repo::resolve_in(&names, spec)?);
                }
                names.retain(|name| named.contains(name));
            }
            choose(&kloset.repo, &names, &args.choice.wanted()).await
        });
        let chosen = chosen.map_err(|error| kloset.resolved.explain(error.into()))?;
        chosen.damaged.iter().for_each(|(_, error)| out.warn(error));
        let exit = if chosen.damaged.is_empty() { Exit::Done } else { Exit::Damaged };
        Ok(Self { snapshots: chosen.snapshots, exit })
    }

    /// Returns the name of a snapshot by its number.
    pub(super) fn name(&self, number: usize) -> SnapshotName {
        self.snapshots[number].name
    }

    /// Returns how many snapshots a set has, and the first and the last of them, for people.
    pub(super) fn range(&self, runs: &Runs) -> String {
        let Some((first, last)) = runs.ends() else { return String::new() };
        let (first, last) = (self.name(first), self.name(last));
        let times = match first == last {
            true => format!("{:17}  {}", first.id.short(), day(first)),
            false => format!("{}-{}  {}", first.id.short(), last.id.short(), days(first, last)),
        };
        format!("{:>5}  {times:<40}", runs.count())
    }

    /// Adds how many snapshots a set has, and the first and the last of them.
    pub(super) fn add_range(&self, object: &mut Map<String, Value>, runs: &Runs) {
        object.insert("snapshots".into(), runs.count().into());
        if let Some((first, last)) = runs.ends() {
            object.insert("first".into(), snapshot_json(self.name(first)));
            object.insert("last".into(), snapshot_json(self.name(last)));
        }
    }

    /// Tells what the walk could not read, which ends the command with 14.
    pub(super) fn tell(&mut self, walked: &Walked, out: &mut Output) {
        for problem in &walked.problems {
            let path = if problem.path.is_empty() { "/".into() } else { safe(&problem.path) };
            out.warn(format_args!("snapshot {}: \"{path}\": {}", problem.snapshot.id.short(), problem.error));
        }
        let untold = walked.problems_total - walked.problems.len() as u64;
        if untold > 0 {
            out.warn(format_args!("{untold} more folders cannot be read"));
        }
        if walked.problems_total > 0 {
            self.exit = Exit::Damaged;
        }
    }
}

/// Returns a snapshot's id and time.
pub(super) fn snapshot_json(name: SnapshotName) -> Value {
    json!({"id": name.id, "short_id": name.id.short(), "time": crate::repo::layout::timestamp(name.unix_ms).to_string()})
}

/// Returns the time of a snapshot.
pub(super) fn time_of(name: SnapshotName) -> String {
    local_time(Time { seconds: name.unix_ms.div_euclid(1000), nanos: 0 })
}

fn day(name: SnapshotName) -> String {
    time_of(name).split(' ').next().unwrap_or_default().to_owned()
}

fn days(first: SnapshotName, last: SnapshotName) -> String {
    match (day(first), day(last)) {
        (first, last) if first == last => first,
        (first, last) => format!("{first}..{last}"),
    }
}
