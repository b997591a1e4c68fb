//! Who is in the group, and one change of that at a time. Never decides who should be.

use std::collections::BTreeSet;

use openraft::{
    BasicNode, ChangeMembers,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, RaftError as CoreError},
};

use crate::{
    Member, RaftError, Replica, ReplicaId,
    replica::{leader_of, member},
    types::TypeConfig,
};

/// One member, as this replica sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Who.
    pub member: Member,
    /// Whether it votes. A learner only receives the log.
    pub voter: bool,
    /// How much of the log it has on disk; only the leader knows.
    pub matched: Option<u64>,
}

type WriteError = CoreError<TypeConfig, ClientWriteError<TypeConfig>>;

impl Replica {
    /// Everybody in the group, by id.
    pub fn members(&self) -> Vec<MemberStatus> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let membership = &metrics.membership_config;
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let nodes = membership.nodes();
        nodes
            .map(|(id, node)| {
                let matched = metrics.replication.as_ref().and_then(|all| all.get(id));
                MemberStatus {
                    member: member(*id, node),
                    voter: voters.contains(id),
                    matched: matched
                        .and_then(|log_id| log_id.as_ref())
                        .map(|log_id| log_id.index()),
                }
            })
            .collect()
    }

    /// Begins to send the log to a new member, which does not vote yet. Its id must never have
    /// been another replica's.
    pub async fn add_learner(&self, member: Member) -> Result<(), RaftError> {
        let node = BasicNode { addr: member.addr };
        let written = self.raft().add_learner(member.id.0, node, false).await;
        written.map(drop).map_err(|error| self.membership_error(error))
    }

    /// Gives a learner its vote. Safe at any time; quick once it has caught up.
    pub async fn promote(&self, id: ReplicaId) -> Result<(), RaftError> {
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id.0]))).await
    }

    /// Takes a member out of the group. The leader may take out itself: it then steps down.
    pub async fn remove(&self, id: ReplicaId) -> Result<(), RaftError> {
        let voter = self.members().iter().any(|status| status.member.id == id && status.voter);
        let ids = BTreeSet::from([id.0]);
        self.change(if voter {
            ChangeMembers::RemoveVoters(ids)
        } else {
            ChangeMembers::RemoveNodes(ids)
        })
        .await
    }

    async fn change(&self, change: ChangeMembers<u64, BasicNode>) -> Result<(), RaftError> {
        // Not retained: a removed voter does not stay on as a learner.
        let written = self.raft().change_membership(change, false).await;
        written.map(drop).map_err(|error| self.membership_error(error))
    }

    fn membership_error(&self, error: WriteError) -> RaftError {
        match error {
            CoreError::Fatal(fatal) => RaftError::Stopped(self.why_stopped(&fatal)),
            CoreError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                RaftError::NotLeader { leader: leader_of(to) }
            }
            CoreError::APIError(error) => RaftError::Members(error.to_string()),
        }
    }
}
