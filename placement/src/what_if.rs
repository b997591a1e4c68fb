//! What would come of changes: they are applied to a copy of the state, and planned until nothing
//! more can be decided. What ends meanwhile takes all of the notice it was promised, and then ends.
//!
//! Never proposes anything, and never decides itself: the copy goes through the same apply and the
//! same planner as the state.

use std::collections::BTreeMap;

use rowen_state::{
    AllocationId, Cluster, Code, Command, Decision, Entry, Filler, FillerId, Job, JobId, JobState,
    Owner, Plan, Refusal, Reply, TaskPhase, TaskReport,
};

use crate::{draft::Draft, fit, plan};

/// Cycles of planning and ending that are looked at.
const ROUNDS: usize = 16;

/// What would come of changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WhatIf {
    /// Jobs of which something changes, by id.
    pub jobs: Vec<JobChange>,
    /// Fillers likewise.
    pub fillers: Vec<FillerChange>,
    /// GPUs that nobody has: before, and in the end.
    pub idle_gpus: [u32; 2],
    /// There was more to decide than was looked at.
    pub open: bool,
}

/// What becomes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// It starts, and would not have now.
    Starts,
    /// It ends where it is, and starts elsewhere (or there again).
    Moves,
    /// It ends where it is, and waits.
    Requeues,
    /// It waits, for another reason than before; or is new.
    Waits,
    /// It is over.
    Ends,
}

/// A job of which something changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobChange {
    /// Which; of a new one the id that it would get.
    pub id: JobId,
    /// Its name.
    pub name: String,
    /// One of the changes submits it.
    pub new: bool,
    /// What becomes of it.
    pub becomes: Becomes,
    /// Why.
    pub reason: String,
    /// Names of its nodes, in rank order, each once.
    pub nodes: Vec<String>,
    /// The tightest domain that holds it, `block b1-leaf`; empty while it waits.
    pub span: String,
    /// From now until it has its GPUs, at the latest.
    pub after_ms: u64,
    /// All that it asks for.
    pub gpus: u64,
}

/// A filler of which instances come or go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FillerChange {
    /// Its name.
    pub name: String,
    /// Instances before, and in the end.
    pub instances: [u32; 2],
    /// Of those before: how many get their notice.
    pub evicted: u32,
}

/// Applies `changes` in their order to a copy of the state, and plans. The first change that is
/// refused is the answer.
pub fn what_if(view: &Cluster, changes: Vec<Command>) -> Result<WhatIf, Refusal> {
    let mut world = World {
        cluster: view.clone(),
        began_ms: view.now_ms(),
        new: Vec::new(),
        stopped: BTreeMap::new(),
    };
    for change in changes {
        if let Reply::Job(id) = world.apply(change)? {
            world.new.push(id);
        }
    }
    let open = !world.settle()?;
    let after = &world.cluster;
    Ok(WhatIf {
        jobs: world.job_changes(view),
        fillers: filler_changes(view, after),
        idle_gpus: [view, after].map(idle_gpus),
        open,
    })
}

struct World {
    cluster: Cluster,
    began_ms: u64,
    /// Jobs that the changes submitted.
    new: Vec<JobId>,
    /// Why jobs were stopped.
    stopped: BTreeMap<JobId, String>,
}

impl World {
    fn apply(&mut self, command: Command) -> Result<Reply, Refusal> {
        self.apply_at(self.cluster.now_ms(), command)
    }

    fn apply_at(&mut self, at_ms: u64, command: Command) -> Result<Reply, Refusal> {
        let entry = Entry { at_ms, principal: "what-if".into(), request: None, command };
        let outcome = self.cluster.apply(self.cluster.applied() + 1, &entry);
        let silent = || Refusal { code: Code::Invalid, message: "no answer".into() };
        outcome.answer.unwrap_or_else(|| Err(silent()))
    }

