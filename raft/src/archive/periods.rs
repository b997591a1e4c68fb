//! The folders of the archive: which periods there are, which is written to, which are too old.
//! Older periods are opened when somebody reads them. Never knows what is missing from one.

use std::{
    collections::BTreeMap,
    iter::Peekable,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, RwLock, Weak},
    thread,
    time::Duration,
};

use super::{
    ArchiveError, Indexed, Retention,
    db::Place,
    period::{Notes, Period},
};

/// Of the period that is written to, and of each older one that somebody read.
const CACHE_BYTES: u64 = 32 << 20;
const OLD_CACHE_BYTES: u64 = 4 << 20;
/// What a killed process may lose of what the log still has.
const FLUSH_EVERY_MS: u64 = 1_000;
/// sled lets go of its lock a little after it is dropped.
const LOCK_POLL: Duration = Duration::from_millis(10);
const LOCK_POLLS: u32 = 200;
/// Of a folder that is being removed, and of one whose database cannot be read.
const DROPPED: &str = "dropped";
const DAMAGED: &str = "damaged";

/// All periods of one archive.
pub(super) struct Periods {
    place: Place,
    dir: PathBuf,
    retention: Retention,
    /// None once closed.
    newest: RwLock<Option<Arc<Period>>>,
    /// By their first index.
    older: Mutex<BTreeMap<u64, Slot>>,
}

/// An older period.
#[derive(Default)]
struct Slot {
    open: Option<Arc<Period>>,
    /// The handle it was written through, while a reader holds on to it: sled opens once.
    written: Weak<Period>,
}

