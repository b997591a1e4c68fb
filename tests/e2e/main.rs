//! End to end: the real binary, real processes, a real disk.
//!
//! Every test runs `rowen` as a person would and looks at what it prints, at its exit code and at
//! /proc. Never links anything of Rowen's. One test at a time: each fills the machine.

#![expect(clippy::unwrap_used, reason = "tests, and what only they use")]

mod agent_restart;
mod bench_jobs;
mod cluster;
mod demo;
mod health;
mod jobs;
mod resume;
mod rig;
