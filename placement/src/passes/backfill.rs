//! Backfill: gangs that wait get planned starts, and gangs with a time limit start before them on
//! GPUs that are booked for later.
//!
//! The first gangs of each queue that cannot start are *booked*: the earliest time at which limits
//! say that their GPUs are free, and which GPUs. A booking is kept from every gang that would still
//! run then. It is not written anywhere: the next cycle finds it again, or a better one; one that
//! starts beside it never makes it later (see [`crate::calendar`]).

use std::collections::{BTreeMap, BTreeSet};

use rowen_state::{AllocationId, End, GpuMask, JobId, Place};
use rowen_topology::NodePos;

use crate::{
    Candidate, Cycle,
    calendar::{Booking, Calendar, Charged, NEVER, UNKNOWN},
    demand::{Ask, Claim},
    draft::Draft,
    fit::Placement,
    when::PlannedStart,
};

/// Gangs of a queue that get a planned start; the ones behind them only must not delay these.
const PLANNED_OF_A_QUEUE: u32 = 8;
/// And of all queues together.
const PLANNED: usize = 64;
/// A gang of which no limit says when it starts is patient for so long: until then later ones may
/// take what it cannot use yet.
const PATIENCE_MS: u64 = 600_000;
/// Until a plan is carried out. What runs until a booking begins must have ended even so.
const COMMIT_MS: u64 = 30_000;
/// Drafts for gangs of different lengths; one that finds none of its own takes a stricter one.
const LIFTED: usize = 16;

/// What the cycle has done, to be done again on another draft of the same view.
pub(crate) struct Done {
    pub(crate) claim: Claim,
    pub(crate) on: Vec<(NodePos, GpuMask, u32)>,
    pub(crate) victims: Vec<(NodePos, AllocationId)>,
}

/// Bookings of this cycle, and the drafts for gangs that will have ended before some of them.
#[derive(Default)]
pub(crate) struct Backfill<'a> {
    bookings: Vec<Booking>,
    of_queue: BTreeMap<String, u32>,
    /// A queue's first gang of which no limit says when it starts has been booked.
    unknown: BTreeSet<String>,
    lifted: Vec<Lifted<'a>>,
}

/// The view with all that was done, and the bookings that begin before `until_ms`.
struct Lifted<'a> {
    until_ms: u64,
    draft: Draft<'a>,
    charged: Charged,
    /// Of what was done, so much is on the draft, and so much is seen in what it keeps for bookings.
    done: usize,
    seen: usize,
    bookings: usize,
    stuck: BTreeSet<Ask>,
}

impl Lifted<'_> {
    /// Long parts of asks are numbered by the draft that they are for. As few workers as will do.
    fn ask(&mut self, candidate: &Candidate<'_>) -> Ask {
        let ask = self.draft.ask_of(candidate.spec, candidate.ask.waits);
        ask.with(ask.least)
    }
}

