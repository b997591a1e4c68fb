//! `rowen bench failover`: SIGKILL to the leader, and to all replicas at once, under load.
//!
//! Real processes on loopback: replicas, agents, a gang that runs throughout, clients that submit
//! without a break and retry under the same request id. Measures how long nothing can be written
//! and placed; checks that nothing acknowledged is lost and nothing happened twice.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rowen_api::v1::{
    GetJobRequest, Job, JobSpec, JobState, ListJobsRequest, Resources, SubmitJobRequest,
};

use super::figures::{Check, Figure, Report, percentile};
use crate::args::{GlobalArgs, OutputFormat};
use crate::client::{Client, jobs};
use crate::cluster::replicas::Group;
use crate::cluster::{Timing, fabric};
use crate::demo::journal::{self, JOURNAL_ENV, What};
use crate::output::note;

/// What issue 3 asks, in milliseconds: median and largest.
const WRITE_BARS_MS: (f64, f64) = (1000.0, 3000.0);
/// Clients that submit all the time, and how long each pauses between two jobs.
const SUBMITTERS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(40);
/// The load runs so long before each kill.
const LOAD: Duration = Duration::from_millis(300);
/// A client that waits longer than this for one answer has met a bug.
const GIVE_UP: Duration = Duration::from_secs(60);
const NODES: u32 = 4;

/// Arguments of `rowen bench failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 50, value_name = "N")]
    kills: u32,
    /// How often all replicas are killed at once.
    #[arg(long, default_value_t = 0, value_name = "N")]
    all_kills: u32,
    /// How many replicas.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=7))]
    replicas: u8,
    #[command(flatten)]
    pub(super) common: super::Common,
}

pub(super) async fn measure(args: &Args, folder: &Path) -> Result<Report> {
    let data = folder.join("cluster");
    let timing = Timing { node_lease_ms: 15_000, ..Timing::default() };
    let mut group = Group::start(&data, args.replicas.into(), timing).await?;
    group.start_agents(fabric::of_size(NODES, 8)?).await?;
    let mut bench = Bench {
        probe: client(&group.addrs()),
        probes: 0,
        acknowledged: BTreeMap::new(),
        journal: folder.join("journal"),
        group,
    };
    let gang = bench.start_gang().await?;
    let load = Load::start(&bench.group.addrs());
    let (mut leader, mut all) = (Times::default(), Times::default());
    for round in 0..args.kills {
        let times = bench.kill_leader().await.with_context(|| format!("kill {}", round + 1))?;
        leader.add(times);
    }
    for round in 0..args.all_kills {
        let times = bench.kill_all().await.with_context(|| format!("kill of all {}", round + 1))?;
        all.add(times);
    }
    bench.acknowledged.extend(load.stop().await?);
    let (mut checks, found) = bench.nothing_lost().await?;
    checks.push(bench.gang_runs(gang).await?);
    checks.push(bench.no_gpu_shared()?);
    let mut figures = leader.figures("failover", &format!("leader killed {} times", args.kills));
    figures.extend(all.figures("restart", &format!("all killed {} times", args.all_kills)));
    figures.extend(found);
    let mut report = Report::new("bench failover", 0, figures, checks);
    report.state_hash = bench.state_hash().await;
    Ok(report)
}

/// Milliseconds from the kill.
#[derive(Default)]
struct Times {
    write: Vec<f64>,
    placement: Vec<f64>,
    agents: Vec<f64>,
}

impl Times {
    fn add(&mut self, [write, placement, agents]: [f64; 3]) {
        self.write.push(write);
        self.placement.push(placement);
        self.agents.push(agents);
    }

    fn figures(&self, what: &str, case: &str) -> Vec<Figure> {
        if self.write.is_empty() {
            return Vec::new();
        }
        let names = match what {
            "failover" => [
                ("failover_write_p50", "failover_write_max"),
                ("next_placement_p50", "next_placement_max"),
                ("failover_agents_p50", "failover_agents_max"),
            ],
            _ => [
                ("restart_write_p50", "restart_write_max"),
                ("restart_placement_p50", "restart_placement_max"),
                ("restart_agents_p50", "restart_agents_max"),
            ],
        };
        let mut figures = Vec::new();
        let all = [&self.write, &self.placement, &self.agents];
        for ((p50, max), samples) in names.into_iter().zip(all) {
            figures.push(Figure::new(p50, case, percentile(samples, 50.0), "ms"));
            figures.push(Figure::new(max, case, percentile(samples, 100.0), "ms"));
        }
        if what == "failover" {
            let largest = figures.remove(1).at_most(WRITE_BARS_MS.1);
            let median = figures.remove(0).at_most(WRITE_BARS_MS.0);
            figures.splice(0..0, [median, largest]);
        }
        figures
    }
}

