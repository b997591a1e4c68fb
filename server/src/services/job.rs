//! `JobService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::Stream;
use rowen_api::v1;
use rowen_placement as placement;
use rowen_planted::{Bug, planted};
use rowen_state::{Cluster, Command, Job, JobEvent, JobId, JobSpec, Reply, codec};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use super::invalid;
use crate::{
    auth::{Principal, principal},
    convert,
    server::{Done, Server},
    what_if::what_if,
};

mod logs;

pub(super) struct JobApi(pub(super) Arc<Server>);

/// Jobs of one `SubmitJobs`: of one client the state remembers the answers to as many requests.
const TOGETHER: usize = 64;
/// Lines of a story that `GetJob` sends, the newest.
const STORY_LINES: usize = 100;
/// A watched job of which nothing is heard is asked after this often.
const CONFIRM_PERIOD: Duration = Duration::from_secs(5);

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::job_service_server::JobService for JobApi {
    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let principal = principal(&request)?;
        Ok(Response::new(self.submit(&principal, request.into_inner()).await?))
    }

    async fn submit_jobs(
        &self,
        request: Request<v1::SubmitJobsRequest>,
    ) -> Result<Response<v1::SubmitJobsResponse>, Status> {
        let principal = principal(&request)?;
        let jobs = request.into_inner().jobs;
        if jobs.is_empty() || jobs.len() > TOGETHER {
            let count = jobs.len();
            return Err(Status::invalid_argument(format!(
                "jobs: are {count}; send 1 to {TOGETHER}"
            )));
        }
        // Proposed in their order and at once: they share an append and a sync.
        let submitted = jobs.into_iter().map(|job| self.submit(&principal, job));
        let mut results = futures::future::join_all(submitted).await;
        // A replica that does not lead says so as it does to one job: the client goes elsewhere.
        let moved = |result: &Result<_, Status>| {
            result.as_ref().is_err_and(|status| status.code() == Code::Unavailable)
        };
        if results.iter().all(moved)
            && let Some(Err(status)) = results.pop()
        {
            return Err(status);
        }
        let jobs = results.into_iter().map(submit_result).collect();
        Ok(Response::new(v1::SubmitJobsResponse { jobs }))
    }

    async fn plan_job(
        &self,
        request: Request<v1::PlanJobRequest>,
    ) -> Result<Response<v1::PlanJobResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let spec = checked(request.into_inner().spec)?;
        let planned = view.clone();
        let planned = rowen_raft::sim::blocking(move || plan(&planned, &spec)).await;
        Ok(view.answer(
            planned.map_err(|error| Status::internal(format!("the planner failed: {error}")))?,
        ))
    }

    async fn what_if(
        &self,
        request: Request<v1::WhatIfRequest>,
    ) -> Result<Response<v1::WhatIfResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let (copied, asked) = (view.clone(), request.into_inner());
        let found = rowen_raft::sim::blocking(move || what_if(&copied, asked)).await;
        let found =
            found.map_err(|error| Status::internal(format!("the planner failed: {error}")))?;
        Ok(view.answer(found?))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let request = request.into_inner();
        let wanted = |job: &&Job| {
            (request.all || !job.state.ended())
                && (request.tenant.is_empty() || request.tenant == job.spec.tenant)
                && (request.queue.is_empty() || request.queue == job.spec.queue)
        };
        let jobs = view.jobs().values().filter(wanted).map(|job| convert::job_to_proto(&view, job));
        Ok(view.answer(v1::ListJobsResponse { jobs: jobs.collect(), index: view.applied() }))
    }

    async fn get_job(
        &self,
        request: Request<v1::GetJobRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let view = self.0.read_for(&request).await?;
        let text = request.into_inner().id;
        let job = self.find(&view, &text)?;
        let mut answer = convert::job_to_proto(&view, &job);
        answer.events = self.story(job.id)?;
        Ok(view.answer(answer))
    }

    async fn why_job(
        &self,
        request: Request<v1::WhyJobRequest>,
    ) -> Result<Response<v1::WhyJobResponse>, Status> {
        let view = self.0.read_for(&request).await?;
        let text = request.into_inner().id;
        let job = self.find(&view, &text)?;
        let explained = view.clone();
        let explained = rowen_raft::sim::blocking(move || why(&explained, &job)).await;
        Ok(view.answer(
            explained.map_err(|error| Status::internal(format!("the planner failed: {error}")))?,
        ))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let job = self.find(&*self.0.read().await?, &request.id)?.id;
        let done = self.0.propose(&principal, id, Command::CancelJob(job)).await?;
        Ok(Response::new(v1::CancelJobResponse { index: done.index }))
    }

    async fn requeue_job(
        &self,
        request: Request<v1::RequeueJobRequest>,
    ) -> Result<Response<v1::RequeueJobResponse>, Status> {
        let principal = principal(&request)?;
        let request = request.into_inner();
        let id = convert::request_id(request.request).map_err(invalid)?;
        let job = self.find(&*self.0.read().await?, &request.id)?.id;
        let done = self.0.propose(&principal, id, Command::RequeueJob(job)).await?;
        Ok(Response::new(v1::RequeueJobResponse { index: done.index }))
    }

    type WatchJobStream = Answers<v1::Job>;

    async fn watch_job(
        &self,
        request: Request<v1::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let view = self.0.read_for(&request).await?;
        let id = self.find(&view, &request.into_inner().id)?.id;
        let server = self.0.clone();
        let (sender, receiver) = mpsc::channel(16);
        rowen_raft::sim::spawn(async move { watch(&server, id, &sender).await });
        let answers: Self::WatchJobStream = Box::pin(ReceiverStream::new(receiver));
        Ok(view.answer(answers))
    }

    type ReadLogsStream = Answers<v1::LogLine>;

    async fn read_logs(
        &self,
        request: Request<v1::ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let view = self.0.read().await?; // the agents' streams end at the leader
        let request = request.into_inner();
        let job = self.find(&view, &request.id)?;
        Ok(Response::new(logs::read(self.0.clone(), &view, &job, &request)?))
    }
}

