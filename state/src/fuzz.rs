//! What the fuzz targets in `fuzz/` call: bytes in, no panic, no memory out of proportion, and what
//! was read means the same when it is written again. Not for anything else.

use std::fmt::Debug;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Cluster, Command, Entry, Job, JobEvent, Refusal, Reply,
    codec::{self, Kind},
};

/// No input makes a reader take more than so many times its own length, and [`MOST_BYTES`].
pub const MOST_TIMES: usize = 64;
/// What serde reserves for a list before it has seen its elements (1 MiB each, lists inside lists
/// too), and an empty state.
pub const MOST_BYTES: usize = 4 << 20;

/// An entry of the log.
pub fn entry(bytes: &[u8]) {
    let Some(entry) = read::<Entry>(Kind::Entry, bytes) else { return };
    // A map's keys may come in any order or twice; they are written in one.
    let has_map = matches!(entry.command, Command::SubmitJob(_) | Command::DeployFiller(_));
    write_again(Kind::Entry, bytes, &entry, !has_map);
}

/// An answer.
pub fn answer(bytes: &[u8]) {
    let Some(answer) = read::<Result<Reply, Refusal>>(Kind::Answer, bytes) else { return };
    write_again(Kind::Answer, bytes, &answer, true);
}

/// A value of the archive, of either sort.
pub fn archive(bytes: &[u8]) {
    if let Some(event) = read::<JobEvent>(Kind::Archive, bytes) {
        write_again(Kind::Archive, bytes, &event, true);
    }
    if let Some(job) = read::<Job>(Kind::Archive, bytes) {
        write_again(Kind::Archive, bytes, &job, false);
    }
}

/// A snapshot. One that is accepted is the same state when it is written and read again.
pub fn snapshot(bytes: &[u8]) {
    let Ok(cluster) = Cluster::from_snapshot(bytes) else { return };
    let again = cluster.to_snapshot().expect("what was read can be written");
    let restored = Cluster::from_snapshot(&again).expect("what was written can be read");
    assert_eq!(restored.state_hash(), cluster.state_hash());
    assert_eq!(restored.to_snapshot().expect("as before"), again, "a state has one form");
}

fn read<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Option<T> {
    codec::decode(kind, bytes).ok()
}

fn write_again<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    kind: Kind,
    bytes: &[u8],
    value: &T,
    has_one_form: bool,
) {
    let again = codec::encode(kind, value).expect("what was read can be written");
    if has_one_form {
        assert_eq!(again, bytes, "{value:?} has one form");
    }
    let restored: T = codec::decode(kind, &again).expect("what was written can be read");
    assert_eq!(restored, *value);
    assert_eq!(codec::encode(kind, &restored).expect("as before"), again);
}
