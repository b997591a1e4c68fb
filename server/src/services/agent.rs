//! `AgentService`: the stream of a node's agent.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use rowen_api::v1::{self, AgentMessage, ServerMessage, agent_message, server_message};
use rowen_raft::sim;
use rowen_state::{Cluster, Command, NodeId, Timing};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    admission::enough_per_s,
    agents::QUEUE,
    auth::Principal,
    clock::boot_ms,
    convert,
    leader::{self, Renewal, Verdict},
    reports::{self, Report},
    server::Server,
    timing,
};

/// The wire between agents and replicas.
const PROTOCOL: u32 = 1;
/// For a peer to say who it is.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Heartbeats and reports of one agent that may be under way.
const BUSY: usize = 32;

/// The service; clones are the same one.
#[derive(Clone)]
pub(crate) struct AgentApi {
    server: Arc<Server>,
    renewals: mpsc::Sender<Renewal>,
    reports: mpsc::Sender<Report>,
}

impl AgentApi {
    /// Reports of all agents go into the log for as long as this lives.
    pub(crate) fn new(server: Arc<Server>, renewals: mpsc::Sender<Renewal>) -> Self {
        let (reports, sent) = mpsc::channel(reports::WAITING);
        sim::spawn(reports::run(server.clone(), sent));
        AgentApi { server, renewals, reports }
    }

    /// Serves an agent's stream; what it is sent arrives at the receiver.
    pub(crate) fn serve(
        &self,
        mut incoming: impl Incoming,
    ) -> mpsc::Receiver<Result<ServerMessage, Status>> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let AgentApi { server, renewals, reports } = self.clone();
        sim::spawn(async move {
            let first = tokio::time::timeout(HELLO_LIMIT, incoming.next()).await;
            let Ok(Some(Ok(AgentMessage { kind: Some(agent_message::Kind::Hello(hello)) }))) =
                first
            else {
                return;
            };
            match Session::begin(server, renewals, reports, sender.clone(), hello).await {
                Ok(session) => session.run(incoming).await,
                Err(refused) => {
                    if refused.retry_after_ms == 0 {
                        tracing::info!(why = refused.why, "an agent was refused");
                    }
                    send(&sender, server_message::Kind::Refused(refused)).await;
                }
            }
        });
        receiver
    }
}

type Outgoing = mpsc::Sender<Result<ServerMessage, Status>>;

#[tonic::async_trait]
impl v1::agent_service_server::AgentService for AgentApi {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

