//! Whole replicas: alone on a real disk, alone on a simulated one, three over loopback TCP.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;
mod group;
mod lone;
mod membership;
mod offline;
mod power_cut;
mod recovering;
mod seed;
mod sim_disk;
