//! The connection to the control plane.
//!
//! Owns finding the leader, the gRPC stream and reconnecting. Never looks into
//! messages, except for `Refused` (where to go instead) and the heartbeat
//! period (how long silence may last).

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use rowen_api::v1::{
    AgentMessage, ServerMessage, agent_service_client::AgentServiceClient, server_message::Kind,
};
use tokio::{
    sync::{Notify, mpsc},
    time::{sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::transport::{Channel, Endpoint};

use crate::clock;

const BACKOFF_MIN_MS: u64 = 50;
const BACKOFF_MAX_MS: u64 = 2000;
/// For one server to take the connection, and to answer the first message.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A node of 64 tasks with long environments stays well below.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Messages on their way out; log chunks have a queue of their own, so that
/// they never hold up a report.
const QUEUE: usize = 1024;
const LOG_QUEUE: usize = 16;
/// Heartbeats without any word from the server before it is given up.
const SILENT_HEARTBEATS: u64 = 4;

/// What the connection tells the shell.
pub(crate) enum Link {
    /// Connected: say hello through this.
    Up(Outbox),
    /// From the server.
    Message(Box<ServerMessage>),
    /// Nothing can be sent until the next `Up`.
    Down,
}

/// The way out.
#[derive(Clone)]
pub(crate) struct Outbox {
    pub(crate) control: mpsc::Sender<AgentMessage>,
    pub(crate) logs: mpsc::Sender<AgentMessage>,
}

/// Keeps a connection up until a refusal is final. `drop_it` ends the present
/// one: the shell found it to lead to a deposed leader.
pub(crate) async fn run(
    servers: Vec<String>,
    links: mpsc::Sender<Link>,
    drop_it: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut backoff_ms = BACKOFF_MIN_MS;
    let mut leader: Option<String> = None;
    let mut next = 0;
    if servers.is_empty() {
        bail!("server: none given; pass --server HOST:PORT");
    }
    loop {
        let server = leader.take().unwrap_or_else(|| servers[next % servers.len()].clone());
        let end = attach(&server, &links, &drop_it).await;
        if links.send(Link::Down).await.is_err() {
            return Ok(()); // The shell is gone.
        }
        match end {
            Ok(End::Final(why)) => bail!("{server} refused this node: {why}"),
            Ok(End::Leader(addr)) => {
                leader = Some(addr);
                backoff_ms = BACKOFF_MIN_MS;
            }
            Ok(End::Served) => backoff_ms = BACKOFF_MIN_MS,
            Ok(End::Refused(why)) => tracing::debug!(%server, %why, "refused"),
            Err(error) => tracing::debug!(%server, "{error:#}"),
        }
        if leader.is_none() {
            next += 1;
        }
        sleep(jittered(backoff_ms)).await;
        backoff_ms = (backoff_ms * 2).min(BACKOFF_MAX_MS);
    }
}

/// How one connection ended.
enum End {
    /// It worked for a while.
    Served,
    /// Another replica leads.
    Leader(String),
    /// Not now.
    Refused(String),
    /// Never.
    Final(String),
}

async fn attach(server: &str, links: &mpsc::Sender<Link>, drop_it: &Notify) -> anyhow::Result<End> {
    let channel = connect(server).await?;
    let (control, control_out) = mpsc::channel(QUEUE);
    let (logs, logs_out) = mpsc::channel(LOG_QUEUE);
    links.send(Link::Up(Outbox { control, logs })).await.context("the agent is ending")?;
    let out = ReceiverStream::new(control_out).merge(ReceiverStream::new(logs_out));
    let mut client = AgentServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let answer = timeout(CONNECT_LIMIT, client.attach(out)).await.context("no answer")??;
    let mut messages = answer.into_inner();
    let mut silence = CONNECT_LIMIT;
    let mut welcomed = false;
    loop {
        let message = tokio::select! {
            message = timeout(silence, messages.message()) => message,
            () = drop_it.notified() => return Ok(End::Refused("it is no longer the leader".to_string())),
        };
        let Some(message) = message.context("silent for too long")?? else { break };
        match &message.kind {
            Some(Kind::Refused(refused)) if refused.r#final => {
                return Ok(End::Final(refused.why.clone()));
            }
            Some(Kind::Refused(refused)) if !refused.leader.is_empty() => {
                return Ok(End::Leader(refused.leader.clone()));
            }
            Some(Kind::Refused(refused)) => return Ok(End::Refused(refused.why.clone())),
            Some(Kind::Welcome(welcome)) => {
                welcomed = true;
                let silence_ms = welcome.heartbeat_ms.max(50) * SILENT_HEARTBEATS;
                silence = Duration::from_millis(silence_ms).max(CONNECT_LIMIT);
            }
            _ => {}
        }
        if links.send(Link::Message(Box::new(message))).await.is_err() {
            break;
        }
    }
    Ok(if welcomed { End::Served } else { End::Refused("closed without a word".to_string()) })
}

async fn connect(server: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"))
        .with_context(|| format!("server: {server} is no HOST:PORT"))?
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    endpoint.connect().await.with_context(|| format!("cannot connect to {server}"))
}

/// Half to all of it, so that the nodes of a cluster do not come back as one.
fn jittered(backoff_ms: u64) -> Duration {
    let half = backoff_ms / 2;
    let noise = clock::unix_ms().wrapping_mul(u64::from(std::process::id()) | 1) >> 3;
    Duration::from_millis(half + noise % half.max(1))
}
