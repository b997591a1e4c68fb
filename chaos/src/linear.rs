//! Whether a history is linearizable: whether one order of its operations, each
//! between its call and its return, explains every answer.
//!
//! Owns the verdict and the order of log indices. A history falls into parts (a
//! job, a filler, a node's duty, a GPU: `partition.rs`), which may be looked at one
//! by one because linearizability is local; `model.rs` says what a part does, and
//! `search.rs` looks for the order. Own code, because no crate carries it:
//! `todc-utils` knows neither operations that were never answered nor a budget,
//! `stateright`'s tester forgets what it has tried, and both say no more than no.

mod model;
mod partition;
mod search;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::history::{History, Operation};

/// Steps of the search in one part before it gives up.
pub(crate) const BUDGET: u64 = 500_000;

/// What became of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every part can be explained.
    Ok,
    /// One cannot.
    Violation(Violation),
    /// The budget is spent: not a pass.
    Unknown { part: String, operations: usize },
}

/// The least that cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) part: String,
    pub(crate) why: &'static str,
    /// Answers that play no part are taken out: such a read is not in it, such a write is open.
    pub(crate) window: Vec<Operation>,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stats {
    pub(crate) parts: u64,
    pub(crate) operations: u64,
    /// Of them in no part: nothing they could have done was ever seen.
    pub(crate) unseen: u64,
    pub(crate) steps: u64,
}

/// Checks a history, part by part.
pub(crate) fn check(history: &History, budget: u64) -> (Verdict, Stats) {
    let mut stats = Stats { operations: history.operations.len() as u64, ..Stats::default() };
    let parts = late_index(&history.operations)
        .map_or_else(|| partition::partition(&history.operations), Err);
    let parts = match parts {
        Ok(parts) => parts,
        Err(violation) => return (Verdict::Violation(violation), stats),
    };
    stats.unseen = stats.operations - parts.values().map(|part| part.len() as u64).sum::<u64>();
    for (part, operations) in parts {
        stats.parts += 1;
        let (explained, steps) = search::explain(&part, &operations, budget);
        stats.steps += steps;
        match explained {
            Some(true) => {}
            Some(false) => {
                let window = search::least(&part, operations, budget);
                let why = "no order of these operations explains their answers";
                let violation = Violation { part: part.to_string(), why, window };
                return (Verdict::Violation(violation), stats);
            }
            None => {
                let (part, operations) = (part.to_string(), operations.len());
                return (Verdict::Unknown { part, operations }, stats);
            }
        }
    }
    (Verdict::Ok, stats)
}

/// What begins after something else has ended was done later in the log, or read a later state.
fn late_index(operations: &[Operation]) -> Option<Violation> {
    let ended = |operation: &Operation| operation.return_ms.zip(operation.index);
    let mut by_return: Vec<&Operation> = operations.iter().filter(|o| ended(o).is_some()).collect();
    let mut by_call = by_return.clone();
    by_return.sort_by_key(|operation| operation.return_ms);
    by_call.sort_by_key(|operation| operation.call_ms);
    let mut before = by_return.into_iter().peekable();
    let mut newest: Option<&Operation> = None;
    for operation in by_call {
        while let Some(earlier) = before.next_if(|o| o.return_ms < Some(operation.call_ms)) {
            if newest.is_none_or(|newest| newest.index < earlier.index) {
                newest = Some(earlier);
            }
        }
        if let Some(newest) = newest.filter(|newest| newest.index > operation.index) {
            let why = "what began after another had ended was done at an older index";
            let window = vec![newest.clone(), operation.clone()];
            return Some(Violation { part: "log".into(), why, window });
        }
    }
    None
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}:", self.part, self.why)?;
        for operation in &self.window {
            let line = serde_json::to_string(operation).map_err(|_| fmt::Error)?;
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}
