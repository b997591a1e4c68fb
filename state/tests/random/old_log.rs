//! Logs that the first release wrote, with its state hash after each entry: at version 1 this build
//! must come to the same ones, or two builds side by side would split.
//!
//! `tests/golden/logs.v1` is 24 of the random sequences as that release drew them: a count (u32),
//! then index (u64), length (u32), entry, hash (u128) of each, little endian. Never written again.

use std::{fs, path::PathBuf};

use rowen_state::{Cluster, Command, Entry, ReplicaId, codec};

struct Applied {
    index: u64,
    bytes: Vec<u8>,
    hash: u128,
}

fn logs() -> Vec<Vec<Applied>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/logs.v1");
    let file = fs::read(path).expect("the golden logs are in the tree");
    let mut rest = &file[..];
    let mut take = |count: usize| {
        let (head, tail) = rest.split_at_checked(count)?;
        rest = tail;
        Some(head.to_vec())
    };
    let mut logs = Vec::new();
    while let Some(count) = take(4) {
        let count = u32::from_le_bytes(count.try_into().expect("four bytes"));
        let mut one = || {
            let index = u64::from_le_bytes(take(8)?.try_into().ok()?);
            let length = u32::from_le_bytes(take(4)?.try_into().ok()?);
            let bytes = take(length as usize)?;
            Some(Applied { index, bytes, hash: u128::from_le_bytes(take(16)?.try_into().ok()?) })
        };
        logs.push((0..count).map(|_| one().expect("a whole file")).collect());
    }
    logs
}

#[test]
fn at_version_1_every_entry_of_the_first_release_comes_to_its_hash() {
    let logs = logs();
    assert_eq!(logs.len(), 24);
    for (number, log) in logs.iter().enumerate() {
        let mut cluster = Cluster::new(1);
        for Applied { index, bytes, hash } in log {
            let entry: Entry = codec::decode(bytes).unwrap();
            assert_eq!(codec::encode(1, entry.clone()).unwrap(), *bytes, "written alike");
            cluster.apply(*index, &entry);
            let found = cluster.state_hash();
            assert_eq!(found, *hash, "log {number}, entry {index}: {entry:?}");
        }
        let snapshot = cluster.to_snapshot().unwrap();
        assert_eq!(snapshot[2], 1, "the schema");
        assert_eq!(Cluster::from_snapshot(&snapshot).unwrap().state_hash(), cluster.state_hash());
    }
}

/// The same logs with a rise in the middle: entries of before are read on, the state is sound, and
/// a snapshot of either side restores to it.
#[test]
fn a_log_that_rises_in_the_middle_goes_on() {
    for log in logs() {
        let mut cluster = Cluster::new(1);
        let middle = log.len() / 2;
        for (place, Applied { index, bytes, .. }) in log.iter().enumerate() {
            let mut entry: Entry = codec::decode(bytes).unwrap();
            if place == middle {
                let asked = (1..=100).map(ReplicaId).collect();
                entry.at_ms = cluster.now_ms();
                (entry.request, entry.command) = (None, Command::RaiseVersion { to: 2, asked });
                let bytes = codec::encode(1, entry.clone()).unwrap();
                assert_eq!(bytes[2], 2, "the first entry in the new schema");
                assert_eq!(codec::decode::<Entry>(&bytes).unwrap(), entry);
            }
            cluster.apply(*index, &entry);
        }
        assert_eq!((cluster.meta().version, cluster.verify()), (2, vec![]));
        let snapshot = cluster.to_snapshot().unwrap();
        assert_eq!(snapshot[2], 2, "the schema");
        assert_eq!(Cluster::from_snapshot(&snapshot).unwrap().state_hash(), cluster.state_hash());
    }
}
