//! `rowen bench soak`: steady load on three replicas for minutes or hours: does anything grow?
//!
//! Real processes on loopback: replicas, agents, clients at a fixed rate. Most requests submit a
//! gang that never fits and cancel it, so that the log, the queue, the planner and the archive have
//! work and the machine is not measured by its forks; one job in twenty runs on an agent.
//!
//! What is bounded must be full before anything is compared: the answers and ended jobs kept in the
//! state, the caches, the segments kept for replay. So the load is warmed up without a pause for
//! `--warm-up` entries first. Then the run is cut into windows, and the verdict compares the median
//! of the last third of them with the median of the first third: flat is at most
//! [`MEMORY_BAR`], [`DISK_BAR`], [`LATENCY_BAR`] times, and what comes and goes by itself on top:
//! a short run on a busy machine must not fail for it, and what leaks outgrows it in a longer one.
//! The archive grows by what it must keep
//! until its oldest period goes (`rowen bench disk` shows that); it is told by itself.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rowen_api::v1::{CancelJobRequest, JobSpec, Resources, SubmitJobRequest};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

use super::figures::{Check, Figure, Report, percentile};
use super::{disk_bytes, proc};
use crate::args::{GlobalArgs, OutputFormat};
use crate::client::{Client, jobs};
use crate::cluster::replicas::Group;
use crate::cluster::{Timing, fabric};
use crate::output::note;

const MEMORY_BAR: f64 = 1.2;
const DISK_BAR: f64 = 1.2;
const LATENCY_BAR: f64 = 2.0;
/// What an allocator keeps for the next snapshot, in MB.
const MEMORY_SLACK: f64 = 16.0;
/// Segments of the log come and go whole: one being written, one kept for replay, in MB.
const DISK_SLACK: f64 = 2.0 * 16.8;
/// What others on the machine and its disk cost, in ms.
const LATENCY_SLACK: f64 = 50.0;

const REPLICAS: usize = 3;
const NODES: u32 = 4;
/// Clients of the steady load, and of the warm-up, which waits for nothing else.
const CLIENTS: u32 = 8;
const WARM_UP_CLIENTS: u32 = 64;
/// One job in so many runs on an agent.
const REAL_EVERY: u64 = 20;
/// At least so many windows, none shorter than this.
const WINDOWS: u64 = 60;
const WINDOW: Duration = Duration::from_secs(5);
const WARM_UP_LIMIT: Duration = Duration::from_secs(1800);

/// Arguments of `rowen bench soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the steady load is watched.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Requests a second, all clients together.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    rate: u64,
    /// Entries of the log before anything is compared. The segments for replay are full after
    /// 220000; with fewer, disk is compared without them.
    #[arg(long, default_value_t = 220_000, value_name = "N")]
    warm_up: u64,
    #[command(flatten)]
    pub(super) common: super::Common,
}

pub(super) async fn measure(args: &Args, folder: &Path) -> Result<Report> {
    let data = folder.join("cluster");
    let mut group = Group::start(&data, REPLICAS, Timing::default()).await?;
    group.start_agents(fabric::of_size(NODES, 8)?).await?;
    warm_up(&mut group, args.warm_up).await?;
    let length = Duration::from_secs(args.minutes * 60);
    let window = (length / WINDOWS as u32).max(WINDOW);
    let each = Duration::from_secs_f64(f64::from(CLIENTS) / args.rate as f64);
    let load = Load::start(&group.addrs(), CLIENTS, Some(each));
    let begun = Instant::now();
    let mut samples = Vec::new();
    while begun.elapsed() < length {
        tokio::time::sleep(window).await;
        let sample = Sample::take(&mut group, &load, args.warm_up >= 220_000).await?;
        note(&format!("{:.0} s: {}", begun.elapsed().as_secs_f64(), sample.text()));
        samples.push(sample);
    }
    let failed = load.failed.load(Ordering::Relaxed);
    let asked = load.stop().await?;
    let leader = group.leader().await?;
    let status = group.rpc(leader).status().await?;
    let mut report = verdict(args, &samples)?;
    report.checks.push(Check {
        name: "every request was answered".into(),
        ok: failed == 0 && asked > 0,
        detail: format!("{failed} of {asked} failed"),
    });
    report.checks.push(Check {
        name: "invariants hold".into(),
        ok: status.violations.is_empty(),
        detail: status.violations.join("; "),
    });
    report.ok = report.checks.iter().all(|check| check.ok);
    report.state_hash = Some(status.state_hash);
    Ok(report)
}

/// Fills what is bounded.
async fn warm_up(group: &mut Group, entries: u64) -> Result<()> {
    let load = Load::start(&group.addrs(), WARM_UP_CLIENTS, None);
    let begun = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let leader = group.leader().await?;
        let applied = group.rpc(leader).status().await?.applied;
        if applied >= entries {
            note(&format!("warm after {applied} entries, {:.0} s", begun.elapsed().as_secs_f64()));
            break;
        }
        ensure!(begun.elapsed() < WARM_UP_LIMIT, "only {applied} entries after {WARM_UP_LIMIT:?}");
    }
    load.stop().await.map(drop)
}

