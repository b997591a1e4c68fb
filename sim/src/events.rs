//! What is going to happen, in the order in which it will.

use std::collections::BTreeMap;

/// Events by time; those of one instant in the order in which they were added,
/// so that a run does not depend on anything but its input.
#[derive(Clone, Debug)]
pub struct Events<E> {
    queue: BTreeMap<(u64, u64), E>,
    last: u64,
}

impl<E> Default for Events<E> {
    fn default() -> Self {
        Events { queue: BTreeMap::new(), last: 0 }
    }
}

impl<E> Events<E> {
    /// Adds an event.
    pub fn add(&mut self, at_ms: u64, event: E) {
        self.last += 1;
        self.queue.insert((at_ms, self.last), event);
    }

    /// When the next one happens.
    pub fn next_ms(&self) -> Option<u64> {
        self.queue.first_key_value().map(|((at_ms, _), _)| *at_ms)
    }

    /// Takes the next one out, if it happens at `at_ms` or before.
    pub fn take_due(&mut self, at_ms: u64) -> Option<E> {
        self.next_ms().filter(|next_ms| *next_ms <= at_ms)?;
        self.queue.pop_first().map(|(_, event)| event)
    }

    /// How many are to come.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing is to come.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_arrival() {
        let mut events = Events::default();
        for (at_ms, name) in [(5, "b"), (1, "a"), (5, "c"), (9, "d")] {
            events.add(at_ms, name);
        }
        let mut seen = Vec::new();
        while let Some(event) = events.take_due(5) {
            seen.push(event);
        }
        assert_eq!((seen, events.next_ms(), events.len()), (vec!["a", "b", "c"], Some(9), 1));
    }
}
