//! The bytes of the log: how a record looks, how one is written, how a segment is read back.
//! No IO and no decisions: what a bad record means is `recover`'s business.
//!
//! A record is `length u32, crc u32, kind u8, schema u8, index u64, body`, little-endian; `length`
//! is that of the body and the crc covers everything but itself. What one `pwrite` brought is one
//! *batch*: a record of kind batch (`index` the batch's number, body the length of the records
//! after it), then those records. A batch is written only when the one before it is on the medium,
//! so the mere existence of batch N+1 proves that N was synced whole.

use crate::codec::MAX_BODY_BYTES;

pub(crate) const HEADER_BYTES: usize = 18;

/// What a record is. Only ever appended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Entry = 1,
    Vote = 2,
    /// `index` is the first entry that is gone.
    Truncate = 3,
    Purge = 4,
    Committed = 5,
    Batch = 6,
    /// Opens a file: a segment or a snapshot.
    File = 7,
    /// How far the log is known to be synced.
    Synced = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::{Batch, Committed, Entry, File, Purge, Synced, Truncate, Vote};
        [Entry, Vote, Truncate, Purge, Committed, Batch, File, Synced]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// A record as it lies in a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) schema: u8,
    pub(crate) index: u64,
    pub(crate) body: &'a [u8],
}

impl Record<'_> {
    /// Its length with the header.
    pub(crate) fn len(&self) -> usize {
        HEADER_BYTES + self.body.len()
    }
}

/// What stands at an offset.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed<'a> {
    Record(Record<'a>),
    /// A header of zeros, or no room for one: nothing was written here.
    End,
    /// Something was written here, but not this.
    Bad(&'static str),
}

/// Appends one record to `out`.
pub(crate) fn push(out: &mut Vec<u8>, kind: Kind, schema: u8, index: u64, body: &[u8]) {
    assert!(body.len() <= MAX_BODY_BYTES, "a record body is bounded by max_entry_bytes");
    let length = u32::try_from(body.len()).expect("bounded above");
    let start = out.len();
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.push(kind as u8);
    out.push(schema);
    out.extend_from_slice(&index.to_le_bytes());
    out.extend_from_slice(body);
    let crc = checksum(&out[start..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads what stands at `offset`.
pub(crate) fn parse(bytes: &[u8], offset: usize) -> Parsed<'_> {
    let rest = bytes.get(offset..).unwrap_or_default();
    let Some(header) = rest.get(..HEADER_BYTES) else {
        return if rest.iter().all(|byte| *byte == 0) { Parsed::End } else { Parsed::Bad("cut") };
    };
    if header.iter().all(|byte| *byte == 0) {
        return Parsed::End;
    }
    let length = u32_at(header, 0) as usize;
    if length > MAX_BODY_BYTES {
        return Parsed::Bad("impossible length");
    }
    let Some(record) = rest.get(..HEADER_BYTES + length) else {
        return Parsed::Bad("longer than the file");
    };
    if checksum(record) != u32_at(header, 4) {
        return Parsed::Bad("crc mismatch");
    }
    let Some(kind) = Kind::from_byte(header[8]) else {
        return Parsed::Bad("unknown kind");
    };
    let index = u64::from_le_bytes(header[10..18].try_into().expect("eight bytes"));
    Parsed::Record(Record { kind, schema: header[9], index, body: &record[HEADER_BYTES..] })
}

/// The length of the records that follow a batch record.
pub(crate) fn batch_bytes(record: &Record<'_>) -> Option<usize> {
    let body: [u8; 4] = record.body.try_into().ok()?;
    (record.kind == Kind::Batch).then(|| u32::from_le_bytes(body) as usize)
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..4]);
    hasher.update(&record[8..]);
    hasher.finalize()
}
