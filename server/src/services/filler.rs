//! `FillerService`.

use std::sync::Arc;

use rowen_api::v1;
use rowen_state::{Command, FillerId, Reply};
use tonic::{Request, Response, Status};

use super::invalid;
use crate::{
    auth::principal,
    convert,
    server::{Done, Server},
};

pub(super) struct FillerApi(pub(super) Arc<Server>);

#[tonic::async_trait]
impl v1::filler_service_server::FillerService for FillerApi {
    async fn deploy_filler(
        &self,
        request: Request<v1::DeployFillerRequest>,
    ) -> Result<Response<v1::DeployFillerResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let spec =
            request.spec.ok_or_else(|| Status::invalid_argument("spec: is missing; send one"))?;
        let spec = convert::filler_spec_from_proto(spec).map_err(invalid)?;
        spec.validate().map_err(invalid)?;
        let Done { index, reply } =
            self.0.propose(&principal, id, Command::DeployFiller(spec)).await?;
        let Reply::Filler(id) = reply else {
            return Err(Status::internal("deploy answered otherwise"));
        };
        Ok(Response::new(v1::DeployFillerResponse { id: id.0, index }))
    }

    async fn list_fillers(
        &self,
        request: Request<v1::ListFillersRequest>,
    ) -> Result<Response<v1::ListFillersResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let fillers = view.fillers().values().map(|filler| convert::filler_to_proto(&view, filler));
        Ok(view
            .answer(v1::ListFillersResponse { fillers: fillers.collect(), index: view.applied() }))
    }

    async fn get_filler(
        &self,
        request: Request<v1::GetFillerRequest>,
    ) -> Result<Response<v1::Filler>, Status> {
        let view = self.0.read_for(&request).await?;
        let name = request.into_inner().name;
        let filler = view.filler_named(&name).ok_or_else(|| no_filler(&name))?;
        Ok(view.answer(convert::filler_to_proto(&view, filler)))
    }

    async fn drain_filler(
        &self,
        request: Request<v1::DrainFillerRequest>,
    ) -> Result<Response<v1::DrainFillerResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let filler = self.named(&request.name).await?;
        let done = self.0.propose(&principal, id, Command::DrainFiller(filler)).await?;
        Ok(Response::new(v1::DrainFillerResponse { index: done.index }))
    }

    async fn remove_filler(
        &self,
        request: Request<v1::RemoveFillerRequest>,
    ) -> Result<Response<v1::RemoveFillerResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let filler = self.named(&request.name).await?;
        let done = self.0.propose(&principal, id, Command::RemoveFiller(filler)).await?;
        Ok(Response::new(v1::RemoveFillerResponse { index: done.index }))
    }
}

impl FillerApi {
    async fn named(&self, name: &str) -> Result<FillerId, Status> {
        let view = self.0.read().await?;
        view.filler_named(name).map(|filler| filler.id).ok_or_else(|| no_filler(name))
    }
}

fn no_filler(name: &str) -> Status {
    Status::not_found(format!("there is no filler {name}; `rowen filler list` shows them"))
}
