//! Reclaim and preempt: gangs leave for a gang whose queue is below its guarantee, if theirs
//! borrowed, or for one of higher priority, where their queue allows it.
//!
//! Nobody leaves unless the whole gang then fits, and every one of them is needed: without any one
//! no domain would hold it, even if every filler left. Whom a gang may take from at all says
//! [`Cluster::check_takes`], which apply asks again.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use rowen_state::{
    Allocation, AllocationId, Cluster, Job, JobSpec, JobState, Owner, Queue, QueueId,
};

use crate::{
    Candidate, Cycle,
    demand::Ask,
    draft::Draft,
    evicting,
    fit::{self, Placement},
    passes::allocate,
    slots::Pool,
};

/// Gangs that may leave for one.
const MOST: usize = 128;
/// Searches of one cycle: each tries many drafts.
const SEARCHES: u32 = 8;

/// What the cycle knows of gangs that may leave.
#[derive(Default)]
pub(crate) struct Reclaim<'a> {
    searches: u32,
    /// Running gangs by queue, once somebody asked.
    running: Option<BTreeMap<&'a str, Vec<Gang<'a>>>>,
    /// They leave already.
    taken: BTreeSet<AllocationId>,
    /// By their queues.
    given_up: BTreeMap<QueueId, u64>,
}

#[derive(Clone, Copy)]
struct Gang<'a> {
    job: &'a Job,
    allocation: &'a Allocation,
}

impl Gang<'_> {
    /// Work that is lost: since it began, or since its last checkpoint at best.
    fn lost_gpu_ms(&self, view: &Cluster) -> u64 {
        let age_ms = view.now_ms().saturating_sub(self.allocation.bound_ms);
        let lost_ms = match self.job.spec.checkpoint_interval_ms {
            0 => age_ms,
            interval_ms => age_ms.min(interval_ms),
        };
        lost_ms.saturating_mul(view.gpus_of_allocation(self.allocation.id))
    }
}

/// Places the gang on the draft, if evictions of gangs make room for it. The caller writes it down.
pub(crate) fn reclaim(cycle: &mut Cycle<'_>, candidate: &Candidate<'_>) -> Option<Placement> {
    let ask = &candidate.ask.with(candidate.ask.least);
    let (spec, gpus) = (candidate.spec, ask.gpus());
    let may = leave(cycle, spec, gpus);
    if may.is_empty() || cycle.reclaim.searches >= SEARCHES {
        return None;
    }
    cycle.reclaim.searches += 1;
    let victims = needed(&mut cycle.draft, ask, &may)?;
    let ids: Vec<AllocationId> = victims.iter().map(|gang| gang.allocation.id).collect();
    let placement = place(&mut cycle.draft, ask, &victims)?;
    cycle.reclaim.taken.extend(&ids);
    for gang in &victims {
        cycle.calendar.evicted(gang.job.id);
        for queue in cycle.view.queue_line(&gang.job.spec.queue) {
            let gpus = cycle.view.gpus_of_allocation(gang.allocation.id);
            *cycle.reclaim.given_up.entry(queue.id).or_default() += gpus;
        }
    }
    cycle.done_of(&ask.claim, &placement).again(&mut cycle.draft);
    Some(placement)
}

/// Gangs that may leave for the job, those first that lose least. As many of each queue as it has
/// above its guarantee.
fn leave<'a>(cycle: &mut Cycle<'a>, spec: &JobSpec, gpus: u64) -> Vec<Gang<'a>> {
    let view = cycle.view;
    let mine = view.queue_line(&spec.queue);
    let Some(own) = mine.first() else { return Vec::new() };
    let below = cycle.queues.used(own) + gpus <= own.spec.quota.guarantee_gpus;
    if !below && !own.spec.preempts {
        return Vec::new();
    }
    let Reclaim { running, taken, .. } = &mut cycle.reclaim;
    let running = running.get_or_insert_with(|| by_queue(view));
    let lends = |name: &str| if name == own.spec.name { own.spec.preempts } else { below };
    let gangs = running.iter().filter(|(name, _)| lends(name)).flat_map(|(_, gangs)| gangs);
    let may = |gang: &&Gang<'_>| {
        let id = gang.allocation.id;
        !taken.contains(&id) && view.check_take(spec, below, id).is_ok()
    };
    let mut gangs: Vec<Gang<'a>> = gangs.filter(may).copied().collect();
    gangs.sort_by_cached_key(|gang| {
        let lost = gang.lost_gpu_ms(view);
        (gang.job.spec.priority, lost, Reverse(gang.allocation.id))
    });
    let mut given_up = view.given_up();
    for (queue, gpus) in &cycle.reclaim.given_up {
        *given_up.entry(*queue).or_default() += gpus;
    }
    gangs.retain(|gang| {
        let gpus = view.gpus_of_allocation(gang.allocation.id);
        let mut theirs = view.queue_line(&gang.job.spec.queue);
        theirs.retain(|queue| mine.iter().all(|own| own.id != queue.id));
        let after = |queue: &Queue| {
            queue.spec.quota.guarantee_gpus + given_up.get(&queue.id).copied().unwrap_or(0) + gpus
        };
        let spared = theirs.iter().all(|queue| queue.used_of("") >= after(queue));
        if spared {
            theirs.iter().for_each(|queue| *given_up.entry(queue.id).or_default() += gpus);
        }
        spared
    });
    gangs.truncate(MOST);
    gangs
}

