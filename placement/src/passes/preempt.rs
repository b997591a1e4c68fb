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
    fit::{self, Placement, Pool, Slots},
    node::{Offer, Tenant},
};

/// What an hour of a gang's GPU is taken to be worth while it waits.
const GANG_HOUR_MICROS: u128 = 2_000_000;
const HOUR_MS: u128 = 3_600_000;
/// One level wider costs a gang as much as waiting this much longer.
const WIDER_MS: u128 = 60_000;

/// Places the gang on the draft, if evictions make room for it.
pub(crate) fn preempt(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    let slots = Slots::of(draft, &ask.claim, Pool::Evicted);
    let mut best: Option<(u128, DomainId, Choice)> = None;
    for (wider, level) in (0u128..).zip(ask.levels()) {
        let span_micros = delay_micros(ask, wider * WIDER_MS);
        let costs_more = |best: &Option<(u128, DomainId, Choice)>, least_micros: u128| {
            best.as_ref()
                .is_some_and(|(micros, ..)| *micros <= span_micros.saturating_add(least_micros))
        };
        if costs_more(&best, 0) {
            break; // every domain from here on
        }
        for (least_micros, domain) in by_least_micros(draft, ask, &slots, level) {
            if costs_more(&best, least_micros) {
                break; // and so does every later one of this level
            }
            let Some(choice) = choose(draft, ask, &slots, domain) else { continue };
            let micros = span_micros
                + choice.loss_micros
                + delay_micros(ask, choice.notice_ms(draft).into());
            if best.as_ref().is_none_or(|(least, ..)| micros < *least) {
                best = Some((micros, domain, choice));
            }
        }
    }
    let (_, domain, choice) = best?;
    carry_out(draft, ask, domain, &choice)
}

/// The domains of a level that hold the gang, each with what it costs there at least; cheapest
/// first. A search from the front is over at the first that may not be cheaper than the best.
fn by_least_micros(
    draft: &Draft<'_>,
    ask: &Ask,
    slots: &Slots,
    level: Level,
) -> Vec<(u128, DomainId)> {
    let holds = |domain: &_| slots.within(draft.index(), *domain) >= ask.workers.into();
    let domains = fit::domains(draft.index(), level).filter(holds);
    let mut domains: Vec<_> =
        domains.map(|domain| (least_micros(draft, ask, slots, domain), domain)).collect();
    domains.sort_unstable();
    domains
}

/// GPUs that are not free must be freed, at no less than the least loss a GPU, and after no less
/// than the shortest notice, of all fillers there.
fn least_micros(draft: &Draft<'_>, ask: &Ask, slots: &Slots, domain: DomainId) -> u128 {
    let missing = ask.gpus().saturating_sub(draft.index().counts(domain, None).free.into());
    let (mut loss_a_gpu, mut notice_ms) = (u128::MAX, u64::MAX);
    for pos in draft.nodes_of(domain).filter(|pos| slots.at(*pos) > 0) {
        let cheapest = draft.node(pos).cheapest();
        loss_a_gpu = loss_a_gpu.min(cheapest.0);
        notice_ms = notice_ms.min(cheapest.1);
    }
    u128::from(missing)
        .saturating_mul(loss_a_gpu)
        .saturating_add(delay_micros(ask, notice_ms.into()))
}

