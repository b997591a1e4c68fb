//! The node lease in a file, which shims read without the agent.
//!
//! Owns its 16 bytes: the expiry on CLOCK_BOOTTIME and the same inverted, so
//! that a torn read is seen as such, and the thread that reads them for whoever
//! must not wait for a disk. Never decides what an expiry means.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use crate::clock;

/// A watched lease is read this often.
const READ_MS: u64 = 100;
/// A lease past its end that cannot be read for so long has run out: the disk hangs.
const STUCK_MS: u64 = 100;

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

/// A lease read by a thread of its own: a disk that hangs blocks that thread
/// and nobody else, and what cannot be read is not renewed.
#[derive(Debug)]
pub(crate) struct LeaseWatch(Arc<Seen>);

#[derive(Debug)]
struct Seen {
    expires_ms: AtomicU64,
    /// When the last reading began.
    read_ms: AtomicU64,
}

impl LeaseWatch {
    /// Reads it until the process ends.
    pub(crate) fn start(mut reader: LeaseReader) -> io::Result<Self> {
        let (expires_ms, read_ms) = (AtomicU64::new(reader.expires_ms), AtomicU64::new(0));
        let seen = Arc::new(Seen { expires_ms, read_ms });
        let kept = seen.clone();
        thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            loop {
                let now = clock::boottime_ms();
                let expires_ms = reader.expires_ms();
                kept.expires_ms.store(expires_ms, Ordering::Relaxed);
                kept.read_ms.store(now, Ordering::Release);
                // Once more right at its end: a renewal may have come just before.
                let left_ms = expires_ms.saturating_sub(clock::boottime_ms());
                let sleep_ms = if left_ms == 0 { READ_MS } else { left_ms.min(READ_MS) };
                thread::sleep(Duration::from_millis(sleep_ms));
            }
        })?;
        Ok(LeaseWatch(seen))
    }

    /// When it ends, as far as is known.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.0.expires_ms.load(Ordering::Relaxed)
    }

    /// When it ran out, if it has.
    pub(crate) fn ran_out(&self, now: u64) -> Option<u64> {
        let read_ms = self.0.read_ms.load(Ordering::Acquire);
        let expires_ms = self.expires_ms();
        let certain = read_ms >= expires_ms || now >= expires_ms + STUCK_MS;
        (now >= expires_ms && certain).then_some(expires_ms)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A reading that hangs must neither keep a lease alive nor end one too soon.
    #[test]
    fn what_cannot_be_read_is_not_renewed() {
        let check = |read_ms, now, expect| {
            let (expires_ms, read_ms) = (AtomicU64::new(1000), AtomicU64::new(read_ms));
            let watch = LeaseWatch(Arc::new(Seen { expires_ms, read_ms }));
            assert_eq!(watch.ran_out(now), expect, "at {now}");
        };
        check(990, 999, None);
        check(990, 1000, None); // It may have been renewed at 995.
        check(1000, 1000, Some(1000));
        check(990, 1099, None);
        check(990, 1100, Some(1000));
    }
}
