//! Grow: a gang that runs with fewer workers than it asked for gives way to a larger attempt of its
//! own. Comes after every waiting gang, and only when it is worth a restart: twice as many workers
//! or all, after the attempt has run as long as its job says.

use rowen_state::{AllocationId, Cluster, Decision, Job, JobId};

use crate::{Cycle, MAX_DECISIONS, Verdict, fit, slots::Pool};

/// Proposes larger attempts, oldest job first.
pub(crate) fn grow(cycle: &mut Cycle<'_>) {
    let view = cycle.view;
    for job in view.growing().filter(|job| is_due(view, job)) {
        if cycle.decisions.len() >= MAX_DECISIONS {
            return;
        }
        let before = cycle.draft.checkpoint();
        match larger(cycle, job) {
            Some(decision) => cycle.decisions.push(decision),
            None => cycle.draft.rollback(before),
        }
    }
}

fn is_due(view: &Cluster, job: &Job) -> bool {
    view.now_ms() >= job.running_ms.saturating_add(job.spec.shape.grow_after_ms)
}

/// Tries it on the draft, as if the present attempt had ended.
fn larger(cycle: &mut Cycle<'_>, job: &Job) -> Option<Decision> {
    let (own, have) = attempt(cycle.view, job.id)?;
    let worth = have.saturating_mul(2).min(job.spec.workers);
    let ask = cycle.draft.ask_of(&job.spec, false);
    let room = cycle.draft.slots(&ask.claim, Pool::Evicted);
    let most = fit::domains(cycle.view.index(), ask.required).map(|domain| room.within(domain));
    if most.max()? + u64::from(have) < worth.into() {
        return None; // whatever its form: its own GPUs give no more than it has
    }
    cycle.draft.vacate(own, ask.claim.exclusive);
    let sized = cycle.sized(&ask, Pool::Evicted);
    if sized.workers < worth {
        return None;
    }
    let placement = match cycle.placed(&sized)? {
        Verdict::Start(placement) | Verdict::Hold(placement) => placement,
        Verdict::Wait { .. } => return None,
    };
    let have_gpus = u64::from(have) * u64::from(ask.claim.gpus);
    let more_gpus = sized.gpus().saturating_sub(have_gpus);
    if cycle.queues.refuse(&job.spec, more_gpus).is_some() {
        return None;
    }
    cycle.queues.give(&job.spec.queue, more_gpus);
    let done = cycle.done_of(&ask.claim, &placement);
    cycle.done.push(done);
    cycle.draft.occupy(own, &sized.claim);
    let why = format!("from {have} to {} workers: {}", sized.workers, placement.why);
    Some(Decision::Grow { job: job.id, places: placement.places, victims: placement.victims, why })
}

/// The present attempt's allocation, and how many workers it has.
fn attempt(view: &Cluster, job: JobId) -> Option<(AllocationId, u32)> {
    let own = view.allocations().get(view.jobs().get(job)?.allocation?)?;
    Some((own.id, own.tasks.len() as u32))
}
