//! What the replica tests share: a state machine whose state tells every entry it saw.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rowen_raft::{Applied, ArchiveRecord, Member, ReplicaConfig, ReplicaId, StateMachine};

/// The entries applied so far, and how often `applied` was called.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) entries: Vec<Vec<u8>>,
    pub(crate) batches: u64,
    pub(crate) restored: u64,
}

/// Keeps all entries; answers with their count; archives each under `entry/<its bytes>`.
#[derive(Clone, Default)]
pub(crate) struct Keeper(pub Arc<Mutex<Seen>>);

impl Keeper {
    pub(crate) fn entries(&self) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().entries.clone()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap().entries.len()
    }

    pub(crate) fn restored(&self) -> u64 {
        self.0.lock().unwrap().restored
    }
}

impl StateMachine for Keeper {
    fn apply(&mut self, index: u64, entry: &[u8]) -> Applied {
        let mut seen = self.0.lock().unwrap();
        seen.entries.push(entry.to_vec());
        let record = ArchiveRecord {
            key: [b"entry/", entry].concat(),
            value: index.to_string().into_bytes(),
        };
        Applied { reply: seen.entries.len().to_string().into_bytes(), records: vec![record] }
    }

    fn applied(&mut self, _index: u64) {
        self.0.lock().unwrap().batches += 1;
    }

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let entries = self.entries();
        Box::new(move || {
            let mut out = Vec::new();
            for entry in entries {
                out.extend_from_slice(&(entry.len() as u32).to_le_bytes());
                out.extend_from_slice(&entry);
            }
            out
        })
    }

    fn restore(&mut self, _index: u64, mut snapshot: &[u8]) -> Result<(), String> {
        let mut entries = Vec::new();
        while let Some((length, rest)) = snapshot.split_first_chunk() {
            let length = u32::from_le_bytes(*length) as usize;
            let (entry, rest) = rest.split_at_checked(length).ok_or("cut short")?;
            entries.push(entry.to_vec());
            snapshot = rest;
        }
        let mut seen = self.0.lock().unwrap();
        seen.entries = entries;
        seen.restored += 1;
        Ok(())
    }
}

pub(crate) fn config(id: u64, dir: &Path) -> ReplicaConfig {
    ReplicaConfig::new(ReplicaId(id), dir)
}

pub(crate) fn member(id: u64, addr: &str) -> Member {
    Member { id: ReplicaId(id), addr: addr.into() }
}

/// Asks again and again until it is so.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
