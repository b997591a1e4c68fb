//! SIGKILL to the control plane while a gang runs and submissions come in, and a new start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use rowen_api::v1::{Job, JobSpec, JobState, RequestId};

use super::{Demo, Gangs};
use crate::bench::figures::Figure;
use crate::cluster::rpc::{Rpc, ended};
use crate::demo::journal::What;
use crate::output::words::job_state;

/// Short: well within the node lease, so that nothing may end.
const SHORT: Duration = Duration::from_millis(500);
/// What a busy machine may take on top to end processes.
const BUSY: Duration = Duration::from_secs(10);

pub(super) async fn play(demo: &mut Demo<'_>, gangs: &Gangs) -> Result<()> {
    demo.screen.step("the control plane is killed while the gang runs");
    let before = demo.rpc.job(gangs.long).await?;
    let pids = pids(demo, &before)?;
    let burst = tokio::spawn(submit_until_it_fails(
        Arc::new(demo.cluster.rpc()),
        demo.gang("burst", demo.cluster.node_names().len() as u32, "pod", &[]),
    ));
    tokio::time::sleep(Duration::from_millis(40 + demo.args.seed * 37 % 80)).await;
    demo.cluster.kill_server();
    let begun = Instant::now();
    let burst = burst.await?;
    let count = burst.acknowledged.len();
    demo.event(format!("killed (SIGKILL) after {count} acknowledged submissions"));
    let away = stays_away(demo, &pids).await;
    demo.cluster.start_server().await?;
    let (seconds, case) = (begun.elapsed().as_secs_f64(), format!("restart after {away:?}"));
    demo.figure(Figure::new("control_plane_away", case, seconds, "s"));
    nothing_lost(demo, burst).await?;
    still_waits(demo, gangs).await?;
    goes_on_or_requeues(demo, gangs, &before, &pids).await
}

/// Odd seeds: a moment, which the tasks must not notice. Even ones: past the node lease, and then
/// every task must have been ended by its own shim, since nobody can know who else was given the
/// GPUs by now.
async fn stays_away(demo: &mut Demo<'_>, pids: &BTreeSet<u32>) -> Duration {
    let past_lease = Duration::from_millis(demo.cluster.timing().node_lease_ms + 2000);
    let short = demo.args.seed % 2 == 1;
    let away = if short { SHORT } else { past_lease };
    tokio::time::sleep(away).await;
    let alive = || pids.iter().filter(|pid| lives(**pid)).count();
    let begun = Instant::now();
    while !short && alive() > 0 && begun.elapsed() < BUSY {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let alive = alive();
    let detail = format!("{alive} of {} processes live after {away:?}", pids.len());
    match short {
        true => demo.check("the gang runs on without a control plane", alive == 8, detail),
        false => demo.check("no task outlives its node lease", alive == 0, detail),
    }
    away
}

// A zombie has no arguments any more.
fn lives(pid: u32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|arguments| !arguments.is_empty())
}

/// Of a burst of submissions, each under a request id of its own.
struct Burst {
    acknowledged: BTreeMap<u64, String>,
    /// The one that was under way when the connection broke.
    open: (RequestId, JobSpec),
    rpc: Arc<Rpc>,
}

async fn submit_until_it_fails(rpc: Arc<Rpc>, spec: JobSpec) -> Burst {
    let mut acknowledged = BTreeMap::new();
    let mut count = 0;
    loop {
        count += 1;
        let spec = JobSpec { name: format!("burst-{count}"), ..spec.clone() };
        let request = rpc.request_id();
        match rpc.submit_as(request.clone(), spec.clone()).await {
            Ok(id) => acknowledged.insert(id, spec.name),
            Err(_) => return Burst { acknowledged, open: (request, spec), rpc },
        };
    }
}

/// What was acknowledged is there, and what was not is there once after a retry.
async fn nothing_lost(demo: &mut Demo<'_>, burst: Burst) -> Result<()> {
    let Burst { mut acknowledged, open: (request, spec), rpc } = burst;
    let name = spec.name.clone();
    let id = rpc.submit_as(request.clone(), spec.clone()).await?;
    let again = rpc.submit_as(request, spec).await?;
    demo.check("a retried submission happens once", id == again, format!("job {id} both times"));
    acknowledged.insert(id, name);
    let jobs: Vec<Job> = demo.rpc.jobs().await?;
    let name_of = |job: &Job| job.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
    let found: BTreeMap<u64, String> = jobs
        .iter()
        .map(|job| (job.id, name_of(job)))
        .filter(|(_, name)| name.starts_with("burst-"))
        .collect();
    let detail = format!("{} acknowledged, {} there", acknowledged.len(), found.len());
    demo.check("no acknowledged job is lost, none is there twice", acknowledged == found, detail);
    for id in acknowledged.keys() {
        demo.rpc.cancel(*id).await?;
    }
    Ok(())
}

async fn still_waits(demo: &mut Demo<'_>, gangs: &Gangs) -> Result<()> {
    let wide = demo.rpc.job(gangs.wide).await?;
    let state = wide.state();
    demo.check("the waiting gang still waits", state == JobState::Queued, job_state(state));
    Ok(())
}

async fn goes_on_or_requeues(
    demo: &mut Demo<'_>,
    gangs: &Gangs,
    before: &Job,
    pids_before: &BTreeSet<u32>,
) -> Result<()> {
    // Longer than the node lease: had an agent not come back, its tasks would have ended by now.
    tokio::time::sleep(Duration::from_millis(demo.cluster.timing().node_lease_ms + 500)).await;
    let nodes = demo.cluster.node_names();
    demo.cluster.wait_nodes_up(&nodes, Duration::from_secs(60)).await?;
    let up = |job: &Job| job.state() == JobState::Running || ended(job);
    let after = demo.rpc.wait_job(gangs.long, Duration::from_secs(90), up).await?;
    let pids = pids(demo, &after)?;
    let whole = after.state() == JobState::Running && pids.len() == 8 && after.tasks.len() == 8;
    let (ok, how) = if after.attempt == before.attempt {
        (whole && pids == *pids_before, "it went on, with the same processes")
    } else {
        (whole && pids.is_disjoint(pids_before), "it was requeued whole, with new processes")
    };
    let detail = format!("{how}; it is {} {}", job_state(after.state()), after.reason);
    demo.check("the gang goes on, or requeues whole", ok, detail);
    demo.screen.draw().await;
    Ok(())
}

/// The processes of the job's current attempt, as they wrote themselves.
fn pids(demo: &Demo<'_>, job: &Job) -> Result<BTreeSet<u32>> {
    let (owner, attempt) = (job.id.to_string(), u64::from(job.attempt));
    let lines = demo.lines()?;
    let mine = lines.iter().filter(|line| line.who.kind == "job" && line.who.owner == owner);
    let mine = mine.filter(|line| line.what == What::Start && line.who.part == attempt);
    Ok(mine.map(|line| line.who.pid).collect())
}
