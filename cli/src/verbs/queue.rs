//! `queue set`, `list`, `remove`. (`queue` alone lists jobs.)

use std::process::ExitCode;

use rowen_api::v1::{
    ListQueuesRequest, Queue, QueueSpec, Quota, RemoveQueueRequest, SetQueueRequest,
};
use serde::Serialize;

use super::Session;
use crate::args::{QueueNameArgs, QueueSetArgs, QueueVerb, WatchArgs};
use crate::client::{Client, queues};
use crate::exit::{DONE, Outcome};
use crate::output::queue::{self, QueueListView, QueueView};

/// What changes print for programs.
#[derive(Serialize)]
struct ChangedView<'a> {
    queue: &'a str,
    /// Log index that made it durable.
    index: u64,
}

/// `queue …`.
pub(super) async fn run(session: &mut Session, verb: QueueVerb) -> Outcome {
    match verb {
        QueueVerb::List(args) => list(session, args).await,
        QueueVerb::Set(args) => set(session, args).await,
        QueueVerb::Remove(args) => remove(session, args).await,
    }
}

async fn list(session: &mut Session, args: WatchArgs) -> Outcome {
    let (wide, colour) = (session.out.wide(), session.out.colour);
    let fetch = async |client: &mut Client| {
        let list = |ch| async move { queues(ch).list_queues(ListQueuesRequest {}).await };
        let answer = client.call(list).await?;
        let queues = answer.queues.iter().map(QueueView::new).collect();
        Ok(QueueListView { queues, half_life_ms: answer.half_life_ms, index: answer.index })
    };
    session.list(args.watch, fetch, |view| queue::list(view, wide, colour)).await
}

/// What is not said stays as it is.
async fn set(session: &mut Session, args: QueueSetArgs) -> Outcome {
    let list = |ch| async move { queues(ch).list_queues(ListQueuesRequest {}).await };
    let known = session.client.call(list).await?.queues;
    let specs = known.into_iter().filter_map(|Queue { spec, .. }| spec);
    let before = specs.into_iter().find(|spec| spec.name == args.name);
    let new = before.is_none();
    let spec = changed(before.unwrap_or_default(), &args);
    let name = args.name.as_str();
    let request = SetQueueRequest { request: session.client.request_id(), spec: Some(spec) };
    let send = |ch| {
        let request = request.clone();
        async move { queues(ch).set_queue(request).await }
    };
    let index = session.client.call(send).await?.index;
    let done = if new { "Added" } else { "Changed" };
    session.done(&ChangedView { queue: name, index }, &format!("{done} queue {name}."))?;
    Ok(ExitCode::from(DONE))
}

fn changed(mut spec: QueueSpec, args: &QueueSetArgs) -> QueueSpec {
    spec.name.clone_from(&args.name);
    if let Some(parent) = &args.parent {
        spec.parent = if parent == "none" { String::new() } else { parent.clone() };
    }
    let quota = spec.quota.get_or_insert_default();
    if let Some(guarantee_gpus) = args.guarantee {
        quota.guarantee_gpus = guarantee_gpus;
    }
    if let Some(limit) = args.limit {
        quota.limit_gpus = limit.0;
    }
    for model in &args.model {
        spec.by_model.retain(|quota| quota.gpu_model != model.name);
        if model.guarantee > 0 || model.limit.0.is_some() {
            spec.by_model.push(Quota {
                gpu_model: model.name.clone(),
                guarantee_gpus: model.guarantee,
                limit_gpus: model.limit.0,
            });
        }
    }
    if let Some(lend) = args.lend {
        spec.lend_gpus = lend.0;
    }
    if let Some(weight) = args.weight {
        spec.weight = weight;
    }
    if let Some(preempts) = args.preempts {
        spec.preempts = preempts;
    }
    if let Some(min_run) = args.min_run {
        spec.min_run_ms = min_run.as_millis() as u64;
    }
    spec
}

async fn remove(session: &mut Session, QueueNameArgs { name }: QueueNameArgs) -> Outcome {
    let request = RemoveQueueRequest { request: session.client.request_id(), name: name.clone() };
    let send = |ch| {
        let request = request.clone();
        async move { queues(ch).remove_queue(request).await }
    };
    let index = session.client.call(send).await?.index;
    session.done(&ChangedView { queue: &name, index }, &format!("Removed queue {name}."))?;
    Ok(ExitCode::from(DONE))
}
