//! Planning over an immutable view of the state: same view, same plan.
//!
//! One cycle tries every queued gang in the order of the queue, each by the passes of
//! [`Cycle::consider`], least disruptive first, and then fills what remains. It reads the view and
//! a [`draft::Draft`] over it; it never writes state, reads a clock or draws a random number.
//!
//! # Who waits for whom
//! - A gang that fits nowhere now does not stop later gangs: they may take what it cannot use yet.
//!   (Planned starts, which protect large gangs from a stream of small ones, come with backfill.)
//! - A gang that fits once allocations which already end have ended *earmarks* those GPUs: neither
//!   later gangs nor fillers get them, so a short wait does not become a long one.
//! - A gang that runs with fewer workers than it asked for may give way to a larger attempt of its
//!   own, after every gang that waits.
//! - Fillers come last. Whatever a gang could use now, with or without eviction, it was given
//!   before; so no gang ever waits for a filler longer than that filler's notice.

mod demand;
mod draft;
mod dry_run;
mod explain;
mod fit;
mod floors;
mod forms;
mod node;
mod passes;
mod reason;
mod slots;
mod what_if;

use std::collections::BTreeMap;

use rowen_state::{Cluster, Decision, Job, JobId, Plan};

use crate::{
    demand::Ask,
    draft::Draft,
    fit::Placement,
    passes::{allocate, clear, earmark, fill, grow, preempt},
    slots::Pool,
};

pub use dry_run::{DryRun, dry_run};
pub use explain::{Explanation, LevelReason, explain};
pub use what_if::{Becomes, FillerChange, JobChange, WhatIf, what_if};

/// A plan has at most about this many decisions; the rest is for the next cycle. A caller plans
/// again after each commit, until a plan is empty.
pub const MAX_DECISIONS: usize = 4_096;

/// Everything one cycle proposes for the view as it is. Pure: same view, same plan.
pub fn plan(view: &Cluster) -> Plan {
    let mut cycle = Cycle::new(view);
    if cycle.gangs() {
        grow::grow(&mut cycle);
        fill::fill(&mut cycle);
    }
    Plan { based_on: view.applied(), decisions: cycle.decisions }
}

/// One planning cycle under way.
pub(crate) struct Cycle<'a> {
    pub(crate) view: &'a Cluster,
    pub(crate) draft: Draft<'a>,
    pub(crate) decisions: Vec<Decision>,
    /// Shapes found not to fit, and why. A draft only ever gets fuller (what a failed pass did is
    /// rolled back), so they need no second look in this cycle.
    stuck: BTreeMap<Ask, String>,
}

/// What becomes of one gang in this cycle.
pub(crate) enum Verdict {
    /// It starts on free GPUs.
    Start(Placement),
    /// Fillers leave for it.
    Hold(Placement),
    /// It waits: why.
    Wait(String),
}

impl<'a> Cycle<'a> {
    pub(crate) fn new(view: &'a Cluster) -> Self {
        let draft = Draft::new(view);
        Cycle { view, draft, decisions: Vec::new(), stuck: BTreeMap::new() }
    }

    /// Tries every queued gang. False when the plan was full before the end of the queue: then
    /// nothing may be filled, for gangs that were not tried come first.
    fn gangs(&mut self) -> bool {
        for job in self.view.queue() {
            if self.decisions.len() >= MAX_DECISIONS {
                return false;
            }
            let ask = self.draft.ask(job);
            let verdict = self.consider(&ask);
            self.decide(job, verdict);
        }
        true
    }

    /// Tries the queue as far as `until` says, without keeping decisions.
    pub(crate) fn gangs_before(&mut self, until: impl Fn(&Job) -> bool) {
        for job in self.view.queue().take_while(|job| !until(job)) {
            let ask = self.draft.ask(job);
            self.consider(&ask);
        }
    }

    /// The passes over one gang, least disruptive first.
    pub(crate) fn consider(&mut self, ask: &Ask) -> Verdict {
        if let Some(reason) = self.stuck.get(ask) {
            return Verdict::Wait(reason.clone());
        }
        let sized = self.sized(ask, Pool::Evicted);
        if let Some(verdict) = self.placed(&sized) {
            return verdict;
        }
        if ask.least < sized.workers {
            let fewer = self.sized(ask, Pool::Free);
            if let Some(placement) = allocate::allocate(&mut self.draft, &fewer) {
                return Verdict::Start(placement);
            }
        }
        if let Some(reason) = earmark::earmark(&mut self.draft, &ask.with(ask.least)) {
            return Verdict::Wait(reason);
        }
        let reason = reason::why_not(&mut self.draft, ask);
        self.stuck.insert(*ask, reason.clone());
        Verdict::Wait(reason)
    }

    /// A start or a hold for exactly so many workers, if there is one.
    pub(crate) fn placed(&mut self, sized: &Ask) -> Option<Verdict> {
        if let Some(placement) = allocate::allocate(&mut self.draft, sized) {
            return Some(Verdict::Start(placement));
        }
        let evicting = match sized.is_formless() && !sized.claim.exclusive {
            true => preempt::preempt(&mut self.draft, sized),
            false => clear::clear(&mut self.draft, sized),
        };
        evicting.map(Verdict::Hold)
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
            Verdict::Wait(reason) => {
                let reason = reason::bounded(reason);
                if reason == job.reason {
                    return; // the same again would only fill the log
                }
                Decision::Wait { job: id, reason }
            }
        };
        self.decisions.push(decision);
    }
}
