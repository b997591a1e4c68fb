//! What travels in a world: messages between agents and replicas, and events.

use rowen_agent::core::TaskKey;
use rowen_state::{GpuMask, Owner, Part, TaskReport};

use crate::{clients::Told, logs::Writer, net::Host, watches::Shown};

/// A machine of the world, by its place in the fabric.
pub(crate) type MachineAt = usize;

/// A replica of the world, by when it was set up.
pub(crate) type ReplicaAt = usize;

/// From an agent.
#[derive(Clone, Debug)]
pub(crate) enum ToLeader {
    Hello {
        term: u64,
        boot: u32,
        said_ms: u64,
        healthy: GpuMask,
        tasks: Vec<TaskReport>,
    },
    Heartbeat {
        seq: u64,
        generation: u64,
    },
    Report {
        seq: u64,
        tasks: Vec<TaskReport>,
    },
    /// The GPUs that are not fit, as it is now.
    GpuHealth {
        sick: GpuMask,
    },
    Log {
        read: u64,
        data: String,
        end: bool,
        error: String,
    },
}

/// To an agent.
#[derive(Clone, Debug)]
pub(crate) enum ToAgent {
    Welcome {
        term: u64,
        node_lease_ms: u64,
        heartbeat_ms: u64,
    },
    HeartbeatAck {
        seq: u64,
        term: u64,
    },
    ReportAck {
        seq: u64,
    },
    Desired {
        generation: u64,
        term: u64,
        tasks: Vec<DesiredTask>,
    },
    /// Go there, or, where that is empty, anywhere; not before so many milliseconds.
    Refused {
        leader: String,
        retry_after_ms: u64,
    },
    ReadLog {
        read: u64,
        writer: Writer,
        follow: bool,
    },
    StopLog {
        read: u64,
    },
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

/// What happens in a world. A `life` counts the starts of an agent or a replica, so that what was
/// meant for one that died finds nobody.
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
    /// A link that flapped is up again.
    LinkUp {
        part: Part,
    },
    /// A GPU that was sick is well again.
    Repaired {
        machine: MachineAt,
    },
    // Between agents and replicas
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
    /// The way is open again, perhaps: what a stream still holds goes on it, in its order.
    Flush {
        session: u64,
    },
    /// An agent that dies as soon as it has come.
    Loop {
        machine: MachineAt,
        left: u32,
    },
    Hangup {
        machine: MachineAt,
        session: u64,
    },
    /// The replica notices that the agent's stream is gone.
    Closed {
        session: u64,
    },
    Mend {
        machine: MachineAt,
    },
    // Replicas
    StartReplica {
        replica: ReplicaAt,
    },
    /// One that was told to die in the middle of a write, and has not written since, dies now.
    KillReplica {
        replica: ReplicaAt,
        life: u64,
        power_cut: bool,
    },
    Thaw {
        replica: ReplicaAt,
        life: u64,
    },
    MendDisk {
        replica: ReplicaAt,
    },
    /// Somebody takes a backup; later all goes back to it.
    BackUp,
    Restore,
    /// A replica gets the newer build.
    Upgrade {
        replica: ReplicaAt,
    },
    Uncut {
        from: Host,
        to: Host,
    },
    Unsplit {
        number: u64,
    },
    /// The operator looks after the group.
    Tend,
    // The world outside
    Operate,
    Ask {
        operation: usize,
        replica: ReplicaAt,
    },
    Told {
        operation: usize,
        replica: ReplicaAt,
        told: Told,
    },
    Retry {
        operation: usize,
    },
    /// A client opens its watch of a job.
    Watch {
        watch: usize,
    },
    WatchAsked {
        watch: usize,
        replica: ReplicaAt,
    },
    Shown {
        watch: usize,
        stream: u64,
        shown: Shown,
    },
    WatchBroke {
        watch: usize,
        stream: u64,
    },
    /// A client reads the log of an attempt.
    ReadLog {
        reader: usize,
    },
    /// What lasts is looked at: streams, archives.
    LookAround,
    Fault,
    Heal,
}
