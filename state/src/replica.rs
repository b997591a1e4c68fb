//! A member of the Raft group, as the state wants it. The leader makes the group follow.

use serde::{Deserialize, Serialize};

use crate::ReplicaId;

/// A replica that was admitted and not removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// Its id, never reused.
    pub id: ReplicaId,
    /// Where the others reach it, host:port.
    pub addr: String,
    /// When it was admitted.
    pub admitted_ms: u64,
}
