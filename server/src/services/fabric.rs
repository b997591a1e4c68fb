//! `FabricService`.

use std::sync::Arc;

use rowen_api::v1;
use rowen_state::Command;
use rowen_topology::Fabric;
use tonic::{Request, Response, Status};

use super::invalid;
use crate::{auth::principal, convert, server::Server};

pub(super) struct FabricApi(pub(super) Arc<Server>);

#[tonic::async_trait]
impl v1::fabric_service_server::FabricService for FabricApi {
    async fn get_fabric(
        &self,
        request: Request<v1::GetFabricRequest>,
    ) -> Result<Response<v1::GetFabricResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        Ok(view.answer(v1::GetFabricResponse {
            fabric: Some(convert::fabric_to_proto(view.fabric())),
            index: view.applied(),
        }))
    }

    async fn set_fabric(
        &self,
        request: Request<v1::SetFabricRequest>,
    ) -> Result<Response<v1::SetFabricResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let fabric = request
            .fabric
            .ok_or_else(|| Status::invalid_argument("fabric: is missing; send one"))?;
        let record = convert::fabric_from_proto(fabric).map_err(invalid)?;
        let graph = Fabric::from_record(&record)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let irregularities = graph.irregularities().iter().map(ToString::to_string).collect();
        let done = self.0.propose(&principal, id, Command::SetFabric(record)).await?;
        Ok(Response::new(v1::SetFabricResponse { index: done.index, irregularities }))
    }

    async fn set_health(
        &self,
        request: Request<v1::SetHealthRequest>,
    ) -> Result<Response<v1::SetHealthResponse>, Status> {
        let principal = principal(&request)?;
        let v1::SetHealthRequest { request, parts } = request.into_inner();
        let id = convert::request_id(request).map_err(invalid)?;
        let reports = convert::part_reports(parts).map_err(invalid)?;
        let done = self.0.propose(&principal, id, Command::SetHealth(reports)).await?;
        Ok(Response::new(v1::SetHealthResponse { index: done.index }))
    }

    async fn list_health(
        &self,
        request: Request<v1::ListHealthRequest>,
    ) -> Result<Response<v1::ListHealthResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        Ok(view.answer(convert::health_to_proto(&view)))
    }
}
