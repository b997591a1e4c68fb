//! Where a gang fits: which domain, how many workers on which node, which GPUs, in which rank order.
//! Reads a draft; never changes it.

use rowen_state::{AllocationId, GpuMask, NodeId, Place};
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::{Ask, Claim, LevelWord},
    draft::Draft,
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

/// The best fit: on the tightest level that holds the gang, the domain with the least room left
/// over, so that the least of future shapes is broken up.
pub(crate) fn best_domain(draft: &Draft<'_>, ask: &Ask, slots: &Slots) -> Option<DomainId> {
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
