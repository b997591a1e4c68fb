//! What an agent is sent and what it says.

use std::collections::BTreeMap;

use rowen_api::v1;
use rowen_state::{
    Allocation, Cluster, FieldError, GpuMask, NodeId, NodeReport, Owner, Probe, TaskPhase,
    TaskReport,
};

use super::{epoch_from_proto, epoch_to_proto, filler::stop_reason, ordinals, owner_to_proto};
use crate::core::desired_tasks;

/// A node's whole desired state. Remaining times are counted from `now_ms`.
pub fn desired(cluster: &Cluster, node: NodeId, term: u64, now_ms: u64) -> v1::Desired {
    let generation = cluster.nodes().get(node).map_or(0, |node| node.generation);
    let tasks = desired_tasks(cluster, node);
    v1::Desired {
        generation,
        term,
        tasks: tasks
            .into_iter()
            .map(|(allocation, rank)| task(cluster, allocation, rank, now_ms))
            .collect(),
    }
}

/// What a task runs: the part that a job and a filler share.
struct Program<'a> {
    queue: &'a str,
    command: &'a [String],
    env: &'a BTreeMap<String, String>,
    working_dir: &'a str,
    processes: u32,
    probe: Option<&'a Probe>,
}

fn program<'a>(cluster: &'a Cluster, allocation: &Allocation) -> Option<Program<'a>> {
    match allocation.owner {
        Owner::Gang { job, .. } => cluster.jobs().get(job).map(|job| Program {
            queue: &job.spec.queue,
            command: &job.spec.command,
            env: &job.spec.env,
            working_dir: &job.spec.working_dir,
            processes: job.spec.processes_per_worker,
            probe: None,
        }),
        Owner::Instance { filler, .. } => cluster.fillers().get(filler).map(|filler| Program {
            queue: "",
            command: &filler.spec.command,
            env: &filler.spec.env,
            working_dir: &filler.spec.working_dir,
            processes: 1,
            probe: filler.spec.readiness.as_ref(),
        }),
    }
}

fn task(cluster: &Cluster, allocation: &Allocation, rank: usize, now_ms: u64) -> v1::DesiredTask {
    let program = program(cluster, allocation).expect("an owner outlives its allocation");
    let probe = program.probe.cloned().unwrap_or_default();
    let gang = matches!(allocation.owner, Owner::Gang { .. });
    v1::DesiredTask {
        allocation: allocation.id.0,
        rank: rank as u32,
        epoch: Some(epoch_to_proto(allocation.epoch)),
        owner: Some(owner_to_proto(cluster, allocation)),
        tenant: allocation.tenant.clone(),
        queue: program.queue.to_owned(),
        gpus: ordinals(allocation.tasks[rank].gpus),
        command: program.command.to_vec(),
        env: program.env.clone(),
        working_dir: program.working_dir.to_owned(),
        workers: allocation.tasks.len() as u32,
        processes_per_worker: program.processes,
        rendezvous: gang.then(|| rendezvous(cluster, allocation)),
        notice_ms: allocation.notice_ms,
        stop: allocation.stop.map(|stop| v1::Stop {
            remaining_ms: stop.deadline_ms.saturating_sub(now_ms),
            withdraw_ms: (stop.since_ms + stop.withdraw_ms).saturating_sub(now_ms),
            deadline_ms: stop.deadline_ms,
            reason: stop_reason(stop.reason),
        }),
        has_probe: program.probe.is_some(),
        probe_path: probe.http_path,
        probe_port: probe.port.into(),
        probe_period_ms: probe.period_ms,
        probe_exec: probe.exec,
        cpus: allocation.resources.cpus,
        memory_mib: allocation.resources.memory_mib,
        hints: hints(cluster, allocation),
    }
}

