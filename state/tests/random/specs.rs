//! Random fabrics, jobs and fillers, valid and not.

use rowen_state::{
    FillerSpec, Group, JobSpec, NodeFilter, Probe, QueueSpec, Quota, Resources, Shape, Spread,
};
use rowen_topology::{FabricRecord, Level, drawing};

use crate::rng::Rng;

/// A node as it is drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DrawnNode {
    pub(crate) name: String,
    pub(crate) block: &'static str,
    pub(crate) gpus: u64,
    pub(crate) model: &'static str,
}

/// 2 to 6 nodes of 1 to 8 GPUs in two blocks.
pub(crate) fn fabric(rng: &mut Rng) -> Vec<DrawnNode> {
    let count = rng.between(2, 6);
    (1..=count).map(|number| node(rng, number)).collect()
}

pub(crate) fn node(rng: &mut Rng, number: u64) -> DrawnNode {
    DrawnNode {
        name: format!("n{number}"),
        block: if number % 2 == 1 { "a" } else { "b" },
        gpus: rng.between(1, 8),
        model: if rng.chance(85) { "H100" } else { "H200" },
    }
}

pub(crate) fn record(nodes: &[DrawnNode]) -> FabricRecord {
    let mut text = String::new();
    for block in ["a", "b"] {
        let drawn = nodes.iter().filter(|node| node.block == block);
        let drawn: Vec<_> =
            drawn.map(|node| format!("{} x{} {}", node.name, node.gpus, node.model)).collect();
        if !drawn.is_empty() {
            text += &format!("block {block}: {}\n", drawn.join(" + "));
        }
    }
    drawing::parse(&text).expect("a drawn fabric is valid")
}

/// `host_claims`: some claim cores and memory, so that a node may lack them.
pub(crate) fn resources(rng: &mut Rng, max_gpus: u64, host_claims: bool) -> Resources {
    let claims = host_claims && rng.chance(60);
    let models = [None, None, None, Some("H100"), Some("H200")];
    Resources {
        gpus: rng.between(1, max_gpus) as u32,
        gpu_model: rng.pick(&models).flatten().map(str::to_owned),
        cpus: if claims { rng.between(1, 64) as u32 } else { 0 },
        memory_mib: if claims { rng.between(1, 512 << 10) } else { 0 },
    }
}

pub(crate) fn job(rng: &mut Rng, host_claims: bool) -> JobSpec {
    let levels = [None, None, Some(Level::Pod), Some(Level::Block), Some(Level::Node)];
    let spec = JobSpec {
        name: "gang".into(),
        tenant: format!("tenant-{}", rng.below(3)),
        queue: rng.pick(&QUEUES).expect("not empty").into(),
        priority: rng.below(4) as u32,
        workers: rng.between(1, 4) as u32,
        processes_per_worker: 1,
        resources: resources(rng, 4, host_claims),
        required: rng.pick(&levels).flatten(),
        preferred: None,
        command: vec!["train".into()],
        env: [("A".into(), "1".into())].into(),
        working_dir: String::new(),
        time_limit_ms: if rng.chance(30) { rng.between(1, 60) * 1000 } else { 0 },
        notice_ms: rng.below(20) * 1000,
        restarts: rng.below(3) as u32,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    };
    spec.validate().expect("a random job is valid");
    spec
}

/// A job that asks for what only version 2 knows.
pub(crate) fn shaped_job(rng: &mut Rng, host_claims: bool) -> JobSpec {
    loop {
        let mut spec = JobSpec { workers: rng.between(1, 6) as u32, ..job(rng, host_claims) };
        let level = |rng: &mut Rng| Level::ALL[rng.between(1, 4) as usize];
        let workers = |rng: &mut Rng| rng.between(1, 3) as u32;
        let mut shape = Shape::default();
        if rng.chance(50) {
            let (workers, level) = (workers(rng), level(rng));
            shape.groups.push(Group { workers, level, preferred: rng.chance(30) });
        }
        if rng.chance(30) {
            shape.spread.push(Spread { workers: workers(rng), level: level(rng) });
        }
        if rng.chance(20) {
            let gpu_models = vec!["H100".into(), "H200".into()];
            shape.nodes = NodeFilter { gpu_models, ..NodeFilter::default() };
        }
        shape.nodes.exclusive = rng.chance(30);
        shape.balanced = rng.chance(30);
        if rng.chance(20) {
            (spec.preferred, shape.locality_wait_ms) = (Some(Level::Node), 5_000);
        }
        if rng.chance(50) {
            (shape.min_workers, shape.grow_after_ms) = (workers(rng), rng.below(3) * 1_000);
        }
        spec.shape = shape;
        if !spec.shape.is_plain() && spec.validate().is_ok() {
            return spec;
        }
    }
}

pub(crate) fn invalid_job(rng: &mut Rng) -> JobSpec {
    let mut spec = job(rng, false);
    match rng.below(8) {
        0 => spec.workers = 0,
        1 => spec.name = "Not A Name".into(),
        2 => spec.command.clear(),
        3 => spec.resources.gpus = 65,
        4 => spec.priority = 1001,
        5 => (spec.required, spec.preferred) = (Some(Level::Node), Some(Level::Site)),
        6 => drop(spec.env.insert("A=B".into(), String::new())),
        _ => spec.working_dir = "not/absolute".into(),
    }
    spec
}

pub(crate) fn filler(rng: &mut Rng, host_claims: bool) -> FillerSpec {
    let notice_ms = rng.below(10) * 1000;
    let spec = FillerSpec {
        name: format!("filler-{}", rng.below(3)),
        tenant: "serving".into(),
        model: "smollm2".into(),
        resources: resources(rng, 3, host_claims),
        min_instances: 0,
        max_instances: rng.between(1, 8) as u32,
        value_micros: 2_000_000,
        warm_up_ms: 1000,
        notice_ms,
        withdraw_ms: notice_ms / 2,
        readiness: rng.chance(50).then(|| Probe { period_ms: 100, ..Probe::default() }),
        command: vec![if rng.chance(70) { "serve" } else { "serve2" }.into()],
        env: Default::default(),
        working_dir: String::new(),
    };
    spec.validate().expect("a random filler is valid");
    spec
}

pub(crate) fn invalid_filler(rng: &mut Rng) -> FillerSpec {
    let mut spec = filler(rng, false);
    match rng.below(4) {
        0 => spec.max_instances = 0,
        1 => spec.withdraw_ms = spec.notice_ms + 1,
        2 => spec.name.clear(),
        _ => spec.min_instances = spec.max_instances + 1,
    }
    spec
}

/// Names of queues; jobs are in any of them, whether or not it is defined.
pub(crate) const QUEUES: [&str; 3] = ["main", "lab", "prod"];

pub(crate) fn queue(rng: &mut Rng) -> QueueSpec {
    let quota = |rng: &mut Rng| {
        let guarantee_gpus = rng.below(8);
        let limit_gpus = rng.chance(40).then(|| guarantee_gpus + rng.below(12));
        Quota { guarantee_gpus, limit_gpus }
    };
    let model = rng.chance(20).then(|| ("H100".into(), quota(rng)));
    QueueSpec {
        name: rng.pick(&QUEUES).expect("not empty").into(),
        parent: if rng.chance(25) {
            (*rng.pick(&QUEUES).expect("not empty")).into()
        } else {
            String::new()
        },
        quota: quota(rng),
        by_model: model.into_iter().collect(),
        lend_gpus: None,
        weight: rng.between(1, 5) as u32,
        preempts: rng.chance(50),
        min_run_ms: if rng.chance(50) { 0 } else { 5_000 },
    }
}
