//! A simulated disk, in memory: what was not synced can be lost or torn, a byte can flip, a sync
//! can fail, a process can die in the middle of a write. Everything it decides comes from its seed.
//! For tests and chaos; a replica in production never sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use crate::{
    disk::{Disk, DiskFile, DiskLock},
    sim::splitmix64,
};

/// A medium writes this much or nothing.
const SECTOR_BYTES: usize = 512;

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    /// The life of the process that holds it; none: it outlives all.
    life: Option<u64>,
}

struct State {
    /// What processes see.
    names: BTreeMap<PathBuf, usize>,
    /// What a power cut leaves, apart from files in flight.
    durable_names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    files: Vec<Contents>,
    locks: BTreeSet<PathBuf>,
    random: u64,
    boot: u64,
    syncs: u64,
    failing_syncs: bool,
    full: bool,
    /// The next write of a file lands somewhere else in it.
    misdirecting: bool,
    /// What a write and its sync take, from and to.
    delay: (Duration, Duration),
    /// How many more changing operations the process lives for.
    operations_left: Option<u64>,
    /// Handles of earlier lives no longer work.
    life: u64,
}

#[derive(Default, Clone)]
struct Contents {
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeSet<usize>,
}

struct SimFile {
    state: Arc<Mutex<State>>,
    file: usize,
    life: u64,
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    life: u64,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimDisk {
        let state = State {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            files: Vec::new(),
            locks: BTreeSet::new(),
            random: seed,
            boot: 1,
            syncs: 0,
            failing_syncs: false,
            full: false,
            misdirecting: false,
            delay: (Duration::ZERO, Duration::ZERO),
            operations_left: None,
            life: 0,
        };
        SimDisk { state: Arc::new(Mutex::new(state)), life: None }
    }

    /// The disk as a process has it that runs now: once that is killed, or the power cut, it can do
    /// no more harm through this handle.
    pub fn process(&self) -> SimDisk {
        let life = Some(self.state().life);
        SimDisk { state: Arc::clone(&self.state), life }
    }

    /// From now on every sync fails, or works again.
    pub fn fail_syncs(&self, failing: bool) {
        self.state().failing_syncs = failing;
    }

    /// From now on there is no room for anything new, or there is again.
    pub fn fill(&self, full: bool) {
        self.state().full = full;
    }

    /// The next write is told to have been done and lands somewhere else in its file.
    pub fn misdirect_next_write(&self) {
        self.state().misdirecting = true;
    }

    /// Whether a write has still to be misdirected; from now on none is.
    pub fn steady(&self) -> bool {
        std::mem::take(&mut self.state().misdirecting)
    }

    /// From now on a write with its sync takes so long.
    pub fn slow(&self, least: Duration, most: Duration) {
        self.state().delay = (least, most);
    }

    /// The paths of all files, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// A disk that holds what a power cut would certainly leave of this one.
    pub fn durable_copy(&self) -> SimDisk {
        let copy = SimDisk::new(0);
        {
            let (from, mut to) = (self.state(), copy.state());
            to.names.clone_from(&from.durable_names);
            to.durable_names.clone_from(&from.durable_names);
            to.dirs.clone_from(&from.dirs);
            to.boot = from.boot;
            // What has no name any more takes no room.
            let named: BTreeSet<usize> = from.durable_names.values().copied().collect();
            let kept = from.files.iter().enumerate().map(|(file, contents)| {
                let bytes = if named.contains(&file) { &contents.durable[..] } else { &[] };
                let (bytes, durable) = (bytes.to_vec(), bytes.to_vec());
                Contents { bytes, durable, dirty: BTreeSet::new() }
            });
            to.files = kept.collect();
        }
        copy
    }

    /// The process dies at its `operations`th write, sync, creation, renaming or removal from now;
    /// a write is then half done.
    pub fn die_after(&self, operations: u64) {
        self.state().operations_left = Some(operations);
    }

    /// Whether the process died.
    pub fn is_dead(&self) -> bool {
        self.state().operations_left == Some(0)
    }

    /// The process is gone; what it wrote is in the page cache and stays.
    pub fn kill_process(&self) {
        let state = &mut *self.state();
        state.life += 1;
        state.locks.clear();
        state.operations_left = None;
    }

    /// Power fails: each unsynced sector and each unsynced change of a folder is kept or lost by
    /// chance.
    pub fn cut_power(&self) {
        self.kill_process();
        let state = &mut *self.state();
        state.boot += 1;
        for file in 0..state.files.len() {
            state.settle_file(file);
        }
        let changed: BTreeSet<PathBuf> =
            state.names.keys().chain(state.durable_names.keys()).cloned().collect();
        for path in changed {
            let (now, durable) =
                (state.names.get(&path).copied(), state.durable_names.get(&path).copied());
            let survivor = if now == durable || state.chance() { now } else { durable };
            match survivor {
                Some(file) => state.names.insert(path, file),
                None => state.names.remove(&path),
            };
        }
        state.durable_names = state.names.clone();
    }

    /// Flips the bits of `mask` in the byte at `offset`, on the medium and in the cache.
    pub fn flip(&self, path: &Path, offset: usize, mask: u8) {
        let state = &mut *self.state();
        if let Some(file) = state.names.get(path).copied() {
            let contents = &mut state.files[file];
            for bytes in [&mut contents.bytes, &mut contents.durable] {
                if let Some(byte) = bytes.get_mut(offset) {
                    *byte ^= mask;
                }
            }
        }
    }

    /// What is in a file now.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(path).map(|file| state.files[*file].bytes.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn living(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state();
        if self.life.is_none_or(|life| life == state.life) { Ok(state) } else { Err(gone()) }
    }

    fn handle(&self, file: usize, life: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { state: Arc::clone(&self.state), file, life })
    }
}

