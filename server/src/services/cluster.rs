//! `ClusterService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use rowen_api::v1;
use rowen_state::{Class, Cluster, Command, JobState, ReplicaId, Reply};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::invalid;
use crate::{
    auth::principal,
    backup::{self, BackupError},
    convert, members,
    server::{Done, Server},
    timing, versions,
};

pub(super) struct ClusterApi(pub(super) Arc<Server>);

/// Watchers see at most this many changes a second.
const WATCH_PERIOD: Duration = Duration::from_millis(50);

#[tonic::async_trait]
impl v1::cluster_service_server::ClusterService for ClusterApi {
    async fn get_status(
        &self,
        request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        let view = match request.get_ref().ask_replicas {
            true => self.0.read_at_leader(&request).await?, // it knows how far they are
            false => self.0.read_for(&request).await?,
        };
        let (server, walked) = (self.0.clone(), view.clone());
        // verify() walks the whole state.
        let status = rowen_raft::sim::blocking(move || status(&server, &walked));
        let mut status =
            status.await.map_err(|error| Status::internal(format!("verify: {error}")))?;
        if request.into_inner().ask_replicas {
            for (id, reads) in versions::ask(&self.0, &self.0.replica.members()).await {
                if let Some(replica) = status.replicas.iter_mut().find(|r| r.id == id.0) {
                    replica.reads_version = reads;
                }
            }
        }
        Ok(view.answer(status))
    }

    type WatchOccupancyStream = Pin<Box<dyn Stream<Item = Result<v1::Occupancy, Status>> + Send>>;

    async fn watch_occupancy(
        &self,
        request: Request<v1::WatchOccupancyRequest>,
    ) -> Result<Response<Self::WatchOccupancyStream>, Status> {
        let view = self.0.read_for(&request).await?;
        let mut views = self.0.feed.views.clone();
        views.mark_changed();
        let (sender, receiver) = mpsc::channel(1);
        rowen_raft::sim::spawn(async move {
            while views.changed().await.is_ok() {
                let view = views.borrow_and_update().clone();
                if sender.send(Ok(convert::occupancy(&view))).await.is_err() {
                    return;
                }
                tokio::time::sleep(WATCH_PERIOD).await;
            }
        });
        let answers: Self::WatchOccupancyStream = Box::pin(ReceiverStream::new(receiver));
        Ok(view.answer(answers))
    }

    async fn admit_replica(
        &self,
        request: Request<v1::AdmitReplicaRequest>,
    ) -> Result<Response<v1::AdmitReplicaResponse>, Status> {
        let principal = principal(&request)?;
        let v1::AdmitReplicaRequest { request, addr, reads_version } = request.into_inner();
        let id = convert::request_id(request).map_err(invalid)?;
        members::record(&self.0).await?;
        versions::admits(&self.0, reads_version)?;
        let command = Command::AdmitReplica { id: None, addr };
        let Done { index, reply } = self.0.propose(&principal, id, command).await?;
        let Reply::Replica(id) = reply else {
            return Err(Status::internal("admit answered otherwise"));
        };
        Ok(Response::new(v1::AdmitReplicaResponse { id: id.0, index, replicas: replicas(&self.0) }))
    }

