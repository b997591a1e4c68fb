//! `ClusterService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use rowen_api::v1;
use rowen_state::{Class, Cluster, JobState};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{convert, server::Server};

pub(super) struct ClusterApi(pub(super) Arc<Server>);

/// Watchers see at most this many changes a second.
const WATCH_PERIOD: Duration = Duration::from_millis(50);

#[tonic::async_trait]
impl v1::cluster_service_server::ClusterService for ClusterApi {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::ClusterStatus>, Status> {
        let view = self.0.read().await?;
        let server = self.0.clone();
        // verify() walks the whole state.
        let status = tokio::task::spawn_blocking(move || status(&server, &view));
        Ok(Response::new(
            status.await.map_err(|error| Status::internal(format!("verify: {error}")))?,
        ))
    }

    type WatchOccupancyStream = Pin<Box<dyn Stream<Item = Result<v1::Occupancy, Status>> + Send>>;

    async fn watch_occupancy(
        &self,
        _: Request<v1::WatchOccupancyRequest>,
    ) -> Result<Response<Self::WatchOccupancyStream>, Status> {
        let mut views = self.0.feed.views.clone();
        views.mark_changed();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            while views.changed().await.is_ok() {
                let view = views.borrow_and_update().clone();
                if sender.send(Ok(convert::occupancy(&view))).await.is_err() {
                    return;
                }
                tokio::time::sleep(WATCH_PERIOD).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn status(server: &Server, view: &Cluster) -> v1::ClusterStatus {
    let metrics = server.replica.metrics();
    let leader = server.replica.leadership().borrow().leader.clone();
    let time_ms = view.gpu_time_ms();
    let of = |class: Class| time_ms[class as usize];
    let jobs = |wanted: fn(JobState) -> bool| {
        view.jobs().values().filter(|job| wanted(job.state)).count() as u32
    };
    v1::ClusterStatus {
        replica: server.config.replica,
        replicas: metrics
            .members
            .iter()
            .map(|member| v1::ReplicaStatus {
                id: member.id.0,
                addr: member.addr.clone(),
                leader: leader.as_ref().is_some_and(|leader| leader.id == member.id),
            })
            .collect(),
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
            .map(|(key, gpu_ms)| v1::UsageLine {
                tenant: key.tenant.clone(),
                class: key.class.as_str().into(),
                gpu_model: key.gpu_model.clone(),
                gpu_ms,
            })
            .collect(),
        violations: view.verify().iter().map(ToString::to_string).collect(),
        version: env!("CARGO_PKG_VERSION").into(),
        wal_syncs: metrics.sync_count,
        simulated: view.nodes().values().any(|node| node.simulated),
    }
}
