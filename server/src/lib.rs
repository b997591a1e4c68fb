//! The control plane: a pure [`Core`] that joins state and placement, and the shell
//! around it: consensus, clock, event loop, agents' sessions, gRPC services.
//!
//! Holds no business rule of its own: what is true lies in `state`, what should
//! happen next comes from `placement`, what survives is `raft`'s.

mod admission;
mod agents;
mod auth;
pub mod backup;
mod checkpoints;
mod clock;
mod config;
pub mod convert;
mod core;
mod leader;
mod liveness;
mod machine;
mod members;
mod peers;
mod read;
mod replay;
mod reports;
mod serve;
mod server;
mod services;
mod setup;
mod shell;
mod timing;
mod told;
mod versions;
mod what_if;

pub use auth::{Principal, Role, rule};
pub use config::{Config, Timing};
pub use core::{Answer, Core, Step, desired_tasks};
pub use liveness::{Margins, Watch};
pub use peers::PeerCalls;
pub use replay::{Replay, replay};
pub use serve::serve;
pub use setup::{init, join, restore};
pub use shell::{Shell, SimulatedFeed, SimulatedMachine};
pub use what_if::what_if;
