//! While one gang runs on a block, another wants every node: it waits, and `why` says what it lacks.

use std::time::Duration;

use anyhow::Result;
use rowen_api::v1::{Job, JobState};

use super::{Demo, Gangs};
use crate::cluster::rpc::ended;
use crate::demo::until;
use crate::output::words::job_state;

/// What the running gang has, and so what the other lacks.
const LACKS: u32 = 64;

pub(super) async fn play(demo: &mut Demo<'_>) -> Result<Gangs> {
    demo.screen.step("a second gang runs, and a third is too large for what is left");
    let stop_long = demo.cluster.data().join("stop-long");
    let until_file = stop_long.display().to_string();
    let options = ["--rounds", "2", "--pause-ms", "100", "--mib", "1", "--until", &until_file];
    let mut spec = demo.gang("long", 8, "block", &options);
    // Bounds how long a lost node keeps the gang waiting.
    spec.notice_ms = Some(1500);
    let long = demo.rpc.submit(spec).await?;
    let up = |job: &Job| job.state() == JobState::Running || ended(job);
    let job = demo.rpc.wait_job(long, Duration::from_secs(90), up).await?;
    let running = job.state() == JobState::Running;
    let detail = format!("job {long} is {} {}", job_state(job.state()), job.reason);
    demo.check("the second gang runs", running, detail);
    let options = ["--rounds", "5", "--pause-ms", "50", "--mib", "1"];
    let nodes = demo.cluster.node_names().len() as u32;
    let wide = demo.rpc.submit(demo.gang("wide", nodes, "pod", &options)).await?;
    waits(demo, wide).await?;
    demo.screen.draw().await;
    Ok(Gangs { long, stop_long, wide })
}

async fn waits(demo: &mut Demo<'_>, wide: u64) -> Result<()> {
    // The reason is there once a planning pass has looked at it.
    let why = until("a reason why it waits", Duration::from_secs(30), async || {
        let why = demo.rpc.why(wide).await.ok()?;
        (!why.levels.is_empty() || !why.binding_constraint.is_empty()).then_some(why)
    })
    .await?;
    let queued = why.state() == JobState::Queued;
    demo.check("the third gang waits", queued, format!("job {wide}: {}", job_state(why.state())));
    let lacks = |level: &rowen_api::v1::LevelReason| level.nearest_lacks_gpus == LACKS;
    let said = why.levels.iter().any(lacks) && why.summary.contains(&LACKS.to_string());
    demo.check("`why` says what it lacks", said, why.summary);
    Ok(())
}
