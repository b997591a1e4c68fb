//! How a gang starts and how its attempt ends: all or nothing, both ways.

use rowen_planted::{Bug, planted};

use crate::{
    Allocation, AllocationId, Cluster, GpuMask, JobId, JobState, Outcome, Owner, Place, StopReason,
    Task, TaskPhase,
};

impl Cluster {
    /// Binds a gang to places that were checked.
    pub(super) fn bind_gang(
        &mut self,
        id: JobId,
        places: &[Place],
        why: &str,
        outcome: &mut Outcome,
    ) {
        let (now_ms, epoch) = (self.meta.now_ms, self.epoch());
        self.meta.last_allocation += 1;
        let allocation = AllocationId(self.meta.last_allocation);
        let port = self.unused_port(places);
        let job = self.jobs.get_mut(id).expect("its decision was checked");
        job.attempt += 1;
        job.allocation = Some(allocation);
        let held = job.hold.is_some();
        job.held_ms = job.hold.take().map_or(0, |hold| hold.since_ms);
        (job.bound_ms, job.running_ms, job.exit_code, job.stopping) = (now_ms, 0, 0, None);
        let spec = job.spec.clone();
        let attempt = job.attempt;
        let task = |place: &Place| new_task(*place, now_ms);
        let bound = Allocation {
            id: allocation,
            owner: Owner::Gang { job: id, attempt },
            tenant: spec.tenant.clone(),
            epoch,
            bound_ms: now_ms,
            resources: spec.resources.clone(),
            notice_ms: spec.notice_ms,
            tasks: match places {
                [most @ .., _] if !most.is_empty() && planted(Bug::PartialGang) => {
                    most.iter().map(task).collect()
                }
                all => all.iter().map(task).collect(),
            },
            port,
            stop: None,
        };
        // What was held for it its queue has already.
        if !held && !self.queues.is_empty() {
            self.queue_uses(&spec.queue, &self.gpus_of(places), true);
        }
        self.bind(bound, outcome);
        self.set_job_state(id, JobState::Starting);
        self.set_job_reason(id, why.to_owned());
        self.tell(id, format!("attempt {attempt} bound: {why}"), outcome);
    }

    /// A port that rank 0's node has reserved and no other gang there was given.
    fn unused_port(&self, places: &[Place]) -> u16 {
        let Some(node) = places.first().and_then(|place| self.nodes.get(place.node)) else {
            return 0;
        };
        let used: Vec<u16> = node
            .owners()
            .into_iter()
            .filter_map(|id| self.allocations.get(id))
            .filter(|allocation| allocation.tasks.first().is_some_and(|task| task.node == node.id))
            .map(|allocation| allocation.port)
            .collect();
        node.ports.iter().copied().find(|port| !used.contains(port)).unwrap_or(0)
    }

    /// Begins to end a running attempt. A second reason does not replace the first,
    /// but a cancel always counts.
    pub(super) fn stop_gang(
        &mut self,
        id: JobId,
        reason: StopReason,
        why: &str,
        outcome: &mut Outcome,
    ) {
        let job = self.jobs.get_mut(id).expect("its allocation names it");
        let Some(allocation) = job.allocation else { return };
        if job.stopping.is_some() {
            return;
        }
        job.stopping = Some(reason);
        self.set_job_state(id, JobState::Stopping);
        self.set_job_reason(id, format!("stopping: {why}"));
        self.tell(id, format!("stopping: {why}"), outcome);
        self.stop(allocation, reason, outcome);
    }

    /// What a task's change means for its gang.
    pub(super) fn gang_changed(&mut self, id: AllocationId, outcome: &mut Outcome) {
        let allocation = self.allocations.get(id).expect("a report was matched with it");
        let Owner::Gang { job: job_id, .. } = allocation.owner else { return };
        let failed = allocation.tasks.iter().position(|task| match task.phase {
            TaskPhase::Exited { code } => code != 0,
            _ => false,
        });
        let lost = allocation.tasks.iter().position(|task| task.phase == TaskPhase::Lost);
        let all_came = allocation.tasks.iter().all(|task| task.phase != TaskPhase::Bound);
        let live = allocation.live();
        let job = self.jobs.get(job_id).expect("its allocation names it");
        if job.state == JobState::Starting && all_came && failed.is_none() && lost.is_none() {
            self.gang_is_up(job_id, outcome);
        }
        if let Some(rank) = failed {
            self.task_failed(job_id, id, rank, outcome);
        }
        if let Some(rank) = lost {
            self.task_lost(job_id, id, rank, outcome);
        }
        if !live {
            self.finish_attempt(job_id, id, outcome);
        }
    }