/// Sends a job whenever something of it changed, until it has ended or nobody listens.
async fn watch(server: &Arc<Server>, id: JobId, sender: &mpsc::Sender<Result<v1::Job, Status>>) {
    let api = JobApi(server.clone());
    let mut views = server.feed.views.clone();
    views.mark_changed();
    let mut last = None;
    loop {
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
            // No news: either nothing happens, or this replica is cut off and the job has
            // ended long ago. Then the watcher must go away.
            () = tokio::time::sleep(CONFIRM_PERIOD) => {
                if let Err(status) = server.linear().await {
                    let _ = sender.send(Err(status)).await;
                    return;
                }
            }
        }
        let view = views.borrow_and_update().clone();
        // An ended job may already have left the state for the archive.
        let job = match api.find(&view, &id.to_string()) {
            Ok(job) => job,
            Err(status) => {
                let _ = sender.send(Err(status)).await;
                return;
            }
        };
        if planted(Bug::WatchSkips) && job.reason_index.is_multiple_of(3) && !job.state.ended() {
            continue;
        }
        let key = (job.state, job.attempt, job.reason.clone());
        if last.as_ref() != Some(&key) {
            last = Some(key);
            if sender.send(Ok(convert::job_to_proto(&view, &job))).await.is_err() {
                return;
            }
        }
        if job.state.ended() {
            return;
        }
    }
}

impl JobApi {
    async fn submit(
        &self,
        principal: &Principal,
        request: v1::SubmitJobRequest,
    ) -> Result<v1::SubmitJobResponse, Status> {
        let id = convert::request_id(request.request).map_err(invalid)?;
        let spec = checked(request.spec)?;
        let Done { index, reply } = self.0.propose(principal, id, Command::SubmitJob(spec)).await?;
        let Reply::Job(id) = reply else {
            return Err(Status::internal("submit answered otherwise"));
        };
        Ok(v1::SubmitJobResponse { id: id.0, index })
    }

    /// The job of that id, in the state or the archive, or the only live one of that name.
    fn find(&self, view: &Cluster, text: &str) -> Result<Job, Status> {
        if let Ok(id) = text.parse().map(JobId) {
            if let Some(job) = view.jobs().get(id) {
                return Ok(job.clone());
            }
            return self.archived(id)?.ok_or_else(|| no_job(text));
        }
        let named: Vec<_> = view.jobs().values().filter(|job| job.spec.name == text).collect();
        let live: Vec<_> = named.iter().filter(|job| !job.state.ended()).collect();
        match live[..] {
            [job] => Ok((*job).clone()),
            [_, _, ..] => Err(Status::invalid_argument(format!(
                "id: several jobs are called {text}; use a number from `rowen job list`"
            ))),
            // All have ended: the newest is meant.
            [] => named.last().map(|job| (*job).clone()).ok_or_else(|| no_job(text)),
        }
    }