    async fn attach(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::AttachStream>, Status> {
        let receiver = self.serve(request.into_inner());
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// What an agent says.
pub(crate) trait Incoming:
    Stream<Item = Result<AgentMessage, Status>> + Send + Unpin + 'static
{
}

impl<S: Stream<Item = Result<AgentMessage, Status>> + Send + Unpin + 'static> Incoming for S {}

/// One agent's stream, after its hello was accepted.
struct Session {
    server: Arc<Server>,
    renewals: mpsc::Sender<Renewal>,
    reports: mpsc::Sender<Report>,
    outgoing: Outgoing,
    node: NodeId,
    name: String,
    /// In which this replica leads; every message carries it.
    fence: u64,
    /// Log index of its coming.
    came: u64,
    /// The times it was told.
    timing: Timing,
    /// What is being done for it.
    busy: Arc<Semaphore>,
    /// Resolves when the stream has to end.
    cut: oneshot::Receiver<()>,
}

impl Session {
    async fn begin(
        server: Arc<Server>,
        renewals: mpsc::Sender<Renewal>,
        reports: mpsc::Sender<Report>,
        outgoing: Outgoing,
        hello: v1::Hello,
    ) -> Result<Session, v1::Refused> {
        let fence = lead(&server, &hello)?;
        let view = server.view();
        let Some(node) = view.node_named(&hello.node).map(|node| node.id) else {
            // Not final: the operator may be about to set the fabric.
            return Err(refused(format!("the fabric has no node {}", hello.node), false));
        };
        let report =
            convert::node_report(node, &hello).map_err(|error| refused(error.to_string(), true))?;
        admit(&server, &view, node)?;
        let timing = timing::in_force(&server, &view);
        if renew(&renewals, None, timing).await != Verdict::Confirmed {
            return Err(not_leading(&server));
        }
        if outgoing.is_closed() {
            // It has lost its patience and comes again: this hello is old.
            return Err(refused("the agent went away".into(), false));
        }
        let welcome = v1::Welcome {
            term: fence,
            node_lease_ms: timing.node_lease_ms,
            heartbeat_ms: timing.heartbeat_ms,
            kill_ms: timing.kill_ms,
            hears_gpu_health: true,
        };
        send(&outgoing, server_message::Kind::Welcome(welcome)).await;
        let came = match server
            .propose(&Principal::agent(&hello.node), None, Command::NodeUp(report))
            .await
        {
            Ok(done) => done.index,
            Err(status) => return Err(refused(status.message().to_owned(), false)),
        };
        let stream = (fence, node, came);
        let Some(cut) = server.sessions.attach(stream, outgoing.clone(), hello.gpus.clone()) else {
            return Err(not_leading(&server));
        };
        // What the log pushed before the stream was in the table went nowhere.
        leader::push(&server, &server.view(), [node], fence);
        tracing::info!(node = hello.node, "agent attached");
        let busy = Arc::new(Semaphore::new(BUSY));
        let name = hello.node;
        Ok(Session {
            server,
            renewals,
            outgoing,
            reports,
            node,
            name,
            fence,
            came,
            timing,
            busy,
            cut,
        })
    }

    async fn run(mut self, mut incoming: impl Incoming) {
        let (mut cut, outgoing) =
            (std::mem::replace(&mut self.cut, oneshot::channel().1), self.outgoing.clone());
        tokio::select! {
            () = self.serve(&mut incoming) => {}
            () = outgoing.closed() => {}
            _ = &mut cut => {
                // It need not find out by silence.
                let again = come_again(&self.server);
                let _ = outgoing.try_send(Ok(ServerMessage { kind: Some(again) }));
            }
        }
        self.server.sessions.detach(self.node, self.came);
        tracing::info!(node = self.name, "agent detached");
    }

    /// Until the stream ends, by itself or because what it says cannot be handled.
    async fn serve(&self, incoming: &mut impl Incoming) {
        while let Some(Ok(AgentMessage { kind: Some(kind) })) = incoming.next().await {
            // An agent that says more than can be done waits: the stream is its brake.
            let Ok(permit) = self.busy.clone().acquire_owned().await else { return };
            match kind {
                agent_message::Kind::Hello(_) => return,
                agent_message::Kind::Heartbeat(heartbeat) => self.heartbeat(heartbeat, permit),
                agent_message::Kind::Report(report) => self.report(report, permit).await,
                agent_message::Kind::Log(chunk) => {
                    self.server.sessions.log_chunk(self.node, chunk).await;
                }
                agent_message::Kind::GpuHealth(said) => self.gpu_health(&said, permit),
            }
        }
    }

    /// Acknowledged once a quorum has confirmed the leadership; never before.
    fn heartbeat(&self, heartbeat: v1::Heartbeat, permit: OwnedSemaphorePermit) {
        let (renewals, outgoing, server) =
            (self.renewals.clone(), self.outgoing.clone(), self.server.clone());
        let (node, fence, came, timing) = (self.node, self.fence, self.came, self.timing);
        sim::spawn(async move {
            let _permit = permit;
            match renew(&renewals, Some(node), timing).await {
                Verdict::Confirmed => {}
                Verdict::Unconfirmed => return, // the agent finds out by the silence
                Verdict::ComeAgain => return server.sessions.detach(node, came),
            }
            let ack = v1::HeartbeatAck { seq: heartbeat.seq, term: fence };
            send(&outgoing, server_message::Kind::HeartbeatAck(ack)).await;
            let view = server.view();
            let behind =
                view.nodes().get(node).is_some_and(|row| row.generation > heartbeat.generation);
            if behind {
                leader::push(&server, &view, [node], fence); // heals a lost push
            }
        });
    }

    /// What is new of it goes into the log. Not acknowledged: it is said again before long.
    fn gpu_health(&self, said: &v1::GpuHealth, permit: OwnedSemaphorePermit) {
        let view = self.server.view();
        let reports = convert::gpu_reports(&view, &self.name, said);
        let command = Command::SetHealth(reports);
        let none = matches!(&command, Command::SetHealth(reports) if reports.is_empty());
        if none || view.meta().version < command.since() {
            return;
        }
        let (server, principal) = (self.server.clone(), Principal::agent(&self.name));
        let name = self.name.clone();
        sim::spawn(async move {
            let _permit = permit;
            match server.propose(&principal, None, command.clone()).await {
                Ok(_) => tracing::warn!(node = name, ?command, "its GPUs are not as they were"),
                Err(status) => tracing::debug!(node = name, why = status.message(), "not heard"),
            }
        });
    }

    /// Acknowledged once it is in the log.
    async fn report(&self, report: v1::Report, permit: OwnedSemaphorePermit) {
        let tasks = report.tasks.iter().map(|task| convert::task_report(self.node, task)).collect();
        let (seq, outgoing) = (report.seq, self.outgoing.clone());
        let report = Report { node: self.node, seq, tasks, outgoing, _permit: permit };
        let _ = self.reports.send(report).await; // the replica is stopping
    }
}

/// Thousands of agents that come at once are heard at a bounded rate.
fn admit(server: &Server, view: &Cluster, node: NodeId) -> Result<(), v1::Refused> {
    let enough = || enough_per_s(view.nodes().len(), timing::in_force(server, view).node_lease_ms);
    let per_s = server.config.agents_per_s.unwrap_or_else(enough);
    server.sessions.admit(node, boot_ms(), per_s).map_err(|retry_after_ms| v1::Refused {
        why: "many agents come at once".into(),
        retry_after_ms,
        ..Default::default()
    })
}

async fn renew(
    renewals: &mpsc::Sender<Renewal>,
    node: Option<NodeId>,
    welcomed: Timing,
) -> Verdict {
    let (done, verdict) = oneshot::channel();
    match renewals.send(Renewal { node, welcomed, done }).await {
        Ok(()) => verdict.await.unwrap_or(Verdict::Unconfirmed),
        Err(_) => Verdict::Unconfirmed,
    }
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
    let fence = server.fence(leadership.term);
    if !leadership.ready || fence < hello.highest_term {
        return Err(not_leading(server));
    }
    Ok(fence)
}

fn not_leading(server: &Server) -> v1::Refused {
    let leadership = server.replica.leadership().borrow().clone();
    let leader = leadership.leader.filter(|_| !leadership.is_leader);
    v1::Refused {
        why: "this replica does not lead".into(),
        leader: leader.map(|leader| leader.addr).unwrap_or_default(),
        ..Default::default()
    }
}

/// For an agent whose stream ends: here again, or where the leader is now.
fn come_again(server: &Server) -> server_message::Kind {
    let leads = server.replica.leadership().borrow().ready;
    server_message::Kind::Refused(if leads {
        let why = "say hello again".into();
        v1::Refused { why, leader: server.config.address(), ..Default::default() }
    } else {
        not_leading(server)
    })
}

fn refused(why: String, r#final: bool) -> v1::Refused {
    v1::Refused { why, r#final, ..Default::default() }
}
