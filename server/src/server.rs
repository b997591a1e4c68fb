//! What every service of a replica shares: proposing, reading, stamping.

use std::sync::Arc;

use rowen_planted::{Bug, planted};
use rowen_raft::{Member, ProposeError, Replica};
use rowen_state::{Cluster, Code, Command, Entry, Reply, RequestId, codec};
use tokio::sync::watch;
use tonic::{Status, metadata::MetadataValue};

use crate::{
    agents::Sessions,
    auth::Principal,
    checkpoints::Checkpoints,
    clock::Clock,
    config::{Config, Timing},
    core::Answer,
    machine::Feed,
    peers::Peers,
    versions,
};

/// The metadata key that names the leader in a refusal.
const LEADER_KEY: &str = "rowen-leader";

/// One running replica.
pub(crate) struct Server {
    pub(crate) config: Config,
    pub(crate) replica: Replica,
    pub(crate) feed: Feed,
    pub(crate) clock: Clock,
    pub(crate) sessions: Sessions,
    pub(crate) peers: Peers,
    pub(crate) checkpoints: Arc<Checkpoints>,
    /// Held by an operator's change from reading the timing until the changed one is in the state:
    /// two at once would each put the other's fields back.
    pub(crate) changing_timing: tokio::sync::Mutex<()>,
    /// Why this replica must stop serving.
    pub(crate) stopped: watch::Sender<Option<String>>,
}

/// A command that was carried out.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) index: u64,
    pub(crate) reply: Reply,
}

impl Server {
    pub(crate) fn timing(&self) -> &Timing {
        &self.config.timing
    }

    /// Puts a command into the log and waits until it is applied here.
    pub(crate) async fn propose(
        &self,
        principal: &Principal,
        request: Option<RequestId>,
        command: Command,
    ) -> Result<Done, Status> {
        let Some(at_ms) = self.clock.now_ms() else { return Err(self.not_leading()) };
        let version = versions::of_command(self, &command).await?;
        let entry = Entry { at_ms, principal: principal.name.clone(), request, command };
        let bytes = codec::encode(version, entry).map_err(|error| {
            Status::invalid_argument(format!("request: {error}; make it smaller"))
        })?;
        let committed =
            self.replica.propose(bytes).await.map_err(|error| propose_status(&error))?;
        let answer: Answer = codec::decode(&committed.reply).map_err(|error| {
            Status::internal(format!("answer of entry {}: {error}", committed.index))
        })?;
        match answer {
            Ok(reply) => Ok(Done { index: committed.index, reply }),
            Err(refusal) => Err(refusal_status(refusal.code, refusal.message)),
        }
    }

    /// The state, at least as new as everything acknowledged before this call. Only the leader has
    /// it: for what is then proposed. Reads for others: `read.rs`.
    pub(crate) async fn read(&self) -> Result<Arc<Cluster>, Status> {
        if !planted(Bug::StaleRead) {
            self.replica.read_index().await.map_err(|error| propose_status(&error))?;
        }
        Ok(self.feed.views.borrow().clone())
    }

    /// What agents fence leaders by: it rises with every leader, and with every restore
    /// from a backup, which may start with a lower Raft term than agents have seen.
    pub(crate) fn fence(&self, term: u64) -> u64 {
        (self.view().meta().incarnation << 32) | term
    }

    /// Who leads, for a caller that thought this replica did. One that has only just been
    /// elected has no clock yet and says "try again".
    pub(crate) fn not_leading(&self) -> Status {
        let leadership = self.replica.leadership().borrow().clone();
        not_leader(leadership.leader.filter(|_| !leadership.is_leader).as_ref())
    }

    /// Makes this replica stop serving; the process ends with `why`.
    pub(crate) fn stop(&self, why: String) {
        tracing::error!(why, "this replica stops");
        self.stopped.send_replace(Some(why));
    }

    /// The state as this replica last saw it.
    pub(crate) fn view(&self) -> Arc<Cluster> {
        self.feed.views.borrow().clone()
    }
}

pub(crate) fn refusal_status(code: Code, message: String) -> Status {
    match code {
        Code::Invalid => Status::invalid_argument(message),
        Code::NotFound => Status::not_found(message),
        Code::Conflict => Status::failed_precondition(message),
        Code::Exhausted => Status::resource_exhausted(message),
        Code::Expired => Status::aborted(message),
    }
}

pub(crate) fn propose_status(error: &ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { leader } => not_leader(leader.as_ref()),
        ProposeError::TooLarge { .. } => Status::invalid_argument(error.to_string()),
        // No answers to the request, `Busy` neither: an earlier try of it may have been carried out,
        // so that only asking again says what became of it.
        _ => Status::unavailable(error.to_string()),
    }
}

/// "Go there": every client and agent understands it.
pub(crate) fn not_leader(leader: Option<&Member>) -> Status {
    let Some(leader) = leader else {
        return Status::unavailable("the cluster has no leader now; try again");
    };
    let mut status =
        Status::unavailable(format!("the leader is replica {} at {}", leader.id.0, leader.addr));
    if let Ok(addr) = MetadataValue::try_from(leader.addr.as_str()) {
        status.metadata_mut().insert(LEADER_KEY, addr);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client takes a refusal as its answer. Its request may be in the log all the same when only
    /// the replica it asked again was busy; chaos seed 31 told it both.
    #[test]
    fn a_busy_log_is_no_answer() {
        let busy = propose_status(&ProposeError::Busy { pending_bytes: 1 });
        assert_eq!(busy.code(), tonic::Code::Unavailable, "{busy}");
        let refused = refusal_status(Code::Exhausted, "the table is full".into());
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    }
}
