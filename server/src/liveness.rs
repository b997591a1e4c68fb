//! Which nodes are heard. The leader's memory: only transitions reach the log.
//!
//! Pure: time is an argument, in milliseconds of a clock that counts through suspends.

use std::collections::BTreeMap;

use rowen_state::{Cluster, Command, Liveness, NodeId};

/// What the silence of a node is measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Margins {
    /// How long an agent may run without a confirmed leader.
    pub node_lease_ms: u64,
    /// From SIGKILL until processes are gone.
    pub kill_ms: u64,
    /// Bound on the drift between two machines' clocks, in millionths.
    pub drift_ppm: u64,
}

impl Margins {
    /// (node lease + notice + kill time) × (1 + drift), rounded up: DESIGN.md, rule 3.
    pub fn until_lost_ms(&self, notice_ms: u64) -> u64 {
        let nominal_ms = self.node_lease_ms + notice_ms + self.kill_ms;
        nominal_ms + (nominal_ms * self.drift_ppm).div_ceil(1_000_000)
    }
}

/// When each node was last acknowledged by this leader.
#[derive(Clone, Debug)]
pub struct Watch {
    margins: Margins,
    acknowledged_ms: BTreeMap<NodeId, u64>,
    // A proposal is under way; asked again when the state still says otherwise later.
    proposed_ms: BTreeMap<NodeId, u64>,
}

impl Watch {
    /// A leader that has just come: it cannot know what its predecessor acknowledged,
    /// so every node lease starts afresh now.
    pub fn new(margins: Margins, cluster: &Cluster, now_ms: u64) -> Self {
        let heard = cluster.nodes().values().filter(|node| node.liveness != Liveness::Unknown);
        let acknowledged_ms = heard.map(|node| (node.id, now_ms)).collect();
        Watch { margins, acknowledged_ms, proposed_ms: BTreeMap::new() }
    }

    /// A heartbeat or a hello of the node was acknowledged.
    pub fn acknowledged(&mut self, node: NodeId, now_ms: u64) {
        self.acknowledged_ms.insert(node, now_ms);
        self.proposed_ms.remove(&node);
    }

    /// The transitions that are due.
    pub fn due(&mut self, cluster: &Cluster, now_ms: u64) -> Vec<Command> {
        let mut commands = Vec::new();
        for node in cluster.nodes().values() {
            if matches!(node.liveness, Liveness::Unknown | Liveness::Lost) {
                continue;
            }
            let heard_ms = *self.acknowledged_ms.entry(node.id).or_insert(now_ms);
            let silence_ms = now_ms.saturating_sub(heard_ms);
            let command =
                if silence_ms > self.margins.until_lost_ms(longest_notice_ms(cluster, node)) {
                    Command::NodeLost(node.id)
                } else if silence_ms > self.margins.node_lease_ms && node.liveness == Liveness::Up {
                    Command::NodeSilent(node.id)
                } else {
                    continue;
                };
            let asked_ms = self.proposed_ms.get(&node.id).copied();
            if asked_ms.is_none_or(|asked_ms| now_ms >= asked_ms + 500) {
                self.proposed_ms.insert(node.id, now_ms);
                commands.push(command);
            }
        }
        commands
    }
}

/// The longest notice that a shim on the node may give its task when the lease runs out.
fn longest_notice_ms(cluster: &Cluster, node: &rowen_state::Node) -> u64 {
    let owners = node.owners();
    let notices =
        owners.iter().filter_map(|id| cluster.allocations().get(*id)).map(|a| a.notice_ms);
    notices.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_margin_covers_lease_notice_kill_and_drift() {
        let margins = Margins { node_lease_ms: 10_000, kill_ms: 2_000, drift_ppm: 1_000 };
        assert_eq!(margins.until_lost_ms(120_000), 132_132);
        assert_eq!(margins.until_lost_ms(0), 12_012);
        let odd = Margins { node_lease_ms: 1, kill_ms: 0, drift_ppm: 1 };
        assert_eq!(odd.until_lost_ms(0), 2, "rounded up, never down");
    }
}
