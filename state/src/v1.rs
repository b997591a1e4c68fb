//! What version 1 of the cluster writes: the shapes of the first release, frozen, and the way from
//! each to what this build works with. Nothing here is ever changed. A struct that grows leaves a
//! copy of its old self here (CONTRIBUTING.md, "Add or change a record's schema").

use std::{collections::BTreeMap, sync::Arc};

use rowen_topology::{FabricRecord, Level};
use serde::{Deserialize, Serialize};

use crate::{
    Allocation, AllocationId, Command, Entry, Filler, FillerId, FillerSpec, Hold, Job, JobId,
    JobSpec, JobState, Node, NodeId, NodeReport, Plan, Replica, ReplicaId, RequestId, Resources,
    Shape, StopReason, Task, TaskReport, cluster::Meta, ledger::UsageKey, requests::Client,
    snapshot::Snapshot,
};

#[derive(Serialize, Deserialize)]
pub(crate) struct EntryV1 {
    at_ms: u64,
    principal: String,
    request: Option<RequestId>,
    command: CommandV1,
}

#[derive(Serialize, Deserialize)]
enum CommandV1 {
    Tick,
    SetFabric(FabricRecord),
    SubmitJob(JobSpecV1),
    CancelJob(JobId),
    RequeueJob(JobId),
    DeployFiller(FillerSpec),
    DrainFiller(FillerId),
    RemoveFiller(FillerId),
    CordonNode { node: NodeId, reason: String },
    DrainNode { node: NodeId, reason: String },
    UndrainNode(NodeId),
    NodeUp(NodeReport),
    NodeSilent { node: NodeId, came: u64 },
    NodeLost { node: NodeId, came: u64 },
    Report(Vec<TaskReport>),
    CommitPlan(Plan),
    AdmitReplica { id: Option<ReplicaId>, addr: String },
    RemoveReplica(ReplicaId),
    ForgetNode(NodeId),
}

