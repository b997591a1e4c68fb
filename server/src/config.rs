//! What `rowen serve --config FILE` reads.

use std::{net::SocketAddr, path::PathBuf};

use serde::Deserialize;

use crate::liveness::Margins;

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Its id in the Raft group. Left out, as it should be: the data folder knows it.
    pub replica: Option<u64>,
    /// Folder of the WAL, the snapshots and the archive.
    pub data: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where the others reach it; `listen`, unless said.
    pub advertise: Option<String>,
    /// An empty folder becomes a new cluster of one replica.
    #[serde(default)]
    pub bootstrap: bool,
    /// Agents that may come a second, as all do after a change of leader. Left out: so many that
    /// those of the whole fabric are back in a quarter of their node lease.
    pub agents_per_s: Option<u64>,
    /// How many periods of the archive are kept, each of 4,000,000 entries of the log. The same on
    /// every replica, or one knows an old job and another does not.
    #[serde(default = "archive_retain")]
    pub archive_retain: u64,
    /// How long things may take.
    #[serde(default)]
    pub timing: Timing,
    /// `serve --accept-torn-tail`: for one start, hence not in the file.
    #[serde(skip)]
    pub accept_torn_tail: bool,
}

fn archive_retain() -> u64 {
    rowen_raft::ARCHIVE_RETAIN
}

/// How long things may take. The same on every replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timing {
    /// How long an agent may run without a leader that a quorum confirmed.
    pub node_lease_ms: u64,
    /// Between two heartbeats of an agent.
    pub heartbeat_ms: u64,
    /// From SIGKILL until processes are gone.
    pub kill_ms: u64,
    /// Bound on the drift between two machines' clocks, in millionths.
    pub drift_ppm: u64,
    /// The state's clock moves at least this often.
    pub tick_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Timing {
            node_lease_ms: 10_000,
            heartbeat_ms: 1_000,
            kill_ms: 2_000,
            drift_ppm: 1_000,
            tick_ms: 1_000,
        }
    }
}

impl Config {
    /// Every limit; one line with the field and the fix.
    pub fn validate(&self) -> Result<(), String> {
        let timing = &self.timing;
        if self.replica == Some(0) {
            return Err("replica: is 0; ids begin at 1".into());
        }
        if self.agents_per_s.is_some_and(|rate| !(1..=1_000_000).contains(&rate)) {
            return Err(
                "agents_per_s: is out of range; choose 1 to 1000000, or leave it out".into()
            );
        }
        if self.archive_retain == 0 {
            return Err("archive_retain: is 0; keep at least 1 period".into());
        }
        if timing.heartbeat_ms == 0 || timing.heartbeat_ms * 3 > timing.node_lease_ms {
            return Err(format!(
                "timing.heartbeat_ms: is {}; choose 1 to a third of node_lease_ms ({})",
                timing.heartbeat_ms, timing.node_lease_ms
            ));
        }
        if timing.tick_ms == 0 || timing.tick_ms > 60_000 {
            return Err(format!("timing.tick_ms: is {}; choose 1 to 60000", timing.tick_ms));
        }
        if timing.node_lease_ms > 3_600_000
            || timing.kill_ms > 600_000
            || timing.drift_ppm > 100_000
        {
            return Err("timing: a value is out of range; node_lease_ms ≤ 3600000, kill_ms ≤ 600000, drift_ppm ≤ 100000".into());
        }
        Ok(())
    }

    /// Where the others reach this replica.
    pub fn address(&self) -> String {
        self.advertise.clone().unwrap_or_else(|| self.listen.to_string())
    }
}

impl Timing {
    pub(crate) fn margins(&self) -> Margins {
        Margins {
            node_lease_ms: self.node_lease_ms,
            kill_ms: self.kill_ms,
            drift_ppm: self.drift_ppm,
        }
    }
}
