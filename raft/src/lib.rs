//! A durable Raft group over opaque bytes: log, vote and snapshots on disk, transport, membership.
//! Knows nothing of what the bytes mean; whoever does implements [`StateMachine`].
//!
//! [`Replica`] is the way in. An entry that [`Replica::propose`] answered is synced on a majority
//! of the replicas and applied here. The log and the vote go to a write-ahead log of our own
//! (`wal`), the records that apply gives away to the [`Archive`]. openraft stays inside.
//! [`read_offline`] reads the folder of a stopped replica, [`seed`] makes one from a backup.

mod archive;
mod codec;
mod config;
pub mod disk;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod log_store;
mod machine;
mod membership;
mod observer;
mod offline;
mod proposals;
mod recovering;
mod replica;
mod seed;
pub mod sim;
pub mod sim_disk;
mod snapshots;
mod transport;
mod types;
mod wal;

pub use archive::{Archive, ArchiveError, ArchiveRecord};
pub use codec::CodecError;
pub use config::{ARCHIVE_PERIOD_ENTRIES, ARCHIVE_RETAIN, MAX_ENTRY_BYTES, ReplicaConfig};
pub use error::{OpenError, ProposeError, RaftError};
pub use machine::{Applied, StateMachine};
pub use membership::MemberStatus;
pub use offline::{OfflineEntries, OfflineLog, OfflineReplay, read_offline};
pub use replica::{Committed, Leadership, Member, Replica, ReplicaId, ReplicaMetrics};
pub use seed::{seed, seed_on};
pub use snapshots::SnapshotError;
pub use transport::{Dial, Network, RaftService, TransportService, dial_tcp};
pub use wal::WalError;
