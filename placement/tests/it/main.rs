//! Plans over worlds that real commands built.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backfill;
mod explains;
mod plans;
mod properties;
mod queues;
mod steady;
mod validator;
mod world;
