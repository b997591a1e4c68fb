//! The checker is checked: every invariant has a planted fault that it must name.

use std::{collections::BTreeMap, sync::Arc};

use rowen_topology::{Impaired, NodePos, drawing};

use crate::{
    AllocationId, Class, Cluster, Command, Decision, Duty, Entry, Epoch, FillerId, FillerSpec,
    FillerState, GpuMask, Health, InForce, JobId, JobSpec, Liveness, NodeId, NodeReport, Part,
    Place, Plan, Queue, QueueId, QueueSpec, Quota, Reply, Resources, Seer, Stop, StopReason,
    TaskPhase, TaskReport, Timing, ledger::UsageKey,
};

type Fault = fn(&mut Cluster);

/// On [`scene`]: job 1 runs as allocation 1 on nodes 1 and 2, instance 2 serves on node 2,
/// instance 3 on node 3 ends for the hold of job 2, job 3 waits, job 4 was cancelled.
const FAULTS: &[(&str, Fault)] = &[
    ("one owner a GPU", |c| instance(c).tasks[0].gpus = GpuMask::first(2)),
    ("slots and allocations agree", |c| slot(c, 1, 0).owner = None),
    ("the meter follows the owner", |c| slot(c, 1, 0).meter.class = Class::Down),
    ("allocations lie on nodes", |c| gang(c).tasks[0].node = NodeId(99)),
    ("a live allocation has a live task", |c| {
        instance(c).tasks[0].phase = TaskPhase::Exited { code: 0 };
    }),
    ("epochs come from the log", |c| gang(c).epoch.index += 1_000),
    ("an allocation's owner knows it", |c| job(c, 1).allocation = Some(AllocationId(2))),
    ("an allocation's owner knows it", |c| drop(c.fillers.remove(FillerId(1)))),
    ("nothing runs on a lost node", |c| node(c, 1).liveness = Liveness::Lost),
    ("nothing runs on a lost node", |c| gang(c).tasks[1].released = true),
    ("an attempt has an allocation", |c| job(c, 1).allocation = None),
    ("an attempt has an allocation", |c| job(c, 1).allocation = Some(AllocationId(99))),
    ("stopping has a reason", |c| job(c, 1).stopping = Some(StopReason::Cancelled)),
    ("an attempt owns its allocation", |c| job(c, 1).attempt += 1),
    ("all or nothing", |c| drop(gang(c).tasks.pop())),
    ("a stopping gang has its notice", |c| {
        let reason = StopReason::Requeued;
        gang(c).stop = Some(Stop { reason, since_ms: 0, deadline_ms: 0, withdraw_ms: 0 });
    }),
    ("a gang runs when all its tasks came", |c| gang(c).tasks[1].phase = TaskPhase::Bound),
    ("ended has a time", |c| job(c, 4).ended_ms = 0),
    ("a hold belongs to a holding job", |c| job(c, 2).hold = None),
    ("holds lie on schedulable nodes", |c| node(c, 3).duty = Duty::Cordoned),
    ("one hold a GPU", |c| {
        let hold = job(c, 2).hold.as_mut().expect("it holds");
        hold.places.push(hold.places[0]);
    }),
    ("a hold waits for a victim", |c| {
        job(c, 2).hold.as_mut().expect("it holds").victims.clear();
    }),
    ("slots and holds agree", |c| slot(c, 3, 0).held = Some(JobId(3))),
    ("slots and holds agree", |c| slot(c, 1, 3).held = Some(JobId(2))),
    ("a filler lists its instances", |c| {
        c.fillers.get_mut(FillerId(1)).expect("deployed").instances.clear();
    }),
    ("a queue has what its gangs have", |c| {
        queue(c, "main", 0);
        c.queues.get_mut(QueueId(1)).expect("just set").used.clear();
    }),
    ("a queue keeps its limits", |c| {
        queue(c, "main", 0);
        c.queues.get_mut(QueueId(1)).expect("just set").over = false;
    }),
    ("queues have names of their own", |c| {
        queue(c, "lab", 99);
        c.derived.queues_by_name.clear();
    }),
    ("queues stand below others, not in rings", |c| {
        queue(c, "lab", 99);
        c.queues.get_mut(QueueId(1)).expect("just set").spec.parent = "lab".into();
    }),
    ("queues belong to version 2", |c| queue(c, "lab", 99)),
    ("a removed filler goes with its last instance", |c| {
        let mut gone = c.fillers.get(FillerId(1)).expect("deployed").clone();
        (gone.state, gone.id) = (FillerState::Removing, FillerId(2));
        gone.instances.clear();
        c.fillers.insert(FillerId(2), gone);
    }),
    ("allocations that stop are derived", |c| {
        c.derived.stopping.insert(AllocationId(1));
    }),
    ("ids are given out once", |c| c.meta.last_job = 3),
    ("ids are given out once", |c| c.meta.last_filler = 0),
    ("ids are given out once", |c| c.meta.last_allocation = 2),
    ("ids are given out once", |c| c.meta.last_node = 2),
    ("ids are given out once", |c| c.meta.last_replica = 0),
    ("the version is one that this build reads", |c| c.meta.version = 0),
    ("timing belongs to version 2", |c| c.meta.timing = Some(in_force())),
    ("the timing can be kept", |c| {
        let timing = Timing { kill_ms: 0, ..in_force().timing };
        c.meta.timing = Some(InForce { timing, ..in_force() });
    }),
    ("the timing comes from the log", |c| {
        c.meta.timing = Some(InForce { since: 1_000, ..in_force() });
    }),
    ("the version is one that this build reads", |c| c.meta.version = 99),
    ("allocated + idle + down = elapsed", |c| slot(c, 1, 7).meter.ms[0] += 1),
    ("meters and ledger agree", |c| gang(c).bound_ms -= 1),
    ("meters and ledger agree", |c| {
        let (tenant, gpu_model) = ("lab".to_owned(), "H100".to_owned());
        c.usage.insert(UsageKey { tenant, class: Class::Gang, gpu_model }, 1);
    }),
    ("a snapshot restores", |c| c.derived.usage_digest ^= 1),
    ("a snapshot restores", |c| c.derived.fabric_hash ^= 1),
    ("the flat index is derived", |c| c.derived.index.set_node(NodePos(0), 1, 0)),
    ("an exclusive node has one gang", |c| {
        Arc::make_mut(&mut job(c, 1).spec).shape.nodes.exclusive = true;
    }),
    ("gangs that grow are derived", |c| {
        c.derived.growing.insert(JobId(1));
    }),
    ("exclusive jobs are derived", |c| {
        c.derived.exclusive.insert(JobId(1));
    }),
    ("the queue is derived", |c| c.derived.queue = Default::default()),
    ("timed jobs are derived", |c| c.derived.timed = Default::default()),
    ("ended jobs are derived", |c| c.derived.ended = Default::default()),
    ("names of fillers and queues are derived", |c| c.derived.fillers_by_name = Default::default()),
    ("names and positions of nodes are derived", |c| {
        c.derived.by_name.remove("n1");
    }),
    ("names and positions of nodes are derived", |c| {
        c.derived.pos_of.insert(NodeId(1), NodePos(2));
    }),
    ("faulty parts are in the fabric", |c| fault(c, "n1", 0, 0)),
    ("faulty parts are in the fabric", |c| {
        c.meta.version = 2;
        fault(c, "gone", 0, 0);
    }),
    ("what counts of a part is the worst said", |c| fault(c, "n1", 600, 500)),
    ("a GPU is unfit where a fault says so", |c| {
        c.meta.version = 2;
        fault(c, "n1", 0, 1_000);
    }),
    ("a GPU is unfit where a fault says so", |c| {
        c.meta.version = 2;
        slot(c, 1, 0).healthy = false;
    }),
    ("nodes that faulty links slow down are derived", |c| {
        let slow = Impaired { pos: NodePos(0), left_milli: [500; 5] };
        c.derived.impaired = std::sync::Arc::new(vec![slow]);
    }),
];

