//! The synced mark: how far the log is known to be on the medium, and since which boot. Written
//! after each sync and before anybody is told of it; not synced itself (see `recover` for what it
//! can tell). Two slots in turn, so that a torn write leaves the other.

use std::{path::Path, sync::Arc};

use super::{
    WalError,
    record::{self, Kind, Parsed},
};
use crate::{
    codec,
    disk::{Disk, DiskFile},
};

const SLOT_BYTES: u64 = 512;
/// The name of the mark's file.
pub(crate) const NAME: &str = "synced";

/// The mark and the file it is kept in.
pub(crate) struct SyncedMark {
    file: Arc<dyn DiskFile>,
    path: std::path::PathBuf,
    counter: u64,
    /// Segment and offset.
    pub(crate) synced: (u64, u64),
    /// Of the boot in which the mark was written.
    pub(crate) boot_id: [u8; 16],
    current_boot_id: [u8; 16],
}

impl SyncedMark {
    /// Opens or creates the mark in `dir`.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<SyncedMark, WalError> {
        let path = dir.join(NAME);
        let names = disk.list(dir).map_err(WalError::io("list", dir))?;
        let exists = names.iter().any(|name| name == NAME);
        let file = if exists { disk.open(&path) } else { disk.create(&path) }
            .map_err(WalError::io("open", &path))?;
        let mut bytes = super::recover::read_all(&*file, &path)?;
        if (bytes.len() as u64) < 2 * SLOT_BYTES {
            bytes.resize(2 * SLOT_BYTES as usize, 0);
            file.write_at(&bytes, 0).map_err(WalError::io("write", &path))?;
            file.sync_data().map_err(WalError::io("sync", &path))?;
            disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
        }
        let current_boot_id = disk.boot_id();
        let (counter, synced, boot_id) = newest(&bytes);
        Ok(SyncedMark { file, path, counter, synced, boot_id, current_boot_id })
    }

    /// Notes that everything before `offset` of `segment` is synced.
    pub(crate) fn advance(&mut self, segment: u64, offset: u64) -> Result<(), WalError> {
        self.counter += 1;
        self.synced = (segment, offset);
        self.boot_id = self.current_boot_id;
        let mut body = Vec::with_capacity(32);
        body.extend_from_slice(&segment.to_le_bytes());
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&self.boot_id);
        let mut slot = Vec::new();
        record::push(&mut slot, Kind::Synced, codec::SCHEMA, self.counter, &body);
        let at = (self.counter % 2) * SLOT_BYTES;
        self.file.write_at(&slot, at).map_err(WalError::io("write", &self.path))
    }

    /// Makes the mark itself durable: after a clean stop it is exact even across a power cut.
    pub(crate) fn sync(&self) -> Result<(), WalError> {
        self.file.sync_data().map_err(WalError::io("sync", &self.path))
    }
}

/// How far the mark in the bytes of its file says that the log is synced: segment and offset.
pub(crate) fn read_synced(bytes: &[u8]) -> (u64, u64) {
    newest(bytes).1
}

fn newest(bytes: &[u8]) -> Slot {
    let slots = [read_slot(bytes, 0), read_slot(bytes, SLOT_BYTES as usize)];
    slots.into_iter().flatten().max().unwrap_or((0, (0, 0), [0; 16]))
}

type Slot = (u64, (u64, u64), [u8; 16]);

fn read_slot(bytes: &[u8], at: usize) -> Option<Slot> {
    let Parsed::Record(slot) = record::parse(bytes, at) else { return None };
    let body: &[u8; 32] = slot.body.try_into().ok()?;
    let number = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight bytes"));
    let boot_id = body[16..].try_into().expect("sixteen bytes");
    (slot.kind == Kind::Synced).then(|| (slot.index, (number(0), number(8)), boot_id))
}
