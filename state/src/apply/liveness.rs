//! An agent comes, a node falls silent, a node is lost.

use rowen_planted::{Bug, hash_order, planted};

use super::{Answer, not_found};
use crate::{
    AllocationId, Cluster, Code, Effect, Liveness, Node, NodeId, NodeReport, Outcome, Owner,
    Refusal, Reply, StopReason, TaskPhase,
};

impl Cluster {
    /// An agent has come, for the first time or again: what it knows of its tasks is
    /// reconciled with what the state knows.
    pub(super) fn node_up(&mut self, report: &NodeReport, outcome: &mut Outcome) -> Answer {
        self.may_come(report)?;
        let (now_ms, index, version) = (self.meta.now_ms, self.meta.applied, self.meta.version);
        let node = self.nodes.get_mut(report.node).expect("may_come found it");
        let rebooted = !node.boot_id.is_empty() && node.boot_id != report.boot_id;
        node.boot_id.clone_from(&report.boot_id);
        node.addr.clone_from(&report.addr);
        node.ports.clone_from(&report.ports);
        node.version.clone_from(&report.version);
        node.folder.clone_from(&report.folder);
        (node.said_ms, node.came) = (report.said_ms, index);
        node.simulated = report.simulated;
        node.liveness = Liveness::Up;
        if planted(Bug::DrainForgotten) {
            node.duty = crate::Duty::InService;
        }
        if version < 2 {
            for (ordinal, slot) in (0u32..).zip(&mut node.gpus) {
                slot.healthy = report.healthy.contains(ordinal);
            }
        }
        node.meter_unowned(now_ms);
        if version >= 2 {
            self.gpus_seen(report.node, report.healthy, outcome);
        }
        outcome.effects.push(Effect::Push(report.node));

        if planted(Bug::EndedRunsAgain) {
            self.restart_ended(report.node);
        }
        if rebooted {
            if planted(Bug::RebootIgnored) {
                return Ok(Reply::Done);
            }
            self.lose_tasks(report.node, |_, _, _| true, "its node restarted", outcome);
            return Ok(Reply::Done);
        }
        for task in &report.tasks {
            self.task_report(task, outcome);
        }
        let known = |id: AllocationId, rank: usize, phase: TaskPhase| {
            phase == TaskPhase::Bound // not launched yet: it will be
                || report.tasks.iter().any(|task| task.allocation == id && task.rank as usize == rank)
        };
        self.lose_tasks(
            report.node,
            |id, rank, phase| !known(id, rank, phase),
            "its agent lost it",
            outcome,
        );
        Ok(Reply::Done)
    }

    /// Planted: an agent that comes again starts anew what had ended on its node.
    fn restart_ended(&mut self, id: NodeId) {
        let here = |job: &&crate::Job| job.last_tasks.iter().any(|task| task.node == id);
        let ended = self.jobs.values().filter(|job| job.state.ended()).filter(here);
        for job in ended.map(|job| job.id).collect::<Vec<_>>() {
            self.set_job_state(job, crate::JobState::Queued);
        }
    }

    /// Words of two streams of one agent may change places on their way here, and two agents may
    /// claim one node: neither may make the state forget what runs there.
    fn may_come(&self, report: &NodeReport) -> Result<(), Refusal> {
        let node = self.nodes.get(report.node).ok_or_else(|| not_found("node", report.node))?;
        let same_boot = node.boot_id == report.boot_id;
        if same_boot && report.said_ms > 0 && report.said_ms <= node.said_ms {
            let what = format!("{} has said something newer since", node.name);
            return Err(Refusal::new(Code::Conflict, what));
        }
        let stranger = !node.folder.is_empty() && node.folder != report.folder;
        if stranger && node.liveness != Liveness::Lost && self.runs_something(node) {
            return Err(Refusal::new(
                Code::Conflict,
                format!(
                    "an agent with another folder runs tasks on {}; stop it, or wait until they have ended or the node is lost",
                    node.name
                ),
            ));
        }
        Ok(())
    }

