//! Two fillers take every GPU that nobody else has.

use std::time::{Duration, Instant};

use anyhow::Result;
use rowen_api::v1::{FillerSpec, OwnerKind, Probe, Resources};

use super::Demo;
use crate::bench::figures::Figure;
use crate::demo::{http, until};

/// What a filler of the demo is promised before it is killed.
pub(super) const NOTICE_MS: u64 = 2000;
const WITHDRAW_MS: u64 = 200;

pub(super) async fn play(demo: &mut Demo<'_>) -> Result<()> {
    let gpus = demo.cluster.gpu_count();
    demo.screen.step("fillers take every idle GPU");
    let begun = Instant::now();
    // Together they want more than there is: `chat` is worth more and goes first.
    demo.rpc.deploy(filler(demo, "chat", 2, gpus as u32 / 4, 2_500_000)).await?;
    demo.rpc.deploy(filler(demo, "embed", 1, gpus as u32, 1_200_000)).await?;
    filled(demo, "fillers take every idle GPU").await?;
    let seconds = begun.elapsed().as_secs_f64();
    demo.figure(Figure::new("fill_time", format!("gpus={gpus}"), seconds, "s"));
    serve(demo).await
}

/// After something has freed GPUs.
pub(super) async fn again(demo: &mut Demo<'_>, title: &str) -> Result<()> {
    demo.screen.step(title);
    filled(demo, title).await
}

async fn filled(demo: &mut Demo<'_>, check: &str) -> Result<()> {
    let gpus = demo.cluster.gpu_count();
    demo.wait_filled(gpus).await?;
    let instances = demo.instances().await?;
    // The picture is pushed; it may come a moment later.
    let owned = until("the picture to show it", Duration::from_secs(30), async || {
        let occupancy = demo.screen.occupancy()?;
        let slots = occupancy.nodes.iter().flat_map(|node| &node.gpus);
        let filler = |kind: OwnerKind| kind == OwnerKind::Filler;
        let owned =
            slots.filter(|slot| slot.owner.as_ref().is_some_and(|o| filler(o.kind()))).count();
        (owned as u64 == gpus).then_some(owned)
    })
    .await?;
    let detail = format!("{} instances are ready on {owned} GPUs", instances.len());
    demo.check(check, true, detail);
    demo.screen.draw().await;
    Ok(())
}

/// Each filler answers a request where it says that it does.
async fn serve(demo: &mut Demo<'_>) -> Result<()> {
    let instances = demo.instances().await?;
    for name in ["chat", "embed"] {
        let found = instances.iter().find(|(n, i)| n == name && i.state == "ready");
        let Some((_, instance)) = found else { continue };
        let answer = http::get(&instance.address, "/").await;
        let expected = format!("{name} instance {}\n", instance.id);
        let ok = answer.as_ref().is_ok_and(|answer| *answer == (200, expected));
        let detail = format!("{} answered {answer:?}", instance.address);
        demo.check(&format!("an instance of {name} serves"), ok, detail);
    }
    Ok(())
}

fn filler(demo: &Demo<'_>, name: &str, gpus: u32, max: u32, value_micros: u64) -> FillerSpec {
    let readiness = Probe { http_path: "/health".into(), period_ms: 300, ..Default::default() };
    FillerSpec {
        name: name.to_string(),
        model: format!("demo-{name}"),
        resources: Some(Resources { gpus, ..Default::default() }),
        max_instances: max,
        value_micros,
        warm_up_ms: 100,
        notice_ms: NOTICE_MS,
        withdraw_ms: WITHDRAW_MS,
        readiness: Some(readiness),
        command: [&demo.exe, "demo-filler", "--warm-ms", "100"].map(str::to_string).to_vec(),
        env: demo.env(),
        ..Default::default()
    }
}
