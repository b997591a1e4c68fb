//! What travels in a world: messages between agents and leader, proposals, events.

use rowen_agent::core::TaskKey;
use rowen_state::{Command, GpuMask, Owner, RequestId, TaskReport};

/// A machine of the world, by its place in the fabric.
pub(crate) type MachineAt = usize;

/// From an agent.
#[derive(Clone, Debug)]
pub(crate) enum ToLeader {
    Hello { term: u64, boot: u32, healthy: GpuMask, tasks: Vec<TaskReport> },
    Heartbeat { seq: u64, generation: u64 },
    Report { seq: u64, tasks: Vec<TaskReport> },
}

/// To an agent.
#[derive(Clone, Debug)]
pub(crate) enum ToAgent {
    Welcome { term: u64 },
    HeartbeatAck { seq: u64, term: u64 },
    ReportAck { seq: u64 },
    Desired { generation: u64, term: u64, tasks: Vec<DesiredTask> },
}

/// A task as the leader wants it.
#[derive(Clone, Debug)]
pub(crate) struct DesiredTask {
    pub(crate) key: TaskKey,
    pub(crate) owner: Owner,
    pub(crate) gpus: GpuMask,
    pub(crate) notice_ms: u64,
    /// Milliseconds to SIGTERM and to SIGKILL, from the moment it was sent.
    pub(crate) stop: Option<(u64, u64)>,
}

/// A task was sent SIGKILL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Killed {
    pub(crate) machine: MachineAt,
    pub(crate) key: TaskKey,
    /// It had its whole notice since its machine heard of its end, or since its lease was over.
    pub(crate) had_notice: bool,
}

/// Something on its way into the log.
#[derive(Clone, Debug)]
pub(crate) struct Proposal {
    pub(crate) at_ms: u64,
    pub(crate) principal: String,
    pub(crate) request: Option<RequestId>,
    pub(crate) command: Command,
    pub(crate) then: Then,
    pub(crate) fate: Fate,
}

/// What becomes of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Committed,
    /// In the log, but whoever proposed it never hears so.
    Unanswered,
    Lost,
}

/// Who waits for a proposal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Then {
    Nothing,
    Opened { machine: MachineAt, session: u64 },
    Reported { machine: MachineAt, session: u64, seq: u64 },
    Answered { operation: usize },
    Planned,
}

/// What happens in a world. A `life` counts an agent's starts, so that a timer
/// of an agent that died finds nobody.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    // Machines
    PowerOn {
        machine: MachineAt,
    },
    StartAgent {
        machine: MachineAt,
    },
    /// The agent dies just when one of its tasks has ended.
    Crash {
        machine: MachineAt,
    },
    Connect {
        machine: MachineAt,
        life: u64,
    },
    Turn {
        machine: MachineAt,
        life: u64,
    },
    Shim {
        machine: MachineAt,
        key: TaskKey,
    },
    News {
        machine: MachineAt,
        life: u64,
        key: TaskKey,
    },
    // Network
    Up {
        machine: MachineAt,
        session: u64,
        message: ToLeader,
    },
    Down {
        machine: MachineAt,
        session: u64,
        message: ToAgent,
    },
    Hangup {
        machine: MachineAt,
        session: u64,
    },
    Mend {
        machine: MachineAt,
    },
    // Control plane
    Propose {
        term: u64,
        proposal: Box<Proposal>,
    },
    Commit,
    Renewed {
        machine: MachineAt,
        session: u64,
        term: u64,
        seq: u64,
        generation: u64,
    },
    Beat {
        term: u64,
    },
    Elected,
    // The world outside
    Operate,
    Retry {
        operation: usize,
    },
    Fault,
    Heal,
}
