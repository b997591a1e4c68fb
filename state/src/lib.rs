//! The replicated state machine: what is true, and the only code that changes it.
//!
//! Owns commands, [`Cluster::apply`], the ledger, [`Cluster::verify`] and the
//! snapshot. It never reads a clock, draws a random number, uses a float or
//! iterates in hash order: the same log gives the same state hash on every
//! replica, forever.

mod allocation;
mod apply;
mod cluster;
pub mod codec;
mod command;
mod filler;
#[doc(hidden)]
pub mod fuzz;
mod health;
mod id;
mod job;
mod ledger;
mod node;
mod plan;
mod queue;
mod reincarnate;
mod replica;
mod requests;
mod rooms;
mod shape;
mod snapshot;
mod spec;
mod stored;
mod table;
mod timing;
mod v1;
mod verify;

pub use allocation::{Allocation, Owner, Stop, StopReason, Task, TaskPhase};
pub use cluster::{Cluster, Meta, record_digest};
pub use command::{
    Code, Command, Effect, Entry, NodeReport, Outcome, Record, Refusal, Reply, RequestId,
    TaskReport,
};
pub use filler::{Filler, FillerState};
pub use health::{Health, Part, PartReport, Seer, WHOLE_MILLI};
pub use id::{AllocationId, Epoch, FillerId, GpuMask, JobId, NodeId, QueueId, ReplicaId};
pub use job::{Hold, Job, JobEvent, JobState};
pub use ledger::{Class, Meter, UsageKey};
pub use node::{Duty, GpuSlot, Liveness, Node};
pub use plan::{Decision, Place, Plan};
pub use queue::{HALF_LIFE_MS, ModelGpus, Queue, QueueSpec, Quota};
pub use replica::Replica;
pub use rooms::{Count, End, Evictable, Host, Room, Rooms};
pub use shape::{Group, LabelRule, LabelTest, NodeFilter, Shape, Spread};
pub use snapshot::SnapshotError;
pub use spec::{FieldError, FillerSpec, JobSpec, Probe, Resources};
pub use table::Table;
pub use timing::{InForce, MAX_NODE_LEASE_MS, Timing};
pub use verify::Violation;
