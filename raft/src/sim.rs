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
    ReplicaConfig, replica::wal_options, sim_disk::SimDisk, snapshots::Snapshots, wal::recover,
};

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
