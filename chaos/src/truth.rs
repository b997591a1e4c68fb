//! What the log says: every entry as the first replica that applied it saw it, a state of its own
//! built from them, and each replica held against both. Never read by what is under test.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rowen_raft::{Applied, StateMachine};
use rowen_server::SimulatedMachine;
use rowen_state::{Entry, codec};

use crate::{
    inbox::{Arrived, Inbox},
    invariant::{Finding, Invariant},
    message::ReplicaAt,
};

/// The log as replicas have applied it. Clones are the same one.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    state: Arc<Mutex<State>>,
    inbox: Inbox,
}

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<u64, Seen>,
    fresh: Vec<Fresh>,
    wrong: Vec<Finding>,
    compared: u64,
    restored: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    entry: u64,
    state_hash: u128,
}

/// An entry that no replica had applied before.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) index: u64,
    pub(crate) entry: Entry,
    pub(crate) state_hash: u128,
}

/// What came since the last look.
#[derive(Debug, Default)]
pub(crate) struct News {
    pub(crate) fresh: Vec<Fresh>,
    pub(crate) wrong: Vec<Finding>,
    /// Hashes that were compared, and states restored from snapshots.
    pub(crate) compared: u64,
    pub(crate) restored: u64,
}

impl Truth {
    pub(crate) fn new(inbox: Inbox) -> Truth {
        Truth { state: Arc::default(), inbox }
    }

    pub(crate) fn news(&self) -> News {
        let state = &mut *self.state();
        News {
            fresh: std::mem::take(&mut state.fresh),
            wrong: std::mem::take(&mut state.wrong),
            compared: std::mem::take(&mut state.compared),
            restored: std::mem::take(&mut state.restored),
        }
    }

    /// The last entry that any replica applied.
    pub(crate) fn last(&self) -> u64 {
        self.state().seen.last_key_value().map_or(0, |(index, _)| *index)
    }

    /// The state's hash after the entry at `index`, if any replica has applied so much.
    pub(crate) fn hash_at(&self, index: u64) -> Option<u128> {
        self.state().seen.range(..=index).next_back().map(|(_, seen)| seen.state_hash)
    }

    /// All goes on from another state at `index`; what came after it has never been.
    pub(crate) fn go_back(&self, index: u64, state_hash: u128) {
        let state = &mut *self.state();
        state.seen.split_off(&index);
        state.seen.insert(index, Seen { entry: 0, state_hash });
    }

    fn applied(&self, replica: ReplicaAt, index: u64, bytes: &[u8], state_hash: u128) {
        let state = &mut *self.state();
        let seen = Seen { entry: fnv(bytes), state_hash };
        state.compared += 1;
        if let Some(known) = state.seen.get(&index) {
            let what = match (known.entry == seen.entry, known.state_hash == seen.state_hash) {
                (true, true) => return,
                (true, false) => "has another state after",
                (false, _) => "applied another entry at",
            };
            let what = format!("replica {replica} {what} #{index}");
            state.wrong.push(Finding::new(Invariant::SameHash, what));
        } else {
            let entry = codec::decode(bytes).expect("it was applied");
            state.seen.insert(index, seen);
            state.fresh.push(Fresh { index, entry, state_hash });
        }
        self.inbox.push(Arrived::Applied);
    }

    fn restored(&self, replica: ReplicaAt, index: u64, state_hash: u128) {
        let state = &mut *self.state();
        state.restored += 1;
        let known = state.seen.range(..=index).next_back().map(|(_, seen)| seen.state_hash);
        if known.is_some_and(|known| known != state_hash) {
            let what = format!("replica {replica} restored another state at #{index}");
            state.wrong.push(Finding::new(Invariant::SnapshotReplays, what));
            self.inbox.push(Arrived::Applied);
        }
    }

    fn wrong(&self, finding: Finding) {
        self.state().wrong.push(finding);
        self.inbox.push(Arrived::Applied);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The production state machine of one replica, watched.
pub(crate) struct Watched {
    pub(crate) machine: SimulatedMachine,
    pub(crate) replica: ReplicaAt,
    /// The newest version that its build reads.
    pub(crate) reads: u32,
    pub(crate) truth: Truth,
}

impl Watched {
    /// A build of before would have stopped here. The third byte of a record is its version.
    fn check_reads(&self, index: u64, bytes: &[u8]) {
        let version = bytes.get(2).copied();
        if version.is_none_or(|version| u32::from(version) > self.reads) {
            let what = format!(
                "replica {} reads version {} and is given {version:?} at #{index}",
                self.replica, self.reads
            );
            self.truth.wrong(Finding::new(Invariant::NothingLost, what));
        }
    }
}

impl StateMachine for Watched {
    fn apply(&mut self, index: u64, entry: &[u8]) -> Applied {
        self.check_reads(index, entry);
        let applied = self.machine.apply(index, entry);
        self.truth.applied(self.replica, index, entry, self.machine.cluster().state_hash());
        applied
    }

    fn applied(&mut self, index: u64) {
        self.machine.applied(index);
    }

    fn snapshot(&self) -> Box<dyn FnOnce() -> Vec<u8> + Send> {
        self.machine.snapshot()
    }

    fn restore(&mut self, index: u64, snapshot: &[u8]) -> Result<(), String> {
        self.check_reads(index, snapshot);
        self.machine.restore(index, snapshot)?;
        self.truth.restored(self.replica, index, self.machine.cluster().state_hash());
        Ok(())
    }
}
