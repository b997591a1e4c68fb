//! A job as the state keeps it, from its submission to its end.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{AllocationId, GpuMask, JobId, JobSpec, NodeId, Place, StopReason, Task};

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobState {
    /// Waits.
    Queued,
    /// Its GPUs are being cleared.
    Holding,
    /// Bound; not all tasks are up.
    Starting,
    /// All tasks are up.
    Running,
    /// Its tasks are being ended.
    Stopping,
    /// Every task ended with 0.
    Completed,
    /// It failed by itself more often than it may restart, or ran over its time limit.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl JobState {
    /// Whether it is over for good.
    pub fn ended(self) -> bool {
        matches!(self, JobState::Completed | JobState::Failed | JobState::Cancelled)
    }
}

/// GPUs being cleared for a gang, so that nobody slips in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// By rank.
    pub places: Vec<Place>,
    /// Evicted for it: they have the GPUs, or the cores and memory beside them.
    pub victims: Vec<AllocationId>,
    /// When it began.
    pub since_ms: u64,
    /// The last victim's SIGKILL.
    pub deadline_ms: u64,
    /// Log index of the plan that made it.
    pub index: u64,
}

/// One line of a job's story; kept in the archive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEvent {
    /// Log index of the entry that did it.
    pub index: u64,
    /// The state's clock.
    pub at_ms: u64,
    /// What happened, and why.
    pub what: String,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: JobId,
    /// What was asked for.
    pub spec: Arc<JobSpec>,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it waits, or how it ended.
    pub reason: String,
    /// Log index of the decision behind `reason`.
    pub reason_index: u64,
    /// Starts so far.
    pub attempt: u32,
    /// Attempts that failed by themselves.
    pub failures: u32,
    /// Of the running attempt.
    pub allocation: Option<AllocationId>,
    /// While [`JobState::Holding`].
    pub hold: Option<Hold>,
    /// Why it is stopping; the first reason stays, but a cancel overrides.
    pub stopping: Option<StopReason>,
    /// When it was submitted.
    pub submitted_ms: u64,
    /// When the hold of the last attempt began; 0: it needed none.
    pub held_ms: u64,
    /// When the last attempt was bound; 0: not yet.
    pub bound_ms: u64,
    /// When all tasks of the last attempt were up; 0: not yet.
    pub running_ms: u64,
    /// When it ended; 0: not yet.
    pub ended_ms: u64,
    /// Of the first task that failed in the last attempt.
    pub exit_code: i32,
    /// GPU-milliseconds of the attempts that are over.
    pub gpu_ms: u64,
    /// Tasks of the last attempt that is over, by rank.
    pub last_tasks: Vec<Task>,
    /// When it began to wait: submitted, or queued again after an attempt. In a cluster of version
    /// 1 always the first.
    pub queued_ms: u64,
}

impl Job {
    /// GPUs of a node that are held for it.
    pub(crate) fn held_on(&self, node: NodeId) -> GpuMask {
        let places = self.hold.iter().flat_map(|hold| &hold.places);
        let here = places.filter(|place| place.node == node);
        here.fold(GpuMask::NONE, |mask, place| mask.or(place.gpus))
    }

    pub(crate) fn new(id: JobId, spec: JobSpec, now_ms: u64, index: u64) -> Self {
        Job {
            id,
            spec: Arc::new(spec),
            state: JobState::Queued,
            reason: "waits for the next plan".into(),
            reason_index: index,
            attempt: 0,
            failures: 0,
            allocation: None,
            hold: None,
            stopping: None,
            submitted_ms: now_ms,
            held_ms: 0,
            bound_ms: 0,
            running_ms: 0,
            ended_ms: 0,
            exit_code: 0,
            gpu_ms: 0,
            last_tasks: Vec::new(),
            queued_ms: now_ms,
        }
    }
}
