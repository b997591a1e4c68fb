//! `rowen bench jobs`: jobs submitted, placed and reported running a second, the whole way.
//!
//! Real replica processes, a thousand agents with a gRPC stream each, clients with request ids.
//! Only the tasks are simulated: they run for a short time that is drawn, without processes, so
//! that the control plane is what is measured. Then the leader is killed under load: how long
//! until every agent holds a node lease of the new one, and whether anything was lost.

mod agents;
mod journal;
mod load;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rowen_api::v1::{self, JobState};

use self::agents::{Agents, Setting};
use self::journal::{Journal, Life};
use self::load::Load;
use super::figures::{Check, Figure, Report, percentile};
use super::proc;
use crate::cluster::replicas::Group;
use crate::cluster::{Timing, fabric};
use crate::output::note;

/// What issue 3 asks, in jobs a second.
const BAR: f64 = 5000.0;
/// Sustained, as Slurm's "High Throughput Computing" guide documents it.
const SLURM: f64 = 500.0;
/// Node lease and heartbeat as they are on a real cluster.
const TIMING: Timing = Timing { node_lease_ms: 10_000, heartbeat_ms: 1000, kill_ms: 2000 };
/// Until the load is what it will be; not counted.
const WARM_UP: Duration = Duration::from_secs(3);
/// Jobs a second while the leader is killed.
const FAILOVER_PER_S: u64 = 300;
/// For all agents to attach, and for all jobs to be over.
const LIMIT: Duration = Duration::from_secs(120);
/// Jobs of which the control plane is asked what became of them.
const SAMPLES: usize = 100;

/// Arguments of `rowen bench jobs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Nodes, each with an agent.
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    agents: u32,
    /// How long is measured.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Connections that jobs are submitted on, each with 16 jobs under way.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Jobs of one request; each is a case of its own. The bar is that of the last.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16], value_name = "N,…", value_parser = clap::value_parser!(u32).range(1..=16))]
    batch: Vec<u32>,
    /// Jobs that may be submitted and not be over. Left out: half as many as there are GPUs.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=80_000))]
    in_flight: Option<u32>,
    /// How long a job runs on average, in milliseconds.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=60_000))]
    run_ms: u64,
    /// How often the leader is killed afterwards.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=50))]
    kills: u32,
    #[command(flatten)]
    pub(super) common: super::Common,
}

impl Args {
    /// Jobs that may be under way; fewer than one request brings would be none at all.
    fn room(&self) -> usize {
        let largest = self.batch.iter().copied().max().unwrap_or(1);
        self.in_flight.unwrap_or(self.agents * 4).max(largest) as usize
    }
}

pub(super) async fn measure(args: &Args, folder: &Path) -> Result<Report> {
    let mut group = Group::start(&folder.join("cluster"), 3, TIMING).await?;
    let fabric = fabric::of_size(args.agents, 8)?;
    let leader = group.leader().await?;
    group.rpc(leader).set_fabric(fabric.clone()).await?;
    let journal = Arc::new(Journal::new(args.room()));
    let setting = Setting { servers: group.addrs(), journal: journal.clone(), run_ms: args.run_ms };
    let agents = Agents::start(&fabric.nodes, &setting);
    let count = fabric.nodes.len();
    let mut bench =
        Bench { group, agents, count, journal, figures: Vec::new(), checks: Vec::new() };
    bench.wait_attached(0).await?;
    bench.idle(args).await?;
    for (at, &batch) in args.batch.iter().enumerate() {
        let last = at + 1 == args.batch.len();
        let addrs = bench.group.addrs();
        let load = Load::start(&addrs, (args.clients, batch), &bench.journal).await?;
        bench.steady(args, batch, last).await?;
        if last && args.kills > 0 {
            load.slow_down(FAILOVER_PER_S);
            bench.kill_leaders(args.kills).await?;
        }
        load.stop().await?;
    }
    bench.drain().await?;
    bench.check().await?;
    let mut report = Report::new("bench jobs", 0, bench.figures, bench.checks);
    let leader = bench.group.leader().await?;
    report.state_hash = Some(bench.group.rpc(leader).status().await?.state_hash);
    Ok(report)
}

struct Bench {
    group: Group,
    agents: Agents,
    /// Of agents.
    count: usize,
    journal: Arc<Journal>,
    figures: Vec<Figure>,
    checks: Vec<Check>,
}

/// What was used until some moment.
struct Used {
    at: Instant,
    at_us: u64,
    leader_s: f64,
    follower_s: f64,
    own_s: f64,
    machine_s: f64,
    entries: u64,
    syncs: u64,
}

impl Bench {
    /// Until every agent holds a node lease of `term` or a later one; how long each took.
    async fn wait_attached(&mut self, term: u64) -> Result<Vec<u64>> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let leases = self.journal.leases_since(term);
            if leases.len() == self.count {
                return Ok(leases);
            }
            let few = format!("{} of {} agents are attached", leases.len(), self.count);
            ensure!(Instant::now() < deadline, "{few}; {:?}", self.journal.faults());
            tokio::select! {
                () = self.agents.failed() => bail!("an agent ended: {:?}", self.journal.faults()),
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    }

