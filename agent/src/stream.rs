//! The connection to the control plane.
//!
//! Owns finding the leader, the gRPC stream and reconnecting. Never looks into
//! messages, except for `Refused` (where to go instead, and when) and the heartbeat
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
/// A server that has no time for us now cannot send us away for longer.
const LATER_MAX_MS: u64 = 60_000;

/// What the connection tells the shell.
#[derive(Debug)]
pub enum Link {
    /// Connected: say hello through this.
    Up(Outbox),
    /// From the server.
    Message(Box<ServerMessage>),
    /// Nothing can be sent until the next `Up`.
    Down,
}

/// The way out.
#[derive(Clone, Debug)]
pub struct Outbox {
    /// For everything but logs.
    pub control: mpsc::Sender<AgentMessage>,
    /// For pieces of logs.
    pub logs: mpsc::Sender<AgentMessage>,
}

/// Keeps the connection of `node` up until a refusal is final. `drop_it` ends the present
/// one: the shell found it to lead to a deposed leader.
pub async fn run(
    node: &str,
    servers: Vec<String>,
    links: mpsc::Sender<Link>,
    drop_it: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut jitter = Jitter::new(node);
    let mut backoff_ms = BACKOFF_MIN_MS;
    // To a server that will take us later: a new connection would cost it more than the hello.
    let mut kept: Option<(String, Channel)> = None;
    let mut leader: Option<String> = None;
    let mut next = 0;
    if servers.is_empty() {
        bail!("server: none given; pass --server HOST:PORT");
    }
    loop {
        let server = leader.take().unwrap_or_else(|| servers[next % servers.len()].clone());
        let channel = match kept.take() {
            Some((to, channel)) if to == server => Ok(channel),
            _ => connect(&server).await,
        };
        let end = match &channel {
            Ok(channel) => attach(channel.clone(), &links, &drop_it).await,
            Err(error) => Err(anyhow::anyhow!("{error:#}")),
        };
        if links.send(Link::Down).await.is_err() {
            return Ok(()); // The shell is gone.
        }
        match end {
            Ok(End::Final(why)) => bail!("{server} refused this node: {why}"),
            Ok(End::Later(after_ms)) => {
                backoff_ms = BACKOFF_MIN_MS;
                kept = channel.ok().map(|channel| (server.clone(), channel));
                leader = Some(server);
                sleep(jitter.up_to_a_tenth_more(after_ms.min(LATER_MAX_MS))).await;
                continue;
            }
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
        sleep(jitter.half_to_all(backoff_ms)).await;
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
    /// It leads, and will take us after so many milliseconds.
    Later(u64),
    /// Never.
    Final(String),
}

async fn attach(
    channel: Channel,
    links: &mpsc::Sender<Link>,
    drop_it: &Notify,
) -> anyhow::Result<End> {
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
            Some(Kind::Refused(refused)) if refused.retry_after_ms > 0 => {
                return Ok(End::Later(refused.retry_after_ms));
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

/// Noise that differs from node to node, also where every agent has the same process id, as in
/// containers: thousands of them must not come back as one.
struct Jitter(u64);

impl Jitter {
    fn new(node: &str) -> Self {
        let name = node.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        Jitter(name ^ clock::unix_ms().rotate_left(32) ^ u64::from(std::process::id()))
    }

    fn half_to_all(&mut self, ms: u64) -> Duration {
        Duration::from_millis(ms / 2 + self.below(ms / 2))
    }

    /// Never earlier: the server has kept that moment free for us.
    fn up_to_a_tenth_more(&mut self, ms: u64) -> Duration {
        Duration::from_millis(ms + self.below(ms / 10))
    }

    /// splitmix64
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_that_are_sent_away_together_come_back_apart() {
        let waits = |how: fn(&mut Jitter, u64) -> Duration| {
            let nodes = (0..1000).map(|at| format!("node{at:04}"));
            nodes.map(|node| how(&mut Jitter::new(&node), 1000)).collect::<Vec<_>>()
        };
        let backoffs = waits(Jitter::half_to_all);
        assert!(backoffs.iter().all(|wait| (500..1000).contains(&wait.as_millis())));
        let mut buckets = [0; 10];
        backoffs.iter().for_each(|wait| buckets[(wait.as_millis() as usize - 500) / 50] += 1);
        assert!(buckets.iter().all(|count| (50..200).contains(count)), "{buckets:?}");
        let later = waits(Jitter::up_to_a_tenth_more);
        assert!(later.iter().all(|wait| (1000..1100).contains(&wait.as_millis())), "never early");
    }
}
