//! The node agent: finds GPUs, launches tasks, fences them and reports.
//!
//! Owns everything that happens on one node. It never decides what runs: the
//! leader sends the whole desired state, [`core`] compares it with what is
//! there, and the rest of this crate is the shell that performs the actions.

pub mod core;

pub mod clock;
pub mod discover;
pub mod env;
mod fence;
mod hostlist;
mod identity;
mod lease;
mod logs;
mod ports;
mod probe;
mod process;
mod shell;
pub mod shim;
pub mod spec;
pub mod stream;
mod tasks;
pub mod wire;

use std::path::PathBuf;

pub use process::power_off;
pub use shell::run;

/// What an agent is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its name in the fabric.
    pub node: String,
    /// Replicas to try, `host:port`, in turn.
    pub servers: Vec<String>,
    /// Folder of this agent alone: fence, node lease, one folder a task.
    pub dir: PathBuf,
    /// Where other nodes reach the tasks of this one.
    pub addr: String,
    /// Pretend to have GPUs instead of looking for them.
    pub simulate: Option<Simulate>,
    /// Executable run as `<shim> shim <task dir>` and `<shim> probe-gpus`.
    pub shim: PathBuf,
    /// Put tasks into cgroups (v2) where the agent may write.
    pub cgroup: bool,
}

/// GPUs to pretend to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Simulate {
    /// How many.
    pub gpus: u16,
    /// Their model.
    pub model: String,
    /// Memory of each.
    pub memory_mib: u64,
}
