//! The archive: records that apply gave away for keeping, with the index up to which they were
//! written. It can be rebuilt from the log or from a peer and is never the only copy: sled's
//! `flush` is no fsync, so the log is purged only up to a checkpoint that this module synced
//! itself. Does not know what the records mean.
//!
//! Each value carries the index of the entry that wrote it, so that copies can be merged in any
//! order: the greater index wins. The index also says which *period* a record belongs to: a folder
//! with a sled database of its own, named after its first index. sled gives no space back, so what
//! is too old goes with its folder. Periods follow from indexes and not from a clock or from bytes:
//! every replica with the same configuration holds the same records, and a peer's records find
//! their place without a word about the peer's folders.
//!
//! Records wait in memory until there are many, and go to sled sorted: sled writes a whole page
//! anew for a few lines that are scattered over it, and a job's lines are scattered over time. A
//! killed process loses nothing by it: the log has what no checkpoint covers.

mod db;
mod digest;
mod period;
mod periods;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use rowen_planted::{Bug, planted};

use self::{
    db::Place,
    digest::{RecordDigest, Trust},
    period::{Notes, Period, Sums},
    periods::{Merged, Periods},
};
use crate::disk::Disk;

/// One record for keeping. A later record with the same key replaces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveRecord {
    /// What it is found and sorted by.
    pub key: Vec<u8>,
    /// What is kept.
    pub value: Vec<u8>,
}

/// Why the archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// sled refused.
    #[error("archive {}: {source}; remove that folder and it is fetched from a peer", dir.display())]
    Sled {
        /// Where it lies.
        dir: PathBuf,
        /// What sled said.
        source: sled::Error,
    },
    /// A file of it could not be synced.
    #[error("archive {}: {source}", dir.display())]
    Io {
        /// Where it lies.
        dir: PathBuf,
        /// What the disk said.
        source: io::Error,
    },
    /// The replica was shut down.
    #[error("the archive is closed")]
    Closed,
}

impl ArchiveError {
    /// Whether another handle, still open, is the reason.
    pub(crate) fn is_locked(&self) -> bool {
        // sled wraps the cause in text and keeps no kind.
        matches!(self, ArchiveError::Sled { source: sled::Error::Io(error), .. }
            if error.to_string().contains("could not acquire lock"))
    }

    /// Whether what was written can no longer be read.
    fn is_damage(&self) -> bool {
        use sled::Error::{Corruption, Unsupported};
        match self {
            ArchiveError::Sled { source: Corruption { .. } | Unsupported(_), .. } => true,
            ArchiveError::Sled { source: sled::Error::Io(error), .. } => {
                matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            }
            _ => false,
        }
    }
}

impl From<ArchiveError> for io::Error {
    fn from(error: ArchiveError) -> io::Error {
        io::Error::other(error)
    }
}

/// How far back the archive reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retention {
    /// How many entries of the log share a period.
    pub(crate) period_entries: u64,
    /// How many periods are kept, the one being written included.
    pub(crate) periods: u64,
}

/// Records by key, with the index of the entry that wrote each.
type Waiting = BTreeMap<Vec<u8>, (u64, Vec<u8>)>;

/// The archive of one replica.
pub struct Archive {
    periods: Periods,
    /// One more than the last index whose records are in.
    next: AtomicU64,
    /// The same, as of the last checkpoint.
    synced: AtomicU64,
    /// By key, with the index. All belong to the newest period.
    waiting: RwLock<Waiting>,
    /// Held by whoever writes; taken before `waiting`.
    writing: Mutex<Writing>,
    /// What a record adds to the state's digest; set by whoever applies.
    record_digest: OnceLock<RecordDigest>,
}

#[derive(Default)]
struct Writing {
    /// Records up to here are missing.
    gap: Option<u64>,
    /// How often one was noted: what was fetched before may have gone with it.
    gaps: u64,
    /// The state's digest of all records that were written; `None`: the state keeps none yet.
    sum: Option<u128>,
    /// The same as of the beginning of each period of which it is known.
    sums: Sums,
    trust: Trust,
    /// Older periods that took records from a peer and were not synced since.
    dirty: Vec<u64>,
    waiting_bytes: usize,
}

/// Records wait until they are as many bytes.
const WAITING_BYTES: usize = 4 << 20;

/// A record with the index of the entry that wrote it.
#[derive(Debug)]
pub(crate) struct Indexed {
    pub(crate) index: u64,
    pub(crate) record: ArchiveRecord,
}

