//! Reads the data folder of a stopped replica, or a copy of one, without writing to it and without
//! starting anything: the snapshots and the entries that are still there. For `rowen replay`.
//! Never says what an entry means.
//!
//! In memory are only where each entry lies, about 100 bytes an entry, and one segment at a time.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use openraft::EntryPayload;

use crate::{
    OpenError, codec, disk,
    snapshots::{self, SnapshotFile},
    wal::{
        WalError,
        history::{self, OldSegment},
        record::{self, Parsed},
        recover::{self, Replay},
        state::LogContent,
        synced,
    },
};

/// What a data folder still holds.
pub struct OfflineLog {
    dir: PathBuf,
    /// Shared: several may read, no replica may start meanwhile. None in a copy without the file.
    _lock: Option<File>,
    /// Oldest first.
    snapshots: Vec<SnapshotFile>,
    content: LogContent,
    segments: BTreeMap<u64, PathBuf>,
    damage: Option<String>,
}

/// Where a replay begins, and what it applies.
pub struct OfflineReplay<'a> {
    /// The index and the bytes of the snapshot to begin with. None: begin with an empty state.
    pub snapshot: Option<(u64, Vec<u8>)>,
    /// The entries after it.
    pub entries: OfflineEntries<'a>,
}

/// Entries in order, each with its index. Blank and membership entries are passed over.
pub struct OfflineEntries<'a> {
    log: &'a OfflineLog,
    next: u64,
    last: u64,
    /// The segment that was read last, whole.
    segment: Option<(u64, Vec<u8>)>,
}

/// Reads what is in the data folder `dir`. Refused while a replica runs there, and where the log
/// is corrupt.
pub fn read_offline(dir: &Path) -> Result<OfflineLog, OpenError> {
    let lock = lock(dir)?;
    let log_dir = dir.join("log");
    let segments = segments(&log_dir)?;
    let synced = match fs::read(log_dir.join(synced::NAME)) {
        Ok(bytes) => synced::read_synced(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0, 0),
        Err(error) => return Err(WalError::io("read", &log_dir.join(synced::NAME))(error).into()),
    };
    let mut log = OfflineLog {
        dir: dir.into(),
        _lock: lock,
        snapshots: snapshots(&dir.join("snapshots"))?,
        content: LogContent::default(),
        segments,
        damage: None,
    };
    log.scan(synced)?;
    Ok(log)
}

impl OfflineLog {
    /// The index of each snapshot that is kept, oldest first.
    pub fn snapshots(&self) -> Vec<u64> {
        self.snapshots.iter().map(|file| file.index).collect()
    }

    /// The snapshot at `index`, checked.
    pub fn snapshot(&self, index: u64) -> Result<Option<Vec<u8>>, OpenError> {
        let Some(file) = self.snapshots.iter().rfind(|file| file.index == index) else {
            return Ok(None);
        };
        let path = self.dir.join("snapshots").join(file.name());
        let bytes = fs::read(&path).map_err(WalError::io("read", &path))?;
        let snapshot = snapshots::parse(&path, bytes)?.snapshot;
        Ok(Some(std::sync::Arc::unwrap_or_clone(snapshot)))
    }

    /// The first entry that is kept.
    pub fn first_index(&self) -> Option<u64> {
        self.content.first_index()
    }

    /// The last entry, or what the newest snapshot covers where that is more.
    pub fn last_index(&self) -> Option<u64> {
        let last = self.content.first_index().and(self.content.last()).map(|id| id.index());
        last.max(self.snapshots.last().map(|file| file.index))
    }

    /// The last entry known to be committed. The ones after it may or may not have been.
    pub fn committed(&self) -> Option<u64> {
        let committed = self.content.committed.map(|id| id.index());
        committed.max(self.snapshots.last().map(|file| file.index)).min(self.last_index())
    }

    /// What is wrong with the end of the log, where a power cut left it torn. The entries before
    /// that are all there.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// What to apply to reach the state after the entry `until`, or after the last one.
    pub fn replay(&self, until: Option<u64>) -> Result<OfflineReplay<'_>, OpenError> {
        let last = self.last_index().unwrap_or(0);
        let until = until.unwrap_or(last);
        let refuse = |fix: String| Err(OpenError::Config { field: "until", fix });
        if until > last {
            return refuse(format!("the log ends at {last}: set at most that"));
        }
        let base = self.snapshots.iter().rfind(|file| file.index <= until).map(|file| file.index);
        let from = base.map_or(0, |index| index + 1);
        let reaches = self.content.first_index().is_some_and(|first| first <= from);
        if from <= until && !reaches {
            return refuse(self.reach());
        }
        let snapshot = match base {
            Some(index) => self.snapshot(index)?.map(|bytes| (index, bytes)),
            None => None,
        };
        let entries = OfflineEntries { log: self, next: from, last: until, segment: None };
        Ok(OfflineReplay { snapshot, entries })
    }

    /// What is kept, for whoever asked for what is not.
    fn reach(&self) -> String {
        let first = self.content.first_index();
        let joins = |file: &&SnapshotFile| first.is_some_and(|first| first <= file.index + 1);
        match self.snapshots.iter().find(joins).or(self.snapshots.last()) {
            Some(file) => {
                format!("older entries are gone; set {} to {:?}", file.index, self.last_index())
            }
            None => "older entries are gone and there is no snapshot".into(),
        }
    }

    fn scan(&mut self, synced: (u64, u64)) -> Result<(), OpenError> {
        let mut replay = Replay { keeps_purged: true, ..Replay::default() };
        let last = self.segments.keys().next_back().copied();
        for (number, path) in &self.segments {
            let file = disk::open_read_only(path).map_err(WalError::io("open", path))?;
            let bytes = recover::read_all(&*file, path)?;
            let is_last = last == Some(*number);
            if is_last && recover::is_unfinished(*number, &bytes, synced) {
                break;
            }
            let scan = replay.segment(*number, path, &file, &bytes)?;
            let Some(damage) = scan.damage else { continue };
            let start = damage.batch_start;
            let was_synced = (*number, start) < synced;
            let later = recover::has_later_batch(&bytes, start as usize, replay.next_batch());
            if !is_last || was_synced || later {
                return Err(damage.corrupt(path).into());
            }
            let (path, offset, why) = (path.display(), damage.offset, damage.why);
            self.damage = Some(format!("{path}, offset {offset}: torn: {why}"));
        }
        self.content = replay.content;
        Ok(())
    }
}

