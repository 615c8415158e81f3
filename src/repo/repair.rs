//! Repairing: what a check finds wrong is put right as far as it can be, and nothing that can be read is touched.
//!
//! First what needs nobody's help: packs that no index run names are listed from their footers, and what still opens in
//! damaged packs is stored anew. Then what is lost is stored anew by whoever still has it. Snapshots that lack something
//! even so get a corrected one beside them, which says what it lacks. At last the damaged packs are marked as a prune
//! marks packs: no backup relies on them any more. Nothing is deleted but index runs and pending lists that nobody can
//! open, which would keep every backup from beginning; a copy of each is kept beside.
//!
//! The order is that of any writer, packs, runs, snapshots, then marks: after a crash all is readable that was, and the
//! next repair goes on. It does not know where lost content comes from.

mod aside;
mod index;
mod mend;
pub mod other;
mod report;
mod salvage;

use std::collections::{HashMap, HashSet};

use tokio::runtime::Handle;

use super::Repo;
use super::check::{self, CheckOptions, Findings, Hurt, Lost, Monitor, Trouble};
use super::error::RepoError;
use super::id::{ChunkId, PackId};
use super::layout::SnapshotName;
use super::snapshot::Manifest;

pub use mend::CORRECTED_TAG;
pub use report::{Left, Outcome, RepairReport, Verdict};

/// Folders of lost trees in one another that are healed one round after another.
const ROUNDS_MAX: usize = 16;

/// How to repair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairOptions {
    /// Whether to fetch and open all content first: what is there and rotten is found so.
    pub read_data: bool,
    /// Whether to put anything; without, everything else is done to tell what would be.
    pub apply: bool,
}

/// What is lost, and whose it is.
pub struct Wanted<'a> {
    /// The chunks.
    pub lost: &'a Lost,
    /// Pages that suffer, they or what is below them.
    hurt: &'a Hurt,
    /// Snapshots that suffer.
    pub snapshots: &'a [(SnapshotName, Manifest)],
}

/// Stores what of it it has, into the kloset it is given, and returns that.
pub type Heal<'a> = dyn FnMut(&Repo, &Wanted<'_>) -> Result<HashSet<ChunkId>, RepoError> + 'a;

/// Repairs a kloset. Blocks; call it from a thread that does not drive `runtime`.
///
/// # Errors
/// [`RepoError::WriteOnly`] with a key that cannot read; a store that cannot be asked. Damage is no error.
pub fn repair(
    repo: &Repo,
    runtime: &Handle,
    options: RepairOptions,
    heal: &mut Heal<'_>,
    monitor: Monitor<'_>,
) -> Result<RepairReport, RepoError> {
    if !repo.keys.can_read() {
        return Err(RepoError::WriteOnly);
    }
    let repo = repo.without_cache();
    let repo = if options.apply { repo } else { repo.without_puts() };
    let mut report = RepairReport { applied: options.apply, ..RepairReport::default() };
    let mut state = Work { repo: &repo, runtime, options, monitor }.look()?;
    let closed = aside::closed(&state.findings);
    // No writer begins and no reader finds what was moved while one of these does not open.
    let hiding = repo.hiding(closed.iter().cloned().collect());
    let work = Work { repo: &hiding, runtime, options, monitor };
    index::put(&work, &mut state, &mut report)?;
    let suspects = state.suspects();
    let salvaged = salvage::salvage(&work, &state, &suspects)?;
    report.salvaged = salvaged.stored;
    state.found(&salvaged.readable);
    let state = work.heal(state, heal, &mut report)?;
    mend::mend_all(&work, &state, &mut report)?;
    aside::mark(&work, &suspects, &mut report)?;
    aside::set_aside(&Work { repo: &repo, ..work }, &closed, &mut report)?;
    aside::leave(&state.first, &mut report);
    report.check = state.first;
    Ok(report)
}

/// What every step of a repair is given.
#[derive(Clone, Copy)]
struct Work<'a> {
    repo: &'a Repo,
    runtime: &'a Handle,
    options: RepairOptions,
    monitor: Monitor<'a>,
}

/// What is known of the kloset.
struct State {
    findings: Findings,
    hurt: Hurt,
    /// What is wrong with packs: reading them all is not done twice.
    troubles: Troubles,
    /// What a check would have said at first.
    first: check::CheckReport,
}

type Troubles = HashMap<PackId, Box<Trouble>>;

