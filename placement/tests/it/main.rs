//! Plans over worlds that real commands built.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod backfill;
mod explains;
mod links;
mod plans;
mod properties;
mod queues;
mod shapes;
mod steady;
mod validator;
mod what_ifs;
mod world;
