//! The one place where this crate's own files meet bincode: one frozen struct per (kind, schema),
//! mapped to and from openraft's types, whose own serde forms are not stable. A schema is never
//! changed; a new one is added with an explicit conversion, and `tests/golden/` keeps the bytes of
//! each. Decoding has a size limit and refuses trailing bytes. Peer bytes never come here: they
//! are protobuf (`transport`).

use std::collections::{BTreeMap, BTreeSet};

use bincode::Options;
use openraft::{BasicNode, EntryPayload};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::types::{
    Entry, EntryBytes, LogId, Membership, SnapshotMeta, StoredMembership, Vote, log_id,
};

/// The schema that is written today, for every kind.
pub(crate) const SCHEMA: u8 = 1;
/// No body of ours is larger; a flipped length must not allocate the machine away.
pub(crate) const MAX_BODY_BYTES: usize = 64 << 20;

/// Why bytes were not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer Rowen, or damaged.
    #[error("unknown schema {0}, this build knows up to {SCHEMA}")]
    Schema(u8),
    /// Not the struct that the schema says.
    #[error("not decodable: {0}")]
    Body(#[from] bincode::Error),
    /// Decodable, yet not possible.
    #[error("impossible content: {0}")]
    Content(String),
}

fn options() -> impl Options {
    bincode::DefaultOptions::new()
        .with_limit(MAX_BODY_BYTES as u64)
        .with_fixint_encoding()
        .with_little_endian()
        .reject_trailing_bytes()
}

fn write<T: Serialize>(value: &T) -> Vec<u8> {
    options().serialize(value).expect("plain structs under the size limit always serialise")
}

fn read<T: DeserializeOwned>(schema: u8, bytes: &[u8]) -> Result<T, CodecError> {
    if schema != SCHEMA {
        return Err(CodecError::Schema(schema));
    }
    Ok(options().deserialize(bytes)?)
}

#[derive(Serialize, Deserialize)]
struct LogIdV1 {
    term: u64,
    index: u64,
}

#[derive(Serialize, Deserialize)]
struct VoteV1 {
    term: u64,
    replica: u64,
    committed: bool,
}

#[derive(Serialize, Deserialize)]
struct MembershipV1 {
    configs: Vec<Vec<u64>>,
    members: Vec<(u64, String)>,
}

#[derive(Serialize, Deserialize)]
enum PayloadV1 {
    Blank,
    Normal(RawBytes),
    Membership(MembershipV1),
}

#[derive(Serialize, Deserialize)]
struct EntryV1 {
    term: u64,
    index: u64,
    payload: PayloadV1,
}

#[derive(Serialize, Deserialize)]
struct SnapshotMetaV1 {
    last: Option<LogIdV1>,
    membership_at: Option<LogIdV1>,
    membership: MembershipV1,
    body_bytes: u64,
    body_crc: u32,
}

/// Bytes written in one piece; a `Vec<u8>` would go element by element.
struct RawBytes(std::sync::Arc<[u8]>);

