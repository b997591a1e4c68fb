//! What the log holds, in memory: where each entry lies, the newest entries themselves, the vote,
//! how far it is purged and committed. Changed the moment an operation is accepted, which is
//! before it is on disk; the writer fills in the locations afterwards. No IO.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{
    disk::DiskFile,
    types::{Entry, LogId, Vote},
};

/// Where an entry's record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

/// One entry of the log.
pub(crate) struct Slot {
    pub(crate) id: LogId,
    /// Tells two entries apart that stood at the same index one after the other.
    pub(crate) ticket: u64,
    /// None until the entry is on disk.
    pub(crate) at: Option<Location>,
    /// None once it left the cache.
    pub(crate) entry: Option<Entry>,
    weight: usize,
}

/// A segment that is on disk.
pub(crate) struct Segment {
    pub(crate) file: Arc<dyn DiskFile>,
    /// The greatest entry index that was ever written into it.
    pub(crate) max_index: Option<u64>,
}

/// The log as it will be once all accepted operations are on disk.
#[derive(Default)]
pub(crate) struct LogContent {
    pub(crate) vote: Option<Vote>,
    pub(crate) purged: Option<LogId>,
    pub(crate) committed: Option<LogId>,
    slots: VecDeque<Slot>,
    next_ticket: u64,
    /// How many slots at the front left the cache.
    uncached: usize,
    cached_bytes: usize,
    pub(crate) segments: BTreeMap<u64, Segment>,
}

impl LogContent {
    pub(crate) fn first_index(&self) -> Option<u64> {
        self.slots.front().map(|slot| slot.id.index())
    }

    /// The last entry, or the purge point where there is none.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.slots.back().map(|slot| slot.id).or(self.purged)
    }

    /// The index that the next entry must have; None where any will do.
    pub(crate) fn next_index(&self) -> Option<u64> {
        self.last().map(|id| id.index() + 1)
    }

    /// Adds an entry and gives it a ticket. The caller has checked the index.
    pub(crate) fn push(&mut self, entry: Entry) -> u64 {
        let weight = entry_weight(&entry);
        self.next_ticket += 1;
        self.cached_bytes += weight;
        let id = entry.log_id;
        let ticket = self.next_ticket;
        self.slots.push_back(Slot { id, ticket, at: None, entry: Some(entry), weight });
        ticket
    }

    /// Adds an entry that was read back from disk, uncached.
    pub(crate) fn push_recovered(&mut self, id: LogId, at: Location) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.slots.push_back(Slot { id, ticket, at: Some(at), entry: None, weight: 0 });
        self.uncached = self.slots.len();
    }

    /// Notes where an entry lies, unless it was truncated or purged meanwhile.
    pub(crate) fn place(&mut self, index: u64, ticket: u64, at: Location) {
        let Some(slot) = self.position(index).and_then(|i| self.slots.get_mut(i)) else { return };
        if slot.ticket == ticket {
            slot.at = Some(at);
        }
    }

    /// Drops the entries from `index` on.
    pub(crate) fn truncate_from(&mut self, index: u64) {
        while self.slots.back().is_some_and(|slot| slot.id.index() >= index) {
            let slot = self.slots.pop_back().expect("looked at above");
            self.cached_bytes -= slot.weight;
        }
        self.uncached = self.uncached.min(self.slots.len());
    }

    /// Drops the entries up to and with `upto`.
    pub(crate) fn purge(&mut self, upto: LogId) {
        if self.purged >= Some(upto) {
            return;
        }
        self.purged = Some(upto);
        while self.slots.front().is_some_and(|slot| slot.id.index() <= upto.index()) {
            let slot = self.slots.pop_front().expect("looked at above");
            self.cached_bytes -= slot.weight;
            self.uncached = self.uncached.saturating_sub(1);
        }
    }

    /// Lets the oldest cached entries go until the cache is small enough. Entries that are not on
    /// disk stay, whatever they weigh: nobody could read them otherwise.
    pub(crate) fn shrink_cache(&mut self, max_bytes: usize) {
        while self.cached_bytes > max_bytes {
            let Some(slot) = self.slots.get_mut(self.uncached) else { break };
            if slot.at.is_none() {
                break;
            }
            slot.entry = None;
            self.cached_bytes -= std::mem::take(&mut slot.weight);
            self.uncached += 1;
        }
    }

    /// The slots from `start` up to and without `end`, as far as the log has them.
    pub(crate) fn range(&self, start: u64, end: u64) -> impl Iterator<Item = &Slot> {
        let first = self.first_index().unwrap_or(0);
        let from = start.saturating_sub(first).min(self.slots.len() as u64) as usize;
        let to = end.saturating_sub(first).min(self.slots.len() as u64) as usize;
        self.slots.range(from..to.max(from))
    }

    #[cfg(test)]
    pub(crate) fn cached_bytes(&self) -> usize {
        self.cached_bytes
    }

    /// The segments that hold nothing anybody needs: oldest first, never the last one. Whole
    /// prefixes only, so that a truncation outlives the entries that it removed. `purged` is what is
    /// on disk; ours may be ahead of it.
    pub(crate) fn take_dead_segments(&mut self, purged: Option<LogId>) -> Vec<(u64, Segment)> {
        let mut dead = Vec::new();
        let purged = purged.map(|id| id.index());
        while self.segments.len() > 1 {
            let oldest = self.segments.first_entry().expect("more than one");
            if oldest.get().max_index > purged {
                break;
            }
            dead.push(oldest.remove_entry());
        }
        dead
    }

    fn position(&self, index: u64) -> Option<usize> {
        index.checked_sub(self.first_index()?).map(|position| position as usize)
    }
}

/// About what an entry takes in memory.
fn entry_weight(entry: &Entry) -> usize {
    let body = match &entry.payload {
        openraft::EntryPayload::Normal(bytes) => bytes.0.len(),
        openraft::EntryPayload::Blank => 0,
        openraft::EntryPayload::Membership(membership) => 64 * membership.nodes().count(),
    };
    body + 96
}
