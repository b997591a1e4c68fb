//! The asking side: one connection a peer and purpose, a deadline on every request, taken from
//! what openraft grants. A peer that does not answer in time is an error like any other; openraft
//! backs off and asks again.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt};
use openraft::{
    BasicNode, OptionalSend, RPCTypes, RaftNetworkFactory,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable},
    network::{RPCOption, RaftNetworkV2, stream_append_sequential},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
        TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use super::{
    CHUNK_BYTES, MESSAGE_BYTES, convert, memory, pipeline,
    proto::{self, raft_transport_client::RaftTransportClient, snapshot_part::Part},
};
use crate::{
    Member,
    archive::{Archive, ArchiveRecord, Indexed},
    sim::MemoryNetwork,
    types::{Snapshot, SnapshotBytes, TypeConfig, Vote},
};

/// How a replica reaches the others.
#[derive(Clone)]
pub enum Network {
    /// gRPC.
    Grpc(Dial),
    /// Simulated, in memory.
    Memory(Arc<MemoryNetwork>),
}

impl From<Dial> for Network {
    fn from(dial: Dial) -> Network {
        Network::Grpc(dial)
    }
}

impl From<Arc<MemoryNetwork>> for Network {
    fn from(network: Arc<MemoryNetwork>) -> Network {
        Network::Memory(network)
    }
}

/// Makes a connection, not yet established, to an address. Where TLS and simulated networks come
/// in.
pub type Dial = Arc<dyn Fn(&str) -> io::Result<Channel> + Send + Sync>;

const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// For the next part of an archive: a peer may have to open old periods first.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Plain TCP.
pub fn dial_tcp() -> Dial {
    Arc::new(|addr| {
        let endpoint = Endpoint::from_shared(format!("http://{addr}")).map_err(io::Error::other)?;
        Ok(endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .connect_lazy())
    })
}

/// Snapshots and heartbeats have connections of their own, so that neither waits behind entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Entries,
    Heartbeat,
    Snapshot,
}

/// Knows how to reach each peer.
#[derive(Clone)]
pub(crate) struct Peers {
    own_id: u64,
    network: Network,
    channels: Arc<Mutex<BTreeMap<(String, Purpose), Channel>>>,
}

impl Peers {
    pub(crate) fn new(own_id: u64, network: Network) -> Peers {
        Peers { own_id, network, channels: Arc::default() }
    }

    fn peer(&self, target: u64, node: &BasicNode, purpose: Purpose) -> Peer {
        let way = match &self.network {
            Network::Grpc(_) => Way::Grpc(self.client(&node.addr, purpose)),
            Network::Memory(network) => Way::Memory(memory::Link {
                network: Arc::clone(network),
                from: self.own_id,
                to: target,
                addr: node.addr.clone(),
            }),
        };
        Peer { own_id: self.own_id, target, purpose, way }
    }

    fn client(&self, addr: &str, purpose: Purpose) -> Result<Client, String> {
        let mut channels = self.channels.lock().expect("no holder of this lock panics");
        let key = (addr.to_string(), purpose);
        let channel = match channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let Network::Grpc(dial) = &self.network else {
                    return Err("no gRPC under simulation".into());
                };
                let channel = dial(addr).map_err(|error| format!("{addr}: {error}"))?;
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(RaftTransportClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES))
    }
}

pub(super) type Client = RaftTransportClient<Channel>;

impl RaftNetworkFactory<TypeConfig> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, node, Purpose::Entries)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, node, Purpose::Heartbeat)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        self.peer(target, node, Purpose::Snapshot)
    }
}

/// One peer, for one purpose.
pub(crate) struct Peer {
    own_id: u64,
    target: u64,
    purpose: Purpose,
    way: Way,
}

enum Way {
    /// The error is that of an address that cannot be one.
    Grpc(Result<Client, String>),
    Memory(memory::Link),
}