    async fn used(&mut self, leader: usize) -> Result<Used> {
        let pid = |at| self.group.pid(at).context("a replica is dead");
        let (leader_pid, pids) = (pid(leader)?, [pid(0)?, pid(1)?, pid(2)?]);
        let all_s = pids.into_iter().map(proc::cpu_s).sum::<Result<f64>>()?;
        let leader_s = proc::cpu_s(leader_pid)?;
        let status = self.group.rpc(leader).status().await.context("the leader changed")?;
        Ok(Used {
            at: Instant::now(),
            at_us: self.journal.now_us(),
            leader_s,
            follower_s: (all_s - leader_s) / 2.0,
            own_s: proc::cpu_s(std::process::id())?,
            machine_s: proc::machine_cpu_s().unwrap_or(f64::NAN),
            entries: status.applied,
            syncs: status.wal_syncs,
        })
    }

    /// What agents cost that have nothing to do: heartbeats, above all.
    async fn idle(&mut self, args: &Args) -> Result<()> {
        let leader = self.group.leader().await?;
        let before = self.used(leader).await?;
        tokio::time::sleep(WARM_UP).await;
        let after = self.used(leader).await?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let case = format!("agents={} no jobs", args.agents);
        let cores = |name, used_s: f64| Figure::new(name, &case, used_s / seconds, "cores");
        self.figures.extend([
            cores("idle_leader", after.leader_s - before.leader_s),
            cores("idle_follower", after.follower_s - before.follower_s),
            cores("idle_bench", after.own_s - before.own_s),
        ]);
        Ok(())
    }

    /// The load at its steady state.
    async fn steady(&mut self, args: &Args, batch: u32, last: bool) -> Result<()> {
        let leader = self.group.leader().await?;
        tokio::time::sleep(WARM_UP).await;
        let before = self.used(leader).await?;
        let resident_mib = self.resident_mib(leader);
        tokio::time::sleep(Duration::from_secs(args.seconds)).await;
        let after = self.used(leader).await?;
        let lives = self.journal.lives();
        let case = format!("agents={} jobs/request={batch}", args.agents);
        self.rates(&case, &lives, &before, &after);
        if last {
            let rate = self.figures.iter_mut().rfind(|figure| figure.name == "jobs_per_s");
            rate.into_iter().for_each(|rate| *rate = rate.clone().at_least(BAR));
        }
        self.latencies(&case, &lives, &before, &after);
        if let (Some(then), Some(now)) = (resident_mib, self.resident_mib(leader)) {
            self.figures.push(Figure::new("leader_memory_begin", &case, then, "MiB"));
            self.figures.push(Figure::new("leader_memory_end", &case, now, "MiB"));
        }
        Ok(())
    }

    fn resident_mib(&self, at: usize) -> Option<f64> {
        proc::resident_mib(self.group.pid(at)?).ok()
    }

    fn rates(&mut self, case: &str, lives: &[Life], before: &Used, after: &Used) {
        let window = before.at_us..after.at_us;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let count =
            |of: fn(&Life) -> u64| lives.iter().filter(|job| window.contains(&of(job))).count();
        let jobs = count(|job| job.running_us) as f64;
        let per_s = |name, count: usize| Figure::new(name, case, count as f64 / seconds, "1/s");
        let each = |name, seconds: f64| Figure::new(name, case, seconds * 1e6 / jobs, "us");
        let (leader_s, follower_s) =
            (after.leader_s - before.leader_s, after.follower_s - before.follower_s);
        let own_s = after.own_s - before.own_s;
        let all_s = leader_s + 2.0 * follower_s + own_s;
        let others = (after.machine_s - before.machine_s - all_s).max(0.0) / seconds;
        self.figures.extend([
            Figure::new("jobs_per_s", case, jobs / seconds, "1/s")
                .beside("Slurm, documented sustained", SLURM),
            per_s("submitted_per_s", count(|job| job.acknowledged_us)),
            per_s("finished_per_s", count(|job| job.over_us)),
            each("cpu_per_job_leader", leader_s),
            each("cpu_per_job_follower", follower_s),
            each("cpu_per_job_bench", own_s),
            each("cpu_per_job_all", all_s),
            Figure::new("cores_used", case, all_s / seconds, "cores"),
            Figure::new("cores_used_by_others", case, others, "cores"),
            Figure::new(
                "entries_per_job",
                case,
                (after.entries - before.entries) as f64 / jobs,
                "1",
            ),
            Figure::new("syncs_per_job", case, (after.syncs - before.syncs) as f64 / jobs, "1"),
        ]);
    }