impl Serialize for RawBytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for RawBytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = RawBytes;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<RawBytes, E> {
                Ok(RawBytes(bytes.into()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<RawBytes, E> {
                Ok(RawBytes(bytes.into()))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

fn id_record(id: &LogId) -> LogIdV1 {
    LogIdV1 { term: id.committed_leader_id().term, index: id.index() }
}

fn id_value(record: LogIdV1) -> Result<LogId, CodecError> {
    // Every index has a next one.
    if record.index == u64::MAX {
        return Err(CodecError::Content(format!("an entry at index {}", record.index)));
    }
    Ok(log_id(record.term, record.index))
}

fn membership_record(membership: &Membership) -> MembershipV1 {
    MembershipV1 {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|config| config.iter().copied().collect())
            .collect(),
        members: membership.nodes().map(|(id, node)| (*id, node.addr.clone())).collect(),
    }
}

fn membership_value(record: MembershipV1) -> Result<Membership, CodecError> {
    let members: BTreeMap<u64, BasicNode> =
        record.members.into_iter().map(|(id, addr)| (id, BasicNode { addr })).collect();
    new_membership(record.configs, members)
}

/// A membership from its parts, refused where a voter is not a member. Also used for peer bytes.
pub(crate) fn new_membership(
    configs: Vec<Vec<u64>>,
    members: BTreeMap<u64, BasicNode>,
) -> Result<Membership, CodecError> {
    let configs: Vec<BTreeSet<u64>> =
        configs.into_iter().map(|config| config.into_iter().collect()).collect();
    if configs.is_empty() && members.is_empty() {
        return Ok(Membership::default()); // a replica that was never initialised
    }
    Membership::new(configs, members).map_err(|error| CodecError::Content(error.to_string()))
}

pub(crate) fn write_log_id(id: &LogId) -> Vec<u8> {
    write(&id_record(id))
}

pub(crate) fn read_log_id(schema: u8, bytes: &[u8]) -> Result<LogId, CodecError> {
    id_value(read(schema, bytes)?)
}

pub(crate) fn write_vote(vote: &Vote) -> Vec<u8> {
    let leader = &vote.leader_id;
    write(&VoteV1 { term: leader.term, replica: leader.voted_for, committed: vote.committed })
}

pub(crate) fn read_vote(schema: u8, bytes: &[u8]) -> Result<Vote, CodecError> {
    let record: VoteV1 = read(schema, bytes)?;
    Ok(new_vote(record.term, record.replica, record.committed))
}

/// A vote from its parts. Also used for peer bytes.
pub(crate) fn new_vote(term: u64, replica: u64, committed: bool) -> Vote {
    if committed { Vote::new_committed(term, replica) } else { Vote::new(term, replica) }
}

pub(crate) fn write_entry(entry: &Entry) -> Vec<u8> {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadV1::Blank,
        EntryPayload::Normal(bytes) => PayloadV1::Normal(RawBytes(bytes.0.clone())),
        EntryPayload::Membership(membership) => {
            PayloadV1::Membership(membership_record(membership))
        }
    };
    let LogIdV1 { term, index } = id_record(&entry.log_id);
    write(&EntryV1 { term, index, payload })
}

pub(crate) fn read_entry(schema: u8, bytes: &[u8]) -> Result<Entry, CodecError> {
    let record: EntryV1 = read(schema, bytes)?;
    let payload = match record.payload {
        PayloadV1::Blank => EntryPayload::Blank,
        PayloadV1::Normal(bytes) => EntryPayload::Normal(EntryBytes(bytes.0)),
        PayloadV1::Membership(membership) => {
            EntryPayload::Membership(membership_value(membership)?)
        }
    };
    let EntryV1 { term, index, .. } = record;
    Ok(Entry { log_id: id_value(LogIdV1 { term, index })?, payload })
}

/// What stands before a snapshot's body in its file.
pub(crate) struct SnapshotHead {
    pub(crate) meta: SnapshotMeta,
    pub(crate) body_bytes: u64,
    pub(crate) body_crc: u32,
}

pub(crate) fn write_snapshot_head(head: &SnapshotHead) -> Vec<u8> {
    write(&SnapshotMetaV1 {
        last: head.meta.last_log_id.as_ref().map(id_record),
        membership_at: head.meta.last_membership.log_id().as_ref().map(id_record),
        membership: membership_record(head.meta.last_membership.membership()),
        body_bytes: head.body_bytes,
        body_crc: head.body_crc,
    })
}

pub(crate) fn read_snapshot_head(schema: u8, bytes: &[u8]) -> Result<SnapshotHead, CodecError> {
    let record: SnapshotMetaV1 = read(schema, bytes)?;
    let membership = membership_value(record.membership)?;
    Ok(SnapshotHead {
        meta: SnapshotMeta {
            last_log_id: record.last.map(id_value).transpose()?,
            last_membership: StoredMembership::new(
                record.membership_at.map(id_value).transpose()?,
                membership,
            ),
        },
        body_bytes: record.body_bytes,
        body_crc: record.body_crc,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect_file;

    use super::*;
    use crate::wal::record::{self, Kind, Parsed};

    fn group() -> Membership {
        let members = [1, 2, 5].map(|id| (id, BasicNode { addr: format!("10.0.0.{id}:7000") }));
        new_membership(vec![vec![1, 2], vec![2, 5]], members.into()).unwrap()
    }

    fn entry(payload: Entry) -> Vec<u8> {
        write_entry(&payload)
    }

    /// One record of each kind and schema, whole, as it lies on disk.
    fn records() -> Vec<(&'static str, Kind, u64, Vec<u8>)> {
        let id = log_id(3, 41);
        let normal = EntryPayload::Normal(EntryBytes(b"opaque".as_slice().into()));
        let head = SnapshotHead {
            meta: SnapshotMeta {
                last_log_id: Some(id),
                last_membership: StoredMembership::new(Some(log_id(1, 0)), group()),
            },
            body_bytes: 1_234,
            body_crc: 0xdead_beef,
        };
        vec![
            (
                "entry_blank",
                Kind::Entry,
                41,
                entry(Entry { log_id: id, payload: EntryPayload::Blank }),
            ),
            ("entry_normal", Kind::Entry, 41, entry(Entry { log_id: id, payload: normal })),
            (
                "entry_membership",
                Kind::Entry,
                41,
                entry(Entry { log_id: id, payload: EntryPayload::Membership(group()) }),
            ),
            ("vote", Kind::Vote, 0, write_vote(&new_vote(7, 2, false))),
            ("vote_committed", Kind::Vote, 0, write_vote(&new_vote(7, 2, true))),
            ("truncate", Kind::Truncate, 42, Vec::new()),
            ("purge", Kind::Purge, 41, write_log_id(&id)),
            ("committed", Kind::Committed, 41, write_log_id(&id)),
            ("snapshot_head", Kind::File, 0, write_snapshot_head(&head)),
        ]
    }

    fn hex(bytes: &[u8]) -> String {
        let line = |line: &[u8]| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        bytes.chunks(32).map(|chunk| line(chunk) + "\n").collect()
    }

    fn golden(name: &str) -> Vec<u8> {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.v1.hex"));
        let text = std::fs::read_to_string(path).unwrap().replace('\n', "");
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(byte).collect()
    }

    /// A body decoded and written again.
    fn rewrite(record: &record::Record<'_>) -> Result<Vec<u8>, CodecError> {
        let (schema, body) = (record.schema, record.body);
        Ok(match record.kind {
            Kind::Entry => write_entry(&read_entry(schema, body)?),
            Kind::Vote => write_vote(&read_vote(schema, body)?),
            Kind::Purge | Kind::Committed => write_log_id(&read_log_id(schema, body)?),
            Kind::File => write_snapshot_head(&read_snapshot_head(schema, body)?),
            _ => body.to_vec(),
        })
    }

    #[test]
    fn golden_bytes_are_written_and_read() {
        for (name, kind, index, body) in records() {
            let mut bytes = Vec::new();
            record::push(&mut bytes, kind, SCHEMA, index, &body);
            expect_file![format!("../tests/golden/{name}.v1.hex")].assert_eq(&hex(&bytes));
            let golden = golden(name);
            let Parsed::Record(read) = record::parse(&golden, 0) else { panic!("{name}") };
            assert_eq!((read.kind, read.schema, read.index), (kind, 1, index), "{name}");
            assert_eq!(rewrite(&read).unwrap(), body, "{name}");
        }
    }

    #[test]
    fn what_is_not_the_struct_is_refused() {
        for (name, kind, index, body) in records() {
            if kind == Kind::Truncate {
                continue;
            }
            let record = |schema, body| record::Record { kind, schema, index, body };
            let longer = [body.as_slice(), &[0]].concat();
            assert!(rewrite(&record(1, &longer)).is_err(), "{name}: a byte too many");
            for length in 0..body.len() {
                let cut = rewrite(&record(1, &body[..length]));
                assert!(cut.is_err(), "{name}: cut to {length}");
            }
            let newer = rewrite(&record(2, &body)).unwrap_err().to_string();
            assert_eq!(newer, "unknown schema 2, this build knows up to 1");
        }
        // A length of 2^42 is refused before anything is allocated.
        let mut huge = write_entry(&Entry {
            log_id: log_id(1, 1),
            payload: EntryPayload::Normal(EntryBytes(b"x".as_slice().into())),
        });
        huge[20..28].copy_from_slice(&(1_u64 << 42).to_le_bytes());
        assert!(matches!(read_entry(1, &huge), Err(CodecError::Body(_))));
    }
}