fn fault(c: &mut Cluster, node: &str, left_milli: u16, said_milli: u16) {
    let health = Health {
        left_milli,
        said_milli,
        said_ms: 1,
        since_ms: 1,
        relapses: 0,
        seer: Seer::Agent,
        reason: String::new(),
    };
    c.health.set(&Part::Gpu { node: node.into(), gpu: 0 }, health);
}

fn in_force() -> InForce {
    let timing =
        Timing { node_lease_ms: 10_000, heartbeat_ms: 1_000, kill_ms: 2_000, drift_ppm: 1_000 };
    InForce { timing, since: 1, earlier: None }
}

#[test]
fn every_planted_fault_is_named() {
    for (number, (invariant, plant)) in FAULTS.iter().enumerate() {
        let mut cluster = scene();
        plant(&mut cluster);
        cluster.nodes.settle(cluster.meta.version);
        cluster.jobs.settle(cluster.meta.version);
        cluster.fillers.settle(cluster.meta.version);
        cluster.allocations.settle(cluster.meta.version);
        cluster.queues.settle(cluster.meta.version);
        let found: Vec<_> = cluster.verify().iter().map(|v| v.invariant).collect();
        assert!(found.contains(invariant), "fault {number}, {invariant}: found {found:?}");
    }
}

/// The names stand in the source as the first string of each check.
#[test]
fn every_invariant_has_a_planted_fault() {
    for check in include_str!("../verify.rs").split(".check(").skip(1) {
        let name = check.split('"').nth(1).unwrap();
        assert!(FAULTS.iter().any(|(planted, _)| *planted == name), "no fault for {name:?}");
    }
}

#[test]
fn the_scene_is_sound() {
    assert_eq!(scene().verify(), []);
    assert_eq!(Cluster::default().verify(), []);
}

fn node(c: &mut Cluster, id: u32) -> &mut crate::Node {
    c.nodes.get_mut(NodeId(id)).expect("of the scene")
}