struct Bench {
    group: Group,
    /// A client that is connected before the kill, as a user's would be.
    probe: Client,
    probes: u32,
    /// Job id by the name it was submitted under.
    acknowledged: BTreeMap<String, u64>,
    journal: PathBuf,
}

impl Bench {
    async fn kill_leader(&mut self) -> Result<[f64; 3]> {
        tokio::time::sleep(LOAD).await;
        let leader = self.group.leader().await?;
        let killed = Instant::now();
        self.group.kill(leader);
        let times = self.comes_back(killed).await?;
        self.group.revive(leader)?;
        self.group.wait_formed().await?;
        Ok(times)
    }

    async fn kill_all(&mut self) -> Result<[f64; 3]> {
        tokio::time::sleep(LOAD).await;
        self.group.kill_all();
        let killed = Instant::now();
        for at in 0..self.group.addrs().len() {
            self.group.revive(at)?;
        }
        let times = self.comes_back(killed).await?;
        self.group.wait_formed().await?;
        Ok(times)
    }

    /// Until a write is acknowledged, until a job is placed, until every node is up.
    async fn comes_back(&mut self, killed: Instant) -> Result<[f64; 3]> {
        self.probes += 1;
        let name = format!("probe-{}", self.probes);
        let id = submit(&mut self.probe, stamp(&name, 900)).await?;
        let write_ms = ms(killed);
        self.acknowledged.insert(name, id);
        let placed = |job: &Job| {
            !matches!(job.state(), JobState::Queued | JobState::Holding | JobState::Unspecified)
        };
        wait(&mut self.probe, id, placed).await?;
        let placement_ms = ms(killed);
        self.group.wait_nodes_up(GIVE_UP).await?;
        Ok([write_ms, placement_ms, ms(killed)])
    }

    /// A gang over all nodes that must run through it all.
    async fn start_gang(&mut self) -> Result<u64> {
        let exe = std::env::current_exe()?.to_string_lossy().into_owned();
        let never = self.journal.with_extension("never").to_string_lossy().into_owned();
        let work = ["demo-worker", "--mib", "1", "--pause-ms", "500", "--until", &never];
        let spec = JobSpec {
            name: "steady".into(),
            priority: 1000,
            workers: NODES,
            resources: Some(Resources { gpus: 4, ..Default::default() }),
            command: std::iter::once(exe).chain(work.map(str::to_owned)).collect(),
            env: [(JOURNAL_ENV.to_owned(), self.journal.to_string_lossy().into_owned())].into(),
            ..Default::default()
        };
        let id = submit(&mut self.probe, spec).await?;
        wait(&mut self.probe, id, |job| job.state() == JobState::Running).await?;
        let started = || Ok::<_, anyhow::Error>(self.pids()?.len() == NODES as usize);
        let deadline = Instant::now() + GIVE_UP;
        while !started()? {
            anyhow::ensure!(Instant::now() < deadline, "the gang's workers do not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(id)
    }

    /// Every acknowledged job is there once, under the id that was acknowledged.
    async fn nothing_lost(&mut self) -> Result<(Vec<Check>, Vec<Figure>)> {
        let list = ListJobsRequest { all: true, ..Default::default() };
        let send = |ch| {
            let list = list.clone();
            async move { jobs(ch).list_jobs(list).await }
        };
        let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for job in self.probe.call(send).await?.jobs {
            found.entry(job.spec.unwrap_or_default().name).or_default().insert(job.id);
        }
        let (mut lost, mut doubled) = (Vec::new(), Vec::new());
        for (name, id) in &self.acknowledged {
            match found.get(name) {
                Some(ids) if ids.len() > 1 => doubled.push(name.clone()),
                Some(ids) if ids.contains(id) => {}
                // Of ended jobs the state keeps the newest; the archive keeps all.
                _ if archived(&mut self.probe, *id, name).await? => {}
                _ => lost.push(name.clone()),
            }
        }
        let count = self.acknowledged.len();
        let check = |name: &str, bad: Vec<String>| Check {
            name: name.to_owned(),
            ok: bad.is_empty(),
            detail: format!("{} of {count}: {}", bad.len(), bad.join(" ")),
        };
        let figure = |name, value: usize| Figure::new(name, "jobs", value as f64, "jobs");
        let figures = vec![
            figure("acknowledged", count),
            figure("lost", lost.len()).at_most(0.0),
            figure("doubled", doubled.len()).at_most(0.0),
        ];
        let checks = vec![
            check("no acknowledged job is lost", lost),
            check("no job is there twice", doubled),
        ];
        Ok((checks, figures))
    }

    /// The same processes as at the beginning, and all of them.
    async fn gang_runs(&mut self, id: u64) -> Result<Check> {
        let job = get(&mut self.probe, id).await?;
        let pids = self.pids()?;
        let alive = pids.iter().filter(|pid| lives(**pid)).count();
        let whole = NODES as usize;
        Ok(Check {
            name: "the gang ran through it all with the same processes".into(),
            ok: job.state() == JobState::Running
                && job.attempt == 1
                && pids.len() == whole
                && alive == whole,
            detail: format!(
                "{} {}, attempt {}, {} processes ever, {alive} alive",
                crate::output::words::job_state(job.state()),
                job.reason,
                job.attempt,
                pids.len()
            ),
        })
    }

    fn no_gpu_shared(&self) -> Result<Check> {
        let conflicts = journal::conflicts(&journal::read(&self.journal)?);
        let (ok, detail) = (conflicts.is_empty(), conflicts.join("; "));
        Ok(Check { name: "no GPU had two owners".into(), ok, detail })
    }

    /// Workers of the gang, of whatever attempt.
    fn pids(&self) -> Result<BTreeSet<u32>> {
        let lines = journal::read(&self.journal)?;
        Ok(lines.iter().filter(|line| line.what == What::Start).map(|line| line.who.pid).collect())
    }

    async fn state_hash(&mut self) -> Option<String> {
        let leader = self.group.leader().await.ok()?;
        Some(self.group.rpc(leader).status().await.ok()?.state_hash)
    }
}

/// Clients that submit until they are told to stop.
struct Load {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Result<BTreeMap<String, u64>>>>,
}

impl Load {
    fn start(addrs: &[String]) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let submitter = |number| {
            let (mut client, stop) = (client(addrs), stop.clone());
            tokio::spawn(async move {
                let mut acknowledged = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let name = format!("load-{number}-{}", acknowledged.len() + 1);
                    let id = submit(&mut client, stamp(&name, 50)).await?;
                    acknowledged.insert(name, id);
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(acknowledged)
            })
        };
        Load { tasks: (1..=SUBMITTERS).map(submitter).collect(), stop }
    }

    async fn stop(self) -> Result<BTreeMap<String, u64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = BTreeMap::new();
        for task in self.tasks {
            all.extend(task.await??);
        }
        Ok(all)
    }
}

