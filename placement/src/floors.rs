//! What evictions cost at least, on each node and in each domain: so that a search for the cheapest
//! victims looks at the owners of few nodes only. Bounds from dense rows; never the cost itself.

use rowen_state::Evictable;
use rowen_topology::{DomainId, FlatIndex, Level, NodePos};

use crate::node::{EVICTION_MICROS, HOUR_MS};

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

/// See the module.
#[derive(Debug)]
pub(crate) struct Floors {
    /// By position.
    at: Vec<Floor>,
    /// By ordinal, for sites, pods, blocks and NVLink domains.
    least: [Vec<Floor>; 4],
}

impl Floors {
    /// Evictions of a draft only ever raise what is left to evict, so bounds hold for a cycle.
    pub(crate) fn new<'r>(
        index: &FlatIndex,
        evictables: impl Iterator<Item = &'r Evictable>,
        now_ms: u64,
    ) -> Floors {
        let at: Vec<Floor> = evictables.map(|one| Floor::of(one, now_ms)).collect();
        let least_of = |floors: &[Floor]| floors.iter().copied().fold(Floor::NONE, Floor::least);
        let mut least: [Vec<Floor>; 4] = Default::default();
        let nvlink = index.domains(Level::Nvlink).iter();
        let nodes = |range: &std::ops::Range<u32>| range.start as usize..range.end as usize;
        least[3] = nvlink.map(|one| least_of(&at[nodes(&one.nodes)])).collect();
        for (depth, level) in [(2, Level::Block), (1, Level::Pod), (0, Level::Site)] {
            let parts = &least[depth + 1];
            let of = index.domains(level).iter().map(|one| least_of(&parts[nodes(&one.children)]));
            least[depth] = of.collect();
        }
        Floors { at, least }
    }

    pub(crate) fn at(&self, pos: NodePos) -> Floor {
        self.at[pos.0 as usize]
    }

    pub(crate) fn within(&self, domain: DomainId) -> Floor {
        match self.least.get(domain.level as usize) {
            Some(least) => least[domain.ordinal as usize],
            None => self.at[domain.ordinal as usize],
        }
    }
}
