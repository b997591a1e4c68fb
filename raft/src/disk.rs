//! The few file operations that the log and the snapshots stand on, behind one small trait, so
//! that tests and chaos can drop, tear, flip and fail them. [`RealDisk`] is the production one,
//! [`crate::sim_disk::SimDisk`] the simulated one. Nothing here knows what the bytes mean.

use std::{
    any::Any,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// A file that is read and written at offsets.
pub trait DiskFile: Send + Sync {
    /// Fills `buffer` from `offset`; a short file is an error.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, growing the file where needed.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns once everything written before is on the medium.
    fn sync_data(&self) -> io::Result<()>;
    /// The length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file is empty.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// A held lock on a folder; dropping it lets go.
pub type DiskLock = Box<dyn Any + Send + Sync>;

/// A file system.
pub trait Disk: Send + Sync + 'static {
    /// Creates a folder and those above it, durably.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names of the files directly in `dir`, in order.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates a file, or empties it where it exists. Durable only after [`Disk::sync_dir`].
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames over whatever `to` was. Durable only after [`Disk::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable only after [`Disk::sync_dir`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes the lock file `path`; `None` when another holder has it.
    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>>;
    /// Changes whenever the machine lost its page cache. While it stays, a written byte that was
    /// not synced is still there, so a missing one was never written.
    fn boot_id(&self) -> [u8; 16];
    /// How many syncs, of files and folders, were asked for.
    fn sync_count(&self) -> u64;
    /// A simulated disk answers at once. The log's writer is then a task on the caller's runtime
    /// and not a thread, so that a seeded run repeats.
    fn is_simulated(&self) -> bool {
        false
    }
    /// How long the next write and its sync take on a simulated disk.
    fn simulated_delay(&self) -> Duration {
        Duration::ZERO
    }
}

/// The machine's own file system.
#[derive(Default)]
pub struct RealDisk {
    syncs: Arc<AtomicU64>,
}

struct RealFile {
    file: File,
    syncs: Arc<AtomicU64>,
}

impl DiskFile for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

/// A file of the machine's own file system, for reading alone.
pub(crate) fn open_read_only(path: &Path) -> io::Result<Arc<dyn DiskFile>> {
    Ok(Arc::new(RealFile { file: File::open(path)?, syncs: Arc::default() }))
}

impl RealDisk {
    fn wrap(&self, file: File) -> Arc<dyn DiskFile> {
        Arc::new(RealFile { file, syncs: Arc::clone(&self.syncs) })
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        // Every level may be new: sync each parent, or the folder itself can vanish.
        for parent in dir.ancestors().skip(1).filter(|parent| parent.is_dir()) {
            if self.sync_dir(parent).is_err() {
                break; // a parent that is not ours to open existed before
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(self.wrap(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        Ok(self.wrap(options.read(true).write(true).create(true).truncate(true).open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Option<DiskLock>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn boot_id(&self) -> [u8; 16] {
        // Without it every start counts as one after a power cut, which is the careful side.
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&hex, 16).unwrap_or(0).to_be_bytes()
    }

    fn sync_count(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}
