//! What the archive keeps its records in: sled, or, on a simulated disk, a map that is written out
//! whole at each flush. Knows nothing of records.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sled::IVec;

use super::ArchiveError;
use crate::disk::Disk;

/// What databases lie in.
pub(super) enum Place {
    /// A folder each, of the machine's own file system.
    Folders,
    /// A file each, on a simulated disk.
    Simulated(Arc<dyn Disk>),
}

/// See the module.
pub(super) enum Db {
    Sled(sled::Db),
    Simulated(MapDb),
}

/// A map on a simulated disk. What was not flushed is lost with the process, as with sled.
pub(super) struct MapDb {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

pub(super) type Change = (Vec<u8>, Vec<u8>);

impl Place {
    /// Opens the database at `path`, or begins it. `flush_every_ms`: how much a killed process may
    /// lose; none where nothing is written on its own.
    pub(super) fn open(
        &self,
        path: &Path,
        cache_bytes: u64,
        flush_every_ms: Option<u64>,
    ) -> Result<Db, ArchiveError> {
        let sled = |source| ArchiveError::Sled { dir: path.into(), source };
        match self {
            Place::Folders => {
                fs::create_dir_all(path).map_err(|error| io_error(path, error))?;
                let config = sled::Config::new().path(path).cache_capacity(cache_bytes);
                config.flush_every_ms(flush_every_ms).open().map(Db::Sled).map_err(sled)
            }
            Place::Simulated(disk) => {
                let map = read(&**disk, path).map_err(|error| sled(error.into()))?;
                let (disk, map) = (Arc::clone(disk), Mutex::new(map));
                Ok(Db::Simulated(MapDb { disk, path: path.into(), map }))
            }
        }
    }

    /// What lies in `dir`, which is made where it is not there.
    pub(super) fn names(&self, dir: &Path) -> Result<Vec<String>, ArchiveError> {
        let names = match self {
            Place::Folders => {
                fs::create_dir_all(dir).and_then(|()| fs::read_dir(dir)).and_then(|entries| {
                    let name =
                        |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
                    entries.map(|entry| entry.map(name)).collect()
                })
            }
            Place::Simulated(disk) => disk.create_dir(dir).and_then(|()| disk.list(dir)),
        };
        names.map_err(|error| io_error(dir, error))
    }

    pub(super) fn rename(&self, dir: &Path, from: &str, to: &str) -> Result<(), ArchiveError> {
        let renamed = match self {
            Place::Folders => fs::rename(dir.join(from), dir.join(to)),
            Place::Simulated(disk) => disk.rename(&dir.join(from), &dir.join(to)),
        };
        renamed.map_err(|error| io_error(dir, error))
    }

    /// Removes a database, if it is there.
    pub(super) fn remove(&self, dir: &Path, name: &str) -> Result<(), ArchiveError> {
        let path = dir.join(name);
        let removed = match self {
            Place::Folders if path.exists() => fs::remove_dir_all(path),
            Place::Simulated(disk) => match is_there(&**disk, &path) {
                Ok(true) => disk.remove(&path),
                absent => absent.map(drop),
            },
            Place::Folders => Ok(()),
        };
        removed.map_err(|error| io_error(dir, error))
    }

