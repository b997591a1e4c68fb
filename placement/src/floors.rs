//! What evictions cost at least, on each node and in each domain: so that a search for the cheapest
//! victims looks at the owners of few nodes only. Bounds from dense rows; never the cost itself.

use rowen_state::Evictable;
use rowen_topology::{FlatIndex, Level, NodePos};

use crate::{
    node::{EVICTION_MICROS, HOUR_MS},
    slots::Slots,
};

/// A lower bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floor {
    /// What freeing a GPU loses, in micro-dollars.
    pub(crate) loss_a_gpu: u64,
    pub(crate) notice_ms: u64,
}

impl Floor {
    /// Nobody can be evicted.
    const NONE: Floor = Floor { loss_a_gpu: u64::MAX, notice_ms: u64::MAX };

    /// The loss of [`crate::node`], of an instance that has the best of all that are on the node:
    /// the least value, the shortest warm-up and notice, the latest start, the most GPUs.
    fn of(evictable: &Evictable, now_ms: u64) -> Floor {
        if evictable.largest == 0 {
            return Floor::NONE;
        }
        let age_ms = now_ms.saturating_sub(evictable.bound_ms);
        let lost_ms = evictable.warm_up_ms.min(age_ms) + evictable.notice_ms;
        let value_micros = u128::from(evictable.value_micros);
        let earned = match evictable.value_micros.checked_mul(lost_ms) {
            Some(product) => product / HOUR_MS as u64, // a division by a constant
            None => u64::try_from(value_micros * u128::from(lost_ms) / HOUR_MS).unwrap_or(u64::MAX),
        };
        let own = EVICTION_MICROS as u64 / u64::from(evictable.largest);
        Floor { loss_a_gpu: earned.saturating_add(own), notice_ms: evictable.notice_ms }
    }

    fn least(self, other: Floor) -> Floor {
        Floor {
            loss_a_gpu: self.loss_a_gpu.min(other.loss_a_gpu),
            notice_ms: self.notice_ms.min(other.notice_ms),
        }
    }
}

/// The bound of each node, by position.
#[derive(Debug)]
pub(crate) struct Floors(Vec<Floor>);

impl Floors {
    /// Evictions of a draft only ever raise what is left to evict, so bounds hold for a cycle.
    pub(crate) fn new<'r>(
        evictables: impl Iterator<Item = &'r [Evictable]>,
        now_ms: u64,
    ) -> Floors {
        let mut floors = Vec::new();
        for run in evictables {
            floors.extend(run.iter().map(|one| Floor::of(one, now_ms)));
        }
        Floors(floors)
    }

    pub(crate) fn at(&self, pos: NodePos) -> Floor {
        self.0[pos.0 as usize]
    }

    /// The bound of each domain of a level, of its nodes that hold a worker, by ordinal.
    pub(crate) fn of_level(&self, index: &FlatIndex, slots: &Slots, level: Level) -> Vec<Floor> {
        let floor = |(slots, floor): (&u16, &Floor)| if *slots > 0 { *floor } else { Floor::NONE };
        let nodes = slots.nodes().iter().zip(&self.0).map(floor);
        if index.domains(level).len() == self.0.len() {
            return nodes.collect();
        }
        let mut nodes = nodes;
        let sizes = index.domains(level).iter().map(|one| one.nodes.len());
        sizes.map(|size| nodes.by_ref().take(size).fold(Floor::NONE, Floor::least)).collect()
    }
}
