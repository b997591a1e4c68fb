//! Snapshot files: written to a temporary name, synced, renamed, the folder synced; checked by crc
//! when read. Only the newest is kept. A damaged newest one is refused by name and never skipped:
//! the log before it is gone. Does not know what is in a snapshot.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    codec::{self, SnapshotHead},
    disk::Disk,
    types::{LogId, Snapshot, SnapshotBytes, SnapshotMeta},
    wal::{
        WalError,
        record::{self, Kind, Parsed},
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
    /// Held while a file is written, so that two writers take turns.
    kept: Mutex<Kept>,
}

struct Kept {
    newest: Option<(SnapshotMeta, PathBuf)>,
    closed: bool,
}

impl Snapshots {
    /// Finds the newest snapshot in `dir` and checks it.
    pub(crate) fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Snapshots, SnapshotError> {
        disk.create_dir(dir).map_err(WalError::io("create", dir))?;
        let names = disk.list(dir).map_err(WalError::io("list", dir))?;
        for leftover in names.iter().filter(|name| name.ends_with(".tmp")) {
            let path = dir.join(leftover);
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        // The names sort by index.
        let newest = names.iter().rfind(|name| name.ends_with(".snap")).map(|name| dir.join(name));
        let newest = match newest {
            Some(path) => Some((read(&*disk, &path)?.meta, path)),
            None => None,
        };
        let kept = newest.as_ref().map(|(_, path)| path.as_path());
        let snapshots = names.iter().filter(|name| name.ends_with(".snap"));
        for path in snapshots.map(|name| dir.join(name)).filter(|path| Some(path.as_path()) != kept)
        {
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
        }
        Ok(Snapshots { disk, dir: dir.into(), kept: Mutex::new(Kept { newest, closed: false }) })
    }

    /// Keeps a snapshot, unless one at least as new is there.
    pub(crate) fn save(&self, meta: &SnapshotMeta, body: &[u8]) -> Result<(), SnapshotError> {
        let mut kept = self.kept.lock().expect("no holder of this lock panics");
        if kept.closed {
            return Err(WalError::Closed.into());
        }
        if kept.newest.as_ref().is_some_and(|(newest, _)| newest.last_log_id >= meta.last_log_id) {
            return Ok(());
        }
        let path = self.dir.join(file_name(meta.last_log_id));
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
        if let Some((_, old)) = kept.newest.replace((meta.clone(), path)) {
            self.disk.remove(&old).map_err(WalError::io("remove", &old))?;
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
        kept.newest.as_ref().map(|(_, path)| read(&*self.disk, path)).transpose()
    }
}

fn file_name(last: Option<LogId>) -> String {
    let (index, term) = last.map_or((0, 0), |id| (id.index(), id.committed_leader_id().term));
    format!("{index:020}-{term}.snap")
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Snapshot, SnapshotError> {
    let corrupt = |why: &str| SnapshotError::Corrupt { file: path.into(), why: why.into() };
    let file = disk.open(path).map_err(WalError::io("open", path))?;
    let length = file.len().map_err(WalError::io("stat", path))?;
    let mut bytes = vec![0; length as usize];
    file.read_at(&mut bytes, 0).map_err(WalError::io("read", path))?;
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
