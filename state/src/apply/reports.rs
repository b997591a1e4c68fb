//! What agents saw of their tasks.

use rowen_planted::{Bug, planted};

use super::Answer;
use crate::{AllocationId, Cluster, Outcome, Owner, Reply, TaskPhase, TaskReport, cluster::clip};

impl Cluster {
    pub(super) fn report(&mut self, reports: &[TaskReport], outcome: &mut Outcome) -> Answer {
        for report in reports {
            self.task_report(report, outcome);
        }
        Ok(Reply::Done)
    }

    /// Takes one report over, or drops it: it must carry the allocation's epoch and come
    /// from the task's own node, and a phase only moves on.
    pub(super) fn task_report(&mut self, report: &TaskReport, outcome: &mut Outcome) {
        let Some(allocation) = self.allocations.get(report.allocation) else { return };
        let Some(task) = allocation.tasks.get(report.rank as usize) else { return };
        if planted(Bug::LostReportsDropped) && report.phase == TaskPhase::Lost {
            return;
        }
        let current = allocation.epoch == report.epoch || planted(Bug::AnyEpochReports);
        let fits = current && task.node == report.node && task.phase.live();
        let moved_on = rank_of(report.phase) > rank_of(task.phase);
        if fits && moved_on {
            let rank = report.rank as usize;
            self.task_changed(
                report.allocation,
                rank,
                report.phase,
                report.port,
                &report.message,
                outcome,
            );
        }
    }

    /// A task has moved on: its owner is told.
    pub(super) fn task_changed(
        &mut self,
        id: AllocationId,
        rank: usize,
        phase: TaskPhase,
        port: u16,
        message: &str,
        outcome: &mut Outcome,
    ) {
        let now_ms = self.meta.now_ms;
        let allocation = self.allocations.get_mut(id).expect("the caller looked it up");
        let owner = allocation.owner;
        let task = &mut allocation.tasks[rank];
        (task.phase, task.since_ms) = (phase, now_ms);
        if port != 0 {
            task.port = port;
        }
        task.message = clip(message.to_owned());
        match owner {
            Owner::Gang { .. } => self.gang_changed(id, outcome),
            Owner::Instance { .. } => self.instance_changed(id, outcome),
        }
    }
}

/// Phases in the order a task goes through them.
fn rank_of(phase: TaskPhase) -> u8 {
    match phase {
        TaskPhase::Bound => 0,
        TaskPhase::Running => 1,
        TaskPhase::Ready => 2,
        TaskPhase::Exited { .. } | TaskPhase::Lost => 3,
    }
}
