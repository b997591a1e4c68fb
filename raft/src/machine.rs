//! What the log drives, and how: applies committed entries in order, hands their records to the
//! archive, builds and installs snapshots. Decides nothing about the log.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use futures::{Stream, StreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};

use crate::{
    archive::{Archive, ArchiveRecord, Indexed},
    snapshots::Snapshots,
    types::{
        Entry, LogId, Reply, Snapshot, SnapshotBytes, SnapshotMeta, StoredMembership, TypeConfig,
    },
};

/// What one entry did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Goes to whoever proposed the entry.
    pub reply: Vec<u8>,
    /// Goes to the archive, on every replica.
    pub records: Vec<ArchiveRecord>,
}

/// What the log drives. Called from one task at a time, in log order. A panic in here stops the
/// replica: it would happen again on every other one.
pub trait StateMachine: Send + 'static {
    /// Applies one committed entry.
    fn apply(&mut self, index: u64, entry: &[u8]) -> Applied;
    /// A batch was applied up to `index`. Called once after each batch and before its proposers
    /// are answered: the place to publish views and effects.
    fn applied(&mut self, index: u64);
    /// A cheap handle on the state as it is now, serialised later off the apply task.
    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send>;
    /// Replaces the state by that of a snapshot taken at `index`.
    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String>;
    /// What the state says of all records given away so far: it grows by what
    /// [`StateMachine::record_digest`] says of each, without carry, and only differences count.
    /// Each period of the archive is held against it. `None`: it does not say (yet).
    fn archive_digest(&self) -> Option<u128> {
        None
    }
    /// See [`StateMachine::archive_digest`]. No key may come twice.
    fn record_digest(&self) -> fn(&ArchiveRecord) -> u128 {
        |_| 0
    }
}

/// How many entries share one archive batch and one call of [`StateMachine::applied`].
const BATCH_ENTRIES: usize = 512;

/// A [`StateMachine`] as openraft sees it.
pub(crate) struct Applier {
    /// Never contended: it only makes the box shareable.
    machine: Mutex<Box<dyn StateMachine>>,
    last: Option<LogId>,
    membership: StoredMembership,
    archive: Arc<Archive>,
    snapshots: Arc<Snapshots>,
    /// Whether blocking work may leave the task; not so under simulation.
    may_block: bool,
}

#[derive(Default)]
struct Batch {
    records: Vec<Indexed>,
    replies: Vec<(ApplyResponder<TypeConfig>, Reply)>,
    entries: usize,
}

impl Applier {
    pub(crate) fn new(
        machine: impl StateMachine,
        archive: Arc<Archive>,
        snapshots: Arc<Snapshots>,
        may_block: bool,
    ) -> Applier {
        archive.sum_by(machine.record_digest());
        Applier {
            machine: Mutex::new(Box::new(machine)),
            last: None,
            membership: StoredMembership::default(),
            archive,
            snapshots,
            may_block,
        }
    }

    fn machine(&mut self) -> &mut dyn StateMachine {
        self.machine.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut()
    }

    fn apply_entry(&mut self, entry: Entry) -> io::Result<Applied> {
        let index = entry.log_id.index();
        let applied = match entry.payload {
            EntryPayload::Blank => Applied::default(),
            EntryPayload::Normal(bytes) => {
                let machine = self.machine();
                catch_unwind(AssertUnwindSafe(|| machine.apply(index, &bytes.0))).map_err(
                    |panic| {
                        let why = panic.downcast_ref::<String>().map_or("", String::as_str);
                        io::Error::other(format!(
                            "the state machine panicked at entry {index}: {why}"
                        ))
                    },
                )?
            }
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembership::new(Some(entry.log_id), membership);
                Applied::default()
            }
        };
        self.last = Some(entry.log_id);
        Ok(applied)
    }

    /// Archive first, then views, then replies: who has a reply finds its effects everywhere.
    fn finish(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Some(last) = self.last else { return Ok(()) };
        let Batch { records, replies, .. } = std::mem::take(batch);
        let digest = self.machine().archive_digest();
        self.archive.write(last.index(), records, digest)?;
        self.machine().applied(last.index());
        for (responder, reply) in replies {
            responder.send(reply);
        }
        Ok(())
    }
}

impl RaftStateMachine<TypeConfig> for Applier {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut batch = Batch::default();
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let index = entry.log_id.index();
            let Applied { reply, records } = self.apply_entry(entry)?;
            batch.records.extend(records.into_iter().map(|record| Indexed { index, record }));
            batch.replies.extend(responder.map(|responder| (responder, Reply(reply))));
            batch.entries += 1;
            if batch.entries == BATCH_ENTRIES {
                self.finish(&mut batch)?;
            }
        }
        if batch.entries > 0 {
            self.finish(&mut batch)?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let handle = self.machine().snapshot();
        let meta =
            SnapshotMeta { last_log_id: self.last, last_membership: self.membership.clone() };
        let work = Work {
            handle,
            meta,
            archive: Arc::clone(&self.archive),
            snapshots: Arc::clone(&self.snapshots),
        };
        Builder { work: Mutex::new(Some(work)), may_block: self.may_block }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotBytes,
    ) -> Result<(), io::Error> {
        let index = meta.last_log_id.map_or(0, |id| id.index());
        self.machine().restore(index, &snapshot).map_err(|why| {
            io::Error::other(format!("the snapshot at {index} cannot be restored: {why}"))
        })?;
        self.snapshots.save(meta, &snapshot)?;
        if meta.last_log_id.is_some() {
            let digest = self.machine().archive_digest();
            self.archive.skip_to(index, digest)?;
        }
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.machine().applied(index);
        tracing::info!(index, bytes = snapshot.len(), "snapshot installed");
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.snapshots.newest()?)
    }
}

/// One snapshot to be built.
pub(crate) struct Builder {
    /// In a lock only to be shareable; taken once.
    work: Mutex<Option<Work>>,
    may_block: bool,
}

struct Work {
    handle: Box<dyn FnOnce() -> Vec<u8> + Send>,
    meta: SnapshotMeta,
    archive: Arc<Archive>,
    snapshots: Arc<Snapshots>,
}

impl Work {
    fn run(self) -> io::Result<Snapshot> {
        let body = (self.handle)();
        // Before the snapshot is kept: the log is purged because of it.
        self.archive.checkpoint()?;
        self.snapshots.save(&self.meta, &body)?;
        let index = self.meta.last_log_id.map(|id| id.index());
        tracing::info!(index, bytes = body.len(), "snapshot built");
        Ok(Snapshot { meta: self.meta, snapshot: SnapshotBytes::new(body) })
    }
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let work = self.work.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let work = work.ok_or_else(|| io::Error::other("a builder builds one snapshot"))?;
        if !self.may_block {
            return work.run();
        }
        tokio::task::spawn_blocking(|| work.run()).await.map_err(io::Error::other)?
    }
}
