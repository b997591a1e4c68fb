//! Three replicas and their agents, set up by hand as an operator would, and then mistreated.

mod backup;
mod cut;
mod failover;
mod freeze;
mod group;
mod members;
mod proxy;
