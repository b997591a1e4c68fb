//! What stands in for the machine under simulation: a process that can freeze and die, its clock,
//! and the network between replicas. The disk is [`crate::sim_disk`]. In production nothing here
//! is ever made: [`spawn`] is then `tokio::spawn`, and [`blocking`] is `spawn_blocking`.

mod network;
mod process;
#[cfg(tokio_unstable)]
mod runtime;

pub use network::{MemoryNetwork, Wire};
pub use process::{MachineClock, Process, blocking, spawn};
#[cfg(tokio_unstable)]
pub(crate) use runtime::Processes;
