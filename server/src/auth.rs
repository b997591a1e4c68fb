//! The one authorization point: every RPC of every service passes here.
//!
//! A table says which role an RPC needs; an RPC without a row is denied, and a test
//! holds the table against the compiled descriptors. Until certificates exist the
//! only principals are local: a peer that is not on loopback is denied.

use std::{
    future::{self, Ready},
    net::IpAddr,
    task::{Context, Poll},
};

use futures::future::Either;
use tonic::{Status, body::Body, codegen::http, transport::server::TcpConnectInfo};
use tower::{Layer, Service};

/// What a principal may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Another replica of the group.
    Replica,
    /// The agent of a node.
    Agent,
    /// Runs the cluster and submits to it.
    Operator,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// As it stands in the log.
    pub name: String,
    /// What it may do.
    pub role: Role,
}

impl Principal {
    /// This replica itself: its planner, its watch over nodes.
    pub(crate) fn own(name: &str) -> Self {
        Principal { name: name.into(), role: Role::Replica }
    }

    /// The agent of a node.
    pub(crate) fn agent(node: &str) -> Self {
        Principal { name: format!("agent/{node}"), role: Role::Agent }
    }
}

/// Service and RPC, and the role it needs.
const RULES: &[(&str, &str, Role)] = &[
    ("rowen.v1.AgentService", "Attach", Role::Agent),
    ("rowen.v1.ClusterService", "AdmitReplica", Role::Operator),
    ("rowen.v1.ClusterService", "Backup", Role::Operator),
    ("rowen.v1.ClusterService", "GetStatus", Role::Operator),
    ("rowen.v1.ClusterService", "RemoveReplica", Role::Operator),
    ("rowen.v1.ClusterService", "SetTiming", Role::Operator),
    ("rowen.v1.ClusterService", "TransferLeadership", Role::Operator),
    ("rowen.v1.ClusterService", "WatchOccupancy", Role::Operator),
    ("rowen.v1.FabricService", "GetFabric", Role::Operator),
    ("rowen.v1.FabricService", "ListHealth", Role::Operator),
    ("rowen.v1.FabricService", "SetFabric", Role::Operator),
    ("rowen.v1.FabricService", "SetHealth", Role::Operator),
    ("rowen.v1.FillerService", "DeployFiller", Role::Operator),
    ("rowen.v1.FillerService", "DrainFiller", Role::Operator),
    ("rowen.v1.FillerService", "GetFiller", Role::Operator),
    ("rowen.v1.FillerService", "ListFillers", Role::Operator),
    ("rowen.v1.FillerService", "RemoveFiller", Role::Operator),
    ("rowen.v1.JobService", "CancelJob", Role::Operator),
    ("rowen.v1.JobService", "GetJob", Role::Operator),
    ("rowen.v1.JobService", "ListJobs", Role::Operator),
    ("rowen.v1.JobService", "PlanJob", Role::Operator),
    ("rowen.v1.JobService", "ReadLogs", Role::Operator),
    ("rowen.v1.JobService", "RequeueJob", Role::Operator),
    ("rowen.v1.JobService", "SubmitJob", Role::Operator),
    ("rowen.v1.JobService", "SubmitJobs", Role::Operator),
    ("rowen.v1.JobService", "WatchJob", Role::Operator),
    ("rowen.v1.JobService", "WhatIf", Role::Operator),
    ("rowen.v1.JobService", "WhyJob", Role::Operator),
    ("rowen.v1.NodeService", "CordonNode", Role::Operator),
    ("rowen.v1.NodeService", "DrainNode", Role::Operator),
    ("rowen.v1.NodeService", "ForgetNode", Role::Operator),
    ("rowen.v1.NodeService", "GetNode", Role::Operator),
    ("rowen.v1.NodeService", "ListNodes", Role::Operator),
    ("rowen.v1.NodeService", "UndrainNode", Role::Operator),
    ("rowen.v1.QueueService", "ListQueues", Role::Operator),
    ("rowen.v1.QueueService", "RemoveQueue", Role::Operator),
    ("rowen.v1.QueueService", "SetQueue", Role::Operator),
    ("rowen.v1.ReplicaService", "GetCheckpoint", Role::Replica),
    ("rowen.v1.ReplicaService", "Quarantine", Role::Replica),
];

/// The consensus's own transport, one row for all its RPCs.
const RAFT_PREFIX: &str = "rowen.raft.";

/// The role an RPC needs; `None`: there is no such RPC, so nobody may call it.
pub fn rule(service: &str, method: &str) -> Option<Role> {
    if service.starts_with(RAFT_PREFIX) {
        return Some(Role::Replica);
    }
    let row = RULES.iter().find(|(known, rpc, _)| *known == service && *rpc == method);
    row.map(|(_, _, role)| *role)
}

/// Decides: who is the peer, and may it call this?
fn authorize(path: &str, peer: Option<IpAddr>) -> Result<Principal, Status> {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let Some(role) = rule(service, method) else {
        return Err(Status::permission_denied(format!("{path} is not allowed to anybody")));
    };
    match peer {
        Some(peer) if peer.is_loopback() => {
            let name = match role {
                Role::Replica => "replica",
                Role::Agent => "agent",
                Role::Operator => "operator",
            };
            Ok(Principal { name: name.into(), role })
        }
        _ => Err(Status::permission_denied(
            "only principals on this machine are known; connect over loopback (an SSH tunnel, say)",
        )),
    }
}

/// Puts [`Authorized`] around every service.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Authorization;

impl<S> Layer<S> for Authorization {
    type Service = Authorized<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorized { inner }
    }
}

/// Calls the service behind it only for those who may; they find their
/// [`Principal`] in the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Authorized<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for Authorized<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, Self::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let peer =
            request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
        match authorize(request.uri().path(), peer.map(|addr| addr.ip())) {
            Ok(principal) => {
                request.extensions_mut().insert(principal);
                Either::Left(self.inner.call(request))
            }
            Err(status) => {
                tracing::warn!(path = request.uri().path(), ?peer, "denied");
                Either::Right(future::ready(Ok(status.into_http())))
            }
        }
    }
}

/// The principal that the authorization point found.
pub(crate) fn principal<T>(request: &tonic::Request<T>) -> Result<Principal, Status> {
    let found = request.extensions().get::<Principal>().cloned();
    found.ok_or_else(|| {
        Status::permission_denied("the request did not pass the authorization point")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_a_rule_and_every_rule_an_rpc() {
        let set: prost_types::FileDescriptorSet =
            prost::Message::decode(rowen_api::DESCRIPTORS).unwrap();
        let mut rpcs = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    rpcs.push((
                        format!("{}.{}", file.package(), service.name()),
                        method.name().to_owned(),
                    ));
                }
            }
        }
        for (service, method) in &rpcs {
            assert!(rule(service, method).is_some(), "{service}/{method} has no rule");
        }
        assert_eq!(rpcs.len(), RULES.len(), "a rule without an RPC");
        println!("{} RPCs, each with its rule", rpcs.len());
    }

    #[test]
    fn unknown_rpcs_and_strangers_are_denied() {
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        let there: IpAddr = "192.0.2.7".parse().unwrap();
        assert!(authorize("/rowen.v1.JobService/SubmitJob", Some(here)).is_ok());
        assert!(authorize("/rowen.v1.JobService/SubmitJob", Some(there)).is_err());
        assert!(authorize("/rowen.v1.JobService/SubmitJob", None).is_err());
        assert!(authorize("/rowen.v1.JobService/Nothing", Some(here)).is_err());
        assert!(authorize("/", Some(here)).is_err());
    }
}