/// What a request may take, and for whom, for the error.
pub(super) struct Deadline {
    action: RPCTypes,
    id: u64,
    pub(super) target: u64,
    pub(super) timeout: Duration,
}

impl Deadline {
    pub(super) async fn run<T>(
        &self,
        request: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, RPCError<TypeConfig>> {
        match tokio::time::timeout(self.timeout, request).await {
            Ok(answer) => answer.map_err(|status| rpc_error(&status)),
            Err(_) => Err(self.passed()),
        }
    }

    pub(super) fn passed(&self) -> RPCError<TypeConfig> {
        RPCError::Timeout(Timeout {
            action: self.action,
            id: self.id,
            target: self.target,
            timeout: self.timeout,
        })
    }
}

pub(super) fn rpc_error(status: &Status) -> RPCError<TypeConfig> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition => {
            RPCError::Unreachable(Unreachable::new(status))
        }
        _ => RPCError::Network(NetworkError::new(status)),
    }
}

impl Peer {
    fn client(&self) -> Result<Client, RPCError<TypeConfig>> {
        match &self.way {
            Way::Grpc(Ok(client)) => Ok(client.clone()),
            Way::Grpc(Err(why)) => Err(RPCError::Unreachable(Unreachable::from_string(why))),
            Way::Memory(_) => unreachable!("every request looks at the way first"),
        }
    }

    fn deadline(&self, action: RPCTypes, timeout: Duration) -> Deadline {
        Deadline { action, id: self.own_id, target: self.target, timeout }
    }
}

type StreamAnswer = Result<StreamAppendResult<TypeConfig>, RPCError<TypeConfig>>;

impl RaftNetworkV2<TypeConfig> for Peer {
    type SnapshotData = SnapshotBytes;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let soft = option.soft_ttl();
        let timeout = if rpc.entries.is_empty() { soft } else { pipeline::patience(soft) };
        let deadline = self.deadline(RPCTypes::AppendEntries, timeout);
        if let Way::Memory(link) = &self.way {
            return deadline.run(link.append(rpc)).await;
        }
        let mut client = self.client()?;
        let request = convert::append_to(self.target, rpc);
        let work = async { convert::appended_from(client.append(request).await?.into_inner()) };
        deadline.run(work).await
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, StreamAnswer>, RPCError<TypeConfig>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.purpose == Purpose::Heartbeat || matches!(self.way, Way::Memory(_)) {
            return stream_append_sequential(self, input, option);
        }
        let timeout = pipeline::patience(option.soft_ttl());
        let deadline = self.deadline(RPCTypes::AppendEntries, timeout);
        let client = self.client();
        Box::pin(async move { pipeline::run(client?, deadline, input).await })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = self.deadline(RPCTypes::Vote, option.soft_ttl());
        if let Way::Memory(link) = &self.way {
            return deadline.run(link.vote(rpc)).await;
        }
        let mut client = self.client()?;
        let request = convert::vote_request_to(self.target, &rpc);
        let work = async { convert::voted_from(client.vote(request).await?.into_inner()) };
        deadline.run(work).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = self.deadline(RPCTypes::Vote, option.soft_ttl());
        if let Way::Memory(link) = &self.way {
            return deadline.run(link.pre_vote(rpc)).await;
        }
        let mut client = self.client()?;
        let request = convert::vote_request_to(self.target, &rpc);
        let work = async { convert::voted_from(client.pre_vote(request).await?.into_inner()) };
        deadline.run(work).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let deadline = self.deadline(RPCTypes::InstallSnapshot, option.soft_ttl());
        if let Way::Memory(link) = &self.way {
            let work = deadline.run(link.snapshot(vote, snapshot));
            return tokio::select! {
                closed = cancel => Err(StreamingError::Closed(closed)),
                answer = work => Ok(answer?),
            };
        }
        let mut client = self.client()?;
        let parts = snapshot_parts(self.target, &vote, &snapshot);
        let work = async {
            let answer = client.snapshot(Request::new(parts)).await?.into_inner();
            convert::vote_from(answer.vote)
        };
        let work = deadline.run(work);
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            answer = work => Ok(SnapshotResponse::new(answer?)),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = self.deadline(RPCTypes::TransferLeader, option.soft_ttl());
        if let Way::Memory(link) = &self.way {
            return deadline.run(link.transfer_leader(rpc)).await;
        }
        let mut client = self.client()?;
        let request = convert::transfer_to(self.target, &rpc);
        let work = async {
            convert::transferred_from(client.transfer_leader(request).await?.into_inner())
        };
        deadline.run(work).await
    }
}

