//! The agents attached to this replica while it leads: one stream a node, bounded both ways.
//!
//! Owns the streams. Taking one out of the table ends it, so that its agent comes again: a
//! stream that nobody pushes to, but that is still renewed, would starve its node for ever.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rowen_api::v1::{Gpu, LogChunk, ReadLog, ServerMessage, StopLog, server_message::Kind};
use rowen_state::NodeId;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use crate::admission::Admission;

/// Messages that may wait for one agent. One that does not read is cut off; it comes
/// back and is sent its whole desired state.
pub(crate) const QUEUE: usize = 256;

/// A reader that takes nothing for this long is cut off: heartbeats wait behind the chunk.
const LOG_PATIENCE: Duration = Duration::from_secs(1);

/// Who is attached.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    attached: Mutex<Attached>,
    last_read: AtomicU64,
}

#[derive(Debug, Default)]
struct Attached {
    /// In which this replica leads; none: nobody may attach.
    term: Option<u64>,
    admission: Admission,
    nodes: BTreeMap<NodeId, Session>,
}

#[derive(Debug)]
struct Session {
    /// Log index at which the agent came: of two streams of a node the later one counts.
    came: u64,
    sender: mpsc::Sender<Result<ServerMessage, Status>>,
    hardware: Vec<Gpu>,
    /// Dropped with the session: whoever reads a log of it sees the end.
    reads: BTreeMap<u64, mpsc::Sender<LogChunk>>,
    /// Likewise: tells the stream's own task.
    _cut: oneshot::Sender<()>,
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
    /// This replica leads: agents may attach.
    pub(crate) fn open(&self, term: u64) {
        *self.attached() = Attached { term: Some(term), ..Attached::default() };
    }

    /// It leads no more: every agent must find the leader again.
    pub(crate) fn close(&self) {
        *self.attached() = Attached::default();
    }

    /// Whether an agent's hello is heard now; if not, in how many milliseconds it will be.
    pub(crate) fn admit(&self, node: NodeId, now_ms: u64, per_s: u64) -> Result<(), u64> {
        self.attached().admission.ask(node, now_ms, per_s)
    }

    /// Takes the stream of an agent that came at `came`; an older one of the same node ends.
    /// What is given back resolves when this one has to end. `None`: `term` is over, or a newer
    /// stream is here.
    pub(crate) fn attach(
        &self,
        (term, node, came): (u64, NodeId, u64),
        sender: mpsc::Sender<Result<ServerMessage, Status>>,
        hardware: Vec<Gpu>,
    ) -> Option<oneshot::Receiver<()>> {
        let mut attached = self.attached();
        let newer = attached.nodes.get(&node).is_some_and(|other| other.came >= came);
        if attached.term != Some(term) || newer {
            return None;
        }
        let (cut, is_cut) = oneshot::channel();
        let session = Session { came, sender, hardware, reads: BTreeMap::new(), _cut: cut };
        attached.nodes.insert(node, session);
        Some(is_cut)
    }

    /// Ends a stream, unless a newer one has taken its place.
    pub(crate) fn detach(&self, node: NodeId, came: u64) {
        let mut attached = self.attached();
        if attached.nodes.get(&node).is_some_and(|session| session.came == came) {
            attached.nodes.remove(&node);
        }
    }

    /// Sends to a node if it is attached. A full queue cuts it off.
    pub(crate) fn send(&self, node: NodeId, kind: Kind) -> bool {
        let mut attached = self.attached();
        let Some(session) = attached.nodes.get(&node) else { return false };
        if session.sender.try_send(Ok(ServerMessage { kind: Some(kind) })).is_ok() {
            return true;
        }
        tracing::warn!(%node, "the agent does not read; its stream is ended");
        attached.nodes.remove(&node);
        false
    }

    /// What the agent found when it came.
    pub(crate) fn hardware(&self, node: NodeId) -> Vec<Gpu> {
        let attached = self.attached();
        attached.nodes.get(&node).map(|session| session.hardware.clone()).unwrap_or_default()
    }

    /// Begins to read a task's log from its node.
    pub(crate) fn read_log(&self, node: NodeId, mut request: ReadLog) -> Option<LogRead<'_>> {
        let read = self.last_read.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, chunks) = mpsc::channel(QUEUE);
        self.attached().nodes.get_mut(&node)?.reads.insert(read, sender);
        let log = LogRead { sessions: self, node, read, chunks };
        request.read = read;
        self.send(node, Kind::ReadLog(request)).then_some(log)
    }

    /// A piece of a log has come. Waits for the reader: the agent's stream is its brake.
    pub(crate) async fn log_chunk(&self, node: NodeId, chunk: LogChunk) {
        let read = chunk.read;
        let sender =
            self.attached().nodes.get(&node).and_then(|session| session.reads.get(&read).cloned());
        let delivered = match sender {
            Some(sender) => sender.send_timeout(chunk, LOG_PATIENCE).await.is_ok(),
            None => false,
        };
        if !delivered {
            self.forget_read(node, read);
            self.send(node, Kind::StopLog(StopLog { read }));
        }
    }

    fn forget_read(&self, node: NodeId, read: u64) -> bool {
        let mut attached = self.attached();
        attached.nodes.get_mut(&node).is_some_and(|session| session.reads.remove(&read).is_some())
    }

    fn attached(&self) -> MutexGuard<'_, Attached> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LogRead<'_> {
    fn drop(&mut self) {
        if self.sessions.forget_read(self.node, self.read) {
            self.sessions.send(self.node, Kind::StopLog(StopLog { read: self.read }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    fn stream() -> (mpsc::Sender<Result<ServerMessage, Status>>, Receiver) {
        mpsc::channel(QUEUE)
    }

    type Receiver = mpsc::Receiver<Result<ServerMessage, Status>>;

    fn over(cut: &mut oneshot::Receiver<()>) -> bool {
        cut.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_stream_that_came_last_in_the_log_counts() {
        let sessions = Sessions::default();
        let (sender, _receiver) = stream();
        assert!(sessions.attach((1, NODE, 4), sender.clone(), vec![]).is_none(), "nobody leads");
        sessions.open(1);
        let mut newer = sessions.attach((1, NODE, 9), sender.clone(), vec![]).unwrap();
        assert!(sessions.attach((1, NODE, 8), sender.clone(), vec![]).is_none(), "it came before");
        assert!(!over(&mut newer));
        sessions.detach(NODE, 8);
        assert!(!over(&mut newer), "an older stream's end ends no newer one");
        let mut newest = sessions.attach((1, NODE, 12), sender.clone(), vec![]).unwrap();
        assert!(over(&mut newer) && !over(&mut newest));
        sessions.close();
        assert!(over(&mut newest), "who leads no more keeps no agent");
        assert!(sessions.attach((1, NODE, 13), sender, vec![]).is_none(), "the term is over");
    }

    #[tokio::test]
    async fn an_agent_that_does_not_read_is_cut_off_and_its_logs_end() {
        let sessions = Sessions::default();
        sessions.open(1);
        let (sender, _receiver) = stream();
        let mut cut = sessions.attach((1, NODE, 4), sender, vec![]).unwrap();
        let mut log = sessions.read_log(NODE, ReadLog::default()).unwrap();
        while sessions.send(NODE, Kind::StopLog(StopLog { read: 0 })) {}
        assert!(over(&mut cut));
        assert_eq!(log.chunks.recv().await, None);
        assert!(sessions.read_log(NODE, ReadLog::default()).is_none());
    }
}
