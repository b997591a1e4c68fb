//! Lets the cluster version rise when every replica can read the next, and keeps what belongs to a
//! version out of the log before.
//!
//! Each member of the group is asked, learners too: a replica of an older build never gets bytes
//! that it cannot read. Until the rise every replica can still go back to the older build.

use rowen_raft::{Member, MemberStatus};
use rowen_state::{Command, ReplicaId, codec::CodecError};
use tonic::Status;

use crate::{auth::Principal, members, server::Server};

/// What a build reads that was made before it could say so.
const UNSAID: u32 = 1;

/// The version in which `command` is to be written. Where it needs one that the cluster has not
/// risen to, but could, the cluster rises first: a new cluster need not be waited for.
pub(crate) async fn of_command(server: &Server, command: &Command) -> Result<u32, Status> {
    let needs = command.since();
    let version = server.view().meta().version;
    if needs <= version {
        return Ok(version);
    }
    Box::pin(step(server)).await; // it proposes, which asks here again, for a command of before
    let version = server.view().meta().version;
    if needs <= version {
        return Ok(version);
    }
    Err(Status::failed_precondition(CodecError::Older { version, needs }.to_string()))
}

/// Raises the version by one if every member reads the next. Only the leader's call has an effect.
pub(crate) async fn step(server: &Server) {
    let to = server.view().meta().version + 1;
    if to > server.peers.reads_version() {
        return;
    }
    // The list in the state is what the rise is checked against.
    if let Err(status) = members::record(server).await {
        tracing::debug!(%status, "the members could not be listed; asked again");
        return;
    }
    let (view, group) = (server.view(), server.replica.members());
    if !members::settled(&view, &group) {
        return;
    }
    let answers = ask(server, &group).await;
    let behind = answers.iter().find(|(_, reads)| reads.is_none_or(|reads| reads < to));
    if let Some((id, reads)) = behind {
        tracing::debug!(to, replica = id.0, ?reads, "the cluster version waits for a replica");
        return;
    }
    let asked = answers.iter().map(|(id, _)| *id).collect();
    let command = Command::RaiseVersion { to, asked };
    match server.propose(&Principal::own("leader"), None, command).await {
        Ok(_) => tracing::info!(version = to, "every replica reads it: the cluster version rises"),
        Err(status) => {
            tracing::warn!(%status, "the cluster version did not rise; it is tried again")
        }
    }
}

/// Refuses a replica that could not read what the cluster writes. `reads`: 0 is not said.
pub(crate) fn admits(server: &Server, reads: u32) -> Result<(), Status> {
    let (version, reads) = (server.view().meta().version, reads.max(UNSAID));
    if reads < version {
        return Err(Status::failed_precondition(format!(
            "cluster version is {version}, the rowen that joins reads up to {reads}; join with a newer one"
        )));
    }
    Ok(())
}

/// The newest version that each member reads; none: it did not answer.
pub(crate) async fn ask(server: &Server, group: &[MemberStatus]) -> Vec<(ReplicaId, Option<u32>)> {
    let (own, own_reads) = (server.replica.id(), server.peers.reads_version());
    let answers = group.iter().map(|status| async move {
        let Member { id, .. } = status.member;
        let reads =
            if id == own { Some(own_reads) } else { reads(server, &status.member).await.ok() };
        (ReplicaId(id.0), reads)
    });
    futures::future::join_all(answers).await
}

async fn reads(server: &Server, peer: &Member) -> Result<u32, Status> {
    Ok(server.peers.checkpoint(peer, 0).await?.reads_version.max(UNSAID))
}
