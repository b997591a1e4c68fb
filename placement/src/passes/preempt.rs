//! Preempt: fillers leave for a gang that what is free does not hold. Never a gang, and nobody at
//! all unless the whole gang then fits.
//!
//! Where: the domain with the least total cost, in micro-dollars: what the victims lose (see
//! [`crate::node`]), the gang's own time until the last of them has gone, and its wider span.
//! Every victim is needed: without any one of them that domain does not hold the gang.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BinaryHeap},
};

use rowen_state::AllocationId;
use rowen_topology::{DomainId, Level, NodePos};

use crate::{
    demand::{Ask, Claim},
    draft::Draft,
    fit::{self, Placement},
    floors::{Floor, Floors},
    node::{Offer, Tenant},
    slots::{Pool, Slots},
};

/// What an hour of a gang's GPU is taken to be worth while it waits.
const GANG_HOUR_MICROS: u128 = 2_000_000;
const HOUR_MS: u128 = 3_600_000;
/// One level wider costs a gang as much as waiting this much longer.
pub(super) const WIDER_MS: u128 = 60_000;

/// Places the gang on the draft, if evictions make room for it.
pub(crate) fn preempt(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    draft.slots(&ask.claim, Pool::Evicted);
    draft.slots(&ask.claim, Pool::Free);
    let Best { domain, choice, .. } = Search::new(draft, ask).best()?;
    carry_out(draft, ask, domain, &choice)
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
    /// Once every filler has left.
    slots: &'d Slots,
    floors: &'d Floors,
}

impl<'d, 'a> Search<'d, 'a> {
    fn new(draft: &'d Draft<'a>, ask: &'d Ask) -> Self {
        let slots = draft.counted(&ask.claim, Pool::Evicted);
        Search { draft, ask, slots, floors: draft.floors() }
    }

    fn best(&self) -> Option<Best> {
        let mut best: Option<Best> = None;
        for (wider, level) in (0u128..).zip(self.ask.levels()) {
            let span_micros = delay_micros(self.ask, wider * WIDER_MS);
            let dearer = |best: &Option<Best>, least_micros: u128| {
                best.as_ref()
                    .is_some_and(|best| best.micros <= span_micros.saturating_add(least_micros))
            };
            if dearer(&best, 0) {
                break; // and so is every domain from here on
            }
            let mut bounds = self.least_micros_of(level);
            let Some(first) = bounds.iter().copied().min() else { continue };
            if dearer(&best, first.0) {
                continue;
            }
            // Mostly the one with the lowest bound is the best, and its cost rules out all others:
            // only those that it does not are put in order.
            self.look_at(first.1, span_micros, &mut best);
            bounds.retain(|bound| *bound != first && !dearer(&best, bound.0));
            bounds.sort_unstable();
            for (least_micros, domain) in bounds {
                if dearer(&best, least_micros) {
                    break;
                }
                self.look_at(domain, span_micros, &mut best);
            }
        }
        best
    }

    fn look_at(&self, domain: DomainId, span_micros: u128, best: &mut Option<Best>) {
        let Some(choice) = choose(self, domain) else { return };
        let delay_micros = delay_micros(self.ask, choice.notice_ms(self.draft).into());
        let micros = span_micros + choice.loss_micros + delay_micros;
        if best.as_ref().is_none_or(|best| micros < best.micros) {
            *best = Some(Best { micros, domain, choice });
        }
    }

    /// The domains of a level that hold the gang, each with what it costs there at least.
    fn least_micros_of(&self, level: Level) -> Vec<(u128, DomainId)> {
        let row = self.slots.of_level(level);
        if row.least(self.ask.workers).is_none() {
            return Vec::new();
        }
        let floors = self.floors.of_level(self.draft.index(), self.slots, level);
        fit::domains(self.draft.index(), level)
            .zip(floors)
            .filter(|(domain, _)| row.at(domain.ordinal) >= self.ask.workers)
            .map(|(domain, floor)| (self.least_micros(domain, floor), domain))
            .collect()
    }

