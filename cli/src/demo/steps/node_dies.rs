//! A node of the running gang loses power: the gang stops, requeues whole and completes elsewhere;
//! when the node is back, the gang that waited for it runs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rowen_api::v1::{Job, JobState};

use super::fill::NOTICE_MS;
use super::pretrain::exact_ranks;
use super::{Demo, Gangs};
use crate::bench::figures::Figure;
use crate::cluster::rpc::ended;
use crate::demo::journal::{What, boottime_ns};
use crate::output::words::job_state;

pub(super) async fn play(demo: &mut Demo<'_>, gangs: &Gangs) -> Result<()> {
    let node = loses_power(demo, gangs).await?;
    completes_elsewhere(demo, gangs, &node).await?;
    comes_back(demo, gangs, &node).await
}

async fn loses_power(demo: &mut Demo<'_>, gangs: &Gangs) -> Result<String> {
    let before = demo.rpc.job(gangs.long).await?;
    let nth = (demo.args.seed % before.tasks.len().max(1) as u64) as usize;
    let node = before.tasks.get(nth).context("the gang has no tasks")?.node.clone();
    demo.screen.step(&format!("{node} loses power: its agent and all its tasks are killed"));
    let (begun, killed_ns) = (Instant::now(), boottime_ns());
    demo.kill_node(&node)?;
    let attempt = before.attempt + 1;
    let again =
        |job: &Job| (job.attempt == attempt && job.state() == JobState::Running) || ended(job);
    let after = demo.rpc.wait_job(gangs.long, Duration::from_secs(60), again).await?;
    let requeue_ms = begun.elapsed().as_secs_f64() * 1e3;
    demo.screen.draw().await;
    let requeued = after.attempt == attempt && after.failures == 0 && after.tasks.len() == 8;
    let detail = format!("attempt {} with {} workers", after.attempt, after.tasks.len());
    demo.check("the gang requeues whole, and that is no failure of its own", requeued, detail);
    let used: BTreeSet<&str> = after.tasks.iter().map(|task| task.node.as_str()).collect();
    let elsewhere = !used.contains(node.as_str());
    demo.check("never on the lost node", elsewhere, format!("it runs on {used:?}"));
    let timing = demo.cluster.timing();
    let margin_ms = timing.node_lease_ms + 1500 + timing.kill_ms;
    waits_out_the_margin(demo, gangs.long, attempt, killed_ns, margin_ms)?;
    let bar_ms = (margin_ms + NOTICE_MS + 1000) as f64;
    let figure = Figure::new("requeue_after_node_loss", "gpus=64", requeue_ms, "ms");
    demo.figure(figure.beside("node lease + notice + kill", margin_ms as f64).at_most(bar_ms));
    Ok(node)
}

/// The lost node may still run, for all that the control plane knows, until the margin has passed
/// since it was last heard; that was at most two heartbeats before it was killed.
fn waits_out_the_margin(
    demo: &mut Demo<'_>,
    job: u64,
    attempt: u32,
    killed_ns: u64,
    margin_ms: u64,
) -> Result<()> {
    let owner = job.to_string();
    let lines = demo.lines()?;
    let first = lines
        .iter()
        .filter(|line| line.what == What::Start && line.who.kind == "job")
        .filter(|line| line.who.owner == owner && line.who.part == u64::from(attempt))
        .map(|line| line.at_ns)
        .min()
        .context("no worker of the new attempt wrote that it started")?;
    let waited_ms = first.saturating_sub(killed_ns) / 1_000_000;
    let least_ms = margin_ms.saturating_sub(2 * demo.cluster.timing().heartbeat_ms);
    let detail = format!("it starts {waited_ms} ms after the loss; the margin is {margin_ms} ms");
    demo.check("not before the lost node's margin has passed", waited_ms >= least_ms, detail);
    Ok(())
}

async fn completes_elsewhere(demo: &mut Demo<'_>, gangs: &Gangs, node: &str) -> Result<()> {
    let nodes = demo.rpc.nodes().await?;
    let state = nodes.iter().find(|n| n.name == node).map_or("", |n| n.state.as_str());
    demo.check("the node is known to be lost", state == "down", format!("{node} is {state:?}"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    std::fs::write(&gangs.stop_long, "")?;
    let done = demo.rpc.wait_job(gangs.long, Duration::from_secs(90), ended).await?;
    let ranks = exact_ranks(&demo.rpc.output(gangs.long).await?);
    let ok = done.state() == JobState::Completed && ranks == (0..8).collect();
    let detail = format!("{}, ranks {ranks:?} summed exactly", job_state(done.state()));
    demo.check("the gang completes elsewhere", ok, detail);
    let wide = demo.rpc.job(gangs.wide).await?;
    let waits = wide.state() == JobState::Queued;
    demo.check("the third gang still lacks a node", waits, wide.reason);
    Ok(())
}

async fn comes_back(demo: &mut Demo<'_>, gangs: &Gangs, node: &str) -> Result<()> {
    demo.screen.step(&format!("{node} is back, and the gang that wants every node runs"));
    demo.cluster.start_agent(node)?;
    demo.cluster.wait_nodes_up(&[node.to_string()], Duration::from_secs(60)).await?;
    let up = |job: &Job| job.state() == JobState::Running || ended(job);
    let job = demo.rpc.wait_job(gangs.wide, Duration::from_secs(90), up).await?;
    demo.screen.draw().await;
    let used: BTreeSet<&str> = job.tasks.iter().map(|task| task.node.as_str()).collect();
    let all = used.len() == demo.cluster.node_names().len();
    demo.check("the waiting gang gets its nodes", all, format!("{} nodes", used.len()));
    let done = demo.rpc.wait_job(gangs.wide, Duration::from_secs(90), ended).await?;
    let ranks = exact_ranks(&demo.rpc.output(gangs.wide).await?).len();
    let ok = done.state() == JobState::Completed && ranks == used.len();
    let detail = format!("{}, {ranks} ranks summed exactly", job_state(done.state()));
    demo.check("and completes", ok, detail);
    demo.cluster.ensure_alive()
}
