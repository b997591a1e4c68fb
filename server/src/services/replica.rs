//! `ReplicaService`: what replicas ask of each other beside the log.

use std::sync::Arc;

use rowen_api::v1;
use tonic::{Request, Response, Status};

use crate::{
    checkpoints::{self, INTERVAL_ENTRIES},
    server::Server,
    timing,
};

pub(super) struct ReplicaApi(pub(super) Arc<Server>);

#[tonic::async_trait]
impl v1::replica_service_server::ReplicaService for ReplicaApi {
    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::Checkpoint>, Status> {
        let (index, state_hash) =
            self.0.checkpoints.at(request.into_inner().index).unwrap_or_default();
        Ok(Response::new(v1::Checkpoint {
            index,
            state_hash,
            reads_version: self.0.peers.reads_version(),
            interval: INTERVAL_ENTRIES,
            timing: Some(timing::to_proto(self.0.timing().initial())),
        }))
    }

    /// Believed only if this replica has said so itself: a hash it never had stops nothing.
    async fn quarantine(
        &self,
        request: Request<v1::QuarantineRequest>,
    ) -> Result<Response<v1::QuarantineResponse>, Status> {
        let why = request.into_inner();
        match self.0.checkpoints.at(why.index) {
            Some((_, hash)) if hash == why.found && hash != why.expected => {
                checkpoints::stop(&self.0, &why);
                Ok(Response::new(v1::QuarantineResponse {}))
            }
            _ => Err(Status::failed_precondition("this replica has not that hash at that index")),
        }
    }
}
