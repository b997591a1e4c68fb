//! `job list`, `show`, `why`, `cancel`, `requeue`.

use std::process::ExitCode;

use rowen_api::v1::{
    CancelJobRequest, GetJobRequest, ListJobsRequest, RequeueJobRequest, WhyJobRequest,
};
use serde::Serialize;

use super::Session;
use crate::args::{JobIdArgs, JobIdsArgs, JobListArgs};
use crate::client::jobs;
use crate::exit::{DONE, Outcome};
use crate::output::job::{self, JobListView, JobView};
use crate::output::plan::{self, WhyView};
use crate::output::words::now_ms;

/// What `cancel` and `requeue` print for programs.
#[derive(Serialize)]
struct ChangedView<'a> {
    job: &'a str,
    /// Log index that made it durable.
    index: u64,
}

/// `job list`.
pub(super) async fn list(session: &mut Session, args: JobListArgs) -> Outcome {
    let (wide, colour) = (session.out.wide(), session.out.colour);
    let request = ListJobsRequest { all: args.all, tenant: args.tenant, queue: args.queue };
    let fetch = async |client: &mut crate::client::Client| {
        let list = |ch| {
            let request = request.clone();
            async move { jobs(ch).list_jobs(request).await }
        };
        let answer = client.call(list).await?;
        let jobs = answer.jobs.iter().map(JobView::new).collect();
        Ok(JobListView { jobs, index: answer.index })
    };
    session.list(args.watch.watch, fetch, |view| job::list(view, now_ms(), wide, colour)).await
}

/// `job show`.
pub(super) async fn show(session: &mut Session, args: JobIdArgs) -> Outcome {
    let request = GetJobRequest { id: args.id };
    let get = |ch| {
        let request = request.clone();
        async move { jobs(ch).get_job(request).await }
    };
    let view = JobView::new(&session.client.call(get).await?);
    session.out.emit(&view, |view| job::show(view, now_ms(), session.out.colour))?;
    Ok(ExitCode::from(DONE))
}

/// `job why`.
pub(super) async fn why(session: &mut Session, args: JobIdArgs) -> Outcome {
    let request = WhyJobRequest { id: args.id };
    let ask = |ch| {
        let request = request.clone();
        async move { jobs(ch).why_job(request).await }
    };
    let view = WhyView::new(&session.client.call(ask).await?);
    session.out.emit(&view, |view| plan::why(view, now_ms(), session.out.colour))?;
    Ok(ExitCode::from(DONE))
}

/// `job cancel`.
pub(super) async fn cancel(session: &mut Session, args: JobIdsArgs) -> Outcome {
    let cancel = async |session: &mut Session, id: &String| {
        let request = CancelJobRequest { request: session.client.request_id(), id: id.clone() };
        let send = |ch| {
            let request = request.clone();
            async move { jobs(ch).cancel_job(request).await }
        };
        let index = session.client.call(send).await?.index;
        session.done(&ChangedView { job: id, index }, &format!("Cancelling job {id}."))
    };
    session.each(&args.ids, cancel).await
}

/// `job requeue`.
pub(super) async fn requeue(session: &mut Session, args: JobIdsArgs) -> Outcome {
    let requeue = async |session: &mut Session, id: &String| {
        let request = RequeueJobRequest { request: session.client.request_id(), id: id.clone() };
        let send = |ch| {
            let request = request.clone();
            async move { jobs(ch).requeue_job(request).await }
        };
        let index = session.client.call(send).await?.index;
        session.done(&ChangedView { job: id, index }, &format!("Requeueing job {id}."))
    };
    session.each(&args.ids, requeue).await
}
