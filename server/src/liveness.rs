//! Which nodes are heard. The leader's memory: only transitions reach the log.
//!
//! Pure: time is an argument, in milliseconds of a clock that counts through suspends.

use std::collections::BTreeMap;

use rowen_planted::{Bug, planted};
use rowen_state::{Cluster, Command, Liveness, NodeId, Timing};

/// What the silence of a node is measured by, where the state does not say it.
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

    fn widest(self, other: Margins) -> Margins {
        Margins {
            node_lease_ms: self.node_lease_ms.max(other.node_lease_ms),
            kill_ms: self.kill_ms.max(other.kill_ms),
            drift_ppm: self.drift_ppm.max(other.drift_ppm),
        }
    }
}

impl From<Timing> for Margins {
    fn from(timing: Timing) -> Margins {
        let Timing { node_lease_ms, kill_ms, drift_ppm, .. } = timing;
        Margins { node_lease_ms, kill_ms, drift_ppm }
    }
}

/// A transition that did not come through is proposed again after this, then after twice as long.
const PROPOSE_AGAIN_MS: u64 = 500;
const PROPOSE_AGAIN_MAX_MS: u64 = 30_000;
/// An agent that beats as seldom as it may has so many beats in a lease.
const BEATS_A_LEASE: u64 = 3;

/// When each node was last acknowledged by this leader.
#[derive(Clone, Debug)]
pub struct Watch {
    /// In force; by configuration until the state says it.
    margins: Margins,
    /// Log index that put them in force; 0: they are the configured ones.
    since: u64,
    /// Leases granted under other margins may be held: nothing is lost before they, counted from
    /// the given time, are over.
    earlier: Option<(u64, Margins)>,
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
    /// so every node lease starts afresh now. `configured` holds until the state says otherwise.
    pub fn new(configured: Margins, cluster: &Cluster, now_ms: u64) -> Self {
        let mut watch = Watch {
            margins: configured,
            since: 0,
            earlier: None,
            nodes: BTreeMap::new(),
            followed: None,
        };
        if let Some(in_force) = cluster.meta().timing {
            (watch.margins, watch.since) = (in_force.timing.into(), in_force.since);
            watch.earlier = in_force.earlier.map(|earlier| (now_ms, earlier.into()));
        }
        watch.follow(cluster, now_ms);
        watch
    }

