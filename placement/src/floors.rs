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

    /// Of an instance that has the best of all that are on the node: the least value, the shortest
    /// warm-up and notice, the latest start, the most GPUs.
    fn of(evictable: &Evictable, now_ms: u64) -> Floor {
        if evictable.largest == 0 {
            return Floor::NONE;
        }
        let own = EVICTION_MICROS as u64 / u64::from(evictable.largest);
        let loss_a_gpu = earned_a_gpu(evictable, now_ms).saturating_add(own);
        Floor { loss_a_gpu, notice_ms: evictable.notice_ms }
    }

    fn least(self, other: Floor) -> Floor {
        Floor {
            loss_a_gpu: self.loss_a_gpu.min(other.loss_a_gpu),
            notice_ms: self.notice_ms.min(other.notice_ms),
        }
    }
}

/// What evicting the only filler of a node loses: for one, the bounds are what it is.
pub(crate) fn loss_of_only(evictable: &Evictable, now_ms: u64) -> u128 {
    let gpus = u128::from(evictable.largest);
    EVICTION_MICROS + gpus * u128::from(earned_a_gpu(evictable, now_ms))
}

/// The loss of [`crate::node`] but for that of the eviction itself.
fn earned_a_gpu(evictable: &Evictable, now_ms: u64) -> u64 {
    let age_ms = now_ms.saturating_sub(evictable.bound_ms);
    let lost_ms = evictable.warm_up_ms.min(age_ms) + evictable.notice_ms;
    match evictable.value_micros.checked_mul(lost_ms) {
        Some(product) => product / HOUR_MS as u64, // a division by a constant
        None => {
            let product = u128::from(evictable.value_micros) * u128::from(lost_ms);
            u64::try_from(product / HOUR_MS).unwrap_or(u64::MAX)
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
    pub(crate) fn of_level(
        &self,
        index: &FlatIndex,
        slots: &Slots,
        level: Level,
    ) -> impl Iterator<Item = Floor> {
        let floor = |(slots, floor): (&u16, &Floor)| if *slots > 0 { *floor } else { Floor::NONE };
        let mut nodes = slots.nodes().iter().zip(&self.0).map(floor);
        let sizes = index.domains(level).iter().map(|one| one.nodes.len());
        sizes.map(move |size| nodes.by_ref().take(size).fold(Floor::NONE, Floor::least))
    }

    /// The bound of each node, by position.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = Floor> {
        self.0.iter().copied()
    }
}
