//! The answering side: hands each request to openraft. Refuses what is meant for another replica,
//! and whatever comes before this replica has been opened whole.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
};

use futures::{Stream, StreamExt};
use openraft::{
    Raft, ReadPolicy, Snapshot as RaftSnapshot,
    errors::{LinearizableReadError, RaftError},
    raft::AppendEntriesRequest,
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    CHUNK_BYTES, MESSAGE_BYTES, SNAPSHOT_BYTES, convert,
    proto::{
        self,
        raft_transport_server::{RaftTransport, RaftTransportServer},
        snapshot_part::Part,
    },
};
use crate::{
    archive::{Archive, ArchiveError, Indexed},
    machine::Applier,
    recovering::Recovering,
    types::{Snapshot, SnapshotBytes, TypeConfig},
};

/// The raft transport as a service for a tonic router.
pub type RaftService = RaftTransportServer<TransportService>;

/// Answers peers.
pub struct TransportService {
    pub(crate) own_id: u64,
    pub(crate) raft: Raft<TypeConfig, Applier>,
    pub(crate) archive: Arc<Archive>,
    pub(crate) stopped: Arc<OnceLock<String>>,
    pub(crate) recovering: Arc<Recovering>,
}

impl TransportService {
    pub(crate) fn service(self) -> RaftService {
        RaftTransportServer::new(self)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES)
    }

    pub(super) fn check(&self, to: u64) -> Result<(), Status> {
        if let Some(why) = self.stopped.get() {
            return Err(Status::unavailable(format!("replica {} stopped: {why}", self.own_id)));
        }
        check_target(self.own_id, to)
    }

    /// Whatever could make somebody leader.
    pub(super) fn check_election(&self, to: u64) -> Result<(), Status> {
        self.check(to)?;
        if self.recovering.is_active() {
            let why = format!("replica {} lost the end of its log: no votes yet", self.own_id);
            return Err(Status::unavailable(why));
        }
        Ok(())
    }
}

fn check_target(own_id: u64, to: u64) -> Result<(), Status> {
    if to != own_id {
        let why = format!("this is replica {own_id}, not {to}: correct its address");
        return Err(Status::failed_precondition(why));
    }
    Ok(())
}

pub(super) fn stopped(error: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this replica stopped: {error}"))
}

#[tonic::async_trait]
impl RaftTransport for TransportService {
    async fn append(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendResponse>, Status> {
        let request = request.into_inner();
        self.check(request.to)?;
        let rpc = convert::append_from(request)?;
        let answer = self.raft.append_entries(rpc).await.map_err(stopped)?;
        Ok(Response::new(convert::appended_to(answer)))
    }

    type AppendStreamStream =
        Pin<Box<dyn Stream<Item = Result<proto::AppendAnswer, Status>> + Send>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<proto::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        self.check(self.own_id)?;
        let refused = Arc::new(OnceLock::new());
        let requests = Requests {
            own_id: self.own_id,
            requests: request.into_inner(),
            refused: Arc::clone(&refused),
        };
        let requests = futures::stream::unfold(requests, Requests::next);
        let answers = self.raft.stream_append(requests);
        let answers = answers.map(|answer| answer.map(convert::answer_to).map_err(stopped));
        // What could not be read is told after the answers to all that came before it.
        let refusal = futures::stream::once(async move { refused.get().cloned() });
        let refusal = refusal.filter_map(|refused| async move { refused.map(Err) });
        Ok(Response::new(Box::pin(answers.chain(refusal))))
    }

    async fn vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteResponse>, Status> {
        let request = request.into_inner();
        self.check_election(request.to)?;
        let rpc = convert::vote_request_from(request)?;
        let answer = self.raft.vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(convert::voted_to(&answer)))
    }

    async fn pre_vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteResponse>, Status> {
        let request = request.into_inner();
        self.check_election(request.to)?;
        let rpc = convert::vote_request_from(request)?;
        let answer = self.raft.pre_vote(rpc).await.map_err(stopped)?;
        Ok(Response::new(convert::voted_to(&answer)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPart>>,
    ) -> Result<Response<proto::SnapshotResponse>, Status> {
        let mut parts = request.into_inner();
        let Some(Part::Header(header)) = next_part(&mut parts).await? else {
            return Err(convert::missing("header"));
        };
        self.check(header.to)?;
        let vote = convert::vote_from(header.vote)?;
        let meta = convert::snapshot_meta(&header)?;
        let body = receive_body(&mut parts, &header).await?;
        let snapshot: Snapshot = RaftSnapshot { meta, snapshot: SnapshotBytes::new(body) };
        let answer = self.raft.install_full_snapshot(vote, snapshot).await.map_err(stopped)?;
        Ok(Response::new(proto::SnapshotResponse { vote: Some(convert::vote_to(&answer.vote)) }))
    }

    /// Waits for no apply here: who asks waits for its own.
    async fn read_index(
        &self,
        request: Request<proto::ReadIndexRequest>,
    ) -> Result<Response<proto::ReadIndexResponse>, Status> {
        self.check(request.into_inner().to)?;
        match self.raft.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(Response::new(proto::ReadIndexResponse { index: read.index() })),
            Err(RaftError::Fatal(fatal)) => Err(stopped(fatal)),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => {
                Err(Status::failed_precondition("this replica does not lead"))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(Status::aborted("no majority of the replicas answers"))
            }
        }
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferRequest>,
    ) -> Result<Response<proto::TransferResponse>, Status> {
        let request = request.into_inner();
        self.check_election(request.to)?;
        let rpc = convert::transfer_from(request)?;
        let answer = self.raft.handle_transfer_leader(rpc).await.map_err(stopped)?;
        Ok(Response::new(convert::transferred_to(answer)))
    }

    type ArchiveStream = Pin<Box<dyn Stream<Item = Result<proto::ArchivePart, Status>> + Send>>;

    async fn archive(
        &self,
        request: Request<proto::ArchiveRequest>,
    ) -> Result<Response<Self::ArchiveStream>, Status> {
        self.check(request.into_inner().to)?;
        let parts = archive_parts(&self.archive).map_err(stopped)?;
        Ok(Response::new(Box::pin(futures::stream::iter(parts))))
    }
}

