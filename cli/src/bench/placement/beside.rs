//! Whether a planner holds up apply: commands are applied while another thread plans, and the
//! slowest of them is told.
//!
//! The planner has a view of its own, so apply waits for no lock; what a view costs is that apply
//! copies the chunks that the two share when it first changes them. In CPU time of the thread that
//! applies.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use anyhow::{Result, ensure};

use super::world::{World, gang};

/// The slowest command of so many rounds: while nobody plans, and while a plan is always under way
/// on a view that was taken just before.
pub(super) fn slowest_applies_us(
    world: &mut World,
    rounds: u32,
) -> Result<[(&'static str, f64); 2]> {
    let alone_us = slowest(world, rounds, false)?;
    let beside_us = slowest(world, rounds, true)?;
    Ok([("alone", alone_us), ("while planning", beside_us)])
}

fn slowest(world: &mut World, rounds: u32, planning: bool) -> Result<f64> {
    world.slowest_apply_us = 0.0;
    // Something to plan: a gang that fits nowhere, so every pass is tried.
    let job = world.submit(gang(131_072, 8, None))?;
    for _ in 0..rounds {
        if planning {
            apply_beside_a_plan(world)?;
        } else {
            world.churn()?;
        }
    }
    world.end(job)?;
    Ok(world.slowest_apply_us)
}

/// Applies commands until at least one plan was made meanwhile.
fn apply_beside_a_plan(world: &mut World) -> Result<()> {
    let view = world.cluster.clone();
    let (plans, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                black_box(rowen_placement::plan(black_box(&view)));
                plans.fetch_add(1, Ordering::Relaxed);
            }
        });
        let mut applied = Ok(());
        while applied.is_ok() && plans.load(Ordering::Relaxed) == 0 {
            applied = world.churn();
        }
        stop.store(true, Ordering::Relaxed);
        applied
    })?;
    ensure!(plans.into_inner() > 0, "no plan was made");
    Ok(())
}
