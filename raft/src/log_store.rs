//! The write-ahead log as openraft sees it. Adds only that nothing is purged before the archive
//! has it on disk.

use std::{fmt::Debug, io, ops::RangeBounds, sync::Arc};

use openraft::{
    LogState, OptionalSend, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
};
use tokio::sync::oneshot;

use crate::{
    archive::Archive,
    snapshots::Snapshots,
    types::{Entry, LogId, TypeConfig, Vote},
    wal::{Wal, WalError, writer::Done},
};

/// What one request to a peer may carry; a single larger entry still goes.
const REPLICATION_BYTES: usize = 2 << 20;

/// The log, for openraft's core, its replication and its apply.
#[derive(Clone)]
pub(crate) struct LogStore {
    pub(crate) wal: Wal,
    pub(crate) archive: Arc<Archive>,
    /// Tells how far back replay shall reach.
    pub(crate) snapshots: Arc<Snapshots>,
}

/// Runs `submit` with a callback and waits until the callback is called.
async fn durable(submit: impl FnOnce(Done) -> Result<(), WalError>) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    submit(Box::new(move |result| drop(sender.send(result))))?;
    Ok(receiver.await.unwrap_or(Err(WalError::Closed))?)
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let (last_purged_log_id, last_log_id) = (self.wal.purged(), self.wal.last());
        Ok(LogState { last_purged_log_id, last_log_id })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        durable(|done| self.wal.save_vote(*vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.wal.save_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.wal.committed())
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect();
        let done = Box::new(|result: Result<(), WalError>| {
            callback.io_completed(result.map_err(io::Error::from));
        });
        Ok(self.wal.append(entries, done)?)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index() + 1);
        durable(|done| self.wal.truncate_from(from, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        // A checkpoint comes with every snapshot; this one is for what purges without.
        if !self.archive.is_synced_to(upto.index()) {
            self.archive.checkpoint()?;
        }
        let keep_from = self.snapshots.oldest_index();
        durable(|done| self.wal.purge(upto, keep_from, done)).await
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let start = match range.start_bound() {
            Included(start) => *start,
            Excluded(before) => before + 1,
            Unbounded => 0,
        };
        let end = match range.end_bound() {
            Included(last) => last + 1,
            Excluded(end) => *end,
            Unbounded => u64::MAX,
        };
        self.wal.read(start, end, usize::MAX)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.wal.read(start, end, REPLICATION_BYTES)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.wal.vote())
    }
}

#[cfg(test)]
mod tests {
    use openraft::{
        StorageError,
        testing::log::{StoreBuilder, Suite},
    };
    use tempfile::TempDir;

    use super::*;
    use crate::{
        Applied, StateMachine, archive::Retention, disk::RealDisk, machine::Applier,
        snapshots::Snapshots, wal::WalOptions,
    };

    /// The Suite cannot make entries of ours; it applies only blank ones and memberships.
    struct Nothing;

    impl StateMachine for Nothing {
        fn apply(&mut self, _index: u64, _entry: &[u8]) -> Applied {
            Applied::default()
        }

        fn applied(&mut self, _index: u64) {}

        fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
            Box::new(|| b"nothing".to_vec())
        }

        fn restore(&mut self, _index: u64, snapshot: &[u8]) -> Result<(), String> {
            if snapshot == b"nothing" { Ok(()) } else { Err("not what was snapshotted".into()) }
        }
    }

    /// Few entries, so that periods come and go as well.
    const SMALL: Retention = Retention { period_entries: 5, periods: 2 };

    struct Builder;

    impl StoreBuilder<TypeConfig, LogStore, Applier, TempDir> for Builder {
        async fn build(&self) -> Result<(TempDir, LogStore, Applier), StorageError<TypeConfig>> {
            let dir = tempfile::tempdir().unwrap();
            let disk = Arc::new(RealDisk::default());
            let options = WalOptions {
                dir: dir.path().join("log"),
                // Small, so that segments roll and entries leave the cache on the way.
                segment_bytes: 512,
                cache_bytes: 300,
                retain_bytes: 0,
                accept_torn_tail: false,
            };
            let wal = Wal::open(disk.clone(), options).unwrap();
            let archive = Arc::new(Archive::open(&dir.path().join("archive"), SMALL).unwrap());
            let snapshots = Snapshots::open(disk, &dir.path().join("snapshots"), 0).unwrap();
            let snapshots = Arc::new(snapshots);
            let applier = Applier::new(Nothing, archive.clone(), snapshots.clone(), true);
            Ok((dir, LogStore { wal, archive, snapshots }, applier))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn openraft_storage_suite() {
        Suite::test_all(Builder).await.unwrap();
    }
}
