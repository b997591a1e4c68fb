//! The node lease in a file, which shims read without the agent.
//!
//! Owns its 16 bytes: the expiry on CLOCK_BOOTTIME and the same inverted, so
//! that a torn read is seen as such. Never decides what an expiry means.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

/// The agent's end.
#[derive(Debug)]
pub(crate) struct LeaseFile(File);

impl LeaseFile {
    /// Opens or creates it; its content is kept.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        Ok(LeaseFile(options.open(path)?))
    }

    /// When the lease runs out; `None` for a new file or a torn read.
    pub(crate) fn read(&self) -> Option<u64> {
        read(&self.0)
    }

    /// Shims see it within 100 ms.
    pub(crate) fn write(&self, expires_ms: u64) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&expires_ms.to_le_bytes());
        bytes[8..].copy_from_slice(&(!expires_ms).to_le_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

/// A shim's end: keeps the last value that was whole.
#[derive(Debug)]
pub(crate) struct LeaseReader {
    file: Option<File>,
    expires_ms: u64,
}

impl LeaseReader {
    /// A file that cannot be opened reads as a lease never held.
    pub(crate) fn open(path: &Path) -> Self {
        LeaseReader { file: File::open(path).ok(), expires_ms: 0 }
    }

    /// When the lease runs out.
    pub(crate) fn expires_ms(&mut self) -> u64 {
        if let Some(expires_ms) = self.file.as_ref().and_then(read) {
            self.expires_ms = expires_ms;
        }
        self.expires_ms
    }
}

fn read(file: &File) -> Option<u64> {
    let mut bytes = [0; 16];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let (value, inverted) = bytes.split_at(8);
    let value = u64::from_le_bytes(value.try_into().expect("8 of 16 bytes"));
    let inverted = u64::from_le_bytes(inverted.try_into().expect("8 of 16 bytes"));
    (value == !inverted).then_some(value)
}
