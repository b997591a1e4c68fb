//! The replicas of the control plane on the screen.

use rowen_api::v1::{ClusterStatus, ReplicaStatus};
use serde::Serialize;

use super::table::{columns, number, page, paragraphs, word};

/// `cluster status -o json`.
#[derive(Debug, Serialize)]
pub(crate) struct ClusterView {
    version: String,
    /// Format that every replica can read.
    cluster_version: u32,
    /// Rises with each restore from a backup.
    incarnation: u64,
    term: u64,
    applied_index: u64,
    /// Hex, after the entry at `applied_index`.
    state_hash: String,
    timing: TimingView,
    /// Newest index at which a majority had the same state hash.
    checkpoint_index: Option<u64>,
    replicas: Vec<ReplicaView>,
}

#[derive(Debug, Default, Serialize)]
struct TimingView {
    node_lease_ms: u64,
    heartbeat_ms: u64,
    kill_ms: u64,
    drift_ppm: u64,
    /// Log index that put it in force; 0: it is the leader's configuration.
    since_index: u64,
    /// Leases of an earlier timing may be held: their margin holds too.
    settling: bool,
}

#[derive(Debug, Serialize)]
struct ReplicaView {
    id: u64,
    addr: String,
    /// leader, voter or learner.
    role: &'static str,
    /// Log index known to be on its disk.
    matched_index: Option<u64>,
    /// Entries that it lacks.
    lag: Option<u64>,
    /// Newest cluster version that its build reads; null: it did not answer.
    reads_version: Option<u32>,
}

impl ClusterView {
    pub(crate) fn new(status: &ClusterStatus) -> ClusterView {
        let newest = status.replicas.iter().filter_map(|replica| replica.matched).max();
        ClusterView {
            version: status.version.clone(),
            cluster_version: status.cluster_version,
            incarnation: status.incarnation,
            term: status.term,
            applied_index: status.applied,
            state_hash: status.state_hash.clone(),
            checkpoint_index: status.checkpoint,
            timing: timing(status),
            replicas: status
                .replicas
                .iter()
                .map(|replica| ReplicaView {
                    id: replica.id,
                    addr: replica.addr.clone(),
                    role: role(replica),
                    matched_index: replica.matched,
                    lag: newest.zip(replica.matched).map(|(newest, matched)| newest - matched),
                    reads_version: replica.reads_version,
                })
                .collect(),
        }
    }
}

fn timing(status: &ClusterStatus) -> TimingView {
    let timing = status.timing.unwrap_or_default();
    TimingView {
        node_lease_ms: timing.node_lease_ms,
        heartbeat_ms: timing.heartbeat_ms,
        kill_ms: timing.kill_ms,
        drift_ppm: timing.drift_ppm,
        since_index: status.timing_since,
        settling: status.timing_settling,
    }
}

fn role(replica: &ReplicaStatus) -> &'static str {
    match (replica.leader, replica.voter) {
        (true, _) => "leader",
        (false, true) => "voter",
        (false, false) => "learner",
    }
}

/// `cluster status`.
pub(crate) fn show(view: &ClusterView, colour: bool) -> String {
    let none = || "-".to_owned();
    let row = |replica: &ReplicaView| {
        vec![
            number(replica.id),
            word(&replica.addr),
            word(replica.role),
            number(replica.matched_index.map_or_else(none, |index| index.to_string())),
            number(replica.lag.map_or_else(none, |lag| lag.to_string())),
            number(replica.reads_version.map_or_else(none, |version| version.to_string())),
        ]
    };
    let head = ["ID", "ADDRESS", "ROLE", "MATCHED", "LAG", "READS"];
    let agreed = match view.checkpoint_index {
        Some(index) => format!("a majority agreed at {index}"),
        None => "not compared yet".to_owned(),
    };
    let pairs = [
        ("Term", view.term.to_string()),
        ("Applied", view.applied_index.to_string()),
        ("State hash", view.state_hash.clone()),
        ("Checkpoint", agreed),
        ("Incarnation", view.incarnation.to_string()),
        (
            "Timing",
            format!(
                "node lease {} ms, heartbeat {} ms, kill {} ms, drift {} ppm; {}{}",
                view.timing.node_lease_ms,
                view.timing.heartbeat_ms,
                view.timing.kill_ms,
                view.timing.drift_ppm,
                match view.timing.since_index {
                    0 => "by the leader's configuration".to_owned(),
                    index => format!("since index {index}"),
                },
                if view.timing.settling { ", leases of an earlier one may be held" } else { "" },
            ),
        ),
        ("Version", format!("{}, cluster version {}", view.version, view.cluster_version)),
    ];
    let replicas = columns(&head, view.replicas.iter().map(row).collect(), colour);
    paragraphs([replicas, page("Log", &pairs, colour)])
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_learner_that_lags() {
        let replica = |id: u64, leader, voter, matched, reads_version| ReplicaStatus {
            reads_version,
            id,
            addr: format!("10.0.0.{id}:7077"),
            leader,
            voter,
            matched,
        };
        let status = ClusterStatus {
            version: "0.1.0".into(),
            cluster_version: 1,
            incarnation: 1,
            term: 7,
            applied: 5000,
            state_hash: "0123456789abcdef0123456789abcdef".into(),
            checkpoint: Some(4096),
            timing: Some(rowen_api::v1::Timing {
                node_lease_ms: 10_000,
                heartbeat_ms: 1_000,
                kill_ms: 2_000,
                drift_ppm: 1_000,
            }),
            timing_since: 3,
            replicas: vec![
                replica(1, false, true, Some(4998), Some(2)),
                replica(2, true, true, Some(5000), Some(2)),
                replica(4, false, false, Some(17), Some(1)),
                replica(5, false, false, None, None),
            ],
            ..Default::default()
        };
        expect![[r#"
            ID  ADDRESS        ROLE     MATCHED   LAG  READS
             1  10.0.0.1:7077  voter       4998     2      2
             2  10.0.0.2:7077  leader      5000     0      2
             4  10.0.0.4:7077  learner       17  4983      1
             5  10.0.0.5:7077  learner        -     -      -

            Log
              Term         7
              Applied      5000
              State hash   0123456789abcdef0123456789abcdef
              Checkpoint   a majority agreed at 4096
              Incarnation  1
              Timing       node lease 10000 ms, heartbeat 1000 ms, kill 2000 ms, drift 1000 ppm; since index 3
              Version      0.1.0, cluster version 1"#]]
        .assert_eq(&show(&ClusterView::new(&status), false));
    }
}
