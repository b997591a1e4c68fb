//! Segments that the log no longer needs, kept for a while in `log/old/` so that an offline replay
//! reaches back. A running replica never reads them: losing one costs a replay its reach, nothing
//! else.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use super::{WalError, recover::segment_name};
use crate::disk::Disk;

const OLD: &str = "old";

/// The folder of the old segments of the log in `log_dir`.
pub(crate) fn old_dir(log_dir: &Path) -> PathBuf {
    log_dir.join(OLD)
}

/// The old segments, oldest first, and how much of them is kept.
pub(crate) struct History {
    log_dir: PathBuf,
    dir: PathBuf,
    kept: VecDeque<OldSegment>,
    max_bytes: u64,
}

/// One old segment. Its name tells what is in it, so that nobody has to read it to drop it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OldSegment {
    pub(crate) number: u64,
    /// The greatest entry index that was ever written into it.
    pub(crate) max_index: u64,
    bytes: u64,
}

impl OldSegment {
    pub(crate) fn name(&self) -> String {
        format!("{:016}-{}.wal", self.number, self.max_index)
    }

    /// What a file name says. The size comes from elsewhere.
    pub(crate) fn from_name(name: &str) -> Option<OldSegment> {
        let (number, max_index) = name.strip_suffix(".wal")?.split_once('-')?;
        let (number, max_index) = (number.parse().ok()?, max_index.parse().ok()?);
        Some(OldSegment { number, max_index, bytes: 0 })
    }
}

impl History {
    /// Finds what an earlier life kept.
    pub(crate) fn open(
        disk: &dyn Disk,
        log_dir: &Path,
        max_bytes: u64,
    ) -> Result<History, WalError> {
        let dir = old_dir(log_dir);
        disk.create_dir(&dir).map_err(WalError::io("create", &dir))?;
        let names = disk.list(&dir).map_err(WalError::io("list", &dir))?;
        let mut kept = Vec::new();
        for mut old in names.iter().filter_map(|name| OldSegment::from_name(name)) {
            let path = dir.join(old.name());
            let file = disk.open(&path).map_err(WalError::io("open", &path))?;
            old.bytes = file.len().map_err(WalError::io("stat", &path))?;
            kept.push(old);
        }
        kept.sort_by_key(|old| old.number);
        Ok(History { log_dir: log_dir.into(), dir, kept: kept.into(), max_bytes })
    }

    /// Takes a segment out of the log: aside if it holds entries after `keep_from`, else away.
    pub(crate) fn retire(
        &mut self,
        disk: &dyn Disk,
        number: u64,
        max_index: Option<u64>,
        bytes: u64,
        keep_from: u64,
    ) -> Result<(), WalError> {
        let path = self.log_dir.join(segment_name(number));
        match max_index {
            Some(max_index) if max_index > keep_from && bytes <= self.max_bytes => {
                let old = OldSegment { number, max_index, bytes };
                let aside = self.dir.join(old.name());
                disk.rename(&path, &aside).map_err(WalError::io("move aside", &path))?;
                disk.sync_dir(&self.dir).map_err(WalError::io("sync", &self.dir))?;
                self.kept.push_back(old);
            }
            _ => disk.remove(&path).map_err(WalError::io("remove", &path))?,
        }
        // One at a time: removals that reach the medium out of order would leave a hole.
        disk.sync_dir(&self.log_dir).map_err(WalError::io("sync", &self.log_dir))
    }

    /// Drops the old segments that hold nothing after `keep_from`, and the oldest ones while all
    /// together are too large. Oldest first, so that what stays has no hole.
    pub(crate) fn trim(&mut self, disk: &dyn Disk, keep_from: u64) -> Result<(), WalError> {
        let mut bytes: u64 = self.kept.iter().map(|old| old.bytes).sum();
        while let Some(old) = self.kept.front() {
            if old.max_index > keep_from && bytes <= self.max_bytes {
                break;
            }
            let path = self.dir.join(old.name());
            disk.remove(&path).map_err(WalError::io("remove", &path))?;
            bytes -= old.bytes;
            self.kept.pop_front();
        }
        Ok(())
    }
}
