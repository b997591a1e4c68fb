//! A world for tests: a drawn fabric, and a state to which only real commands are applied.

use rowen_placement::plan;
use rowen_state::{
    Allocation, AllocationId, Cluster, Command, Decision, Entry, FillerId, FillerSpec, GpuMask,
    JobId, JobSpec, NodeId, NodeReport, Owner, Place, Plan, Reply, Resources, TaskPhase,
    TaskReport,
};
use rowen_topology::{Level, NodePos, drawing};

use crate::validator;

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    index: u64,
    pub(crate) now_ms: u64,
}

impl World {
    /// The drawn fabric, every node up.
    pub(crate) fn new(text: &str) -> World {
        let mut world = World { cluster: Cluster::newest(), index: 0, now_ms: 1_000_000 };
        world.apply(Command::SetFabric(drawing::parse(text).unwrap()));
        let nodes: Vec<NodeId> = world.cluster.nodes().iter().map(|(id, _)| id).collect();
        for node in nodes {
            world.node_up(node, GpuMask::first(64));
        }
        world
    }

    pub(crate) fn apply(&mut self, command: Command) -> Reply {
        self.try_apply(command).unwrap()
    }

    pub(crate) fn try_apply(&mut self, command: Command) -> Result<Reply, String> {
        self.index += 1;
        let entry =
            Entry { at_ms: self.now_ms, principal: "operator".into(), request: None, command };
        let outcome = self.cluster.apply(self.index, &entry);
        outcome.answer.unwrap().map_err(|refusal| refusal.to_string())
    }

    pub(crate) fn node_up(&mut self, node: NodeId, healthy: GpuMask) {
        let tasks = self.task_reports(|allocation, rank| {
            (allocation.tasks[rank].node == node).then_some(allocation.tasks[rank].phase)
        });
        self.apply(Command::NodeUp(NodeReport {
            node,
            boot_id: "boot".into(),
            addr: "127.0.0.1".into(),
            ports: vec![29_500, 29_501],
            healthy,
            simulated: true,
            version: "test".into(),
            folder: String::new(),
            said_ms: 0,
            tasks,
        }));
    }

