//! Seeds side by side, each on a thread with a runtime of its own; what they give in order, so that
//! nothing depends on which thread was quicker.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, PoisonError},
    thread,
};

struct Progress<T, F> {
    next: u64,
    /// Results that wait for one before them.
    ready: BTreeMap<u64, T>,
    /// The next one to be handed on.
    wanted: u64,
    sink: F,
}

/// Runs every number of `range` on `jobs` threads and hands the results to `sink`, in order.
pub(crate) fn run<T: Send>(
    range: Range<u64>,
    jobs: usize,
    one: impl Fn(u64) -> T + Sync,
    sink: impl FnMut(T) + Send,
) {
    let progress =
        Progress { next: range.start, ready: BTreeMap::new(), wanted: range.start, sink };
    let progress = Mutex::new(progress);
    let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let work = || loop {
        let number = {
            let mut progress = lock();
            if progress.next >= range.end {
                return;
            }
            progress.next += 1;
            progress.next - 1
        };
        let result = one(number);
        let mut guard = lock();
        let progress = &mut *guard;
        progress.ready.insert(number, result);
        while let Some(result) = progress.ready.remove(&progress.wanted) {
            progress.wanted += 1;
            (progress.sink)(result);
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
    fn results_come_in_order_whoever_is_quicker() {
        let one = |seed: u64| {
            thread::sleep(std::time::Duration::from_millis(20 * (seed % 3)));
            seed
        };
        let mut seeds = Vec::new();
        run(3..20, 4, one, |seed| seeds.push(seed));
        assert_eq!(seeds, (3..20).collect::<Vec<u64>>());
    }
}