impl Periods {
    /// Finds the periods in `dir` and opens the newest. One that cannot be read is put aside.
    pub(super) fn open(
        place: Place,
        dir: &Path,
        retention: Retention,
    ) -> Result<Periods, ArchiveError> {
        let mut starts = Vec::new();
        for name in place.names(dir)? {
            if name.ends_with(DROPPED) {
                place.remove(dir, &name)?;
            }
            starts.extend(name.parse::<u64>());
        }
        starts.sort_unstable();
        let newest = loop {
            let start = starts.pop().unwrap_or(0);
            let opened = open_newest(&place, dir, start);
            match opened.and_then(|period| period.notes().map(|_| period)) {
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, start, "put aside; the log or a peer has its records");
                    put_aside(&place, dir, start, DAMAGED)?;
                }
                opened => break opened?,
            }
        };
        let older = starts.into_iter().map(|start| (start, Slot::default())).collect();
        Ok(Periods {
            place,
            dir: dir.into(),
            retention,
            newest: RwLock::new(Some(Arc::new(newest))),
            older: Mutex::new(older),
        })
    }

    /// The first indexes of all periods, oldest first.
    pub(super) fn starts(&self) -> Result<Vec<u64>, ArchiveError> {
        let newest = self.newest()?.start;
        let older = self.older();
        Ok(older.keys().copied().filter(|start| *start != newest).chain([newest]).collect())
    }

    /// Where the period begins that an entry belongs to, whether it is there yet or not.
    pub(super) fn start_of(&self, index: u64) -> Result<u64, ArchiveError> {
        let aligned = index - index % self.retention.period_entries;
        // Whoever applies asks for this with each record, and must not wait for `older`: it is held
        // while an old period is opened.
        let newest = self.newest()?.start;
        if index >= newest {
            return Ok(aligned.max(newest));
        }
        // Another number of entries may have been configured when an older one was begun.
        let known = self.starts()?.into_iter().rfind(|start| *start <= index);
        Ok(aligned.max(known.unwrap_or(0)))
    }

    /// The first index after the period that begins at `start`.
    pub(super) fn end_of(&self, start: u64) -> u64 {
        let entries = self.retention.period_entries;
        let aligned = (start / entries + 1).saturating_mul(entries);
        // One that was begun early cuts the one before it short.
        let newest = self.newest().map_or(u64::MAX, |newest| newest.start);
        let older = self.older().keys().copied().find(|other| *other > start);
        let following = [Some(newest).filter(|newest| *newest > start), older];
        following.into_iter().flatten().fold(aligned, u64::min)
    }

    /// Whether a period that begins at `start` is not too old.
    pub(super) fn is_kept(&self, start: u64) -> bool {
        self.newest().is_ok_and(|newest| start >= self.floor(newest.start))
    }

    /// The one that is written to.
    pub(super) fn newest(&self) -> Result<Arc<Period>, ArchiveError> {
        let newest = self.newest.read().expect("no holder of this lock panics");
        newest.clone().ok_or(ArchiveError::Closed)
    }

    /// The period that begins at `start`; begun where it is not there.
    pub(super) fn period(&self, start: u64) -> Result<Arc<Period>, ArchiveError> {
        let newest = self.newest()?;
        if newest.start == start {
            return Ok(newest);
        }
        let mut older = self.older();
        let slot = older.entry(start).or_default();
        if let Some(open) = slot.open.clone().or_else(|| slot.written.upgrade()) {
            return Ok(open);
        }
        let open = Arc::new(open_older(&self.place, &self.dir, start)?);
        slot.open = Some(Arc::clone(&open));
        Ok(open)
    }

    /// Begins the period that is written to from now on, with the notes made of all that are
    /// kept, and drops what is too old. What was written before is durable first: the log must
    /// find out what is missing by looking at the newest alone.
    pub(super) fn begin(
        &self,
        start: u64,
        notes: impl FnOnce(Vec<u64>) -> Notes,
    ) -> Result<Arc<Period>, ArchiveError> {
        let last = self.newest()?;
        last.sync()?;
        let gone = self.take_expendable(start, last.start);
        let kept = self.older().keys().copied().chain([last.start, start]).collect();
        let begun = Arc::new(open_newest(&self.place, &self.dir, start)?);
        begun.write([], &notes(kept))?;
        begun.sync()?;
        self.place.sync(&self.dir)?;
        tracing::info!(start, dropped = gone.len(), "a new period of the archive");
        let slot = Slot { open: None, written: Arc::downgrade(&last) };
        self.older().insert(last.start, slot);
        *self.newest.write().expect("no holder of this lock panics") = Some(Arc::clone(&begun));
        drop(last);
        for start in gone {
            // Renamed first: what is half removed must not look like a period.
            let aside = put_aside(&self.place, &self.dir, start, DROPPED)?;
            self.place.remove(&self.dir, &aside)?;
        }
        Ok(begun)
    }

    /// Puts an older period aside that cannot be trusted. It begins anew, empty, where it began:
    /// what a peer has of it must find its place.
    pub(super) fn set_aside(&self, start: u64) -> Result<(), ArchiveError> {
        {
            let mut older = self.older();
            older.insert(start, Slot::default());
            put_aside(&self.place, &self.dir, start, DAMAGED)?;
        }
        self.begin_anew(start)
    }

    /// An older period that is missing begins anew.
    pub(super) fn begin_anew(&self, start: u64) -> Result<(), ArchiveError> {
        self.period(start).map(drop)
    }

    /// Makes an older period durable.
    pub(super) fn sync(&self, start: u64) -> Result<(), ArchiveError> {
        let is_there = self.older().contains_key(&start);
        if is_there { self.period(start)?.sync() } else { Ok(()) }
    }

    /// Lets go of all databases.
    pub(super) fn close(&self) {
        self.older().clear();
        let newest = self.newest.write().expect("no holder of this lock panics").take();
        if let Some(newest) = newest
            && let Err(error) = newest.flush()
        {
            tracing::warn!(%error, "the archive was not flushed; the log rebuilds it");
        }
    }

    /// Takes out the periods that nothing after the floor lies in.
    fn take_expendable(&self, newest: u64, last: u64) -> Vec<u64> {
        let floor = self.floor(newest);
        let mut older = self.older();
        let starts: Vec<u64> = older.keys().copied().chain([last, newest]).collect();
        let gone = starts.windows(2).filter(|pair| pair[1] <= floor).map(|pair| pair[0]);
        let gone: Vec<u64> = gone.filter(|start| *start != last).collect();
        older.retain(|start, _| !gone.contains(start));
        gone
    }

    /// Where the oldest period that is kept begins.
    fn floor(&self, newest: u64) -> u64 {
        let Retention { period_entries, periods } = self.retention;
        newest.saturating_sub(period_entries.saturating_mul(periods - 1))
    }

    fn older(&self) -> MutexGuard<'_, BTreeMap<u64, Slot>> {
        self.older.lock().expect("no holder of this lock panics")
    }
}

