//! The agents attached to this replica: one stream a node, bounded both ways.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use rowen_api::v1::{Gpu, LogChunk, ReadLog, ServerMessage, StopLog, server_message::Kind};
use rowen_state::NodeId;
use tokio::sync::mpsc;
use tonic::Status;

/// Messages that may wait for one agent. One that does not read is cut off; it comes
/// back and is sent its whole desired state.
pub(crate) const QUEUE: usize = 256;

/// Who is attached.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    nodes: Mutex<BTreeMap<NodeId, Session>>,
    reads: Mutex<BTreeMap<u64, mpsc::Sender<LogChunk>>>,
    last: AtomicU64,
}

#[derive(Debug)]
struct Session {
    id: u64,
    sender: mpsc::Sender<Result<ServerMessage, Status>>,
    hardware: Vec<Gpu>,
}

/// One log being read; dropping it ends the reading at the agent too.
#[derive(Debug)]
pub(crate) struct LogRead<'a> {
    sessions: &'a Sessions,
    node: NodeId,
    read: u64,
    pub(crate) chunks: mpsc::Receiver<LogChunk>,
}

impl Sessions {
    /// Takes a node's stream; an older one of the same node is dropped.
    pub(crate) fn attach(
        &self,
        node: NodeId,
        sender: mpsc::Sender<Result<ServerMessage, Status>>,
        hardware: Vec<Gpu>,
    ) -> u64 {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.nodes().insert(node, Session { id, sender, hardware });
        id
    }

    /// Forgets a stream, unless a newer one has taken its place.
    pub(crate) fn detach(&self, node: NodeId, id: u64) {
        let mut nodes = self.nodes();
        if nodes.get(&node).is_some_and(|session| session.id == id) {
            nodes.remove(&node);
        }
    }

    /// Every agent must find the leader again.
    pub(crate) fn detach_all(&self) {
        self.nodes().clear();
    }

    /// Sends to a node if it is attached. A full queue cuts it off.
    pub(crate) fn send(&self, node: NodeId, kind: Kind) -> bool {
        let mut nodes = self.nodes();
        let Some(session) = nodes.get(&node) else { return false };
        if session.sender.try_send(Ok(ServerMessage { kind: Some(kind) })).is_ok() {
            return true;
        }
        tracing::warn!(%node, "the agent does not read; its stream is dropped");
        nodes.remove(&node);
        false
    }

    /// What the agent found when it came.
    pub(crate) fn hardware(&self, node: NodeId) -> Vec<Gpu> {
        self.nodes().get(&node).map(|session| session.hardware.clone()).unwrap_or_default()
    }

    /// Begins to read a task's log from its node.
    pub(crate) fn read_log(&self, node: NodeId, mut request: ReadLog) -> Option<LogRead<'_>> {
        let read = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, chunks) = mpsc::channel(QUEUE);
        self.reads().insert(read, sender);
        let log = LogRead { sessions: self, node, read, chunks };
        request.read = read;
        self.send(node, Kind::ReadLog(request)).then_some(log)
    }

    /// A piece of a log has come. Waits for the reader: the agent's stream is its brake.
    pub(crate) async fn log_chunk(&self, node: NodeId, chunk: LogChunk) {
        let sender = self.reads().get(&chunk.read).cloned();
        let read = chunk.read;
        let delivered = match sender {
            Some(sender) => {
                sender.send_timeout(chunk, std::time::Duration::from_secs(5)).await.is_ok()
            }
            None => false,
        };
        if !delivered {
            self.reads().remove(&read);
            self.send(node, Kind::StopLog(StopLog { read }));
        }
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Session>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reads(&self) -> MutexGuard<'_, BTreeMap<u64, mpsc::Sender<LogChunk>>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogRead<'_> {
    fn drop(&mut self) {
        if self.sessions.reads().remove(&self.read).is_some() {
            self.sessions.send(self.node, Kind::StopLog(StopLog { read: self.read }));
        }
    }
}