    fn runs_something(&self, node: &Node) -> bool {
        let owners = node.owners().into_iter().filter_map(|id| self.allocations.get(id));
        let mut tasks = owners.flat_map(|allocation| &allocation.tasks);
        tasks.any(|task| task.node == node.id && task.phase.live())
    }

    /// The leader decides from its memory, and its word may reach the log after the agent's.
    pub(super) fn not_come_again(&self, id: NodeId, came: u64) -> Result<(), Refusal> {
        let node = self.nodes.get(id).ok_or_else(|| not_found("node", id))?;
        if node.came == came {
            return Ok(());
        }
        Err(Refusal::new(Code::Conflict, format!("{} has come again since", node.name)))
    }

    /// Nothing new goes to a silent node, and its gangs begin to stop elsewhere: their
    /// workers there are being ended by their shims. Its GPUs stay with their owners.
    pub(super) fn node_silent(&mut self, id: NodeId, outcome: &mut Outcome) -> Answer {
        let now_ms = self.meta.now_ms;
        let node = self.nodes.get_mut(id).ok_or_else(|| not_found("node", id))?;
        if node.liveness != Liveness::Up {
            return Ok(Reply::Done);
        }
        node.liveness = Liveness::Silent;
        node.meter_unowned(now_ms);
        let (name, mut owners) = (node.name.clone(), node.owners());
        if planted(Bug::HashOrder) {
            hash_order(&mut owners);
        }
        self.release_holds_on(id, "is silent", outcome);
        for owner in owners {
            if let Some(Owner::Gang { job, .. }) = self.allocations.get(owner).map(|a| a.owner) {
                self.stop_gang(job, StopReason::NodeLost, &format!("{name} was lost"), outcome);
            }
        }
        Ok(Reply::Done)
    }

    /// The margin has passed: nothing of before can run there any more.
    pub(super) fn node_lost(&mut self, id: NodeId, outcome: &mut Outcome) -> Answer {
        self.node_silent(id, outcome)?;
        let node = self.nodes.get_mut(id).expect("node_silent found it");
        node.liveness = Liveness::Lost;
        self.lose_tasks(id, |_, _, _| true, "its node was lost", outcome);
        Ok(Reply::Done)
    }

    /// The operator says that the machine is off. A node that is heard cannot be.
    pub(super) fn forget_node(&mut self, id: NodeId, outcome: &mut Outcome) -> Answer {
        let node = self.nodes.get(id).ok_or_else(|| not_found("node", id))?;
        if node.liveness == Liveness::Up {
            return Err(Refusal::new(
                Code::Conflict,
                format!("{} is heard, so it is not off; drain it instead", node.name),
            ));
        }
        self.node_lost(id, outcome)
    }

    /// Counts the live tasks of a node of which `lost` says yes as ended, and gives their GPUs back.
    fn lose_tasks(
        &mut self,
        id: NodeId,
        lost: impl Fn(AllocationId, usize, TaskPhase) -> bool,
        why: &str,
        outcome: &mut Outcome,
    ) {
        let node = self.nodes.get(id).expect("the caller looked it up");
        let name = node.name.clone();
        for owner in node.owners() {
            let allocation = self.allocations.get(owner).expect("an owner is live");
            let gang = match allocation.owner {
                Owner::Gang { job, .. } => Some(job),
                Owner::Instance { .. } => None,
            };
            let ranks: Vec<usize> = (0..)
                .zip(&allocation.tasks)
                .filter(|(rank, task)| {
                    task.node == id && task.phase.live() && lost(owner, *rank, task.phase)
                })
                .map(|(rank, _)| rank)
                .collect();
            for rank in ranks {
                if let Some(job) = gang {
                    let why = format!("worker {rank} on {name}: {why}");
                    self.stop_gang(job, StopReason::NodeLost, &why, outcome);
                    self.release_task(owner, rank, outcome);
                }
                self.task_changed(owner, rank, TaskPhase::Lost, 0, why, outcome);
            }
        }
        self.advance_holds(&[id], outcome);
    }
}
