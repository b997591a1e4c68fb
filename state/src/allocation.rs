//! GPUs given to one owner, and the tasks that run on them.

use serde::{Deserialize, Serialize};

use crate::{AllocationId, Epoch, FillerId, GpuMask, JobId, NodeId, Resources, ledger::Class};

/// Who has an allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Owner {
    /// One start of a gang.
    Gang {
        /// Whose.
        job: JobId,
        /// Which start, from 1.
        attempt: u32,
    },
    /// One instance of a filler.
    Instance {
        /// Whose.
        filler: FillerId,
        /// Which, from 1.
        number: u64,
    },
}

impl Owner {
    /// What its GPUs' time goes to.
    pub fn class(self) -> Class {
        match self {
            Owner::Gang { .. } => Class::Gang,
            Owner::Instance { .. } => Class::Filler,
        }
    }
}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskPhase {
    /// It should run; its agent has not said so yet.
    Bound,
    /// Its processes are up.
    Running,
    /// Its readiness probe passed.
    Ready,
    /// No process of it lives.
    Exited {
        /// 128 + signal when killed, 125 when it could not be launched.
        code: i32,
    },
    /// Its node was lost with it, past the margin.
    Lost,
}

impl TaskPhase {
    /// Whether a process of it may live.
    pub fn live(self) -> bool {
        matches!(self, TaskPhase::Bound | TaskPhase::Running | TaskPhase::Ready)
    }

    /// Whether its processes were seen up and have not ended.
    pub fn up(self) -> bool {
        matches!(self, TaskPhase::Running | TaskPhase::Ready)
    }
}

/// One worker of a gang, or an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Where.
    pub node: NodeId,
    /// On which GPUs.
    pub gpus: GpuMask,
    /// How far it is.
    pub phase: TaskPhase,
    /// When it came there.
    pub since_ms: u64,
    /// Where an instance serves; 0: nowhere yet.
    pub port: u16,
    /// Its GPUs went back to their node.
    pub released: bool,
    /// What its agent said of its end.
    pub message: String,
}

/// Why an allocation is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// A gang needs the GPUs.
    Evicted {
        /// Which.
        by: JobId,
    },
    /// The user cancelled the job.
    Cancelled,
    /// Someone asked for a new start.
    Requeued,
    /// A task of the gang failed.
    TaskFailed,
    /// A node of the gang was lost or restarted.
    NodeLost,
    /// The operator drains the node.
    NodeDrained,
    /// The time limit is over.
    TimeLimit,
    /// The filler is drained, removed or shrunk.
    Withdrawn,
    /// The filler's file changed what an instance runs.
    Redeployed,
    /// The gang grows: a larger attempt of its own follows.
    Resized,
    /// A GPU of it is down.
    GpuDown,
}

/// An allocation on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Why.
    pub reason: StopReason,
    /// When the notice was given.
    pub since_ms: u64,
    /// When SIGKILL comes.
    pub deadline_ms: u64,
    /// Milliseconds of the notice before SIGTERM.
    pub withdraw_ms: u64,
}

/// GPUs given to one owner.
///
/// A gang's GPUs come back together when its last task has ended, so that a
/// requeued gang finds its nodes; those of a lost node come back at its margin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// Its id.
    pub id: AllocationId,
    /// Whose.
    pub owner: Owner,
    /// Who pays.
    pub tenant: String,
    /// Fences it on the nodes.
    pub epoch: Epoch,
    /// When it was bound.
    pub bound_ms: u64,
    /// What each task claims.
    pub resources: Resources,
    /// From SIGTERM to SIGKILL, as promised when it was bound.
    pub notice_ms: u64,
    /// By rank.
    pub tasks: Vec<Task>,
    /// Reserved on the node of rank 0; 0: none was to be had.
    pub port: u16,
    /// Set once it is being taken back.
    pub stop: Option<Stop>,
}

impl Allocation {
    /// Whether any process of it may live.
    pub fn live(&self) -> bool {
        self.tasks.iter().any(|task| task.phase.live())
    }
}
