//! The types that openraft is told to work with, and their short names. Outside this crate only
//! [`crate::ReplicaId`] and [`crate::Member`] are seen.

use std::{fmt, sync::Arc};

use openraft::{BasicNode, impls::leader_id_std};
use serde::{Deserialize, Serialize};

/// The bytes of one entry, shared between the log's cache, replication and apply.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryBytes(pub(crate) Arc<[u8]>);

impl fmt::Debug for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for EntryBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What the state machine answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reply(pub(crate) Vec<u8>);

#[cfg(not(tokio_unstable))]
pub(crate) type Runtime = openraft_rt_tokio::TokioRuntime;
/// Only the chaos build sets `tokio_unstable`; there every random choice comes from the seed.
#[cfg(tokio_unstable)]
pub(crate) type Runtime = openraft_rt::deterministic_rng::DeterministicRng<crate::sim::Processes>;

openraft::declare_raft_types!(
    /// At most one leader a term (`leader_id_std`): agents fence on the term alone, so two leaders
    /// in one term, which openraft's default allows, would pass the fence.
    pub(crate) TypeConfig:
        D = EntryBytes,
        R = Reply,
        NodeId = u64,
        Node = BasicNode,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

pub(crate) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = openraft::alias::VoteOf<TypeConfig>;
pub(crate) type Entry = openraft::alias::EntryOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, BasicNode>;
pub(crate) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
pub(crate) type Snapshot = openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>;
pub(crate) type SnapshotBytes = Arc<Vec<u8>>;

/// The id of an entry of `term` at `index`.
pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new_term_index(term, index)
}
