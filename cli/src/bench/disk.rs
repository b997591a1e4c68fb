//! `rowen bench disk`: what a replica takes on disk and in memory over millions of entries, and how
//! long it takes to open again.
//!
//! One real replica in this process: the log, snapshots and archive of production under the
//! production core, with the entries of jobs that come and go; only gRPC is left out. What bounds
//! each part:
//! - log: the segments since the newest snapshot less `keep_log` entries, so at most
//!   `snapshot_every + keep_log` entries and one segment;
//! - old segments, kept for `rowen replay`: `retain_entries` behind the newest snapshot, and never
//!   more than `retain_bytes`;
//! - snapshots: about four over that window, and the newest; each as large as the state, which
//!   keeps the newest 10,000 ended jobs;
//! - archive: `archive_retain` periods of `archive_period_entries`; the oldest goes as a folder.
//!
//! All that is counted in entries is production's for 2,000,000 entries and scaled down with fewer,
//! but the archive's periods, which are short here so that the run sees them go: an eighth of the
//! entries each, three kept. What production's would take is a figure of its own.

mod traffic;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rowen_raft::{Member, Replica, ReplicaConfig, ReplicaId};
use rowen_state::{Cluster, JobId};

use self::traffic::{Machine, Traffic};
use super::figures::{Check, Figure, Report};
use super::{disk_bytes as size, proc};
use crate::output::note;

/// The run that production's settings are those of.
const FULL_ENTRIES: u64 = 2_000_000;
const SAMPLES: u64 = 20;
/// Of the second half's end to the first's.
const GROWTH_BAR: f64 = 1.2;
/// A million entries open again within this.
const REOPEN_ENTRIES: u64 = 1_000_000;
const REOPEN_BAR_S: f64 = 10.0;
const READY: Duration = Duration::from_secs(600);

/// Arguments of `rowen bench disk`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How long the log becomes. The state keeps 10,000 ended jobs, so fewer fill nothing.
    #[arg(long, default_value_t = FULL_ENTRIES, value_name = "N", value_parser = clap::value_parser!(u64).range(100_000..=100_000_000))]
    entries: u64,
    #[command(flatten)]
    pub(super) common: super::Common,
}

pub(super) async fn measure(args: &Args, folder: &Path) -> Result<Report> {
    let config = scaled(args.entries, &folder.join("replica"));
    let (replica, machine) = open(&config).await?;
    let mut traffic = Traffic::start(replica.clone(), machine.clone()).await?;
    let mut samples = Vec::new();
    let begun = Instant::now();
    for number in 1..=SAMPLES {
        let upto = args.entries * number / SAMPLES;
        while machine.look().entries < upto {
            traffic.round().await?;
        }
        let sample = Sample::take(&config.dir, &machine)?;
        note(&format!("{} after {:.0} s", sample.text(), begun.elapsed().as_secs_f64()));
        samples.push(sample);
    }
    let cluster = machine.cluster();
    let mut checks = vec![archive_check(&replica, &cluster)?];
    replica.shutdown().await;
    let (default, default_cpu, check) = reopen(&config, &cluster).await?;
    checks.push(check);
    let mut figures = curve(&samples, &config)?;
    figures.push(default.beside("entries after the snapshot", default_replayed(&config)));
    figures.push(default_cpu);

    // The same, with no snapshot to begin with.
    let entries = REOPEN_ENTRIES.min(args.entries / 2);
    let config = ReplicaConfig {
        dir: folder.join("long"),
        snapshot_every: u64::MAX,
        ..ReplicaConfig::new(ReplicaId(1), folder)
    };
    let (replica, machine) = open(&config).await?;
    let mut traffic = Traffic::start(replica.clone(), machine.clone()).await?;
    while machine.look().entries < entries {
        traffic.round().await?;
    }
    let cluster = machine.cluster();
    replica.shutdown().await;
    let (long, long_cpu, check) = reopen(&config, &cluster).await?;
    let bar = REOPEN_BAR_S * 1e3 * entries as f64 / REOPEN_ENTRIES as f64;
    figures.extend([long.at_most(bar), long_cpu]);
    checks.push(check);
    Ok(Report::new("bench disk", 0, figures, checks))
}

/// See the module.
fn scaled(entries: u64, dir: &Path) -> ReplicaConfig {
    let full = ReplicaConfig::new(ReplicaId(1), dir);
    let scale = |value: u64| (value * entries.min(FULL_ENTRIES) / FULL_ENTRIES).max(1);
    ReplicaConfig {
        snapshot_every: scale(full.snapshot_every),
        keep_log: scale(full.keep_log),
        retain_entries: scale(full.retain_entries),
        segment_bytes: scale(full.segment_bytes).max(64 << 10),
        archive_period_entries: (entries / 8).min(full.archive_period_entries),
        archive_retain: 3,
        ..full
    }
}

/// A group of one; ready when all that is committed is applied.
async fn open(config: &ReplicaConfig) -> Result<(Replica, Machine)> {
    let machine = Machine::default();
    let replica = Replica::open(config.clone(), machine.clone()).await?;
    if !replica.is_initialized().await? {
        let member = Member { id: config.id, addr: "127.0.0.1:1".into() };
        replica.initialize(vec![member]).await?;
    }
    let mut leadership = replica.leadership();
    let ready = leadership.wait_for(|leadership| leadership.ready);
    tokio::time::timeout(READY, ready).await.context("the replica is not ready")??;
    Ok((replica, machine))
}

