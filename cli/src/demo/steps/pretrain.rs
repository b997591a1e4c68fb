//! A training gang takes a block: only the fillers in its way end, with their notice, and then
//! all its workers start at once.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use rowen_api::v1::{Job, JobState, PlanJobResponse};

use super::Demo;
use super::fill::NOTICE_MS;
use crate::bench::figures::{Figure, percentile};
use crate::cluster::rpc::ended;
use crate::demo::journal::{Line, What, boottime_ns};
use crate::output::words::job_state;

const WORKERS: u32 = 8;

/// Name of the filler and number of the instance.
type InstanceId = (String, u64);

pub(super) async fn play(demo: &mut Demo<'_>) -> Result<()> {
    demo.screen.step("a gang of 8 workers × 8 GPUs, inside one block");
    let options = ["--mib", "2", "--rounds", "8", "--pause-ms", "150"];
    let spec = demo.gang("pretrain", WORKERS, "block", &options);
    let before = demo.instances().await?;
    let plan = demo.rpc.plan(spec.clone()).await?;
    let (victims, notice_ms) = (plan.victims.len(), plan.start_in_ms);
    demo.event(format!("the plan: {}, {victims} instances go, start in {notice_ms} ms", plan.span));
    let submitted_ns = boottime_ns();
    let id = demo.rpc.submit(spec).await?;
    let up = |job: &Job| job.state() == JobState::Running || ended(job);
    let job = demo.rpc.wait_job(id, Duration::from_secs(90), up).await?;
    let nodes: BTreeSet<&str> = job.tasks.iter().map(|task| task.node.as_str()).collect();
    demo.event(format!("job {id} runs on {} nodes", nodes.len()));
    demo.screen.draw().await;
    one_block(demo, &nodes).await?;
    let in_the_way: BTreeSet<InstanceId> = before
        .iter()
        .filter(|(_, instance)| nodes.contains(instance.node.as_str()))
        .map(|(name, instance)| (name.clone(), instance.id))
        .collect();
    let done = demo.rpc.wait_job(id, Duration::from_secs(60), ended).await?;
    let lines: Vec<Line> =
        demo.lines()?.into_iter().filter(|line| line.at_ns >= submitted_ns).collect();
    let last_end_ns = victims_ended(demo, &plan, &in_the_way, &lines)?;
    started_at_once(demo, id, &lines, last_end_ns)?;
    start_delay(demo, &job, notice_ms);
    all_reduced(demo, &done).await
}

async fn one_block(demo: &mut Demo<'_>, nodes: &BTreeSet<&str>) -> Result<()> {
    let all = demo.rpc.nodes().await?;
    let mine = all.iter().filter(|node| nodes.contains(node.name.as_str()));
    let blocks: BTreeSet<&str> = mine.map(|node| node.block.as_str()).collect();
    let ok = blocks.len() == 1 && nodes.len() == WORKERS as usize;
    demo.check("the gang is inside one block", ok, format!("{} nodes in {blocks:?}", nodes.len()));
    Ok(())
}

