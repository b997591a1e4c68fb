//! The one place that knows how state is written as bytes.
//!
//! A record is `magic, kind, schema, reserved` and a bincode body. bincode is
//! not self-describing: a reordered enum decodes as the wrong variant. So each
//! (kind, schema) stands for one frozen shape, enums are only appended to,
//! trailing bytes are refused, sizes are limited, and `tests/golden/` holds the
//! bytes of every schema ever written.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};

const MAGIC: u8 = 0x52; // 'R'
const RESERVED: u8 = 0;
const HEADER_BYTES: usize = 4;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An [`crate::Entry`] of the log.
    Entry = 1,
    /// An [`crate::Outcome`]'s answer, from the replica that proposed.
    Answer = 2,
    /// A snapshot of the whole state.
    Snapshot = 3,
    /// A value of the archive.
    Archive = 4,
}

impl Kind {
    /// The schema written now.
    const fn schema(self) -> u8 {
        1
    }

    /// The largest record read or written, in bytes, header and all.
    pub const fn limit_bytes(self) -> usize {
        match self {
            Kind::Entry | Kind::Answer | Kind::Archive => 16 << 20,
            Kind::Snapshot => 4 << 30,
        }
    }
}

/// Why bytes are not a record.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// Not even a header, or another magic or reserved byte.
    #[error("not a Rowen record ({0} bytes)")]
    NotARecord(usize),
    /// Another kind than asked for.
    #[error("record kind {found}, expected {expected}")]
    Kind {
        /// In the record.
        found: u8,
        /// Asked for.
        expected: u8,
    },
    /// Written by a newer build.
    #[error("schema {found} of record kind {kind} is newer than this build reads ({newest})")]
    Newer {
        /// The record's kind.
        kind: u8,
        /// Its schema.
        found: u8,
        /// The newest this build reads.
        newest: u8,
    },
    /// Larger than the kind's limit.
    #[error("record of {0} bytes is over its limit")]
    TooLarge(usize),
    /// The body does not decode.
    #[error("record body: {0}")]
    Body(String),
}

fn options(limit_bytes: usize) -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding().with_limit(limit_bytes as u64)
}

/// Writes `value` as a record of `kind`.
pub fn encode<T: Serialize>(kind: Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    let mut bytes = vec![MAGIC, kind as u8, kind.schema(), RESERVED];
    options(kind.limit_bytes() - HEADER_BYTES)
        .serialize_into(&mut bytes, value)
        .map_err(|error| CodecError::Body(error.to_string()))?;
    Ok(bytes)
}

/// Reads a record of `kind`; anything left over is an error.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() < HEADER_BYTES || bytes[0] != MAGIC || bytes[3] != RESERVED {
        return Err(CodecError::NotARecord(bytes.len()));
    }
    if bytes[1] != kind as u8 {
        return Err(CodecError::Kind { found: bytes[1], expected: kind as u8 });
    }
    if bytes[2] != kind.schema() {
        return Err(CodecError::Newer { kind: kind as u8, found: bytes[2], newest: kind.schema() });
    }
    if bytes.len() > kind.limit_bytes() {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    options(kind.limit_bytes())
        .deserialize(&bytes[HEADER_BYTES..])
        .map_err(|error| CodecError::Body(error.to_string()))
}

/// The canonical bytes of a row, for the state hash.
pub(crate) fn canonical<T: Serialize>(value: &T, into: &mut Vec<u8>) {
    // Without a limit: with one, bincode walks the row twice, first for its size.
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .serialize_into(into, value)
        .expect("a row of the state always serialises");
}
