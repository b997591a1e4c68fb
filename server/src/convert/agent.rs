//! What an agent is sent and what it says.

use std::collections::BTreeMap;

use rowen_api::v1;
use rowen_state::{
    Allocation, AllocationId, Cluster, FieldError, GpuMask, Group, NodeId, NodeReport, Owner,
    Probe, TaskPhase, TaskReport,
};

use super::{epoch_from_proto, epoch_to_proto, filler::stop_reason, ordinals, owner_to_proto};
use crate::core::desired_tasks;

/// The desired states of several nodes, from one view. What the nodes of a gang share is worked
/// out once for all of them: a gang has as many nodes to push to as it has hosts to name.
pub struct Wishes<'a> {
    cluster: &'a Cluster,
    term: u64,
    now_ms: u64,
    gangs: BTreeMap<AllocationId, Gang>,
}

/// What is the same for all workers of a gang.
struct Gang {
    rendezvous: v1::Rendezvous,
    hints: BTreeMap<String, String>,
}

impl<'a> Wishes<'a> {
    /// None yet. Remaining times are counted from `now_ms`.
    pub fn new(cluster: &'a Cluster, term: u64, now_ms: u64) -> Self {
        Wishes { cluster, term, now_ms, gangs: BTreeMap::new() }
    }

    /// A node's whole desired state.
    pub fn of(&mut self, node: NodeId) -> v1::Desired {
        let generation = self.cluster.nodes().get(node).map_or(0, |node| node.generation);
        let tasks = desired_tasks(self.cluster, node).into_iter();
        v1::Desired {
            generation,
            term: self.term,
            tasks: tasks.map(|(allocation, rank)| self.task(allocation, rank)).collect(),
        }
    }

    fn task(&mut self, allocation: &Allocation, rank: usize) -> v1::DesiredTask {
        let mut task = task(self.cluster, allocation, rank, self.now_ms);
        if matches!(allocation.owner, Owner::Gang { .. }) {
            let gang = self.gangs.entry(allocation.id).or_insert_with(|| Gang {
                rendezvous: rendezvous(self.cluster, allocation),
                hints: hints(self.cluster, allocation),
            });
            task.rendezvous = Some(gang.rendezvous.clone());
            task.hints.clone_from(&gang.hints);
        }
        task
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
        rendezvous: None, // of gangs: see Wishes
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
        hints: BTreeMap::new(),
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
/// each ring on its rail (NCCL_CROSS_NIC=0, NCCL's environment documentation). And the groups that
/// its ranks stand in, outer to inner: `block:8,nvlink:2`, workers of each.
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
    if let Owner::Gang { job, .. } = allocation.owner
        && let Some(job) = cluster.jobs().get(job)
        && !job.spec.shape.groups.is_empty()
    {
        let group = |group: &Group| format!("{}:{}", group.level, group.workers);
        let groups: Vec<String> = job.spec.shape.groups.iter().map(group).collect();
        hints.insert("ROWEN_GROUPS".into(), groups.join(","));
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

#[cfg(test)]
mod tests {
    use rowen_state::{Command, Entry};

    use super::*;
    use crate::core::Core;

    fn apply(core: &mut Core, command: Command) {
        let entry = Entry { at_ms: 1_000, principal: "test".into(), request: None, command };
        let index = core.cluster().applied() + 1;
        core.apply_entry(index, &entry).answer.expect("the command is right");
    }

    /// Two gangs over all four nodes, whose agents have come.
    fn two_gangs() -> Core {
        let mut core = Core::default();
        let fabric = rowen_topology::drawing::parse("block a: n[1-4] x2");
        apply(&mut core, Command::SetFabric(fabric.expect("it is a drawing")));
        for node in 1..=4 {
            let gpu = |ordinal| v1::Gpu { ordinal, healthy: true, ..Default::default() };
            let hello = v1::Hello {
                boot_id: "boot".into(),
                addr: format!("10.0.0.{node}"),
                gpus: (0..2).map(gpu).collect(),
                ..Default::default()
            };
            let report = node_report(NodeId(node), &hello).expect("a hello");
            apply(&mut core, Command::NodeUp(report));
        }
        for name in ["one", "two"] {
            let spec = v1::JobSpec {
                name: name.into(),
                workers: 4,
                resources: Some(v1::Resources { gpus: 1, ..Default::default() }),
                command: vec!["true".into()],
                ..Default::default()
            };
            let spec = super::super::job_spec_from_proto(spec).expect("a job");
            apply(&mut core, Command::SubmitJob(spec));
        }
        let plan = Core::plan(core.cluster()).expect("they fit");
        apply(&mut core, plan);
        core
    }

    #[test]
    fn nodes_that_are_told_together_are_told_what_each_would_be_told_alone() {
        let core = two_gangs();
        let nodes: Vec<NodeId> = core.cluster().nodes().iter().map(|(id, _)| id).collect();
        let mut together = Wishes::new(core.cluster(), 7, 2_000);
        let mut tasks = 0;
        for node in nodes {
            let desired = together.of(node);
            assert_eq!(desired, Wishes::new(core.cluster(), 7, 2_000).of(node));
            for task in &desired.tasks {
                tasks += 1;
                let rendezvous = task.rendezvous.as_ref().expect("of a gang");
                assert_eq!((rendezvous.hosts.len(), rendezvous.nodes.len()), (4, 4));
                let own = &core.cluster().nodes().get(node).expect("listed").addr;
                assert_eq!(&rendezvous.hosts[task.rank as usize], own, "its own place is by rank");
            }
        }
        assert_eq!(tasks, 8, "two gangs of four");
    }
}
