//! How one replica is set up, and whether that can work. No defaults are hidden elsewhere.

use std::path::PathBuf;

use crate::{OpenError, ReplicaId, archive::Retention};

/// No entry is larger, whatever the configuration says.
pub const MAX_ENTRY_BYTES: usize = 16 << 20;

/// Entries of the log that share a period of the archive, unless said otherwise: 46 days of an idle
/// cluster's clock.
pub const ARCHIVE_PERIOD_ENTRIES: u64 = 4_000_000;
/// Periods of the archive that are kept, unless said otherwise.
pub const ARCHIVE_RETAIN: u64 = 12;

/// How one replica is set up. Start from [`ReplicaConfig::new`].
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Who this is. Never given to another replica later, not even after this one is gone.
    pub id: ReplicaId,
    /// Where everything is kept: `log/`, `snapshots/`, `archive/` and a lock file.
    pub dir: PathBuf,
    /// How often a leader says that it is alive.
    pub heartbeat_ms: u64,
    /// The least time without a leader before a replica wants to be one.
    pub election_min_ms: u64,
    /// The most.
    pub election_max_ms: u64,
    /// How long a snapshot may take to reach a peer and be installed there.
    pub snapshot_timeout_ms: u64,
    /// A snapshot is built after this many entries.
    pub snapshot_every: u64,
    /// How many entries are kept behind a snapshot, for peers that lag a little.
    pub keep_log: u64,
    /// How many entries behind the newest snapshot an offline replay reaches back: segments that
    /// the log no longer needs, and a snapshot before them, are kept that long. 0 keeps none.
    pub retain_entries: u64,
    /// How much of the disk those segments may take; the oldest go first.
    pub retain_bytes: u64,
    /// How many entries of the log share a period of the archive: a folder of its own.
    pub archive_period_entries: u64,
    /// How many periods of the archive are kept, the one being written included.
    pub archive_retain: u64,
    /// When a log segment is full.
    pub segment_bytes: u64,
    /// How much of the newest log is kept in memory.
    pub cache_bytes: usize,
    /// The largest entry that may be proposed.
    pub max_entry_bytes: usize,
    /// How much may be proposed and not yet answered; beyond, [`crate::ProposeError::Busy`].
    pub max_pending_bytes: usize,
    /// The operator's word, for one start, that the damaged end of the log after a power cut is a
    /// write that nobody was told of. Without it such a log is refused.
    pub accept_torn_tail: bool,
}

impl ReplicaConfig {
    /// What suits a replica on a local disk and network.
    pub fn new(id: ReplicaId, dir: impl Into<PathBuf>) -> ReplicaConfig {
        ReplicaConfig {
            id,
            dir: dir.into(),
            heartbeat_ms: 50,
            election_min_ms: 200,
            election_max_ms: 400,
            snapshot_timeout_ms: 120_000,
            snapshot_every: 20_000,
            keep_log: 5_000,
            retain_entries: 200_000,
            retain_bytes: 1 << 30,
            archive_period_entries: ARCHIVE_PERIOD_ENTRIES,
            archive_retain: ARCHIVE_RETAIN,
            segment_bytes: 16 << 20,
            cache_bytes: 32 << 20,
            max_entry_bytes: 4 << 20,
            max_pending_bytes: 64 << 20,
            accept_torn_tail: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let refuse = |field, fix: String| Err(OpenError::Config { field, fix });
        if self.max_entry_bytes == 0 || self.max_entry_bytes > MAX_ENTRY_BYTES {
            return refuse("max_entry_bytes", format!("set 1 to {MAX_ENTRY_BYTES}"));
        }
        if self.max_pending_bytes < self.max_entry_bytes + 1024
            || u32::try_from(self.max_pending_bytes).is_err()
        {
            let least = self.max_entry_bytes + 1024;
            return refuse("max_pending_bytes", format!("set {least} to {}", u32::MAX));
        }
        if self.segment_bytes < 4096 {
            return refuse("segment_bytes", "set at least 4096".into());
        }
        let zero = |field| refuse(field, "set at least 1".into());
        if self.archive_period_entries == 0 {
            return zero("archive_period_entries");
        }
        if self.archive_retain == 0 {
            return zero("archive_retain");
        }
        if self.snapshot_every == 0 {
            return refuse("snapshot_every", "set at least 1".into());
        }
        Ok(())
    }

    pub(crate) fn retention(&self) -> Retention {
        Retention { period_entries: self.archive_period_entries, periods: self.archive_retain }
    }

    pub(crate) fn raft(&self) -> Result<openraft::Config, OpenError> {
        openraft::Config {
            cluster_name: "rowen".into(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: self.snapshot_timeout_ms,
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.keep_log,
            enable_pre_vote: Some(true),
            // A peer that dropped a torn tail comes back with less log than it had; `recovering`
            // is why that is safe. Without this a leader would never send it anything again.
            allow_log_reversion: Some(true),
            // A leader that comes back leads in a new term or not at all: an entry of its own term
            // that it has applied must prove that it has applied all before it (`ready`).
            enable_leader_restore: Some(false),
            ..openraft::Config::default()
        }
        .validate()
        .map_err(|error| OpenError::Config {
            field: "heartbeat_ms, election_min_ms, election_max_ms",
            fix: error.to_string(),
        })
    }
}
