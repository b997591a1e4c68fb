//! The end: no invariant broken, no GPU twice, every GPU-millisecond accounted for, and what the
//! fillers brought.

use anyhow::Result;
use rowen_api::v1::ClusterStatus;

use super::Demo;
use crate::bench::figures::Figure;
use crate::demo::journal::{What, conflicts, lives};

/// `before` is the status when the cluster had just come up.
pub(crate) async fn close(demo: &mut Demo<'_>, before: &ClusterStatus) -> Result<()> {
    demo.screen.step("the books");
    let after = demo.rpc.status().await?;
    let violations = after.violations.len();
    let detail = after.violations.first().cloned().unwrap_or_else(|| "none".into());
    demo.check("no invariant of the state is violated", violations == 0, detail);
    no_gpu_twice(demo)?;
    let spent = Spent::between(before, &after);
    let balanced = spent.total_ms() == spent.elapsed_gpu_ms && spent.elapsed_gpu_ms > 0;
    let detail = format!("{} of {} GPU-ms", spent.total_ms(), spent.elapsed_gpu_ms);
    demo.check("gang + filler + idle + down = GPUs × time", balanced, detail);
    figures(demo, &spent, violations);
    demo.figure(Figure::new("wal_syncs", "fdatasync of the log", after.wal_syncs as f64, ""));
    Ok(())
}

fn no_gpu_twice(demo: &mut Demo<'_>) -> Result<()> {
    let lines = demo.lines()?;
    let conflicts = conflicts(&lines);
    let lives = lives(&lines);
    let cuts = lines.iter().filter(|line| line.what == What::Cut).count();
    let detail = match conflicts.first() {
        None => format!("{} processes, {cuts} lost node", lives.len()),
        Some(first) => format!("{} conflicts: {first}", conflicts.len()),
    };
    demo.check("no GPU had two owners, no job two attempts", conflicts.is_empty(), detail);
    Ok(())
}

/// What the GPUs were used for, in GPU-milliseconds.
struct Spent {
    gang_ms: u64,
    filler_ms: u64,
    idle_ms: u64,
    down_ms: u64,
    evictions: u64,
    elapsed_gpu_ms: u64,
}

impl Spent {
    fn between(before: &ClusterStatus, after: &ClusterStatus) -> Spent {
        let since = |of: fn(&ClusterStatus) -> u64| of(after).saturating_sub(of(before));
        Spent {
            gang_ms: since(|s| s.gang_gpu_ms),
            filler_ms: since(|s| s.filler_gpu_ms),
            idle_ms: since(|s| s.idle_gpu_ms),
            down_ms: since(|s| s.down_gpu_ms),
            evictions: since(|s| s.evictions),
            elapsed_gpu_ms: since(|s| s.now_ms) * u64::from(after.gpus),
        }
    }

    fn total_ms(&self) -> u64 {
        self.gang_ms + self.filler_ms + self.idle_ms + self.down_ms
    }
}

fn figures(demo: &mut Demo<'_>, spent: &Spent, violations: usize) {
    let percent = |part: u64| part as f64 * 100.0 / (spent.total_ms().max(1)) as f64;
    let (without, with) = (percent(spent.gang_ms), percent(spent.gang_ms + spent.filler_ms));
    let case = "the whole demo";
    demo.figure(Figure::new("utilisation_without_fillers", case, without, "%"));
    let figure = Figure::new("utilisation_with_fillers", case, with, "%");
    demo.figure(figure.beside("without fillers", without).at_least(90.0));
    let harvested = spent.filler_ms as f64 / 1e3;
    demo.figure(Figure::new("harvested", case, harvested, "GPU-s"));
    demo.figure(Figure::new("evictions", case, spent.evictions as f64, "instances"));
    demo.figure(Figure::new("violations", "verify()", violations as f64, "").at_most(0.0));
}