fn by_queue(view: &Cluster) -> BTreeMap<&str, Vec<Gang<'_>>> {
    let mut gangs: BTreeMap<&str, Vec<Gang<'_>>> = BTreeMap::new();
    for allocation in view.allocations().values().filter(|one| one.stop.is_none()) {
        let Owner::Gang { job, .. } = allocation.owner else { continue };
        let Some(job) = view.jobs().get(job) else { continue };
        if matches!(job.state, JobState::Starting | JobState::Running) {
            gangs.entry(&job.spec.queue).or_default().push(Gang { job, allocation });
        }
    }
    gangs
}

/// The first of them without which the gang does not fit, and of those only who is needed.
fn needed<'a>(draft: &mut Draft<'_>, ask: &Ask, may: &[Gang<'a>]) -> Option<Vec<Gang<'a>>> {
    let before = draft.checkpoint();
    let mut fits = |gangs: &mut dyn Iterator<Item = &Gang<'a>>| {
        gangs.for_each(|gang| vacate(draft, gang));
        draft.slots(&ask.claim, Pool::Evicted);
        let fits = fit::fits(draft, ask, draft.counted(&ask.claim, Pool::Evicted));
        draft.rollback(before);
        fits
    };
    if !fits(&mut may.iter()) {
        return None;
    }
    // The more leave, the more fits: the smallest number of them that is enough.
    let (mut too_few, mut enough) = (0, may.len());
    while enough - too_few > 1 {
        let middle = too_few + (enough - too_few) / 2;
        match fits(&mut may[..middle].iter()) {
            true => enough = middle,
            false => too_few = middle,
        }
    }
    let mut needed: Vec<Gang<'a>> = may[..enough].to_vec();
    for at in (0..needed.len()).rev() {
        let others = needed[..at].iter().chain(&needed[at + 1..]);
        if fits(&mut others.into_iter()) {
            needed.remove(at);
        }
    }
    Some(needed)
}

/// Where the gang goes once they, and fillers as it takes, have left. The draft stays as it is.
fn place(draft: &mut Draft<'_>, ask: &Ask, victims: &[Gang<'_>]) -> Option<Placement> {
    let before = draft.checkpoint();
    victims.iter().for_each(|gang| vacate(draft, gang));
    let found = allocate::allocate(draft, ask).or_else(|| evicting(draft, ask));
    draft.rollback(before);
    let mut placement = found?;
    let notices = victims.iter().map(|gang| gang.allocation.notice_ms);
    placement.notice_ms = notices.chain([placement.notice_ms]).max().unwrap_or(0);
    placement.victims.extend(victims.iter().map(|gang| gang.allocation.id));
    placement.victims.sort_unstable();
    placement.why = why(draft, victims, &placement);
    Some(placement)
}

fn why(draft: &Draft<'_>, victims: &[Gang<'_>], placement: &Placement) -> String {
    const NAMED: usize = 4;
    let jobs = victims.iter().take(NAMED);
    let jobs: Vec<String> =
        jobs.map(|gang| format!("{} (queue {})", gang.job.id, gang.job.spec.queue)).collect();
    let more = match victims.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let nodes = placement.places.iter().filter_map(|place| draft.view.pos_of(place.node));
    let span =
        draft.span(nodes).map_or_else(String::new, |domain| fit::name(draft.index(), domain));
    let word = if victims.len() == 1 { "job" } else { "jobs" };
    format!(
        "{span}: {word} {}{more} evicted, none of them could be spared, within {} ms",
        jobs.join(", "),
        placement.notice_ms
    )
}

fn vacate(draft: &mut Draft<'_>, gang: &Gang<'_>) {
    draft.vacate(gang.allocation.id, gang.job.spec.shape.nodes.exclusive);
}
