//! `rowen bench placement`: how long the planner takes for a decision, beside one plain scan over
//! the free GPUs of every node, which no planner can beat.
//!
//! In process, in CPU time of the one thread that plans: what else the machine does is not in it. A
//! decision is a whole plan for a queue of one gang: from an immutable view of the state to the
//! places, or the victims, or the reason to wait.

mod beside;
mod span;
mod world;

use std::hint::black_box;

use anyhow::{Result, ensure};
use nix::time::{ClockId, clock_gettime};
use rowen_state::{Cluster, Decision, JobId, Plan};

use self::span::Spans;
use self::world::{Load, NODE_GPUS, World, gang, shape};
use super::figures::{Check, Figure, Report, percentile};
use super::proc;
use crate::output::note;

/// Where the bars stand.
const LARGEST: u32 = 131_072;
/// Jobs of a full queue, and shapes among them.
const PENDING: u32 = 10_000;
const SHAPES: u32 = 200;
/// What issue 5 asks at the largest size, half full: GPUs of the gang, microseconds.
const BARS_US: [(u32, f64); 5] = [(1, 50.0), (8, 50.0), (64, 50.0), (512, 50.0), (16_384, 500.0)];
const EVICTING_BAR_US: f64 = 1_000.0;
/// Decisions of each case whose span is counted.
const SPANS: u32 = 20;
/// A decision takes no longer than so many scans, for gangs of up to so many GPUs.
const SCANS_BAR: (f64, u32) = (100.0, 512);
const CYCLE_BAR_US: f64 = 20_000.0;
/// How long a planner may hold up apply.
const HELD_UP_BAR_US: f64 = 1_000.0;

/// Arguments of `rowen bench placement`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Sizes of the fabric.
    #[arg(long, value_delimiter = ',', default_values_t = [1_024, 8_192, 32_768, LARGEST], value_name = "GPUS,…", value_parser = clap::value_parser!(u32).range(64..=524_288))]
    gpus: Vec<u32>,
    /// Sizes of the gang; those larger than half the fabric are left out.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 64, 512, 4_096, 16_384], value_name = "GPUS,…", value_parser = clap::value_parser!(u32).range(1..=131_072))]
    gangs: Vec<u32>,
    /// Decisions measured in each case.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(10..=100_000))]
    samples: u32,
    #[command(flatten)]
    pub(super) common: super::Common,
}

pub(super) fn measure(args: &Args) -> Result<Report> {
    let mut bench = Bench { samples: args.samples, figures: Vec::new(), outcomes: Vec::new() };
    for &gpus in &args.gpus {
        ensure!(gpus % NODE_GPUS == 0, "--gpus: {gpus} is no multiple of {NODE_GPUS}");
        let before = proc::resident_bytes(std::process::id())?;
        for load in [Load::Empty, Load::Half, Load::Full95] {
            note(&format!("{gpus} GPUs, {}", load.name()));
            bench.decisions(World::new(gpus, load)?, gpus, load.name(), &args.gangs)?;
        }
        let mut world = World::new(gpus, Load::Half)?;
        let bytes = proc::resident_bytes(std::process::id())?.saturating_sub(before) as f64;
        bench.figures.push(Figure::new("memory", case(gpus), bytes / f64::from(gpus), "B/GPU"));
        bench.view(&mut world, gpus)?;
        let beside = beside::slowest_applies_us(&mut world, args.samples)?;
        for (what, us) in beside {
            let slowest = Figure::new("apply_slowest", format!("{} {what}", case(gpus)), us, "us");
            bench.figures.push(slowest.at_most(HELD_UP_BAR_US));
        }
        world.fill()?;
        bench.decisions(world, gpus, "half+fillers", &args.gangs)?;
        bench.cycle(gpus, None)?;
        bench.cycle(gpus, Some(3_600_000))?;
    }
    bench.fits(&args.gpus);
    let detail = bench.outcomes.join(", ");
    let checks = vec![Check {
        name: "every gang that fits was placed".into(),
        ok: !bench.outcomes.iter().any(|outcome| outcome.contains("UNEXPECTED")),
        detail,
    }];
    Ok(Report::new("bench placement", 7, bench.figures, checks))
}

