//! Preempt: fillers leave for a gang that what is free does not hold. Never a gang, and nobody at
//! all unless the whole gang then fits.
//!
//! Where: the domain with the least total cost, in micro-dollars: what the victims lose (see
//! [`crate::node`]), the gang's own time until the last of them has gone, and its wider span.
//! Who leaves there: [`choose`].

mod choose;

use rowen_state::{AllocationId, GpuMask};
use rowen_topology::{DomainId, Level, NodePos};

use self::choose::{Choice, Share, choose};
use crate::{
    demand::Ask,
    draft::Draft,
    fit::{self, Placement},
    floors::{Floor, Floors},
    node,
    slots::{Pool, Slots},
};

/// What an hour of a gang's GPU is taken to be worth while it waits.
const GANG_HOUR_MICROS: u128 = 2_000_000;
const HOUR_MS: u128 = 3_600_000;
/// One level wider costs a gang as much as waiting this much longer.
pub(super) const WIDER_MS: u128 = 60_000;
/// In the place of a cost: that domain does not hold the gang.
const TOO_SMALL: u64 = u64::MAX;

/// Places the gang on the draft, if evictions make room for it.
pub(crate) fn preempt(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    draft.slots(&ask.claim, Pool::Evicted);
    draft.slots(&ask.claim, Pool::Free);
    let best = Search::new(draft, ask).best()?;
    carry_out(draft, ask, &best)
}

/// The cheapest domain so far, and who leaves there.
struct Best {
    micros: u128,
    domain: DomainId,
    choice: Choice,
}

/// The search for it.
struct Search<'d, 'a> {
    draft: &'d Draft<'a>,
    ask: &'d Ask,
    /// As it is.
    free: &'d Slots,
    /// Once every filler has left.
    slots: &'d Slots,
    floors: &'d Floors,
}

impl<'d, 'a> Search<'d, 'a> {
    fn new(draft: &'d Draft<'a>, ask: &'d Ask) -> Self {
        let slots = draft.counted(&ask.claim, Pool::Evicted);
        let free = draft.counted(&ask.claim, Pool::Free);
        Search { draft, ask, free, slots, floors: draft.floors() }
    }

    fn best(&self) -> Option<Best> {
        let mut best: Option<Best> = None;
        let mut finer = 0;
        for (wider, level) in (0u128..).zip(self.ask.levels()) {
            let span_micros = delay_micros(self.ask, wider * WIDER_MS);
            let dearer = |best: &Option<Best>, least_micros: u64| {
                let least_micros = span_micros + u128::from(least_micros);
                best.as_ref().is_some_and(|best| best.micros <= least_micros)
            };
            if dearer(&best, 0) {
                break; // and so is every domain from here on
            }
            let domains = self.draft.index().domains(level).len();
            if std::mem::replace(&mut finer, domains) == domains {
                continue; // the same ones as on the level before
            }
            let bounds = self.least_micros_of(level);
            let Some((first, least_micros)) = least(&bounds) else { continue };
            if dearer(&best, least_micros) {
                continue;
            }
            // Mostly the one with the lowest bound is the best, and its cost rules out all others:
            // only those that it does not are put in order.
            self.look_at(DomainId { level, ordinal: first }, span_micros, &mut best);
            let mut rest: Vec<(u64, u32)> = bounds.into_iter().zip(0..).collect();
            rest.retain(|(least_micros, ordinal)| {
                *least_micros != TOO_SMALL && *ordinal != first && !dearer(&best, *least_micros)
            });
            rest.sort_unstable();
            for (least_micros, ordinal) in rest {
                if dearer(&best, least_micros) {
                    break;
                }
                self.look_at(DomainId { level, ordinal }, span_micros, &mut best);
            }
        }
        best
    }

    fn look_at(&self, domain: DomainId, span_micros: u128, best: &mut Option<Best>) {
        let Some(choice) = choose(self, domain) else { return };
        let delay_micros = delay_micros(self.ask, choice.notice_ms().into());
        let micros = span_micros + choice.loss_micros + delay_micros;
        if best.as_ref().is_none_or(|best| micros < best.micros) {
            *best = Some(Best { micros, domain, choice });
        }
    }

