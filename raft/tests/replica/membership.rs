//! A group that grows, loses and replaces members while it works: over loopback TCP, from one
//! replica to three and on.

use std::time::Duration;

use crate::{
    common::{eventually, member},
    group::{Node, listen, small},
};
use rowen_raft::{Member, MemberStatus, RaftError, ReplicaId};

struct Grown {
    dir: tempfile::TempDir,
    /// With the address of each; None once stopped.
    nodes: Vec<(Option<Node>, Member)>,
}

impl Grown {
    /// One replica that leads itself.
    async fn start() -> Grown {
        let mut grown = Grown { dir: tempfile::tempdir().unwrap(), nodes: Vec::new() };
        grown.open(1).await;
        let first = grown.node(1);
        first.replica.initialize(vec![grown.nodes[0].1.clone()]).await.unwrap();
        grown
    }

    /// Starts a replica with an empty folder; nobody knows it yet.
    async fn open(&mut self, id: u64) -> Member {
        let (listener, addr) = listen();
        let node = Node::start(small(id, self.dir.path()), listener).await;
        assert!(!node.replica.is_initialized().await.unwrap());
        let member = member(id, &addr);
        self.nodes.push((Some(node), member.clone()));
        member
    }

    fn node(&self, id: u64) -> &Node {
        let found = self.nodes.iter().find(|(_, member)| member.id.0 == id);
        found.unwrap().0.as_ref().unwrap()
    }

    /// The leader among `ids`.
    async fn leader(&self, ids: &[u64]) -> u64 {
        let find = || ids.iter().copied().find(|id| self.node(*id).is_ready_leader());
        eventually("a leader", || find().is_some()).await;
        find().unwrap()
    }

    /// Commits entries at `leader` and waits until all of `ids` applied them.
    async fn propose(&self, leader: u64, ids: &[u64], label: &str, count: usize) {
        let before = self.node(leader).keeper.len();
        for number in 0..count {
            let entry = format!("{label}-{number}").into_bytes();
            self.node(leader).replica.propose(entry).await.unwrap();
        }
        let holds = |id: &u64| self.node(*id).keeper.len() == before + count;
        eventually("applied everywhere", || ids.iter().all(holds)).await;
        let entries = self.node(leader).keeper.entries();
        assert!(ids.iter().all(|id| self.node(*id).keeper.entries() == entries));
    }

    /// Adds a new replica as a learner, waits until it has the log, gives it its vote.
    async fn join(&mut self, leader: u64, id: u64) {
        let new = self.open(id).await;
        let lead = &self.node(leader).replica;
        lead.add_learner(new.clone()).await.unwrap();
        let status = |members: Vec<MemberStatus>| members.into_iter().find(|m| m.member == new);
        assert!(!status(lead.members()).unwrap().voter);
        let last = lead.metrics().last_log;
        let caught_up = || status(lead.members()).is_some_and(|status| status.matched >= last);
        eventually("the learner has the log", caught_up).await;
        lead.promote(new.id).await.unwrap();
        assert!(status(lead.members()).unwrap().voter);
    }

    fn voters(&self, id: u64) -> Vec<u64> {
        let members = self.node(id).replica.members();
        members.iter().filter(|status| status.voter).map(|status| status.member.id.0).collect()
    }

    async fn stop(mut self) {
        for (node, _) in &mut self.nodes {
            if let Some(node) = node.take() {
                node.stop().await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_grows_and_replaces_its_members() {
    let mut group = Grown::start().await;
    let leader = group.leader(&[1]).await;
    // Enough that the log is purged: the others begin with a snapshot.
    group.propose(leader, &[1], "alone", 600).await;
    eventually("purged", || group.node(1).replica.metrics().purged > Some(300)).await;
    group.join(1, 2).await;
    group.join(1, 3).await;
    group.propose(1, &[1, 2, 3], "three", 50).await;
    assert!(group.node(3).keeper.restored() > 0, "the new one got the snapshot");
    assert_eq!(group.voters(2), [1, 2, 3]);
    let refused = group.node(2).replica.promote(ReplicaId(3)).await;
    assert!(matches!(refused, Err(RaftError::NotLeader { leader: Some(_) })), "{refused:?}");
    let unknown = group.node(1).replica.promote(ReplicaId(9)).await;
    assert!(matches!(unknown, Err(RaftError::Members(_))), "{unknown:?}");

    // Replica 2 dies for good; one with a new id and an empty folder takes its place.
    group.nodes[1].0.take().unwrap().stop().await;
    group.join(1, 4).await;
    group.node(1).replica.remove(ReplicaId(2)).await.unwrap();
    assert_eq!(group.voters(1), [1, 3, 4]);
    group.propose(1, &[1, 3, 4], "replaced", 50).await;

    // The leader hands over, and its successor takes it out.
    group.node(1).replica.transfer_leadership(ReplicaId(3)).await.unwrap();
    assert_eq!(group.leader(&[3]).await, 3);
    group.node(3).replica.remove(ReplicaId(1)).await.unwrap();
    assert_eq!(group.voters(3), [3, 4]);
    group.propose(3, &[3, 4], "without the first", 50).await;
    assert!(
        group
            .nodes
            .iter()
            .flat_map(|(node, _)| node)
            .all(|node| { node.replica.failed().borrow().is_none() })
    );
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_voter_does_not_disturb_the_group() {
    let mut group = Grown::start().await;
    group.leader(&[1]).await;
    for id in 2..=4 {
        group.join(1, id).await;
    }
    group.propose(1, &[1, 2, 3, 4], "four", 20).await;
    group.node(1).replica.remove(ReplicaId(4)).await.unwrap();
    let term = group.node(1).replica.metrics().term;
    // Many election timeouts: it goes on running and may never have heard that it is out.
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    group.propose(1, &[1, 2, 3], "three", 20).await;
    assert_eq!(group.node(1).replica.metrics().term, term, "nobody had to vote");
    assert!(group.node(1).is_ready_leader());

    // The leader removes itself, without handing over: the two others go on.
    group.node(1).replica.remove(ReplicaId(1)).await.unwrap();
    let leader = group.leader(&[2, 3]).await;
    assert_eq!(group.voters(leader), [2, 3]);
    group.propose(leader, &[2, 3], "two", 20).await;
    eventually("it no longer leads", || !group.node(1).is_ready_leader()).await;
    let term = group.node(leader).replica.metrics().term;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(group.node(leader).replica.metrics().term, term);
    group.stop().await;
}