fn gone() -> io::Error {
    io::Error::other("the simulated process is dead")
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no file {}", path.display()))
}

impl State {
    fn next_random(&mut self) -> u64 {
        splitmix64(&mut self.random)
    }

    fn chance(&mut self) -> bool {
        self.next_random() & 1 == 0
    }

    /// Counts one changing operation. `Ok(true)` when the process dies in the middle of it.
    fn operate(&mut self) -> io::Result<bool> {
        match &mut self.operations_left {
            None => Ok(false),
            Some(0) => Err(gone()),
            Some(left) => {
                *left -= 1;
                Ok(*left == 0)
            }
        }
    }

    /// An operation that is done whole or not at all.
    fn operate_whole(&mut self) -> io::Result<()> {
        if self.operate()? { Err(gone()) } else { Ok(()) }
    }

    /// Where a write goes that was meant for `offset`.
    fn misdirected(&mut self, file: usize, offset: u64) -> u64 {
        let sectors = self.files[file].bytes.len() / SECTOR_BYTES;
        if sectors < 2 || !std::mem::take(&mut self.misdirecting) {
            return offset;
        }
        (self.next_random() as usize % sectors * SECTOR_BYTES) as u64
    }

    fn settle_file(&mut self, file: usize) {
        let Contents { bytes, durable, dirty } = std::mem::take(&mut self.files[file]);
        let mut settled = durable;
        // Losing all of it, and losing none, are as likely as a mixture.
        let mode = self.next_random() % 4;
        for sector in dirty {
            let kept = match mode {
                0 => false,
                1 => true,
                _ => self.chance(),
            };
            if kept {
                let start = sector * SECTOR_BYTES;
                let end = bytes.len().min(start + SECTOR_BYTES);
                if settled.len() < end {
                    settled.resize(end, 0);
                }
                settled[start..end].copy_from_slice(&bytes[start..end]);
            }
        }
        self.files[file] =
            Contents { bytes: settled.clone(), durable: settled, dirty: BTreeSet::new() };
    }
}

impl SimFile {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.life == self.life { Ok(state) } else { Err(gone()) }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state()?;
        let bytes = &state.files[self.file].bytes;
        let start = offset as usize;
        let found = bytes.get(start..start + buffer.len());
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state()?;
        let dies = state.operate()?;
        let offset = state.misdirected(self.file, offset);
        if state.full && offset as usize + bytes.len() > state.files[self.file].bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = match (dies, bytes.len()) {
            (true, 1..) => (state.next_random() as usize) % bytes.len(),
            _ => bytes.len(),
        };
        let start = offset as usize;
        let end = start + written;
        let contents = &mut state.files[self.file];
        if contents.bytes.len() < end {
            contents.bytes.resize(end, 0);
        }
        contents.bytes[start..end].copy_from_slice(&bytes[..written]);
        if end > start {
            contents.dirty.extend(start / SECTOR_BYTES..=(end - 1) / SECTOR_BYTES);
        }
        if dies { Err(gone()) } else { Ok(()) }
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.state()?;
        state.operate_whole()?;
        state.syncs += 1;
        if state.failing_syncs {
            return Err(io::Error::other("simulated sync error"));
        }
        let Contents { bytes, durable, dirty } = &mut state.files[self.file];
        durable.resize(bytes.len(), 0);
        for sector in std::mem::take(dirty) {
            let start = sector * SECTOR_BYTES;
            let end = bytes.len().min(start + SECTOR_BYTES);
            durable[start..end].copy_from_slice(&bytes[start..end]);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.state()?.files[self.file].bytes.len() as u64)
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if state.life == self.life {
            state.locks.remove(&self.path);
        }
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.living()?.dirs.insert(dir.into());
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.living()?;
        let in_dir = state.names.keys().filter(|path| path.parent() == Some(dir));
        let names = in_dir.filter_map(|path| path.file_name());
        Ok(names.map(|name| name.to_string_lossy().into_owned()).collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.living()?;
        let file = *state.names.get(path).ok_or_else(|| not_found(path))?;
        Ok(self.handle(file, state.life))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.living()?;
        state.operate_whole()?;
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.files.push(Contents::default());
        let file = state.files.len() - 1;
        state.names.insert(path.into(), file);
        Ok(self.handle(file, state.life))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.living()?;
        state.operate_whole()?;
        let file = state.names.remove(from).ok_or_else(|| not_found(from))?;
        state.names.insert(to.into(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.living()?;
        state.operate_whole()?;
        state.names.remove(path).map(drop).ok_or_else(|| not_found(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let state = &mut *self.living()?;
        state.operate_whole()?;
        state.syncs += 1;
        if state.failing_syncs {
            return Err(io::Error::other("simulated sync error"));
        }
        state.durable_names.retain(|path, _| path.parent() != Some(dir));
        let now = state.names.iter().filter(|(path, _)| path.parent() == Some(dir));
        state.durable_names.extend(now.map(|(path, file)| (path.clone(), *file)));
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        let mut state = self.living()?;
        if !state.locks.insert(path.into()) {
            return Ok(None);
        }
        let life = state.life;
        drop(state);
        Ok(Some(Box::new(SimLock { state: Arc::clone(&self.state), path: path.into(), life })))
    }

    fn boot_id(&self) -> [u8; 16] {
        u128::from(self.state().boot).to_be_bytes()
    }

    fn sync_count(&self) -> u64 {
        self.state().syncs
    }

    fn is_simulated(&self) -> bool {
        true
    }

    fn simulated_delay(&self) -> Duration {
        let mut state = self.state();
        let (least, most) = state.delay;
        let spread = u64::try_from((most - least).as_micros()).expect("delays are short");
        least + Duration::from_micros(state.next_random() % (spread + 1))
    }
}
