//! The write-ahead log: entries and vote in segments of our own, one sync for all that waits.
//! Speaks of entries and votes, not of Raft's rules; `log_store` is what openraft sees of it.
//!
//! An operation is visible to readers when its call returns, and durable when its callback says so.

pub(crate) mod history;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod state;
pub(crate) mod synced;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tokio::sync::{mpsc, oneshot, watch};

use self::{
    history::History,
    record::Parsed,
    state::{Location, LogContent},
    writer::{Change, Done, Job, Writer},
};
use crate::{
    codec,
    disk::{Disk, DiskFile},
    types::{Entry, LogId, Vote},
};

/// Where the log is and how large its parts may get.
#[derive(Debug, Clone)]
pub(crate) struct WalOptions {
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u64,
    pub(crate) cache_bytes: usize,
    /// How much of what is purged may stay in `old/`.
    pub(crate) retain_bytes: u64,
    /// The operator's word that damage at the very end is a torn write.
    pub(crate) accept_torn_tail: bool,
}

/// Why the log cannot be read or written.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WalError {
    /// The medium no longer holds what was synced to it.
    #[error("{}, offset {offset}: corrupt: {why}; restore this replica from a peer or a backup", file.display())]
    Corrupt {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// The last write before a power cut is damaged, and whether it had been acknowledged is
    /// unknown.
    #[error(
        "{}, offset {offset}: the last write before the power cut is damaged ({why}), and it may \
         have been acknowledged: restore from a peer or a backup, or drop it with accept_torn_tail",
        file.display()
    )]
    TornTail {
        /// The segment.
        file: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong there.
        why: &'static str,
        /// How much was written from where the damaged write begins.
        bytes: u64,
    },
    /// The disk refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the disk said.
        source: Arc<io::Error>,
    },
    /// The caller broke the order of the log.
    #[error("entry {got} does not follow the log, which goes on at {expected}")]
    OutOfOrder {
        /// The next index of the log.
        expected: u64,
        /// What was given.
        got: u64,
    },
    /// The replica was shut down.
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> WalError {
        let path = path.to_path_buf();
        move |source| WalError::Io { action, path, source: Arc::new(source) }
    }

    pub(crate) fn corrupt(file: &Path, offset: u64, why: String) -> WalError {
        WalError::Corrupt { file: file.into(), offset, why }
    }
}

impl From<WalError> for io::Error {
    fn from(error: WalError) -> io::Error {
        io::Error::other(error)
    }
}

/// What the handles and the writer share.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) options: WalOptions,
    content: Mutex<LogContent>,
    syncs: AtomicU64,
    failed: watch::Sender<Option<String>>,
}

impl Shared {
    pub(crate) fn content(&self) -> MutexGuard<'_, LogContent> {
        self.content.lock().expect("no holder of this lock panics")
    }

    pub(crate) fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fail(&self, error: &WalError) {
        self.failed.send_replace(Some(error.to_string()));
    }
}

/// A handle on the log.
#[derive(Clone)]
pub(crate) struct Wal {
    shared: Arc<Shared>,
    jobs: mpsc::UnboundedSender<Job>,
}

impl Wal {
    /// Reads the log back and starts its writer.
    pub(crate) fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<Wal, WalError> {
        disk.create_dir(&options.dir).map_err(WalError::io("create", &options.dir))?;
        let recovered = recover::recover(&*disk, &options)?;
        let history = History::open(&*disk, &options.dir, options.retain_bytes)?;
        let simulated = disk.is_simulated();
        let shared = Arc::new(Shared {
            disk,
            options,
            content: Mutex::default(),
            syncs: AtomicU64::new(0),
            failed: watch::Sender::new(None),
        });
        let (jobs, queue) = mpsc::unbounded_channel();
        let writer = Writer::new(Arc::clone(&shared), recovered, history);
        if simulated {
            crate::sim::spawn(writer.run_task(queue));
        } else {
            thread::Builder::new()
                .name("rowen-wal".into())
                .spawn(move || writer.run(queue))
                .map_err(WalError::io("start the writer of", &shared.options.dir))?;
        }
        Ok(Wal { shared, jobs })
    }

    /// Adds entries after the last one.
    pub(crate) fn append(&self, entries: Vec<Entry>, done: Done) -> Result<(), WalError> {
        let mut content = self.shared.content();
        let mut expected = content.next_index();
        for got in entries.iter().map(|entry| entry.log_id.index()) {
            match expected {
                Some(expected) if expected != got => {
                    return Err(WalError::OutOfOrder { expected, got });
                }
                _ => expected = Some(got + 1),
            }
        }
        let ticketed =
            entries.into_iter().map(|entry| (content.push(entry.clone()), entry)).collect();
        self.submit(Change::Entries(ticketed), Some(done), &content)
    }

    /// Keeps a vote.
    pub(crate) fn save_vote(&self, vote: Vote, done: Done) -> Result<(), WalError> {
        let mut content = self.shared.content();
        content.vote = Some(vote);
        self.submit(Change::Vote(vote), Some(done), &content)
    }

