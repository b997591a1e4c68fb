//! One worker on the empty cluster: how long from submission to running.

use std::time::Duration;

use anyhow::Result;
use rowen_api::v1::JobState;

use super::Demo;
use crate::bench::figures::Figure;
use crate::cluster::rpc::ended;
use crate::output::words::job_state;

pub(super) async fn play(demo: &mut Demo<'_>) -> Result<()> {
    let nodes = demo.cluster.node_names().len();
    let gpus = demo.cluster.gpu_count();
    demo.event(format!(
        "{nodes} agents are up with {gpus} GPUs; the control plane is {}",
        demo.cluster.addr()
    ));
    demo.screen.step("one worker on the empty cluster");
    let mut spec = demo.gang("hello", 1, "", &["--rounds", "10", "--pause-ms", "20"]);
    spec.resources = spec.resources.map(|r| rowen_api::v1::Resources { gpus: 1, ..r });
    let id = demo.rpc.submit(spec).await?;
    let job = demo.rpc.wait_job(id, Duration::from_secs(90), ended).await?;
    let done = job.state() == JobState::Completed && job.attempt == 1;
    demo.check("a one-worker job runs to its end", done, job_state(job.state()));
    let delay_ms = job.running_ms.saturating_sub(job.submitted_ms);
    demo.figure(Figure::new("submit_to_running", "gpus=1 idle", delay_ms as f64, "ms"));
    Ok(())
}
