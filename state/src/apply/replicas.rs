//! Members of the Raft group come and go. Ids come from a counter, so none is given twice.

use super::{Answer, not_found};
use crate::{Cluster, Code, Refusal, Replica, ReplicaId, Reply};

/// More voters only make commits slower.
const REPLICAS: usize = 7;
const ADDR_BYTES: usize = 255;

impl Cluster {
    pub(super) fn admit_replica(&mut self, id: Option<ReplicaId>, addr: &str) -> Answer {
        let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        if addr.len() > ADDR_BYTES || port.is_none_or(|port| port == 0) {
            return Err(Refusal::new(
                Code::Invalid,
                format!("addr: {addr:?} is no address; give host:port"),
            ));
        }
        if let Some(known) = self.replicas.values().find(|replica| replica.addr == addr) {
            if id == Some(known.id) {
                return Ok(Reply::Replica(known.id)); // the leader records it again
            }
            // Giving the same id out again would let an empty folder vote in the name of a full one.
            return Err(Refusal::new(
                Code::Conflict,
                format!(
                    "addr: replica {0} has {addr}; take it out first: rowen cluster remove {0}",
                    known.id
                ),
            ));
        }
        if self.replicas.len() >= REPLICAS {
            return Err(Refusal::new(
                Code::Exhausted,
                format!("the cluster has {REPLICAS} replicas already; remove one first"),
            ));
        }
        let next = ReplicaId(self.meta.last_replica + 1);
        let id = id.unwrap_or(next);
        if id < next {
            return Err(Refusal::new(
                Code::Conflict,
                format!("replica id {id} was given before; no id is given twice"),
            ));
        }
        self.meta.last_replica = id.0;
        let admitted_ms = self.meta.now_ms;
        self.replicas.insert(id, Replica { id, addr: addr.to_owned(), admitted_ms });
        Ok(Reply::Replica(id))
    }

    pub(super) fn remove_replica(&mut self, id: ReplicaId) -> Answer {
        if !self.replicas.contains(id) {
            return Err(not_found("replica", id));
        }
        if self.replicas.len() == 1 {
            return Err(Refusal::new(
                Code::Conflict,
                "it is the last replica; its data would be gone",
            ));
        }
        self.replicas.remove(id);
        Ok(Reply::Done)
    }
}
