//! The power of all three replicas fails at the same moment under load, fifty times: what was not
//! synced is lost or torn by chance, what was answered is there afterwards, once.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::{
    common::{eventually, member},
    group::{Node, listen, listen_again, small},
    recovering::tear,
};
use rowen_raft::{ProposeError, Replica, sim_disk::SimDisk};

const ROUNDS: u32 = 50;
const CLIENTS: u32 = 8;
/// Long: openraft panics where a proposal is dropped while its core stops and another one waits.
const PATIENCE: Duration = Duration::from_secs(60);
/// Without a leader for so long, two of three wait for each other's votes.
const NO_LEADER: Duration = Duration::from_secs(1);

/// Three replicas on one disk: one moment is the last for all of them.
struct Three {
    dir: tempfile::TempDir,
    disk: SimDisk,
    addrs: Vec<String>,
    nodes: Vec<Node>,
}

/// What the run met; printed, and checked to be something.
#[derive(Default, Debug)]
struct Counts {
    answered: usize,
    /// Kept though nobody was answered: the cut came between the sync and the answer.
    kept_unanswered: usize,
    /// Ends of logs that were torn, so that the replica gave up its vote.
    torn: usize,
    /// Rounds in which two or three were, so that an operator had to say that the ends were torn.
    operator: usize,
}

impl Three {
    async fn start() -> Three {
        let dir = tempfile::tempdir().unwrap();
        let (listeners, addrs): (Vec<_>, _) = (0..3).map(|_| listen()).unzip();
        let mut three = Three { dir, disk: SimDisk::new(17), addrs, nodes: Vec::new() };
        for (id, listener) in (1..).zip(listeners) {
            three.open(id, listener, false).await;
        }
        let members = three.addrs.iter().zip(1..).map(|(addr, id)| member(id, addr)).collect();
        three.nodes[0].replica.initialize(members).await.unwrap();
        eventually("a leader", || three.leader().is_some()).await;
        three.leader().unwrap().propose(b"first".to_vec()).await.unwrap();
        eventually("replicated", || three.nodes.iter().all(|node| node.keeper.len() == 1)).await;
        three
    }

    async fn open(&mut self, id: u64, listener: std::net::TcpListener, accept_torn_tail: bool) {
        let mut config = small(id, self.dir.path());
        (config.segment_bytes, config.accept_torn_tail) = (16 << 10, accept_torn_tail);
        // A hundred elections and more; whoever proposes asks again.
        (config.heartbeat_ms, config.election_min_ms, config.election_max_ms) = (50, 200, 400);
        let disk = Arc::new(self.disk.process());
        self.nodes.push(Node::start_on(config, listener, disk).await.unwrap());
    }

    async fn reopen(&mut self, accept_torn_tail: bool) {
        for node in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
        for id in 1..=3 {
            let listener = listen_again(&self.addrs[id as usize - 1]).await;
            self.open(id, listener, accept_torn_tail).await;
        }
    }

    fn leader(&self) -> Option<Replica> {
        let leader = self.nodes.iter().find(|node| node.is_ready_leader());
        leader.map(|node| node.replica.clone())
    }

    fn recovering(&self) -> usize {
        self.nodes.iter().filter(|node| node.replica.metrics().recovering).count()
    }

