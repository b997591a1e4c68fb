//! `QueueService`.

use std::sync::Arc;

use rowen_api::v1;
use rowen_state::{Command, HALF_LIFE_MS};
use tonic::{Request, Response, Status};

use super::invalid;
use crate::{auth::principal, convert, server::Server};

pub(super) struct QueueApi(pub(super) Arc<Server>);

#[tonic::async_trait]
impl v1::queue_service_server::QueueService for QueueApi {
    async fn set_queue(
        &self,
        request: Request<v1::SetQueueRequest>,
    ) -> Result<Response<v1::SetQueueResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let spec =
            request.spec.ok_or_else(|| Status::invalid_argument("spec: is missing; send one"))?;
        let spec = convert::queue_spec_from_proto(spec).map_err(invalid)?;
        spec.validate().map_err(invalid)?;
        let done = self.0.propose(&principal, id, Command::SetQueue(spec)).await?;
        Ok(Response::new(v1::SetQueueResponse { index: done.index }))
    }

    async fn list_queues(
        &self,
        request: Request<v1::ListQueuesRequest>,
    ) -> Result<Response<v1::ListQueuesResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let queues = view.queues().values().map(|queue| convert::queue_to_proto(&view, queue));
        Ok(view.answer(v1::ListQueuesResponse {
            queues: queues.collect(),
            half_life_ms: HALF_LIFE_MS,
            index: view.applied(),
        }))
    }

    async fn remove_queue(
        &self,
        request: Request<v1::RemoveQueueRequest>,
    ) -> Result<Response<v1::RemoveQueueResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let command = Command::RemoveQueue(request.name);
        let done = self.0.propose(&principal, id, command).await?;
        Ok(Response::new(v1::RemoveQueueResponse { index: done.index }))
    }
}
