//! A filler deployment as the state keeps it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{AllocationId, FillerId, FillerSpec};

/// What is wanted of a filler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FillerState {
    /// Instances start on what is idle.
    Active,
    /// Instances end, none starts.
    Draining,
    /// Likewise, and it is forgotten with its last instance.
    Removing,
}

/// A filler deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filler {
    /// Its id.
    pub id: FillerId,
    /// What was asked for.
    pub spec: Arc<FillerSpec>,
    /// What is wanted of it.
    pub state: FillerState,
    /// Live instances, oldest first.
    pub instances: Vec<AllocationId>,
    /// Number of the newest instance.
    pub last_number: u64,
    /// GPU-milliseconds of instances that are over.
    pub gpu_ms: u64,
    /// Instances taken back for a gang.
    pub evictions: u64,
    /// Instances in a row that ended by themselves with a failure.
    pub failures: u32,
    /// No instance starts before; rises with `failures`.
    pub backoff_until_ms: u64,
    /// Why there are fewer instances than asked.
    pub reason: String,
}

impl Filler {
    pub(crate) fn new(id: FillerId, spec: FillerSpec) -> Self {
        Filler {
            id,
            spec: Arc::new(spec),
            state: FillerState::Active,
            instances: Vec::new(),
            last_number: 0,
            gpu_ms: 0,
            evictions: 0,
            failures: 0,
            backoff_until_ms: 0,
            reason: String::new(),
        }
    }
}