/// Tries a pass beside the bookings that begin only after the gang has ended.
pub(crate) fn slip(
    cycle: &mut Cycle<'_>,
    candidate: &Candidate<'_>,
    pass: impl Fn(&mut Draft<'_>, &Ask) -> Option<Placement>,
) -> Option<Placement> {
    let now_ms = cycle.view.now_ms();
    let until_ms = End::of_new(candidate.spec, now_ms + COMMIT_MS)?;
    let at = cycle.lifted(until_ms)?;
    let lifted = &mut cycle.backfill.lifted[at];
    let ask = lifted.ask(candidate);
    if lifted.stuck.contains(&ask) {
        return None;
    }
    let placement = pass(&mut lifted.draft, &ask)?;
    let done = cycle.done_of(&candidate.ask.claim, &placement);
    done.again(&mut cycle.draft);
    cycle.backfill.lifted[at].done += 1; // the caller writes it down
    Some(placement)
}

/// No pass found room beside the bookings that count for it.
pub(crate) fn give_up(cycle: &mut Cycle<'_>, candidate: &Candidate<'_>) {
    let Some(until_ms) = End::of_new(candidate.spec, cycle.view.now_ms() + COMMIT_MS) else {
        return;
    };
    if let Some(at) = cycle.lifted(until_ms) {
        let lifted = &mut cycle.backfill.lifted[at];
        let ask = lifted.ask(candidate);
        lifted.stuck.insert(ask);
    }
}

/// What a gang that waits is promised.
pub(crate) enum Promise {
    Start(PlannedStart),
    /// What comes free, until it is enough.
    Kept,
}

/// Books GPUs for a gang that waits, if it is one of the first.
pub(crate) fn plan_start(cycle: &mut Cycle<'_>, candidate: &Candidate<'_>) -> Option<Promise> {
    let ask = candidate.ask.with(candidate.ask.least);
    if !can_book(&ask) {
        return None;
    }
    let queue = candidate.spec.queue.as_str();
    let planned = cycle.backfill.of_queue.get(queue).copied().unwrap_or(0);
    if planned >= PLANNED_OF_A_QUEUE || cycle.backfill.bookings.len() >= PLANNED {
        return None;
    }
    let booking = match cycle.calendar.earliest(&mut cycle.draft, &ask) {
        Some(booking) => booking,
        None if candidate.waited_ms < PATIENCE_MS => return None,
        None if cycle.backfill.unknown.contains(queue) => return None,
        None => {
            let booking = cycle.calendar.nearest(&mut cycle.draft, &ask)?;
            cycle.backfill.unknown.insert(queue.to_owned());
            booking
        }
    };
    cycle.backfill.of_queue.insert(queue.to_owned(), planned + 1);
    let promise = said(cycle, &booking).map_or(Promise::Kept, Promise::Start);
    let number = cycle.backfill.bookings.len();
    let until_ms = match booking.start_ms {
        UNKNOWN => NEVER,
        start_ms => End::of_new(candidate.spec, start_ms).unwrap_or(NEVER),
    };
    let claim = &ask.claim;
    cycle.calendar.book(&cycle.draft, &booking, (candidate.id, number, until_ms), claim);
    for (pos, gpus, _) in &booking.on {
        cycle.draft.book(*pos, *gpus, 0, 0);
        cycle.charge_again(*pos);
    }
    cycle.backfill.bookings.push(booking);
    Some(promise)
}

/// A gang in groups, spread, or on nodes of its own is not booked: when it fits is more than when
/// enough GPUs are free.
fn can_book(ask: &Ask) -> bool {
    ask.is_formless() && !ask.claim.exclusive
}

/// When a gang would start that is not one of the first, or is not queued at all; books nothing.
pub(crate) fn estimate(cycle: &mut Cycle<'_>, ask: &Ask) -> Option<PlannedStart> {
    let booking = can_book(ask).then(|| cycle.calendar.earliest(&mut cycle.draft, ask))??;
    said(cycle, &booking)
}

/// The view with all that was done, but for the bookings.
pub(crate) fn unbooked<'a>(cycle: &Cycle<'a>) -> Option<Draft<'a>> {
    if cycle.backfill.bookings.is_empty() {
        return None;
    }
    let mut draft = Draft::new(cycle.view);
    cycle.done.iter().for_each(|done| done.again(&mut draft));
    Some(draft)
}

/// Fillers may have come to the GPUs by then, and leave within their notice.
fn said(cycle: &Cycle<'_>, booking: &Booking) -> Option<PlannedStart> {
    if booking.start_ms == UNKNOWN {
        return None;
    }
    let notices = cycle.view.fillers().values().map(|filler| filler.spec.notice_ms);
    let by_ms = booking.start_ms + notices.max().unwrap_or(0);
    Some(PlannedStart { by_ms, after: booking.after })
}

impl Done {
    /// Without asking whether it fits: it does where it was found.
    pub(crate) fn again(&self, draft: &mut Draft<'_>) {
        self.victims.iter().for_each(|(pos, victim)| draft.evict(*pos, *victim));
        for (pos, gpus, workers) in &self.on {
            draft.promise(*pos, *gpus, &self.claim, *workers);
        }
    }
}