fn folder(dir: &Path, start: u64) -> PathBuf {
    dir.join(start.to_string())
}

fn open_newest(place: &Place, dir: &Path, start: u64) -> Result<Period, ArchiveError> {
    Period::open(place, start, &folder(dir, start), CACHE_BYTES, Some(FLUSH_EVERY_MS))
}

/// The handle that wrote it may just have been dropped.
fn open_older(place: &Place, dir: &Path, start: u64) -> Result<Period, ArchiveError> {
    let open = || Period::open(place, start, &folder(dir, start), OLD_CACHE_BYTES, None);
    for _ in 0..LOCK_POLLS {
        match open() {
            Err(error) if error.is_locked() => thread::sleep(LOCK_POLL),
            opened => return opened,
        }
    }
    open()
}

/// Gives a period another name, and says which; what had that name before is gone.
fn put_aside(place: &Place, dir: &Path, start: u64, why: &str) -> Result<String, ArchiveError> {
    let aside = format!("{start}.{why}");
    place.remove(dir, &aside)?;
    place.rename(dir, &start.to_string(), &aside)?;
    Ok(aside)
}

type Records = Box<dyn Iterator<Item = Result<Indexed, ArchiveError>> + Send>;

/// The records of several periods in key order. Of one key the newest period's counts.
#[derive(Default)]
pub(crate) struct Merged {
    /// Oldest first.
    periods: Vec<Peekable<Records>>,
}

impl Merged {
    pub(super) fn add(
        &mut self,
        records: impl Iterator<Item = Result<Indexed, ArchiveError>> + Send + 'static,
    ) {
        let records: Records = Box::new(records);
        self.periods.push(records.peekable());
    }

    /// The position of the smallest key, or of an error.
    fn first(&mut self) -> Option<usize> {
        let mut first: Option<(usize, &[u8])> = None;
        for (position, records) in self.periods.iter_mut().enumerate() {
            match records.peek() {
                None => {}
                Some(Err(_)) => return Some(position),
                Some(Ok(item)) => {
                    let key = item.record.key.as_slice();
                    if first.is_none_or(|(_, least)| key <= least) {
                        first = Some((position, key));
                    }
                }
            }
        }
        first.map(|(position, _)| position)
    }
}

impl Iterator for Merged {
    type Item = Result<Indexed, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        let position = self.first()?;
        let item = self.periods[position].next()?;
        if let Ok(item) = &item {
            for records in &mut self.periods[..position] {
                let key = &item.record.key;
                let same = |other: &Result<Indexed, _>| {
                    other.as_ref().is_ok_and(|other| other.record.key == *key)
                };
                while records.next_if(same).is_some() {}
            }
        }
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::{Notes, Periods, Place, Retention};

    #[test]
    fn whoever_applies_does_not_wait_for_an_older_period_that_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let retention = Retention { period_entries: 10, periods: 3 };
        let periods = Periods::open(Place::Folders, dir.path(), retention).unwrap();
        periods.begin(15, |_| Notes::default()).unwrap(); // of another number of entries
        assert_eq!([3, 14, 15, 19].map(|index| periods.start_of(index).unwrap()), [0, 10, 15, 15]);
        let opening = periods.older();
        let (sender, answers) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                for index in [15, 20, 34] {
                    sender.send(periods.start_of(index).unwrap()).unwrap();
                }
            });
            let patience = Duration::from_secs(60);
            let starts = [(); 3].map(|()| answers.recv_timeout(patience));
            drop(opening); // or a failure would be a test that never ends
            assert_eq!(starts, [Ok(15), Ok(20), Ok(30)]);
        });
    }
}
