//! The whole state as bytes, and back.

use std::sync::Arc;

use rowen_planted::{Bug, planted};
use rowen_topology::FabricRecord;
use serde::{Deserialize, Serialize};

use crate::{
    Allocation, Cluster, Filler, Health, Job, Node, Part, Queue, Replica, Table,
    cluster::Meta,
    codec::{self, Body, CodecError, Kind, Row, Stored},
    ledger::UsageKey,
    requests::{Client, Requests},
    v1::SnapshotV1,
};

/// The newest schema of a snapshot. Derived parts are not in it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Snapshot {
    pub(crate) state_hash: u128,
    pub(crate) meta: Meta,
    pub(crate) fabric: FabricRecord,
    pub(crate) nodes: Vec<Node>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) fillers: Vec<Filler>,
    pub(crate) allocations: Vec<Allocation>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) usage: Vec<(UsageKey, u64)>,
    pub(crate) requests: (u128, Vec<(String, Client)>),
    pub(crate) health: Vec<(Part, Health)>,
    pub(crate) queues: Vec<Queue>,
}

impl Stored for Snapshot {
    const KIND: Kind = Kind::Snapshot;

    fn write(self, schema: u8, body: Body) -> Result<Vec<u8>, CodecError> {
        match schema {
            1 => body.put(&SnapshotV1::of(self)),
            _ => body.put(&self),
        }
    }

    fn read(schema: u8, body: &[u8]) -> Result<Snapshot, CodecError> {
        let snapshot: Snapshot = match schema {
            1 => codec::take::<SnapshotV1>(Kind::Snapshot, body)?.into(),
            _ => codec::take(Kind::Snapshot, body)?,
        };
        match snapshot.meta.version {
            version if version == u32::from(schema) => Ok(snapshot),
            version => Err(CodecError::Body(format!("a state of version {version} in {schema}"))),
        }
    }
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
    /// The state as a record of the cluster's version. Slow for large states: call it off the apply
    /// thread, on a clone.
    pub fn to_snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let snapshot = Snapshot {
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
            health: self
                .health
                .rows()
                .iter()
                .map(|(part, row)| (part.clone(), row.clone()))
                .collect(),
            queues: self.queues.values().cloned().collect(),
        };
        Ok(codec::encode(self.meta.version, snapshot)?)
    }

    /// The state of a record; its hash must come out as it went in.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Cluster, SnapshotError> {
        let snapshot: Snapshot = codec::decode(bytes)?;
        if snapshot.fabric != FabricRecord::default() {
            let checked = snapshot.fabric.check_limits();
            checked.map_err(|error| SnapshotError::Fabric(error.to_string()))?;
        }
        let version = snapshot.meta.version;
        let mut cluster = Cluster::new(snapshot.meta.incarnation);
        cluster.meta = snapshot.meta;
        cluster.fabric = Arc::new(snapshot.fabric);
        fill(&mut cluster.nodes, snapshot.nodes, version, |node| node.id);
        fill(&mut cluster.jobs, snapshot.jobs, version, |job| job.id);
        fill(&mut cluster.fillers, snapshot.fillers, version, |filler| filler.id);
        fill(&mut cluster.allocations, snapshot.allocations, version, |allocation| allocation.id);
        fill(&mut cluster.replicas, snapshot.replicas, version, |replica| replica.id);
        fill(&mut cluster.queues, snapshot.queues, version, |queue| queue.id);
        cluster.usage = snapshot.usage.into_iter().collect();
        let (digest, clients) = snapshot.requests;
        cluster.requests = Requests::from_parts(digest, clients);
        for (part, health) in snapshot.health {
            cluster.health.set(&part, health);
        }
        cluster.rehash_derived();
        let restored = cluster.state_hash();
        if restored != snapshot.state_hash {
            return Err(SnapshotError::Hash { restored, taken: snapshot.state_hash });
        }
        cluster.rebuild_derived();
        Ok(cluster)
    }
}

fn fill<K: Ord + Copy + std::fmt::Debug + Serialize, V: Clone + Row>(
    table: &mut Table<K, V>,
    rows: Vec<V>,
    version: u32,
    key: impl Fn(&V) -> K,
) {
    for row in rows {
        table.insert(key(&row), row);
    }
    table.settle(version);
}