    /// GPUs that are not free must be freed, at no less than the least loss a GPU, and after no
    /// less than the shortest notice, of all fillers there.
    fn least_micros(&self, domain: DomainId, floor: Floor) -> u128 {
        let missing = self.ask.gpus().saturating_sub(self.draft.free_in(domain).into());
        u128::from(missing)
            .saturating_mul(floor.loss_a_gpu.into())
            .saturating_add(delay_micros(self.ask, floor.notice_ms.into()))
    }
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
fn carry_out(
    draft: &mut Draft<'_>,
    ask: &Ask,
    domain: DomainId,
    choice: &Choice,
) -> Option<Placement> {
    let before = draft.checkpoint();
    let mut victims: Vec<AllocationId> = choice.victims.values().flatten().copied().collect();
    victims.sort_unstable();
    let placement = try_on(draft, ask, domain, choice, victims);
    if placement.is_none() {
        draft.rollback(before);
    }
    placement
}

fn try_on(
    draft: &mut Draft<'_>,
    ask: &Ask,
    domain: DomainId,
    choice: &Choice,
    victims: Vec<AllocationId>,
) -> Option<Placement> {
    let on: Vec<(NodePos, u32)> = choice.on(draft, ask, domain)?;
    let places = fit::places(draft, &ask.claim, &on, &victims)?;
    let notice_ms = choice.notice_ms(draft);
    for (pos, here) in &choice.victims {
        for victim in here {
            draft.evict(*pos, *victim);
        }
    }
    for place in &places {
        let pos = draft.view.pos_of(place.node).expect("a place has a position");
        let here = choice.victims.get(&pos).map_or(&[][..], Vec::as_slice);
        if !draft.take(*place, &ask.claim, here) {
            return None;
        }
    }
    let fillers = if victims.len() == 1 { "filler leaves" } else { "fillers leave" };
    let why = format!(
        "{}: {} {fillers}, the least lost of all that holds it, within {notice_ms} ms",
        fit::name(draft.index(), domain),
        victims.len(),
    );
    Some(Placement { places, victims, notice_ms, why })
}

/// Takes the offer that costs least a worker, again and again; then drops every victim that a
/// later offer made superfluous. A node's owners are looked at only once nothing surely cheaper is
/// left: until then its floor bids for it.
fn choose(search: &Search<'_, '_>, domain: DomainId) -> Option<Choice> {
    let Search { draft, ask, slots, .. } = *search;
    let free = draft.counted(&ask.claim, Pool::Free);
    let nodes = draft.nodes_of(domain).filter(|pos| slots.at(*pos) > 0);
    let mut bids: BinaryHeap<Reverse<Bid>> =
        nodes.map(|pos| Reverse(search.floor_bid(pos, free))).collect();
    let mut offers: BTreeMap<NodePos, Vec<Offer>> = BTreeMap::new();
    let mut taken: BTreeMap<NodePos, usize> = BTreeMap::new();
    let mut missing = ask.workers;
    while missing > 0 {
        let Reverse(bid) = bids.pop()?;
        let here = offers.entry(bid.pos).or_insert_with(|| {
            draft.node(bid.pos).offers(&ask.claim, slots.at(bid.pos).min(ask.workers))
        });
        if let Some(offer) = bid.offer
            && bid.more <= missing
        {
            taken.insert(bid.pos, offer);
            missing -= bid.more;
        }
        let now = taken.get(&bid.pos).map(|offer| &here[*offer]);
        bids.extend(Bid::best(bid.pos, here, now, missing).map(Reverse));
    }
    let victims = |(pos, offer): (NodePos, usize)| (pos, offers[&pos][offer].victims.clone());
    let mut choice = Choice { victims: taken.into_iter().map(victims).collect(), loss_micros: 0 };
    choice.drop_superfluous(draft, ask, domain);
    Some(choice)
}

impl Search<'_, '_> {
    /// What a node's first worker costs at least; further ones cost no less each.
    fn floor_bid(&self, pos: NodePos, free: &Slots) -> Bid {
        let have = self.draft.free_at(pos);
        let lacks = self.ask.claim.gpus.saturating_sub(have);
        let micros = match free.at(pos) {
            0 => u128::from(lacks) * u128::from(self.floors.at(pos).loss_a_gpu),
            _ => 0,
        };
        Bid { micros, more: 1, pos, offer: None }
    }
}

/// The offer of a node that costs least for each worker it adds.
struct Bid {
    micros: u128,
    more: u32,
    pos: NodePos,
    /// Which of the node's offers; none: they are not known yet.
    offer: Option<usize>,
}

impl Bid {
    fn best(pos: NodePos, offers: &[Offer], now: Option<&Offer>, missing: u32) -> Option<Self> {
        let (workers, loss_micros) = now.map_or((0, 0), |now| (now.workers, now.loss_micros));
        offers
            .iter()
            .enumerate()
            .filter(|(_, offer)| offer.workers > workers && offer.workers - workers <= missing)
            .map(|(at, offer)| Bid {
                micros: offer.loss_micros.saturating_sub(loss_micros),
                more: offer.workers - workers,
                pos,
                offer: Some(at),
            })
            .min()
    }
}

/// By cost a worker, then what is known before what is only bounded, then by more workers, then by
/// position.
impl Ord for Bid {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = self.micros * u128::from(other.more);
        let theirs = other.micros * u128::from(self.more);
        mine.cmp(&theirs)
            .then(self.offer.is_none().cmp(&other.offer.is_none()))
            .then(other.more.cmp(&self.more))
            .then(self.pos.cmp(&other.pos))
    }
}

