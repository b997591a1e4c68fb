//! The search for an order: Wing and Gong's, with Lowe's memory of what was tried.
//!
//! Owns which operation may come next and the least window of what cannot be
//! explained. It knows a part only through `model::step`.

use std::collections::HashSet;

use super::{
    model::{self, State},
    partition::Part,
};
use crate::history::Operation;

/// Whether an order explains the operations, `None` when the budget is spent; and the steps taken.
pub(super) fn explain(part: &Part, operations: &[Operation], budget: u64) -> (Option<bool>, u64) {
    let mut search = Search::new(operations);
    let explained = search.run(model::initial(part), budget);
    (explained, search.steps)
}

/// A set of operations, by number.
type Set = Vec<u64>;

struct Search<'a> {
    operations: &'a [Operation],
    /// What must come before each.
    before: Vec<Set>,
    /// What was answered must all be explained.
    answered: Set,
    /// What has come, and in which state that ended: never tried twice.
    tried: HashSet<(Set, State)>,
    steps: u64,
}

impl<'a> Search<'a> {
    fn new(operations: &'a [Operation]) -> Self {
        let words = operations.len().div_ceil(64);
        let set_of = |wanted: &dyn Fn(&Operation) -> bool| {
            let mut set = vec![0; words];
            for (number, _) in operations.iter().enumerate().filter(|(_, o)| wanted(o)) {
                insert(&mut set, number);
            }
            set
        };
        let answered = set_of(&|operation| operation.return_ms.is_some());
        let after = |later: &Operation| set_of(&|operation| precedes(operation, later));
        let mut before: Vec<Set> = operations.iter().map(after).collect();
        // Of open writes that ask the same, any may be the one that happened: the first is.
        for (number, operation) in operations.iter().enumerate() {
            let same = |other: &Operation| other.return_ms.is_none() && other.op == operation.op;
            let sooner = |(at, other): &(usize, &Operation)| {
                (other.call_ms, *at) < (operation.call_ms, number) && same(other)
            };
            if operation.return_ms.is_none() {
                let all = operations.iter().enumerate().filter(sooner);
                all.for_each(|(sooner, _)| insert(&mut before[number], sooner));
            }
        }
        Search { operations, before, answered, tried: HashSet::new(), steps: 0 }
    }

    /// Depth first, without recursion: a part may have thousands of operations.
    fn run(&mut self, initial: State, budget: u64) -> Option<bool> {
        let mut done: Set = vec![0; self.answered.len()];
        // Per depth: the state there, and the operation tried next.
        let mut path: Vec<(State, usize)> = vec![(initial, 0)];
        let mut order: Vec<usize> = Vec::new();
        loop {
            if subset(&self.answered, &done) {
                return Some(true);
            }
            let (state, next) = path.last_mut().expect("left by return only");
            let Some(number) = (*next..self.operations.len())
                .find(|number| !contains(&done, *number) && subset(&self.before[*number], &done))
            else {
                path.pop();
                let Some(last) = order.pop() else { return Some(false) };
                remove(&mut done, last);
                continue;
            };
            *next = number + 1;
            self.steps += 1;
            if self.steps > budget {
                return None;
            }
            // An open write that changes nothing explains nothing.
            let open = self.operations[number].return_ms.is_none();
            let after = model::step(state, &self.operations[number]);
            if let Some(after) = after.filter(|after| !open || after != state) {
                insert(&mut done, number);
                if self.tried.insert((done.clone(), after)) {
                    order.push(number);
                    path.push((after, 0));
                } else {
                    remove(&mut done, number);
                }
            }
        }
    }
}

/// Whether `earlier` must come before `later`. Beside time: a read at an index sees every write
/// answered with that index or a lower one. A write may have been done at a lower index than it
/// was answered with, when the answer is one to a retry.
fn precedes(earlier: &Operation, later: &Operation) -> bool {
    if earlier.return_ms.is_some_and(|return_ms| return_ms < later.call_ms) {
        return true;
    }
    let (Some(first), Some(second)) = (earlier.index, later.index) else { return false };
    later.op.reads() && (first < second || (first == second && !earlier.op.reads()))
}

/// A history that cannot be explained, cut down: to the shortest time, then answer by answer.
pub(super) fn least(part: &Part, operations: Vec<Operation>, budget: u64) -> Vec<Operation> {
    let fails = |operations: &[Operation]| explain(part, operations, budget).0 == Some(false);
    let mut returns: Vec<u64> = operations.iter().filter_map(|o| o.return_ms).collect();
    returns.sort_unstable();
    // A history that can be explained can be explained up to any moment.
    let shortest = returns.partition_point(|until_ms| !fails(&up_to(&operations, *until_ms)));
    let mut window = match returns.get(shortest) {
        Some(until_ms) => up_to(&operations, *until_ms),
        None => operations,
    };
    for number in (0..window.len()).rev() {
        let weaker = without_answer(&window, number);
        if fails(&weaker) {
            window = weaker;
        }
    }
    window.sort_by_key(|operation| operation.call_ms);
    window
}

/// What was known at a moment.
fn up_to(operations: &[Operation], until_ms: u64) -> Vec<Operation> {
    let begun = operations.iter().filter(|operation| operation.call_ms <= until_ms);
    let known = begun.filter_map(|operation| match operation.return_ms {
        Some(return_ms) if return_ms > until_ms => opened(operation),
        _ => Some(operation.clone()),
    });
    known.collect()
}

/// The same with one answer unknown; that can only make it easier to explain.
fn without_answer(operations: &[Operation], number: usize) -> Vec<Operation> {
    let mut weaker = operations.to_vec();
    match opened(&operations[number]) {
        Some(open) => weaker[number] = open,
        None => drop(weaker.remove(number)),
    }
    weaker
}

/// A write whose answer is not known; a read without one says nothing, nor does a refused write.
fn opened(operation: &Operation) -> Option<Operation> {
    let refused = matches!(operation.result, Some(crate::history::Answer::Refused(_)));
    let writes = !operation.op.reads() && !refused;
    writes.then(|| Operation { return_ms: None, result: None, index: None, ..operation.clone() })
}

fn insert(set: &mut Set, number: usize) {
    set[number / 64] |= 1 << (number % 64);
}

fn remove(set: &mut Set, number: usize) {
    set[number / 64] &= !(1 << (number % 64));
}

fn contains(set: &Set, number: usize) -> bool {
    set[number / 64] & (1 << (number % 64)) != 0
}

fn subset(part: &Set, whole: &Set) -> bool {
    part.iter().zip(whole).all(|(part, whole)| part & !whole == 0)
}
