//! The discrete-event world: the production core, simulated agents, virtual time.
//!
//! Owns the clock, the simulated agents, the readers of traces and what a run
//! reports. It never schedules: every decision comes from `rowen_server::Core`,
//! and time only ever moves to the next event. Same input, same report, byte
//! for byte.

mod events;
mod jobs;
mod report;
mod trace;
mod world;

pub use events::Events;
pub use jobs::{Options, OptionsError, filler, run_jobs, uniform_fabric};
pub use report::{Figure, Report, percentile};
pub use trace::{TraceError, TraceJob, read_jobs};
pub use world::{Pace, START_MS, World};