#[derive(Serialize, Deserialize)]
pub(crate) struct MetaV1 {
    incarnation: u64,
    applied: u64,
    now_ms: u64,
    version: u32,
    evictions: u64,
    retired_ms: [u64; 4],
    archive_digest: u128,
    last_job: u64,
    last_filler: u64,
    last_allocation: u64,
    last_node: u32,
    last_replica: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct JobSpecV1 {
    name: String,
    tenant: String,
    queue: String,
    priority: u32,
    workers: u32,
    processes_per_worker: u32,
    resources: Resources,
    required: Option<Level>,
    preferred: Option<Level>,
    command: Vec<String>,
    env: BTreeMap<String, String>,
    working_dir: String,
    time_limit_ms: u64,
    notice_ms: u64,
    restarts: u32,
    checkpoint_interval_ms: u64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct JobV1 {
    id: JobId,
    spec: JobSpecV1,
    state: JobState,
    reason: String,
    reason_index: u64,
    attempt: u32,
    failures: u32,
    allocation: Option<AllocationId>,
    hold: Option<Hold>,
    stopping: Option<StopReason>,
    submitted_ms: u64,
    held_ms: u64,
    bound_ms: u64,
    running_ms: u64,
    ended_ms: u64,
    exit_code: i32,
    gpu_ms: u64,
    last_tasks: Vec<Task>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct SnapshotV1 {
    state_hash: u128,
    meta: MetaV1,
    fabric: FabricRecord,
    nodes: Vec<Node>,
    jobs: Vec<JobV1>,
    fillers: Vec<Filler>,
    allocations: Vec<Allocation>,
    replicas: Vec<Replica>,
    usage: Vec<(UsageKey, u64)>,
    requests: (u128, Vec<(String, Client)>),
}

impl EntryV1 {
    /// `None`: version 1 has no word for it.
    pub(crate) fn of(new: Entry) -> Option<EntryV1> {
        let Entry { at_ms, principal, request, command } = new;
        Some(EntryV1 { at_ms, principal, request, command: CommandV1::of(command)? })
    }
}

impl From<EntryV1> for Entry {
    fn from(old: EntryV1) -> Entry {
        let EntryV1 { at_ms, principal, request, command } = old;
        Entry { at_ms, principal, request, command: command.into() }
    }
}

impl CommandV1 {
    fn of(command: Command) -> Option<CommandV1> {
        Some(match command {
            Command::Tick => CommandV1::Tick,
            Command::SetFabric(fabric) => CommandV1::SetFabric(fabric),
            Command::SubmitJob(spec) => CommandV1::SubmitJob(JobSpecV1::of(spec)?),
            Command::CancelJob(id) => CommandV1::CancelJob(id),
            Command::RequeueJob(id) => CommandV1::RequeueJob(id),
            Command::DeployFiller(spec) => CommandV1::DeployFiller(spec),
            Command::DrainFiller(id) => CommandV1::DrainFiller(id),
            Command::RemoveFiller(id) => CommandV1::RemoveFiller(id),
            Command::CordonNode { node, reason } => CommandV1::CordonNode { node, reason },
            Command::DrainNode { node, reason } => CommandV1::DrainNode { node, reason },
            Command::UndrainNode(node) => CommandV1::UndrainNode(node),
            Command::NodeUp(report) => CommandV1::NodeUp(report),
            Command::NodeSilent { node, came } => CommandV1::NodeSilent { node, came },
            Command::NodeLost { node, came } => CommandV1::NodeLost { node, came },
            Command::Report(reports) => CommandV1::Report(reports),
            Command::CommitPlan(plan) if plan.decisions.iter().all(|one| one.since() == 1) => {
                CommandV1::CommitPlan(plan)
            }
            Command::CommitPlan(_) => return None,
            Command::AdmitReplica { id, addr } => CommandV1::AdmitReplica { id, addr },
            Command::RemoveReplica(id) => CommandV1::RemoveReplica(id),
            Command::ForgetNode(node) => CommandV1::ForgetNode(node),
            Command::RaiseVersion { .. }
            | Command::SetTiming { .. }
            | Command::SettleTiming { .. }
            | Command::SetHealth(_)
            | Command::SetQueue(_)
            | Command::RemoveQueue(_) => return None,
        })
    }
}

impl From<CommandV1> for Command {
    fn from(old: CommandV1) -> Command {
        match old {
            CommandV1::Tick => Command::Tick,
            CommandV1::SetFabric(fabric) => Command::SetFabric(fabric),
            CommandV1::SubmitJob(spec) => Command::SubmitJob(spec.into()),
            CommandV1::CancelJob(id) => Command::CancelJob(id),
            CommandV1::RequeueJob(id) => Command::RequeueJob(id),
            CommandV1::DeployFiller(spec) => Command::DeployFiller(spec),
            CommandV1::DrainFiller(id) => Command::DrainFiller(id),
            CommandV1::RemoveFiller(id) => Command::RemoveFiller(id),
            CommandV1::CordonNode { node, reason } => Command::CordonNode { node, reason },
            CommandV1::DrainNode { node, reason } => Command::DrainNode { node, reason },
            CommandV1::UndrainNode(node) => Command::UndrainNode(node),
            CommandV1::NodeUp(report) => Command::NodeUp(report),
            CommandV1::NodeSilent { node, came } => Command::NodeSilent { node, came },
            CommandV1::NodeLost { node, came } => Command::NodeLost { node, came },
            CommandV1::Report(reports) => Command::Report(reports),
            CommandV1::CommitPlan(plan) => Command::CommitPlan(plan),
            CommandV1::AdmitReplica { id, addr } => Command::AdmitReplica { id, addr },
            CommandV1::RemoveReplica(id) => Command::RemoveReplica(id),
            CommandV1::ForgetNode(node) => Command::ForgetNode(node),
        }
    }
}

impl JobSpecV1 {
    /// `None`: version 1 has no word for what it asks.
    fn of(new: JobSpec) -> Option<JobSpecV1> {
        new.shape.is_plain().then(|| JobSpecV1::plain(new))
    }

    /// Of a spec that a cluster of version 1 took, so its shape is plain.
    fn plain(new: JobSpec) -> JobSpecV1 {
        JobSpecV1 {
            name: new.name,
            tenant: new.tenant,
            queue: new.queue,
            priority: new.priority,
            workers: new.workers,
            processes_per_worker: new.processes_per_worker,
            resources: new.resources,
            required: new.required,
            preferred: new.preferred,
            command: new.command,
            env: new.env,
            working_dir: new.working_dir,
            time_limit_ms: new.time_limit_ms,
            notice_ms: new.notice_ms,
            restarts: new.restarts,
            checkpoint_interval_ms: new.checkpoint_interval_ms,
        }
    }
}

impl From<JobSpecV1> for JobSpec {
    fn from(old: JobSpecV1) -> JobSpec {
        JobSpec {
            name: old.name,
            tenant: old.tenant,
            queue: old.queue,
            priority: old.priority,
            workers: old.workers,
            processes_per_worker: old.processes_per_worker,
            resources: old.resources,
            required: old.required,
            preferred: old.preferred,
            command: old.command,
            env: old.env,
            working_dir: old.working_dir,
            time_limit_ms: old.time_limit_ms,
            notice_ms: old.notice_ms,
            restarts: old.restarts,
            checkpoint_interval_ms: old.checkpoint_interval_ms,
            shape: Shape::default(),
        }
    }
}

impl JobV1 {
    pub(crate) fn of(new: Job) -> JobV1 {
        JobV1 {
            id: new.id,
            spec: JobSpecV1::plain(Arc::unwrap_or_clone(new.spec)),
            state: new.state,
            reason: new.reason,
            reason_index: new.reason_index,
            attempt: new.attempt,
            failures: new.failures,
            allocation: new.allocation,
            hold: new.hold,
            stopping: new.stopping,
            submitted_ms: new.submitted_ms,
            held_ms: new.held_ms,
            bound_ms: new.bound_ms,
            running_ms: new.running_ms,
            ended_ms: new.ended_ms,
            exit_code: new.exit_code,
            gpu_ms: new.gpu_ms,
            last_tasks: new.last_tasks,
        }
    }
}

impl From<JobV1> for Job {
    fn from(old: JobV1) -> Job {
        Job {
            id: old.id,
            spec: Arc::new(old.spec.into()),
            state: old.state,
            reason: old.reason,
            reason_index: old.reason_index,
            attempt: old.attempt,
            failures: old.failures,
            allocation: old.allocation,
            hold: old.hold,
            stopping: old.stopping,
            submitted_ms: old.submitted_ms,
            held_ms: old.held_ms,
            bound_ms: old.bound_ms,
            running_ms: old.running_ms,
            ended_ms: old.ended_ms,
            exit_code: old.exit_code,
            gpu_ms: old.gpu_ms,
            last_tasks: old.last_tasks,
            queued_ms: old.submitted_ms,
        }
    }
}

impl MetaV1 {
    pub(crate) fn of(meta: &Meta) -> MetaV1 {
        MetaV1 {
            incarnation: meta.incarnation,
            applied: meta.applied,
            now_ms: meta.now_ms,
            version: meta.version,
            evictions: meta.evictions,
            retired_ms: meta.retired_ms,
            archive_digest: meta.archive_digest,
            last_job: meta.last_job,
            last_filler: meta.last_filler,
            last_allocation: meta.last_allocation,
            last_node: meta.last_node,
            last_replica: meta.last_replica,
        }
    }
}

impl From<MetaV1> for Meta {
    fn from(old: MetaV1) -> Meta {
        Meta {
            incarnation: old.incarnation,
            applied: old.applied,
            now_ms: old.now_ms,
            version: old.version,
            evictions: old.evictions,
            retired_ms: old.retired_ms,
            archive_digest: old.archive_digest,
            last_job: old.last_job,
            last_filler: old.last_filler,
            last_allocation: old.last_allocation,
            last_node: old.last_node,
            last_replica: old.last_replica,
            timing: None,
            last_queue: 0,
        }
    }
}

impl SnapshotV1 {
    pub(crate) fn of(new: Snapshot) -> SnapshotV1 {
        SnapshotV1 {
            state_hash: new.state_hash,
            meta: MetaV1::of(&new.meta),
            fabric: new.fabric,
            nodes: new.nodes,
            jobs: new.jobs.into_iter().map(JobV1::of).collect(),
            fillers: new.fillers,
            allocations: new.allocations,
            replicas: new.replicas,
            usage: new.usage,
            requests: new.requests,
        }
    }
}

impl From<SnapshotV1> for Snapshot {
    fn from(old: SnapshotV1) -> Snapshot {
        Snapshot {
            state_hash: old.state_hash,
            meta: old.meta.into(),
            fabric: old.fabric,
            nodes: old.nodes,
            jobs: old.jobs.into_iter().map(Job::from).collect(),
            fillers: old.fillers,
            allocations: old.allocations,
            replicas: old.replicas,
            usage: old.usage,
            requests: old.requests,
            health: Vec::new(),
            queues: Vec::new(),
        }
    }
}
