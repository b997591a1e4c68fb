//! Three replicas over loopback TCP: they elect, replicate, go on without a stopped leader, and a
//! replica that was away catches up by snapshot, archive included.

use std::{
    net::Ipv4Addr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::common::{Keeper, config, eventually, member};
use rowen_raft::{
    OpenError, ProposeError, Replica, ReplicaConfig, ReplicaId, dial_tcp,
    disk::{Disk, RealDisk},
};
use tokio::{net::TcpListener, runtime::Runtime};
use tonic::transport::server::TcpIncoming;

/// A replica that listens.
pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) keeper: Keeper,
    /// Of its own, so that stopping it cuts the connections, as the end of a process does.
    server: Runtime,
}

impl Node {
    /// Opens a replica and serves it on `listener`.
    pub(crate) async fn start(config: ReplicaConfig, listener: std::net::TcpListener) -> Node {
        Node::start_on(config, listener, Arc::new(RealDisk::default())).await.unwrap()
    }

    /// The same on a given disk.
    pub(crate) async fn start_on(
        config: ReplicaConfig,
        listener: std::net::TcpListener,
        disk: Arc<dyn Disk>,
    ) -> Result<Node, OpenError> {
        let keeper = Keeper::default();
        let replica = Replica::open_on(config, keeper.clone(), disk, dial_tcp()).await?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let server = builder.worker_threads(1).enable_all().build().unwrap();
        let router = tonic::transport::Server::builder().add_service(replica.service());
        server.spawn(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming(incoming).await.unwrap();
        });
        Ok(Node { replica, keeper, server })
    }

    /// Stops the server and the replica.
    pub(crate) async fn stop(self) {
        // In this order: openraft panics where whoever waits for its core's end first, a handler
        // of the server for example, is dropped meanwhile and another one waits too.
        self.replica.shutdown().await;
        self.server.shutdown_background();
    }

    pub(crate) fn is_ready_leader(&self) -> bool {
        self.replica.leadership().borrow().ready
    }
}

/// A listener on a free port, and its address.
pub(crate) fn listen() -> (std::net::TcpListener, String) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    (listener, addr)
}