/// Clients that submit and cancel until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    /// Milliseconds of each request since the last look.
    took_ms: Arc<Mutex<Vec<f64>>>,
    clients: Vec<JoinHandle<Result<u64>>>,
}

impl Load {
    /// Each client asks at most once in `pace`; without one, again at once.
    fn start(addrs: &[String], clients: u32, pace: Option<Duration>) -> Load {
        let mut load = Load {
            stop: Arc::default(),
            failed: Arc::default(),
            took_ms: Arc::default(),
            clients: Vec::new(),
        };
        for _ in 0..clients {
            let client = LoadClient {
                client: Client::new(&GlobalArgs {
                    read: None,
                    addr: addrs.to_vec(),
                    output: OutputFormat::Table,
                }),
                stop: load.stop.clone(),
                failed: load.failed.clone(),
                took_ms: load.took_ms.clone(),
                asked: 0,
            };
            load.clients.push(tokio::spawn(client.run(pace)));
        }
        load
    }

    async fn stop(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut asked = 0;
        for client in self.clients {
            asked += client.await??;
        }
        Ok(asked)
    }
}

struct LoadClient {
    client: Client,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    took_ms: Arc<Mutex<Vec<f64>>>,
    asked: u64,
}

impl LoadClient {
    async fn run(mut self, pace: Option<Duration>) -> Result<u64> {
        let mut next = tokio::time::interval(pace.unwrap_or(Duration::from_nanos(1)));
        next.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for number in 1.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            // In the warm-up nothing runs: forks would take most of the time.
            let is_real = pace.is_some() && number % REAL_EVERY == 0;
            next.tick().await;
            let Some(id) = self.submit(if is_real { fits() } else { never_fits() }).await else {
                continue;
            };
            if !is_real {
                next.tick().await;
                self.cancel(id).await;
            }
        }
        Ok(self.asked)
    }

    async fn submit(&mut self, spec: JobSpec) -> Option<u64> {
        let request = SubmitJobRequest { request: self.client.request_id(), spec: Some(spec) };
        let begun = Instant::now();
        let send = |channel| {
            let request = request.clone();
            async move { jobs(channel).submit_job(request).await }
        };
        let answer = self.client.call(send).await;
        self.done(begun, answer.is_ok()).await;
        answer.ok().map(|answer| answer.id)
    }

    async fn cancel(&mut self, id: u64) {
        let request = CancelJobRequest { request: self.client.request_id(), id: id.to_string() };
        let begun = Instant::now();
        let send = |channel| {
            let request = request.clone();
            async move { jobs(channel).cancel_job(request).await }
        };
        let answer = self.client.call(send).await;
        self.done(begun, answer.is_ok()).await;
    }

    async fn done(&mut self, begun: Instant, ok: bool) {
        self.asked += 1;
        self.failed.fetch_add(u64::from(!ok), Ordering::Relaxed);
        self.took_ms.lock().await.push(begun.elapsed().as_secs_f64() * 1e3);
    }
}

fn fits() -> JobSpec {
    JobSpec {
        name: "real".into(),
        priority: 500,
        workers: 1,
        resources: Some(Resources { gpus: 1, ..Default::default() }),
        command: vec!["/bin/true".into()],
        ..Default::default()
    }
}

/// More nodes than there are.
fn never_fits() -> JobSpec {
    JobSpec {
        name: "too-large".into(),
        workers: NODES + 1,
        resources: Some(Resources { gpus: 8, ..Default::default() }),
        ..fits()
    }
}

/// A window's end.
struct Sample {
    /// Of each replica, in bytes.
    memory: Vec<u64>,
    disk: Vec<u64>,
    archive: u64,
    applied: u64,
    requests: usize,
    p50_ms: f64,
    p99_ms: f64,
}

impl Sample {
    async fn take(group: &mut Group, load: &Load, with_old: bool) -> Result<Sample> {
        let took_ms = std::mem::take(&mut *load.took_ms.lock().await);
        let (mut memory, mut disk, mut archive) = (Vec::new(), Vec::new(), 0);
        for (pid, folder) in group.processes() {
            memory.push(proc::resident_bytes(pid)?);
            let old = disk_bytes(&folder.join("log/old"))?;
            let log = disk_bytes(&folder.join("log"))? - if with_old { 0 } else { old };
            disk.push(log + disk_bytes(&folder.join("snapshots"))?);
            archive += disk_bytes(&folder.join("archive"))? / REPLICAS as u64;
        }
        if memory.len() < REPLICAS {
            bail!("a replica has ended");
        }
        let leader = group.leader().await?;
        let applied = group.rpc(leader).status().await?.applied;
        Ok(Sample {
            memory,
            disk,
            archive,
            applied,
            requests: took_ms.len(),
            p50_ms: percentile(&took_ms, 50.0),
            p99_ms: percentile(&took_ms, 99.0),
        })
    }

