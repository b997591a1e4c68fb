//! What a seed draws: the fabric, the workload, how tasks live and die.

use std::collections::BTreeMap;

use rowen_api::v1;
use rowen_state::{FillerSpec, JobSpec, Owner, Probe, Resources, Shape};
use rowen_topology::{FabricRecord, Level, drawing};

use crate::rng::Rng;

/// The timings of a cluster, those of `rowen serve` unless drawn shorter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    pub(crate) node_lease_ms: u64,
    pub(crate) heartbeat_ms: u64,
    pub(crate) kill_ms: u64,
    pub(crate) drift_ppm: u64,
    pub(crate) tick_ms: u64,
    /// Of the replicas among each other.
    pub(crate) raft_heartbeat_ms: u64,
    /// Entries between two snapshots, and how many stay in the log behind one.
    pub(crate) snapshot_every: u64,
    pub(crate) keep_log: u64,
    pub(crate) segment_bytes: u64,
    /// Entries that share a period of the archive, and how many of these are kept.
    pub(crate) archive_period_entries: u64,
    pub(crate) archive_retain: u64,
    /// Agents that a leader hears a second.
    pub(crate) agents_per_s: Option<u64>,
}

impl Timing {
    pub(crate) fn draw(rng: &mut Rng) -> Timing {
        let heartbeat_ms = rng.between(1_000, 3_000);
        Timing {
            node_lease_ms: heartbeat_ms * rng.between(4, 8),
            heartbeat_ms,
            kill_ms: rng.between(500, 2_000),
            drift_ppm: 1_000,
            tick_ms: rng.between(1_000, 3_000),
            raft_heartbeat_ms: rng.between(200, 1_000),
            snapshot_every: rng.between(30, 400),
            keep_log: rng.between(5, 100),
            segment_bytes: rng.between(1, 8) * 8_192,
            archive_period_entries: rng.between(40, 500),
            archive_retain: rng.between(2, 6),
            agents_per_s: rng.chance(50).then(|| rng.between(1, 30)),
        }
    }
}

/// No timing that is ever set grants more.
pub(crate) const LONGEST_LEASE_MS: u64 = 36_000;

impl Timing {
    /// What a cluster begins with.
    pub(crate) fn initial(&self) -> rowen_state::Timing {
        let Timing { node_lease_ms, heartbeat_ms, kill_ms, drift_ppm, .. } = *self;
        rowen_state::Timing { node_lease_ms, heartbeat_ms, kill_ms, drift_ppm }
    }

    /// What an operator sets instead: whatever the machines can keep to.
    pub(crate) fn change(&self, rng: &mut Rng) -> v1::TimingChange {
        let heartbeat_ms = rng.between(700, 4_000);
        let own = |rng: &mut Rng, value| rng.chance(70).then_some(value);
        v1::TimingChange {
            node_lease_ms: Some(heartbeat_ms * rng.between(3, 9)),
            heartbeat_ms: Some(heartbeat_ms),
            kill_ms: {
                let ms = rng.between(self.kill_ms, 3 * self.kill_ms);
                own(rng, ms)
            },
            drift_ppm: {
                let ppm = rng.between(self.drift_ppm, 5 * self.drift_ppm);
                own(rng, ppm)
            },
        }
    }
}

/// How a task's processes will live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Life {
    /// Until they end by themselves.
    pub(crate) runs_ms: u64,
    /// With what.
    pub(crate) code: i32,
    /// After SIGTERM: how long until they end, and with what; `None`: they ignore it.
    pub(crate) on_term: Option<(u64, i32)>,
}

impl Life {
    pub(crate) fn draw(owner: Owner, rank: u32, rng: &mut Rng) -> Life {
        let on_term = match rng.between(0, 9) {
            0 | 1 => None,
            // A well-behaved trainer writes its checkpoint and ends well.
            2 | 3 => Some((rng.between(50, 5_000), 0)),
            _ => Some((rng.between(10, 3_000), 143)),
        };
        match owner {
            Owner::Gang { job, .. } => Life { on_term, ..own_end(job.0, rank) },
            Owner::Instance { .. } if rng.chance(10) => {
                Life { runs_ms: rng.between(1_000, 60_000), code: 1, on_term }
            }
            Owner::Instance { .. } => Life { runs_ms: u64::MAX, code: 0, on_term },
        }
    }
}