/// The requests of one stream, up to the first that cannot be used.
struct Requests {
    own_id: u64,
    requests: Streaming<proto::AppendRequest>,
    refused: Arc<OnceLock<Status>>,
}

impl Requests {
    async fn next(mut self) -> Option<(AppendEntriesRequest<TypeConfig>, Requests)> {
        match self.read().await {
            Ok(rpc) => Some((rpc?, self)),
            Err(status) => {
                self.refused.set(status).ok();
                None
            }
        }
    }

    async fn read(&mut self) -> Result<Option<AppendEntriesRequest<TypeConfig>>, Status> {
        let Some(request) = self.requests.message().await? else { return Ok(None) };
        check_target(self.own_id, request.to)?;
        convert::append_from(request).map(Some)
    }
}

async fn next_part(parts: &mut Streaming<proto::SnapshotPart>) -> Result<Option<Part>, Status> {
    Ok(parts.message().await?.and_then(|part| part.part))
}

async fn receive_body(
    parts: &mut Streaming<proto::SnapshotPart>,
    header: &proto::SnapshotHeader,
) -> Result<Vec<u8>, Status> {
    if header.length > SNAPSHOT_BYTES {
        let why = format!("a snapshot of {} bytes; at most {SNAPSHOT_BYTES}", header.length);
        return Err(Status::resource_exhausted(why));
    }
    let mut body = Vec::new();
    while let Some(part) = next_part(parts).await? {
        let Part::Chunk(chunk) = part else {
            return Err(Status::invalid_argument("a second header"));
        };
        if (body.len() + chunk.len()) as u64 > header.length {
            return Err(Status::invalid_argument("more bytes than the header said"));
        }
        body.extend_from_slice(&chunk);
    }
    if body.len() as u64 != header.length || crc32fast::hash(&body) != header.crc {
        return Err(Status::data_loss("the snapshot did not arrive whole"));
    }
    Ok(body)
}

/// The archive in key order, read as the peer takes it.
pub(super) fn archive_parts(
    archive: &Archive,
) -> Result<impl Iterator<Item = Result<proto::ArchivePart, Status>> + Send + use<>, ArchiveError> {
    let applied = archive.applied().unwrap_or(0);
    let mut items = archive.scan_indexed(b"")?;
    // After the scan has opened what it reads: it may set a damaged period aside.
    let incomplete = archive.has_gap()?;
    let first = proto::ArchivePart { applied, items: Vec::new(), incomplete };
    let rest = std::iter::from_fn(move || {
        let part = next_archive_part(applied, &mut items);
        (!matches!(&part, Ok(part) if part.items.is_empty())).then_some(part)
    });
    Ok(std::iter::once(Ok(first)).chain(rest.take_while(move |_| !incomplete)))
}

fn next_archive_part(
    applied: u64,
    items: &mut impl Iterator<Item = Result<Indexed, ArchiveError>>,
) -> Result<proto::ArchivePart, Status> {
    let mut part = proto::ArchivePart { applied, items: Vec::new(), incomplete: false };
    let mut bytes = 0;
    for item in items {
        let Indexed { index, record } = item.map_err(stopped)?;
        bytes += record.key.len() + record.value.len() + 32;
        part.items.push(proto::ArchiveItem { key: record.key, index, value: record.value });
        if bytes >= CHUNK_BYTES {
            break;
        }
    }
    Ok(part)
}

#[cfg(test)]
mod tests {
    use super::archive_parts;
    use crate::archive::{Archive, ArchiveRecord, Indexed, Retention};

    fn open(dir: &std::path::Path) -> Archive {
        loop {
            match Archive::open(dir, Retention { period_entries: 10, periods: 3 }) {
                Err(error) if error.is_locked() => std::thread::yield_now(),
                opened => return opened.unwrap(),
            }
        }
    }

    #[test]
    fn an_archive_whose_damage_is_found_by_sending_it_is_incomplete() {
        let dir = tempfile::tempdir().unwrap();
        let archive = open(dir.path());
        for index in 1..=25 {
            let record = ArchiveRecord { key: vec![index as u8], value: vec![] };
            archive.write(index, vec![Indexed { index, record }], None).unwrap();
        }
        assert!(archive_parts(&archive).unwrap().all(|part| !part.unwrap().incomplete));
        archive.close();
        drop(archive);
        let db = dir.path().join("10/db");
        let bytes = std::fs::metadata(&db).unwrap().len() as usize;
        std::fs::write(db, vec![0x5a; bytes]).unwrap();
        let archive = open(dir.path());
        let parts: Vec<_> = archive_parts(&archive).unwrap().map(Result::unwrap).collect();
        assert!(matches!(&parts[..], [only] if only.incomplete));
    }
}
