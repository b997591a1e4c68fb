//! What comes to the world from the tasks that run in it: they only leave word here, and the
//! world's one loop acts on it, in the order in which it came.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use rowen_api::v1;
use rowen_server::Shell;
use tokio::sync::Notify;
use tonic::Status;

use crate::{
    clients::Told,
    message::{ReplicaAt, ToAgent},
    watches::Shown,
};

/// See the module. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Inbox {
    arrived: Arc<Mutex<VecDeque<Arrived>>>,
    wake: Arc<Notify>,
}

/// What came.
pub(crate) enum Arrived {
    /// A replica's process is up.
    Opened { replica: ReplicaAt, life: u64, shell: Arc<Shell> },
    /// It does not start: its disk cannot be used.
    Refused { replica: ReplicaAt, life: u64, why: String },
    /// It stopped itself.
    Ended { replica: ReplicaAt, life: u64, why: String },
    /// A replica says something to an agent.
    Said { session: u64, message: ToAgent },
    /// It ended the agent's stream.
    HungUp { session: u64 },
    /// It answered a client.
    Answered { operation: usize, replica: ReplicaAt, told: Told },
    /// It gave its vote, and says so.
    Voted { voter: u64, term: u64, candidate: u64 },
    /// It gave a backup.
    BackedUp { bytes: Vec<u8> },
    /// A disk was made of a backup, as a replica of that id.
    Made { replica: ReplicaAt, life: u64, made: Result<u64, String> },
    /// It says something to a watcher.
    Watched { watch: usize, stream: u64, shown: Shown },
    /// A line of a log that is being read; none: that was all.
    LogLine { reader: usize, stream: u64, line: Option<Result<v1::LogLine, Status>> },
    /// The log grew: the truth has more.
    Applied,
}

impl std::fmt::Debug for Arrived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Arrived")
    }
}

impl Inbox {
    pub(crate) fn push(&self, arrived: Arrived) {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).push_back(arrived);
        self.wake.notify_one();
    }

    pub(crate) fn take(&self) -> Option<Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Until there may be something.
    pub(crate) async fn came(&self) {
        self.wake.notified().await;
    }
}