impl<'a> Cycle<'a> {
    /// What a placement does to a draft.
    pub(crate) fn done_of(&self, claim: &Claim, placement: &Placement) -> Done {
        let pos = |place: &Place| self.view.pos_of(place.node).expect("a place has a position");
        let by_node = placement.places.chunk_by(|a, b| a.node == b.node);
        let on = by_node.map(|here| {
            let gpus = here.iter().fold(GpuMask::NONE, |gpus, place| gpus.or(place.gpus));
            (pos(&here[0]), gpus, here.len() as u32)
        });
        let victims = placement.victims.iter().flat_map(|victim| {
            let tasks = self.view.allocations().get(*victim).map_or(&[][..], |one| &one.tasks);
            let mut nodes: Vec<_> = tasks.iter().filter_map(|t| self.view.pos_of(t.node)).collect();
            nodes.sort_unstable();
            nodes.dedup();
            nodes.into_iter().map(|pos| (pos, *victim))
        });
        Done { claim: *claim, on: on.collect(), victims: victims.collect() }
    }

    /// Writes down what a gang got, for the calendar and for other drafts.
    pub(crate) fn gave(&mut self, job: JobId, done: Done, until_ms: Option<u64>) {
        for share in &done.on {
            self.calendar.given(job, *share, &done.claim, until_ms.unwrap_or(NEVER));
        }
        for (pos, ..) in &done.on {
            self.charge_again(*pos);
        }
        self.done.push(done);
    }

    /// What gets GPUs and ends before a booking begins gives its cores back by then, too.
    fn charge_again(&mut self, pos: NodePos) {
        let Calendar { terms, charged, .. } = &mut self.calendar;
        charged.again(&mut self.draft, terms, pos, |_, _| true);
    }

    /// The draft for gangs that have ended by then; `None`: all bookings count for them.
    fn lifted(&mut self, until_ms: u64) -> Option<usize> {
        let starts = || self.backfill.bookings.iter().map(|booking| booking.start_ms);
        starts().find(|start_ms| *start_ms >= until_ms)?;
        let lifted = &self.backfill.lifted;
        let stricter = (0..lifted.len()).filter(|at| lifted[*at].until_ms >= until_ms);
        let nearest = stricter.min_by_key(|at| lifted[*at].until_ms);
        let exact = nearest.filter(|at| {
            !starts().any(|start_ms| (until_ms..lifted[*at].until_ms).contains(&start_ms))
        });
        let at = match (exact, lifted.len()) {
            (Some(at), _) => at,
            (None, LIFTED..) => nearest?,
            (None, at) => {
                self.backfill.lifted.push(Lifted {
                    until_ms,
                    draft: Draft::new(self.view),
                    charged: Charged::default(),
                    done: 0,
                    seen: 0,
                    bookings: 0,
                    stuck: BTreeSet::new(),
                });
                at
            }
        };
        self.catch_up(at);
        Some(at)
    }

    fn catch_up(&mut self, at: usize) {
        let lifted = &mut self.backfill.lifted[at];
        let binds = |_, start_ms| start_ms < lifted.until_ms;
        let mut charge = |draft: &mut Draft<'_>, pos| {
            lifted.charged.again(draft, &self.calendar.terms, pos, binds);
        };
        self.done[lifted.done..].iter().for_each(|done| done.again(&mut lifted.draft));
        for done in &self.done[lifted.seen..] {
            done.on.iter().for_each(|(pos, ..)| charge(&mut lifted.draft, *pos));
        }
        (lifted.done, lifted.seen) = (self.done.len(), self.done.len());
        for booking in &self.backfill.bookings[lifted.bookings..] {
            if booking.start_ms < lifted.until_ms {
                for (pos, gpus, _) in &booking.on {
                    lifted.draft.book(*pos, *gpus, 0, 0);
                    charge(&mut lifted.draft, *pos);
                }
            }
        }
        lifted.bookings = self.backfill.bookings.len();
    }
}
