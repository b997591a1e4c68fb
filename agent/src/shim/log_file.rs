//! A log that is rotated by size.
//!
//! Owns `NAME` and its older segments `NAME.1`, `NAME.2`, …, where numbers
//! rise and are never used twice: a reader that follows knows which comes
//! next. Never reads what it wrote.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::spec;

#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    max_bytes: u64,
    keep: u32,
    /// Number the current segment gets when it is rotated.
    number: u64,
}

impl LogFile {
    pub(super) fn open(path: &Path, max_bytes: u64, keep: u32) -> io::Result<Self> {
        let file = spec::private_file(path)?;
        let path = path.to_path_buf();
        Ok(LogFile { path, file, bytes: 0, max_bytes, keep, number: 1 })
    }

    /// Errors are dropped: a full disk must not end the task.
    pub(super) fn append(&mut self, data: &[u8]) {
        let mut rest = data;
        while self.bytes + rest.len() as u64 > self.max_bytes {
            // Lines stay whole: the seam is the last line end that still fits,
            // or the first after that.
            let room = usize::try_from(self.max_bytes.saturating_sub(self.bytes));
            let (fits, over) = rest.split_at(room.unwrap_or(usize::MAX).min(rest.len()));
            let line_end = |byte: &u8| *byte == b'\n';
            let after = || over.iter().position(line_end).map(|at| fits.len() + at);
            let Some(seam) = fits.iter().rposition(line_end).or_else(after) else { break };
            self.write(&rest[..=seam]);
            self.rotate();
            rest = &rest[seam + 1..];
        }
        self.write(rest);
        if self.bytes > 2 * self.max_bytes {
            self.rotate(); // No line end in all that: bounded all the same.
        }
    }

    fn write(&mut self, data: &[u8]) {
        if self.file.write_all(data).is_ok() {
            self.bytes += data.len() as u64;
        }
    }

    fn rotate(&mut self) {
        if fs::rename(&self.path, segment(&self.path, self.number)).is_err() {
            return;
        }
        if let Ok(file) = spec::private_file(&self.path) {
            self.file = file;
            self.bytes = 0;
        }
        let keep = u64::from(self.keep);
        if let Some(oldest) = self.number.checked_sub(keep).filter(|number| *number > 0) {
            let _ = fs::remove_file(segment(&self.path, oldest));
        }
        self.number += 1;
    }
}

fn segment(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The rotated segments of a log, oldest first.
pub(crate) fn segments(path: &Path) -> Vec<(u64, PathBuf)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str()))
    else {
        return Vec::new();
    };
    let number = |entry: &fs::DirEntry| -> Option<u64> {
        entry.file_name().to_str()?.strip_prefix(name)?.strip_prefix('.')?.parse().ok()
    };
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<(u64, PathBuf)> =
        entries.filter_map(|entry| Some((number(&entry)?, entry.path()))).collect();
    found.sort();
    found
}
