//! Makes the Raft group follow the list of replicas in the state, one change at a time.
//!
//! The list is the operator's wish and is itself a log entry, so a leader that comes in
//! the middle of a change carries it on.

use rowen_raft::{Member, MemberStatus, RaftError};
use rowen_state::{Cluster, Command, ReplicaId};
use tonic::Status;

use crate::{auth::Principal, server::Server};

/// A learner that lacks at most so many entries has caught up: what it lacks reaches it
/// while its promotion is committed.
const CAUGHT_UP_ENTRIES: u64 = 1_000;

/// The next change that brings the group nearer to the list.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    /// The state does not know of a member yet: the group is older than the list.
    Record(Member),
    AddLearner(Member),
    Promote(rowen_raft::ReplicaId),
    Remove(rowen_raft::ReplicaId),
    /// A leader that is to go hands over first; its successor removes it.
    HandOver(rowen_raft::ReplicaId),
}

fn next_change(
    wanted: &Cluster,
    members: &[MemberStatus],
    own: rowen_raft::ReplicaId,
    last_log: u64,
) -> Option<Change> {
    let listed = |id: rowen_raft::ReplicaId| wanted.replicas().contains(ReplicaId(id.0));
    if let Some(member) = unrecorded(wanted, members).next() {
        return Some(Change::Record(member));
    }
    let present = |id: ReplicaId| members.iter().any(|status| status.member.id.0 == id.0);
    if let Some(new) = wanted.replicas().values().find(|replica| !present(replica.id)) {
        let id = rowen_raft::ReplicaId(new.id.0);
        return Some(Change::AddLearner(Member { id, addr: new.addr.clone() }));
    }
    let caught_up = |status: &&MemberStatus| {
        !status.voter
            && status.matched.is_some_and(|matched| matched + CAUGHT_UP_ENTRIES >= last_log)
    };
    if let Some(learner) = members.iter().filter(|status| listed(status.member.id)).find(caught_up)
    {
        return Some(Change::Promote(learner.member.id));
    }
    let gone = members.iter().find(|status| !listed(status.member.id))?;
    if gone.member.id != own {
        return Some(Change::Remove(gone.member.id));
    }
    successor(members, own).map(Change::HandOver)
}

/// Members of the group that the state has never known of, by id. Ids come from a counter in the
/// state, so one above it was never listed, and one below it that is not listed was taken out.
fn unrecorded(wanted: &Cluster, members: &[MemberStatus]) -> impl Iterator<Item = Member> + use<> {
    let last = wanted.meta().last_replica;
    let mut unknown: Vec<Member> = members
        .iter()
        .filter(|status| status.member.id.0 > last)
        .map(|status| status.member.clone())
        .collect();
    unknown.sort_by_key(|member| member.id);
    unknown.into_iter()
}

/// Lists every member before a new one gets its id: it could be given one that a member has.
pub(crate) async fn record(server: &Server) -> Result<(), Status> {
    let view = server.read().await?;
    for member in unrecorded(&view, &server.replica.members()) {
        record_one(server, member).await?;
    }
    Ok(())
}

async fn record_one(server: &Server, member: Member) -> Result<(), Status> {
    let command = Command::AdmitReplica { id: Some(ReplicaId(member.id.0)), addr: member.addr };
    server.propose(&Principal::own("leader"), None, command).await.map(drop)
}

/// The voter with most of the log, other than `own`.
pub(crate) fn successor(
    members: &[MemberStatus],
    own: rowen_raft::ReplicaId,
) -> Option<rowen_raft::ReplicaId> {
    let others = members.iter().filter(|status| status.voter && status.member.id != own);
    others.max_by_key(|status| status.matched).map(|status| status.member.id)
}

/// Makes the next change, if one is due. Only the leader's call has an effect.
pub(crate) async fn step(server: &Server) {
    let view = server.view();
    let replica = &server.replica;
    let last_log = replica.metrics().last_log.unwrap_or(0);
    let Some(change) = next_change(&view, &replica.members(), replica.id(), last_log) else {
        return;
    };
    tracing::info!(?change, "changing the group");
    let result = match change {
        Change::Record(member) => record_one(server, member)
            .await
            .map_err(|status| RaftError::Members(status.message().to_owned())),
        Change::AddLearner(member) => replica.add_learner(member).await,
        Change::Promote(id) => replica.promote(id).await,
        Change::Remove(id) => replica.remove(id).await,
        Change::HandOver(to) => replica.transfer_leadership(to).await,
    };
    if let Err(error) = result {
        tracing::warn!(%error, "the group did not change; it is tried again");
    }
}
