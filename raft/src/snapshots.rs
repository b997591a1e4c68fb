//! Snapshot files: written to a temporary name, synced, renamed, the folder synced; checked by crc
//! when read. Only the newest counts; a few older ones stay for an offline replay (`offline`). A
//! damaged newest one is refused by name and never skipped: the log before it is gone. Does not
//! know what is in a snapshot.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    codec::{self, SnapshotHead},
    disk::Disk,
    types::{Snapshot, SnapshotBytes, SnapshotMeta},
    wal::{
        WalError,
        record::{self, Kind, Parsed},
        recover::read_all,
    },
};

/// Why a snapshot cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file does not hold what was written to it.
    #[error("snapshot {}: {why}; restore this replica from a peer or a backup", file.display())]
    Corrupt {
        /// Its file.
        file: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] WalError),
}

impl From<SnapshotError> for std::io::Error {
    fn from(error: SnapshotError) -> std::io::Error {
        std::io::Error::other(error)
    }
}

/// The snapshots of one replica.
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    retain_entries: u64,
    /// Held while a file is written, so that two writers take turns.
    kept: Mutex<Kept>,
}

struct Kept {
    newest: Option<SnapshotMeta>,
    /// Oldest first; the last one is the newest.
    files: Vec<SnapshotFile>,
    closed: bool,
}

/// A snapshot as its file's name tells it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SnapshotFile {
    pub(crate) index: u64,
    term: u64,
}

impl SnapshotFile {
    fn of(meta: &SnapshotMeta) -> SnapshotFile {
        let id = meta.last_log_id;
        let (index, term) = id.map_or((0, 0), |id| (id.index(), id.committed_leader_id().term));
        SnapshotFile { index, term }
    }

    pub(crate) fn from_name(name: &str) -> Option<SnapshotFile> {
        let (index, term) = name.strip_suffix(".snap")?.split_once('-')?;
        Some(SnapshotFile { index: index.parse().ok()?, term: term.parse().ok()? })
    }

    pub(crate) fn name(&self) -> String {
        format!("{:020}-{}.snap", self.index, self.term)
    }
}