    /// Drops the entries from `index` on.
    pub(crate) fn truncate_from(&self, index: u64, done: Done) -> Result<(), WalError> {
        let mut content = self.shared.content();
        content.truncate_from(index);
        self.submit(Change::Truncate(index), Some(done), &content)
    }

    /// Drops the entries up to and with `upto`. Segments with entries after `keep_from` are set
    /// aside for an offline replay.
    pub(crate) fn purge(&self, upto: LogId, keep_from: u64, done: Done) -> Result<(), WalError> {
        let mut content = self.shared.content();
        content.purge(upto);
        self.submit(Change::Purge { upto, keep_from }, Some(done), &content)
    }

    /// Remembers how far the log is committed; written along with whatever comes next.
    pub(crate) fn save_committed(&self, committed: Option<LogId>) {
        self.shared.content().committed = committed;
    }

    /// Waits until everything that was accepted is on disk.
    pub(crate) async fn flushed(&self) -> Result<(), WalError> {
        let (sender, receiver) = oneshot::channel();
        let done: Done = Box::new(move |result| drop(sender.send(result)));
        let job = Job { change: Change::Nothing, done: Some(done) };
        self.jobs.send(job).map_err(|_| WalError::Closed)?;
        receiver.await.unwrap_or(Err(WalError::Closed))
    }

    /// Writes out what waits and stops the writer.
    pub(crate) async fn close(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.submit_close(Box::new(move |_| sender.send(()).unwrap_or_default())) {
            receiver.await.ok();
        }
    }

    fn submit_close(&self, done: Done) -> bool {
        self.jobs.send(Job { change: Change::Close, done: Some(done) }).is_ok()
    }

    /// The entries of `start..end` that the log has, at most about `max_bytes` of them but at
    /// least one.
    pub(crate) fn read(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        let found = self.find(start, end);
        let mut entries = Vec::with_capacity(found.len());
        let mut bytes = 0;
        for found in found {
            if bytes >= max_bytes {
                break;
            }
            let entry = match found {
                Found::Cached(entry) => entry,
                Found::OnDisk(file, at) => self.read_entry(&*file, at)?,
            };
            if let openraft::EntryPayload::Normal(body) = &entry.payload {
                bytes += body.0.len();
            }
            bytes += 64;
            entries.push(entry);
        }
        Ok(entries)
    }

    pub(crate) fn vote(&self) -> Option<Vote> {
        self.shared.content().vote
    }

    pub(crate) fn purged(&self) -> Option<LogId> {
        self.shared.content().purged
    }

    pub(crate) fn last(&self) -> Option<LogId> {
        self.shared.content().last()
    }

    /// How far the log was committed; never past its end, for the log may have lost a tail that
    /// was not synced.
    pub(crate) fn committed(&self) -> Option<LogId> {
        let content = self.shared.content();
        content.committed.min(content.last())
    }

    /// How many syncs the writer asked for.
    pub(crate) fn sync_count(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Set once the log cannot be written any more.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    #[cfg(test)]
    pub(crate) fn cached_bytes(&self) -> usize {
        self.shared.content().cached_bytes()
    }

    /// Hands a job to the writer. The lock is held, so that the order of jobs is the order in
    /// which the content changed.
    fn submit(
        &self,
        change: Change,
        done: Option<Done>,
        _content: &MutexGuard<'_, LogContent>,
    ) -> Result<(), WalError> {
        self.jobs.send(Job { change, done }).map_err(|_| WalError::Closed)
    }

    fn find(&self, start: u64, end: u64) -> Vec<Found> {
        let content = self.shared.content();
        let find = |slot: &state::Slot| match (&slot.entry, slot.at) {
            (Some(entry), _) => Found::Cached(entry.clone()),
            (None, Some(at)) => {
                let segment = content.segments.get(&at.segment).expect("entries outlive purging");
                Found::OnDisk(Arc::clone(&segment.file), at)
            }
            (None, None) => unreachable!("an entry leaves the cache only once it is on disk"),
        };
        content.range(start, end).map(find).collect()
    }

    fn read_entry(&self, file: &dyn DiskFile, at: Location) -> io::Result<Entry> {
        let mut bytes = vec![0; at.len as usize];
        file.read_at(&mut bytes, at.offset)?;
        let path = || self.shared.options.dir.join(recover::segment_name(at.segment));
        let corrupt = |why: String| WalError::corrupt(&path(), at.offset, why);
        match record::parse(&bytes, 0) {
            Parsed::Record(record) => codec::read_entry(record.schema, record.body)
                .map_err(|error| corrupt(error.to_string()).into()),
            Parsed::Bad(why) => Err(corrupt(why.into()).into()),
            Parsed::End => Err(corrupt("zeros where an entry was".into()).into()),
        }
    }
}

enum Found {
    Cached(Entry),
    OnDisk(Arc<dyn DiskFile>, Location),
}
