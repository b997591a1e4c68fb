//! `rowen bench submit`: from submission to the task's own first instruction.
//!
//! On an idle local cluster, one job after the other: with the real command line, process and all,
//! and with an RPC client that is already connected. The task writes CLOCK_BOOTTIME as its first
//! act, so nothing of how we look for it is in the figure.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rowen_api::v1::{Job, JobSpec, JobState, Resources};
use tokio::process::Command;

use super::bounds;
use super::figures::{Check, Figure, Report, percentile};
use crate::cluster::rpc::{Rpc, ended};
use crate::cluster::{self, Cluster, Options, Timing, fabric};
use crate::demo::boottime_ns;
use crate::output::words::job_state;

/// What DESIGN.md asks of the median, in milliseconds.
const BAR_MS: f64 = 30.0;

/// Arguments of `rowen bench submit`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many jobs each way.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    jobs: u32,
    #[command(flatten)]
    pub(super) common: super::Common,
}

pub(super) async fn measure(args: &Args, folder: &Path) -> Result<Report> {
    let exe = std::env::current_exe()?.to_str().context("my path is not UTF-8")?.to_string();
    let stamps = folder.join("stamps");
    std::fs::create_dir_all(&stamps)?;
    let starts = bounds::process_starts(&exe, &stamps, args.jobs.min(200))?;
    let syncs = bounds::synced_writes(folder, args.jobs.min(200))?;
    let options = Options {
        data: folder.join("cluster"),
        fabric: Some(fabric::of_size(4, 8)?),
        listen: cluster::free_address()?,
        timing: Timing::default(),
    };
    let cluster = Cluster::start(options).await?;
    let bench = Bench { exe, addr: cluster.addr(), rpc: cluster.rpc(), stamps };
    // The first jobs open connections and files.
    for _ in 0..5 {
        bench.by_command().await?;
    }
    let mut by_command = Vec::new();
    for _ in 0..args.jobs {
        by_command.push(bench.by_command().await?);
    }
    let (mut to_task, mut to_running) = (Vec::new(), Vec::new());
    for _ in 0..args.jobs {
        let (task, running) = bench.by_rpc().await?;
        to_task.push(task);
        to_running.push(running);
    }
    let figures = figures(args.jobs, [by_command, to_task, to_running, starts, syncs]);
    let checks = vec![all_completed(&cluster, args.jobs).await?];
    Ok(Report::new("bench submit", 0, figures, checks))
}

struct Bench {
    exe: String,
    addr: String,
    rpc: Rpc,
    stamps: std::path::PathBuf,
}

impl Bench {
    /// `rowen submit` as a person types it.
    async fn by_command(&self) -> Result<f64> {
        let begun_ns = boottime_ns();
        let output = Command::new(&self.exe)
            .args(["submit", "--parsable", "--addr", &self.addr, "--name", "bench", "--gpus", "1"])
            .args(["--", &self.exe, "demo-worker", "--stamp"])
            .arg(&self.stamps)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_string();
        ensure!(output.status.success(), "rowen submit failed: {complaint}");
        let id: u64 = said.parse().with_context(|| format!("no job id: {said:?}"))?;
        self.wait_ended(id).await?;
        self.since(begun_ns, id)
    }

    /// The same from a client that is connected; until the task's first instruction, and until the
    /// client knows that it runs.
    async fn by_rpc(&self) -> Result<(f64, f64)> {
        let command = [&self.exe, "demo-worker", "--stamp"].map(str::to_string);
        let stamps = self.stamps.display().to_string();
        let spec = JobSpec {
            name: "bench".into(),
            priority: 50,
            workers: 1,
            resources: Some(Resources { gpus: 1, ..Default::default() }),
            command: command.into_iter().chain([stamps]).collect(),
            ..Default::default()
        };
        let begun_ns = boottime_ns();
        let id = self.rpc.submit(spec).await?;
        let up = |job: &Job| job.state() == JobState::Running || ended(job);
        self.rpc.wait_job(id, Duration::from_secs(30), up).await?;
        let running = (boottime_ns() - begun_ns) as f64 / 1e6;
        self.wait_ended(id).await?;
        Ok((self.since(begun_ns, id)?, running))
    }

    // The next job finds the cluster idle.
    async fn wait_ended(&self, id: u64) -> Result<()> {
        let job = self.rpc.wait_job(id, Duration::from_secs(30), ended).await?;
        match job.state() {
            JobState::Completed => Ok(()),
            state => bail!("job {id} is {}: {}", job_state(state), job.reason),
        }
    }

    fn since(&self, begun_ns: u64, id: u64) -> Result<f64> {
        let stamp = std::fs::read_to_string(self.stamps.join(id.to_string()))
            .with_context(|| format!("job {id} left no stamp"))?;
        let stamp: u64 = stamp.parse().context("a stamp is no number")?;
        ensure!(stamp > begun_ns, "the task of job {id} started before it was submitted");
        Ok((stamp - begun_ns) as f64 / 1e6)
    }
}

async fn all_completed(cluster: &Cluster, jobs: u32) -> Result<Check> {
    let all = cluster.rpc().jobs().await?;
    let done = all.iter().filter(|job| job.state() == JobState::Completed).count();
    let expected = 2 * jobs as usize + 5;
    let detail = format!("{done} of {expected}");
    // The list may be bounded; what it shows must all be done.
    let ok = done == all.len() && done <= expected;
    Ok(Check { name: "every job completed".into(), ok, detail })
}

fn figures(jobs: u32, [command, task, running, starts, syncs]: [Vec<f64>; 5]) -> Vec<Figure> {
    let case = format!("jobs={jobs} nodes=4 idle");
    // Before a task's first instruction come two processes (the shim and the task itself; with the
    // command line three) and two log entries (submission and plan): what they take alone.
    let (start, sync) = (percentile(&starts, 50.0), percentile(&syncs, 50.0));
    let rpc_floor = 2.0 * start + 2.0 * sync;
    let command_floor = 3.0 * start + 2.0 * sync;
    let floor = "processes + synced writes alone";
    let p = |name, samples: &[f64], percent| {
        Figure::new(name, &case, percentile(samples, percent), "ms")
    };
    vec![
        p("submit_command_to_task_p50", &command, 50.0)
            .beside(floor, command_floor)
            .at_most(BAR_MS),
        p("submit_command_to_task_p99", &command, 99.0),
        p("submit_rpc_to_task_p50", &task, 50.0).beside(floor, rpc_floor),
        p("submit_rpc_to_task_p99", &task, 99.0),
        p("submit_rpc_to_known_running_p50", &running, 50.0),
        p("submit_rpc_to_known_running_p99", &running, 99.0),
        p("process_start_p50", &starts, 50.0),
        p("process_start_p99", &starts, 99.0),
        p("synced_write_p50", &syncs, 50.0),
        p("synced_write_p99", &syncs, 99.0),
    ]
}