    pub(crate) fn submit(&mut self, spec: JobSpec) -> JobId {
        match self.apply(Command::SubmitJob(spec)) {
            Reply::Job(id) => id,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn deploy(&mut self, spec: FillerSpec) -> FillerId {
        match self.apply(Command::DeployFiller(spec)) {
            Reply::Filler(id) => id,
            other => panic!("{other:?}"),
        }
    }

    /// A node, and when its agent came last.
    pub(crate) fn came(&self, name: &str) -> (NodeId, u64) {
        let node = self.cluster.node_named(name).unwrap();
        (node.id, node.came)
    }

    pub(crate) fn node(&self, name: &str) -> NodeId {
        self.cluster.node_named(name).unwrap().id
    }

    /// One planning cycle, committed. Every decision must be carried out.
    pub(crate) fn cycle(&mut self) -> Plan {
        let plan = plan(&self.cluster);
        assert_eq!(plan.based_on, self.cluster.applied());
        validator::check(&self.cluster, &plan);
        let reply = self.apply(Command::CommitPlan(plan.clone()));
        let accepted = plan.decisions.len() as u32;
        assert_eq!(reply, Reply::Planned { accepted, rejected: 0 }, "{plan:#?}");
        assert_eq!(self.cluster.verify(), []);
        plan
    }

    /// Cycles until nothing is left to decide.
    pub(crate) fn settle(&mut self) {
        for _ in 0..8 {
            if self.cycle().decisions.is_empty() {
                return;
            }
        }
        panic!("plans do not converge: {:#?}", plan(&self.cluster));
    }

    /// Agents bring up what should run and end what should stop.
    pub(crate) fn agents(&mut self) {
        let reports = self.task_reports(|allocation, rank| {
            let phase = allocation.tasks[rank].phase;
            match allocation.stop {
                _ if !phase.live() => None,
                Some(_) => Some(TaskPhase::Exited { code: 143 }),
                None => Some(TaskPhase::Ready),
            }
        });
        self.apply(Command::Report(reports));
    }

    /// Every task of a job ends by itself.
    pub(crate) fn finish(&mut self, job: JobId, code: i32) {
        let Some(id) = self.cluster.jobs().get(job).unwrap().allocation else { return };
        let reports = self.task_reports(|allocation, rank| {
            (allocation.id == id && allocation.tasks[rank].phase.live())
                .then_some(TaskPhase::Exited { code })
        });
        self.apply(Command::Report(reports));
    }

    pub(crate) fn task_reports(
        &self,
        phase: impl Fn(&Allocation, usize) -> Option<TaskPhase>,
    ) -> Vec<TaskReport> {
        let mut reports = Vec::new();
        for allocation in self.cluster.allocations().values() {
            for (rank, task) in allocation.tasks.iter().enumerate() {
                if let Some(phase) = phase(allocation, rank) {
                    reports.push(TaskReport {
                        node: task.node,
                        allocation: allocation.id,
                        rank: rank as u32,
                        epoch: allocation.epoch,
                        phase,
                        port: 0,
                        message: String::new(),
                    });
                }
            }
        }
        reports
    }

    pub(crate) fn picture(&self) -> String {
        picture(&self.cluster)
    }

    /// The plan that would be made now, a line a decision.
    pub(crate) fn plan(&self) -> String {
        lines(&self.cluster, &plan(&self.cluster))
    }
}

/// A line a node, a cell a GPU: `.` free, a filler's first letter (upper case: it has notice),
/// a job's last digit (`/`: it is stopping), `+` held and clear, `x` down.
pub(crate) fn picture(cluster: &Cluster) -> String {
    let mut text = String::new();
    for pos in (0..cluster.index().node_count()).map(NodePos) {
        let node = cluster.node_at(pos);
        text += &format!("{:<4}", node.name);
        for slot in &node.gpus {
            text.push(match slot.owner {
                Some(id) => cell(cluster, id),
                None if !node.schedulable() || !slot.healthy => 'x',
                None if slot.held.is_some() => '+',
                None => '.',
            });
        }
        text.push('\n');
    }
    text
}

fn cell(cluster: &Cluster, id: AllocationId) -> char {
    let allocation = cluster.allocations().get(id).unwrap();
    match allocation.owner {
        Owner::Gang { .. } if allocation.stop.is_some() => '/',
        Owner::Gang { job, .. } => char::from_digit((job.0 % 10) as u32, 10).unwrap(),
        Owner::Instance { filler, .. } => {
            let name = &cluster.fillers().get(filler).unwrap().spec.name;
            let cell = name.chars().next().unwrap();
            if allocation.stop.is_some() { cell.to_ascii_uppercase() } else { cell }
        }
    }
}

/// A plan, a line a decision.
pub(crate) fn lines(cluster: &Cluster, plan: &Plan) -> String {
    plan.decisions.iter().map(|decision| line(cluster, decision) + "\n").collect()
}

fn line(cluster: &Cluster, decision: &Decision) -> String {
    let name = |id| &cluster.nodes().get(id).unwrap().name;
    let on = |places: &[Place]| {
        let places = places.iter();
        let words = places.map(|place| format!("{}:{:?}", name(place.node), place.gpus));
        words.collect::<Vec<_>>().join(" ")
    };
    match decision {
        Decision::Start { job, places, why } => format!("start {job} on {} ({why})", on(places)),
        Decision::Hold { job, places, victims, why } => {
            let victims: Vec<u64> = victims.iter().map(|id| id.0).collect();
            format!("hold {job} on {}, evicting {victims:?} ({why})", on(places))
        }
        Decision::Grow { job, places, victims, why } => {
            let victims: Vec<u64> = victims.iter().map(|id| id.0).collect();
            format!("grow {job} on {}, evicting {victims:?} ({why})", on(places))
        }
        Decision::StartInstance { filler, place } => {
            format!("instance of {filler} on {}", on(&[*place]))
        }
        Decision::Wait { job, reason } => format!("wait {job}: {reason}"),
        Decision::Unfilled { filler, reason } => format!("unfilled {filler}: {reason}"),
    }
}

/// A job of `workers` × `gpus`.
pub(crate) fn gang(workers: u32, gpus: u32, required: Option<Level>) -> JobSpec {
    JobSpec {
        name: "train".into(),
        tenant: "lab".into(),
        queue: "default".into(),
        priority: 0,
        workers,
        processes_per_worker: 1,
        resources: Resources { gpus, ..Resources::default() },
        required,
        preferred: None,
        command: vec!["true".into()],
        env: Default::default(),
        working_dir: String::new(),
        time_limit_ms: 0,
        notice_ms: 120_000,
        restarts: 0,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    }
}

/// A filler of up to `max` instances of `gpus`, at 1 dollar a GPU-hour.
pub(crate) fn filler(name: &str, gpus: u32, max: u32) -> FillerSpec {
    FillerSpec {
        name: name.into(),
        tenant: "lab".into(),
        model: "smol".into(),
        resources: Resources { gpus, ..Resources::default() },
        min_instances: 0,
        max_instances: max,
        value_micros: 1_000_000,
        warm_up_ms: 10_000,
        notice_ms: 5_000,
        withdraw_ms: 1_000,
        readiness: None,
        command: vec!["serve".into()],
        env: Default::default(),
        working_dir: String::new(),
    }
}
