//! Reading a gang's logs: one stream a worker from its node, merged line by line.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use rowen_api::v1;
use rowen_state::{Cluster, Job, NodeId, Task};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::server::Server;

/// Lines that may wait for a reader; beyond it, its agents wait.
const QUEUE: usize = 256;
/// Workers read at once.
const WORKERS: usize = 1_024;

/// One worker's log.
struct Source {
    rank: u32,
    node: NodeId,
    name: String,
    request: v1::ReadLog,
}

type Lines = Pin<Box<dyn Stream<Item = Result<v1::LogLine, Status>> + Send>>;

pub(super) fn read(
    server: Arc<Server>,
    view: &Cluster,
    job: &Job,
    request: &v1::ReadLogsRequest,
) -> Result<Lines, Status> {
    let sources = sources(view, job, request)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    for source in sources {
        let (server, sender) = (server.clone(), sender.clone());
        rowen_raft::sim::spawn(async move { follow(&server, source, &sender).await });
    }
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

fn sources(
    view: &Cluster,
    job: &Job,
    request: &v1::ReadLogsRequest,
) -> Result<Vec<Source>, Status> {
    if !["", "stdout", "stderr"].contains(&request.stream.as_str()) {
        return Err(Status::invalid_argument(
            "stream: is neither stdout nor stderr; leave it out for both",
        ));
    }
    if job.attempt == 0 {
        return Err(Status::failed_precondition(format!(
            "job {} has not started; `rowen why {}` says why",
            job.id, job.id
        )));
    }
    let allocation = job.allocation.and_then(|id| view.allocations().get(id));
    let tasks: &[Task] = allocation.map_or(&job.last_tasks, |allocation| &allocation.tasks);
    // A gang that was held or bound anew may have no task of the newest attempt yet.
    let attempt = if request.attempt == 0 { job.attempt } else { request.attempt };
    if attempt > job.attempt {
        return Err(Status::not_found(format!(
            "attempt: job {} has had {} attempts",
            job.id, job.attempt
        )));
    }
    if request.rank.is_some_and(|rank| rank as usize >= tasks.len()) {
        return Err(Status::not_found(format!("rank: job {} has {} workers", job.id, tasks.len())));
    }
    let wanted = (0..).zip(tasks).filter(|(rank, _)| request.rank.is_none_or(|only| only == *rank));
    let source = |(rank, task): (u32, &Task)| Source {
        rank,
        node: task.node,
        name: view.nodes().get(task.node).map(|node| node.name.clone()).unwrap_or_default(),
        request: v1::ReadLog {
            read: 0, // given by the session
            owner: Some(v1::Owner {
                kind: v1::OwnerKind::Job.into(),
                id: job.id.0,
                name: job.spec.name.clone(),
                part: attempt.into(),
            }),
            rank,
            stream: request.stream.clone(),
            follow: request.follow && !job.state.ended(),
            tail_lines: request.tail_lines,
        },
    };
    let sources: Vec<_> = wanted.map(source).collect();
    if sources.len() > WORKERS {
        return Err(Status::invalid_argument(format!(
            "rank: {} workers are more than {WORKERS} logs at once; choose one",
            sources.len()
        )));
    }
    Ok(sources)
}

/// The agent's stream ended under the reader. With this replica's leadership: the caller finds
/// the leader and reads on there. By itself: that one log ends, the others go on.
fn broken_off(
    server: &Server,
    line: impl Fn(&str, &[u8]) -> Result<v1::LogLine, Status>,
) -> Result<v1::LogLine, Status> {
    if server.replica.leadership().borrow().ready {
        return line("rowen", b"rowen: the connection to the agent broke off; read the log again");
    }
    Err(server.not_leading())
}

async fn follow(
    server: &Server,
    source: Source,
    lines: &mpsc::Sender<Result<v1::LogLine, Status>>,
) {
    let line = |stream: &str, text: &[u8]| {
        Ok(v1::LogLine {
            rank: source.rank,
            node: source.name.clone(),
            stream: stream.into(),
            text: text.into(),
        })
    };
    let Some(mut log) = server.sessions.read_log(source.node, source.request.clone()) else {
        let text = format!(
            "rowen: the agent of {} is not connected; its log cannot be read now",
            source.name
        );
        let _ = lines.send(line("rowen", text.as_bytes())).await;
        return;
    };
    loop {
        let chunk = tokio::select! {
            chunk = log.chunks.recv() => chunk,
            () = lines.closed() => return,
        };
        let Some(chunk) = chunk else {
            let _ = lines.send(broken_off(server, line)).await;
            return;
        };
        if !chunk.error.is_empty() {
            let _ = lines.send(line("rowen", format!("rowen: {}", chunk.error).as_bytes())).await;
        }
        let data = chunk.data.strip_suffix(b"\n").unwrap_or(&chunk.data);
        if !chunk.data.is_empty() {
            for text in data.split(|byte| *byte == b'\n') {
                if lines.send(line(&chunk.stream, text)).await.is_err() {
                    return;
                }
            }
        }
        if chunk.end {
            return;
        }
    }
}