/// A listener on the address that a stopped replica had.
pub(crate) async fn listen_again(addr: &str) -> std::net::TcpListener {
    for _ in 0..250 {
        if let Ok(listener) = std::net::TcpListener::bind(addr) {
            return listener;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{addr} does not come free");
}

struct Group {
    nodes: Vec<Option<Node>>,
    addrs: Vec<String>,
    dir: tempfile::TempDir,
}

/// Snapshots come early and little log is kept, so that whoever was away needs a snapshot. A
/// leader is missed late: a busy machine must not look like a failed one.
pub(crate) fn small(id: u64, dir: &Path) -> ReplicaConfig {
    let mut config = config(id, &dir.join(id.to_string()));
    (config.heartbeat_ms, config.election_min_ms, config.election_max_ms) = (100, 700, 1_000);
    (config.snapshot_every, config.keep_log, config.segment_bytes) = (200, 10, 256 << 10);
    config.archive_period_entries = 100;
    config
}

impl Group {
    async fn start() -> Group {
        let dir = tempfile::tempdir().unwrap();
        let (mut nodes, mut addrs) = (Vec::new(), Vec::new());
        for id in 1..=3 {
            let (listener, addr) = listen();
            nodes.push(Some(Node::start(small(id, dir.path()), listener).await));
            addrs.push(addr);
        }
        let members = addrs.iter().zip(1..).map(|(addr, id)| member(id, addr)).collect();
        nodes[0].as_ref().unwrap().replica.initialize(members).await.unwrap();
        Group { nodes, addrs, dir }
    }

    fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    fn node(&self, position: usize) -> &Node {
        self.nodes[position].as_ref().unwrap()
    }

    async fn leader(&self) -> usize {
        let find = || {
            let is_leader = |node: &Option<Node>| node.as_ref().is_some_and(Node::is_ready_leader);
            self.nodes.iter().position(is_leader)
        };
        eventually("a leader", || find().is_some()).await;
        find().unwrap()
    }

    async fn stop(&mut self, position: usize) {
        self.nodes[position].take().unwrap().stop().await;
    }

    async fn stop_all(&mut self) {
        for node in self.nodes.drain(..).flatten() {
            node.stop().await;
        }
    }

    async fn restart(&mut self, position: usize) {
        let listener = listen_again(&self.addrs[position]).await;
        let config = small(position as u64 + 1, self.dir.path());
        self.nodes[position] = Some(Node::start(config, listener).await);
    }

    /// Commits entries, going to wherever the leader is.
    async fn propose(&self, label: &str, count: usize, bytes: usize) {
        let mut leader = self.leader().await;
        for number in 0..count {
            let mut entry = format!("{label}-{number}").into_bytes();
            entry.resize(entry.len().max(bytes), b'.');
            loop {
                match self.node(leader).replica.propose(entry.clone()).await {
                    Ok(_) => break,
                    Err(ProposeError::NotLeader { .. }) => leader = self.leader().await,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    async fn all_hold(&self, count: usize) {
        let holds = || self.running().all(|node| node.keeper.len() == count);
        eventually(&format!("{count} entries everywhere"), holds).await;
        let entries = self.running().next().unwrap().keeper.entries();
        assert!(self.running().all(|node| node.keeper.entries() == entries));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elects_replicates_and_survives_its_leader() {
    let mut group = Group::start().await;
    group.propose("first", 50, 0).await;
    group.all_hold(50).await;
    let leader = group.leader().await;

    let follower = group.node((leader + 1) % 3);
    let refused = follower.replica.propose(b"x".to_vec()).await;
    let leads = member(leader as u64 + 1, &group.addrs[leader]);
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(leads.clone()) }));
    let refused = follower.replica.read_index().await;
    assert_eq!(refused, Err(ProposeError::NotLeader { leader: Some(leads) }));
    assert!(group.node(leader).replica.read_index().await.is_ok());
    assert_eq!(follower.replica.metrics().members.len(), 3);

    let start = Instant::now();
    group.stop(leader).await;
    let next = group.leader().await;
    println!("a new leader was ready {:?} after the old one stopped", start.elapsed());
    assert_ne!(next, leader);
    group.propose("second", 50, 0).await;
    group.all_hold(100).await;
    group.restart(leader).await;
    group.all_hold(100).await;

    let target = (group.leader().await + 1) % 3;
    let old = group.leader().await;
    let to = ReplicaId(target as u64 + 1);
    group.node(old).replica.transfer_leadership(to).await.unwrap();
    eventually("leadership transferred", || group.node(target).is_ready_leader()).await;
    group.propose("third", 10, 0).await;
    group.all_hold(110).await;
    assert!(group.running().all(|node| node.replica.failed().borrow().is_none()));
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_away_catches_up_by_snapshot() {
    let mut group = Group::start().await;
    group.propose("first", 20, 0).await;
    group.all_hold(20).await;
    let away = (group.leader().await + 1) % 3;
    group.stop(away).await;
    // About 3 MiB of state: the snapshot travels in several chunks.
    group.propose("missed", 600, 5_000).await;
    let leader = group.leader().await;
    let purged = || group.node(leader).replica.metrics().purged > Some(400);
    eventually("the log is purged", purged).await;

    group.restart(away).await;
    group.all_hold(620).await;
    let node = group.node(away);
    assert!(node.keeper.restored() > 0, "caught up by snapshot");
    eventually("the archive is whole", || {
        let archive = node.replica.archive();
        !archive.has_gap().unwrap() && archive.scan(b"entry/").unwrap().count() == 620
    })
    .await;
    group.propose("after", 20, 0).await;
    group.all_hold(640).await;
    group.stop(away).await;
    group.restart(away).await;
    group.all_hold(640).await;
    group.stop_all().await;
}

/// Whoever leads may lack records that a follower has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_fetches_what_its_archive_lacks_from_a_follower() {
    let mut group = Group::start().await;
    group.propose("kept", 250, 0).await;
    group.all_hold(250).await;
    for position in 0..3 {
        group.stop(position).await;
    }
    for id in ["1", "2"] {
        std::fs::remove_dir_all(group.dir.path().join(id).join("archive/100")).unwrap();
    }
    group.restart(0).await;
    group.restart(1).await;
    let leader = group.leader().await;
    assert!(group.node(leader).replica.archive().has_gap().unwrap());
    group.restart(2).await;
    eventually("every archive is whole", || {
        group.running().all(|node| {
            let archive = node.replica.archive();
            !archive.has_gap().unwrap() && archive.scan(b"entry/").unwrap().count() == 250
        })
    })
    .await;
    group.stop_all().await;
}