    /// What the gang costs at least in each domain of a level, by ordinal.
    fn least_micros_of(&self, level: Level) -> Vec<u64> {
        let (draft, workers) = (self.draft, self.ask.workers);
        let row = self.slots.of_level(level);
        if row.least(workers).is_none() {
            return Vec::new();
        }
        let mut bound = self.bound();
        if draft.index().domains(level).len() == draft.index().node_count() as usize {
            let counts = draft.rooms().counts().flatten().zip(self.floors.nodes());
            let bounds = (0..).zip(counts).map(|(pos, (count, floor))| {
                let free = || match draft.has_moved(NodePos(pos)) {
                    true => draft.free_at(NodePos(pos)),
                    false => count.free.into(),
                };
                if row.at(pos) >= workers { bound(free(), floor) } else { TOO_SMALL }
            });
            return bounds.collect();
        }
        let floors = self.floors.of_level(draft.index(), self.slots, level);
        let bounds = fit::domains(draft.index(), level).zip(floors).map(|(domain, floor)| {
            let holds = row.at(domain.ordinal) >= workers;
            if holds { bound(draft.free_in(domain), floor) } else { TOO_SMALL }
        });
        bounds.collect()
    }

    /// GPUs that are not free must be freed, at no less than the least loss a GPU, and after no
    /// less than the shortest notice, of all fillers there.
    fn bound(&self) -> impl FnMut(u32, Floor) -> u64 {
        let (ask, gpus) = (self.ask, self.ask.gpus());
        let delay = |notice_ms: u64| {
            let micros = delay_micros(ask, notice_ms.into());
            u64::try_from(micros).unwrap_or(u64::MAX)
        };
        let mut known = (0, 0);
        move |free, floor| {
            if known.0 != floor.notice_ms {
                known = (floor.notice_ms, delay(floor.notice_ms));
            }
            let missing = gpus.saturating_sub(free.into());
            missing.saturating_mul(floor.loss_a_gpu).saturating_add(known.1).min(TOO_SMALL - 1)
        }
    }
}

/// The first of the lowest bounds, and its place.
fn least(bounds: &[u64]) -> Option<(u32, u64)> {
    let least = bounds.iter().copied().min().filter(|least| *least != TOO_SMALL)?;
    let first = bounds.iter().position(|bound| *bound == least)?;
    Some((first as u32, least))
}

/// What it costs to keep a whole gang waiting.
pub(super) fn delay_micros(ask: &Ask, ms: u128) -> u128 {
    let hourly_micros = u128::from(ask.gpus()) * GANG_HOUR_MICROS;
    match u64::try_from(hourly_micros.saturating_mul(ms)) {
        Ok(product) => (product / HOUR_MS as u64).into(), // a division by a constant
        Err(_) => hourly_micros * ms / HOUR_MS,
    }
}

/// Tries the choice on the draft; all or nothing.
fn carry_out(draft: &mut Draft<'_>, ask: &Ask, best: &Best) -> Option<Placement> {
    let before = draft.checkpoint();
    let placement = try_on(draft, ask, best);
    if placement.is_none() {
        draft.rollback(before);
    }
    placement
}

fn try_on(
    draft: &mut Draft<'_>,
    ask: &Ask,
    Best { domain, choice, .. }: &Best,
) -> Option<Placement> {
    let shares = choice.shares(&Search::new(draft, ask), *domain)?;
    let mut places = Vec::with_capacity(ask.workers as usize);
    for share in shares {
        let gpus = take(draft, ask, &share)?;
        places.extend(fit::shares(draft.rooms().node(share.pos), gpus, &ask.claim));
    }
    let mut victims: Vec<_> = choice.victims.iter().map(|victim| victim.allocation).collect();
    victims.sort_unstable();
    let notice_ms = choice.notice_ms();
    let fillers = if victims.len() == 1 { "filler leaves" } else { "fillers leave" };
    let why = format!(
        "{}: {} {fillers}, the least lost of all that holds it, within {notice_ms} ms",
        fit::name(draft.index(), *domain),
        victims.len(),
    );
    Some(Placement { places, victims, notice_ms, why })
}

/// Gives the workers on one node their GPUs.
fn take(draft: &mut Draft<'_>, ask: &Ask, share: &Share<'_>) -> Option<GpuMask> {
    let Share { pos, workers, victims } = *share;
    let (claim, free) = (&ask.claim, draft.room(pos).free);
    let count = workers * claim.gpus;
    match victims {
        [] => {
            let gpus = free.lowest(count)?;
            draft.take_free(pos, gpus, claim, workers);
            Some(gpus)
        }
        [victim] if victim.only => {
            let gpus = node::pick(count, draft.rooms().evictable(pos).gpus, free)?;
            draft.take_from_only(pos, victim.allocation, gpus, claim, workers);
            Some(gpus)
        }
        _ => {
            let victims: Vec<AllocationId> = victims.iter().map(|one| one.allocation).collect();
            let gpus = node::pick(count, draft.node(pos).gpus_of_these(&victims), free)?;
            draft.take(pos, gpus, claim, workers, &victims).then_some(gpus)
        }
    }
}
