//! What the archive keeps its records in: sled, or, on a simulated disk, a map that is written out
//! whole at each flush. Knows nothing of records.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sled::IVec;

use crate::disk::Disk;

/// See the module.
#[derive(Clone)]
pub(super) enum Db {
    Sled(sled::Db),
    Simulated(Arc<MapDb>),
}

/// A map on a simulated disk. What was not flushed is lost with the process, as with sled.
pub(super) struct MapDb {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    map: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

pub(super) type Change = (Vec<u8>, Vec<u8>);

impl Db {
    pub(super) fn open_simulated(disk: Arc<dyn Disk>, dir: &Path) -> sled::Result<Db> {
        disk.create_dir(dir)?;
        let map = Mutex::new(read(&*disk, dir)?);
        Ok(Db::Simulated(Arc::new(MapDb { disk, dir: dir.into(), map })))
    }

    pub(super) fn get(&self, key: impl AsRef<[u8]>) -> sled::Result<Option<IVec>> {
        match self {
            Db::Sled(db) => db.get(key),
            Db::Simulated(db) => {
                Ok(db.map().get(key.as_ref()).map(|value| value.as_slice().into()))
            }
        }
    }

    pub(super) fn contains_key(&self, key: &[u8]) -> sled::Result<bool> {
        match self {
            Db::Sled(db) => db.contains_key(key),
            Db::Simulated(db) => Ok(db.map().contains_key(key)),
        }
    }

    pub(super) fn insert(&self, key: &[u8], value: &[u8]) -> sled::Result<()> {
        self.apply(vec![(key.to_vec(), value.to_vec())])
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

const FILE: &str = "map";

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
        let (path, temporary) = (self.dir.join(FILE), self.dir.join("map.tmp"));
        let file = self.disk.create(&temporary)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        self.disk.rename(&temporary, &path)?;
        self.disk.sync_dir(&self.dir)
    }
}

fn read(disk: &dyn Disk, dir: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    if !disk.list(dir)?.iter().any(|name| name == FILE) {
        return Ok(BTreeMap::new());
    }
    let file = disk.open(&dir.join(FILE))?;
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
    let cut_short = || io::Error::other("the simulated archive is cut short");
    let (length, after) = rest.split_first_chunk().ok_or_else(cut_short)?;
    let length = u32::from_le_bytes(*length) as usize;
    let (part, after) = after.split_at_checked(length).ok_or_else(cut_short)?;
    *rest = after;
    Ok(part.to_vec())
}
