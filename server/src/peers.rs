//! What a replica asks of the others beside the log: their state hashes, and that one that differs
//! stops. Over gRPC; in a simulated world by whatever that world is.

use std::{sync::Arc, time::Duration};

use rowen_api::v1::{self, replica_service_client::ReplicaServiceClient};
use rowen_raft::Member;
use rowen_state::codec::READS_VERSION;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

const TIMEOUT: Duration = Duration::from_millis(500);

/// The way to the others.
pub(crate) enum Peers {
    Grpc,
    Simulated(Arc<dyn PeerCalls>),
}

/// The same calls in a simulated world.
#[tonic::async_trait]
pub trait PeerCalls: Send + Sync {
    /// The peer's state hash after the entry at `index`.
    async fn checkpoint(&self, peer: &Member, index: u64) -> Result<v1::Checkpoint, Status>;
    /// Tells it that it differs from the majority.
    async fn quarantine(&self, peer: &Member, why: v1::QuarantineRequest) -> Result<(), Status>;
    /// The newest cluster version that this replica's own build reads.
    fn reads_version(&self) -> u32;
}

impl Peers {
    /// The newest cluster version that this replica's own build reads.
    pub(crate) fn reads_version(&self) -> u32 {
        match self {
            Peers::Grpc => READS_VERSION,
            Peers::Simulated(calls) => calls.reads_version(),
        }
    }

    pub(crate) async fn checkpoint(
        &self,
        peer: &Member,
        index: u64,
    ) -> Result<v1::Checkpoint, Status> {
        match self {
            Peers::Grpc => {
                let request = v1::GetCheckpointRequest { index };
                Ok(client(peer).await?.get_checkpoint(request).await?.into_inner())
            }
            Peers::Simulated(calls) => calls.checkpoint(peer, index).await,
        }
    }

    pub(crate) async fn quarantine(
        &self,
        peer: &Member,
        why: v1::QuarantineRequest,
    ) -> Result<(), Status> {
        match self {
            Peers::Grpc => client(peer).await?.quarantine(why).await.map(drop),
            Peers::Simulated(calls) => calls.quarantine(peer, why).await,
        }
    }
}

async fn client(peer: &Member) -> Result<ReplicaServiceClient<Channel>, Status> {
    let endpoint = Endpoint::from_shared(format!("http://{}", peer.addr))
        .map_err(|error| Status::internal(error.to_string()))?
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT);
    let channel =
        endpoint.connect().await.map_err(|error| Status::unavailable(error.to_string()))?;
    Ok(ReplicaServiceClient::new(channel))
}
