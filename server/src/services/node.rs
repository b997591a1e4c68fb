//! `NodeService`.

use std::sync::Arc;

use rowen_api::v1;
use rowen_state::{Cluster, Command, NodeId};
use tonic::{Request, Response, Status};

use super::invalid;
use crate::{
    auth::{Principal, principal},
    convert,
    server::Server,
};

pub(super) struct NodeApi(pub(super) Arc<Server>);

/// Longest reason an operator may give, in bytes.
const REASON_BYTES: usize = 500;

#[tonic::async_trait]
impl v1::node_service_server::NodeService for NodeApi {
    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let occupancy = convert::occupancy(&view);
        Ok(view.answer(v1::ListNodesResponse { nodes: occupancy.nodes, index: occupancy.index }))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let view = self.0.read_at_leader(&request).await?; // agents tell the hardware to it alone
        let name = request.into_inner().name;
        let node = view.node_named(&name).ok_or_else(|| no_node(&name))?;
        let mut answer = convert::node_to_proto(&view, node);
        answer.hardware = self.0.sessions.hardware(node.id);
        Ok(view.answer(answer))
    }

    async fn cordon_node(
        &self,
        request: Request<v1::CordonNodeRequest>,
    ) -> Result<Response<v1::CordonNodeResponse>, Status> {
        let principal = principal(&request)?;
        let v1::CordonNodeRequest { request, name, reason } = request.into_inner();
        let command = |node| Command::CordonNode { node, reason: short(reason) };
        let index = self.change(&principal, request, &name, command).await?;
        Ok(Response::new(v1::CordonNodeResponse { index }))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        let principal = principal(&request)?;
        let v1::DrainNodeRequest { request, name, reason } = request.into_inner();
        let command = |node| Command::DrainNode { node, reason: short(reason) };
        let index = self.change(&principal, request, &name, command).await?;
        Ok(Response::new(v1::DrainNodeResponse { index }))
    }

    async fn undrain_node(
        &self,
        request: Request<v1::UndrainNodeRequest>,
    ) -> Result<Response<v1::UndrainNodeResponse>, Status> {
        let principal = principal(&request)?;
        let v1::UndrainNodeRequest { request, name } = request.into_inner();
        let index = self.change(&principal, request, &name, Command::UndrainNode).await?;
        Ok(Response::new(v1::UndrainNodeResponse { index }))
    }

    async fn forget_node(
        &self,
        request: Request<v1::ForgetNodeRequest>,
    ) -> Result<Response<v1::ForgetNodeResponse>, Status> {
        let principal = principal(&request)?;
        let v1::ForgetNodeRequest { request, name, checked } = request.into_inner();
        if !checked {
            return Err(Status::invalid_argument(
                "checked: is false; look that the machine is off, then say so (--i-checked)",
            ));
        }
        let index = self.change(&principal, request, &name, Command::ForgetNode).await?;
        Ok(Response::new(v1::ForgetNodeResponse { index }))
    }
}

impl NodeApi {
    async fn change(
        &self,
        principal: &Principal,
        request: Option<v1::RequestId>,
        name: &str,
        command: impl FnOnce(NodeId) -> Command,
    ) -> Result<u64, Status> {
        let id = convert::request_id(request).map_err(invalid)?;
        let node = self.id_of(name).await?;
        Ok(self.0.propose(principal, id, command(node)).await?.index)
    }

    /// Ids are for ever, so a name that this replica knows needs no round to the others: were it
    /// out of date, the command itself would be refused.
    async fn id_of(&self, name: &str) -> Result<NodeId, Status> {
        let known = |view: &Cluster| view.node_named(name).map(|node| node.id);
        if let Some(id) = known(&self.0.view()) {
            return Ok(id);
        }
        known(&*self.0.read().await?).ok_or_else(|| no_node(name))
    }
}

fn short(mut reason: String) -> String {
    let end = reason.floor_char_boundary(REASON_BYTES);
    reason.truncate(end);
    reason
}

fn no_node(name: &str) -> Status {
    Status::not_found(format!("there is no node {name}; `rowen node list` shows them"))
}
