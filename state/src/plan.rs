//! What a planning pass proposes. A proposal only: apply checks each decision
//! again against the state as it is then.

use serde::{Deserialize, Serialize};

use crate::{AllocationId, FillerId, GpuMask, JobId, NodeId};

/// GPUs of one node, for one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Where.
    pub node: NodeId,
    /// Which.
    pub gpus: GpuMask,
}

/// One decision of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decision {
    /// Start a gang on free GPUs.
    Start {
        /// Which.
        job: JobId,
        /// By rank.
        places: Vec<Place>,
        /// Why there.
        why: String,
    },
    /// Clear GPUs for a gang and start it when the last is clear.
    Hold {
        /// Which.
        job: JobId,
        /// By rank.
        places: Vec<Place>,
        /// Filler instances to evict; each is on a node of `places`, where it has the GPUs,
        /// or the cores and memory, that the gang needs.
        victims: Vec<AllocationId>,
        /// Why there, and why these.
        why: String,
    },
    /// Start one instance of a filler on free GPUs.
    StartInstance {
        /// Of which.
        filler: FillerId,
        /// Where.
        place: Place,
    },
    /// A gang waits on, for another reason than the state has.
    Wait {
        /// Which.
        job: JobId,
        /// Why, one sentence.
        reason: String,
    },
    /// A filler has fewer instances than asked, for another reason than the state has.
    Unfilled {
        /// Which.
        filler: FillerId,
        /// Why, one sentence; empty when it has all it may.
        reason: String,
    },
    /// A running gang with fewer workers than it asked for gives way to a larger attempt of its
    /// own: GPUs are held for that, the present one gets its notice. From version 2 on.
    Grow {
        /// Which.
        job: JobId,
        /// Of the next attempt, by rank; GPUs of the present one may be among them.
        places: Vec<Place>,
        /// Filler instances to evict, as for a hold.
        victims: Vec<AllocationId>,
        /// Why now, and why there.
        why: String,
    },
}

impl Decision {
    /// The first cluster version that knows it.
    pub(crate) fn since(&self) -> u32 {
        match self {
            Decision::Grow { .. } => 2,
            _ => 1,
        }
    }
}

/// Everything one planning cycle proposes, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The applied index of the view it was made on.
    pub based_on: u64,
    /// Carried out one by one; each stands or falls alone.
    pub decisions: Vec<Decision>,
}
