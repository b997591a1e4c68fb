//! GPU time: a meter on each GPU, and usage by tenant, class and model.
//!
//! Both are derived in apply from the same events, so for every GPU
//! allocated + idle + down = elapsed, and no millisecond is billed twice.

use rowen_planted::{Bug, planted};
use serde::{Deserialize, Serialize};

/// What a GPU's time goes to.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Class {
    /// Nobody has it, or it is being cleared for a gang that cannot use it yet.
    #[default]
    Idle,
    /// A gang has it.
    Gang,
    /// A filler instance has it.
    Filler,
    /// Nobody has it and nobody could: its node is not up, or it is unhealthy.
    Down,
}

impl Class {
    /// In the order of [`Meter::ms`].
    pub const ALL: [Class; 4] = [Class::Idle, Class::Gang, Class::Filler, Class::Down];

    /// The word shown to people.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Idle => "idle",
            Class::Gang => "gang",
            Class::Filler => "filler",
            Class::Down => "down",
        }
    }
}

/// A GPU's time since it was added, by class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meter {
    /// When the GPU was added to the fabric.
    pub added_ms: u64,
    /// What its time goes to now.
    pub class: Class,
    /// Since when.
    pub since_ms: u64,
    /// Milliseconds before `since_ms`, in the order of [`Class::ALL`].
    pub ms: [u64; 4],
}

impl Meter {
    /// A meter that starts now.
    pub(crate) fn new(now_ms: u64, class: Class) -> Self {
        Meter { added_ms: now_ms, class, since_ms: now_ms, ms: [0; 4] }
    }

    /// Books the time until now and goes on in `class`.
    pub(crate) fn switch(&mut self, now_ms: u64, class: Class) {
        if self.class != class {
            if !planted(Bug::MeterGap) {
                self.ms[self.class as usize] += now_ms - self.since_ms;
            }
            self.since_ms = now_ms;
            self.class = class;
        }
    }

    /// Milliseconds of each class until now, in the order of [`Class::ALL`].
    pub fn totals(&self, now_ms: u64) -> [u64; 4] {
        let mut totals = self.ms;
        totals[self.class as usize] += now_ms - self.since_ms;
        totals
    }
}

/// Whose usage, of what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UsageKey {
    /// Who pays.
    pub tenant: String,
    /// [`Class::Gang`] or [`Class::Filler`].
    pub class: Class,
    /// GPU model.
    pub gpu_model: String,
}