fn case(gpus: u32) -> String {
    format!("gpus={gpus}")
}

struct Bench {
    samples: u32,
    figures: Vec<Figure>,
    outcomes: Vec<String>,
}

impl Bench {
    /// A gang of each size comes to a queue that is empty otherwise.
    fn decisions(&mut self, mut world: World, gpus: u32, load: &str, gangs: &[u32]) -> Result<()> {
        for &size in gangs.iter().filter(|size| **size <= gpus / 2) {
            let case = format!("gpus={gpus} gang={size} load={load}");
            let scan_us = scan(&world, size.min(NODE_GPUS));
            let (mut us, mut placed, mut evicting) = (Vec::new(), 0, 0);
            for _ in 0..self.samples {
                let one = decide(&mut world, size, load)?;
                us.push(one.us);
                placed += u32::from(kind(&one.plan) == "start");
                evicting += u32::from(kind(&one.plan) == "hold");
                one.over(&mut world)?;
            }
            // Apart from what is timed: it looks at every node, and what it leaves in the caches
            // is not what a planner finds there.
            let mut spans = Spans::new(&case);
            for _ in 0..self.samples.min(SPANS) {
                let one = decide(&mut world, size, load)?;
                spans.count(&one.view, one.job, &one.plan);
                one.over(&mut world)?;
            }
            let outcome = format!("{placed} start, {evicting} evict, of {}", self.samples);
            let expected = match load {
                "95%" => true,
                _ if size > gpus / 8 => true, // a quarter of the nodes is without gangs
                "half+fillers" => evicting == self.samples,
                _ => placed == self.samples,
            };
            let mark = if expected { "" } else { " UNEXPECTED" };
            if load == "95%" || placed + evicting < self.samples || !expected {
                self.outcomes.push(format!("{case}: {outcome}{mark}"));
            }
            self.push(&case, &us, scan_us, gpus, size, load);
            self.figures.extend(spans.figures());
        }
        Ok(())
    }

    fn push(&mut self, case: &str, us: &[f64], scan_us: f64, gpus: u32, size: u32, load: &str) {
        let scan = "one scan of all nodes";
        let mut p50 =
            Figure::new("decision_p50", case, percentile(us, 50.0), "us").beside(scan, scan_us);
        let bar = match load {
            "half" => BARS_US.iter().find(|(gang, _)| *gang == size).map(|(_, bar)| *bar),
            "half+fillers" => Some(EVICTING_BAR_US),
            _ => None,
        };
        if let Some(bar) = bar.filter(|_| gpus == LARGEST) {
            p50 = p50.at_most(bar);
        }
        self.figures.push(p50);
        self.figures.push(Figure::new("decision_p99", case, percentile(us, 99.0), "us"));
        let mean_us = us.iter().sum::<f64>() / us.len() as f64;
        self.figures.push(Figure::new("decisions", case, 1e6 / mean_us, "/s"));
        let scans = Figure::new("decision_scans", case, percentile(us, 50.0) / scan_us, "scans");
        let barred = gpus == LARGEST && load == "half" && size <= SCANS_BAR.1;
        self.figures.push(if barred { scans.at_most(SCANS_BAR.0) } else { scans });
    }

    /// 10,000 jobs of 200 shapes wait; 95 % of the fabric is taken. With time limits the first of
    /// them get planned starts, and the others are tried before these.
    fn cycle(&mut self, gpus: u32, limit_ms: Option<u64>) -> Result<()> {
        let limits = if limit_ms.is_some() { " with time limits" } else { "" };
        note(&format!("{gpus} GPUs, {PENDING} jobs{limits} wait"));
        let mut world = World::limited(gpus, Load::Full95, limit_ms)?;
        for number in 0..PENDING {
            let mut spec = shape(number % SHAPES);
            spec.time_limit_ms = limit_ms.map_or(0, |most| most * u64::from(1 + number % 24) / 6);
            world.submit(spec)?;
        }
        let begun_us = cpu_us();
        let plan = rowen_placement::plan(&world.cluster);
        let first_us = cpu_us() - begun_us;
        world.commit(plan)?;
        world.settle()?;
        let mut us = Vec::new();
        for _ in 0..self.samples.min(50) {
            world.churn()?;
            let begun_us = cpu_us();
            let plan = black_box(rowen_placement::plan(black_box(&world.cluster)));
            us.push(cpu_us() - begun_us);
            world.commit(plan)?;
        }
        let limits = if limit_ms.is_some() { " limits=yes" } else { "" };
        let case = format!("gpus={gpus} pending={PENDING} shapes={SHAPES}{limits}");
        let first = format!("{case} first");
        self.figures.push(Figure::new("cycle", first, first_us, "us").at_most(CYCLE_BAR_US));
        let cycle = Figure::new("cycle", case, percentile(&us, 50.0), "us");
        self.figures.push(cycle.at_most(CYCLE_BAR_US));
        Ok(())
    }

