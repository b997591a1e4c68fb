//! Reports of agents on their way into the log. What comes while an entry is under way goes
//! together as the next: a thousand agents that report at once cost a few entries, not a thousand,
//! and one that reports alone waits for nobody.
//!
//! Each agent gets the acknowledgement of its own report, after the entry is committed; one entry
//! is under way at a time, so what an agent said first is also applied first. Never looks at what
//! a report says.

use std::{collections::VecDeque, sync::Arc};

use rowen_api::v1::{ReportAck, ServerMessage, server_message};
use rowen_state::{Command, NodeId, TaskReport};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::Status;

use crate::{auth::Principal, server::Server};

/// Reports that may wait; agents beyond it wait at their streams.
pub(crate) const WAITING: usize = 4_096;
/// An entry takes no further report beyond so many bytes; the log takes 4 MiB.
const ENTRY_BYTES: usize = 1 << 20;
/// What a task's report takes beside its message, and a little more.
const TASK_BYTES: usize = 96;

/// One agent's report.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) node: NodeId,
    /// For the acknowledgement.
    pub(crate) seq: u64,
    pub(crate) tasks: Vec<TaskReport>,
    /// Where the acknowledgement goes.
    pub(crate) outgoing: mpsc::Sender<Result<ServerMessage, Status>>,
    /// Bounds what one agent has under way.
    pub(crate) _permit: OwnedSemaphorePermit,
}

impl Report {
    fn bytes(&self) -> usize {
        self.tasks.iter().map(|task| TASK_BYTES + task.message.len()).sum()
    }
}

/// Puts reports into the log until nobody can send any more.
pub(crate) async fn run(server: Arc<Server>, mut sent: mpsc::Receiver<Report>) {
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            let Some(report) = sent.recv().await else { return };
            waiting.push_back(report);
        }
        while waiting.len() < WAITING
            && let Ok(report) = sent.try_recv()
        {
            waiting.push_back(report);
        }
        let together = next_entry(&mut waiting);
        commit(&server, together).await;
    }
}

/// From the front as many as one entry holds, and at least one.
fn next_entry(waiting: &mut VecDeque<Report>) -> Vec<Report> {
    let mut bytes = 0;
    let fits = waiting.iter().take_while(|report| {
        bytes += report.bytes();
        bytes <= ENTRY_BYTES
    });
    let count = fits.count().clamp(1, waiting.len());
    waiting.drain(..count).collect()
}

async fn commit(server: &Server, mut together: Vec<Report>) {
    let nodes: Vec<NodeId> = together.iter().map(|report| report.node).collect();
    let tasks = together.iter_mut().flat_map(|report| std::mem::take(&mut report.tasks)).collect();
    let principal = principal(server, &nodes);
    if let Err(status) = server.propose(&principal, None, Command::Report(tasks)).await {
        let reports = together.len();
        tracing::warn!(%status, reports, "reports were not committed; the agents send them again");
        return;
    }
    for Report { seq, outgoing, .. } in together {
        let kind = Some(server_message::Kind::ReportAck(ReportAck { seq }));
        // Nobody waits for an agent that does not read: it sends the report again.
        let _ = outgoing.try_send(Ok(ServerMessage { kind }));
    }
}

/// Each report in the entry names its node; the entry itself can name only one.
fn principal(server: &Server, nodes: &[NodeId]) -> Principal {
    let first = nodes.first().copied().filter(|first| nodes.iter().all(|node| node == first));
    let view = server.view();
    match first.and_then(|node| view.nodes().get(node)) {
        Some(node) => Principal::agent(&node.name),
        None => Principal { name: "agents".into(), ..Principal::agent("") },
    }
}

#[cfg(test)]
mod tests {
    use rowen_state::{AllocationId, Epoch, TaskPhase};
    use tokio::sync::Semaphore;

    use super::*;

    fn report(node: u32, tasks: usize, message: usize) -> Report {
        let task = TaskReport {
            node: NodeId(node),
            allocation: AllocationId(1),
            rank: 0,
            epoch: Epoch::default(),
            phase: TaskPhase::Running,
            port: 0,
            message: "m".repeat(message),
        };
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Report {
            node: NodeId(node),
            seq: 1,
            tasks: vec![task; tasks],
            outgoing: mpsc::channel(1).0,
            _permit: permit,
        }
    }

    /// The nodes whose reports went together.
    fn entries(reports: Vec<Report>) -> Vec<Vec<u32>> {
        let mut waiting = VecDeque::from(reports);
        let mut entries = Vec::new();
        while !waiting.is_empty() {
            let entry = next_entry(&mut waiting);
            entries.push(entry.iter().map(|report| report.node.0).collect());
        }
        entries
    }

    #[test]
    fn what_waits_goes_together_in_its_order_and_no_entry_outgrows_the_log() {
        assert_eq!(entries(vec![report(3, 1, 0)]), [[3]]);
        assert_eq!(entries((0..1_000).map(|n| report(n, 2, 20)).collect()).len(), 1);
        let half = ENTRY_BYTES / (TASK_BYTES + 500) / 2;
        let reports = vec![report(1, half, 500), report(2, half, 500), report(3, half, 500)];
        assert_eq!(entries(reports), [vec![1, 2], vec![3]]);
        // One that is larger than an entry should be goes alone, not never.
        assert_eq!(entries(vec![report(1, 4 * half, 500), report(2, 1, 0)]), [vec![1], vec![2]]);
    }

    #[test]
    fn the_largest_message_still_encodes_within_the_bound() {
        let tasks = vec![report(1, 1, 500).tasks.remove(0); 100];
        let bytes = rowen_state::codec::encode(
            rowen_state::codec::Kind::Entry,
            &rowen_state::Entry {
                at_ms: 1,
                principal: "agents".into(),
                request: None,
                command: Command::Report(tasks.clone()),
            },
        );
        let counted = tasks.iter().map(|task| TASK_BYTES + task.message.len()).sum::<usize>();
        assert!(bytes.unwrap().len() <= counted, "an entry is larger than it was taken to be");
    }
}
