//! Reading a data folder without a replica: what replay needs is there, as far back as it was
//! promised and no further; the disk stays bounded; nothing is written.

use std::{collections::BTreeMap, path::Path};

use crate::{
    common::{Keeper, config, eventually},
    lone::lone,
};
use rowen_raft::{OpenError, ReplicaConfig, StateMachine, read_offline};

/// Every file under `dir` with its bytes.
fn contents(dir: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), std::fs::read(path).unwrap());
        }
    }
    found
}

fn bytes_under(dir: &Path) -> usize {
    contents(dir).values().map(Vec::len).sum()
}

fn small(dir: &Path) -> ReplicaConfig {
    let mut small = config(1, dir);
    (small.snapshot_every, small.keep_log, small.segment_bytes) = (100, 20, 8 << 10);
    small.retain_entries = 400;
    small
}

/// Rebuilds the state at `until` from what is on disk.
fn rebuild(dir: &Path, until: Option<u64>) -> Result<(Keeper, u64), OpenError> {
    let log = read_offline(dir)?;
    let replay = log.replay(until)?;
    let (mut keeper, mut last) = (Keeper::default(), 0);
    if let Some((index, bytes)) = replay.snapshot {
        keeper.restore(index, &bytes).unwrap();
        last = index;
    }
    for entry in replay.entries {
        let (index, bytes) = entry?;
        assert!(index > last, "in order");
        keeper.apply(index, &bytes);
        last = index;
    }
    Ok((keeper, last))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_reaches_back_over_purged_segments() {
    let dir = tempfile::tempdir().unwrap();
    let (replica, keeper) = lone(small(dir.path())).await;
    let mut indexes = Vec::new();
    for number in 0..1_500_u32 {
        indexes.push(replica.propose(format!("entry {number}").into_bytes()).await.unwrap().index);
    }
    eventually("purged", || replica.metrics().purged > Some(1_300)).await;
    let running = read_offline(dir.path()).err().unwrap();
    assert!(matches!(running, OpenError::Locked { .. }), "{running}");
    replica.shutdown().await;
    let before = contents(dir.path());

    let (rebuilt, _) = rebuild(dir.path(), None).unwrap();
    assert_eq!(rebuilt.entries(), keeper.entries());
    let mut reached = 0;
    for (position, index) in indexes.iter().enumerate().rev().step_by(37) {
        let Ok((rebuilt, last)) = rebuild(dir.path(), Some(*index)) else { break };
        assert_eq!(rebuilt.entries(), keeper.entries()[..=position], "until {index}");
        assert!(last <= *index);
        reached = indexes.last().unwrap() - index;
    }
    assert!(reached + 37 > 400, "only {reached} entries back");
    let log = read_offline(dir.path()).unwrap();
    assert!(log.snapshots().len() > 1 && log.snapshots().len() < 9, "{:?}", log.snapshots());
    assert!(log.committed() >= Some(indexes[1_400]) && log.damage().is_none());
    let too_old = rebuild(dir.path(), Some(3)).err().unwrap().to_string();
    assert!(too_old.starts_with("until: older entries are gone; set "), "{too_old}");
    let too_new = rebuild(dir.path(), Some(9_999)).err().unwrap().to_string();
    assert!(too_new.starts_with("until: the log ends at "), "{too_new}");
    drop(log);
    assert_eq!(contents(dir.path()), before, "nothing was written");

    // A copy without the lock file does as well; a flipped byte in an old segment is refused.
    std::fs::remove_file(dir.path().join("LOCK")).unwrap();
    rebuild(dir.path(), None).unwrap();
    let old = std::fs::read_dir(dir.path().join("log").join("old")).unwrap();
    let old = old.map(|entry| entry.unwrap().path()).max().unwrap();
    let mut bytes = std::fs::read(&old).unwrap();
    bytes[2_000] ^= 1;
    std::fs::write(&old, bytes).unwrap();
    let corrupt = rebuild(dir.path(), None).err().unwrap().to_string();
    assert!(corrupt.contains("corrupt") && corrupt.contains("old/"), "{corrupt}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_disk_stays_bounded() {
    const ENTRIES: u64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let mut bounded = config(1, dir.path());
    (bounded.snapshot_every, bounded.keep_log, bounded.segment_bytes) = (5_000, 500, 256 << 10);
    (bounded.retain_entries, bounded.retain_bytes) = (20_000, 2 << 20);
    let replica = rowen_raft::Replica::open(bounded.clone(), Counter(0)).await.unwrap();
    replica.initialize(vec![crate::common::member(1, "127.0.0.1:1")]).await.unwrap();
    replica.leadership().wait_for(|leadership| leadership.ready).await.unwrap();
    let propose = |replica: rowen_raft::Replica| async move {
        let mut largest = 0;
        for round in 0..ENTRIES / 600 {
            let batch = (0..600).map(|_| replica.propose(vec![7; 40]));
            futures::future::try_join_all(batch).await.unwrap();
            if round % 50 == 0 {
                largest = largest.max(bytes_under(replica_log(&bounded.dir).as_path()));
            }
        }
        (replica, largest)
    };
    let (replica, largest) = tokio::spawn(propose(replica)).await.unwrap();
    replica.shutdown().await;
    let written = ENTRIES * 100;
    println!("{ENTRIES} entries, about {written} bytes: at most {largest} bytes of log");
    // What is set aside, what is kept for peers, one snapshot's worth, and whole segments.
    assert!(largest < 6 << 20, "{largest} bytes on disk");
    let log = read_offline(dir.path()).unwrap();
    let replay = log.replay(None).unwrap();
    let (index, snapshot) = replay.snapshot.unwrap();
    let after = replay.entries.count() as u64;
    assert_eq!(u64::from_le_bytes(snapshot.try_into().unwrap()) + after, ENTRIES, "from {index}");
}

fn replica_log(dir: &Path) -> std::path::PathBuf {
    dir.join("log")
}

struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, _index: u64, _entry: &[u8]) -> rowen_raft::Applied {
        self.0 += 1;
        rowen_raft::Applied::default()
    }

    fn applied(&mut self, _index: u64) {}

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let count = self.0;
        Box::new(move || count.to_le_bytes().to_vec())
    }

    fn restore(&mut self, _index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.0 = u64::from_le_bytes(snapshot.try_into().map_err(|_| "not eight bytes")?);
        Ok(())
    }
}
