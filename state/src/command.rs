//! What can be asked of the state, and what comes back.

use rowen_topology::FabricRecord;
use serde::{Deserialize, Serialize};

use crate::{
    AllocationId, Epoch, FieldError, FillerId, FillerSpec, JobId, JobSpec, NodeId, PartReport,
    Plan, QueueSpec, ReplicaId, TaskPhase, Timing,
};

/// One entry of the log. Enums here are only ever appended to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unix time stamped by the leader; the only clock the state knows.
    pub at_ms: u64,
    /// Who asks: `operator`, `planner`, `liveness`, or `agent/NODE`.
    pub principal: String,
    /// Makes a retry happen once.
    pub request: Option<RequestId>,
    /// What is asked.
    pub command: Command,
}

/// A client's own number for a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    /// Chosen by the client, unique to it.
    pub client: String,
    /// From 1, rising by one a request.
    pub seq: u64,
}

/// What can be asked of the state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Moves the clock, and with it time limits.
    Tick,
    /// Replaces the fabric.
    SetFabric(FabricRecord),
    /// Adds a job.
    SubmitJob(JobSpec),
    /// Ends a job.
    CancelJob(JobId),
    /// Stops a gang with its notice and queues it again.
    RequeueJob(JobId),
    /// Adds a filler, or changes the one of that name.
    DeployFiller(FillerSpec),
    /// Ends a filler's instances.
    DrainFiller(FillerId),
    /// Likewise, and forgets it.
    RemoveFiller(FillerId),
    /// Nothing new goes on a node.
    CordonNode {
        /// Which.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// Cordon, and end what runs there.
    DrainNode {
        /// Which.
        node: NodeId,
        /// Why.
        reason: String,
    },
    /// Back in service.
    UndrainNode(NodeId),
    /// An agent has come.
    NodeUp(NodeReport),
    /// A node has not been heard for a while. Void if its agent has come again meanwhile.
    NodeSilent {
        /// Which.
        node: NodeId,
        /// [`crate::Node::came`] when the leader decided it.
        came: u64,
    },
    /// It has been silent past its margin: nothing of before can run there. Void likewise.
    NodeLost {
        /// Which.
        node: NodeId,
        /// [`crate::Node::came`] when the leader decided it.
        came: u64,
    },
    /// What agents saw of their tasks.
    Report(Vec<TaskReport>),
    /// What a planning cycle proposes.
    CommitPlan(Plan),
    /// A replica joins the group.
    AdmitReplica {
        /// Given for a member that was there before the state knew of replicas; else a new id is given.
        id: Option<ReplicaId>,
        /// Where the others reach it, host:port.
        addr: String,
    },
    /// A replica leaves the group for good.
    RemoveReplica(ReplicaId),
    /// The operator has seen with his own eyes that the node is off.
    ForgetNode(NodeId),
    /// Every replica of `asked` said that it reads this version: from here on the cluster writes it.
    RaiseVersion {
        /// The one after the cluster's.
        to: u32,
        /// Who was asked; void if somebody has joined meanwhile.
        asked: Vec<ReplicaId>,
    },
    /// Every replica goes by this timing.
    SetTiming {
        /// From here on.
        timing: Timing,
        /// The widest that replicas may have granted by their configuration, when the state gets
        /// its first.
        granted: Option<Timing>,
    },
    /// No lease is left that was granted under a timing before the one set at index `since`.
    SettleTiming {
        /// [`crate::InForce::since`].
        since: u64,
    },
    /// Parts of the fabric have become faulty, or better.
    SetHealth(Vec<PartReport>),
    /// Adds a queue, or changes the one of that name.
    SetQueue(QueueSpec),
    /// Forgets the queue of that name.
    RemoveQueue(String),
}

impl Command {
    /// The first cluster version in which this may be asked, fields and all: in an older one some
    /// replica could not read it.
    pub fn since(&self) -> u32 {
        match self {
            // Whoever is asked to rise to a version has said that it reads it.
            Command::RaiseVersion { to, .. } => to.saturating_sub(1),
            Command::SetTiming { .. }
            | Command::SettleTiming { .. }
            | Command::SetHealth(_)
            | Command::SetQueue(_)
            | Command::RemoveQueue(_) => 2,
            Command::SubmitJob(spec) if !spec.shape.is_plain() => 2,
            Command::CommitPlan(plan) => {
                plan.decisions.iter().map(crate::Decision::since).max().unwrap_or(1)
            }
            _ => 1,
        }
    }
}

/// What an agent says when it comes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Which node.
    pub node: NodeId,
    /// Of the machine.
    pub boot_id: String,
    /// Where other nodes reach its tasks.
    pub addr: String,
    /// Reserved for rendezvous.
    pub ports: Vec<u16>,
    /// GPUs found and healthy.
    pub healthy: crate::GpuMask,
    /// Its GPUs are simulated.
    pub simulated: bool,
    /// Of the agent.
    pub version: String,
    /// Names the folder in which the agent keeps its tasks: one that comes with another folder
    /// cannot know what the first one runs. Empty: not said.
    pub folder: String,
    /// When it was said, on the machine's boot clock; of one boot an older word is void. 0: not said.
    pub said_ms: u64,
    /// Every task it knows of.
    pub tasks: Vec<TaskReport>,
}

/// What an agent saw of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskReport {
    /// Who says so.
    pub node: NodeId,
    /// Of which allocation.
    pub allocation: AllocationId,
    /// Which task.
    pub rank: u32,
    /// Of the allocation as the agent knows it; another one is dropped.
    pub epoch: Epoch,
    /// How far it is.
    pub phase: TaskPhase,
    /// Where an instance serves.
    pub port: u16,
    /// Of its end.
    pub message: String,
}

/// What apply gives back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// For the proposer.
    pub answer: Option<Result<Reply, Refusal>>,
    /// For the archive of every replica.
    pub records: Vec<Record>,
    /// For the leader alone; each can be derived again from state.
    pub effects: Vec<Effect>,
    /// Something changed that a plan could use.
    pub replan: bool,
}

/// The answer to a command that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// The job's id.
    Job(JobId),
    /// The filler's id.
    Filler(FillerId),
    /// How many decisions of a plan were carried out, and how many no longer fitted.
    Planned {
        /// Carried out.
        accepted: u32,
        /// No longer fitted.
        rejected: u32,
    },
    /// The replica's id.
    Replica(ReplicaId),
}

/// Why a command was refused; nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What kind.
    pub code: Code,
    /// One sentence for people.
    pub message: String,
}

impl Refusal {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Refusal { code, message: message.into() }
    }
}

impl From<FieldError> for Refusal {
    fn from(error: FieldError) -> Self {
        Refusal::new(Code::Invalid, error.to_string())
    }
}

/// Kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Code {
    /// A value cannot be accepted.
    Invalid,
    /// There is no such thing.
    NotFound,
    /// Not in the state it is in.
    Conflict,
    /// A bound is reached.
    Exhausted,
    /// The request is too old to be known; it was not carried out now.
    Expired,
}

/// A line of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Sorts by kind, id and index.
    pub key: Vec<u8>,
    /// A [`crate::codec::Kind::Archive`] record.
    pub value: Vec<u8>,
}

/// What the leader has to do about a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// Send the node its whole desired state.
    Push(NodeId),
}
