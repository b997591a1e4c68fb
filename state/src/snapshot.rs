//! The whole state as bytes, and back.

use std::sync::Arc;

use rowen_planted::{Bug, planted};
use rowen_topology::FabricRecord;
use serde::{Deserialize, Serialize};

use crate::{
    Allocation, Cluster, Filler, Job, Node, Replica, Table,
    cluster::Meta,
    codec::{self, CodecError, Kind},
    ledger::UsageKey,
    requests::{Client, Requests},
};

/// Schema 1 of a snapshot. Derived parts are not in it.
#[derive(Serialize, Deserialize)]
struct SnapshotV1 {
    state_hash: u128,
    meta: Meta,
    fabric: FabricRecord,
    nodes: Vec<Node>,
    jobs: Vec<Job>,
    fillers: Vec<Filler>,
    allocations: Vec<Allocation>,
    replicas: Vec<Replica>,
    usage: Vec<(UsageKey, u64)>,
    requests: (u128, Vec<(String, Client)>),
}

/// Why bytes are not a snapshot that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not a record, or of a newer build.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The fabric in it is not one.
    #[error("fabric of the snapshot: {0}")]
    Fabric(String),
    /// It restores to another state than it was taken of.
    #[error("the snapshot restores to state hash {restored:032x}, it was taken of {taken:032x}")]
    Hash {
        /// What came out.
        restored: u128,
        /// What went in.
        taken: u128,
    },
}

impl Cluster {
    /// The state as a record. Slow for large states: call it off the apply thread, on a clone.
    pub fn to_snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let snapshot = SnapshotV1 {
            state_hash: self.state_hash(),
            meta: self.meta.clone(),
            fabric: (*self.fabric).clone(),
            nodes: self.nodes.values().cloned().collect(),
            jobs: self.jobs.values().cloned().collect(),
            fillers: self.fillers.values().cloned().collect(),
            allocations: self.allocations.values().cloned().collect(),
            replicas: self.replicas.values().cloned().collect(),
            usage: match planted(Bug::SnapshotMissesTable) {
                false => self.usage.iter().map(|(key, gpu_ms)| (key.clone(), *gpu_ms)).collect(),
                true => Vec::new(),
            },
            requests: self.requests.to_parts(),
        };
        Ok(codec::encode(Kind::Snapshot, &snapshot)?)
    }

    /// The state of a record; its hash must come out as it went in.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Cluster, SnapshotError> {
        let snapshot: SnapshotV1 = codec::decode(Kind::Snapshot, bytes)?;
        if snapshot.fabric != FabricRecord::default() {
            let checked = snapshot.fabric.check_limits();
            checked.map_err(|error| SnapshotError::Fabric(error.to_string()))?;
        }
        let mut cluster = Cluster::new(snapshot.meta.incarnation);
        cluster.meta = snapshot.meta;
        cluster.fabric = Arc::new(snapshot.fabric);
        fill(&mut cluster.nodes, snapshot.nodes, |node| node.id);
        fill(&mut cluster.jobs, snapshot.jobs, |job| job.id);
        fill(&mut cluster.fillers, snapshot.fillers, |filler| filler.id);
        fill(&mut cluster.allocations, snapshot.allocations, |allocation| allocation.id);
        fill(&mut cluster.replicas, snapshot.replicas, |replica| replica.id);
        cluster.usage = snapshot.usage.into_iter().collect();
        let (digest, clients) = snapshot.requests;
        cluster.requests = Requests::from_parts(digest, clients);
        cluster.rehash_derived();
        let restored = cluster.state_hash();
        if restored != snapshot.state_hash {
            return Err(SnapshotError::Hash { restored, taken: snapshot.state_hash });
        }
        cluster.rebuild_derived();
        Ok(cluster)
    }
}

fn fill<K: Ord + Copy + std::fmt::Debug + Serialize, V: Clone + Serialize>(
    table: &mut Table<K, V>,
    rows: Vec<V>,
    key: impl Fn(&V) -> K,
) {
    for row in rows {
        table.insert(key(&row), row);
    }
    table.settle();
}
