//! Planning over an immutable view of the state: same view, same plan.
//!
//! One cycle tries every queued gang in the order of the queue, each by the passes of
//! [`Cycle::consider`], least disruptive first, and then fills what remains. It reads the view and
//! a [`draft::Draft`] over it; it never writes state, reads a clock or draws a random number.
//!
//! # Who waits for whom
//! - A gang that fits nowhere now does not stop later gangs, but the first ones of each queue are
//!   *booked*: time limits say from when their GPUs are free at the latest, and later gangs get
//!   these only if their own limits end before ([`passes::backfill`]). Where limits say nothing, the
//!   first gang of a queue that has waited ten minutes keeps what comes free, and only gangs with a
//!   limit may use it meanwhile.
//! - A gang that fits once allocations which already end have ended *earmarks* those GPUs: neither
//!   later gangs nor fillers get them, so a short wait does not become a long one.
//! - A gang that runs with fewer workers than it asked for may give way to a larger attempt of its
//!   own, after every gang that waits.
//! - Fillers come last. Whatever a gang could use now, with or without eviction, it was given
//!   before; so no gang ever waits for a filler longer than that filler's notice.

mod calendar;
mod demand;
mod draft;
mod dry_run;
mod explain;
mod fit;
mod floors;
mod forms;
mod node;
mod passes;
mod queues;
mod reason;
mod slots;
mod what_if;
mod when;

use std::collections::BTreeMap;

use rowen_state::{Cluster, Decision, End, Job, JobId, JobSpec, Plan};

use crate::{
    calendar::Calendar,
    demand::Ask,
    draft::Draft,
    fit::Placement,
    passes::{
        allocate,
        backfill::{self, Backfill, Done, Promise},
        clear, earmark, fill, grow, preempt,
        reclaim::{self, Reclaim},
    },
    queues::{Order, Queues},
    slots::Pool,
};

pub use dry_run::{DryRun, dry_run};
pub use explain::{Explanation, LevelReason, explain};
pub use what_if::{Becomes, FillerChange, JobChange, WhatIf, what_if};
pub use when::PlannedStart;

/// A plan has at most about this many decisions; the rest is for the next cycle. A caller plans
/// again after each commit, until a plan is empty.
pub const MAX_DECISIONS: usize = 4_096;

/// Everything one cycle proposes for the view as it is. Pure: same view, same plan.
pub fn plan(view: &Cluster) -> Plan {
    let mut cycle = Cycle::new(view);
    if cycle.gangs() {
        grow::grow(&mut cycle);
        cycle.unbook();
        fill::fill(&mut cycle);
    }
    Plan { based_on: view.applied(), decisions: cycle.decisions }
}

/// The planned starts of the gangs that wait: of the first ones of each queue, as far as time
/// limits say.
pub fn planned_starts(view: &Cluster) -> BTreeMap<JobId, PlannedStart> {
    let mut starts = BTreeMap::new();
    Cycle::new(view).walk(|cycle, job| {
        let candidate = Candidate::of(job, &mut cycle.draft);
        let verdict = cycle.consider(&candidate);
        if let Verdict::Wait { planned: Some(start), .. } = verdict {
            starts.insert(job.id, start);
        }
        true
    });
    starts
}

/// One planning cycle under way.
pub(crate) struct Cycle<'a> {
    pub(crate) view: &'a Cluster,
    /// With the bookings.
    pub(crate) draft: Draft<'a>,
    pub(crate) calendar: Calendar<'a>,
    pub(crate) backfill: Backfill<'a>,
    pub(crate) reclaim: Reclaim<'a>,
    pub(crate) queues: Queues<'a>,
    /// Every start, hold and earmark of the cycle.
    pub(crate) done: Vec<Done>,
    pub(crate) decisions: Vec<Decision>,
    /// Shapes found not to fit, and why. A draft only ever gets fuller (what a failed pass did is
    /// rolled back), so they need no second look in this cycle.
    stuck: BTreeMap<Ask, String>,
}

/// A gang that is to be placed.
pub(crate) struct Candidate<'j> {
    pub(crate) id: JobId,
    pub(crate) spec: &'j JobSpec,
    pub(crate) ask: Ask,
    pub(crate) waited_ms: u64,
}

