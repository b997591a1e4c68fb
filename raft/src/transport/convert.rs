//! Messages to openraft's types and back. A message of a peer is checked here: what is missing or
//! impossible is refused with a sentence, never assumed.

use std::collections::BTreeMap;

use openraft::{
    BasicNode, EntryPayload,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, StreamAppendError, StreamAppendResult,
        TransferLeaderError, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
        VoteResponse,
    },
};
use tonic::Status;

use super::proto;
use crate::{
    codec,
    types::{
        Entry, EntryBytes, LogId, Membership, SnapshotMeta, StoredMembership, TypeConfig, Vote,
        log_id,
    },
};

pub(super) fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

pub(super) fn id_to(id: LogId) -> proto::LogId {
    proto::LogId { term: id.committed_leader_id().term, index: id.index() }
}

pub(super) fn id_from(id: proto::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(super) fn vote_to(vote: &Vote) -> proto::Vote {
    let leader = &vote.leader_id;
    proto::Vote { term: leader.term, replica: leader.voted_for, committed: vote.committed }
}

pub(super) fn vote_from(vote: Option<proto::Vote>) -> Result<Vote, Status> {
    let vote = vote.ok_or_else(|| missing("vote"))?;
    Ok(codec::new_vote(vote.term, vote.replica, vote.committed))
}

fn membership_to(membership: &Membership) -> proto::Membership {
    let configs = membership.get_joint_config().iter();
    let members = membership.nodes();
    proto::Membership {
        configs: configs.map(|c| proto::Voters { replicas: c.iter().copied().collect() }).collect(),
        members: members
            .map(|(id, node)| proto::Member { replica: *id, addr: node.addr.clone() })
            .collect(),
    }
}

fn membership_from(membership: proto::Membership) -> Result<Membership, Status> {
    let configs = membership.configs.into_iter().map(|config| config.replicas).collect();
    let members: BTreeMap<u64, BasicNode> = membership
        .members
        .into_iter()
        .map(|member| (member.replica, BasicNode { addr: member.addr }))
        .collect();
    codec::new_membership(configs, members)
        .map_err(|error| Status::invalid_argument(format!("membership: {error}")))
}

fn entry_to(entry: Entry) -> proto::Entry {
    use proto::entry::Payload;
    let payload = match entry.payload {
        EntryPayload::Blank => Payload::Blank(proto::Blank {}),
        EntryPayload::Normal(bytes) => Payload::Normal(bytes.0.to_vec()),
        EntryPayload::Membership(membership) => Payload::Membership(membership_to(&membership)),
    };
    proto::Entry { id: Some(id_to(entry.log_id)), payload: Some(payload) }
}

fn entry_from(entry: proto::Entry) -> Result<Entry, Status> {
    use proto::entry::Payload;
    let payload = match entry.payload.ok_or_else(|| missing("entries.payload"))? {
        Payload::Blank(_) => EntryPayload::Blank,
        Payload::Normal(bytes) => EntryPayload::Normal(EntryBytes(bytes.into())),
        Payload::Membership(membership) => EntryPayload::Membership(membership_from(membership)?),
    };
    let id = entry.id.ok_or_else(|| missing("entries.id"))?;
    Ok(Entry { log_id: id_from(id), payload })
}

pub(super) fn append_to(to: u64, rpc: AppendEntriesRequest<TypeConfig>) -> proto::AppendRequest {
    proto::AppendRequest {
        to,
        vote: Some(vote_to(&rpc.vote)),
        prev: rpc.prev_log_id.map(id_to),
        leader_commit: rpc.leader_commit.map(id_to),
        entries: rpc.entries.into_iter().map(entry_to).collect(),
    }
}

pub(super) fn append_from(
    rpc: proto::AppendRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Status> {
    Ok(AppendEntriesRequest {
        vote: vote_from(rpc.vote)?,
        prev_log_id: rpc.prev.map(id_from),
        leader_commit: rpc.leader_commit.map(id_from),
        entries: rpc.entries.into_iter().map(entry_from).collect::<Result<_, _>>()?,
    })
}

pub(super) fn appended_to(response: AppendEntriesResponse<TypeConfig>) -> proto::AppendResponse {
    use AppendEntriesResponse::{Conflict, HigherVote, PartialSuccess, Success};
    use proto::append_response::Outcome;
    let outcome = match response {
        Success => Some(Outcome::Success(proto::Blank {})),
        Conflict => Some(Outcome::Conflict(proto::Blank {})),
        HigherVote(vote) => Some(Outcome::HigherVote(vote_to(&vote))),
        // Nothing of it was taken: said by saying nothing.
        PartialSuccess(upto) => upto.map(|id| Outcome::Partial(id_to(id))),
    };
    proto::AppendResponse { outcome }
}

pub(super) fn appended_from(
    response: proto::AppendResponse,
) -> Result<AppendEntriesResponse<TypeConfig>, Status> {
    use AppendEntriesResponse::{Conflict, HigherVote, PartialSuccess, Success};
    use proto::append_response::Outcome;
    Ok(match response.outcome {
        Some(Outcome::Success(_)) => Success,
        Some(Outcome::Conflict(_)) => Conflict,
        Some(Outcome::HigherVote(vote)) => HigherVote(vote_from(Some(vote))?),
        Some(Outcome::Partial(id)) => PartialSuccess(Some(id_from(id))),
        None => PartialSuccess(None),
    })
}

pub(super) fn answer_to(answer: StreamAppendResult<TypeConfig>) -> proto::AppendAnswer {
    use proto::append_answer::Outcome;
    let outcome = match answer {
        Ok(Some(matched)) => Outcome::Matched(id_to(matched)),
        Ok(None) => Outcome::MatchedNothing(proto::Blank {}),
        Err(StreamAppendError::Conflict(at)) => Outcome::Conflict(id_to(at)),
        Err(StreamAppendError::HigherVote(vote)) => Outcome::HigherVote(vote_to(&vote)),
    };
    proto::AppendAnswer { outcome: Some(outcome) }
}

pub(super) fn answer_from(
    answer: proto::AppendAnswer,
) -> Result<StreamAppendResult<TypeConfig>, Status> {
    use proto::append_answer::Outcome;
    Ok(match answer.outcome.ok_or_else(|| missing("outcome"))? {
        Outcome::Matched(id) => Ok(Some(id_from(id))),
        Outcome::MatchedNothing(_) => Ok(None),
        Outcome::Conflict(at) => Err(StreamAppendError::Conflict(id_from(at))),
        Outcome::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote_from(Some(vote))?)),
    })
}

