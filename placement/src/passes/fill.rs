//! Fill: filler instances start on what no gang could use.
//!
//! First every filler's minimum, then by value a GPU-hour. An instance goes where it breaks up
//! least: the node with the fewest free GPUs that holds it, of equals the one in the fullest block,
//! so that whole nodes and whole blocks are filled last.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use rowen_state::{Decision, Filler, FillerId, FillerState, Place};
use rowen_topology::{Level, NodePos};

use crate::{Cycle, MAX_DECISIONS, demand::Claim, draft::Draft, fit, reason, slots::Pool};

/// Starts instances on the draft, and says of each filler why it has no more.
pub(crate) fn fill(cycle: &mut Cycle<'_>) {
    if cycle.view.fillers().is_empty() {
        return;
    }
    let mut filling = Filling::new(cycle);
    let mut order: Vec<&Filler> =
        cycle.view.fillers().values().filter(|filler| starts(cycle, filler)).collect();
    order.sort_by_key(|filler| (Reverse(filler.spec.value_micros), filler.id));
    for filler in &order {
        filling.start(cycle, filler, filler.spec.min_instances);
    }
    for filler in &order {
        filling.start(cycle, filler, filler.spec.max_instances);
    }
    filling.give_reasons(cycle);
}

/// Whether the filler may start instances now.
fn starts(cycle: &Cycle<'_>, filler: &Filler) -> bool {
    filler.state == FillerState::Active && filler.backoff_until_ms <= cycle.view.now_ms()
}

struct Filling {
    /// Free GPUs of each block before anything was filled.
    block_free: Vec<u32>,
    /// Instances with those of this plan.
    instances: BTreeMap<FillerId, u32>,
    /// Shapes that nothing is left for.
    used_up: BTreeSet<Claim>,
}

impl Filling {
    fn new(cycle: &Cycle<'_>) -> Filling {
        let blocks = fit::domains(cycle.draft.index(), Level::Block);
        let fillers = cycle.view.fillers().iter();
        Filling {
            block_free: blocks.map(|block| cycle.draft.free_in(block)).collect(),
            instances: fillers.map(|(id, filler)| (id, filler.instances.len() as u32)).collect(),
            used_up: BTreeSet::new(),
        }
    }

    /// Starts instances of a filler until there are `most`, or no room, or the plan is full.
    fn start(&mut self, cycle: &mut Cycle<'_>, filler: &Filler, most: u32) {
        let claim = Claim::new(&filler.spec.resources, cycle.view.index());
        let instances = self.instances.get_mut(&filler.id).expect("every filler was counted");
        if *instances >= most || self.used_up.contains(&claim) {
            return;
        }
        for (pos, slots) in candidates(&mut cycle.draft, &claim, &self.block_free) {
            for _ in 0..slots {
                if *instances >= most || cycle.decisions.len() >= MAX_DECISIONS {
                    return;
                }
                let gpus = cycle.draft.room(pos).free.lowest(claim.gpus);
                let gpus = gpus.expect("slots were counted on free GPUs");
                let place = Place { node: cycle.draft.rooms().node(pos), gpus };
                cycle.draft.take_free(pos, gpus, &claim, 1);
                cycle.decisions.push(Decision::StartInstance { filler: filler.id, place });
                *instances += 1;
            }
        }
        if *instances < most {
            self.used_up.insert(claim);
        }
    }

    fn give_reasons(&self, cycle: &mut Cycle<'_>) {
        for filler in cycle.view.fillers().values() {
            let Some(reason) = self.reason(cycle, filler).map(reason::bounded) else { continue };
            if reason != filler.reason && cycle.decisions.len() < MAX_DECISIONS {
                cycle.decisions.push(Decision::Unfilled { filler: filler.id, reason });
            }
        }
    }

    /// Why a filler has no more instances; `None` when the plan was full before its turn.
    fn reason(&self, cycle: &mut Cycle<'_>, filler: &Filler) -> Option<String> {
        let claim = Claim::new(&filler.spec.resources, cycle.view.index());
        if filler.state != FillerState::Active {
            return Some("is being drained".into());
        }
        if self.instances[&filler.id] >= filler.spec.max_instances {
            return Some(String::new());
        }
        if !starts(cycle, filler) {
            return Some("pauses: its last instances failed".into());
        }
        self.used_up
            .contains(&claim)
            .then(|| reason::no_room_on_a_node(&mut cycle.draft, filler, &claim))
    }
}

/// Nodes that hold an instance, and how many: the fullest first. One that got an instance is the
/// fullest still, so each is filled up before the next.
fn candidates(draft: &mut Draft<'_>, claim: &Claim, block_free: &[u32]) -> Vec<(NodePos, u32)> {
    let index = draft.index();
    let slots = draft.slots(claim, Pool::Free).nodes().iter().zip(0u32..);
    let mut nodes: Vec<(NodePos, u32)> = slots
        .filter(|(slots, _)| **slots > 0)
        .map(|(slots, pos)| (NodePos(pos), u32::from(*slots)))
        .collect();
    nodes.sort_by_cached_key(|(pos, _)| {
        let block = index.domain_of(*pos, Level::Block).ordinal;
        (draft.free_at(*pos), block_free[block as usize], *pos)
    });
    nodes
}
