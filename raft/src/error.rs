//! What can go wrong, as the caller of this crate sees it.

use crate::{ArchiveError, Member, SnapshotError, WalError};

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A setting cannot work.
    #[error("{field}: {fix}")]
    Config {
        /// Which.
        field: &'static str,
        /// What to set.
        fix: String,
    },
    /// Another process has the folder.
    #[error("{dir} is in use by another process: stop it, or choose another folder")]
    Locked {
        /// Which folder.
        dir: String,
    },
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] WalError),
    /// The newest snapshot cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The archive cannot be used.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// openraft refused what it found.
    #[error("raft: {0}")]
    Raft(String),
}

/// Why something asked of the group was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RaftError {
    /// The group has members and a log already.
    #[error("the group is already initialised")]
    AlreadyInitialized,
    /// The list of members cannot be used.
    #[error("members: {0}")]
    Members(String),
    /// Another replica leads.
    #[error("not the leader{}", leader_hint(.leader.as_ref()))]
    NotLeader {
        /// Who does, where that is known.
        leader: Option<Member>,
    },
    /// This replica stopped.
    #[error("the replica stopped: {0}")]
    Stopped(String),
}

/// Why an entry was not committed, or a read cannot be answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another replica leads; nothing was written.
    #[error("not the leader{}", leader_hint(.leader.as_ref()))]
    NotLeader {
        /// Who does, where that is known.
        leader: Option<Member>,
    },
    /// The entry is larger than allowed; nothing was written.
    #[error("the entry has {bytes} bytes, at most {max} are allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Too much waits for the log already; nothing was written. Try again later.
    #[error("too many proposals are waiting ({pending_bytes} bytes): try again later")]
    Busy {
        /// How much waits.
        pending_bytes: usize,
    },
    /// Leadership was lost meanwhile: the entry may or may not be committed. Ask again under the
    /// same client sequence number.
    #[error("leadership changed, the outcome is unknown: ask again{}", leader_hint(.leader.as_ref()))]
    Unknown {
        /// Who leads now, where that is known.
        leader: Option<Member>,
    },
    /// No majority answered in time, so a read cannot be vouched for.
    #[error("no majority of the replicas answers")]
    NoQuorum,
    /// This replica has not applied as much as a read wants to see.
    #[error("this replica has applied the log up to {applied}, not to {index}")]
    Behind {
        /// How far it is.
        applied: u64,
        /// How far it should be.
        index: u64,
    },
    /// This replica stopped.
    #[error("the replica stopped: {0}")]
    Stopped(String),
}

fn leader_hint(leader: Option<&Member>) -> String {
    leader.map(|member| format!("; it is {} at {}", member.id, member.addr)).unwrap_or_default()
}