impl OfflineEntries<'_> {
    /// The entry at the next index, or None where it is none of ours.
    fn read(&mut self) -> Result<Option<Vec<u8>>, OpenError> {
        let slot = self.log.content.range(self.next, self.next + 1).next();
        let at = slot.and_then(|slot| slot.at).expect("within what `replay` looked at");
        let path = &self.log.segments[&at.segment];
        if self.segment.as_ref().is_none_or(|(number, _)| *number != at.segment) {
            let bytes = fs::read(path).map_err(WalError::io("read", path))?;
            self.segment = Some((at.segment, bytes));
        }
        let (_, bytes) = self.segment.as_ref().expect("read above");
        let corrupt = |why: String| WalError::corrupt(path, at.offset, why);
        let Parsed::Record(record) = record::parse(bytes, at.offset as usize) else {
            return Err(corrupt("it changed while it was read".into()).into());
        };
        let entry = codec::read_entry(record.schema, record.body)
            .map_err(|error| corrupt(error.to_string()))?;
        Ok(match entry.payload {
            EntryPayload::Normal(bytes) => Some(bytes.0.to_vec()),
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        })
    }
}

impl Iterator for OfflineEntries<'_> {
    type Item = Result<(u64, Vec<u8>), OpenError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next <= self.last {
            let read = self.read();
            let index = self.next;
            self.next = if read.is_ok() { index + 1 } else { u64::MAX };
            if let Some(entry) = read.transpose() {
                return Some(entry.map(|bytes| (index, bytes)));
            }
        }
        None
    }
}

/// A shared lock on the folder. Creates nothing: a copy may have no lock file.
fn lock(dir: &Path) -> Result<Option<File>, OpenError> {
    let path = dir.join("LOCK");
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(WalError::io("open", &path)(error).into()),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked { dir: dir.display().to_string() }),
        Err(TryLockError::Error(error)) => Err(WalError::io("lock", &path)(error).into()),
    }
}

fn names(dir: &Path) -> Result<Vec<String>, WalError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(WalError::io("list", dir)(error)),
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().into_string());
    let names: io::Result<Vec<_>> = entries.map(name).collect();
    Ok(names.map_err(WalError::io("list", dir))?.into_iter().flatten().collect())
}

fn snapshots(dir: &Path) -> Result<Vec<SnapshotFile>, WalError> {
    let names = names(dir)?;
    let mut files: Vec<_> = names.iter().filter_map(|name| SnapshotFile::from_name(name)).collect();
    files.sort();
    Ok(files)
}

/// The segments of the log and the old ones before it, as far as they join.
fn segments(log_dir: &Path) -> Result<BTreeMap<u64, PathBuf>, WalError> {
    let old_dir = history::old_dir(log_dir);
    let old = names(&old_dir)?;
    let old = old.iter().filter_map(|name| OldSegment::from_name(name));
    let mut segments: BTreeMap<u64, PathBuf> =
        old.map(|old| (old.number, old_dir.join(old.name()))).collect();
    // `read_dir` of a folder that is no data folder must not look like an empty one.
    fs::metadata(log_dir).map_err(WalError::io("open", log_dir))?;
    let live = names(log_dir)?;
    let live = live.iter().filter_map(|name| name.strip_suffix(".wal")?.parse::<u64>().ok());
    let live: Vec<u64> = live.collect();
    segments
        .extend(live.iter().map(|number| (*number, log_dir.join(recover::segment_name(*number)))));
    let mut expected = segments.keys().next_back().copied().unwrap_or(0);
    let joined_from = segments.keys().rev().take_while(|number| {
        let joins = **number == expected;
        expected = expected.saturating_sub(1);
        joins
    });
    let joined_from = joined_from.last().copied().unwrap_or(0);
    match live.iter().find(|number| **number < joined_from) {
        Some(_) => {
            let path = log_dir.join(recover::segment_name(joined_from - 1));
            Err(WalError::corrupt(&path, 0, "this segment is missing".into()))
        }
        None => Ok(segments.split_off(&joined_from)),
    }
}
