//! The whole cluster as one file: state, archive, checksum.
//!
//! Layout: magic, then frames (kind u8, length u32 little endian, bytes): one state,
//! any number of archive lines, one end frame with the xxh3-128 of every byte before it.
//! A file without its end frame, or with another checksum, is refused.

use rowen_raft::{Archive, ArchiveError, ArchiveRecord};
use rowen_state::{Cluster, SnapshotError};
use xxhash_rust::xxh3::Xxh3;

const MAGIC: &[u8; 8] = b"ROWENBK1";
const STATE: u8 = 1;
const RECORD: u8 = 2;
const END: u8 = 3;
/// Bytes of a chunk on the wire, about.
const CHUNK_BYTES: usize = 1 << 20;
/// Largest piece of a frame: a state may be larger and is cut into several.
const FRAME_BYTES: usize = 256 << 20;

/// Why a backup cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The reader went away.
    #[error("the reader is gone")]
    Gone,
    /// The archive cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The state cannot be written or restored.
    #[error(transparent)]
    State(#[from] SnapshotError),
    /// Not a whole backup.
    #[error("the backup is damaged at byte {at}: {why}")]
    Damaged {
        /// Where.
        at: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// Writes a backup of `view` and `archive` in chunks.
pub(crate) fn write(
    view: &Cluster,
    archive: &Archive,
    send: impl FnMut(Vec<u8>) -> Result<(), BackupError>,
) -> Result<(), BackupError> {
    let mut writer = Writer { send, chunk: MAGIC.to_vec(), sum: Xxh3::new() };
    writer.sum.update(MAGIC);
    for piece in view.to_snapshot()?.chunks(FRAME_BYTES) {
        writer.frame(STATE, piece)?;
    }
    for record in archive.scan(b"")? {
        let ArchiveRecord { key, value } = record?;
        let mut frame = (key.len() as u32).to_le_bytes().to_vec();
        frame.extend(key);
        frame.extend(value);
        writer.frame(RECORD, &frame)?;
    }
    let sum = writer.sum.digest128();
    writer.frame(END, &sum.to_le_bytes())?;
    writer.flush()
}

struct Writer<F> {
    send: F,
    chunk: Vec<u8>,
    sum: Xxh3,
}

impl<F: FnMut(Vec<u8>) -> Result<(), BackupError>> Writer<F> {
    fn frame(&mut self, kind: u8, bytes: &[u8]) -> Result<(), BackupError> {
        let mut head = [kind, 0, 0, 0, 0];
        head[1..].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        for part in [&head[..], bytes] {
            self.sum.update(part);
            for piece in part.chunks(CHUNK_BYTES) {
                self.chunk.extend_from_slice(piece);
                if self.chunk.len() >= CHUNK_BYTES {
                    self.flush()?;
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), BackupError> {
        (self.send)(std::mem::take(&mut self.chunk))
    }
}

/// A backup, read and checked.
#[derive(Debug)]
pub struct Backup {
    /// The state it was taken of.
    pub cluster: Cluster,
    /// The archive, in key order.
    pub records: Vec<ArchiveRecord>,
}

/// Reads a backup file whole. Nothing of a damaged one is used.
pub fn read(bytes: &[u8]) -> Result<Backup, BackupError> {
    let damaged = |at, why| BackupError::Damaged { at, why };
    let mut rest =
        bytes.strip_prefix(MAGIC).ok_or(damaged(0, "it does not begin as a backup does"))?;
    let (mut state, mut records) = (Vec::new(), Vec::new());
    loop {
        let at = bytes.len() - rest.len();
        let (head, tail) = rest.split_first_chunk::<5>().ok_or(damaged(at, "it is cut off"))?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (body, tail) = tail.split_at_checked(length).ok_or(damaged(at, "it is cut off"))?;
        rest = tail;
        match head[0] {
            STATE => state.extend_from_slice(body),
            RECORD => {
                let (key_len, body) =
                    body.split_first_chunk::<4>().ok_or(damaged(at, "a record is short"))?;
                let cut = u32::from_le_bytes(*key_len) as usize;
                let (key, value) =
                    body.split_at_checked(cut).ok_or(damaged(at, "a record is short"))?;
                records.push(ArchiveRecord { key: key.to_vec(), value: value.to_vec() });
            }
            END => {
                let mut sum = Xxh3::new();
                sum.update(&bytes[..at]);
                if body != sum.digest128().to_le_bytes() {
                    return Err(damaged(at, "its checksum is another one"));
                }
                if !rest.is_empty() {
                    return Err(damaged(at, "something follows its end"));
                }
                return Ok(Backup { cluster: Cluster::from_snapshot(&state)?, records });
            }
            _ => return Err(damaged(at, "a frame is of no known kind")),
        }
    }
}
