//! What stands in for the machine under simulation: a process that can freeze and die, its clock,
//! and the network between replicas. The disk is [`crate::sim_disk`]. In production nothing here
//! is ever made: [`spawn`] is then `tokio::spawn`, and [`blocking`] is `spawn_blocking`.

mod network;
mod process;
#[cfg(tokio_unstable)]
mod runtime;

use std::sync::Arc;

pub use network::{MemoryNetwork, Wire};
pub use process::{MachineClock, Process, blocking, spawn};
#[cfg(tokio_unstable)]
pub(crate) use runtime::Processes;

use crate::{
    ReplicaConfig, ReplicaId, replica::wal_options, sim_disk::SimDisk, snapshots::Snapshots,
    wal::recover,
};

/// The next number of a simulation, and its state after it (Steele, Lea, Flood 2014).
pub(crate) fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The vote, term and candidate, that a power cut now would certainly leave on the disk of the
/// replica of `config`. None where there is none, or the disk cannot be read.
pub fn durable_vote(disk: &SimDisk, config: &ReplicaConfig) -> Option<(u64, ReplicaId)> {
    let vote = recover::survey(&disk.durable_copy(), &wal_options(config)).ok()?.vote?;
    Some((vote.leader_id.term, ReplicaId(vote.leader_id.voted_for)))
}

/// The last entry that a power cut now would certainly leave on the disk of the replica of
/// `config`, in its log or its snapshot. None where there is none, or the disk cannot be read.
pub fn durable_last(disk: &SimDisk, config: &ReplicaConfig) -> Option<u64> {
    let copy = disk.durable_copy();
    let logged = recover::survey(&copy, &wal_options(config)).ok()?.last;
    let dir = config.dir.join("snapshots");
    let snapshots = Snapshots::open(Arc::new(copy), &dir, config.retain_entries).ok()?;
    let covered = snapshots.newest_meta().and_then(|meta| meta.last_log_id).map(|id| id.index());
    logged.max(covered)
}