    /// Makes durable what lies in `dir`.
    pub(super) fn sync(&self, dir: &Path) -> Result<(), ArchiveError> {
        let synced = match self {
            Place::Folders => sync_tree(dir),
            Place::Simulated(disk) => disk.sync_dir(dir),
        };
        synced.map_err(|error| io_error(dir, error))
    }
}

impl Db {
    pub(super) fn get(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<IVec>> {
        match self {
            Db::Sled(db) => db.get(key),
            Db::Simulated(db) => {
                Ok(db.map().get(key.as_ref()).map(|value| value.as_slice().into()))
            }
        }
    }

    pub(super) fn remove(&self, key: &[u8]) -> sled::Result<()> {
        match self {
            Db::Sled(db) => db.remove(key).map(drop),
            Db::Simulated(db) => {
                db.map().remove(key);
                Ok(())
            }
        }
    }

    /// All of them, or, after a crash, none.
    pub(super) fn apply(&self, changes: Vec<Change>) -> sled::Result<()> {
        match self {
            Db::Sled(db) => {
                let mut batch = sled::Batch::default();
                changes.into_iter().for_each(|(key, value)| batch.insert(key, value));
                db.apply_batch(batch)
            }
            Db::Simulated(db) => {
                db.map().extend(changes);
                Ok(())
            }
        }
    }

    pub(super) fn scan_prefix(&self, prefix: Vec<u8>) -> Scan {
        match self {
            Db::Sled(db) => Scan::Sled(Box::new(db.scan_prefix(prefix))),
            Db::Simulated(db) => {
                let map = db.map();
                let found =
                    map.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
                let found =
                    found.map(|(key, value)| (key.as_slice().into(), value.as_slice().into()));
                Scan::Simulated(found.collect::<Vec<_>>().into_iter())
            }
        }
    }

    pub(super) fn flush(&self) -> sled::Result<()> {
        match self {
            Db::Sled(db) => db.flush().map(drop),
            Db::Simulated(db) => Ok(db.write()?),
        }
    }

    /// Makes everything durable. `path`: where it was opened.
    pub(super) fn sync(&self, path: &Path) -> Result<(), ArchiveError> {
        self.flush().map_err(|source| ArchiveError::Sled { dir: path.into(), source })?;
        match self {
            // Its flush is no fsync.
            Db::Sled(_) => sync_tree(path).map_err(|error| io_error(path, error)),
            Db::Simulated(_) => Ok(()),
        }
    }
}

/// Records in key order, from both ends.
pub(super) enum Scan {
    Sled(Box<sled::Iter>),
    Simulated(std::vec::IntoIter<(IVec, IVec)>),
}

impl Iterator for Scan {
    type Item = sled::Result<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Scan::Sled(found) => found.next(),
            Scan::Simulated(found) => found.next().map(Ok),
        }
    }
}

impl DoubleEndedIterator for Scan {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Scan::Sled(found) => found.next_back(),
            Scan::Simulated(found) => found.next_back().map(Ok),
        }
    }
}

impl MapDb {
    fn map(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for (key, value) in self.map().iter() {
            for part in [key, value] {
                let length = u32::try_from(part.len()).map_err(io::Error::other)?;
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(part);
            }
        }
        let temporary = self.path.with_extension("tmp");
        let file = self.disk.create(&temporary)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(&temporary, &self.path)?;
        self.disk.sync_dir(folder_of(&self.path))
    }
}

fn read(disk: &dyn Disk, path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    if !is_there(disk, path)? {
        return Ok(BTreeMap::new());
    }
    let file = disk.open(path)?;
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read_at(&mut bytes, 0)?;
    let mut rest = bytes.as_slice();
    let mut map = BTreeMap::new();
    while !rest.is_empty() {
        let key = take(&mut rest)?;
        map.insert(key, take(&mut rest)?);
    }
    Ok(map)
}

fn take(rest: &mut &[u8]) -> io::Result<Vec<u8>> {
    let cut_short =
        || io::Error::new(io::ErrorKind::InvalidData, "the simulated archive is cut short");
    let (length, after) = rest.split_first_chunk().ok_or_else(cut_short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (part, after) = after.split_at_checked(length).ok_or_else(cut_short)?;
    *rest = after;
    Ok(part.to_vec())
}

fn is_there(disk: &dyn Disk, path: &Path) -> io::Result<bool> {
    let names = disk.list(folder_of(path))?;
    Ok(path.file_name().is_some_and(|name| names.iter().any(|there| name == there.as_str())))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn io_error(dir: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Io { dir: dir.into(), source }
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