impl Snapshots {
    /// Finds the snapshots in `dir` and checks the newest. Older ones are kept as far as an
    /// offline replay shall reach: `retain_entries` behind the newest.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        retain_entries: u64,
    ) -> Result<Snapshots, SnapshotError> {
        disk.create_dir(dir).map_err(WalError::io("create", dir))?;
        let names = disk.list(dir).map_err(WalError::io("list", dir))?;
        for leftover in names.iter().filter(|name| name.ends_with(".tmp")) {
            let path = dir.join(leftover);
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        let mut files: Vec<_> =
            names.iter().filter_map(|name| SnapshotFile::from_name(name)).collect();
        files.sort();
        let newest = match files.last() {
            Some(file) => Some(read(&*disk, &dir.join(file.name()))?.meta),
            None => None,
        };
        let mut kept = Kept { newest, files, closed: false };
        for old in kept.take_expendable(retain_entries) {
            let path = dir.join(old.name());
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        Ok(Snapshots { disk, dir: dir.into(), retain_entries, kept: Mutex::new(kept) })
    }

    /// What the newest snapshot covers, and the membership then.
    pub(crate) fn newest_meta(&self) -> Option<SnapshotMeta> {
        self.kept.lock().expect("no holder of this lock panics").newest.clone()
    }

    /// What the oldest snapshot covers: replay reaches back to there.
    pub(crate) fn oldest_index(&self) -> u64 {
        let kept = self.kept.lock().expect("no holder of this lock panics");
        kept.files.first().map_or(0, |file| file.index)
    }

    /// Keeps a snapshot, unless one at least as new is there.
    pub(crate) fn save(&self, meta: &SnapshotMeta, body: &[u8]) -> Result<(), SnapshotError> {
        let mut kept = self.kept.lock().expect("no holder of this lock panics");
        if kept.closed {
            return Err(WalError::Closed.into());
        }
        if kept.newest.as_ref().is_some_and(|newest| newest.last_log_id >= meta.last_log_id) {
            return Ok(());
        }
        let new = SnapshotFile::of(meta);
        let path = self.dir.join(new.name());
        let temporary = path.with_extension("tmp");
        let body_crc = crc32fast::hash(body);
        let head = SnapshotHead { meta: meta.clone(), body_bytes: body.len() as u64, body_crc };
        let mut bytes = Vec::new();
        let head = codec::write_snapshot_head(&head);
        record::push(&mut bytes, Kind::File, codec::SCHEMA, 0, &head);
        let file = self.disk.create(&temporary).map_err(WalError::io("create", &temporary))?;
        file.write_at(&bytes, 0).map_err(WalError::io("write", &temporary))?;
        file.write_at(body, bytes.len() as u64).map_err(WalError::io("write", &temporary))?;
        file.sync_data().map_err(WalError::io("sync", &temporary))?;
        self.disk.rename(&temporary, &path).map_err(WalError::io("rename", &path))?;
        self.disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
        kept.newest = Some(meta.clone());
        kept.files.push(new);
        for old in kept.take_expendable(self.retain_entries) {
            let path = self.dir.join(old.name());
            self.disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        Ok(())
    }

    /// Waits for a file that is being written, and keeps no more.
    pub(crate) fn close(&self) {
        self.kept.lock().expect("no holder of this lock panics").closed = true;
    }

    /// Reads the newest snapshot.
    pub(crate) fn newest(&self) -> Result<Option<Snapshot>, SnapshotError> {
        let kept = self.kept.lock().expect("no holder of this lock panics");
        let newest = kept.files.last().map(|file| self.dir.join(file.name()));
        newest.map(|path| read(&*self.disk, &path)).transpose()
    }
}

/// A window of old snapshots is covered by about this many.
const KEPT_OLD: u64 = 4;

impl Kept {
    /// Takes out those that replay does not need: all older than the one that the window of
    /// `retain_entries` begins with, and those that stand close together.
    fn take_expendable(&mut self, retain_entries: u64) -> Vec<SnapshotFile> {
        let Some(newest) = self.files.last().cloned() else { return Vec::new() };
        let mut gone = Vec::new();
        let window_start = newest.index.saturating_sub(retain_entries);
        while self.files.len() > 1 && self.files[1].index <= window_start {
            gone.push(self.files.remove(0));
        }
        let mut at = 1;
        while at + 1 < self.files.len() {
            if self.files[at].index - self.files[at - 1].index < retain_entries / KEPT_OLD {
                gone.push(self.files.remove(at));
            } else {
                at += 1;
            }
        }
        gone
    }
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Snapshot, SnapshotError> {
    let file = disk.open(path).map_err(WalError::io("open", path))?;
    parse(path, read_all(&*file, path)?)
}

/// A snapshot from the bytes of its file.
pub(crate) fn parse(path: &Path, mut bytes: Vec<u8>) -> Result<Snapshot, SnapshotError> {
    let corrupt = |why: &str| SnapshotError::Corrupt { file: path.into(), why: why.into() };
    let head = match record::parse(&bytes, 0) {
        Parsed::Record(record) if record.kind == Kind::File => record,
        Parsed::Record(_) => return Err(corrupt("not a snapshot")),
        Parsed::End => return Err(corrupt("empty")),
        Parsed::Bad(why) => return Err(corrupt(why)),
    };
    let body_at = head.len();
    let head = codec::read_snapshot_head(head.schema, head.body)
        .map_err(|error| corrupt(&error.to_string()))?;
    let body = bytes.split_off(body_at);
    if body.len() as u64 != head.body_bytes {
        return Err(corrupt("cut short"));
    }
    if crc32fast::hash(&body) != head.body_crc {
        return Err(corrupt("crc mismatch"));
    }
    Ok(Snapshot { meta: head.meta, snapshot: SnapshotBytes::new(body) })
}