    /// Plans, and ends what has to end, until neither changes anything. Whether it came so far.
    fn settle(&mut self) -> Result<bool, Refusal> {
        for _ in 0..ROUNDS {
            // At once, as the leader does: it does not wait for what ends.
            let Plan { based_on, decisions } = plan(&self.cluster);
            let moves = decisions.iter().any(|decision| {
                !matches!(decision, Decision::Wait { .. } | Decision::Unfilled { .. })
            });
            if !decisions.is_empty() {
                self.apply(Command::CommitPlan(Plan { based_on, decisions }))?;
            }
            let ended = self.end_what_stops()?;
            if !moves && !ended {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every task that has its notice ends, when the last of them must have. Whether any did.
    fn end_what_stops(&mut self) -> Result<bool, Refusal> {
        let stopping: Vec<_> = self.cluster.stopping().cloned().collect();
        let mut at_ms = self.cluster.now_ms();
        let mut reports = Vec::new();
        for allocation in &stopping {
            at_ms = at_ms.max(allocation.stop.map_or(0, |stop| stop.deadline_ms));
            if let Owner::Gang { job, .. } = allocation.owner
                && let Some(job) = self.cluster.jobs().get(job)
            {
                let why = job.reason.trim_start_matches("stopping: ").to_owned();
                self.stopped.entry(job.id).or_insert(why);
            }
            for (rank, task) in (0..).zip(&allocation.tasks).filter(|(_, task)| task.phase.live()) {
                reports.push(TaskReport {
                    node: task.node,
                    allocation: allocation.id,
                    rank,
                    epoch: allocation.epoch,
                    phase: TaskPhase::Exited { code: 143 },
                    port: 0,
                    message: String::new(),
                });
            }
        }
        if reports.is_empty() {
            return Ok(false);
        }
        self.apply_at(at_ms, Command::Report(reports))?;
        Ok(true)
    }

    fn job_changes(&self, view: &Cluster) -> Vec<JobChange> {
        let draft = Draft::new(&self.cluster);
        let jobs = self.cluster.jobs().values();
        jobs.filter_map(|job| self.job_change(view.jobs().get(job.id), job, &draft)).collect()
    }

    fn job_change(&self, was: Option<&Job>, is: &Job, draft: &Draft<'_>) -> Option<JobChange> {
        let new = self.new.contains(&is.id);
        let had = was.and_then(|job| job.allocation);
        let becomes = match (had, is.allocation) {
            _ if was.is_some_and(|was| was.state.ended()) => return None,
            _ if is.state.ended() => Becomes::Ends,
            (None, Some(_)) => Becomes::Starts,
            (Some(had), Some(has)) if had == has => return None,
            (Some(_), Some(_)) => Becomes::Moves,
            (Some(_), None) => Becomes::Requeues,
            (None, None) if new || was.is_none_or(|was| was.reason != is.reason) => Becomes::Waits,
            (None, None) => return None,
        };
        let places = is.allocation.and_then(|id| self.cluster.allocations().get(id));
        let nodes = places.iter().flat_map(|allocation| &allocation.tasks).map(|task| task.node);
        let mut nodes: Vec<_> = nodes.collect();
        nodes.dedup();
        let span = draft.span(nodes.iter().filter_map(|node| self.cluster.pos_of(*node)));
        let name = |id| self.cluster.nodes().get(id).map(|node| node.name.clone());
        let reason = match (self.stopped.get(&is.id), is.state) {
            (Some(stopped), JobState::Queued) => format!("{stopped}; then {}", is.reason),
            (Some(stopped), _) if becomes == Becomes::Moves => {
                format!("{stopped}; then {}", is.reason)
            }
            _ => is.reason.clone(),
        };
        let starts = is.allocation.is_some();
        Some(JobChange {
            id: is.id,
            name: is.spec.name.clone(),
            new,
            becomes,
            reason,
            span: span.map_or_else(String::new, |domain| fit::name(draft.index(), domain)),
            nodes: nodes.into_iter().filter_map(name).collect(),
            after_ms: if starts { is.bound_ms.saturating_sub(self.began_ms) } else { 0 },
            gpus: u64::from(is.spec.workers) * u64::from(is.spec.resources.gpus),
        })
    }
}

fn filler_changes(view: &Cluster, after: &Cluster) -> Vec<FillerChange> {
    let stays = |cluster: &Cluster, id: AllocationId| {
        cluster.allocations().get(id).is_some_and(|allocation| allocation.stop.is_none())
    };
    let change = |(id, was): (FillerId, &Filler)| {
        let is = after.fillers().get(id).map_or(0, |filler| filler.instances.len());
        let leaves = |id: &&AllocationId| stays(view, **id) && !stays(after, **id);
        let evicted = was.instances.iter().filter(leaves).count() as u32;
        let instances = [was.instances.len() as u32, is as u32];
        let changed = evicted > 0 || instances[0] != instances[1];
        changed.then(|| FillerChange { name: was.spec.name.clone(), instances, evicted })
    };
    view.fillers().iter().filter_map(change).collect()
}

/// GPUs that somebody could be given at once.
fn idle_gpus(cluster: &Cluster) -> u32 {
    cluster.nodes().values().map(|node| node.free().count()).sum()
}