impl PartialOrd for Bid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bid {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Bid {}

/// Who leaves, by node.
struct Choice {
    victims: BTreeMap<NodePos, Vec<AllocationId>>,
    loss_micros: u128,
}

impl Choice {
    /// Workers that a node holds once its victims have gone.
    fn room_at(&self, draft: &Draft<'_>, claim: &Claim, pos: NodePos) -> u32 {
        match self.victims.get(&pos) {
            Some(victims) => draft.node(pos).slots_without(claim, victims),
            None => draft.counted(claim, Pool::Free).at(pos),
        }
    }

    /// Drops victims, the dearest first, as long as the domain still holds the gang.
    fn drop_superfluous(&mut self, draft: &Draft<'_>, ask: &Ask, domain: DomainId) {
        let free = draft.counted(&ask.claim, Pool::Free);
        let freed = self
            .victims
            .keys()
            .map(|pos| u64::from(self.room_at(draft, &ask.claim, *pos)) - u64::from(free.at(*pos)));
        let room = free.within(domain) + freed.sum::<u64>();
        let mut spare = room - u64::from(ask.workers);
        // Workers are whole, so one that went may make another superfluous that was not before.
        while self.drop_dearest(draft, &ask.claim, &mut spare) {}
        self.victims.retain(|_, victims| !victims.is_empty());
        self.loss_micros = self.tenants(draft).map(|(_, tenant)| tenant.loss_micros).sum();
    }

    /// Looks at each victim once; whether one was dropped.
    fn drop_dearest(&mut self, draft: &Draft<'_>, claim: &Claim, spare: &mut u64) -> bool {
        let mut order: Vec<(u128, NodePos, AllocationId)> = self
            .tenants(draft)
            .map(|(pos, tenant)| (tenant.loss_micros, pos, tenant.allocation))
            .collect();
        order.sort_unstable_by(|a, b| b.cmp(a));
        let mut dropped = false;
        for (_, pos, victim) in order {
            let node = draft.node(pos);
            let victims = self.victims.get_mut(&pos).expect("listed from it");
            let fewer: Vec<_> = victims.iter().copied().filter(|id| *id != victim).collect();
            let given = node.slots_without(claim, victims) - node.slots_without(claim, &fewer);
            if u64::from(given) <= *spare {
                *spare -= u64::from(given);
                *victims = fewer;
                dropped = true;
            }
        }
        dropped
    }

    /// The victims, with where they are.
    fn tenants<'d>(&self, draft: &'d Draft<'_>) -> impl Iterator<Item = (NodePos, &'d Tenant)> {
        self.victims.iter().flat_map(|(pos, victims)| {
            let tenants = draft.node(*pos).tenants.iter();
            let these = tenants.filter(|tenant| victims.contains(&tenant.allocation));
            these.map(|tenant| (*pos, tenant))
        })
    }

    /// Workers by node, in rank order. Nodes with victims are used as fully as can be (each
    /// victim gives more than is to spare, so none is in vain), then the roomiest others.
    fn on(&self, draft: &Draft<'_>, ask: &Ask, domain: DomainId) -> Option<Vec<(NodePos, u32)>> {
        let room = |pos| (pos, self.room_at(draft, &ask.claim, pos));
        let mut with_victims: Vec<_> = self.victims.keys().map(|pos| room(*pos)).collect();
        with_victims.sort_by_key(|(pos, room)| (Reverse(*room), *pos));
        let mut missing = ask.workers;
        let mut on = Vec::new();
        let mut use_up = |(pos, room): (NodePos, u32)| {
            let workers = missing.min(room);
            missing -= workers;
            if workers > 0 {
                on.push((pos, workers));
            }
            missing == 0
        };
        let done = with_victims.into_iter().any(&mut use_up) || {
            let others = draft.nodes_of(domain).filter(|pos| !self.victims.contains_key(pos));
            let mut others: Vec<_> = others.map(room).filter(|(_, room)| *room > 0).collect();
            others.sort_by_key(|(_, room)| Reverse(*room)); // stable: then by position
            others.into_iter().any(&mut use_up)
        };
        on.sort_unstable();
        done.then_some(on)
    }

    /// Until the last victim has gone at the latest.
    fn notice_ms(&self, draft: &Draft<'_>) -> u64 {
        self.tenants(draft).map(|(_, tenant)| tenant.notice_ms).max().unwrap_or(0)
    }
}