/// A short job.
fn stamp(name: &str, priority: u32) -> JobSpec {
    JobSpec {
        name: name.into(),
        priority,
        workers: 1,
        resources: Some(Resources { gpus: 1, ..Default::default() }),
        command: vec!["/bin/true".into()],
        ..Default::default()
    }
}

fn client(addrs: &[String]) -> Client {
    Client::new(&GlobalArgs { addr: addrs.to_vec(), read: None, output: OutputFormat::Table })
}

/// Submits under one request id until it is acknowledged.
async fn submit(client: &mut Client, spec: JobSpec) -> Result<u64> {
    let request = SubmitJobRequest { request: client.request_id(), spec: Some(spec) };
    let begun = Instant::now();
    loop {
        let send = |ch| {
            let request = request.clone();
            async move { jobs(ch).submit_job(request).await }
        };
        match client.call(send).await {
            Ok(answer) => return Ok(answer.id),
            Err(error) if begun.elapsed() > GIVE_UP => bail!("a submission failed: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

async fn get(client: &mut Client, id: u64) -> Result<Job> {
    let request = GetJobRequest { id: id.to_string() };
    let send = |ch| {
        let request = request.clone();
        async move { jobs(ch).get_job(request).await }
    };
    Ok(client.call(send).await?)
}

async fn wait(client: &mut Client, id: u64, enough: impl Fn(&Job) -> bool) -> Result<()> {
    let begun = Instant::now();
    loop {
        if let Ok(job) = get(client, id).await {
            if enough(&job) {
                return Ok(());
            }
            if begun.elapsed() > GIVE_UP {
                bail!("job {id} is still queued: {}", job.reason);
            }
        } else if begun.elapsed() > GIVE_UP {
            bail!("nothing is known of job {id}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn archived(client: &mut Client, id: u64, name: &str) -> Result<bool> {
    match get(client, id).await {
        Ok(job) => Ok(job.spec.is_some_and(|spec| spec.name == name)),
        Err(error) => {
            note(&format!("job {id} ({name}): {error:#}"));
            Ok(false)
        }
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

// A zombie has no arguments any more.
fn lives(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}