/// Follows from the job alone, so that the checks at the end know it too.
fn own_end(job: u64, rank: u32) -> Life {
    let mut rng = Rng::new(job.wrapping_mul(31) ^ 0x6a6f_6200);
    // Some are over before anybody hears that they run.
    let runs_ms = if rng.chance(10) { rng.between(1, 80) } else { rng.between(500, 90_000) };
    let fails = fails(job) && rank == 0;
    Life { runs_ms, code: i32::from(fails), on_term: None }
}

/// Whether a job's own program fails, whatever happens around it.
pub(crate) fn fails(job: u64) -> bool {
    Rng::new(job).chance(8)
}

/// 2 to 8 nodes of 1 to 8 GPUs in up to three blocks.
pub(crate) fn fabric(rng: &mut Rng) -> FabricRecord {
    let mut text = String::new();
    let mut name = 0;
    for block in 1..=rng.between(1, 3) {
        let nodes = (0..rng.between(2, 3)).map(|_| {
            name += 1;
            let model = if rng.chance(85) { "H100" } else { "H200" };
            format!("n{name} x{} {model}", rng.between(1, 8))
        });
        text += &format!("block b{block}: {}\n", nodes.collect::<Vec<_>>().join(" + "));
    }
    drawing::parse(&text).expect("a drawn fabric is valid")
}

/// A gang; whether it fits on the fabric is not looked at.
pub(crate) fn job(number: usize, rng: &mut Rng, version: u32) -> JobSpec {
    let levels = [None, None, None, Some(Level::Site), Some(Level::Block), Some(Level::Node)];
    let spec = JobSpec {
        name: format!("job-{number}"),
        tenant: "lab".into(),
        queue: "main".into(),
        priority: rng.between(0, 3) as u32,
        workers: rng.between(1, 4) as u32,
        processes_per_worker: 1,
        resources: resources(rng, 4),
        required: rng.pick(&levels).flatten(),
        preferred: None,
        command: vec!["train".into()],
        env: BTreeMap::new(),
        working_dir: String::new(),
        time_limit_ms: if rng.chance(10) { rng.between(20_000, 60_000) } else { 0 },
        notice_ms: rng.between(0, 15) * 1_000,
        restarts: rng.between(0, 2) as u32,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    };
    let spec =
        if version >= 2 { JobSpec { shape: shape(spec.workers, rng), ..spec } } else { spec };
    spec.validate().expect("a drawn job is valid");
    spec
}

/// What moves GPUs about in ways of its own: whole nodes, attempts that give way to larger ones.
fn shape(workers: u32, rng: &mut Rng) -> Shape {
    let mut shape = Shape::default();
    shape.nodes.exclusive = rng.chance(15);
    if workers > 1 && rng.chance(40) {
        shape.min_workers = rng.between(1, u64::from(workers) - 1) as u32;
        shape.grow_after_ms = rng.between(1, 10) * 1_000;
    }
    shape
}

/// A filler, one of three names.
pub(crate) fn filler(rng: &mut Rng) -> FillerSpec {
    let notice_ms = rng.between(0, 10) * 1_000;
    let spec = FillerSpec {
        name: format!("filler-{}", rng.between(1, 3)),
        tenant: "serving".into(),
        model: String::new(),
        resources: resources(rng, 2),
        min_instances: 0,
        max_instances: rng.between(1, 20) as u32,
        value_micros: rng.between(1, 4) * 1_000_000,
        warm_up_ms: rng.between(0, 60_000),
        notice_ms,
        withdraw_ms: notice_ms / 3,
        readiness: rng.chance(50).then(|| Probe { period_ms: 100, ..Probe::default() }),
        command: vec!["serve".into()],
        env: BTreeMap::new(),
        working_dir: String::new(),
    };
    spec.validate().expect("a drawn filler is valid");
    spec
}

fn resources(rng: &mut Rng, most: u64) -> Resources {
    let models = [None, None, None, Some("H100"), Some("H200")];
    Resources {
        gpus: rng.between(1, most) as u32,
        gpu_model: rng.pick(&models).flatten().map(str::to_owned),
        cpus: 0,
        memory_mib: 0,
    }
}
