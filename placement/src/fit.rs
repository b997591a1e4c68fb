//! Where a gang fits: which domain, how many workers on which node, which GPUs, in which rank order.
//! Reads a draft; never changes it.

use rowen_state::{AllocationId, GpuMask, Place};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::{Ask, Claim, LevelWord},
    draft::Draft,
    node::{DraftNode, Fate},
};

/// Where a gang goes.
pub(crate) struct Placement {
    /// By rank: nodes in the order of the hierarchy, so that neighbours are near.
    pub(crate) places: Vec<Place>,
    pub(crate) victims: Vec<AllocationId>,
    /// Until the last victim has gone at the latest.
    pub(crate) notice_ms: u64,
    pub(crate) why: String,
}

/// What a count of slots counts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pool {
    /// What is free now.
    Free,
    /// And fillers that may be evicted.
    Evicted,
    /// And whatever already leaves.
    Soon,
}

impl Pool {
    pub(crate) fn slots(self, node: &DraftNode, claim: &Claim) -> u32 {
        match self {
            Pool::Free => node.slots_without(claim, &[]),
            Pool::Evicted => node.slots(claim, |tenant| tenant.fate == Fate::Evictable),
            Pool::Soon => node.slots(claim, |tenant| tenant.fate != Fate::Staying),
        }
    }

    /// Whether a node is worth a look, by the counts alone.
    fn could(self, index: &FlatIndex, pos: NodePos, claim: &Claim) -> bool {
        let (free, reclaimable) = (u32::from(index.free(pos)), u32::from(index.reclaimable(pos)));
        match self {
            Pool::Free => free >= claim.gpus,
            Pool::Evicted => free + reclaimable >= claim.gpus,
            Pool::Soon => index.in_service(pos),
        }
    }
}

/// How many workers fit on each node and, by one subtraction, in each domain: domains are
/// contiguous ranges of positions.
pub(crate) struct Slots {
    /// Workers on all nodes before a position; one longer than there are nodes.
    before: Vec<u64>,
}

impl Slots {
    pub(crate) fn of(draft: &Draft<'_>, claim: &Claim, pool: Pool) -> Slots {
        Slots::count(draft, claim, |pos| {
            if !pool.could(draft.index(), pos, claim) {
                return 0;
            }
            pool.slots(draft.node(pos), claim)
        })
    }

    /// Counts with `slots` of each node whose model will do.
    pub(crate) fn count(draft: &Draft<'_>, claim: &Claim, slots: impl Fn(NodePos) -> u32) -> Slots {
        let mut before = Vec::with_capacity(draft.index().node_count() as usize + 1);
        let mut sum = 0;
        before.push(sum);
        for pos in draft.positions() {
            if claim.admits(draft.index().model(pos)) {
                sum += u64::from(slots(pos));
            }
            before.push(sum);
        }
        Slots { before }
    }

    pub(crate) fn at(&self, pos: NodePos) -> u32 {
        let at = pos.0 as usize;
        (self.before[at + 1] - self.before[at]) as u32
    }

    pub(crate) fn within(&self, index: &FlatIndex, domain: DomainId) -> u64 {
        let nodes = &index.domain(domain).nodes;
        self.before[nodes.end as usize] - self.before[nodes.start as usize]
    }
}

/// All domains of a level.
pub(crate) fn domains(index: &FlatIndex, level: Level) -> impl Iterator<Item = DomainId> + use<> {
    (0..index.domains(level).len() as u32).map(move |ordinal| DomainId { level, ordinal })
}

/// The best fit: on the tightest level that holds the gang, the domain with the least room left
/// over, so that the least of future shapes is broken up.
pub(crate) fn best_domain(draft: &Draft<'_>, ask: &Ask, slots: &Slots) -> Option<DomainId> {
    let index = draft.index();
    ask.levels().find_map(|level| tightest(draft, slots, domains(index, level), ask.workers.into()))
}

/// Of `domains`, the one with the least room that still holds `workers`.
fn tightest(
    draft: &Draft<'_>,
    slots: &Slots,
    domains: impl Iterator<Item = DomainId>,
    workers: u64,
) -> Option<DomainId> {
    let index = draft.index();
    let room = |domain: &DomainId| slots.within(index, *domain);
    domains
        .filter(|domain| room(domain) >= workers)
        .min_by_key(|domain| (room(domain), index.counts(*domain, None).free, *domain))
}

/// Spreads `workers` over as few parts of the domain as possible on every level: the tightest
/// part that holds them all, else the roomiest part whole and on with the rest. In rank order.
pub(crate) fn spread(
    draft: &Draft<'_>,
    slots: &Slots,
    domain: DomainId,
    workers: u64,
) -> Vec<(NodePos, u32)> {
    let mut on = Vec::new();
    spread_into(draft, slots, domain, workers, &mut on);
    on.sort_unstable();
    on
}

fn spread_into(
    draft: &Draft<'_>,
    slots: &Slots,
    domain: DomainId,
    mut workers: u64,
    on: &mut Vec<(NodePos, u32)>,
) {
    let index = draft.index();
    let Some(level) = domain.level.finer() else {
        on.push((NodePos(index.domain(domain).nodes.start), workers as u32));
        return;
    };
    let parts = index.children(domain).map(|ordinal| DomainId { level, ordinal });
    let mut parts: Vec<(u64, u32, DomainId)> = parts
        .map(|part| (slots.within(index, part), index.counts(part, None).free, part))
        .filter(|(room, ..)| *room > 0)
        .collect();
    // Roomiest last; of equals the fullest, then the first, is taken first.
    parts.sort_by_key(|(room, free, part)| {
        (*room, std::cmp::Reverse(*free), std::cmp::Reverse(*part))
    });
    while workers > 0 {
        let tight = parts.partition_point(|(room, ..)| *room < workers);
        let Some((room, ..)) = parts.get(tight).copied() else {
            let (room, _, part) = parts.pop().expect("the domain holds them, so its parts do");
            spread_into(draft, slots, part, room, on);
            workers -= room;
            continue;
        };
        let equals = parts[tight..].partition_point(|(other, ..)| *other == room);
        spread_into(draft, slots, parts[tight + equals - 1].2, workers, on);
        return;
    }
}

/// The GPUs of each worker, in the order of `on`. `None` when a node cannot give them.
pub(crate) fn places(
    draft: &Draft<'_>,
    claim: &Claim,
    on: &[(NodePos, u32)],
    victims: &[AllocationId],
) -> Option<Vec<Place>> {
    let mut places = Vec::new();
    for (pos, workers) in on {
        let gpus = draft.node(*pos).pick(workers * claim.gpus, &on_node(draft, *pos, victims))?;
        let node = draft.view.node_at(*pos).id;
        places.extend(split(gpus, claim.gpus).map(|gpus| Place { node, gpus }));
    }
    Some(places)
}

fn on_node(draft: &Draft<'_>, pos: NodePos, victims: &[AllocationId]) -> Vec<AllocationId> {
    if victims.is_empty() {
        return Vec::new();
    }
    let here = draft.node(pos).tenants.iter().map(|tenant| tenant.allocation);
    here.filter(|id| victims.binary_search(id).is_ok()).collect()
}

fn split(mut gpus: GpuMask, each: u32) -> impl Iterator<Item = GpuMask> {
    std::iter::from_fn(move || {
        let part = gpus.lowest(each)?;
        gpus = gpus.without(part);
        Some(part)
    })
}

/// `block b1-leaf`.
pub(crate) fn name(index: &FlatIndex, domain: DomainId) -> String {
    format!("{} {}", LevelWord(domain.level), index.domain(domain).name)
}
