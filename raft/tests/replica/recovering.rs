//! A replica of three whose last write is uncertain after a power cut: it comes back, does not
//! vote before it has the leader's log again, then votes. A lone one stays refused.

use std::{path::Path, sync::Arc, time::Duration};

use crate::{
    common::{Keeper, config, eventually, member},
    group::{Node, listen, listen_again, small},
    lone::ready,
};
use rowen_raft::{
    OpenError, Replica, ReplicaId, WalError, dial_tcp,
    disk::{Disk, RealDisk},
    sim_disk::SimDisk,
};

/// Cuts the power so that the last write is damaged and the synced mark, which is itself never
/// synced on the way, tells nothing.
pub(crate) fn tear(disk: &SimDisk, log: &Path) {
    disk.cut_power();
    let names = disk.list(log).unwrap();
    let last = log.join(names.iter().rfind(|name| name.ends_with(".wal")).unwrap());
    let bytes = disk.contents(&last).unwrap();
    disk.flip(&last, bytes.iter().rposition(|byte| *byte != 0).unwrap(), 1);
    let mark = disk.open(&log.join("synced")).unwrap();
    mark.write_at(&[0; 1_024], 0).unwrap();
    mark.sync_data().unwrap();
    disk.cut_power();
}

struct Three {
    dir: tempfile::TempDir,
    /// Of the third.
    disk: SimDisk,
    addrs: Vec<String>,
    nodes: [Option<Node>; 3],
}

impl Three {
    async fn start() -> Three {
        let dir = tempfile::tempdir().unwrap();
        let mut three =
            Three { dir, disk: SimDisk::new(5), addrs: Vec::new(), nodes: [None, None, None] };
        for position in 0..3 {
            let (listener, addr) = listen();
            three.addrs.push(addr);
            three.open(position, listener).await;
        }
        let members = three.addrs.iter().zip(1..).map(|(addr, id)| member(id, addr)).collect();
        three.node(0).replica.initialize(members).await.unwrap();
        eventually("a leader", || three.node(0).is_ready_leader()).await;
        three
    }

    async fn open(&mut self, position: usize, listener: std::net::TcpListener) {
        let config = small(position as u64 + 1, self.dir.path());
        let disk: Arc<dyn Disk> = match position {
            2 => Arc::new(self.disk.clone()),
            _ => Arc::new(RealDisk::default()),
        };
        self.nodes[position] = Some(Node::start_on(config, listener, disk).await.unwrap());
    }

    async fn reopen(&mut self, position: usize) {
        let listener = listen_again(&self.addrs[position]).await;
        self.open(position, listener).await;
    }

    async fn stop(&mut self, position: usize) {
        self.nodes[position].take().unwrap().stop().await;
    }

    fn node(&self, position: usize) -> &Node {
        self.nodes[position].as_ref().unwrap()
    }

    fn leader(&self) -> Option<usize> {
        self.nodes.iter().position(|node| node.as_ref().is_some_and(Node::is_ready_leader))
    }

    async fn propose(&self, label: &str, count: usize) {
        eventually("a leader", || self.leader().is_some()).await;
        let leader = self.node(self.leader().unwrap());
        for number in 0..count {
            let entry = format!("{label}-{number}").into_bytes();
            leader.replica.propose(entry).await.unwrap();
        }
    }

    fn all_hold(&self, count: usize) -> bool {
        self.nodes.iter().flatten().all(|node| node.keeper.len() == count)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_votes_only_once_it_has_the_log_again() {
    let mut three = Three::start().await;
    three.propose("first", 50).await;
    eventually("replicated", || three.all_hold(50)).await;
    let log = three.dir.path().join("3").join("log");
    let held = three.node(2).replica.metrics().last_log;

    tear(&three.disk, &log);
    three.stop(2).await;
    three.reopen(2).await;
    let metrics = three.node(2).replica.metrics();
    assert!(metrics.recovering && metrics.last_log < held, "{metrics:?}, had {held:?}");
    // The leader, which had counted it, sends the end again. That is not enough: more may have
    // been there.
    eventually("sent again", || three.node(2).replica.metrics().last_log >= held).await;
    assert!(three.node(2).replica.metrics().recovering);

    // It stays so over a restart, and without its vote nobody is elected.
    three.stop(2).await;
    three.reopen(2).await;
    let leader = three.leader().unwrap();
    three.stop(leader).await;
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    assert!(three.node(2).replica.metrics().recovering);
    assert_eq!(three.leader(), None, "nobody is elected by a replica that forgot");
    three.reopen(leader).await;

    three.propose("second", 100).await;
    eventually("it votes again", || !three.node(2).replica.metrics().recovering).await;
    eventually("replicated", || three.all_hold(150)).await;
    assert!(!three.disk.list(&three.dir.path().join("3")).unwrap().contains(&"recovering".into()));
    // Now its vote counts: of the two others one goes away.
    let leader = three.leader().unwrap();
    if leader == 2 {
        three.node(2).replica.transfer_leadership(ReplicaId(1)).await.unwrap();
        eventually("handed over", || three.leader() == Some(0)).await;
    }
    three.stop(three.leader().unwrap()).await;
    three.propose("third", 10).await;
    eventually("replicated", || three.all_hold(160)).await;
    for node in three.nodes.into_iter().flatten() {
        node.stop().await;
    }
}

#[tokio::test]
async fn a_lone_replica_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new(9);
    let open = || {
        let disk = Arc::new(disk.clone());
        Replica::open_on(config(1, dir.path()), Keeper::default(), disk, dial_tcp())
    };
    let replica = open().await.unwrap();
    replica.initialize(vec![member(1, "127.0.0.1:1")]).await.unwrap();
    ready(&replica).await;
    replica.propose(b"kept".to_vec()).await.unwrap();
    tear(&disk, &dir.path().join("log"));
    replica.shutdown().await;
    for _ in 0..2 {
        let refused = open().await.err().unwrap();
        assert!(matches!(refused, OpenError::Log(WalError::TornTail { .. })), "{refused}");
        disk.kill_process();
    }
}
