//! The one place that knows how state is written as bytes.
//!
//! A record is `magic, kind, schema, reserved` and a bincode body. bincode is
//! not self-describing: a reordered enum decodes as the wrong variant. So each
//! (kind, schema) stands for one frozen shape, enums are only appended to,
//! trailing bytes are refused, sizes are limited, and `tests/golden/` holds the
//! bytes of every schema ever written.
//!
//! The schema of a record is the cluster version it was written for (`Meta::version`). Every
//! old one is read; what is written is that of the cluster as it is now, so that a replica of an
//! older build never gets bytes it cannot read. The shapes of older versions lie in `v1.rs`.

use bincode::Options;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_128;

/// The newest cluster version that this build reads and writes.
pub const READS_VERSION: u32 = 2;

/// Enough for most of what is hashed, so that writing it does not grow a buffer step by step.
pub(crate) const HASHED_BYTES: usize = 1_024;

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
    /// The newest schema this build reads.
    const fn newest(self) -> u8 {
        match self {
            Kind::Answer => 1, // never leaves the process that wrote it
            Kind::Entry | Kind::Snapshot | Kind::Archive => READS_VERSION as u8,
        }
    }

    /// The largest record read or written, in bytes, header and all.
    pub const fn limit_bytes(self) -> usize {
        match self {
            Kind::Entry | Kind::Answer | Kind::Archive => 16 << 20,
            Kind::Snapshot => 4 << 30,
        }
    }
}

/// A value that is a record of its own, and knows its shape in every schema.
pub trait Stored: Sized {
    /// What it is.
    const KIND: Kind;

    /// The schema in which a cluster of this version writes it.
    fn schema(&self, version: u32) -> u8 {
        (version as u8).min(Self::KIND.newest())
    }

    /// Writes the body in `schema`.
    fn write(self, schema: u8, body: Body) -> Result<Vec<u8>, CodecError>;

    /// Reads the body of `schema`.
    fn read(schema: u8, body: &[u8]) -> Result<Self, CodecError>;
}

/// A record that has its header and waits for its one struct.
#[derive(Debug)]
pub struct Body {
    bytes: Vec<u8>,
    limit_bytes: usize,
}

impl Body {
    /// The record, with `shape` as its body.
    pub(crate) fn put<T: Serialize>(mut self, shape: &T) -> Result<Vec<u8>, CodecError> {
        let failed = |error: bincode::Error| CodecError::Body(error.to_string());
        let length = options(self.limit_bytes).serialized_size(shape).map_err(failed)?;
        self.bytes.reserve_exact(length as usize);
        unlimited().serialize_into(&mut self.bytes, shape).map_err(failed)?;
        Ok(self.bytes)
    }
}

/// Why bytes are not a record, or a value cannot be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CodecError {
    /// Not even a header, or another magic, schema 0 or reserved byte.
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
    #[error(
        "record kind {kind} is of cluster version {found}, this build reads up to {newest}; start a newer rowen here"
    )]
    Newer {
        /// The record's kind.
        kind: u8,
        /// Its schema.
        found: u8,
        /// The newest this build reads.
        newest: u8,
    },
    /// It cannot be said in the schema of the cluster's version.
    #[error(
        "cluster version is {version}; upgrade every replica first (this needs version {needs})"
    )]
    Older {
        /// The cluster's.
        version: u32,
        /// The first that can say it.
        needs: u32,
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

/// For what is known to fit: with a limit, bincode walks a value twice, first for its size.
fn unlimited() -> impl Options {
    bincode::DefaultOptions::new().with_fixint_encoding()
}

/// Writes `value` as a record of a cluster of `version`.
pub fn encode<T: Stored>(version: u32, value: T) -> Result<Vec<u8>, CodecError> {
    let schema = value.schema(version);
    let bytes = vec![MAGIC, T::KIND as u8, schema, RESERVED];
    value.write(schema, Body { bytes, limit_bytes: T::KIND.limit_bytes() - HEADER_BYTES })
}

/// Reads a record of any schema up to this build's; anything left over is an error.
pub fn decode<T: Stored>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() < HEADER_BYTES || bytes[0] != MAGIC || bytes[2] == 0 || bytes[3] != RESERVED {
        return Err(CodecError::NotARecord(bytes.len()));
    }
    let (kind, schema) = (bytes[1], bytes[2]);
    if kind != T::KIND as u8 {
        return Err(CodecError::Kind { found: kind, expected: T::KIND as u8 });
    }
    let newest = T::KIND.newest();
    if schema > newest {
        return Err(CodecError::Newer { kind, found: schema, newest });
    }
    if bytes.len() > T::KIND.limit_bytes() {
        return Err(CodecError::TooLarge(bytes.len()));
    }
    T::read(schema, &bytes[HEADER_BYTES..])
}

/// The one struct of a body.
pub(crate) fn take<T: DeserializeOwned>(kind: Kind, body: &[u8]) -> Result<T, CodecError> {
    options(kind.limit_bytes())
        .deserialize(body)
        .map_err(|error| CodecError::Body(error.to_string()))
}

/// The canonical bytes of a shape, for the state hash.
pub(crate) fn canonical<T: Serialize + ?Sized>(value: &T, into: &mut Vec<u8>) {
    unlimited().serialize_into(into, value).expect("a row of the state always serialises");
}

/// The hash of `head` and a shape's canonical bytes.
pub(crate) fn hash<T: Serialize + ?Sized>(head: &[u8], value: &T) -> u128 {
    let mut bytes = Vec::with_capacity(HASHED_BYTES);
    bytes.extend_from_slice(head);
    canonical(value, &mut bytes);
    xxh3_128(&bytes)
}

/// A row of the state, as each cluster version writes it into the state hash. One whose shape
/// changed gives its older shapes here; the hash is canonical for a version, not for ever.
pub trait Row: Serialize {
    /// The versions that changed its shape: at the rise to one of them its rows are hashed anew.
    const CHANGED_IN: &'static [u32] = &[];

    /// Its bytes in a cluster of this version.
    fn canonical(&self, _version: u32, into: &mut Vec<u8>) {
        canonical(self, into);
    }
}