/// A header, then the body in chunks, made one at a time.
fn snapshot_parts(
    target: u64,
    vote: &Vote,
    snapshot: &Snapshot,
) -> impl futures::Stream<Item = proto::SnapshotPart> + Send + 'static {
    let body = Arc::clone(&snapshot.snapshot);
    let header = convert::snapshot_header(target, vote, &snapshot.meta, &body);
    let chunks = body.len().div_ceil(CHUNK_BYTES);
    let chunk = move |number: usize| {
        let start = number * CHUNK_BYTES;
        Part::Chunk(body[start..body.len().min(start + CHUNK_BYTES)].to_vec())
    };
    let parts = std::iter::once(Part::Header(header)).chain((0..chunks).map(chunk));
    futures::stream::iter(parts.map(|part| proto::SnapshotPart { part: Some(part) }))
}

/// Asks the leader up to where a read must see the log.
pub(crate) async fn ask_read_index(peers: &Peers, leader: &Member) -> Result<u64, Status> {
    let client = peers.client(&leader.addr, Purpose::Heartbeat);
    let request = proto::ReadIndexRequest { to: leader.id.0 };
    let answer = client.map_err(Status::unavailable)?.read_index(request).await?;
    Ok(answer.into_inner().index)
}

async fn archive_parts(
    peers: &Peers,
    target: u64,
    addr: &str,
) -> Result<BoxStream<'static, Result<proto::ArchivePart, Status>>, Status> {
    if let Network::Memory(network) = &peers.network {
        let from = peers.own_id;
        let link =
            memory::Link { network: Arc::clone(network), from, to: target, addr: addr.into() };
        return Ok(Box::pin(futures::stream::iter(link.archive().await?)));
    }
    let mut client = peers.client(addr, Purpose::Snapshot).map_err(Status::unavailable)?;
    let request = proto::ArchiveRequest { to: target };
    Ok(Box::pin(client.archive(request).await?.into_inner()))
}

/// Copies a peer's archive into ours and ends our gap if that covers it. Says whether it did.
pub(crate) async fn fetch_archive(
    peers: &Peers,
    target: u64,
    addr: &str,
    archive: &Archive,
) -> io::Result<bool> {
    let gaps = archive.gaps();
    let silent = |_| io::Error::new(io::ErrorKind::TimedOut, "the peer says nothing");
    let asked = tokio::time::timeout(ARCHIVE_PATIENCE, archive_parts(peers, target, addr));
    let mut parts = asked.await.map_err(silent)?.map_err(io::Error::other)?;
    let mut applied = None;
    loop {
        let part = tokio::time::timeout(ARCHIVE_PATIENCE, parts.next());
        let Some(part) = part.await.map_err(silent)? else { break };
        let part = part.map_err(io::Error::other)?;
        if part.incomplete {
            return Ok(false);
        }
        // The first part's: what comes later was read later.
        applied.get_or_insert(part.applied);
        let items = part.items.into_iter().map(|item| Indexed {
            index: item.index,
            record: ArchiveRecord { key: item.key, value: item.value },
        });
        archive.merge(items.collect())?;
    }
    match applied {
        Some(applied) => Ok(archive.close_gap(applied, gaps)?),
        None => Ok(false),
    }
}
