//! `rowen sim jobs`: a trace of gang jobs on a fabric of equal nodes.

use rowen_state::{FillerSpec, JobSpec, JobState, Resources};
use rowen_topology::{FabricRecord, drawing};

use crate::{Pace, Report, TraceJob, World, percentile};

/// Nodes that share a leaf.
const BLOCK_NODES: u32 = 16;
const MAX_NODES: u32 = 16_384;
const MAX_NODE_GPUS: u32 = 64;

/// What the trace is played on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Nodes of the fabric.
    pub nodes: u32,
    /// GPUs of each.
    pub gpus: u32,
    /// Takes what the jobs leave; see [`filler`] for a plain one.
    pub filler: Option<FillerSpec>,
    /// How long things take.
    pub pace: Pace,
}

/// Options that no fabric can be made of.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: is {value}; choose 1 to {most}")]
pub struct OptionsError {
    field: &'static str,
    value: u32,
    most: u32,
}

impl Options {
    /// Equal nodes, no filler.
    pub fn new(nodes: u32, gpus: u32) -> Result<Options, OptionsError> {
        for (field, value, most) in [("nodes", nodes, MAX_NODES), ("gpus", gpus, MAX_NODE_GPUS)] {
            if value == 0 || value > most {
                return Err(OptionsError { field, value, most });
            }
        }
        Ok(Options { nodes, gpus, filler: None, pace: Pace::default() })
    }
}

/// Plays the trace to its end. Jobs that the fabric could never hold are left out and counted.
pub fn run_jobs(trace: &[TraceJob], options: &Options) -> Report {
    let mut world = World::new(uniform_fabric(options.nodes, options.gpus), options.pace);
    if let Some(filler) = &options.filler {
        world.deploy(0, filler.clone());
    }
    let first_ms = trace.iter().map(|job| job.submitted_ms).min().unwrap_or(0);
    let mut too_large = 0u32;
    for job in trace {
        match gang(job, options) {
            Some(spec) => world.submit(job.submitted_ms - first_ms, spec, job.duration_ms),
            None => too_large += 1,
        }
    }
    world.run();
    report(&world, options, too_large)
}

/// The gang of a trace's job: the fewest equal workers that fit on the nodes.
fn gang(job: &TraceJob, options: &Options) -> Option<JobSpec> {
    let a_worker = (1..=options.gpus.min(job.gpus)).rev().find(|n| job.gpus.is_multiple_of(*n))?;
    let workers = job.gpus / a_worker;
    if u64::from(workers) > u64::from(options.nodes) * u64::from(options.gpus / a_worker) {
        return None;
    }
    let spec = JobSpec {
        name: "trace".into(),
        tenant: "trace".into(),
        queue: "main".into(),
        priority: 0,
        workers,
        processes_per_worker: 1,
        resources: Resources { gpus: a_worker, ..Resources::default() },
        required: None,
        preferred: None,
        command: vec!["train".into()],
        env: Default::default(),
        working_dir: String::new(),
        time_limit_ms: 0,
        notice_ms: 120_000,
        restarts: 0,
        checkpoint_interval_ms: 0,
        shape: Default::default(),
    };
    spec.validate().is_ok().then_some(spec)
}

/// A filler of one-GPU instances that would take everything.
pub fn filler(notice_ms: u64) -> FillerSpec {
    FillerSpec {
        name: "filler".into(),
        tenant: "serving".into(),
        model: String::new(),
        resources: Resources { gpus: 1, ..Resources::default() },
        min_instances: 0,
        max_instances: 131_072,
        value_micros: 2_000_000,
        warm_up_ms: 60_000,
        notice_ms,
        withdraw_ms: 0,
        readiness: None,
        command: vec!["serve".into()],
        env: Default::default(),
        working_dir: String::new(),
    }
}

/// A fabric of equal nodes, sixteen to a leaf.
pub fn uniform_fabric(nodes: u32, gpus: u32) -> FabricRecord {
    let blocks = (1..=nodes).step_by(BLOCK_NODES as usize).zip(1..).map(|(first, block)| {
        let last = nodes.min(first + BLOCK_NODES - 1);
        format!("block b{block}: node[{first}-{last}] x{gpus}\n")
    });
    drawing::parse(&blocks.collect::<String>()).expect("equal nodes make a fabric")
}

fn report(world: &World, options: &Options, too_large: u32) -> Report {
    let ended = world.ended();
    let done = || ended.iter().filter(|job| job.state == JobState::Completed);
    let mut waits: Vec<u64> = done().map(|job| job.bound_ms - job.submitted_ms).collect();
    let mut jcts: Vec<u64> = done().map(|job| job.ended_ms - job.submitted_ms).collect();
    waits.sort_unstable();
    jcts.sort_unstable();
    let last_ms = done().map(|job| job.ended_ms).max().unwrap_or(0);
    let first_ms = done().map(|job| job.submitted_ms).min().unwrap_or(0);

    let mut failures: Vec<String> = world.violations().iter().map(ToString::to_string).collect();
    if world.unfinished() > 0 {
        failures.push(format!("{} jobs never ended", world.unfinished()));
    }
    let not_completed = ended.len() - jcts.len();
    if not_completed > 0 {
        failures.push(format!("{not_completed} jobs did not complete"));
    }

    let [idle, gang, filler, down] = world.cluster().gpu_time_ms();
    let share = |part: u64| percent(part, idle + gang + filler + down);
    let served_by =
        options.filler.as_ref().map_or("none".into(), |f| format!("notice:{}ms", f.notice_ms));
    let case = format!("nodes={} gpus={} filler={served_by}", options.nodes, options.gpus);
    Report::begin("sim jobs", &case, world.cluster().state_hash(), failures)
        .figure("jobs", jcts.len() as f64, "jobs")
        .figure("jobs_too_large", f64::from(too_large), "jobs")
        .figure("queueing_delay_mean", mean_s(&waits), "s")
        .figure("queueing_delay_p99", seconds(percentile(&waits, 99)), "s")
        .figure("jct_mean", mean_s(&jcts), "s")
        .figure("jct_p99", seconds(percentile(&jcts, 99)), "s")
        .figure("makespan", seconds(last_ms - first_ms), "s")
        .figure("utilisation", share(gang + filler), "%")
        .figure("gang_share", share(gang), "%")
        .figure("filler_share", share(filler), "%")
        .figure("evictions", world.cluster().meta().evictions as f64, "instances")
        .finish()
}

fn seconds(ms: u64) -> f64 {
    ms as f64 / 1_000.0
}

fn mean_s(ms: &[u64]) -> f64 {
    // Summed as integers: the order of the jobs must not show in the last digit.
    let sum_ms: u128 = ms.iter().map(|ms| u128::from(*ms)).sum();
    let mean_ms = sum_ms / (ms.len().max(1) as u128);
    seconds(u64::try_from(mean_ms).expect("a mean of u64 is one"))
}

fn percent(part: u64, whole: u64) -> f64 {
    let hundredths = u128::from(part) * 10_000 / u128::from(whole.max(1));
    u32::try_from(hundredths).map_or(0.0, |hundredths| f64::from(hundredths) / 100.0)
}