/// Who was told to stop, as the processes themselves wrote; returns when the last had ended.
fn victims_ended(
    demo: &mut Demo<'_>,
    plan: &PlanJobResponse,
    in_the_way: &BTreeSet<InstanceId>,
    lines: &[Line],
) -> Result<u64> {
    let instance = |line: &Line| (line.who.owner.clone(), line.who.part);
    let of_filler = |line: &&Line| line.who.kind == "filler";
    let told: Vec<&Line> =
        lines.iter().filter(of_filler).filter(|line| line.what == What::Term).collect();
    let told_ids: BTreeSet<InstanceId> = told.iter().map(|line| instance(line)).collect();
    let same = told_ids == *in_the_way;
    let detail = format!("{} told to end, {} in the way", told_ids.len(), in_the_way.len());
    demo.check("only the fillers in its way are evicted", same, detail);
    let planned: BTreeSet<InstanceId> = plan
        .victims
        .iter()
        .filter_map(|victim| victim.owner.as_ref())
        .map(|owner| (owner.name.clone(), owner.part))
        .collect();
    let detail = format!("{} planned", planned.len());
    demo.check("they are the ones that `plan` named", planned == told_ids, detail);
    let mut last_end_ns = 0;
    let (mut late, mut longest_ms) = (Vec::new(), 0);
    for term in told {
        let end = lines.iter().find(|line| line.what == What::End && line.who == term.who);
        let deadline = term.deadline_unix_ms;
        match (end, deadline) {
            (Some(end), Some(deadline)) if end.unix_ms <= deadline => {
                longest_ms = longest_ms.max((end.at_ns - term.at_ns) / 1_000_000);
                last_end_ns = last_end_ns.max(end.at_ns);
            }
            (None, _) => late.push(format!("{} never wrote its end", term.who)),
            (_, None) => late.push(format!("{} found no notice file", term.who)),
            (Some(_), Some(_)) => late.push(format!("{} ended after its notice", term.who)),
        }
    }
    let detail = match late.first() {
        None => format!("the slowest took {longest_ms} ms of {NOTICE_MS} ms"),
        Some(first) => format!("{} did not: {first}", late.len()),
    };
    demo.check("each ends within its notice", late.is_empty(), detail);
    Ok(last_end_ns)
}

fn started_at_once(demo: &mut Demo<'_>, id: u64, lines: &[Line], last_end_ns: u64) -> Result<()> {
    let owner = id.to_string();
    let of_job = |line: &&Line| line.what == What::Start && line.who.owner == owner;
    let starts: Vec<u64> = lines.iter().filter(of_job).map(|line| line.at_ns).collect();
    let first = *starts.iter().min().context("no worker wrote that it started")?;
    let last = *starts.iter().max().context("no worker wrote that it started")?;
    let spread_ms = (last - first) as f64 / 1e6;
    let all = starts.len() == WORKERS as usize;
    let detail = format!("{} workers within {spread_ms:.0} ms", starts.len());
    // The figure has a bar; what must hold on any machine is that none waits for another.
    demo.check("the gang starts all at once", all && spread_ms < 10_000.0, detail);
    let after = first >= last_end_ns;
    let detail = format!("{:.0} ms after", (first as f64 - last_end_ns as f64) / 1e6);
    demo.check("it starts after the last victim has ended", after, detail);
    demo.figure(Figure::new("gang_start_spread", "workers=8", spread_ms, "ms").at_most(1000.0));
    Ok(())
}

fn start_delay(demo: &mut Demo<'_>, job: &Job, notice_ms: u64) {
    let delay_ms = job.running_ms.saturating_sub(job.submitted_ms);
    let ok = job.running_ms > 0 && notice_ms == NOTICE_MS && delay_ms <= notice_ms;
    let detail = format!("{delay_ms} ms of {notice_ms} ms");
    demo.check("it waits no longer than the notice promised", ok, detail);
    let figure = Figure::new("gang_start_delay", "gpus=64 over fillers", delay_ms as f64, "ms");
    let notice = notice_ms as f64;
    demo.figure(figure.beside("the notice promised", notice).at_most(notice));
}

async fn all_reduced(demo: &mut Demo<'_>, job: &Job) -> Result<()> {
    let completed = job.state() == JobState::Completed && job.attempt == 1;
    let detail = format!("{}: {}", job_state(job.state()), job.reason);
    demo.check("the gang ends well", completed, detail);
    let output = demo.rpc.output(job.id).await?;
    let told = exact_ranks(&output);
    let all = (0..WORKERS).collect();
    demo.check("every rank summed exactly", told == all, format!("ranks {told:?} say so"));
    let speeds: Vec<f64> =
        output.iter().filter_map(|line| field(line, "busbw_gbs")?.parse().ok()).collect();
    let case = "ranks=8 mib=2 tcp loopback";
    demo.figure(Figure::new("allreduce_busbw", case, percentile(&speeds, 50.0), "GB/s"));
    Ok(())
}

/// The ranks that wrote that their sums were exact.
pub(super) fn exact_ranks(output: &[String]) -> BTreeSet<u32> {
    let exact = output.iter().filter(|line| field(line, "sum") == Some("exact"));
    exact.filter_map(|line| field(line, "rank")?.parse().ok()).collect()
}

fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}
