//! The times that fencing is computed from. They are in the state, so that no two replicas that
//! were configured differently can give a GPU back at different times.

use serde::{Deserialize, Serialize};

use crate::FieldError;

/// The longest node lease that any cluster grants.
pub const MAX_NODE_LEASE_MS: u64 = 3_600_000;
const KILL_MS: std::ops::RangeInclusive<u64> = 500..=600_000;
const MAX_DRIFT_PPM: u64 = 100_000;
/// An agent must be able to miss two heartbeats and keep its lease.
const HEARTBEATS_A_LEASE: u64 = 3;

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How long an agent may run without a leader that a quorum confirmed.
    pub node_lease_ms: u64,
    /// Between two heartbeats of an agent.
    pub heartbeat_ms: u64,
    /// From SIGKILL until processes are gone.
    pub kill_ms: u64,
    /// Bound on the drift between two machines' clocks, in millionths.
    pub drift_ppm: u64,
}

/// The timing that every replica goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// What is granted now.
    pub timing: Timing,
    /// Log index that put it in force.
    pub since: u64,
    /// The widest of those before: a leader that does not know when the last lease of them was
    /// granted must still wait for it. `None`: all of them have run out.
    pub earlier: Option<Timing>,
}

impl Timing {
    /// Every limit.
    pub fn validate(&self) -> Result<(), FieldError> {
        let error = |field: &str, value: u64, fix: String| {
            Err(FieldError::new(&format!("timing.{field}"), format!("is {value}"), fix))
        };
        if self.node_lease_ms > MAX_NODE_LEASE_MS {
            let fix = format!("choose at most {MAX_NODE_LEASE_MS}");
            return error("node_lease_ms", self.node_lease_ms, fix);
        }
        let most_ms = self.node_lease_ms / HEARTBEATS_A_LEASE;
        if !(1..=most_ms).contains(&self.heartbeat_ms) {
            let lease_ms = self.node_lease_ms;
            let fix = format!("choose 1 to a third of node_lease_ms ({lease_ms})");
            return error("heartbeat_ms", self.heartbeat_ms, fix);
        }
        if !KILL_MS.contains(&self.kill_ms) {
            let fix = format!("choose {} to {}", KILL_MS.start(), KILL_MS.end());
            return error("kill_ms", self.kill_ms, fix);
        }
        if self.drift_ppm > MAX_DRIFT_PPM {
            return error("drift_ppm", self.drift_ppm, format!("choose at most {MAX_DRIFT_PPM}"));
        }
        Ok(())
    }

    /// The longer of each: what covers leases granted under either.
    #[must_use]
    pub fn widest(self, other: Timing) -> Timing {
        Timing {
            node_lease_ms: self.node_lease_ms.max(other.node_lease_ms),
            heartbeat_ms: self.heartbeat_ms.max(other.heartbeat_ms),
            kill_ms: self.kill_ms.max(other.kill_ms),
            drift_ppm: self.drift_ppm.max(other.drift_ppm),
        }
    }

    /// Each field's name and value.
    pub fn fields(&self) -> [(&'static str, u64); 4] {
        [
            ("node_lease_ms", self.node_lease_ms),
            ("heartbeat_ms", self.heartbeat_ms),
            ("kill_ms", self.kill_ms),
            ("drift_ppm", self.drift_ppm),
        ]
    }
}
