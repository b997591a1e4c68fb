//! Where a gang fits: which domain, how many workers on which node, which GPUs, in which rank order.
//! Reads a draft; never changes it.

use rowen_state::{AllocationId, GpuMask, NodeId, Place};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::{Ask, Claim, LevelWord},
    draft::Draft,
    forms::Units,
    slots::Slots,
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

/// All domains of a level.
pub(crate) fn domains(index: &FlatIndex, level: Level) -> impl Iterator<Item = DomainId> + use<> {
    (0..index.domains(level).len() as u32).map(move |ordinal| DomainId { level, ordinal })
}

/// Where a gang would stand.
pub(crate) struct Spot {
    pub(crate) domain: DomainId,
    /// In rank order.
    pub(crate) on: Vec<(NodePos, u32)>,
    /// Workers that the domain holds besides.
    pub(crate) left: u64,
}

/// The best fit: on the tightest level that holds the gang, the domain with the least room left
/// over, so that the least of future shapes is broken up. Preferred groups first.
pub(crate) fn spot(draft: &Draft<'_>, ask: &Ask, slots: &Slots) -> Option<Spot> {
    let workers = ask.workers;
    if ask.is_formless() {
        let domain = best_domain(draft, ask, slots)?;
        let on = spread(draft, slots, domain, workers.into());
        return Some(Spot { domain, on, left: slots.within(domain) - u64::from(workers) });
    }
    let form = draft.terms().form_of(ask);
    form.variants().find_map(|form| {
        let units = Units::of(draft.index(), &form, slots);
        let domain = units.best_domain(draft, ask)?;
        let left = u64::from(units.within(domain) - workers);
        Some(Spot { domain, on: units.lay_out(draft, domain, workers), left })
    })
}

/// Whether a gang has a spot.
pub(crate) fn fits(draft: &Draft<'_>, ask: &Ask, slots: &Slots) -> bool {
    match ask.is_formless() {
        true => best_domain(draft, ask, slots).is_some(),
        false => {
            let form = draft.terms().form_of(ask).loosest();
            Units::of(draft.index(), &form, slots).best_domain(draft, ask).is_some()
        }
    }
}

/// Workers of a gang that each domain holds, what is only preferred left aside.
pub(crate) enum Holding<'s> {
    Formless(&'s Slots),
    Formed(Units),
}

impl<'s> Holding<'s> {
    pub(crate) fn of(draft: &Draft<'_>, ask: &Ask, slots: &'s Slots) -> Holding<'s> {
        if ask.is_formless() {
            return Holding::Formless(slots);
        }
        let form = draft.terms().form_of(ask).loosest();
        Holding::Formed(Units::of(draft.index(), &form, slots))
    }

    pub(crate) fn within(&self, domain: DomainId) -> u64 {
        match self {
            Holding::Formless(slots) => slots.within(domain),
            Holding::Formed(units) => units.within(domain).into(),
        }
    }

    /// The domain of a level with the most room, and how much. `None` without nodes.
    pub(crate) fn nearest(&self, index: &FlatIndex, level: Level) -> Option<(DomainId, u64)> {
        let with_room = domains(index, level).map(|domain| (domain, self.within(domain)));
        with_room.max_by_key(|(domain, room)| (*room, std::cmp::Reverse(*domain)))
    }
}

/// The most workers that one domain holds of an ask that may be fewer, as many as it may be; the
/// least it may be where none holds even those.
pub(crate) fn most(draft: &Draft<'_>, ask: &Ask, slots: &Slots) -> u32 {
    let nearest = Holding::of(draft, ask, slots).nearest(draft.index(), ask.required);
    let most = nearest.map_or(0, |(_, room)| room.min(ask.workers.into()) as u32);
    let step = draft.terms().form_of(ask).step();
    (most - most % step).max(ask.least)
}

fn best_domain(draft: &Draft<'_>, ask: &Ask, slots: &Slots) -> Option<DomainId> {
    ask.levels().find_map(|level| tightest(draft, slots, level, ask))
}

/// Of a level's domains, the one with the least room that still holds the gang; of equals the one
/// with the fewest free GPUs, then the first.
fn tightest(draft: &Draft<'_>, slots: &Slots, level: Level, ask: &Ask) -> Option<DomainId> {
    let row = slots.of_level(level);
    let room = row.least(ask.workers)?;
    let mut fewest: Option<(u32, u32)> = None;
    for ordinal in row.equal_to(room) {
        let free = draft.free_in(DomainId { level, ordinal });
        if fewest.is_none_or(|(fewest, _)| free < fewest) {
            fewest = Some((free, ordinal));
            if u64::from(free) <= ask.gpus() {
                break; // none has fewer and holds it
            }
        }
    }
    fewest.map(|(_, ordinal)| DomainId { level, ordinal })
}

/// Spreads `workers` over as few parts of the domain as possible on every level: the tightest
/// part that holds them all, else the roomiest part whole and on with the rest. In rank order.
fn spread(draft: &Draft<'_>, slots: &Slots, domain: DomainId, workers: u64) -> Vec<(NodePos, u32)> {
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
    if domain.level == Level::Node {
        return on.push((NodePos(domain.ordinal), workers as u32));
    }
    if workers == slots.within(domain) {
        let nodes = draft.nodes_of(domain).map(|pos| (pos, slots.at(pos)));
        return on.extend(nodes.filter(|(_, slots)| *slots > 0));
    }
    let level = domain.level.finer().expect("a node was dealt with above");
    let parts = index.children(domain).map(|ordinal| DomainId { level, ordinal });
    let mut parts: Vec<(u64, u32, DomainId)> = parts
        .map(|part| (slots.within(part), part))
        .filter(|(room, _)| *room > 0)
        .map(|(room, part)| (room, draft.free_in(part), part))
        .collect();
    // Roomiest last; of equals the fullest, then the first, is taken first.
    parts.sort_unstable_by_key(|(room, free, part)| {
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

/// One place for each worker that `gpus` of a node are enough for.
pub(crate) fn shares(
    node: NodeId,
    gpus: GpuMask,
    claim: &Claim,
) -> impl Iterator<Item = Place> + use<> {
    split(gpus, claim.gpus).map(move |gpus| Place { node, gpus })
}

fn split(mut gpus: GpuMask, each: u32) -> impl Iterator<Item = GpuMask> + use<> {
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
