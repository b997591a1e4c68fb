//! The wire between replicas: gRPC with entries and snapshots as opaque bytes. `client` asks,
//! `server` answers, `pipeline` keeps
//! several requests on the way, `convert` maps messages to openraft's types. Decides nothing: it carries
//! what openraft says. A message names the replica it is meant for, so that an address that
//! changed hands is noticed.

mod client;
mod convert;
mod memory;
mod pipeline;
mod server;

pub use client::{Dial, Network, dial_tcp};
pub(crate) use client::{Peers, ask_read_index, fetch_archive};
pub use server::{RaftService, TransportService};

#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    reason = "generated from proto/raft.proto, which has the comments"
)]
mod proto {
    tonic::include_proto!("rowen.raft.v1");
}

/// Snapshots and archives travel in pieces of this size.
const CHUNK_BYTES: usize = 1 << 20;
/// No message is larger: one request's entries (2 MiB, or a single entry of at most
/// [`crate::config::MAX_ENTRY_BYTES`]) and their frames.
const MESSAGE_BYTES: usize = crate::config::MAX_ENTRY_BYTES + (4 << 20);
/// What a replica accepts as one snapshot.
const SNAPSHOT_BYTES: u64 = 4 << 30;