fn slot(c: &mut Cluster, id: u32, ordinal: usize) -> &mut crate::GpuSlot {
    &mut node(c, id).gpus[ordinal]
}

fn job(c: &mut Cluster, id: u64) -> &mut crate::Job {
    c.jobs.get_mut(JobId(id)).expect("of the scene")
}

fn gang(c: &mut Cluster) -> &mut crate::Allocation {
    c.allocations.get_mut(AllocationId(1)).expect("of the scene")
}

fn instance(c: &mut Cluster) -> &mut crate::Allocation {
    c.allocations.get_mut(AllocationId(2)).expect("of the scene")
}

fn scene() -> Cluster {
    let mut c = Cluster::default();
    let fabric = drawing::parse("block a: n[1-3] x8").expect("a drawing");
    run(&mut c, Command::SetFabric(fabric));
    for id in 1..=3 {
        run(&mut c, Command::NodeUp(agent(NodeId(id))));
    }
    run(&mut c, Command::AdmitReplica { id: None, addr: "10.0.0.9:7078".into() });
    run(&mut c, Command::DeployFiller(filler()));
    for _ in 0..4 {
        run(&mut c, Command::SubmitJob(gang_of_two()));
    }
    run(&mut c, Command::CancelJob(JobId(4)));
    let place = |node, gpus| Place { node: NodeId(node), gpus: GpuMask(gpus) };
    let why = String::new;
    let start =
        Decision::Start { job: JobId(1), places: vec![place(1, 0b11), place(2, 0b11)], why: why() };
    let serve = |place| Decision::StartInstance { filler: FillerId(1), place };
    plan(&mut c, vec![start, serve(place(2, 0b100)), serve(place(3, 1))]);
    let report = |node, rank| TaskReport {
        node: NodeId(node),
        allocation: AllocationId(1),
        rank,
        epoch: Epoch { incarnation: 1, index: c.applied() },
        phase: TaskPhase::Running,
        port: 0,
        message: String::new(),
    };
    let reports = vec![report(1, 0), report(2, 1)];
    run(&mut c, Command::Report(reports));
    let places = vec![place(3, 0b11), place(3, 0b1100)];
    let hold = Decision::Hold { job: JobId(2), places, victims: vec![AllocationId(3)], why: why() };
    plan(&mut c, vec![hold]);
    c
}

/// A queue as one would be in a cluster of version 2.
fn queue(c: &mut Cluster, name: &str, limit_gpus: u64) {
    let spec = QueueSpec {
        name: name.into(),
        parent: String::new(),
        quota: Quota { guarantee_gpus: 0, limit_gpus: Some(limit_gpus) },
        by_model: BTreeMap::new(),
        lend_gpus: None,
        weight: 1,
        preempts: false,
        min_run_ms: 0,
    };
    c.queues.insert(QueueId(1), Queue::new(QueueId(1), spec, c.meta.now_ms));
    c.derived.queues_by_name.insert(name.into(), QueueId(1));
    c.meta.last_queue = 1;
    c.recount_queues();
}

fn run(c: &mut Cluster, command: Command) -> Reply {
    let at_ms = c.now_ms().max(1_000_000) + 1_000;
    let entry = Entry { at_ms, principal: "test".into(), request: None, command };
    let answer = c.apply(c.applied() + 1, &entry).answer.expect("an answer");
    answer.expect("the scene's commands are good")
}

fn plan(c: &mut Cluster, decisions: Vec<Decision>) {
    let accepted = decisions.len() as u32;
    let reply = run(c, Command::CommitPlan(Plan { based_on: c.applied(), decisions }));
    assert_eq!(reply, Reply::Planned { accepted, rejected: 0 });
}

fn agent(node: NodeId) -> NodeReport {
    NodeReport {
        node,
        boot_id: "boot".into(),
        addr: "10.0.0.1".into(),
        ports: vec![30_000],
        healthy: GpuMask::first(8),
        simulated: true,
        version: "0.1".into(),
        folder: String::new(),
        said_ms: 0,
        tasks: vec![],
    }
}

fn gang_of_two() -> JobSpec {
    JobSpec {
        name: "gang".into(),
        tenant: "lab".into(),
        queue: "main".into(),
        priority: 1,
        workers: 2,
        processes_per_worker: 1,
        resources: Resources { gpus: 2, ..Resources::default() },
        required: None,
        preferred: None,
        command: vec!["train".into()],
        env: Default::default(),
        working_dir: String::new(),
        time_limit_ms: 60_000,
        notice_ms: 10_000,
        restarts: 1,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    }
}

fn filler() -> FillerSpec {
    FillerSpec {
        name: "serve".into(),
        tenant: "lab".into(),
        model: "m".into(),
        resources: Resources { gpus: 1, ..Resources::default() },
        min_instances: 0,
        max_instances: 4,
        value_micros: 1,
        warm_up_ms: 0,
        notice_ms: 5_000,
        withdraw_ms: 1_000,
        readiness: None,
        command: vec!["serve".into()],
        env: Default::default(),
        working_dir: String::new(),
    }
}
