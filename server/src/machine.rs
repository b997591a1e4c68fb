//! The core as the log drives it: what consensus commits is applied here, and each
//! batch ends with a new view for readers and a word to the leader's loop.

use std::sync::{Arc, Mutex, PoisonError};

use rowen_raft::{Applied, ArchiveRecord, StateMachine};
use rowen_state::{Cluster, Effect, codec};
use tokio::sync::{Notify, watch};

use crate::{checkpoints::Checkpoints, core::Core};

/// What the shell sees of the state.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    /// The state after the last batch. Readers clone the `Arc` and look as long as they like.
    pub(crate) views: watch::Receiver<Arc<Cluster>>,
    /// Work for the leader's loop; a replica that does not lead clears it.
    pub(crate) work: Arc<Work>,
    /// State hashes for comparison with the other replicas'.
    pub(crate) checkpoints: Arc<Checkpoints>,
}

/// Effects and planning wishes since the leader's loop last looked.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pending: Mutex<Pending>,
    wake: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct Pending {
    pub(crate) effects: Vec<Effect>,
    pub(crate) replan: bool,
}

impl Work {
    /// Takes what has come together; waits when there is nothing.
    pub(crate) async fn take(&self) -> Pending {
        loop {
            let pending = std::mem::take(&mut *self.lock());
            if pending.replan || !pending.effects.is_empty() {
                return pending;
            }
            self.wake.notified().await;
        }
    }

    /// Asks for a new plan.
    pub(crate) fn replan(&self) {
        self.lock().replan = true;
        self.wake.notify_one();
    }

    fn add(&self, effects: Vec<Effect>, replan: bool) {
        if effects.is_empty() && !replan {
            return;
        }
        let mut pending = self.lock();
        pending.effects.extend(effects);
        pending.effects.sort_unstable();
        pending.effects.dedup(); // bounded by the number of nodes, even where nobody takes it
        pending.replan |= replan;
        drop(pending);
        self.wake.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub(crate) struct Machine {
    core: Core,
    /// Of entries that no view shows yet: the leader's loop would act on an older one.
    unseen: Pending,
    views: watch::Sender<Arc<Cluster>>,
    work: Arc<Work>,
    checkpoints: Arc<Checkpoints>,
}

impl Machine {
    pub(crate) fn new() -> (Machine, Feed) {
        let core = Core::default();
        let (sender, views) = watch::channel(Arc::new(core.cluster().clone()));
        let work = Arc::new(Work::default());
        let checkpoints = Arc::new(Checkpoints::default());
        let machine = Machine {
            core,
            unseen: Pending::default(),
            views: sender,
            work: work.clone(),
            checkpoints: checkpoints.clone(),
        };
        (machine, Feed { views, work, checkpoints })
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        self.core.cluster()
    }

    fn publish(&mut self) {
        self.views.send_replace(Arc::new(self.core.cluster().clone()));
        let Pending { effects, replan } = std::mem::take(&mut self.unseen);
        self.work.add(effects, replan);
    }
}

impl StateMachine for Machine {
    fn apply(&mut self, index: u64, entry: &[u8]) -> Applied {
        // Skipping an entry would split this replica from the others; stopping cannot.
        let step = self.core.apply(index, entry).unwrap_or_else(|error| {
            tracing::error!(index, %error, "this build cannot read a committed entry; the replica stops");
            panic!("{error}");
        });
        self.checkpoints.note(index, || self.core.cluster().state_hash());
        self.unseen.effects.extend(step.effects);
        self.unseen.replan |= step.replan;
        let records = step.records.into_iter();
        Applied {
            reply: codec::encode(self.core.cluster().meta().version, step.answer)
                .expect("an answer is small"),
            records: records
                .map(|record| ArchiveRecord { key: record.key, value: record.value })
                .collect(),
        }
    }

    fn applied(&mut self, _index: u64) {
        self.publish();
    }

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        let cluster = self.core.cluster().clone();
        Box::new(move || cluster.to_snapshot().expect("the state fits the snapshot's limit"))
    }

    fn restore(&mut self, _index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.core.restore(snapshot).map_err(|error| error.to_string())?;
        self.publish();
        Ok(())
    }

    fn archive_digest(&self) -> Option<u128> {
        let meta = self.core.cluster().meta();
        (meta.version >= 2).then_some(meta.archive_digest)
    }

    fn record_digest(&self) -> fn(&ArchiveRecord) -> u128 {
        |record| rowen_state::record_digest(&record.key, &record.value)
    }
}
