//! Why a job waits, or where it is: the answer of `rowen why`.

use rowen_state::{Cluster, Job, JobId, JobState};
use rowen_topology::Level;

use crate::{
    Candidate, Cycle, Verdict,
    demand::Ask,
    draft::Draft,
    fit::{self, Holding},
    passes::backfill,
    queues::{Order, Queues},
    reason::{self, Census},
    slots::Pool,
    when::{self, PlannedStart},
};

/// Why a job waits, or where it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// One sentence.
    pub summary: String,
    /// What it waits for, in a word or a few; empty when it does not wait.
    pub binding_constraint: String,
    /// From 1; 0: it is not queued.
    pub queue_position: u32,
    /// Queued jobs.
    pub queue_length: u32,
    /// Coarse to fine; empty when it is not queued.
    pub levels: Vec<LevelReason>,
    /// What would admit it, `4 fewer workers, or pod instead of block`; empty: nothing known.
    pub cheapest_change: String,
    /// Unix time, as far as time limits and notices say; earlier is possible, later too.
    pub start_estimate_ms: Option<u64>,
}

/// What one level has for a job, fillers' GPUs counted as free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LevelReason {
    /// Which.
    pub level: Level,
    /// Domains there are.
    pub considered: u32,
    /// Those that would hold the job if nothing else ran.
    pub could_if_empty: u32,
    /// The one with the most room now.
    pub nearest: String,
    /// GPUs that it lacks; 0: it has room.
    pub nearest_lacks_gpus: u64,
}

/// Why a job waits (or where it is): for `rowen why`.
pub fn explain(view: &Cluster, job: JobId) -> Explanation {
    let base = Explanation { queue_length: view.queue_len() as u32, ..Explanation::default() };
    let Some(job) = view.jobs().get(job) else {
        return Explanation { summary: format!("there is no job {job}"), ..base };
    };
    match job.state {
        JobState::Queued => queued(view, job, base),
        JobState::Holding => holding(view, job, base),
        JobState::Running if view.growing().any(|small| small.id == job.id) => {
            let own = job.allocation.and_then(|own| view.allocations().get(own));
            let have = own.map_or(0, |own| own.tasks.len());
            let all = job.spec.workers;
            let worth = (2 * have).min(all as usize);
            let due_ms = job.running_ms.saturating_add(job.spec.shape.grow_after_ms);
            let after_s = due_ms.saturating_sub(view.now_ms()).div_ceil(1_000);
            let summary = format!(
                "job {} runs with {have} of {all} workers; it grows when it could have {worth} and \
                 no gang that waits takes them, no sooner than in {after_s} s",
                job.id
            );
            Explanation { summary, ..base }
        }
        _ => Explanation { summary: summary_of(job), ..base },
    }
}

fn summary_of(job: &Job) -> String {
    let state = match job.state {
        JobState::Queued => "is queued",
        JobState::Holding => "has GPUs held for it",
        JobState::Starting => "is starting",
        JobState::Running => "runs",
        JobState::Stopping => "is stopping",
        JobState::Completed => "has completed",
        JobState::Failed => "has failed",
        JobState::Cancelled => "was cancelled",
    };
    match job.reason.trim_start_matches("stopping: ") {
        "" => format!("job {} {state}", job.id),
        reason => format!("job {} {state}: {reason}", job.id),
    }
}

fn holding(view: &Cluster, job: &Job, base: Explanation) -> Explanation {
    let deadline_ms = job.hold.as_ref().map(|hold| hold.deadline_ms);
    Explanation {
        summary: summary_of(job),
        binding_constraint: "the notice of evicted fillers".into(),
        start_estimate_ms: deadline_ms.map(|at_ms| at_ms.max(view.now_ms())),
        ..base
    }
}

/// Replays the cycle up to the job, so that the answer is the one the planner gives.
fn queued(view: &Cluster, job: &Job, base: Explanation) -> Explanation {
    let mut cycle = Cycle::new(view);
    cycle.gangs_before(|other| other.id == job.id);
    let candidate = Candidate::of(job, &mut cycle.draft);
    let ask = candidate.ask;
    let levels = levels(&mut cycle.draft, &ask);
    let position = position(view, job);
    let base = Explanation { levels, queue_position: position, ..base };
    let before = cycle.draft.checkpoint();
    let estimate = backfill::estimate(&mut cycle, &ask);
    match cycle.consider(&candidate) {
        Verdict::Start(placement) | Verdict::Hold(placement) => Explanation {
            summary: format!("job {} goes with the next plan: {}", job.id, placement.why),
            binding_constraint: "the next plan".into(),
            start_estimate_ms: Some(view.now_ms() + placement.notice_ms),
            ..base
        },
        Verdict::Wait { reason, planned } => {
            cycle.draft.rollback(before); // what is kept for it does not stand in its way
            let reason = when::with_start(reason, planned);
            let said = match when::says_nothing_new(&job.reason, &reason, view.now_ms()) {
                true => &job.reason,
                false => &reason,
            };
            let wait_end_ms = wait_end_ms(&mut cycle.draft, job, &ask);
            let refused = cycle.queues.refuse(&job.spec, ask.with(ask.least).gpus()).is_some();
            let by_ms = estimate.map(|planned| planned.by_ms);
            Explanation {
                summary: format!("job {} waits: {said}", job.id),
                binding_constraint: match wait_end_ms {
                    _ if refused => "what its queue may have".into(),
                    Some(_) => "its locality wait".into(),
                    None => binding(&mut cycle.draft, &ask),
                },
                cheapest_change: cheapest_change(&mut cycle.draft, &ask, estimate),
                start_estimate_ms: by_ms.into_iter().chain(wait_end_ms).min(),
                ..base
            }
        }
    }
}

