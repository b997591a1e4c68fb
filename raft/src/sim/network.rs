//! The network between simulated replicas: requests as values, below protobuf and HTTP/2. What
//! becomes of each message says [`Wire`]; here it is only carried.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::sleep};
use tonic::Status;

use super::Process;
use crate::{Replica, ReplicaId, transport::TransportService};

/// Decides over messages.
pub trait Wire: Send + Sync + 'static {
    /// A message leaves `from` for `to`: how long each copy of it takes. None: it is lost.
    fn carry(&self, from: ReplicaId, to: ReplicaId) -> Vec<Duration>;

    /// `voter` has answered that it votes for `candidate` in `term`: a promise, on its disk by now.
    fn voted(&self, _voter: ReplicaId, _term: u64, _candidate: ReplicaId) {}
}

/// The network that a group of simulated replicas is on.
pub struct MemoryNetwork {
    wire: Arc<dyn Wire>,
    listening: Mutex<BTreeMap<String, Listener>>,
}

#[derive(Clone)]
struct Listener {
    service: Arc<TransportService>,
    process: Process,
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNetwork").finish_non_exhaustive()
    }
}

impl MemoryNetwork {
    /// Nobody listens yet.
    pub fn new(wire: Arc<dyn Wire>) -> Arc<MemoryNetwork> {
        Arc::new(MemoryNetwork { wire, listening: Mutex::default() })
    }

    /// From now on `replica`, which runs in `process`, answers at `addr`.
    pub fn listen(&self, addr: &str, replica: &Replica, process: &Process) {
        let service = Arc::new(replica.transport());
        self.listening().insert(addr.to_owned(), Listener { service, process: process.clone() });
    }

    /// Nobody answers there any more.
    pub fn hang_up(&self, addr: &str) {
        self.listening().remove(addr);
    }

    /// A replica has given its vote and is about to say so.
    pub(crate) fn voted(&self, voter: u64, term: u64, candidate: u64) {
        self.wire.voted(ReplicaId(voter), term, ReplicaId(candidate));
    }

    /// Carries a request to `to` at `addr` and the answer back. Where every copy of either is lost
    /// it waits for ever: the caller has a deadline.
    pub(crate) async fn call<T, F>(
        &self,
        (from, to, addr): (u64, u64, &str),
        handle: impl Fn(Arc<TransportService>) -> F,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let (from, to) = (ReplicaId(from), ReplicaId(to));
        let (answers, mut answer) = mpsc::unbounded_channel();
        for delay in self.wire.carry(from, to) {
            // Whoever listens when it leaves is meant: a connection does not outlive its process.
            let listener = self.listening().get(addr).cloned();
            let wire = Arc::clone(&self.wire);
            let answers = answers.clone();
            let handled = listener.map(|listener| (handle(listener.service), listener.process));
            tokio::spawn(async move {
                sleep(delay).await;
                let Some((handled, process)) = handled else {
                    let refused = Status::unavailable("nobody listens there");
                    return drop(answers.send(Err(refused)));
                };
                let Ok(answer) = process.spawn(handled).await else {
                    let reset = Status::unavailable("the connection was reset");
                    return drop(answers.send(Err(reset)));
                };
                // One copy of an answer is as good as many.
                if let Some(delay) = wire.carry(to, from).into_iter().min() {
                    sleep(delay).await;
                    answers.send(answer).ok();
                }
            });
        }
        drop(answers);
        match answer.recv().await {
            Some(answer) => answer,
            None => std::future::pending().await,
        }
    }

    fn listening(&self) -> MutexGuard<'_, BTreeMap<String, Listener>> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
