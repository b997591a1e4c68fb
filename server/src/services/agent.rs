//! `AgentService`: the stream of a node's agent.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use rowen_api::v1::{self, AgentMessage, ServerMessage, agent_message, server_message};
use rowen_state::{Command, NodeId};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{agents::QUEUE, auth::Principal, convert, leader::Renewal, server::Server};

/// The wire between agents and replicas.
const PROTOCOL: u32 = 1;

pub(super) struct AgentApi {
    pub(super) server: Arc<Server>,
    pub(super) renewals: mpsc::Sender<Renewal>,
}

type Outgoing = mpsc::Sender<Result<ServerMessage, Status>>;

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for AgentApi {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (server, renewals) = (self.server.clone(), self.renewals.clone());
        tokio::spawn(async move {
            let hello = match incoming.message().await {
                Ok(Some(AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) })) => hello,
                _ => return,
            };
            match Session::begin(server, renewals, sender.clone(), hello).await {
                Ok(session) => session.run(incoming).await,
                Err(refused) => {
                    tracing::info!(why = refused.why, "an agent was refused");
                    send(&sender, server_message::Kind::Refused(refused)).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// One agent's stream, after its hello was accepted.
struct Session {
    server: Arc<Server>,
    renewals: mpsc::Sender<Renewal>,
    outgoing: Outgoing,
    principal: Principal,
    node: NodeId,
    name: String,
    id: u64,
}

impl Session {
    async fn begin(
        server: Arc<Server>,
        renewals: mpsc::Sender<Renewal>,
        outgoing: Outgoing,
        hello: v1::Hello,
    ) -> Result<Session, v1::Refused> {
        let term = lead(&server, &hello)?;
        let view = server.view();
        let Some(node) = view.node_named(&hello.node).map(|node| node.id) else {
            // Not final: the operator may be about to set the fabric.
            return Err(refused(format!("the fabric has no node {}", hello.node), false));
        };
        let report =
            convert::node_report(node, &hello).map_err(|error| refused(error.to_string(), true))?;
        let principal = Principal { name: format!("agent/{}", hello.node), ..Principal::own("") };
        let renewal = renew(&renewals, node).await;
        if !renewal {
            return Err(not_leading(&server));
        }
        let timing = *server.timing();
        let welcome = v1::Welcome {
            term,
            node_lease_ms: timing.node_lease_ms,
            heartbeat_ms: timing.heartbeat_ms,
            kill_ms: timing.kill_ms,
        };
        send(&outgoing, server_message::Kind::Welcome(welcome)).await;
        // Attached first: the entry's own effect pushes the desired state through it.
        let id = server.sessions.attach(node, outgoing.clone(), hello.gpus.clone());
        if let Err(status) = server.propose(&principal, None, Command::NodeUp(report)).await {
            server.sessions.detach(node, id);
            return Err(refused(status.message().to_owned(), false));
        }
        tracing::info!(node = hello.node, "agent attached");
        Ok(Session { server, renewals, outgoing, principal, node, name: hello.node, id })
    }

    async fn run(self, mut incoming: Streaming<AgentMessage>) {
        loop {
            let message = tokio::select! {
                message = incoming.message() => message,
                () = self.outgoing.closed() => break,
            };
            let Ok(Some(AgentMessage { kind: Some(kind) })) = message else { break };
            if !self.handle(kind).await {
                break;
            }
        }
        self.server.sessions.detach(self.node, self.id);
        tracing::info!(node = self.name, "agent detached");
    }

    /// Handles one message; false ends the stream, and the agent looks for the leader again.
    async fn handle(&self, kind: agent_message::Kind) -> bool {
        match kind {
            agent_message::Kind::Hello(_) => false,
            agent_message::Kind::Heartbeat(heartbeat) => self.heartbeat(heartbeat),
            agent_message::Kind::Report(report) => self.report(report),
            agent_message::Kind::Log(chunk) => {
                self.server.sessions.log_chunk(self.node, chunk).await;
                true
            }
        }
    }

    /// Acknowledged once a quorum has confirmed the leadership; never before.
    fn heartbeat(&self, heartbeat: v1::Heartbeat) -> bool {
        let (renewals, outgoing, server) =
            (self.renewals.clone(), self.outgoing.clone(), self.server.clone());
        let node = self.node;
        tokio::spawn(async move {
            if renew(&renewals, node).await {
                let ack = v1::HeartbeatAck { seq: heartbeat.seq, term: server.term() };
                send(&outgoing, server_message::Kind::HeartbeatAck(ack)).await;
                let view = server.view();
                let behind =
                    view.nodes().get(node).is_some_and(|row| row.generation > heartbeat.generation);
                if behind {
                    crate::leader::push(&server, &view, node); // heals a lost push
                }
            }
        });
        true
    }

    /// Acknowledged once it is in the log. Reports of several nodes commit side by side.
    fn report(&self, report: v1::Report) -> bool {
        let tasks = report.tasks.iter().map(|task| convert::task_report(self.node, task)).collect();
        let (server, principal, outgoing) =
            (self.server.clone(), self.principal.clone(), self.outgoing.clone());
        tokio::spawn(async move {
            match server.propose(&principal, None, Command::Report(tasks)).await {
                Ok(_) => {
                    let ack = v1::ReportAck { seq: report.seq };
                    send(&outgoing, server_message::Kind::ReportAck(ack)).await;
                }
                Err(status) => {
                    tracing::warn!(%status, "a report was not committed; the agent sends it again")
                }
            }
        });
        true
    }
}

async fn renew(renewals: &mpsc::Sender<Renewal>, node: NodeId) -> bool {
    let (done, confirmed) = oneshot::channel();
    renewals.send(Renewal { node, done }).await.is_ok() && confirmed.await.unwrap_or(false)
}

async fn send(outgoing: &Outgoing, kind: server_message::Kind) {
    let _ = outgoing.send(Ok(ServerMessage { kind: Some(kind) })).await; // the agent may be gone
}

/// The term this replica leads in, if it does and the agent may follow it.
fn lead(server: &Server, hello: &v1::Hello) -> Result<u64, v1::Refused> {
    if hello.protocol != PROTOCOL {
        let why = format!(
            "protocol {} is not spoken here, {PROTOCOL} is; use an agent of this version",
            hello.protocol
        );
        return Err(refused(why, true));
    }
    let leadership = server.replica.leadership().borrow().clone();
    let term = server.term();
    if !leadership.ready || term < hello.highest_term {
        return Err(not_leading(server));
    }
    Ok(term)
}

fn not_leading(server: &Server) -> v1::Refused {
    let leadership = server.replica.leadership().borrow().clone();
    let leader = leadership.leader.filter(|_| !leadership.is_leader);
    v1::Refused {
        why: "this replica does not lead".into(),
        leader: leader.map(|leader| leader.addr).unwrap_or_default(),
        r#final: false,
    }
}

fn refused(why: String, r#final: bool) -> v1::Refused {
    v1::Refused { why, leader: String::new(), r#final }
}