    fn latencies(&mut self, case: &str, lives: &[Life], before: &Used, after: &Used) {
        let window = before.at_us..after.at_us;
        let ran = lives.iter().filter(|job| window.contains(&job.running_us));
        let since = |of: fn(&Life) -> u64| -> Vec<f64> {
            ran.clone().map(|job| (of(job) - job.submitted_us) as f64 / 1e3).collect()
        };
        let acknowledged = lives.iter().filter(|job| window.contains(&job.acknowledged_us));
        let acknowledged: Vec<f64> =
            acknowledged.map(|job| (job.acknowledged_us - job.submitted_us) as f64 / 1e3).collect();
        let (placed, running) = (since(|job| job.placed_us), since(|job| job.running_us));
        let p = |name, samples: &[f64], percent| {
            Figure::new(name, case, percentile(samples, percent), "ms")
        };
        self.figures.extend([
            p("submit_to_acknowledged_p50", &acknowledged, 50.0),
            p("submit_to_acknowledged_p99", &acknowledged, 99.0),
            p("submit_to_placed_p50", &placed, 50.0),
            p("submit_to_placed_p99", &placed, 99.0),
            p("submit_to_running_p50", &running, 50.0),
            p("submit_to_running_p99", &running, 99.0),
        ]);
    }

    async fn kill_leaders(&mut self, kills: u32) -> Result<()> {
        let (mut half, mut all) = (Vec::new(), Vec::new());
        for _ in 0..kills {
            tokio::time::sleep(WARM_UP).await;
            let leader = self.group.leader().await?;
            let term = newest_term(&self.group.rpc(leader).status().await?);
            let killed_us = self.journal.now_us();
            self.group.kill(leader);
            let leases = self.wait_attached(term + 1).await?;
            let waits: Vec<f64> =
                leases.iter().map(|at_us| at_us.saturating_sub(killed_us) as f64 / 1e3).collect();
            half.push(percentile(&waits, 50.0));
            all.push(percentile(&waits, 100.0));
            self.group.revive(leader)?;
            self.group.wait_formed().await?;
        }
        let case = format!("agents={} leader killed {kills} times", self.count);
        let lease_ms = TIMING.node_lease_ms as f64;
        self.figures.extend([
            Figure::new("reattached_half_max", &case, percentile(&half, 100.0), "ms"),
            Figure::new("reattached_all_max", &case, percentile(&all, 100.0), "ms")
                .beside("node lease", lease_ms)
                .at_most(lease_ms),
        ]);
        Ok(())
    }

    /// Until every job that was submitted is over.
    async fn drain(&self) -> Result<()> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (submitted, over) = self.journal.counts();
            if submitted == over {
                return Ok(());
            }
            if Instant::now() > deadline {
                note(&format!("{} of {submitted} jobs are not over", submitted - over));
                return Ok(()); // the checks say which
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn check(&mut self) -> Result<()> {
        let lives = self.journal.lives();
        let jobs = lives.iter().enumerate();
        let wrong: Vec<String> = jobs.filter_map(|(at, job)| journal::wrong(at, job)).collect();
        let count = lives.len();
        self.add("every job ran exactly once and is over", &wrong, format!("{count} jobs"));
        let faults = self.journal.faults();
        self.add("no GPU was given twice", &faults, format!("{} agents", self.count));
        let leader = self.group.leader().await?;
        let rpc = self.group.rpc(leader);
        let status = rpc.status().await?;
        self.add("invariants hold", &status.violations, format!("{} entries", status.applied));
        let left = status.jobs_queued + status.jobs_running;
        let left = if left == 0 { vec![] } else { vec![format!("{left} jobs wait or run")] };
        self.add("nothing is left behind", &left, "no job waits or runs".into());
        let nodes = rpc.nodes().await?;
        let gone = nodes.iter().filter(|node| node.state != "up");
        let gone: Vec<String> =
            gone.map(|node| format!("{} is {}", node.name, node.state)).collect();
        self.add("no node was lost", &gone, format!("{} nodes are up", nodes.len()));
        let mut unlike = Vec::new();
        for life in lives.iter().step_by((lives.len() / SAMPLES).max(1)) {
            let job = rpc.job(life.id).await?;
            if job.state() != JobState::Completed || job.attempt != 1 {
                unlike.push(format!("job {}: {:?}, attempt {}", job.id, job.state(), job.attempt));
            }
        }
        self.add("the log says so too", &unlike, format!("every {}th job", count / SAMPLES));
        Ok(())
    }

    fn add(&mut self, name: &str, wrong: &[String], right: String) {
        let shown = wrong.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
        let detail = if wrong.is_empty() { right } else { format!("{}: {shown}", wrong.len()) };
        self.checks.push(Check { name: name.into(), ok: wrong.is_empty(), detail });
    }
}

/// As agents know it: a restore from a backup raises it too.
fn newest_term(status: &v1::ClusterStatus) -> u64 {
    status.incarnation << 32 | status.term
}