/// From 1, as the queues stand before anybody is given anything.
fn position(view: &Cluster, job: &Job) -> u32 {
    let (mut order, queues) = (Order::new(view), Queues::new(view));
    let jobs = std::iter::from_fn(|| order.next(&queues));
    jobs.take_while(|other| other.id != job.id).count() as u32 + 1
}

fn levels(draft: &mut Draft<'_>, ask: &Ask) -> Vec<LevelReason> {
    let index = draft.index();
    draft.slots(&ask.claim, Pool::Evicted);
    draft.slots(&ask.claim, Pool::Empty);
    let room = Holding::of(draft, ask, draft.counted(&ask.claim, Pool::Evicted));
    let empty = Holding::of(draft, ask, draft.counted(&ask.claim, Pool::Empty));
    let of_level = |level| {
        let (nearest, workers) = room.nearest(index, level)?;
        let holds = |domain: &_| empty.within(*domain) >= u64::from(ask.least);
        let lacks = u64::from(ask.least).saturating_sub(workers);
        Some(LevelReason {
            level,
            considered: index.domains(level).len() as u32,
            could_if_empty: fit::domains(index, level).filter(holds).count() as u32,
            nearest: index.domain(nearest).name.clone(),
            nearest_lacks_gpus: lacks * u64::from(ask.claim.gpus),
        })
    };
    Level::ALL.into_iter().filter_map(of_level).collect()
}

fn binding(draft: &mut Draft<'_>, ask: &Ask) -> String {
    if reason::never(draft, ask).is_some() {
        return "the size and kind of the fabric".into();
    }
    let index = draft.index();
    draft.slots(&ask.claim, Pool::Soon);
    let slots = draft.counted(&ask.claim, Pool::Soon);
    match Holding::of(draft, ask, slots).nearest(index, ask.required) {
        Some((_, workers)) if workers >= ask.least.into() => "GPUs that are coming free".into(),
        Some((nearest, workers)) => {
            let lost = (slots.within(nearest) - workers) * u64::from(ask.claim.gpus);
            Census::of(draft, &ask.claim, nearest).with_lost(lost).binding().into()
        }
        None => "a fabric".into(),
    }
}

/// When the locality wait ends, where that would admit the job.
fn wait_end_ms(draft: &mut Draft<'_>, job: &Job, ask: &Ask) -> Option<u64> {
    if !ask.waits {
        return None;
    }
    let later = draft.ask_of(&job.spec, false);
    draft.slots(&later.claim, Pool::Evicted);
    let slots = draft.counted(&later.claim, Pool::Evicted);
    fit::fits(draft, &later.with(later.least), slots)
        .then(|| job.queued_ms.saturating_add(job.spec.shape.locality_wait_ms))
}

/// What would admit the job now, or first.
fn cheapest_change(draft: &mut Draft<'_>, ask: &Ask, estimate: Option<PlannedStart>) -> String {
    let pool = match reason::never(draft, ask).is_some() {
        true => Pool::Empty,
        false => Pool::Evicted,
    };
    let (index, now_ms) = (draft.index(), draft.view.now_ms());
    draft.slots(&ask.claim, pool);
    let room = Holding::of(draft, ask, draft.counted(&ask.claim, pool));
    let most = |level| room.nearest(index, level).map_or(0, |(_, workers)| workers);
    let needed = u64::from(ask.least);
    let mut changes = Vec::new();
    let wider = Level::ALL.into_iter().rev().filter(|level| *level < ask.required);
    if let Some(level) = wider.into_iter().find(|level| most(*level) >= needed) {
        changes.push(reason::instead(level, ask.required));
    }
    match needed.saturating_sub(most(ask.required)) {
        0 => {}
        1 if needed > 1 => changes.push("1 fewer worker".into()),
        fewer if fewer < needed => changes.push(format!("{fewer} fewer workers")),
        _ => {}
    }
    if let Some(PlannedStart { by_ms, after: Some(job) }) = estimate {
        let in_s = by_ms.saturating_sub(now_ms).div_ceil(1_000);
        changes.push(format!("the end of job {job} (by its time limit in {in_s} s)"));
    }
    changes.join(", or ")
}
