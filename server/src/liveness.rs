//! Which nodes are heard. The leader's memory: only transitions reach the log.
//!
//! Pure: time is an argument, in milliseconds of a clock that counts through suspends.

use std::collections::BTreeMap;

use rowen_planted::{Bug, planted};
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
        if planted(Bug::NoMargin) {
            return self.node_lease_ms;
        }
        let nominal_ms = self.node_lease_ms + notice_ms + self.kill_ms;
        nominal_ms + (nominal_ms * self.drift_ppm).div_ceil(1_000_000)
    }
}

/// A transition that did not come through is proposed again after this, then after twice as long.
const PROPOSE_AGAIN_MS: u64 = 500;
const PROPOSE_AGAIN_MAX_MS: u64 = 30_000;

/// When each node was last acknowledged by this leader.
#[derive(Clone, Debug)]
pub struct Watch {
    margins: Margins,
    nodes: BTreeMap<NodeId, Heard>,
    /// Index of the state that `nodes` follows.
    followed: Option<u64>,
}

/// What is known of a node whose agent has come.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// Which coming of its agent this is about.
    came: u64,
    /// When its lease was last acknowledged, or it came.
    at_ms: u64,
    /// Its loss was proposed: it gets no acknowledgement before the log has decided.
    doomed: bool,
    again_at_ms: u64,
    again_in_ms: u64,
}

impl Heard {
    fn new(came: u64, at_ms: u64) -> Self {
        Heard { came, at_ms, doomed: false, again_at_ms: 0, again_in_ms: PROPOSE_AGAIN_MS }
    }
}

impl Watch {
    /// A leader that has just come: it cannot know what its predecessor acknowledged,
    /// so every node lease starts afresh now.
    pub fn new(margins: Margins, cluster: &Cluster, now_ms: u64) -> Self {
        let mut watch = Watch { margins, nodes: BTreeMap::new(), followed: None };
        watch.follow(cluster, now_ms);
        watch
    }

    /// A quorum confirmed the leadership after the node's heartbeat had come: may its lease be
    /// acknowledged? If not, its agent must come again before anything else: the state thinks
    /// that it is gone, or is about to.
    pub fn renew(&mut self, cluster: &Cluster, node: NodeId, now_ms: u64) -> bool {
        let Some(row) = cluster.nodes().get(node).filter(|row| row.liveness == Liveness::Up) else {
            return false;
        };
        let heard = self.nodes.entry(node).or_insert(Heard::new(row.came, now_ms));
        if heard.came != row.came {
            *heard = Heard::new(row.came, now_ms);
        }
        if !heard.doomed {
            *heard = Heard::new(row.came, heard.at_ms.max(now_ms));
        }
        !heard.doomed
    }

    /// The transitions that are due.
    pub fn due(&mut self, cluster: &Cluster, now_ms: u64) -> Vec<Command> {
        self.follow(cluster, now_ms);
        let mut commands = Vec::new();
        for (id, heard) in &mut self.nodes {
            let silence_ms = now_ms.saturating_sub(heard.at_ms);
            if silence_ms <= self.margins.node_lease_ms || now_ms < heard.again_at_ms {
                continue;
            }
            let Some(node) = cluster.nodes().get(*id) else { continue };
            let came = heard.came;
            let command =
                if silence_ms > self.margins.until_lost_ms(longest_notice_ms(cluster, node)) {
                    heard.doomed = true;
                    Command::NodeLost { node: *id, came }
                } else if node.liveness == Liveness::Up {
                    Command::NodeSilent { node: *id, came }
                } else {
                    continue;
                };
            heard.again_at_ms = now_ms + heard.again_in_ms;
            heard.again_in_ms = (heard.again_in_ms * 2).min(PROPOSE_AGAIN_MAX_MS);
            commands.push(command);
        }
        commands
    }