    fn archived(&self, id: JobId) -> Result<Option<Job>, Status> {
        let archive = self.0.replica.archive();
        let found = archive.get(&Cluster::job_key(id)).map_err(archive_status)?;
        found.map(|bytes| codec::decode(&bytes).map_err(archive_status)).transpose()
    }

    fn story(&self, id: JobId) -> Result<Vec<v1::JobEvent>, Status> {
        let archive = self.0.replica.archive();
        let mut events = Vec::new();
        for line in archive.scan(&Cluster::story_prefix(id)).map_err(archive_status)? {
            let line = line.map_err(archive_status)?;
            let event: JobEvent = codec::decode(&line.value).map_err(archive_status)?;
            events.push(v1::JobEvent { index: event.index, at_ms: event.at_ms, what: event.what });
        }
        Ok(events.split_off(events.len().saturating_sub(STORY_LINES)))
    }
}

fn submit_result(result: Result<v1::SubmitJobResponse, Status>) -> v1::SubmitJobResult {
    match result {
        Ok(v1::SubmitJobResponse { id, index }) => {
            v1::SubmitJobResult { id, index, ..Default::default() }
        }
        Err(status) => v1::SubmitJobResult {
            code: status.code().into(),
            why: status.message().to_owned(),
            ..Default::default()
        },
    }
}

fn checked(spec: Option<v1::JobSpec>) -> Result<JobSpec, Status> {
    let spec = spec.ok_or_else(|| Status::invalid_argument("spec: is missing; send one"))?;
    let spec = convert::job_spec_from_proto(spec).map_err(invalid)?;
    spec.validate().map_err(invalid)?;
    Ok(spec)
}

fn archive_status(error: impl std::fmt::Display) -> Status {
    Status::internal(format!("archive: {error}"))
}

fn no_job(text: &str) -> Status {
    Status::not_found(format!("there is no job {text}; `rowen job list --all` shows them"))
}

fn plan(view: &Cluster, spec: &JobSpec) -> v1::PlanJobResponse {
    let planned = placement::dry_run(view, spec);
    let node_name = |id| view.nodes().get(id).map(|node| node.name.clone()).unwrap_or_default();
    v1::PlanJobResponse {
        fits_now: planned.fits_now,
        fits_by_eviction: planned.fits_by_eviction,
        tasks: (0..)
            .zip(&planned.places)
            .map(|(rank, place)| v1::Task {
                rank,
                node: node_name(place.node),
                gpus: place.gpus.iter().collect(),
                phase: "planned".into(),
                exit_code: 0,
            })
            .collect(),
        victims: planned
            .victims
            .iter()
            .filter_map(|id| view.allocations().get(*id))
            .map(|victim| v1::Victim {
                owner: Some(convert::owner_to_proto(view, victim)),
                node: node_name(victim.tasks[0].node),
                gpus: victim.tasks[0].gpus.iter().collect(),
                notice_ms: victim.notice_ms,
            })
            .collect(),
        start_in_ms: planned.start_in_ms.unwrap_or(0),
        reason: planned.reason,
        index: view.applied(),
        span: planned.span,
        planned_start_ms: planned.planned.map(|start| start.by_ms),
    }
}

fn why(view: &Cluster, job: &Job) -> v1::WhyJobResponse {
    let explained = placement::explain(view, job.id);
    v1::WhyJobResponse {
        id: job.id.0,
        state: convert::job_state_to_proto(job.state).into(),
        summary: explained.summary,
        binding_constraint: explained.binding_constraint,
        queue_position: explained.queue_position,
        queue_length: explained.queue_length,
        levels: explained
            .levels
            .into_iter()
            .map(|level| v1::LevelReason {
                level: level.level.to_string(),
                considered: level.considered,
                could_if_empty: level.could_if_empty,
                nearest: level.nearest,
                nearest_lacks_gpus: u32::try_from(level.nearest_lacks_gpus).unwrap_or(u32::MAX),
            })
            .collect(),
        cheapest_change: explained.cheapest_change,
        start_estimate_ms: explained.start_estimate_ms,
        decided_index: job.reason_index,
    }
}
