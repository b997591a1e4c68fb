//! Clear: fillers leave for a gang in groups, spread, or on nodes of its own, which [`super::preempt`]
//! does not know. Never a gang, and nobody at all unless the whole gang then fits.
//!
//! First the least that must be lost a GPU anywhere (a search over the bounds of nodes), then, of
//! the domains that hold the gang at that price, those that lack least are laid out and the cheapest
//! is taken. Where the gang then stands every victim is needed; that no other lay-out of the same
//! domain would need fewer is not shown.

use std::collections::BTreeMap;

use rowen_state::AllocationId;
use rowen_topology::{DomainId, NodePos};

use crate::{
    demand::{Ask, Claim, Form},
    draft::Draft,
    fit::{self, Placement},
    forms::Units,
    node::{self, Fate},
    passes::preempt::{WIDER_MS, delay_micros},
    slots::{Pool, Slots},
};

/// Domains of a level that are laid out.
const LOOKS: usize = 8;

/// Places the gang on the draft, if evictions make room for it.
pub(crate) fn clear(draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
    draft.slots(&ask.claim, Pool::Evicted);
    draft.slots(&ask.claim, Pool::Free);
    let form = draft.terms().form_of(ask);
    let best = form.variants().find_map(|form| Search { draft, ask, form }.best())?;
    let before = draft.checkpoint();
    let placement = best.carry_out(draft, ask);
    if placement.is_none() {
        draft.rollback(before);
    }
    placement
}

struct Search<'d, 'a> {
    draft: &'d Draft<'a>,
    ask: &'d Ask,
    form: Form,
}

impl Search<'_, '_> {
    fn best(&self) -> Option<LaidOut> {
        let all = self.draft.counted(&self.ask.claim, Pool::Evicted);
        self.units(all).best_domain(self.draft, self.ask)?;
        let slots = self.at_least_price(all);
        let units = self.units(&slots);
        let free = self.units(self.draft.counted(&self.ask.claim, Pool::Free));
        let mut best: Option<LaidOut> = None;
        for (wider, level) in (0u128..).zip(self.ask.levels()) {
            let span_micros = delay_micros(self.ask, wider * WIDER_MS);
            if best.as_ref().is_some_and(|best| best.micros <= span_micros) {
                break;
            }
            let holding = units.holding(level, self.ask.workers);
            let mut domains: Vec<(u32, DomainId)> = holding
                .map(|domain| (self.ask.workers.saturating_sub(free.within(domain)), domain))
                .collect();
            domains.sort_unstable();
            for (_, domain) in domains.into_iter().take(LOOKS) {
                let Some(mut laid_out) = self.lay_out(&units, domain) else { continue };
                laid_out.micros += span_micros;
                if best.as_ref().is_none_or(|best| laid_out.micros < best.micros) {
                    best = Some(laid_out);
                }
            }
        }
        best
    }

    fn units(&self, slots: &Slots) -> Units {
        Units::of(self.draft.index(), &self.form, slots)
    }

    /// Workers on each node, without evictions where they cost more than they must anywhere.
    fn at_least_price(&self, all: &Slots) -> Slots {
        let (claim, floors) = (&self.ask.claim, self.draft.floors());
        let free = self.draft.counted(claim, Pool::Free);
        let gain = |pos: &NodePos| all.at(*pos) > free.at(*pos);
        let gaining = self.draft.positions().filter(gain);
        let mut prices: Vec<u64> = gaining.map(|pos| floors.at(pos).loss_a_gpu).collect();
        prices.sort_unstable();
        prices.dedup();
        let at_price = |price: u64| {
            Slots::count(self.draft, claim, |pos| match floors.at(pos).loss_a_gpu <= price {
                true => all.at(pos),
                false => free.at(pos),
            })
        };
        let too_cheap =
            |price: &u64| self.units(&at_price(*price)).best_domain(self.draft, self.ask).is_none();
        let least = prices.partition_point(too_cheap);
        at_price(prices.get(least).copied().unwrap_or(u64::MAX))
    }

    /// The gang in a domain, with who must leave for it there. `None`: a node's bound promised
    /// more than its owners give.
    fn lay_out(&self, units: &Units, domain: DomainId) -> Option<LaidOut> {
        let on = units.lay_out(self.draft, domain, self.ask.workers);
        let mut victims = BTreeMap::new();
        let (mut loss_micros, mut notice_ms) = (0, 0);
        for (pos, workers) in &on {
            let here = victims_on(self.draft, &self.ask.claim, *pos, *workers)?;
            let tenants = self.draft.node(*pos).tenants.iter();
            for tenant in tenants.filter(|tenant| here.contains(&tenant.allocation)) {
                loss_micros += tenant.loss_micros;
                notice_ms = notice_ms.max(tenant.notice_ms);
            }
            victims.insert(*pos, here);
        }
        let micros = loss_micros + delay_micros(self.ask, notice_ms.into());
        Some(LaidOut { domain, on, victims, micros, notice_ms })
    }
}

/// Who must leave a node so that it holds so many workers.
fn victims_on(
    draft: &Draft<'_>,
    claim: &Claim,
    pos: NodePos,
    workers: u32,
) -> Option<Vec<AllocationId>> {
    if draft.counted(claim, Pool::Free).at(pos) >= workers {
        return Some(Vec::new());
    }
    let node = draft.node(pos);
    if claim.exclusive {
        let all = node.tenants.iter().filter(|tenant| tenant.fate == Fate::Evictable);
        return Some(all.map(|tenant| tenant.allocation).collect());
    }
    let offer = node.offers(claim, workers..=workers).pop()?;
    Some(offer.victims.into_iter().map(|tenant| tenant.allocation).collect())
}

/// Where the gang would stand, and at what price.
struct LaidOut {
    domain: DomainId,
    on: Vec<(NodePos, u32)>,
    victims: BTreeMap<NodePos, Vec<AllocationId>>,
    micros: u128,
    notice_ms: u64,
}

impl LaidOut {
    fn carry_out(self, draft: &mut Draft<'_>, ask: &Ask) -> Option<Placement> {
        let mut victims: Vec<AllocationId> = self.victims.values().flatten().copied().collect();
        if victims.is_empty() {
            return None; // what is free holds it: not this pass's business
        }
        victims.sort_unstable();
        let mut places = Vec::with_capacity(ask.workers as usize);
        for (pos, workers) in &self.on {
            let (pos, here) = (*pos, &self.victims[pos]);
            let (theirs, free) = (draft.node(pos).gpus_of_these(here), draft.room(pos).free);
            let gpus = node::pick(workers * ask.claim.gpus, theirs, free)?;
            if !draft.take(pos, gpus, &ask.claim, *workers, here) {
                return None;
            }
            places.extend(fit::shares(draft.rooms().node(pos), gpus, &ask.claim));
        }
        let fillers = if victims.len() == 1 { "filler leaves" } else { "fillers leave" };
        let (name, notice_ms) = (fit::name(draft.index(), self.domain), self.notice_ms);
        let why = format!("{name}: {} {fillers}, within {notice_ms} ms", victims.len());
        Some(Placement { places, victims, notice_ms, why })
    }
}