/// How long it takes to be where it was, how much CPU time, which other work on the machine does not
/// change, and whether it is where it was.
async fn reopen(config: &ReplicaConfig, before: &Cluster) -> Result<(Figure, Figure, Check)> {
    let log = size(&config.dir.join("log"))? - size(&config.dir.join("log/old"))?;
    let (begun, used_s) = (Instant::now(), proc::cpu_s(std::process::id())?);
    let (replica, machine) = open(config).await?;
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    let used_ms = (proc::cpu_s(std::process::id())? - used_s) * 1e3;
    let replayed = machine.look().entries;
    let same = machine.cluster().state_hash() == before.state_hash();
    replica.shutdown().await;
    let case = format!("{replayed} entries after the snapshot, {} MB of log", log / 1_000_000);
    let check = Check {
        name: format!("the state is the same after opening again, {case}"),
        ok: same,
        detail: format!("index {}", before.applied()),
    };
    let cpu = Figure::new("reopen_cpu", case.clone(), used_ms, "ms");
    Ok((Figure::new("reopen", case, took_ms, "ms"), cpu, check))
}

/// What is on disk and in memory at one moment.
struct Sample {
    entries: u64,
    log: u64,
    old: u64,
    snapshots: u64,
    archive: u64,
    memory: u64,
    ended_jobs: u64,
    archived_bytes: u64,
}

impl Sample {
    fn take(dir: &Path, machine: &Machine) -> Result<Sample> {
        let driven = machine.look();
        let (entries, ended_jobs) = (driven.entries, driven.ended_jobs);
        let archived_bytes = driven.archived_bytes;
        drop(driven);
        let old = size(&dir.join("log/old"))?;
        Ok(Sample {
            entries,
            log: size(&dir.join("log"))? - old,
            old,
            snapshots: size(&dir.join("snapshots"))?,
            archive: size(&dir.join("archive"))?,
            memory: proc::resident_bytes(std::process::id())?,
            ended_jobs,
            archived_bytes,
        })
    }

    fn disk(&self) -> u64 {
        self.log + self.old + self.snapshots + self.archive
    }

    fn text(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        format!(
            "entries={} log={:.0} old={:.0} snapshots={:.0} archive={:.0} memory={:.0} MB, {} jobs ended",
            self.entries,
            mb(self.log),
            mb(self.old),
            mb(self.snapshots),
            mb(self.archive),
            mb(self.memory),
            self.ended_jobs,
        )
    }
}

type Part = fn(&Sample) -> u64;

fn curve(samples: &[Sample], config: &ReplicaConfig) -> Result<Vec<Figure>> {
    let mb = |bytes: u64| bytes as f64 / 1e6;
    let mut figures: Vec<Figure> = samples
        .iter()
        .map(|sample| Figure::new("disk", sample.text(), mb(sample.disk()), "MB"))
        .collect();
    let (half, end) = (&samples[samples.len() / 2 - 1], &samples[samples.len() - 1]);
    for sample in [half, end] {
        let case = format!("entries={}", sample.entries);
        figures.push(Figure::new("disk_bytes", case, sample.disk() as f64, "B"));
    }
    let parts: [(&'static str, Part); 5] = [
        ("disk_growth", Sample::disk),
        // Together: a segment goes from one to the other.
        ("log_growth", |sample| sample.log + sample.old),
        ("snapshots_growth", |sample| sample.snapshots),
        ("archive_growth", |sample| sample.archive),
        ("memory_growth", |sample| sample.memory),
    ];
    for (name, part) in parts {
        let case = format!("entries={} to {}", half.entries, end.entries);
        let growth = part(end) as f64 / part(half) as f64;
        figures.push(Figure::new(name, case, growth, "×").at_most(GROWTH_BAR));
    }
    // As long as nothing was dropped.
    let kept = config.archive_period_entries * config.archive_retain;
    let whole = samples.iter().rfind(|sample| sample.entries < kept && sample.ended_jobs > 0);
    let whole = whole.context("no job ended before the first period went")?;
    let per_job = whole.archive as f64 / whole.ended_jobs as f64;
    let payload = whole.archived_bytes as f64 / whole.ended_jobs as f64;
    figures.push(
        Figure::new("archive_bytes_per_job", format!("entries={}", whole.entries), per_job, "B")
            .beside("its keys and values", payload),
    );
    let per_entry = whole.archive as f64 / whole.entries as f64;
    let production = ReplicaConfig::new(config.id, &config.dir);
    let bound =
        per_entry * (production.archive_period_entries * production.archive_retain) as f64 / 1e9;
    let case = format!(
        "{} periods of {} entries, as is usual",
        production.archive_retain, production.archive_period_entries
    );
    figures.push(Figure::new("archive_bound", case, bound, "GB"));
    Ok(figures)
}

fn default_replayed(config: &ReplicaConfig) -> f64 {
    config.snapshot_every as f64
}

/// A job of the oldest period that is kept can be read, one of a dropped period cannot.
fn archive_check(replica: &Replica, cluster: &Cluster) -> Result<Check> {
    let last = cluster.jobs().iter().next_back().map_or(1, |(id, _)| id.0);
    let has = |id: u64| replica.archive().get(&Cluster::job_key(JobId(id)));
    // Of the oldest period that is kept, as far as the state has forgotten them.
    let (mut kept, mut missing) = (0, 0);
    for id in (last * 6 / 8..last * 7 / 8).step_by(97) {
        let gone_from_state = cluster.jobs().get(JobId(id)).is_none();
        if gone_from_state {
            kept += 1;
            missing += u64::from(has(id)?.is_none());
        }
    }
    let dropped = has(last / 4)?.is_none();
    Ok(Check {
        name: "old jobs are read from older periods, dropped ones are gone".into(),
        ok: missing == 0 && dropped,
        detail: format!("{missing} of {kept} missing; job {} dropped: {dropped}", last / 4),
    })
}