    /// What apply waits for: the view that a planner takes.
    fn view(&mut self, world: &mut World, gpus: u32) -> Result<()> {
        let mut us = Vec::new();
        for _ in 0..self.samples {
            world.churn()?;
            let begun_us = cpu_us();
            black_box(world.cluster.clone());
            us.push(cpu_us() - begun_us);
        }
        let view = Figure::new("view", case(gpus), percentile(&us, 99.0), "us");
        self.figures.push(view.at_most(HELD_UP_BAR_US));
        Ok(())
    }

    /// How cost grows with nodes: the exponent between the smallest and the largest fabric.
    fn fits(&mut self, sizes: &[u32]) {
        let (Some(&small), Some(&large)) = (sizes.iter().min(), sizes.iter().max()) else { return };
        if small == large {
            return;
        }
        for load in ["half", "half+fillers"] {
            for size in [1, 8, 64, 512] {
                let of = |gpus| {
                    let case = format!("gpus={gpus} gang={size} load={load}");
                    let p50 = |one: &&Figure| one.name == "decision_p50" && one.case == case;
                    self.figures.iter().find(p50).map(|figure| figure.value)
                };
                let (Some(from), Some(to)) = (of(small), of(large)) else { continue };
                let exponent = (to / from).ln() / (f64::from(large) / f64::from(small)).ln();
                let case = format!("gang={size} load={load}, {small} to {large} GPUs");
                let growth = Figure::new("growth", case, exponent, "exponent").at_most(1.0);
                self.figures.push(growth);
            }
        }
    }
}

/// A gang came, and was planned for.
struct Decided {
    job: JobId,
    view: Cluster,
    plan: Plan,
    us: f64,
}

fn decide(world: &mut World, size: u32, load: &str) -> Result<Decided> {
    world.churn()?;
    if load == "half+fillers" {
        world.settle()?;
    }
    let job = world.submit(gang(size, size.min(NODE_GPUS), None))?;
    let view = world.cluster.clone();
    let begun_us = cpu_us();
    let plan = black_box(rowen_placement::plan(black_box(&view)));
    Ok(Decided { job, view, plan, us: cpu_us() - begun_us })
}

impl Decided {
    /// It starts, where it can, and ends.
    fn over(self, world: &mut World) -> Result<()> {
        if kind(&self.plan) == "start" {
            world.commit(self.plan)?;
        }
        world.end(self.job)
    }
}

fn kind(plan: &Plan) -> &'static str {
    let kind = |decision: &Decision| match decision {
        Decision::Start { .. } => Some("start"),
        Decision::Hold { .. } => Some("hold"),
        _ => None,
    };
    plan.decisions.iter().find_map(kind).unwrap_or("wait")
}

/// How many nodes have `gpus` free, by one pass over an array of counts: the median of many.
fn scan(world: &World, gpus: u32) -> f64 {
    let free: Vec<u16> =
        world.cluster.nodes().values().map(|node| node.free().count() as u16).collect();
    const PASSES: u32 = 100;
    let many = || {
        let begun_us = cpu_us();
        for _ in 0..PASSES {
            black_box(black_box(&free).iter().filter(|free| **free >= gpus as u16).count());
        }
        (cpu_us() - begun_us) / f64::from(PASSES)
    };
    percentile(&(0..21).map(|_| many()).collect::<Vec<_>>(), 50.0)
}

/// CPU time of this thread.
fn cpu_us() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every thread has one");
    time.tv_sec() as f64 * 1e6 + time.tv_nsec() as f64 / 1e3
}
