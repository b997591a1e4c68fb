//! What must hold, numbered as in the project's list: every check names the
//! invariant it is of, and every violation is named by it.
//!
//! Owns numbers, meanings and counts. Never checks anything itself.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

/// See [`Invariant::meaning`]. Numbers that are missing wait for what they speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[repr(u8)]
pub(crate) enum Invariant {
    /// An assertion of the code under test that names nothing of the list.
    Assertion = 0,
    OneAllocation = 1,
    OneOwner = 2,
    EpochsRise = 3,
    NotTooEarly = 4,
    AllOrNone = 5,
    NothingLost = 6,
    Once = 7,
    EndedStays = 8,
    Notice = 9,
    LastOwnerGone = 10,
    TimeAddsUp = 11,
    SameHash = 15,
    SnapshotReplays = 16,
    Linearizable = 17,
    StreamsOrdered = 18,
    Bounded = 19,
    NothingTruncated = 20,
    OnQuorum = 21,
    Converges = 23,
    /// The run itself: a seed gives the same trace twice.
    Repeatable = 24,
}

impl Invariant {
    /// In the order of their numbers.
    pub(crate) const ALL: [Invariant; 21] = [
        Invariant::Assertion,
        Invariant::OneAllocation,
        Invariant::OneOwner,
        Invariant::EpochsRise,
        Invariant::NotTooEarly,
        Invariant::AllOrNone,
        Invariant::NothingLost,
        Invariant::Once,
        Invariant::EndedStays,
        Invariant::Notice,
        Invariant::LastOwnerGone,
        Invariant::TimeAddsUp,
        Invariant::SameHash,
        Invariant::SnapshotReplays,
        Invariant::Linearizable,
        Invariant::StreamsOrdered,
        Invariant::Bounded,
        Invariant::NothingTruncated,
        Invariant::OnQuorum,
        Invariant::Converges,
        Invariant::Repeatable,
    ];

    /// Of the project's list.
    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    /// What holds, in a line.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Invariant::Assertion => "no assertion of the code itself fails",
            Invariant::OneAllocation => "no GPU is in two live allocations at any index",
            Invariant::OneOwner => "no GPU has two owners' processes at once, by its own journal",
            Invariant::EpochsRise => "epochs only rise at a device",
            Invariant::NotTooEarly => {
                "what is reassigned was left by its old owner for certain: GPUs, and a gang's name"
            }
            Invariant::AllOrNone => "a gang runs whole or not at all, but for its bound",
            Invariant::NothingLost => "no acknowledged submission, cancel or drain is lost",
            Invariant::Once => "a retried request happens once",
            Invariant::EndedStays => "what has ended stays ended, across restarts",
            Invariant::Notice => "every eviction has its notice",
            Invariant::LastOwnerGone => {
                "no process of the last owner lives on a GPU when the next starts"
            }
            Invariant::TimeAddsUp => "allocated + idle + down = elapsed; usage is counted once",
            Invariant::SameHash => "equal state hash at equal index on every replica",
            Invariant::SnapshotReplays => {
                "a snapshot and the log after it give the full replay, the archive all that it gave away"
            }
            Invariant::Linearizable => "operations are linearizable",
            Invariant::StreamsOrdered => "watch and log streams are ordered, without gaps",
            Invariant::Bounded => "logs, queues and memory stay within their bounds",
            Invariant::NothingTruncated => {
                "corruption is repaired or refused, never truncated away"
            }
            Invariant::OnQuorum => "what is acknowledged is on a quorum's disks",
            Invariant::Converges => {
                "after the faults: one leader, converged, every feasible job placed in time"
            }
            Invariant::Repeatable => "a seed gives the same trace twice",
        }
    }

    /// Which one a violation found by `Cluster::verify` is of.
    pub(crate) fn of_verify(check: &str) -> Invariant {
        match check {
            "one owner a GPU"
            | "slots and allocations agree"
            | "allocations lie on nodes"
            | "one hold a GPU"
            | "slots and holds agree"
            | "holds lie on schedulable nodes"
            | "an allocation's owner knows it"
            | "a filler lists its instances" => Invariant::OneAllocation,
            "nothing runs on a lost node" => Invariant::NotTooEarly,
            "epochs come from the log" => Invariant::EpochsRise,
            "all or nothing"
            | "an attempt has an allocation"
            | "an attempt owns its allocation"
            | "a gang runs when all its tasks came"
            | "a live allocation has a live task" => Invariant::AllOrNone,
            "ended has a time" | "a removed filler goes with its last instance" => {
                Invariant::EndedStays
            }
            "stopping has a reason" | "a stopping gang has its notice" => Invariant::Notice,
            "ids are given out once" => Invariant::Once,
            "the meter follows the owner"
            | "allocated + idle + down = elapsed"
            | "meters and ledger agree" => Invariant::TimeAddsUp,
            "a hold belongs to a holding job" | "a hold waits for a victim" => Invariant::Converges,
            // Restored or derived parts that differ from fresh ones.
            _ => Invariant::SnapshotReplays,
        }
    }

    /// Which one an assertion of the code under test guards.
    pub(crate) fn of_panic(message: &str) -> Invariant {
        let guards = [
            ("has an owner", Invariant::OneAllocation),
            ("changed hands", Invariant::OneAllocation),
            ("was applied before", Invariant::SameHash),
        ];
        let guarded = guards.iter().find(|(words, _)| message.contains(words));
        guarded.map_or(Invariant::Assertion, |(_, invariant)| *invariant)
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {} ({})", self.number(), self.meaning())
    }
}

/// An invariant that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) invariant: Invariant,
    /// Where, and what was found.
    pub(crate) what: String,
}

impl Finding {
    pub(crate) fn new(invariant: Invariant, what: impl Into<String>) -> Finding {
        Finding { invariant, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// How often each invariant was checked: one that never was holds for no reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Checked(pub(crate) BTreeMap<Invariant, u64>);

impl Checked {
    pub(crate) fn add(&mut self, invariant: Invariant, times: u64) {
        *self.0.entry(invariant).or_default() += times;
    }

    pub(crate) fn merge(&mut self, other: &Checked) {
        other.0.iter().for_each(|(invariant, times)| self.add(*invariant, *times));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_and_whole() {
        let numbers: Vec<u8> = Invariant::ALL.iter().map(|invariant| invariant.number()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        let today = (0..=11).chain(15..=21).chain(23..=24).collect::<Vec<u8>>();
        assert_eq!(numbers, today);
    }

    #[test]
    fn what_verify_and_assertions_say_is_named() {
        assert_eq!(Invariant::of_verify("one owner a GPU").number(), 1);
        assert_eq!(Invariant::of_verify("the queue is derived").number(), 16);
        assert_eq!(Invariant::of_panic("GPU 3 of n1 has an owner").number(), 1);
        assert_eq!(Invariant::of_panic("attempt to subtract with overflow").number(), 0);
    }
}