fn rendezvous(cluster: &Cluster, allocation: &Allocation) -> v1::Rendezvous {
    let nodes: Vec<_> =
        allocation.tasks.iter().filter_map(|task| cluster.nodes().get(task.node)).collect();
    v1::Rendezvous {
        hosts: nodes.iter().map(|node| node.addr.clone()).collect(),
        port: allocation.port.into(),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
    }
}

/// What NCCL can be told from the fabric: a rail-wired gang across nodes should keep
/// each ring on its rail (NCCL_CROSS_NIC=0, NCCL's environment documentation).
fn hints(cluster: &Cluster, allocation: &Allocation) -> BTreeMap<String, String> {
    let mut hints = BTreeMap::new();
    let several = allocation.tasks.iter().any(|task| task.node != allocation.tasks[0].node);
    let railed = allocation.tasks.iter().all(|task| {
        cluster.pos_of(task.node).is_some_and(|pos| {
            cluster.fabric().nodes[cluster.index().node_record(pos)].leafs.len() > 1
        })
    });
    if several && railed {
        hints.insert("NCCL_CROSS_NIC".into(), "0".into());
    }
    hints
}

/// What a new agent says of its node.
pub fn node_report(node: NodeId, hello: &v1::Hello) -> Result<NodeReport, FieldError> {
    check_limits(hello)?;
    let ports = hello.ports.iter().map(|port| {
        u16::try_from(*port)
            .map_err(|_| FieldError::new("ports", format!("{port} is no port"), "send 1 to 65535"))
    });
    let healthy = hello.gpus.iter().filter(|gpu| gpu.healthy && gpu.ordinal < 64);
    Ok(NodeReport {
        node,
        boot_id: hello.boot_id.clone(),
        addr: hello.addr.clone(),
        ports: ports.collect::<Result<_, _>>()?,
        healthy: healthy.map(|gpu| gpu.ordinal).collect::<GpuMask>(),
        simulated: hello.simulated,
        version: hello.version.clone(),
        folder: hello.folder.clone(),
        said_ms: hello.said_ms,
        tasks: hello.running.iter().map(|task| task_report(node, task)).collect(),
    })
}

/// What goes into the state is bounded, whoever the agent is.
fn check_limits(hello: &v1::Hello) -> Result<(), FieldError> {
    let text = |field, text: &str, min, max| {
        let bytes = text.len();
        let fits = (min..=max).contains(&bytes);
        let error =
            || FieldError::new(field, format!("has {bytes} bytes"), format!("send {min} to {max}"));
        fits.then_some(()).ok_or_else(error)
    };
    let count = |field, count: usize, max| {
        let error =
            || FieldError::new(field, format!("are {count}"), format!("send at most {max}"));
        (count <= max).then_some(()).ok_or_else(error)
    };
    text("boot_id", &hello.boot_id, 1, 64)?;
    text("addr", &hello.addr, 0, 255)?;
    text("version", &hello.version, 0, 64)?;
    text("folder", &hello.folder, 0, 128)?;
    count("gpus", hello.gpus.len(), 1_024)?;
    count("ports", hello.ports.len(), 1_024)?;
    count("running", hello.running.len(), 65_536)
}

/// What an agent saw of a task. An unknown phase says nothing, as `Bound` does.
pub fn task_report(node: NodeId, report: &v1::TaskReport) -> TaskReport {
    TaskReport {
        node,
        allocation: rowen_state::AllocationId(report.allocation),
        rank: report.rank,
        epoch: epoch_from_proto(report.epoch),
        phase: match report.phase() {
            v1::TaskPhase::Unspecified => TaskPhase::Bound,
            v1::TaskPhase::Running => TaskPhase::Running,
            v1::TaskPhase::Ready => TaskPhase::Ready,
            v1::TaskPhase::Lost => TaskPhase::Lost,
            v1::TaskPhase::Exited => TaskPhase::Exited { code: report.exit_code },
        },
        port: u16::try_from(report.port).unwrap_or(0),
        message: report.message.chars().take(500).collect(),
    }
}