pub(super) fn vote_request_to(to: u64, rpc: &VoteRequest<TypeConfig>) -> proto::VoteRequest {
    proto::VoteRequest {
        to,
        vote: Some(vote_to(&rpc.vote)),
        last_log: rpc.last_log_id.map(id_to),
        leadership_transfer: rpc.leadership_transfer,
    }
}

pub(super) fn vote_request_from(
    rpc: proto::VoteRequest,
) -> Result<VoteRequest<TypeConfig>, Status> {
    let mut request = VoteRequest::new(vote_from(rpc.vote)?, rpc.last_log.map(id_from));
    request.leadership_transfer = rpc.leadership_transfer;
    Ok(request)
}

pub(super) fn voted_to(response: &VoteResponse<TypeConfig>) -> proto::VoteResponse {
    proto::VoteResponse {
        vote: Some(vote_to(&response.vote)),
        granted: response.vote_granted,
        last_log: response.last_log_id.map(id_to),
    }
}

pub(super) fn voted_from(
    response: proto::VoteResponse,
) -> Result<VoteResponse<TypeConfig>, Status> {
    let vote = vote_from(response.vote)?;
    Ok(VoteResponse::new(vote, response.last_log.map(id_from), response.granted))
}

pub(super) fn snapshot_header(
    to: u64,
    vote: &Vote,
    meta: &SnapshotMeta,
    body: &[u8],
) -> proto::SnapshotHeader {
    proto::SnapshotHeader {
        to,
        vote: Some(vote_to(vote)),
        last: meta.last_log_id.map(id_to),
        membership_at: (*meta.last_membership.log_id()).map(id_to),
        membership: Some(membership_to(meta.last_membership.membership())),
        length: body.len() as u64,
        crc: crc32fast::hash(body),
    }
}

pub(super) fn snapshot_meta(header: &proto::SnapshotHeader) -> Result<SnapshotMeta, Status> {
    let membership = header.membership.clone().ok_or_else(|| missing("header.membership"))?;
    Ok(SnapshotMeta {
        last_log_id: header.last.map(id_from),
        last_membership: StoredMembership::new(
            header.membership_at.map(id_from),
            membership_from(membership)?,
        ),
    })
}

pub(super) fn transfer_to(
    to: u64,
    rpc: &TransferLeaderRequest<TypeConfig>,
) -> proto::TransferRequest {
    proto::TransferRequest {
        to,
        from_leader: Some(vote_to(rpc.from_leader())),
        to_replica: *rpc.to_node_id(),
        last_log: rpc.last_log_id().copied().map(id_to),
    }
}

pub(super) fn transfer_from(
    rpc: proto::TransferRequest,
) -> Result<TransferLeaderRequest<TypeConfig>, Status> {
    let from = vote_from(rpc.from_leader)?;
    Ok(TransferLeaderRequest::new(from, rpc.to_replica, rpc.last_log.map(id_from)))
}

pub(super) fn transferred_to(
    response: TransferLeaderResponse<TypeConfig>,
) -> proto::TransferResponse {
    use proto::transfer_response::Outcome;
    let outcome = match response {
        Ok(()) => Outcome::Accepted(proto::Blank {}),
        Err(TransferLeaderError::VoteChanged { expected, actual }) => {
            let (expected, actual) = (Some(vote_to(&expected)), Some(vote_to(&actual)));
            Outcome::VoteChanged(proto::VoteChanged { expected, actual })
        }
        Err(TransferLeaderError::LogNotFlushed { expected, actual }) => {
            let (expected, actual) = (expected.map(id_to), actual.map(id_to));
            Outcome::LogNotFlushed(proto::LogNotFlushed { expected, actual })
        }
    };
    proto::TransferResponse { outcome: Some(outcome) }
}

pub(super) fn transferred_from(
    response: proto::TransferResponse,
) -> Result<TransferLeaderResponse<TypeConfig>, Status> {
    use proto::transfer_response::Outcome;
    Ok(match response.outcome.ok_or_else(|| missing("outcome"))? {
        Outcome::Accepted(_) => Ok(()),
        Outcome::VoteChanged(votes) => Err(TransferLeaderError::VoteChanged {
            expected: vote_from(votes.expected)?,
            actual: vote_from(votes.actual)?,
        }),
        Outcome::LogNotFlushed(ids) => Err(TransferLeaderError::LogNotFlushed {
            expected: ids.expected.map(id_from),
            actual: ids.actual.map(id_from),
        }),
    })
}
