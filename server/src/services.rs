//! The gRPC services: each checks, converts, and asks [`Server`].

mod agent;
mod cluster;
mod fabric;
mod filler;
mod job;
mod node;
mod queue;
mod replica;

use std::sync::Arc;

pub(crate) use self::agent::AgentApi;

use rowen_api::v1;
use rowen_state::FieldError;
use tonic::{Status, transport::server::Router};

use crate::{auth::Authorization, server::Server};

/// A fabric of 16,384 nodes is larger than tonic's 4 MiB.
const FABRIC_BYTES: usize = 32 << 20;

type Layers = tower::layer::util::Stack<Authorization, tower::layer::util::Identity>;

/// Adds every service to the router.
pub(crate) fn add(
    router: Router<Layers>,
    server: &Arc<Server>,
    agents: AgentApi,
) -> Router<Layers> {
    use v1::{
        agent_service_server::AgentServiceServer, cluster_service_server::ClusterServiceServer,
        fabric_service_server::FabricServiceServer, filler_service_server::FillerServiceServer,
        job_service_server::JobServiceServer, node_service_server::NodeServiceServer,
        queue_service_server::QueueServiceServer, replica_service_server::ReplicaServiceServer,
    };
    let fabric = FabricServiceServer::new(fabric::FabricApi(server.clone()))
        .max_decoding_message_size(FABRIC_BYTES)
        .max_encoding_message_size(FABRIC_BYTES);
    router
        .add_service(AgentServiceServer::new(agents))
        .add_service(ClusterServiceServer::new(cluster::ClusterApi(server.clone())))
        .add_service(fabric)
        .add_service(FillerServiceServer::new(filler::FillerApi(server.clone())))
        .add_service(JobServiceServer::new(job::JobApi(server.clone())))
        .add_service(NodeServiceServer::new(node::NodeApi(server.clone())))
        .add_service(QueueServiceServer::new(queue::QueueApi(server.clone())))
        .add_service(ReplicaServiceServer::new(replica::ReplicaApi(server.clone())))
}

/// The services themselves, for who calls them without gRPC.
pub(crate) fn jobs(server: &Arc<Server>) -> impl v1::job_service_server::JobService + use<> {
    job::JobApi(server.clone())
}

pub(crate) fn fillers(
    server: &Arc<Server>,
) -> impl v1::filler_service_server::FillerService + use<> {
    filler::FillerApi(server.clone())
}

pub(crate) fn nodes(server: &Arc<Server>) -> impl v1::node_service_server::NodeService + use<> {
    node::NodeApi(server.clone())
}

pub(crate) fn cluster(
    server: &Arc<Server>,
) -> impl v1::cluster_service_server::ClusterService + use<> {
    cluster::ClusterApi(server.clone())
}

pub(crate) fn fabric(
    server: &Arc<Server>,
) -> impl v1::fabric_service_server::FabricService + use<> {
    fabric::FabricApi(server.clone())
}

pub(crate) fn replica(
    server: &Arc<Server>,
) -> impl v1::replica_service_server::ReplicaService + use<> {
    replica::ReplicaApi(server.clone())
}

/// A field that cannot be accepted, for the caller.
fn invalid(error: FieldError) -> Status {
    Status::invalid_argument(error.to_string())
}