impl<'j> Candidate<'j> {
    pub(crate) fn of(job: &'j Job, draft: &mut Draft<'_>) -> Self {
        let waited_ms = draft.view.now_ms().saturating_sub(job.queued_ms);
        Candidate { id: job.id, spec: &job.spec, ask: draft.ask(job), waited_ms }
    }

    /// One that is not submitted yet.
    pub(crate) fn new(spec: &'j JobSpec, draft: &mut Draft<'_>) -> Self {
        Candidate { id: JobId::default(), spec, ask: draft.ask_of(spec, true), waited_ms: 0 }
    }
}

/// What becomes of one gang in this cycle.
pub(crate) enum Verdict {
    /// It starts on free GPUs.
    Start(Placement),
    /// Fillers leave for it, or gangs.
    Hold(Placement),
    /// It waits.
    Wait {
        /// Why.
        reason: String,
        /// It is one of the first, and limits say when it starts.
        planned: Option<PlannedStart>,
    },
}

impl<'a> Cycle<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        Cycle {
            view,
            draft: Draft::new(view),
            calendar: Calendar::new(view),
            backfill: Backfill::default(),
            reclaim: Reclaim::default(),
            queues: Queues::new(view),
            done: Vec::new(),
            decisions: Vec::new(),
            stuck: BTreeMap::new(),
        }
    }

    /// Tries every queued gang. False when the plan was full before the end of the queue: then
    /// nothing may be filled, for gangs that were not tried come first.
    fn gangs(&mut self) -> bool {
        self.walk(|cycle, job| {
            if cycle.decisions.len() >= MAX_DECISIONS {
                return false;
            }
            let candidate = Candidate::of(job, &mut cycle.draft);
            let verdict = cycle.consider(&candidate);
            cycle.decide(job, verdict);
            true
        })
    }

    /// Goes through the queued jobs, next first, until `step` says no: then it is false.
    fn walk(&mut self, mut step: impl FnMut(&mut Self, &'a Job) -> bool) -> bool {
        let mut order = Order::new(self.view);
        while let Some(job) = order.next(&self.queues) {
            if !step(self, job) {
                return false;
            }
        }
        true
    }

    /// Tries the queue as far as `until` says, without keeping decisions.
    pub(crate) fn gangs_before(&mut self, until: impl Fn(&Job) -> bool) {
        self.walk(|cycle, job| {
            let before = !until(job);
            if before {
                let candidate = Candidate::of(job, &mut cycle.draft);
                cycle.consider(&candidate);
            }
            before
        });
    }

    /// The passes over one gang, least disruptive first.
    pub(crate) fn consider(&mut self, candidate: &Candidate<'_>) -> Verdict {
        let ask = &candidate.ask;
        if let Some(reason) = self.queues.refuse(candidate.spec, ask.with(ask.least).gpus()) {
            return Verdict::Wait { reason, planned: None };
        }
        let known = self.stuck.get(ask).cloned();
        if let Some(verdict) = self.at_once(candidate, known.is_none()) {
            return verdict;
        }
        let least = ask.with(ask.least);
        if known.is_none()
            && let Some((reason, on)) = earmark::earmark(&mut self.draft, &least)
        {
            let done = Done { claim: ask.claim, on, victims: Vec::new() };
            self.gave(candidate.id, done, End::of_new(candidate.spec, self.view.now_ms()));
            return Verdict::Wait { reason, planned: None };
        }
        if let Some(placement) = reclaim::reclaim(self, candidate) {
            return self.hold(candidate, placement);
        }
        let reason = known.unwrap_or_else(|| {
            let reason = reason::why_not(&mut self.draft, ask);
            self.stuck.insert(*ask, reason.clone());
            reason
        });
        match backfill::plan_start(self, candidate) {
            None => Verdict::Wait { reason, planned: None },
            Some(Promise::Start(start)) => Verdict::Wait { reason, planned: Some(start) },
            Some(Promise::Kept) => {
                let reason = format!("{reason}; GPUs that come free are kept for it");
                Verdict::Wait { reason, planned: None }
            }
        }
    }

    /// A start or a hold, beside all bookings or beside those that begin only after the gang has
    /// ended. `new`: the shape is not known to be stuck beside all.
    fn at_once(&mut self, candidate: &Candidate<'_>, new: bool) -> Option<Verdict> {
        let sized = self.sized_for(candidate, Pool::Evicted);
        if new && let Some(placement) = allocate::allocate(&mut self.draft, &sized) {
            return Some(self.start(candidate, placement));
        }
        if let Some(placement) = backfill::slip(self, candidate, allocate::allocate) {
            return Some(self.start(candidate, placement));
        }
        if new && let Some(placement) = evicting(&mut self.draft, &sized) {
            return Some(self.hold(candidate, placement));
        }
        if let Some(placement) = backfill::slip(self, candidate, evicting) {
            return Some(self.hold(candidate, placement));
        }
        backfill::give_up(self, candidate);
        if new && candidate.ask.least < sized.workers {
            let fewer = self.sized_for(candidate, Pool::Free);
            let placement = allocate::allocate(&mut self.draft, &fewer)?;
            return Some(self.start(candidate, placement));
        }
        None
    }

    fn start(&mut self, candidate: &Candidate<'_>, placement: Placement) -> Verdict {
        let done = self.done_of(&candidate.ask.claim, &placement);
        self.gave(candidate.id, done, End::of_new(candidate.spec, self.view.now_ms()));
        self.queues.give(&candidate.spec.queue, gpus_of(&placement));
        Verdict::Start(placement)
    }

    fn hold(&mut self, candidate: &Candidate<'_>, placement: Placement) -> Verdict {
        let done = self.done_of(&candidate.ask.claim, &placement);
        let clear_ms = self.view.now_ms() + placement.notice_ms;
        self.gave(candidate.id, done, End::of_new(candidate.spec, clear_ms));
        self.queues.give(&candidate.spec.queue, gpus_of(&placement));
        Verdict::Hold(placement)
    }

    /// Fillers may have what is booked: they leave within their notice.
    fn unbook(&mut self) {
        if !self.view.fillers().is_empty()
            && let Some(draft) = backfill::unbooked(self)
        {
            self.draft = draft;
        }
    }

    /// With as many workers as there is room for and its queue may have.
    fn sized_for(&mut self, candidate: &Candidate<'_>, pool: Pool) -> Ask {
        let sized = self.sized(&candidate.ask, pool);
        let fits = |ask: &Ask| self.queues.refuse(candidate.spec, ask.gpus()).is_none();
        match fits(&sized) {
            true => sized,
            false => candidate.ask.with(candidate.ask.least), // that it may have
        }
    }

    /// A start or a hold for exactly so many workers, if there is one.
    pub(crate) fn placed(&mut self, sized: &Ask) -> Option<Verdict> {
        if let Some(placement) = allocate::allocate(&mut self.draft, sized) {
            return Some(Verdict::Start(placement));
        }
        evicting(&mut self.draft, sized).map(Verdict::Hold)
    }

    /// The ask with the number of workers to try: all, or as many as a pool has for one that may
    /// be fewer.
    pub(crate) fn sized(&mut self, ask: &Ask, pool: Pool) -> Ask {
        if ask.least == ask.workers {
            return *ask;
        }
        self.draft.slots(&ask.claim, pool);
        let slots = self.draft.counted(&ask.claim, pool);
        ask.with(fit::most(&self.draft, ask, slots))
    }

    fn decide(&mut self, job: &Job, verdict: Verdict) {
        let id: JobId = job.id;
        let decision = match verdict {
            Verdict::Start(Placement { places, why, .. }) => {
                Decision::Start { job: id, places, why }
            }
            Verdict::Hold(Placement { places, victims, why, .. }) => {
                Decision::Hold { job: id, places, victims, why }
            }
            Verdict::Wait { reason, planned } => {
                let reason = when::with_start(reason, planned);
                if when::says_nothing_new(&job.reason, &reason, self.view.now_ms()) {
                    return; // the same again would only fill the log
                }
                Decision::Wait { job: id, reason }
            }
        };
        self.decisions.push(decision);
    }
}

/// Fillers leave for a gang.
fn evicting(draft: &mut Draft<'_>, sized: &Ask) -> Option<Placement> {
    match sized.is_formless() && !sized.claim.exclusive {
        true => preempt::preempt(draft, sized),
        false => clear::clear(draft, sized),
    }
}

fn gpus_of(placement: &Placement) -> u64 {
    placement.places.iter().map(|place| u64::from(place.gpus.count())).sum()
}
