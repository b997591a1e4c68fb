//! The same requests without gRPC, for the simulated network: openraft's own values, handled by
//! the same service with the same checks.

use std::sync::Arc;

use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use tonic::Status;

use super::{
    TransportService, proto,
    server::{archive_parts, stopped},
};
use crate::{
    sim::MemoryNetwork,
    types::{Snapshot, TypeConfig, Vote},
};

/// The way from one replica to another.
pub(super) struct Link {
    pub(super) network: Arc<MemoryNetwork>,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) addr: String,
}

impl Link {
    pub(super) async fn append(
        &self,
        rpc: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Status> {
        self.call(rpc, |to, service, rpc| async move {
            service.check(to)?;
            service.raft.append_entries(rpc).await.map_err(stopped)
        })
        .await
    }

    pub(super) async fn vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
    ) -> Result<VoteResponse<TypeConfig>, Status> {
        self.call(rpc, |to, service, rpc| {
            let network = Arc::clone(&self.network);
            async move {
                service.check_election(to)?;
                let answer = service.raft.vote(rpc).await.map_err(stopped)?;
                if answer.vote_granted {
                    let given = answer.vote.leader_id;
                    network.voted(to, given.term, given.voted_for);
                }
                Ok(answer)
            }
        })
        .await
    }

    pub(super) async fn pre_vote(
        &self,
        rpc: VoteRequest<TypeConfig>,
    ) -> Result<VoteResponse<TypeConfig>, Status> {
        self.call(rpc, |to, service, rpc| async move {
            service.check_election(to)?;
            service.raft.pre_vote(rpc).await.map_err(stopped)
        })
        .await
    }

    pub(super) async fn snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot,
    ) -> Result<SnapshotResponse<TypeConfig>, Status> {
        self.call(snapshot, |to, service, snapshot| async move {
            service.check(to)?;
            service.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)
        })
        .await
    }

    pub(super) async fn transfer_leader(
        &self,
        rpc: TransferLeaderRequest<TypeConfig>,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Status> {
        self.call(rpc, |to, service, rpc| async move {
            service.check_election(to)?;
            service.raft.handle_transfer_leader(rpc).await.map_err(stopped)
        })
        .await
    }

    /// All parts at once: a simulated archive is small.
    pub(super) async fn archive(&self) -> Result<Vec<Result<proto::ArchivePart, Status>>, Status> {
        self.call((), |to, service, ()| async move {
            service.check(to)?;
            Ok(archive_parts(&service.archive).map_err(stopped)?.collect())
        })
        .await
    }

    /// A network may deliver a request twice.
    async fn call<Q, T, F>(
        &self,
        request: Q,
        handle: impl Fn(u64, Arc<TransportService>, Q) -> F,
    ) -> Result<T, Status>
    where
        Q: Clone,
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let to = self.to;
        let way = (self.from, to, self.addr.as_str());
        self.network.call(way, |service| handle(to, service, request.clone())).await
    }
}