    fn gang_is_up(&mut self, id: JobId, outcome: &mut Outcome) {
        let now_ms = self.meta.now_ms;
        let job = self.jobs.get_mut(id).expect("checked by the caller");
        job.running_ms = now_ms;
        let limited = job.allocation.filter(|_| job.spec.time_limit_ms > 0);
        self.set_job_state(id, JobState::Running);
        if let Some(allocation) = limited {
            self.refresh_rooms_of(allocation); // its limit counts from now on
        }
        self.set_job_reason(id, String::new());
        self.tell(id, "all tasks are up".into(), outcome);
    }

    fn task_failed(&mut self, job: JobId, id: AllocationId, rank: usize, outcome: &mut Outcome) {
        if self.jobs.get(job).is_none_or(|job| job.stopping.is_some())
            || planted(Bug::GangLeftRunning)
        {
            return;
        }
        let task = &self.allocations.get(id).expect("checked by the caller").tasks[rank];
        let TaskPhase::Exited { code } = task.phase else { return };
        let node = self.nodes.get(task.node).map_or("?", |node| node.name.as_str());
        let said = said(&task.message);
        let why = format!("worker {rank} on {node} ended with {code}{said}");
        self.jobs.get_mut(job).expect("looked up above").exit_code = code;
        self.stop_gang(job, StopReason::TaskFailed, &why, outcome);
    }

    /// A worker ended through no fault of its own: the gang starts again, and nothing is counted.
    fn task_lost(&mut self, job: JobId, id: AllocationId, rank: usize, outcome: &mut Outcome) {
        let task = &self.allocations.get(id).expect("checked by the caller").tasks[rank];
        let node = self.nodes.get(task.node).map_or("?", |node| node.name.as_str());
        let why = format!("worker {rank} on {node} was lost{}", said(&task.message));
        let reason = match planted(Bug::LostIsFailed) {
            false => StopReason::NodeLost,
            true => StopReason::TaskFailed,
        };
        self.stop_gang(job, reason, &why, outcome);
    }

    /// The last task has ended: the GPUs go back, and the job ends or waits again.
    fn finish_attempt(&mut self, job_id: JobId, id: AllocationId, outcome: &mut Outcome) {
        let ranks = self.allocations.get(id).map_or(0, |allocation| allocation.tasks.len());
        for rank in 0..ranks {
            self.release_task(id, rank, outcome);
        }
        let allocation = self.forget_allocation(id).expect("checked by the caller");
        let mut nodes: Vec<_> = allocation.tasks.iter().map(|task| task.node).collect();
        let job = self.jobs.get_mut(job_id).expect("its allocation names it");
        job.allocation = None;
        // Workers fail when they lose a peer, often before anybody knows that its node is gone:
        // in an attempt that lost a worker no failure is the job's own.
        let lost = allocation.tasks.iter().any(|task| task.phase == TaskPhase::Lost)
            && !planted(Bug::LostIsFailed);
        job.last_tasks = allocation.tasks;
        let why = job.reason.trim_start_matches("stopping: ").to_owned();
        match job.stopping.take() {
            None => self.end_job(job_id, JobState::Completed, "every task ended with 0", outcome),
            Some(StopReason::Cancelled) => {
                self.end_job(job_id, JobState::Cancelled, "cancelled", outcome)
            }
            Some(StopReason::TimeLimit) => self.end_job(job_id, JobState::Failed, &why, outcome),
            Some(StopReason::TaskFailed) if !lost => {
                job.failures += 1;
                if job.failures > job.spec.restarts {
                    self.end_job(job_id, JobState::Failed, &why, outcome);
                } else {
                    self.queue_again(job_id, &why, outcome);
                }
            }
            Some(StopReason::Resized) if job.hold.is_some() => {
                nodes.extend(self.grown(job_id, &why, outcome));
            }
            Some(_) => self.queue_again(job_id, &why, outcome),
        }
        self.advance_holds(&nodes, outcome);
    }

    fn queue_again(&mut self, id: JobId, why: &str, outcome: &mut Outcome) {
        self.set_job_state(id, JobState::Queued);
        if self.meta.version >= 2 {
            self.jobs.get_mut(id).expect("just queued").queued_ms = self.meta.now_ms;
        }
        self.set_job_reason(id, format!("queued again: {why}"));
        self.tell(id, format!("queued again: {why}"), outcome);
    }
}

/// An agent's words behind ours, if it said any.
fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

pub(super) fn new_task(Place { node, gpus }: Place, now_ms: u64) -> Task {
    debug_assert_ne!(gpus, GpuMask::NONE);
    Task {
        node,
        gpus,
        phase: TaskPhase::Bound,
        since_ms: now_ms,
        port: 0,
        released: false,
        message: String::new(),
    }
}
