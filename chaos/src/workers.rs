//! Seeds side by side, each on a thread with a runtime of its own; their outcomes in order, so that
//! nothing depends on which thread was quicker.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, PoisonError},
    thread,
};

use crate::world::Outcome;

struct Progress<F> {
    next: u64,
    /// Outcomes that wait for one before them.
    ready: BTreeMap<u64, Outcome>,
    /// The next one to be handed on.
    wanted: u64,
    sink: F,
}

/// Runs every seed of `range` on `jobs` threads and hands the outcomes to `sink`, by seed.
pub(crate) fn run(
    range: Range<u64>,
    jobs: usize,
    one: impl Fn(u64) -> Outcome + Sync,
    sink: impl FnMut(Outcome) + Send,
) {
    let progress =
        Progress { next: range.start, ready: BTreeMap::new(), wanted: range.start, sink };
    let progress = Mutex::new(progress);
    let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || loop {
        let seed = {
            let mut progress = lock();
            if progress.next >= range.end {
                return;
            }
            progress.next += 1;
            progress.next - 1
        };
        let outcome = one(seed);
        let mut guard = lock();
        let progress = &mut *guard;
        progress.ready.insert(seed, outcome);
        while let Some(outcome) = progress.ready.remove(&progress.wanted) {
            progress.wanted += 1;
            (progress.sink)(outcome);
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_in_order_whoever_is_quicker() {
        let one = |seed: u64| {
            thread::sleep(std::time::Duration::from_millis(20 * (seed % 3)));
            Outcome { seed, ..Outcome::default() }
        };
        let mut seeds = Vec::new();
        run(3..20, 4, one, |outcome| seeds.push(outcome.seed));
        assert_eq!(seeds, (3..20).collect::<Vec<u64>>());
    }
}
