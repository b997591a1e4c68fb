//! Which values are records or rows, and what shape each has in which cluster version.
//!
//! Only says which shape goes with which version: the shapes of older versions lie in `v1.rs`.

use crate::{
    Allocation, Entry, Filler, Job, JobEvent, Node, Queue, Refusal, Replica, Reply,
    codec::{self, Body, CodecError, Kind, Row, Stored},
    command::Command,
    v1::{EntryV1, JobV1},
};

impl Row for Node {}
impl Row for Filler {}
impl Row for Allocation {}
impl Row for Replica {}
impl Row for Queue {}
impl Row for rowen_topology::FabricRecord {}

impl Row for Job {
    const CHANGED_IN: &'static [u32] = &[2];

    fn canonical(&self, version: u32, into: &mut Vec<u8>) {
        match version {
            1 => codec::canonical(&JobV1::of(self.clone()), into),
            _ => codec::canonical(self, into),
        }
    }
}

impl Stored for Entry {
    const KIND: Kind = Kind::Entry;

    /// The word to rise to a version is the first that is written in it: a build that cannot read
    /// the version says so here, and not at some later entry.
    fn schema(&self, version: u32) -> u8 {
        match self.command {
            Command::RaiseVersion { to, .. } => to as u8,
            _ => version as u8,
        }
    }

    fn write(self, schema: u8, body: Body) -> Result<Vec<u8>, CodecError> {
        let (version, needs) = (u32::from(schema), self.command.since());
        if needs > version {
            return Err(CodecError::Older { version, needs });
        }
        match schema {
            1 => body.put(&EntryV1::of(self).ok_or(CodecError::Older { version, needs })?),
            _ => body.put(&self),
        }
    }

    fn read(schema: u8, body: &[u8]) -> Result<Entry, CodecError> {
        let entry: Entry = match schema {
            1 => codec::take::<EntryV1>(Kind::Entry, body)?.into(),
            _ => codec::take(Kind::Entry, body)?,
        };
        match entry.command {
            Command::RaiseVersion { to, .. } if to != u32::from(schema) => {
                Err(CodecError::Body(format!("the rise to version {to} in {schema}")))
            }
            _ => Ok(entry),
        }
    }
}

impl Stored for Result<Reply, Refusal> {
    const KIND: Kind = Kind::Answer;

    fn write(self, _: u8, body: Body) -> Result<Vec<u8>, CodecError> {
        body.put(&self)
    }

    fn read(_: u8, body: &[u8]) -> Result<Self, CodecError> {
        codec::take(Kind::Answer, body)
    }
}

impl Stored for Job {
    const KIND: Kind = Kind::Archive;

    fn write(self, schema: u8, body: Body) -> Result<Vec<u8>, CodecError> {
        match schema {
            1 => body.put(&JobV1::of(self)),
            _ => body.put(&self),
        }
    }

    fn read(schema: u8, body: &[u8]) -> Result<Job, CodecError> {
        match schema {
            1 => Ok(codec::take::<JobV1>(Kind::Archive, body)?.into()),
            _ => codec::take(Kind::Archive, body),
        }
    }
}

impl Stored for JobEvent {
    const KIND: Kind = Kind::Archive;

    fn write(self, _: u8, body: Body) -> Result<Vec<u8>, CodecError> {
        body.put(&self)
    }

    fn read(_: u8, body: &[u8]) -> Result<JobEvent, CodecError> {
        codec::take(Kind::Archive, body)
    }
}