    /// A quorum confirmed the leadership after the node's heartbeat had come: may its lease be
    /// acknowledged? If not, its agent must come again before anything else: the state thinks
    /// that it is gone, or is about to. Nor if it was `welcomed` with other times than those in
    /// force: it would count its lease by them.
    pub fn renew(
        &mut self,
        cluster: &Cluster,
        node: NodeId,
        welcomed: Margins,
        now_ms: u64,
    ) -> bool {
        self.follow_timing(cluster, now_ms);
        if welcomed != self.margins {
            return false;
        }
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
        let mut commands = Vec::from_iter(self.settled(cluster, now_ms));
        let earlier_over = |notice_ms| {
            self.earlier.is_none_or(|(from_ms, margins)| {
                now_ms.saturating_sub(from_ms) > margins.until_lost_ms(notice_ms)
            })
        };
        // Until an agent hears of a shorter lease, it beats as the one before allowed. By the beat
        // and not by the lease: after a restore the longest lease may be any.
        let earlier = cluster.meta().timing.and_then(|in_force| in_force.earlier);
        let beats_ms = earlier.map_or(0, |earlier| earlier.heartbeat_ms * BEATS_A_LEASE);
        let lease_ms = self.margins.node_lease_ms.max(beats_ms);
        for (id, heard) in &mut self.nodes {
            let silence_ms = now_ms.saturating_sub(heard.at_ms);
            if silence_ms <= lease_ms || now_ms < heard.again_at_ms {
                continue;
            }
            let Some(node) = cluster.nodes().get(*id) else { continue };
            let came = heard.came;
            let notice_ms = longest_notice_ms(cluster, node);
            let command =
                if silence_ms > self.margins.until_lost_ms(notice_ms) && earlier_over(notice_ms) {
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

    /// A timing that comes into force ends no lease that was granted under the one before.
    fn follow_timing(&mut self, cluster: &Cluster, now_ms: u64) {
        let Some(in_force) = cluster.meta().timing.filter(|new| new.since != self.since) else {
            return;
        };
        let before = std::mem::replace(&mut self.margins, in_force.timing.into());
        self.since = in_force.since;
        let more = [self.earlier.map(|(_, margins)| margins), in_force.earlier.map(Margins::from)];
        let widest = more.into_iter().flatten().fold(before, Margins::widest);
        self.earlier = Some((now_ms, widest));
    }

    /// The word that no lease of an earlier timing is left, once that is so.
    fn settled(&mut self, cluster: &Cluster, now_ms: u64) -> Option<Command> {
        let (from_ms, margins) = self.earlier?;
        let notice_ms = cluster.allocations().values().map(|a| a.notice_ms).max().unwrap_or(0);
        if now_ms.saturating_sub(from_ms) <= margins.until_lost_ms(notice_ms) {
            return None;
        }
        self.earlier = None;
        let in_force = cluster.meta().timing.filter(|in_force| in_force.earlier.is_some())?;
        Some(Command::SettleTiming { since: in_force.since })
    }

    /// An agent that came starts its silence afresh; a node that is lost or gone has none.
    fn follow(&mut self, cluster: &Cluster, now_ms: u64) {
        self.follow_timing(cluster, now_ms);
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
            World::from(Cluster::default())
        }

        fn from(cluster: Cluster) -> World {
            let mut world = World(cluster);
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
        assert!(watch.renew(&world.0, NODE, MARGINS, 9_000));
        assert_eq!(watch.due(&world.0, 19_000), []);
        assert!(matches!(watch.due(&world.0, 19_001)[..], [Command::NodeSilent { .. }]));
        assert!(watch.renew(&world.0, NODE, MARGINS, 19_002), "the state still says that it is up");
        let lost = watch.due(&world.0, 19_003 + 12_012);
        assert!(matches!(lost[..], [Command::NodeLost { .. }]));
        assert!(!watch.renew(&world.0, NODE, MARGINS, 31_016), "the log has yet to decide");
        // The log may bring the loss before the coming, or after it.
        let mut after = World(world.0.clone());
        after.come();
        assert!(after.apply(lost[0].clone()).is_err(), "void: it has come again");
        assert_eq!(after.liveness(), Liveness::Up);
        assert!(watch.clone().renew(&after.0, NODE, MARGINS, 31_017));
        assert_eq!(watch.clone().due(&after.0, 31_018), [], "its silence begins afresh");

        world.apply(lost[0].clone()).unwrap();
        assert_eq!(world.liveness(), Liveness::Lost);
        assert!(!watch.renew(&world.0, NODE, MARGINS, 31_017), "an old stream renews nothing");
        assert_eq!(watch.due(&world.0, 99_000), []);
        world.come();
        assert!(watch.renew(&world.0, NODE, MARGINS, 99_001));
        assert_eq!(watch.due(&world.0, 99_002), []);
    }

    #[test]
    fn a_silent_node_must_come_again() {
        let mut world = World::new();
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        let silent = watch.due(&world.0, 10_001);
        world.apply(silent[0].clone()).unwrap();
        assert_eq!(world.liveness(), Liveness::Silent);
        assert!(!watch.renew(&world.0, NODE, MARGINS, 10_002), "or it would stay silent for ever");
        world.come();
        assert!(watch.renew(&world.0, NODE, MARGINS, 10_003));
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

    fn in_force(world: &mut World, node_lease_ms: u64) -> Margins {
        let heartbeat_ms = node_lease_ms / 3;
        let timing = Timing { node_lease_ms, heartbeat_ms, kill_ms: 2_000, drift_ppm: 1_000 };
        let granted = world.0.meta().timing.is_none().then_some(timing);
        world.apply(Command::SetTiming { timing, granted }).unwrap();
        timing.into()
    }

    /// Silent since 0, lease and margin as `watch` knows them: the first moment it counts as lost.
    fn lost_at(watch: Watch, world: &World) -> u64 {
        let lost = |now_ms: &u64| {
            let due = watch.clone().due(&world.0, *now_ms); // asked for the first time
            due.iter().any(|command| matches!(command, Command::NodeLost { .. }))
        };
        (0..200_000).step_by(10).find(lost).expect("it is lost some time")
    }

    #[test]
    fn a_shorter_lease_frees_nothing_while_a_longer_one_may_be_held() {
        let mut world = World::from(Cluster::newest());
        let first = in_force(&mut world, 60_000);
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        assert_eq!(
            lost_at(watch.clone(), &world),
            62_070,
            "the state's timing, not the configured"
        );
        assert!(
            !watch.renew(&world.0, NODE, MARGINS, 0),
            "it was welcomed under the configured one"
        );
        assert!(watch.renew(&world.0, NODE, first, 0));

        let second = in_force(&mut world, 6_000);
        let since = world.0.applied();
        assert!(!watch.renew(&world.0, NODE, first, 0), "it must hear of the new one");
        assert_eq!(lost_at(watch.clone(), &world), 62_070, "it may hold a lease of 60 s");
        let successor = Watch::new(MARGINS, &world.0, 0);
        assert_eq!(lost_at(successor, &world), 62_070, "a new leader cannot know either");

        // The leader has waited for all of them, then even one that comes new need not.
        assert!(watch.renew(&world.0, NODE, second, 62_063));
        assert_eq!(watch.due(&world.0, 62_063), [Command::SettleTiming { since }]);
        world.apply(Command::SettleTiming { since }).unwrap();
        assert_eq!(watch.due(&world.0, 62_064), []);
        assert_eq!(lost_at(Watch::new(MARGINS, &world.0, 0), &world), 8_010);
    }

    /// An agent may hold a lease that the backup knows nothing of.
    #[test]
    fn a_restored_cluster_waits_for_the_longest_lease_but_hears_at_once_who_is_silent() {
        let configured =
            Timing { node_lease_ms: 6_000, heartbeat_ms: 2_000, kill_ms: 2_000, drift_ppm: 1_000 };
        let mut newest = World::from(Cluster::newest());
        in_force(&mut newest, 9_000);
        // Of a version that had no timing in the state: what the new replica is configured with.
        for (backup, lease_ms) in [(newest, 9_000), (World::new(), 6_000)] {
            let (restored, _) = backup.0.reincarnate("a:1", 1, configured, 60_000);
            let mut restored = World(restored);
            assert!(restored.0.verify().is_empty());
            let timing = restored.0.meta().timing.unwrap();
            assert_eq!(timing.timing.node_lease_ms, lease_ms);
            let mut watch = Watch::new(configured.into(), &restored.0, 0);
            assert_eq!(watch.clone().due(&restored.0, lease_ms), []);
            let due = watch.clone().due(&restored.0, lease_ms + 1);
            assert!(matches!(due[..], [Command::NodeSilent { .. }]), "{due:?}");
            assert_eq!(lost_at(watch.clone(), &restored), 62_070);
            assert_eq!(lost_at(Watch::new(configured.into(), &restored.0, 0), &restored), 62_070);
            // Heard of in time, and the longest one waited for: from there on as configured.
            restored.come();
            assert!(watch.renew(&restored.0, NODE, timing.timing.into(), 62_063));
            let settled = Command::SettleTiming { since: timing.since };
            assert_eq!(watch.due(&restored.0, 62_063), std::slice::from_ref(&settled));
            restored.apply(settled).unwrap();
            let margin_ms = Margins::from(timing.timing).until_lost_ms(0);
            assert_eq!(
                lost_at(Watch::new(MARGINS, &restored.0, 0), &restored),
                margin_ms / 10 * 10 + 10
            );
        }
    }

    #[test]
    fn an_agent_that_has_not_heard_of_a_shorter_lease_is_not_silent() {
        let mut world = World::from(Cluster::newest());
        let first = in_force(&mut world, 60_000);
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        assert!(watch.renew(&world.0, NODE, first, 100_000));
        in_force(&mut world, 6_000);
        assert_eq!(watch.due(&world.0, 100_001), []);
        assert_eq!(watch.due(&world.0, 120_000), [], "it beats every 20 s");
        assert!(matches!(watch.due(&world.0, 160_001)[..], [Command::NodeSilent { .. }]));
    }

    #[test]
    fn a_longer_lease_is_granted_and_waited_for_at_once() {
        let mut world = World::from(Cluster::newest());
        let mut watch = Watch::new(MARGINS, &world.0, 0);
        assert!(
            watch.renew(&world.0, NODE, MARGINS, 0),
            "the configured one, as long as there is no other"
        );
        let longer = in_force(&mut world, 60_000);
        assert!(watch.renew(&world.0, NODE, longer, 0));
        assert_eq!(lost_at(watch, &world), 62_070);
    }
}
