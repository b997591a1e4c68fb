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

/// Whether the group is what the list says, votes aside.
pub(crate) fn settled(wanted: &Cluster, members: &[MemberStatus]) -> bool {
    let listed = |status: &MemberStatus| wanted.replicas().contains(ReplicaId(status.member.id.0));
    members.len() == wanted.replicas().len() && members.iter().all(listed)
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

#[cfg(test)]
mod tests {
    use rowen_state::{Entry, codec};

    use super::*;
    use crate::core::Core;

    const OWN: rowen_raft::ReplicaId = rowen_raft::ReplicaId(1);

    fn member(id: u64, voter: bool, matched: u64) -> MemberStatus {
        let id = rowen_raft::ReplicaId(id);
        let member = Member { id, addr: format!("10.0.0.{}:7077", id.0) };
        MemberStatus { member, voter, matched: Some(matched) }
    }

    fn core_after(commands: Vec<Command>) -> Core {
        let mut core = Core::default();
        for (at, command) in commands.into_iter().enumerate() {
            let principal = "test".to_owned();
            let entry = Entry { at_ms: 1_000, principal, request: None, command };
            let bytes = codec::encode(1, entry).unwrap();
            core.apply(at as u64 + 1, &bytes).unwrap().answer.unwrap();
        }
        core
    }

    fn admit(id: Option<u64>, host: u64) -> Command {
        Command::AdmitReplica { id: id.map(ReplicaId), addr: format!("10.0.0.{host}:7077") }
    }

    fn next(core: &Core, members: &[MemberStatus]) -> Option<Change> {
        next_change(core.cluster(), members, OWN, 5_000)
    }

    #[test]
    fn members_that_were_never_listed_are_listed_first_and_none_is_taken_out() {
        let group = [member(2, true, 5_000), member(1, true, 5_000)];
        let record = |at: usize| Some(Change::Record(group[at].member.clone()));
        assert_eq!(next(&core_after(vec![]), &group), record(1));
        assert_eq!(next(&core_after(vec![admit(Some(1), 1)]), &group), record(0));
        let both = core_after(vec![admit(Some(1), 1), admit(Some(2), 2)]);
        assert_eq!(next(&both, &group), None);
    }

    #[test]
    fn one_learns_then_votes_and_one_that_was_taken_out_leaves() {
        let mut commands = vec![admit(Some(1), 1), admit(None, 2)];
        let joined = core_after(commands.clone());
        let alone = [member(1, true, 5_000)];
        assert!(matches!(next(&joined, &alone), Some(Change::AddLearner(new)) if new.id.0 == 2));
        let behind = [member(1, true, 5_000), member(2, false, 10)];
        assert_eq!(next(&joined, &behind), None, "it catches up");
        let ready = [member(1, true, 5_000), member(2, false, 4_990)];
        assert_eq!(next(&joined, &ready), Some(Change::Promote(rowen_raft::ReplicaId(2))));
        let both = [member(1, true, 5_000), member(2, true, 5_000)];
        commands.push(Command::RemoveReplica(ReplicaId(1)));
        let handed = Some(Change::HandOver(rowen_raft::ReplicaId(2)));
        assert_eq!(next(&core_after(commands.clone()), &both), handed);
        commands.pop();
        commands.push(Command::RemoveReplica(ReplicaId(2)));
        let removed = Some(Change::Remove(rowen_raft::ReplicaId(2)));
        assert_eq!(next(&core_after(commands), &both), removed);
    }
}