    async fn remove_replica(
        &self,
        request: Request<v1::RemoveReplicaRequest>,
    ) -> Result<Response<v1::RemoveReplicaResponse>, Status> {
        let principal = principal(&request)?;
        let v1::RemoveReplicaRequest { request, id: replica } = request.into_inner();
        let id = convert::request_id(request).map_err(invalid)?;
        let command = Command::RemoveReplica(ReplicaId(replica));
        let done = self.0.propose(&principal, id, command).await?;
        Ok(Response::new(v1::RemoveReplicaResponse { index: done.index }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<v1::TransferLeadershipRequest>,
    ) -> Result<Response<v1::TransferLeadershipResponse>, Status> {
        self.0.read().await?; // only the leader can hand over
        let members = self.0.replica.members();
        let to = match request.into_inner().to {
            0 => members::successor(&members, self.0.replica.id()).ok_or_else(|| {
                Status::failed_precondition("there is no other voter; add a replica first")
            })?,
            id => rowen_raft::ReplicaId(id),
        };
        if !members.iter().any(|status| status.member.id == to && status.voter) {
            return Err(Status::not_found(format!(
                "to: replica {to} has no vote; see `rowen cluster status`"
            )));
        }
        let asked = self.0.replica.transfer_leadership(to).await;
        asked.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(v1::TransferLeadershipResponse { to: to.0 }))
    }

    async fn set_timing(
        &self,
        request: Request<v1::SetTimingRequest>,
    ) -> Result<Response<v1::SetTimingResponse>, Status> {
        let principal = principal(&request)?;
        let v1::SetTimingRequest { request, change } = request.into_inner();
        let id = convert::request_id(request).map_err(invalid)?;
        let _alone = self.0.changing_timing.lock().await;
        if self.0.read().await?.meta().timing.is_none() {
            timing::begin_now(&self.0).await?;
            self.0.read().await?; // shows it
        }
        let timing = timing::changed(&self.0, &change.unwrap_or_default());
        timing.validate().map_err(invalid)?;
        let command = Command::SetTiming { timing, granted: None };
        let index = self.0.propose(&principal, id, command).await?.index;
        Ok(Response::new(v1::SetTimingResponse { index, timing: Some(timing::to_proto(timing)) }))
    }

    type BackupStream = Pin<Box<dyn Stream<Item = Result<v1::BackupChunk, Status>> + Send>>;

    async fn backup(
        &self,
        request: Request<v1::BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let read = self.0.read_for(&request).await?;
        let view = read.clone();
        let replica = self.0.replica.clone();
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let send = |chunk: Vec<u8>| {
                sender
                    .blocking_send(Ok(v1::BackupChunk { data: chunk }))
                    .map_err(|_| BackupError::Gone)
            };
            if let Err(error) = backup::write(&view, replica.archive(), send)
                && !matches!(error, BackupError::Gone)
            {
                let _ = sender.blocking_send(Err(Status::internal(error.to_string())));
            }
        });
        let chunks: Self::BackupStream = Box::pin(ReceiverStream::new(receiver));
        Ok(read.answer(chunks))
    }
}

fn status(server: &Server, view: &Cluster) -> v1::ClusterStatus {
    let metrics = server.replica.metrics();
    let in_force = view.meta().timing;
    let time_ms = view.gpu_time_ms();
    let of = |class: Class| time_ms[class as usize];
    let jobs = |wanted: fn(JobState) -> bool| {
        view.jobs().values().filter(|job| wanted(job.state)).count() as u32
    };
    v1::ClusterStatus {
        replica: server.replica.id().0,
        replicas: replicas(server),
        term: metrics.term,
        applied: view.applied(),
        now_ms: view.now_ms(),
        state_hash: format!("{:032x}", view.state_hash()),
        incarnation: view.meta().incarnation,
        gang_gpu_ms: of(Class::Gang),
        filler_gpu_ms: of(Class::Filler),
        idle_gpu_ms: of(Class::Idle),
        down_gpu_ms: of(Class::Down),
        evictions: view.meta().evictions,
        jobs_queued: jobs(|state| matches!(state, JobState::Queued | JobState::Holding)),
        jobs_running: jobs(|state| {
            matches!(state, JobState::Starting | JobState::Running | JobState::Stopping)
        }),
        gpus: view.nodes().values().map(|node| node.gpus.len() as u32).sum(),
        usage: view
            .usage()
            .iter()
            .map(|(key, gpu_ms)| v1::UsageLine {
                tenant: key.tenant.clone(),
                class: key.class.as_str().into(),
                gpu_model: key.gpu_model.clone(),
                gpu_ms: *gpu_ms,
            })
            .collect(),
        violations: view.verify().iter().map(ToString::to_string).collect(),
        version: env!("CARGO_PKG_VERSION").into(),
        wal_syncs: metrics.sync_count,
        simulated: view.nodes().values().any(|node| node.simulated),
        checkpoint: server.checkpoints.agreed(),
        cluster_version: view.meta().version,
        timing: Some(timing::to_proto(timing::in_force(server, view))),
        timing_since: in_force.map_or(0, |in_force| in_force.since),
        timing_settling: in_force.is_some_and(|in_force| in_force.earlier.is_some()),
    }
}

/// The group as this replica sees it.
fn replicas(server: &Server) -> Vec<v1::ReplicaStatus> {
    let leader = server.replica.leadership().borrow().leader.clone();
    let members = server.replica.members().into_iter();
    members
        .map(|status| v1::ReplicaStatus {
            id: status.member.id.0,
            leader: leader.as_ref().is_some_and(|leader| leader.id == status.member.id),
            addr: status.member.addr,
            voter: status.voter,
            matched: status.matched,
            reads_version: None,
        })
        .collect()
}
