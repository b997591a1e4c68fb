//! Gangs whose workers stand in groups, or are spread: how many such workers each domain holds,
//! and who goes where.
//!
//! Groups nest, so the count is exact, level by level from the node up: a domain of a group's level
//! holds as many whole groups as the inner groups of its parts make up; what is left over in a part
//! is lost to it. A spread caps a domain. Because all units of a level are of one size, no choice
//! within a part can give its parent more. Reads a draft; never changes it.

use std::cmp::Reverse;

use rowen_state::Spread;
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::{
    demand::{Ask, Form},
    draft::Draft,
    slots::Slots,
};

/// Workers that each domain holds of a gang of some form.
#[derive(Debug)]
pub(crate) struct Units {
    /// By level: the largest group that is whole within a domain of it; 1: none.
    unit: [u32; 5],
    /// By level and ordinal, in workers, a multiple of the level's unit.
    room: [Vec<u32>; 5],
    spread: Vec<Spread>,
    balanced: bool,
}

impl Units {
    pub(crate) fn of(index: &FlatIndex, form: &Form, slots: &Slots) -> Units {
        let mut unit = [1; 5];
        let mut room: [Vec<u32>; 5] = Default::default();
        for level in Level::ALL.into_iter().rev() {
            let at = level as usize;
            let mut here: Vec<u32> = match level.finer() {
                None => slots.nodes().iter().map(|slots| u32::from(*slots)).collect(),
                Some(finer) => {
                    unit[at] = unit[finer as usize];
                    let parts = &room[finer as usize];
                    let sum = |parts: &[u32]| parts.iter().sum();
                    let children = index.domains(level).iter().map(|one| &one.children);
                    children.map(|of| sum(&parts[of.start as usize..of.end as usize])).collect()
                }
            };
            if let Some(group) = form.groups.iter().find(|group| group.level == level) {
                unit[at] = group.workers;
            }
            let spread = form.spread.iter().find(|spread| spread.level == level);
            let most = spread.map_or(u32::MAX, |spread| spread.workers);
            if unit[at] > 1 || most < u32::MAX {
                here.iter_mut().for_each(|room| *room = whole((*room).min(most), unit[at]));
            }
            room[at] = here;
        }
        Units { unit, room, spread: form.spread.clone(), balanced: form.balanced }
    }

    /// Workers in a domain.
    pub(crate) fn within(&self, domain: DomainId) -> u32 {
        self.room[domain.level as usize][domain.ordinal as usize]
    }

    /// On the tightest level that holds the gang, the domain with the least room left over; of
    /// equals the one with the fewest free GPUs, then the first.
    pub(crate) fn best_domain(&self, draft: &Draft<'_>, ask: &Ask) -> Option<DomainId> {
        ask.levels().find_map(|level| {
            let holding = self.holding(level, ask.workers);
            holding.min_by_key(|domain| (self.within(*domain), draft.free_in(*domain), *domain))
        })
    }

    /// The domains of a level that hold a gang.
    pub(crate) fn holding(
        &self,
        level: Level,
        workers: u32,
    ) -> impl Iterator<Item = DomainId> + use<'_> {
        let rooms = self.room[level as usize].iter().zip(0u32..);
        let may = self.may_be_inside(level, workers);
        let holding = rooms.filter(move |(room, _)| may && **room >= workers);
        holding.map(move |(_, ordinal)| DomainId { level, ordinal })
    }

    /// Whether so many may be all inside one domain of a level, as far as the spread goes.
    fn may_be_inside(&self, level: Level, workers: u32) -> bool {
        self.spread.iter().all(|spread| spread.level > level || spread.workers >= workers)
    }

    /// Workers by node, in rank order: every domain gets whole units of its level, so that ranks in
    /// the order of positions keep groups inside their domains.
    pub(crate) fn lay_out(
        &self,
        draft: &Draft<'_>,
        domain: DomainId,
        workers: u32,
    ) -> Vec<(NodePos, u32)> {
        let mut on = Vec::new();
        self.lay_into(draft, domain, workers, &mut on);
        on.sort_unstable();
        on
    }

    fn lay_into(
        &self,
        draft: &Draft<'_>,
        domain: DomainId,
        workers: u32,
        on: &mut Vec<(NodePos, u32)>,
    ) {
        let Some(level) = domain.level.finer() else {
            return on.push((NodePos(domain.ordinal), workers));
        };
        let unit = self.unit[domain.level as usize];
        let parts = draft.index().children(domain).map(|ordinal| DomainId { level, ordinal });
        let parts = parts.map(|part| Part { room: self.within(part), part, given: 0 });
        let mut parts: Vec<Part> = parts.filter(|part| part.room > 0).collect();
        // Roomiest first; of equals the fullest, then the first.
        parts.sort_by_cached_key(|part| {
            (Reverse(whole(part.room, unit)), draft.free_in(part.part), part.part)
        });
        let missing = match self.balanced {
            true => share_out(&mut parts, workers, unit),
            false => workers,
        };
        let missing = fill_up(&mut parts, missing, unit);
        let missing = fill_up(&mut parts, missing, 1); // in what is left beside whole units
        assert_eq!(missing, 0, "the domain holds them, so its parts do");
        for part in parts.into_iter().filter(|part| part.given > 0) {
            self.lay_into(draft, part.part, part.given, on);
        }
    }
}

struct Part {
    /// For more workers.
    room: u32,
    part: DomainId,
    given: u32,
}

impl Part {
    fn give(&mut self, workers: u32) {
        self.room -= workers;
        self.given += workers;
    }
}

/// The tightest part that holds all of them, else the roomiest as far as it goes and on with the
/// rest, in whole units. Of equals the first. How many went nowhere.
fn fill_up(parts: &mut [Part], mut workers: u32, unit: u32) -> u32 {
    parts.sort_by_key(|part| Reverse(whole(part.room, unit))); // stable
    let mut rest = parts;
    while let Some(most) = rest.first().map(|part| whole(part.room, unit)) {
        if workers == 0 || most == 0 {
            break;
        }
        if most < workers {
            rest[0].give(most);
            workers -= most;
            rest = &mut rest[1..];
            continue;
        }
        let holding = rest.partition_point(|part| whole(part.room, unit) >= workers);
        let tight = whole(rest[holding - 1].room, unit);
        let first = rest.partition_point(|part| whole(part.room, unit) > tight);
        rest[first].give(workers);
        return 0;
    }
    workers
}

/// Evenly over as few parts as hold them, in whole units. How many went nowhere.
fn share_out(parts: &mut [Part], mut workers: u32, unit: u32) -> u32 {
    let mut sum = 0;
    let enough = parts.iter().position(|part| {
        sum += whole(part.room, unit);
        sum >= workers
    });
    let Some(last) = enough else { return workers };
    for (at, part) in parts[..=last].iter_mut().enumerate().rev() {
        // The least roomy first: what they cannot take, the others do.
        let even = whole(workers / (at as u32 + 1), unit);
        let given = if at == 0 { workers } else { even.min(whole(part.room, unit)) };
        part.give(given);
        workers -= given;
    }
    workers
}

fn whole(workers: u32, unit: u32) -> u32 {
    workers - workers % unit
}