impl Archive {
    /// The value under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
        if let Some((_, value)) = self.waiting().get(key) {
            return Ok(Some(value.clone()));
        }
        // A key's later record lies in the same period or in a later one.
        for start in self.periods.starts()?.into_iter().rev() {
            let Some(period) = self.open_or_set_aside(start)? else { continue };
            match period.get(key) {
                Ok(Some((_, value))) => return Ok(Some(value)),
                Ok(None) => {}
                Err(error) => self.judge(start, error)?,
            }
        }
        Ok(None)
    }

    /// The records whose keys begin with `prefix`, in key order.
    pub fn scan(
        &self,
        prefix: &[u8],
    ) -> Result<
        impl Iterator<Item = Result<ArchiveRecord, ArchiveError>> + Send + use<>,
        ArchiveError,
    > {
        Ok(self.scan_indexed(prefix)?.map(|item| item.map(|indexed| indexed.record)))
    }

    /// The last index whose records are in.
    pub fn applied(&self) -> Option<u64> {
        self.next.load(Ordering::Acquire).checked_sub(1)
    }

    /// Whether records are missing, because this replica caught up by snapshot or lost a period,
    /// and has not fetched them from a peer yet.
    pub fn has_gap(&self) -> Result<bool, ArchiveError> {
        self.periods.newest()?;
        Ok(self.writing().gap.is_some())
    }

    pub(crate) fn open(dir: &Path, retention: Retention) -> Result<Archive, ArchiveError> {
        Archive::open_in(Place::Folders, dir, retention)
    }

    /// The same on a simulated disk.
    pub(crate) fn open_simulated(
        disk: Arc<dyn Disk>,
        dir: &Path,
        retention: Retention,
    ) -> Result<Archive, ArchiveError> {
        Archive::open_in(Place::Simulated(disk), dir, retention)
    }

    fn open_in(place: Place, dir: &Path, retention: Retention) -> Result<Archive, ArchiveError> {
        let periods = Periods::open(place, dir, retention)?;
        let starts = periods.starts()?;
        let mut notes = periods.newest()?.notes()?;
        // A period that was begun and got no notes: the process died in between.
        for start in starts.iter().rev().skip(1) {
            if notes.next.is_none() {
                notes = periods.period(*start)?.notes()?;
            }
        }
        let archive = Archive {
            periods,
            next: AtomicU64::new(notes.next.unwrap_or(0)),
            synced: AtomicU64::new(0),
            waiting: RwLock::default(),
            writing: Mutex::new(Writing {
                gap: notes.gap,
                sum: notes.sum,
                sums: notes.sums,
                ..Writing::default()
            }),
            record_digest: OnceLock::new(),
        };
        let lost = |start: &&u64| !starts.contains(start) && archive.periods.is_kept(**start);
        for start in notes.periods.iter().filter(lost) {
            tracing::warn!(start, "a period of the archive is missing; it comes from a peer");
            archive.periods.begin_anew(*start)?;
            archive.note_gap(&mut archive.writing())?;
        }
        Ok(archive)
    }

    /// Takes the records of the entries up to `upto`, but those it has already. `digest`: the
    /// state's, after the last of them.
    pub(crate) fn write(
        &self,
        upto: u64,
        records: Vec<Indexed>,
        digest: Option<u128>,
    ) -> Result<(), ArchiveError> {
        let mut writing = self.writing();
        let next = self.next.load(Ordering::Acquire);
        if upto < next {
            return Ok(());
        }
        let kept = |index: u64| !planted(Bug::ArchiveLoses) || !index.is_multiple_of(100);
        let new = records.into_iter().filter(|item| item.index >= next && kept(item.index));
        for Indexed { index, record } in new {
            let newest = self.periods.newest()?.start;
            let start = self.periods.start_of(index)?;
            if start > newest {
                self.spill(&mut writing)?;
                self.next.store(index, Ordering::Release);
                self.reach(start, &mut writing)?;
            }
            self.add(&mut writing, &record);
            writing.waiting_bytes += record.key.len() + record.value.len();
            let mut waiting = self.waiting.write().expect("no holder of this lock panics");
            waiting.insert(record.key, (index, record.value));
        }
        self.next.store(upto + 1, Ordering::Release);
        self.compare(upto, digest, &mut writing)?;
        if writing.waiting_bytes > WAITING_BYTES { self.spill(&mut writing) } else { Ok(()) }
    }

    /// Notes that the state jumped to `upto`, where its digest is `digest`, by a snapshot; what lies
    /// between is missing here.
    pub(crate) fn skip_to(&self, upto: u64, digest: Option<u128>) -> Result<(), ArchiveError> {
        let mut writing = self.writing();
        let next = self.next.load(Ordering::Acquire);
        if upto < next {
            return Ok(());
        }
        tracing::warn!(from = next, upto, "the archive lacks records; they come from a peer");
        self.spill(&mut writing)?;
        writing.gap = Some(upto);
        writing.gaps += 1;
        writing.sum = None; // of a period that begins in the gap nobody knows it
        let period = self.reach(self.periods.start_of(upto)?, &mut writing)?;
        writing.sum = digest;
        let (next, gap, sum) = (Some(upto + 1), Some(upto), digest);
        period.write([], &Notes { next, gap, sum, ..Notes::default() })?;
        self.next.store(upto + 1, Ordering::Release);
        Ok(())
    }

    /// Makes durable what was written so far. The log may then be purged up to
    /// [`Archive::is_synced_to`].
    pub(crate) fn checkpoint(&self) -> Result<(), ArchiveError> {
        let (period, next) = {
            // Held until `next` is read: what comes in meanwhile is only in memory.
            let mut writing = self.writing();
            self.spill(&mut writing)?;
            (self.periods.newest()?, self.next.load(Ordering::Acquire))
        };
        period.sync()?;
        self.synced.fetch_max(next, Ordering::AcqRel);
        Ok(())
    }

    /// Whether the records of all entries up to `index` are on the medium.
    pub(crate) fn is_synced_to(&self, index: u64) -> bool {
        self.synced.load(Ordering::Acquire) > index
    }

    /// Takes records of a peer; the greater index wins. What is older than what is kept is not
    /// taken.
    pub(crate) fn merge(&self, mut items: Vec<Indexed>) -> Result<(), ArchiveError> {
        let mut writing = self.writing();
        self.spill(&mut writing)?;
        // What comes later is still to be applied here.
        let next = self.next.load(Ordering::Acquire);
        items.retain(|item| item.index < next);
        items.sort_by_key(|item| item.index);
        while let Some(first) = items.first() {
            let start = self.periods.start_of(first.index)?;
            let newest = self.periods.newest()?.start;
            let end = if start == newest { u64::MAX } else { self.periods.end_of(start) };
            let rest = items.split_off(items.partition_point(|item| item.index < end));
            if start >= newest {
                // What the state's digest was there is not known.
                let sum = writing.sum.take_if(|_| start > newest);
                let reached = self.reach(start, &mut writing)?;
                writing.sum = writing.sum.or(sum);
                reached.merge(items)?;
            } else if self.periods.is_kept(start) {
                self.merge_older(start, items, &mut writing)?;
            }
            items = rest;
        }
        writing.dirty.sort_unstable();
        writing.dirty.dedup();
        Ok(())
    }

    /// A period that is damaged is put aside. It is an error all the same: what this fetch put into
    /// it before went with it, so the gap must not be closed by the rest. The next fetch begins it
    /// anew.
    fn merge_older(
        &self,
        start: u64,
        items: Vec<Indexed>,
        writing: &mut Writing,
    ) -> Result<(), ArchiveError> {
        let merged = self.periods.period(start).and_then(|period| {
            period.merge(items)?;
            period.flush()
        });
        if let Err(error) = &merged
            && error.is_damage()
        {
            self.replace_damaged(start, error, writing)?;
        }
        merged?;
        writing.dirty.push(start);
        Ok(())
    }

    /// How often a gap was noted; to be asked before records are fetched.
    pub(crate) fn gaps(&self) -> u64 {
        self.writing().gaps
    }

    /// Ends the gap if a peer's records up to `applied`, fetched since there were `gaps`, cover it:
    /// what was put aside meanwhile took with it what they brought.
    pub(crate) fn close_gap(&self, applied: u64, gaps: u64) -> Result<bool, ArchiveError> {
        let mut writing = self.writing();
        let is_covered = gaps == writing.gaps && writing.gap.is_none_or(|upto| applied >= upto);
        if is_covered {
            // The records first: a gap that is forgotten is never filled.
            for start in std::mem::take(&mut writing.dirty) {
                self.periods.sync(start)?;
                writing.trust.forget(start);
            }
            let newest = self.periods.newest()?;
            newest.write([], &Notes { periods: self.periods.starts()?, ..Notes::default() })?;
            newest.end_gap()?;
            writing.gap = None;
        }
        Ok(is_covered)
    }

    pub(crate) fn scan_indexed(&self, prefix: &[u8]) -> Result<Merged, ArchiveError> {
        // First what waits: what is spilled meanwhile is met twice, not missed.
        let waiting: Vec<_> = self
            .waiting()
            .range(prefix.to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, (index, value))| {
                let record = ArchiveRecord { key: key.clone(), value: value.clone() };
                Ok(Indexed { index: *index, record })
            })
            .collect();
        let mut merged = Merged::default();
        for start in self.periods.starts()? {
            if let Some(period) = self.open_or_set_aside(start)? {
                merged.add(period.scan(prefix));
            }
        }
        merged.add(waiting.into_iter());
        Ok(merged)
    }

    /// Lets go of the databases, so that they can be opened again. A scan in flight holds on.
    pub(crate) fn close(&self) {
        if let Err(error) = self.spill(&mut self.writing()) {
            tracing::warn!(%error, "the archive was not written out; the log rebuilds it");
        }
        self.periods.close();
    }

    /// Writes what waits to the newest period.
    fn spill(&self, writing: &mut Writing) -> Result<(), ArchiveError> {
        let next = self.next.load(Ordering::Acquire);
        let records = self.waiting().clone().into_iter().map(|(key, (index, value))| {
            let record = ArchiveRecord { key, value };
            Indexed { index, record }
        });
        // In one batch: after a crash either all are there and the note says so, or neither.
        let notes = Notes { next: Some(next), sum: writing.sum, ..Notes::default() };
        self.periods.newest()?.write(records, &notes)?;
        // Only now: a reader finds each record in one of the two places.
        self.waiting.write().expect("no holder of this lock panics").clear();
        writing.waiting_bytes = 0;
        Ok(())
    }

    fn waiting(&self) -> RwLockReadGuard<'_, Waiting> {
        self.waiting.read().expect("no holder of this lock panics")
    }

    /// The period that begins at `start` for writing; begins it where it is later than all others.
    fn reach(&self, start: u64, writing: &mut Writing) -> Result<Arc<Period>, ArchiveError> {
        let newest = self.periods.newest()?;
        if start <= newest.start {
            return Ok(newest);
        }
        let next = self.next.load(Ordering::Acquire);
        let (gap, sum) = (writing.gap, writing.sum);
        newest.write([], &Notes { next: Some(next), sum, ..Notes::default() })?;
        writing.sums.extend(sum.map(|sum| (start, sum)));
        let sums = &mut writing.sums;
        let begun = self.periods.begin(start, |periods| {
            sums.retain(|start, _| periods.contains(start));
            Notes { next: Some(next), gap, sum, periods, sums: sums.clone() }
        })?;
        // Everything before it is synced now.
        self.synced.fetch_max(next, Ordering::AcqRel);
        Ok(begun)
    }

    /// An older period that cannot be read is put aside, to be fetched from a peer.
    fn open_or_set_aside(&self, start: u64) -> Result<Option<Arc<Period>>, ArchiveError> {
        match self.periods.period(start) {
            Ok(period) => Ok(Some(period)),
            Err(error) => self.judge(start, error).map(|()| None),
        }
    }

    fn judge(&self, start: u64, error: ArchiveError) -> Result<(), ArchiveError> {
        if !error.is_damage() || start >= self.periods.newest()?.start {
            return Err(error);
        }
        self.replace_damaged(start, &error, &mut self.writing())
    }

    fn replace_damaged(
        &self,
        start: u64,
        error: &ArchiveError,
        writing: &mut Writing,
    ) -> Result<(), ArchiveError> {
        tracing::warn!(%error, start, "a period of the archive is damaged; it comes from a peer");
        self.periods.set_aside(start)?;
        self.note_gap(writing)
    }

    fn note_gap(&self, writing: &mut Writing) -> Result<(), ArchiveError> {
        let Some(upto) = self.applied() else { return Ok(()) };
        writing.gap = Some(upto);
        writing.gaps += 1;
        self.periods.newest()?.write([], &Notes { gap: Some(upto), ..Notes::default() })
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        self.writing.lock().expect("no holder of this lock panics")
    }
}