    /// The replicas come back; where they cannot elect anybody, the operator helps.
    async fn come_back(&mut self, counts: &mut Counts) {
        self.reopen(false).await;
        let torn = self.recovering();
        counts.torn += torn;
        if torn < 2 {
            return eventually("a leader", || self.leader().is_some()).await;
        }
        let begun = Instant::now();
        while begun.elapsed() < NO_LEADER {
            assert!(self.leader().is_none(), "elected by replicas that forgot");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        counts.operator += 1;
        self.reopen(true).await;
        assert_eq!(self.recovering(), 0, "the operator's word gives the votes back");
        eventually("a leader", || self.leader().is_some()).await;
    }

    /// Proposes until the power fails; what was answered.
    async fn load(&mut self, round: u32) -> Vec<Vec<u8>> {
        // Shared: where openraft panics in a client (see `Replica::shutdown`), what it was answered
        // before still counts.
        let answered = Arc::new(Mutex::new(Vec::new()));
        let replicas: Vec<_> = self.nodes.iter().map(|node| node.replica.clone()).collect();
        let client = |client: u32| {
            let mut replicas = replicas.clone().into_iter().cycle();
            let mut leader = replicas.next().expect("three of them");
            let answered = Arc::clone(&answered);
            tokio::spawn(async move {
                for number in 0.. {
                    // More than a sector, so that it can be torn.
                    let mut entry = format!("{round}-{client}-{number}").into_bytes();
                    entry.resize(300, b'.');
                    let proposal = leader.propose(entry.clone());
                    match tokio::time::timeout(PATIENCE, proposal).await {
                        Ok(Ok(_)) => answered.lock().unwrap().push(entry),
                        Ok(Err(ProposeError::Stopped(_))) | Err(_) => break,
                        Ok(Err(_)) => {
                            leader = replicas.next().expect("three of them");
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            })
        };
        let clients: Vec<_> = (0..CLIENTS).map(client).collect();
        self.disk.die_after(40 + u64::from(round) * 197 % 900);
        eventually("the power fails", || self.disk.is_dead()).await;
        self.disk.cut_power();
        // Whoever still waits for an answer gets none.
        for node in std::mem::take(&mut self.nodes) {
            node.stop().await;
        }
        for client in clients {
            client.await.ok();
        }
        std::mem::take(&mut *answered.lock().unwrap())
    }

    /// The last entry of the log, by whoever leads: on a busy machine it may be another one soon.
    async fn mark(&self, round: u32) -> Vec<u8> {
        for attempt in 0.. {
            let mark = format!("mark-{round}-{attempt}").into_bytes();
            eventually("a leader", || self.leader().is_some()).await;
            let Some(leader) = self.leader() else { continue };
            if leader.propose(mark.clone()).await.is_ok() {
                return mark;
            }
        }
        unreachable!("it is tried again and again")
    }

    /// Everything that was answered is everywhere, and nothing twice.
    async fn nothing_is_lost(&self, round: u32, answered: &BTreeSet<Vec<u8>>) -> usize {
        // An entry of the new leader's brings the end of the log to all.
        let mark = self.mark(round).await;
        let has_mark = |node: &Node| node.keeper.entries().last() == Some(&mark);
        eventually("all have the end", || self.nodes.iter().all(has_mark)).await;
        let entries = self.nodes[0].keeper.entries();
        assert!(self.nodes.iter().all(|node| node.keeper.entries() == entries), "round {round}");
        let held: BTreeSet<_> = entries.iter().cloned().collect();
        let lost: Vec<_> = answered.difference(&held).collect();
        assert!(lost.is_empty(), "round {round} lost {} of {}", lost.len(), answered.len());
        assert_eq!(held.len(), entries.len(), "round {round}: an entry is there twice");
        held.difference(answered).filter(|entry| entry.len() == 300).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_power_cuts_of_all_three_lose_nothing_that_was_answered() {
    let mut three = Three::start().await;
    let (mut answered, mut counts) = (BTreeSet::new(), Counts::default());
    for round in 0..ROUNDS {
        answered.extend(three.load(round).await);
        three.come_back(&mut counts).await;
        counts.kept_unanswered = three.nothing_is_lost(round, &answered).await;
    }
    counts.answered = answered.len();
    println!("{ROUNDS} power cuts of all three at once, 0 lost, 0 doubled: {counts:?}");
    assert!(counts.answered > 500, "there was load: {counts:?}");
    assert!(counts.torn > 0 && counts.kept_unanswered > 0, "the cuts came in between: {counts:?}");
    for node in three.nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_torn_ends_wait_for_the_operator() {
    let mut three = Three::start().await;
    let before: BTreeSet<_> = three.nodes[0].keeper.entries().into_iter().collect();
    for number in 0..20 {
        let entry = format!("entry-{number}").into_bytes();
        three.leader().unwrap().propose(entry).await.unwrap();
    }
    for id in ["1", "2"] {
        tear(&three.disk, &three.dir.path().join(id).join("log"));
    }
    let mut counts = Counts::default();
    three.come_back(&mut counts).await;
    assert_eq!((counts.torn, counts.operator), (2, 1));
    three.nothing_is_lost(0, &before).await;
    // It was for one start, and it is over.
    three.reopen(false).await;
    assert_eq!(three.recovering(), 0);
    eventually("a leader", || three.leader().is_some()).await;
    for node in three.nodes {
        node.stop().await;
    }
}