    fn text(&self) -> String {
        let mb = |bytes: &[u64]| {
            let each = bytes.iter().map(|bytes| format!("{:.0}", *bytes as f64 / 1e6));
            each.collect::<Vec<_>>().join("/")
        };
        format!(
            "entries={} requests={} p50={:.1} ms p99={:.1} ms memory={} MB disk={} MB archive={} MB",
            self.applied,
            self.requests,
            self.p50_ms,
            self.p99_ms,
            mb(&self.memory),
            mb(&self.disk),
            mb(&[self.archive]),
        )
    }
}

/// Medians of the first and of the last third of the windows.
fn thirds(values: &[f64]) -> (f64, f64) {
    let third = values.len() / 3;
    let (first, last) = (&values[..third], &values[values.len() - third..]);
    (percentile(first, 50.0), percentile(last, 50.0))
}

fn verdict(args: &Args, samples: &[Sample]) -> Result<Report> {
    ensure!(samples.len() >= 6, "only {} windows; run longer", samples.len());
    let case = format!("minutes={} rate={} warm_up={}", args.minutes, args.rate, args.warm_up);
    let of =
        |value: &dyn Fn(&Sample) -> f64| thirds(&samples.iter().map(value).collect::<Vec<_>>());
    // The replica that grew most.
    let worst = |bytes: fn(&Sample) -> &Vec<u64>| {
        let replicas = (0..REPLICAS).map(|at| of(&|sample| bytes(sample)[at] as f64 / 1e6));
        replicas.max_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0))).expect("three of them")
    };
    let memory = worst(|sample| &sample.memory);
    let disk = worst(|sample| &sample.disk);
    let latency = of(&|sample| sample.p50_ms);
    let p99 = of(&|sample| sample.p99_ms);
    let mut figures = Vec::new();
    let mut checks = Vec::new();
    for (name, unit, (first, last), bar, slack) in [
        ("memory_growth", "MB", memory, MEMORY_BAR, MEMORY_SLACK),
        ("disk_growth", "MB", disk, DISK_BAR, DISK_SLACK),
        ("latency_growth", "ms", latency, LATENCY_BAR, LATENCY_SLACK),
    ] {
        let text = format!("{case}, {first:.1} to {last:.1} {unit}");
        let figure = Figure::new(name, text, last / first, "×").at_most(bar);
        checks.push(Check {
            name: format!("{name} is flat"),
            ok: last <= first * bar + slack,
            detail: format!(
                "{first:.2} to {last:.2} {unit}, at most {bar} times and {slack} {unit}"
            ),
        });
        figures.push(figure);
    }
    figures.push(Figure::new("latency_p50", case.clone(), latency.1, "ms"));
    figures.push(Figure::new("latency_p99", case.clone(), p99.1, "ms"));
    let (first, last) = (&samples[0], &samples[samples.len() - 1]);
    let entries = last.applied.checked_sub(first.applied).context("the log went back")?;
    figures.push(Figure::new("entries", case.clone(), entries as f64, "entries"));
    let grown = last.archive.saturating_sub(first.archive) as f64;
    figures.push(Figure::new("archive_bytes_per_entry", case, grown / entries as f64, "B"));
    Ok(Report::new("bench soak", 0, figures, checks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(memory: u64, p50_ms: f64) -> Sample {
        let memory = [100, 100, memory].map(|mb| mb * 1_000_000).to_vec();
        let disk = vec![50_000_000; 3];
        Sample { memory, disk, archive: 0, applied: 9, requests: 1, p50_ms, p99_ms: p50_ms }
    }

    fn holds(samples: &[Sample]) -> bool {
        let common = super::super::Common { json: false, enforce: false, data: None };
        let args = Args { minutes: 1, rate: 1, warm_up: 0, common };
        verdict(&args, samples).unwrap().ok
    }

    #[test]
    fn what_grows_is_not_flat() {
        let flat = |n: u64| sample(100 + n % 3, 2.0);
        assert!(holds(&(0..12).map(flat).collect::<Vec<_>>()));
        assert!(!holds(&(0..12).map(|n| sample(100 + 10 * n, 2.0)).collect::<Vec<_>>()));
        assert!(!holds(&(0..12).map(|n| sample(100, 10.0 * n as f64)).collect::<Vec<_>>()));
        // One slow window is no trend.
        let spike = (0..12).map(|n| sample(100, if n == 11 { 900.0 } else { 2.0 }));
        assert!(holds(&spike.collect::<Vec<_>>()));
        // Nor is a machine that others use more towards the end.
        assert!(holds(
            &(0..12).map(|n| sample(100, if n < 6 { 2.0 } else { 9.0 })).collect::<Vec<_>>()
        ));
    }
}
