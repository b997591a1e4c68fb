//! Ids and the GPU mask. Ids come from counters in the state, never from a
//! clock or a random source.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A job. Shown as a plain number: Lightning derives its port from the last digits.
    JobId(u64)
}
id! {
    /// A filler deployment.
    FillerId(u64)
}
id! {
    /// GPUs given to one owner.
    AllocationId(u64)
}
id! {
    /// A machine with GPUs. Never reused, not even for a machine of the same name.
    NodeId(u32)
}

id! {
    /// A member of the Raft group. Never reused: a reused id can split the group.
    ReplicaId(u64)
}

id! {
    /// A queue.
    QueueId(u64)
}

/// What fences an allocation: the incarnation of the cluster (it rises at every
/// restore from backup) and the log index that bound the allocation.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Epoch {
    /// Rises at every restore from backup.
    pub incarnation: u64,
    /// Log index of the entry that bound the allocation.
    pub index: u64,
}

/// GPUs of one node by ordinal, 0 to 63.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GpuMask(pub u64);

impl GpuMask {
    /// No GPU.
    pub const NONE: GpuMask = GpuMask(0);

    /// GPUs 0 to `count` - 1; `count` is at most 64.
    pub fn first(count: u32) -> GpuMask {
        GpuMask(if count >= 64 { u64::MAX } else { (1 << count) - 1 })
    }

    /// The mask of one GPU.
    pub fn one(ordinal: u32) -> GpuMask {
        GpuMask(1 << ordinal)
    }

    /// How many GPUs.
    pub fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether `ordinal` is among them.
    pub fn contains(self, ordinal: u32) -> bool {
        ordinal < 64 && self.0 & (1 << ordinal) != 0
    }

    /// Those in both.
    pub fn and(self, other: GpuMask) -> GpuMask {
        GpuMask(self.0 & other.0)
    }

    /// Those in either.
    pub fn or(self, other: GpuMask) -> GpuMask {
        GpuMask(self.0 | other.0)
    }

    /// Those in this one only.
    pub fn without(self, other: GpuMask) -> GpuMask {
        GpuMask(self.0 & !other.0)
    }

    /// The lowest `count` of them, or `None` when there are fewer.
    pub fn lowest(self, count: u32) -> Option<GpuMask> {
        let mut rest = self.0;
        for _ in 0..count {
            if rest == 0 {
                return None;
            }
            rest &= rest - 1;
        }
        Some(GpuMask(self.0 & !rest))
    }

    /// Ordinals, rising.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let ordinal = rest.trailing_zeros();
            rest &= rest - 1;
            Some(ordinal)
        })
    }
}

impl FromIterator<u32> for GpuMask {
    fn from_iter<T: IntoIterator<Item = u32>>(ordinals: T) -> Self {
        ordinals.into_iter().fold(GpuMask::NONE, |mask, ordinal| mask.or(GpuMask::one(ordinal)))
    }
}

impl fmt::Debug for GpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
