//! The archive: records that apply gave away for keeping, in a sled database, with the index up to
//! which they were written. It can be rebuilt from the log or from a peer and is never the only
//! copy: sled's `flush` is no fsync, so the log is purged only up to a checkpoint that this module
//! synced itself. Does not know what the records mean.
//!
//! Each value carries the index of the entry that wrote it, so that copies can be merged in any
//! order: the greater index wins.

mod db;

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use self::db::Db;
use crate::disk::Disk;
use rowen_planted::{Bug, planted};

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
}

impl From<ArchiveError> for io::Error {
    fn from(error: ArchiveError) -> io::Error {
        io::Error::other(error)
    }
}

const RECORD: u8 = b'r';
const APPLIED: &[u8] = b"m/applied";
const GAP: &[u8] = b"m/gap";
const CACHE_BYTES: u64 = 32 << 20;

/// The archive of one replica.
pub struct Archive {
    dir: PathBuf,
    /// None once closed.
    db: RwLock<Option<Db>>,
    /// One more than the last index whose records are in.
    next: AtomicU64,
    /// The same, as of the last checkpoint.
    synced: AtomicU64,
    /// Held by whoever writes.
    writing: Mutex<()>,
}

/// A record with the index of the entry that wrote it.
pub(crate) struct Indexed {
    pub(crate) index: u64,
    pub(crate) record: ArchiveRecord,
}

