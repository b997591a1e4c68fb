//! A restored folder: one member, the state of the backup, an archive, a log that goes on behind it.

use crate::{
    common::{Keeper, config, eventually, member},
    lone::lone,
};
use rowen_raft::{ArchiveRecord, OpenError, Replica, StateMachine, seed};

/// What a keeper with these entries would write into a snapshot.
fn snapshot(entries: &[&[u8]]) -> Vec<u8> {
    let keeper = Keeper::default();
    keeper.0.lock().unwrap().entries = entries.iter().map(|entry| entry.to_vec()).collect();
    keeper.snapshot()()
}

fn records(count: u32) -> impl Iterator<Item = ArchiveRecord> {
    (0..count).map(|number| ArchiveRecord {
        key: format!("entry/{number:05}").into_bytes(),
        value: number.to_le_bytes().to_vec(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seeded_folder_opens_as_a_group_of_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(7, &dir.path().join("data"));
    let state = snapshot(&[b"one", b"two"]);
    let address = member(7, "127.0.0.1:1");
    seed(&config, 41_000, &state, records(2_500), address.clone()).unwrap();

    let (replica, keeper) = lone(config.clone()).await;
    assert!(replica.is_initialized().await.unwrap());
    assert_eq!(keeper.entries(), [b"one".to_vec(), b"two".to_vec()]);
    assert_eq!(replica.metrics().members, std::slice::from_ref(&address));
    assert_eq!(replica.archive().scan(b"entry/").unwrap().count(), 2_500);
    assert!(!replica.archive().has_gap().unwrap());
    let committed = replica.propose(b"three".to_vec()).await.unwrap();
    assert!(committed.index > 41_000, "{committed:?}");
    assert_eq!(committed.reply, b"3");
    assert!(replica.archive().get(b"entry/three").unwrap().is_some());
    replica.request_snapshot().await.unwrap();
    eventually("a snapshot", || replica.metrics().snapshot > Some(41_000)).await;
    replica.shutdown().await;

    let (replica, keeper) = lone(config.clone()).await;
    assert_eq!(keeper.len(), 3, "it goes on like any other");
    replica.shutdown().await;
    let again = seed(&config, 1, &state, records(0), address).unwrap_err().to_string();
    assert!(again.contains("is not empty: choose another folder"), "{again}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_seeded_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(1, &dir.path().join("data"));
    let wrong = seed(&config, 5, b"", records(0), member(2, "127.0.0.1:1")).unwrap_err();
    assert_eq!(wrong.to_string(), "id: the member is replica 2, the folder's replica 1");
    seed(&config, 5, &snapshot(&[]), records(0), member(1, "127.0.0.1:1")).unwrap();
    // As if it had died before the end.
    std::fs::write(config.dir.join("UNFINISHED"), b"").unwrap();
    let refused = Replica::open(config, Keeper::default()).await.err().unwrap();
    assert!(matches!(refused, OpenError::Config { field: "dir", .. }), "{refused}");
}