impl Work<'_> {
    /// Lets what is lost be stored anew. What lies below a lost tree is known only once that is there again, so that there
    /// are several rounds.
    fn heal(&self, mut state: State, heal: &mut Heal<'_>, report: &mut RepairReport) -> Result<State, RepoError> {
        let mut tried = HashSet::new();
        if self.options.apply && report.salvaged > 0 {
            state = self.look_again(state)?;
        }
        for _ in 0..ROUNDS_MAX {
            let new: HashSet<ChunkId> = state.lost_ids().difference(&tried).copied().collect();
            report.lost += new.len() as u64;
            if new.is_empty() {
                break;
            }
            tried.extend(new);
            let snapshots = state.suffering();
            let wanted = Wanted { lost: &state.findings.lost, hurt: &state.hurt, snapshots: &snapshots };
            let healed = heal(self.repo, &wanted)?;
            report.healed += healed.len() as u64;
            state.found(&healed);
            if !self.options.apply || healed.is_empty() {
                break;
            }
            state = self.look_again(state)?;
        }
        Ok(state)
    }

    /// Looks at everything, and lists anew what no index run names.
    fn look(&self) -> Result<State, RepoError> {
        self.runtime.block_on(async {
            let mut findings = check::look(self.repo, self.monitor).await?;
            let options = CheckOptions { read_data: self.options.read_data, ..CheckOptions::default() };
            let scope = check::Scope { options: &options, used: None };
            check::verify(self.repo, &mut findings, &scope, self.monitor).await?;
            let verified = troubles(&findings);
            let mut hurt = self.follow(&mut findings).await?;
            let walked = troubles(&findings);
            let first = check::sum_up(&mut findings);
            set_troubles(&mut findings, &walked);
            if index::rebuild(self.repo, &mut findings).await? {
                set_troubles(&mut findings, &verified);
                findings.lost = Lost::default();
                hurt = self.follow(&mut findings).await?;
            }
            index::add_lost(self.repo, &mut findings).await?;
            Ok(State { troubles: troubles(&findings), findings, hurt, first })
        })
    }

    /// Looks again after something was stored; what is known of packs is not read again.
    fn look_again(&self, before: State) -> Result<State, RepoError> {
        self.runtime.block_on(async {
            let mut findings = check::look(self.repo, self.monitor).await?;
            set_troubles(&mut findings, &before.troubles);
            let hurt = self.follow(&mut findings).await?;
            index::add_lost(self.repo, &mut findings).await?;
            Ok(State { findings, hurt, ..before })
        })
    }

    async fn follow(&self, findings: &mut Findings) -> Result<Hurt, RepoError> {
        let roots = check::roots(self.repo, findings, &[]).await?;
        check::follow(self.repo, findings, &roots, self.monitor).await
    }
}

impl State {
    /// Takes from what is lost what was found after all.
    fn found(&mut self, ids: &HashSet<ChunkId>) {
        self.findings.lost.content.retain(|id, _| !ids.contains(id));
        self.findings.lost.trees.retain(|id, _| !ids.contains(id));
    }

    fn lost_ids(&self) -> HashSet<ChunkId> {
        self.findings.lost.content.keys().chain(self.findings.lost.trees.keys()).copied().collect()
    }

    /// Returns the snapshots that suffer.
    fn suffering(&self) -> Vec<(SnapshotName, Manifest)> {
        let suffers = |manifest: &Manifest| self.hurt.contains_key(&check::key_of(manifest.root.id));
        self.findings.snapshots.iter().filter(|(_, manifest)| suffers(manifest)).cloned().collect()
    }

    /// Returns the packs that cannot be relied on, with their lengths where they are there.
    fn suspects(&self) -> Vec<(PackId, Option<u64>)> {
        let of = |id: &PackId| self.findings.packs.get(id).map(|pack| (*id, pack));
        let packs = self.troubles.keys().filter_map(of).filter(|(_, pack)| !pack.pending);
        let matters = packs.filter(|(_, pack)| pack.listed.is_some() || pack.indexed.is_some());
        let mut suspects: Vec<_> = matters.map(|(id, pack)| (id, pack.listed)).collect();
        suspects.sort_unstable();
        suspects
    }

    /// Returns the packs in which nothing new may rely.
    fn shunned(&self) -> HashSet<PackId> {
        let pending = self.findings.packs.iter().filter(|(_, pack)| pack.pending).map(|(id, _)| *id);
        self.troubles.keys().copied().chain(pending).collect()
    }
}

fn troubles(findings: &Findings) -> Troubles {
    findings.packs.iter().filter_map(|(id, pack)| Some((*id, pack.trouble.clone()?))).collect()
}

fn set_troubles(findings: &mut Findings, troubles: &Troubles) {
    findings.packs.values_mut().for_each(|pack| pack.trouble = None);
    for (id, trouble) in troubles {
        findings.packs.entry(*id).or_default().trouble = Some(trouble.clone());
    }
}