impl Archive {
    /// The value under `key`.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ArchiveError> {
        let found = self.db()?.get(record_key(key)).map_err(|e| self.sled(e))?;
        Ok(found.map(|stored| split(&stored).1.to_vec()))
    }

    /// The records whose keys begin with `prefix`, in key order.
    pub fn scan(
        &self,
        prefix: &[u8],
    ) -> Result<
        impl DoubleEndedIterator<Item = Result<ArchiveRecord, ArchiveError>> + use<>,
        ArchiveError,
    > {
        Ok(self.scan_indexed(prefix)?.map(|item| item.map(|indexed| indexed.record)))
    }

    /// The last index whose records are in.
    pub fn applied(&self) -> Option<u64> {
        self.next.load(Ordering::Acquire).checked_sub(1)
    }

    /// Whether records are missing, because this replica caught up by snapshot and has not fetched
    /// them from a peer yet.
    pub fn has_gap(&self) -> Result<bool, ArchiveError> {
        self.db()?.contains_key(GAP).map_err(|e| self.sled(e))
    }

    pub(crate) fn open(dir: &Path) -> Result<Archive, ArchiveError> {
        let sled = |source| ArchiveError::Sled { dir: dir.into(), source };
        fs::create_dir_all(dir).map_err(|source| ArchiveError::Io { dir: dir.into(), source })?;
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES);
        let db = config.flush_every_ms(Some(1_000)).open().map_err(sled)?;
        Archive::with(Db::Sled(db), dir)
    }

    /// The same on a simulated disk.
    pub(crate) fn open_simulated(disk: Arc<dyn Disk>, dir: &Path) -> Result<Archive, ArchiveError> {
        let db = Db::open_simulated(disk, dir);
        Archive::with(db.map_err(|source| ArchiveError::Sled { dir: dir.into(), source })?, dir)
    }

    fn with(db: Db, dir: &Path) -> Result<Archive, ArchiveError> {
        let sled = |source| ArchiveError::Sled { dir: dir.into(), source };
        let next = match db.get(APPLIED).map_err(sled)? {
            Some(stored) => stored.as_ref().try_into().map_or(0, u64::from_be_bytes),
            None => 0,
        };
        Ok(Archive {
            dir: dir.into(),
            db: RwLock::new(Some(db)),
            next: AtomicU64::new(next),
            synced: AtomicU64::new(0),
            writing: Mutex::new(()),
        })
    }

    /// Writes the records of the entries up to `upto`, but those it has already.
    pub(crate) fn write(&self, upto: u64, records: Vec<Indexed>) -> Result<(), ArchiveError> {
        let _writing = self.writing.lock().expect("no holder of this lock panics");
        let next = self.next.load(Ordering::Acquire);
        if upto < next {
            return Ok(());
        }
        let kept = |index: u64| !planted(Bug::ArchiveLoses) || !index.is_multiple_of(100);
        let new = records.into_iter().filter(|item| item.index >= next && kept(item.index));
        let mut batch: Vec<_> = new
            .map(|item| (record_key(&item.record.key), stored(item.index, &item.record.value)))
            .collect();
        if !batch.is_empty() {
            // In one batch with the records: after a crash either both are there or neither.
            batch.push((APPLIED.to_vec(), (upto + 1).to_be_bytes().to_vec()));
            self.db()?.apply(batch).map_err(|e| self.sled(e))?;
        }
        self.next.store(upto + 1, Ordering::Release);
        Ok(())
    }

    /// Notes that the state jumped to `upto` by a snapshot; what lies between is missing here.
    pub(crate) fn skip_to(&self, upto: u64) -> Result<(), ArchiveError> {
        let _writing = self.writing.lock().expect("no holder of this lock panics");
        let next = self.next.load(Ordering::Acquire);
        if upto < next {
            return Ok(());
        }
        tracing::warn!(from = next, upto, "the archive lacks records; they come from a peer");
        let batch = vec![
            (APPLIED.to_vec(), (upto + 1).to_be_bytes().to_vec()),
            (GAP.to_vec(), upto.to_be_bytes().to_vec()),
        ];
        self.db()?.apply(batch).map_err(|e| self.sled(e))?;
        self.next.store(upto + 1, Ordering::Release);
        Ok(())
    }

    /// Makes durable what was written so far. The log may then be purged up to
    /// [`Archive::is_synced_to`].
    pub(crate) fn checkpoint(&self) -> Result<(), ArchiveError> {
        let db = self.db()?;
        let next = {
            let _writing = self.writing.lock().expect("no holder of this lock panics");
            let next = self.next.load(Ordering::Acquire);
            db.insert(APPLIED, &next.to_be_bytes()).map_err(|e| self.sled(e))?;
            next
        };
        db.flush().map_err(|e| self.sled(e))?;
        if matches!(db, Db::Sled(_)) {
            sync_tree(&self.dir)
                .map_err(|source| ArchiveError::Io { dir: self.dir.clone(), source })?;
        }
        self.synced.fetch_max(next, Ordering::AcqRel);
        Ok(())
    }

    /// Whether the records of all entries up to `index` are on the medium.
    pub(crate) fn is_synced_to(&self, index: u64) -> bool {
        self.synced.load(Ordering::Acquire) > index
    }

    /// Takes records of a peer; the greater index wins.
    pub(crate) fn merge(&self, items: Vec<Indexed>) -> Result<(), ArchiveError> {
        let _writing = self.writing.lock().expect("no holder of this lock panics");
        let db = self.db()?;
        let mut batch = Vec::new();
        for item in items {
            let key = record_key(&item.record.key);
            let held = db.get(&key).map_err(|e| self.sled(e))?;
            if held.is_none_or(|held| split(&held).0 < item.index) {
                batch.push((key, stored(item.index, &item.record.value)));
            }
        }
        db.apply(batch).map_err(|e| self.sled(e))
    }

    /// Ends the gap if a peer's records up to `applied` cover it.
    pub(crate) fn close_gap(&self, applied: u64) -> Result<bool, ArchiveError> {
        let _writing = self.writing.lock().expect("no holder of this lock panics");
        let db = self.db()?;
        let gap = db.get(GAP).map_err(|e| self.sled(e))?;
        let upto = gap.and_then(|stored| stored.as_ref().try_into().ok().map(u64::from_be_bytes));
        let is_covered = upto.is_none_or(|upto| applied >= upto);
        if is_covered {
            db.remove(GAP).map_err(|e| self.sled(e))?;
        }
        Ok(is_covered)
    }

    pub(crate) fn scan_indexed(
        &self,
        prefix: &[u8],
    ) -> Result<impl DoubleEndedIterator<Item = Result<Indexed, ArchiveError>> + use<>, ArchiveError>
    {
        let dir = self.dir.clone();
        Ok(self.db()?.scan_prefix(record_key(prefix)).map(move |found| {
            let (key, value) =
                found.map_err(|source| ArchiveError::Sled { dir: dir.clone(), source })?;
            let (index, value) = split(&value);
            let record = ArchiveRecord { key: key[1..].to_vec(), value: value.to_vec() };
            Ok(Indexed { index, record })
        }))
    }

    /// Lets go of the database, so that it can be opened again. A scan in flight holds on to it.
    pub(crate) fn close(&self) {
        let db = self.db.write().expect("no holder of this lock panics").take();
        if let Some(db) = db
            && let Err(error) = db.flush()
        {
            tracing::warn!(%error, "the archive was not flushed; the log rebuilds it");
        }
    }

    fn db(&self) -> Result<Db, ArchiveError> {
        let db = self.db.read().expect("no holder of this lock panics");
        db.clone().ok_or(ArchiveError::Closed)
    }

    fn sled(&self, source: sled::Error) -> ArchiveError {
        ArchiveError::Sled { dir: self.dir.clone(), source }
    }
}

fn record_key(key: &[u8]) -> Vec<u8> {
    [&[RECORD], key].concat()
}

fn stored(index: u64, value: &[u8]) -> Vec<u8> {
    [&index.to_be_bytes(), value].concat()
}

fn split(stored: &[u8]) -> (u64, &[u8]) {
    match stored.split_first_chunk() {
        Some((index, value)) => (u64::from_be_bytes(*index), value),
        None => (0, &[]),
    }
}

/// Syncs every file and folder from `dir` down.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            match File::open(entry.path()) {
                Ok(file) => file.sync_data()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {} // sled replaced it
                Err(error) => return Err(error),
            }
        }
    }
    File::open(dir)?.sync_all()
}