/// What it costs to keep a whole gang waiting.
fn delay_micros(ask: &Ask, ms: u128) -> u128 {
    u128::from(ask.gpus()) * GANG_HOUR_MICROS * ms / HOUR_MS
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
/// later offer made superfluous.
fn choose(draft: &Draft<'_>, ask: &Ask, slots: &Slots, domain: DomainId) -> Option<Choice> {
    let nodes = draft.nodes_of(domain).filter(|pos| slots.at(*pos) > 0);
    let offers = |pos| draft.node(pos).offers(&ask.claim, slots.at(pos).min(ask.workers));
    let by_node: BTreeMap<NodePos, Vec<Offer>> = nodes.map(|pos| (pos, offers(pos))).collect();
    let mut taken: BTreeMap<NodePos, &Offer> = BTreeMap::new();
    let mut missing = ask.workers;
    let first = by_node.iter().filter_map(|(pos, offers)| Bid::best(*pos, offers, None, missing));
    let mut bids: BinaryHeap<Reverse<Bid<'_>>> = first.map(Reverse).collect();
    while missing > 0 {
        let Reverse(bid) = bids.pop()?;
        if bid.more <= missing {
            taken.insert(bid.pos, bid.offer);
            missing -= bid.more;
        }
        let now = taken.get(&bid.pos).copied();
        bids.extend(Bid::best(bid.pos, &by_node[&bid.pos], now, missing).map(Reverse));
    }
    let victims = taken.into_iter().map(|(pos, offer)| (pos, offer.victims.clone())).collect();
    let mut choice = Choice { victims, loss_micros: 0 };
    choice.drop_superfluous(draft, ask, domain);
    Some(choice)
}

/// The offer of a node that costs least for each worker it adds.
struct Bid<'o> {
    micros: u128,
    more: u32,
    pos: NodePos,
    offer: &'o Offer,
}

impl<'o> Bid<'o> {
    fn best(pos: NodePos, offers: &'o [Offer], now: Option<&Offer>, missing: u32) -> Option<Self> {
        let (workers, loss_micros) = now.map_or((0, 0), |now| (now.workers, now.loss_micros));
        offers
            .iter()
            .filter(|offer| offer.workers > workers && offer.workers - workers <= missing)
            .map(|offer| Bid {
                micros: offer.loss_micros.saturating_sub(loss_micros),
                more: offer.workers - workers,
                pos,
                offer,
            })
            .min()
    }
}

/// By cost a worker, then by more workers, then by position.
impl Ord for Bid<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let mine = self.micros * u128::from(other.more);
        let theirs = other.micros * u128::from(self.more);
        mine.cmp(&theirs).then(other.more.cmp(&self.more)).then(self.pos.cmp(&other.pos))
    }
}

impl PartialOrd for Bid<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Bid<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Bid<'_> {}

/// Who leaves, by node.
struct Choice {
    victims: BTreeMap<NodePos, Vec<AllocationId>>,
    loss_micros: u128,
}

impl Choice {
    /// Workers that fit on each node of the domain once the victims have gone.
    fn room(&self, draft: &Draft<'_>, claim: &Claim, domain: DomainId) -> BTreeMap<NodePos, u32> {
        let admitted = |pos: &NodePos| claim.admits(draft.index().model(*pos));
        let room = draft.nodes_of(domain).filter(admitted).map(|pos| {
            let victims = self.victims.get(&pos).map_or(&[][..], Vec::as_slice);
            (pos, draft.node(pos).slots_without(claim, victims))
        });
        room.filter(|(_, room)| *room > 0).collect()
    }

    /// Drops victims, the dearest first, as long as the domain still holds the gang.
    fn drop_superfluous(&mut self, draft: &Draft<'_>, ask: &Ask, domain: DomainId) {
        let room: u64 = self.room(draft, &ask.claim, domain).values().map(|n| u64::from(*n)).sum();
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
        let room = self.room(draft, &ask.claim, domain);
        let mut order: Vec<(NodePos, u32)> = room.into_iter().collect();
        order.sort_by_key(|(pos, room)| (!self.victims.contains_key(pos), Reverse(*room), *pos));
        let mut missing = ask.workers;
        for (_, workers) in &mut order {
            *workers = missing.min(*workers);
            missing -= *workers;
        }
        order.retain(|(_, workers)| *workers > 0);
        order.sort_unstable();
        (missing == 0).then_some(order)
    }

    /// Until the last victim has gone at the latest.
    fn notice_ms(&self, draft: &Draft<'_>) -> u64 {
        self.tenants(draft).map(|(_, tenant)| tenant.notice_ms).max().unwrap_or(0)
    }
}