    /// An agent that came starts its silence afresh; a node that is lost or gone has none.
    fn follow(&mut self, cluster: &Cluster, now_ms: u64) {
        if self.followed.replace(cluster.applied()) == Some(cluster.applied()) {
            return;
        }
        let awaited = |liveness| matches!(liveness, Liveness::Up | Liveness::Silent);
        let known = |id: &NodeId| cluster.nodes().get(*id).is_some_and(|row| awaited(row.liveness));
        self.nodes.retain(|id, _| known(id));
        for node in cluster.nodes().values().filter(|node| awaited(node.liveness)) {
            let heard = self.nodes.entry(node.id).or_insert(Heard::new(node.came, now_ms));
            if heard.came != node.came {
                *heard = Heard::new(node.came, now_ms);
            }
        }
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
    use rowen_state::{Entry, NodeReport};

    use super::*;

    #[test]
    fn the_margin_covers_lease_notice_kill_and_drift() {
        let margins = Margins { node_lease_ms: 10_000, kill_ms: 2_000, drift_ppm: 1_000 };
        assert_eq!(margins.until_lost_ms(120_000), 132_132);
        assert_eq!(margins.until_lost_ms(0), 12_012);
        let odd = Margins { node_lease_ms: 1, kill_ms: 0, drift_ppm: 1 };
        assert_eq!(odd.until_lost_ms(0), 2, "rounded up, never down");
    }

    const MARGINS: Margins = Margins { node_lease_ms: 10_000, kill_ms: 2_000, drift_ppm: 1_000 };
    const NODE: NodeId = NodeId(1);

    /// One node whose agent has come.
    struct World(Cluster);

    impl World {
        fn new() -> World {
            let mut world = World(Cluster::default());
            let fabric = rowen_topology::drawing::parse("block a: n1 x2").unwrap();
            world.apply(Command::SetFabric(fabric)).unwrap();
            world.come();
            world
        }

        fn apply(&mut self, command: Command) -> crate::Answer {
            let entry = Entry { at_ms: 1, principal: "test".into(), request: None, command };
            self.0.apply(self.0.applied() + 1, &entry).answer.unwrap()
        }

        fn come(&mut self) {
            let report = NodeReport {
                node: NODE,
                boot_id: "boot".into(),
                addr: "n1".into(),
                ports: vec![],
                healthy: rowen_state::GpuMask::first(2),
                simulated: true,
                version: String::new(),
                folder: String::new(),
                said_ms: 0,
                tasks: vec![],
            };
            self.apply(Command::NodeUp(report)).unwrap();
        }

        fn liveness(&self) -> Liveness {
            self.0.nodes().get(NODE).unwrap().liveness
        }
    }

    #[test]
    fn a_node_whose_loss_is_proposed_is_not_acknowledged_until_it_comes_again() {
        let mut world = World::new();
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        assert!(watch.renew(&world.0, NODE, 9_000));
        assert_eq!(watch.due(&world.0, 19_000), []);
        assert!(matches!(watch.due(&world.0, 19_001)[..], [Command::NodeSilent { .. }]));
        assert!(watch.renew(&world.0, NODE, 19_002), "the state still says that it is up");
        let lost = watch.due(&world.0, 19_003 + 12_012);
        assert!(matches!(lost[..], [Command::NodeLost { .. }]));
        assert!(!watch.renew(&world.0, NODE, 31_016), "the log has yet to decide");
        // The log may bring the loss before the coming, or after it.
        let mut after = World(world.0.clone());
        after.come();
        assert!(after.apply(lost[0].clone()).is_err(), "void: it has come again");
        assert_eq!(after.liveness(), Liveness::Up);
        assert!(watch.clone().renew(&after.0, NODE, 31_017));
        assert_eq!(watch.clone().due(&after.0, 31_018), [], "its silence begins afresh");

        world.apply(lost[0].clone()).unwrap();
        assert_eq!(world.liveness(), Liveness::Lost);
        assert!(!watch.renew(&world.0, NODE, 31_017), "an old stream renews nothing");
        assert_eq!(watch.due(&world.0, 99_000), []);
        world.come();
        assert!(watch.renew(&world.0, NODE, 99_001));
        assert_eq!(watch.due(&world.0, 99_002), []);
    }

    #[test]
    fn a_silent_node_must_come_again() {
        let mut world = World::new();
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        let silent = watch.due(&world.0, 10_001);
        world.apply(silent[0].clone()).unwrap();
        assert_eq!(world.liveness(), Liveness::Silent);
        assert!(!watch.renew(&world.0, NODE, 10_002), "or it would stay silent for ever");
        world.come();
        assert!(watch.renew(&world.0, NODE, 10_003));
    }

    #[test]
    fn a_proposal_that_does_not_come_through_is_made_again_ever_less_often() {
        let world = World::new();
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        let mut asked = Vec::new();
        for now_ms in (0..600_000).step_by(100) {
            asked.extend(watch.due(&world.0, now_ms).iter().map(|_| now_ms));
        }
        assert!((20..40).contains(&asked.len()), "{asked:?}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= 500));
    }
}
