//! One replica on a real disk: what it answered is still there after a restart, concurrent
//! proposals share syncs, limits hold, a folder has one user.

use std::time::Duration;

use crate::common::{Keeper, config, eventually, member};
use rowen_raft::{OpenError, ProposeError, RaftError, Replica, ReplicaConfig};

/// Opens a lone replica, forms its group where there is none, waits until it may plan.
pub(crate) async fn lone(config: ReplicaConfig) -> (Replica, Keeper) {
    let keeper = Keeper::default();
    let replica = Replica::open(config, keeper.clone()).await.unwrap();
    if !replica.is_initialized().await.unwrap() {
        replica.initialize(vec![member(replica.id().0, "127.0.0.1:1")]).await.unwrap();
    }
    ready(&replica).await;
    (replica, keeper)
}

/// Waits until the replica may plan.
pub(crate) async fn ready(replica: &Replica) {
    let mut leadership = replica.leadership();
    let ready = leadership.wait_for(|leadership| leadership.ready);
    tokio::time::timeout(Duration::from_secs(60), ready).await.expect("a leader in time").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_keeps_state() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, _) = lone(config(1, dir.path())).await;
    for number in 0..100_u32 {
        let committed = replica.propose(number.to_le_bytes().to_vec()).await.unwrap();
        assert_eq!(committed.reply, (number + 1).to_string().into_bytes());
    }
    let before = replica.metrics();
    replica.shutdown().await;
    assert!(replica.failed().borrow().is_none(), "a shutdown is no failure");

    let (replica, keeper) = lone(config(1, dir.path())).await;
    let entries: Vec<Vec<u8>> = (0..100_u32).map(|number| number.to_le_bytes().to_vec()).collect();
    assert_eq!(keeper.entries(), entries);
    assert!(replica.metrics().term > before.term);
    let read = replica.read_index().await.unwrap();
    assert!(read >= before.applied.unwrap());
    let again = replica.initialize(vec![member(1, "127.0.0.1:1")]).await;
    assert_eq!(again, Err(RaftError::AlreadyInitialized));
    replica.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_and_purging_survive_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let small = || {
        let mut small = config(1, dir.path());
        (small.snapshot_every, small.keep_log, small.segment_bytes) = (100, 20, 8 << 10);
        small.retain_entries = 0;
        small
    };
    let mut expected = Vec::new();
    for round in 0..4_u32 {
        let (replica, keeper) = lone(small()).await;
        assert_eq!(keeper.entries(), expected, "round {round}");
        if round > 0 {
            assert!(keeper.restored() > 0, "restored from a snapshot in round {round}");
        }
        for number in 0..250_u32 {
            let entry = format!("{round}-{number}").into_bytes();
            replica.propose(entry.clone()).await.unwrap();
            expected.push(entry);
        }
        eventually("purged", || replica.metrics().purged > Some(u64::from(round) * 250 + 100))
            .await;
        let archive = replica.archive();
        assert_eq!(archive.scan(b"entry/").unwrap().count(), expected.len());
        assert!(archive.get(b"entry/0-17").unwrap().is_some());
        assert!(!archive.has_gap().unwrap());
        replica.shutdown().await;
    }
    let segments = std::fs::read_dir(dir.path().join("log")).unwrap().count();
    assert!(segments < 12, "old segments are removed, {segments} files are left");
    assert_eq!(std::fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_share_syncs() {
    const PROPOSALS: u64 = 1_000;
    let dir = tempfile::tempdir().unwrap();
    let (replica, keeper) = lone(config(1, dir.path())).await;
    let before = replica.metrics().sync_count;
    let start = std::time::Instant::now();
    let proposals = (0..PROPOSALS).map(|number| {
        let replica = replica.clone();
        tokio::spawn(async move { replica.propose(number.to_le_bytes().to_vec()).await.unwrap() })
    });
    let mut indexes = Vec::new();
    for proposal in proposals.collect::<Vec<_>>() {
        indexes.push(proposal.await.unwrap().index);
    }
    let syncs = replica.metrics().sync_count - before;
    println!("{PROPOSALS} concurrent proposals: {syncs} syncs in {:?}", start.elapsed());
    assert!(syncs < PROPOSALS / 2, "{syncs} syncs for {PROPOSALS} proposals");
    indexes.sort_unstable();
    indexes.dedup();
    assert_eq!((indexes.len() as u64, keeper.len() as u64), (PROPOSALS, PROPOSALS));
    replica.shutdown().await;
}

/// Clients that ask again when they are answered come one after the other; they go together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_wait_for_their_answers_share_syncs() {
    const CLIENTS: u64 = 32;
    const EACH: u64 = 25;
    let dir = tempfile::tempdir().unwrap();
    let (replica, keeper) = lone(config(1, dir.path())).await;
    let before = replica.metrics().sync_count;
    let clients = (0..CLIENTS).map(|client| {
        let replica = replica.clone();
        tokio::spawn(async move {
            for seq in 0..EACH {
                replica.propose((client * EACH + seq).to_le_bytes().to_vec()).await.unwrap();
            }
        })
    });
    futures::future::try_join_all(clients.collect::<Vec<_>>()).await.unwrap();
    let syncs = replica.metrics().sync_count - before;
    println!("{CLIENTS} clients, {EACH} proposals each: {syncs} syncs");
    assert!(syncs < EACH * 4, "{syncs} syncs for {EACH} rounds of {CLIENTS} proposals");
    assert_eq!(keeper.len() as u64, CLIENTS * EACH);
    replica.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let dir = tempfile::tempdir().unwrap();
    let mut limits = config(1, dir.path());
    (limits.max_entry_bytes, limits.max_pending_bytes) = (1_000, 4_000);
    let (replica, keeper) = lone(limits).await;
    let too_large = replica.propose(vec![1; 1_001]).await;
    assert_eq!(too_large, Err(ProposeError::TooLarge { bytes: 1_001, max: 1_000 }));
    let answers = futures::future::join_all((0..20).map(|_| replica.propose(vec![1; 900]))).await;
    let busy = |answer: &&Result<_, ProposeError>| matches!(answer, Err(ProposeError::Busy { .. }));
    assert!(answers.iter().filter(busy).count() > 0);
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), keeper.len());
    replica.shutdown().await;
    let stopped = replica.propose(vec![1]).await;
    assert_eq!(stopped, Err(ProposeError::Stopped("shut down".into())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_has_one_user() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, _) = lone(config(1, dir.path())).await;
    let second = Replica::open(config(1, dir.path()), Keeper::default()).await;
    assert!(matches!(second.err(), Some(OpenError::Locked { .. })));
    replica.shutdown().await;
    Replica::open(config(1, dir.path()), Keeper::default()).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_cannot_work_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = config(1, dir.path());
    wrong.max_entry_bytes = 1 << 30;
    let why = Replica::open(wrong, Keeper::default()).await.err().unwrap().to_string();
    assert_eq!(why, "max_entry_bytes: set 1 to 16777216");
    let mut wrong = config(1, dir.path());
    wrong.election_min_ms = 10;
    let why = Replica::open(wrong, Keeper::default()).await.err().unwrap().to_string();
    assert!(why.contains("election_min_ms"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_snapshot_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, _) = lone(config(1, dir.path())).await;
    replica.propose(b"kept".to_vec()).await.unwrap();
    replica.request_snapshot().await.unwrap();
    eventually("a snapshot", || replica.metrics().snapshot.is_some()).await;
    replica.shutdown().await;
    let file = std::fs::read_dir(dir.path().join("snapshots")).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(file.path()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    std::fs::write(file.path(), bytes).unwrap();
    let why = Replica::open(config(1, dir.path()), Keeper::default()).await.err().unwrap();
    let why = why.to_string();
    assert!(why.contains(file.file_name().to_str().unwrap()), "{why}");
    assert!(why.contains("crc mismatch"), "{why}");
}
