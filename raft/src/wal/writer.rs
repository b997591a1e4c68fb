//! The one writer of the log: takes a job, drains the rest, one `pwrite`, one `fdatasync`, moves
//! the synced mark, then tells everybody. After any failure it refuses all further writes for
//! good: a repeated sync may succeed without having written anything.

use std::{path::PathBuf, sync::Arc};

use rowen_planted::{Bug, planted};
use tokio::sync::mpsc;

use super::{
    Shared, WalError,
    history::History,
    record::{self, Kind},
    recover::{self, Recovered, SEGMENT_HEAD_BYTES},
    state::{Location, Segment},
    synced::SyncedMark,
};
use crate::{
    codec::{self, SCHEMA},
    disk::DiskFile,
    types::{Entry, LogId, Vote},
};

/// Told once the job is on disk, or that it never will be.
pub(crate) type Done = Box<dyn FnOnce(Result<(), WalError>) + Send>;

/// What the writer is asked to make durable.
pub(crate) struct Job {
    pub(crate) change: Change,
    pub(crate) done: Option<Done>,
}

pub(crate) enum Change {
    /// Each with the ticket of its slot.
    Entries(Vec<(u64, Entry)>),
    Vote(Vote),
    /// Everything from this index on is gone.
    Truncate(u64),
    Purge {
        upto: LogId,
        keep_from: u64,
    },
    /// To be told when all before it is done.
    Nothing,
    Close,
}

/// A batch is closed once it holds this much; the jobs after it wait for the next sync.
const BATCH_BYTES: usize = 8 << 20;
/// Segments are filled with zeros this far ahead, so that most syncs need not write a new length
/// and none has to fill a whole segment.
const FILL_BYTES: u64 = 1 << 20;
/// Part of the binary: a buffer made anew each time costs a page fault for each of its pages.
static ZEROS: [u8; FILL_BYTES as usize] = [0; FILL_BYTES as usize];
/// A larger buffer is not kept for the next batch.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

/// Where the last segment ends.
pub(crate) struct Tail {
    pub(crate) segment: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
    pub(crate) end: u64,
    /// How far the file exists, zeros included.
    pub(crate) filled: u64,
}

pub(crate) struct Writer {
    shared: Arc<Shared>,
    tail: Option<Tail>,
    mark: SyncedMark,
    history: History,
    next_batch: u64,
    /// The buffers of the last batch, for the next: its records, and what was written.
    buffers: [Vec<u8>; 2],
    /// As of the last batch: written again at each segment's head, so that the segments before
    /// it can go.
    vote: Option<Vote>,
    purged: Option<LogId>,
    committed: Option<LogId>,
    failed: Option<WalError>,
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, recovered: Recovered, history: History) -> Writer {
        let Recovered { content, tail, mark, next_batch } = recovered;
        let (vote, purged, committed) = (content.vote, content.purged, content.committed);
        *shared.content() = content;
        let (buffers, failed) = (Default::default(), None);
        Writer { shared, tail, mark, history, next_batch, buffers, vote, purged, committed, failed }
    }

    /// Serves jobs on a thread of its own until the last handle is gone.
    pub(crate) fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            if self.serve(job, &mut jobs) {
                return;
            }
        }
    }

    /// The same as a task, for a simulated disk.
    pub(crate) async fn run_task(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        while let Some(job) = jobs.recv().await {
            // The disk takes its time, and what came meanwhile shares the sync.
            let delay = self.shared.disk.simulated_delay();
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
            if self.serve(job, &mut jobs) {
                return;
            }
        }
    }

    /// Writes one batch. True when the log is closed.
    fn serve(&mut self, first: Job, jobs: &mut mpsc::UnboundedReceiver<Job>) -> bool {
        let records = std::mem::take(&mut self.buffers[0]);
        let mut batch = Batch { records, ..Batch::default() };
        let mut next = Some(first);
        while let Some(job) = next {
            batch.add(job);
            next = if batch.is_full() { None } else { jobs.try_recv().ok() };
        }
        let result = match &self.failed {
            Some(failed) => Err(failed.clone()),
            None => self.write(&mut batch),
        };
        if let Err(error) = &result {
            self.fail(error);
        }
        self.buffers[0] = emptied(batch.records);
        let closed = batch.closed;
        for done in batch.done {
            done(result.clone());
        }
        closed
    }

    fn fail(&mut self, error: &WalError) {
        if self.failed.is_none() {
            tracing::error!(%error, "the log cannot be written any more; this replica must stop");
            self.failed = Some(error.clone());
            self.shared.fail(error);
        }
    }

    fn write(&mut self, batch: &mut Batch) -> Result<(), WalError> {
        // Saved with whatever is written next: losing the newest is harmless, a sync for it is not.
        let committed = self.shared.content().committed;
        if committed != self.committed {
            batch.add_committed(committed);
        }
        if !batch.records.is_empty() {
            self.write_records(batch)?;
        }
        if let Some(vote) = batch.vote {
            // Once more, in a batch of its own, before anybody is told: only the last batch can be
            // uncertain after a power cut, so no promise ever is (`recovering` stands on that).
            let mut again = Batch::default();
            again.add(Job { change: Change::Vote(vote), done: None });
            self.write_records(&mut again)?;
        }
        if batch.closed {
            self.mark.sync()?;
        }
        Ok(())
    }

    fn write_records(&mut self, batch: &mut Batch) -> Result<(), WalError> {
        if self.must_roll(batch.records.len() as u64) {
            self.roll()?;
        }
        // Not only right after rolling: an earlier life may have died between the two.
        let is_first = self.tail.as_ref().is_some_and(|tail| tail.end == SEGMENT_HEAD_BYTES);
        let head = if is_first { self.head_records() } else { Vec::new() };
        let mut bytes = std::mem::take(&mut self.buffers[1]);
        bytes.reserve(64 + head.len() + batch.records.len());
        let length = u32::try_from(head.len() + batch.records.len()).expect("batches are bounded");
        record::push(&mut bytes, Kind::Batch, SCHEMA, self.next_batch, &length.to_le_bytes());
        bytes.extend_from_slice(&head);
        let records_at = bytes.len() as u64;
        bytes.append(&mut batch.records);

        let tail = self.tail.as_mut().expect("rolled above where there was none");
        let start = tail.end;
        let end = start + bytes.len() as u64;
        fill_ahead(tail, end, self.shared.options.segment_bytes)?;
        tail.file.write_at(&bytes, start).map_err(WalError::io("write", &tail.path))?;
        let skipped =
            planted(Bug::AckBeforeSync) || (planted(Bug::VoteNotSynced) && batch.vote.is_some());
        if !skipped {
            tail.file.sync_data().map_err(WalError::io("sync", &tail.path))?;
        }
        self.shared.count_sync();
        tail.end = end;
        self.mark.advance(tail.segment, end)?;
        self.next_batch += 1;
        self.buffers[1] = emptied(bytes);
        let segment = tail.segment;
        self.publish(batch, segment, start + records_at)
    }

    /// Tells the readers where the entries lie, and lets go of what nobody needs.
    fn publish(&mut self, batch: &Batch, segment: u64, start: u64) -> Result<(), WalError> {
        self.vote = batch.vote.or(self.vote);
        self.purged = batch.purged.or(self.purged);
        self.committed = batch.committed.or(self.committed);
        let dead = {
            let mut content = self.shared.content();
            for placed in &batch.placed {
                let at = Location { segment, offset: start + placed.offset, len: placed.len };
                content.place(placed.index, placed.ticket, at);
            }
            let held = content.segments.get_mut(&segment).expect("the tail is never dead");
            held.max_index = held.max_index.max(batch.placed.iter().map(|p| p.index).max());
            content.shrink_cache(self.shared.options.cache_bytes);
            if batch.purged.is_some() {
                content.take_dead_segments(self.purged)
            } else {
                Vec::new()
            }
        };
        if batch.purged.is_some() { self.retire(dead, batch.keep_from) } else { Ok(()) }
    }

    fn retire(&mut self, dead: Vec<(u64, Segment)>, keep_from: u64) -> Result<(), WalError> {
        let disk = &*self.shared.disk;
        for (number, Segment { file, max_index }) in dead {
            tracing::debug!(segment = number, max_index, "no longer needed by the log");
            let bytes = file.len().map_err(WalError::io("stat", &self.shared.options.dir))?;
            self.history.retire(disk, number, max_index, bytes, keep_from)?;
        }
        self.history.trim(disk, keep_from)
    }

    fn must_roll(&self, bytes: u64) -> bool {
        self.tail.as_ref().is_none_or(|tail| {
            tail.end > SEGMENT_HEAD_BYTES && tail.end + bytes > self.shared.options.segment_bytes
        })
    }

    /// Starts the next segment. What is in the one before is synced.
    fn roll(&mut self) -> Result<(), WalError> {
        let segment = self.tail.as_ref().map_or(1, |tail| tail.segment + 1);
        let dir = &self.shared.options.dir;
        let path = dir.join(recover::segment_name(segment));
        let disk = &self.shared.disk;
        let file = disk.create(&path).map_err(WalError::io("create", &path))?;
        let head = recover::segment_head(segment, self.next_batch);
        let end = head.len() as u64;
        let mut tail = Tail { segment, path, file, end, filled: 0 };
        fill_ahead(&mut tail, end, self.shared.options.segment_bytes)?;
        tail.file.write_at(&head, 0).map_err(WalError::io("write", &tail.path))?;
        tail.file.sync_data().map_err(WalError::io("sync", &tail.path))?;
        disk.sync_dir(dir).map_err(WalError::io("sync", dir))?;
        let held = Segment { file: Arc::clone(&tail.file), max_index: None };
        self.shared.content().segments.insert(segment, held);
        self.tail = Some(tail);
        Ok(())
    }

    fn head_records(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(vote) = &self.vote {
            record::push(&mut out, Kind::Vote, SCHEMA, 0, &codec::write_vote(vote));
        }
        for (kind, id) in [(Kind::Purge, self.purged), (Kind::Committed, self.committed)] {
            if let Some(id) = id {
                record::push(&mut out, kind, SCHEMA, id.index(), &codec::write_log_id(&id));
            }
        }
        out
    }
}

fn emptied(mut buffer: Vec<u8>) -> Vec<u8> {
    buffer.clear();
    buffer.shrink_to(KEPT_BUFFER_BYTES);
    buffer
}

fn fill_ahead(tail: &mut Tail, end: u64, segment_bytes: u64) -> Result<(), WalError> {
    if end > tail.filled {
        let target = end.next_multiple_of(FILL_BYTES.min(segment_bytes));
        while tail.filled < target {
            let zeros = &ZEROS[..(target - tail.filled).min(FILL_BYTES) as usize];
            tail.file.write_at(zeros, tail.filled).map_err(WalError::io("write", &tail.path))?;
            tail.filled += zeros.len() as u64;
        }
    }
    Ok(())
}

/// Where an entry lies within its batch's records.
struct Placed {
    index: u64,
    ticket: u64,
    offset: u64,
    len: u32,
}

/// The jobs that share one sync.
#[derive(Default)]
struct Batch {
    records: Vec<u8>,
    placed: Vec<Placed>,
    done: Vec<Done>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    keep_from: u64,
    committed: Option<LogId>,
    closed: bool,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.closed || self.records.len() >= BATCH_BYTES
    }

    fn add(&mut self, job: Job) {
        let out = &mut self.records;
        match job.change {
            Change::Entries(entries) => {
                for (ticket, entry) in entries {
                    let (index, offset) = (entry.log_id.index(), out.len() as u64);
                    record::push(out, Kind::Entry, SCHEMA, index, &codec::write_entry(&entry));
                    let len = (out.len() as u64 - offset) as u32;
                    self.placed.push(Placed { index, ticket, offset, len });
                }
            }
            Change::Vote(vote) => {
                record::push(out, Kind::Vote, SCHEMA, 0, &codec::write_vote(&vote));
                self.vote = Some(vote);
            }
            Change::Truncate(from) => record::push(out, Kind::Truncate, SCHEMA, from, &[]),
            Change::Purge { upto, keep_from } => {
                let body = codec::write_log_id(&upto);
                record::push(out, Kind::Purge, SCHEMA, upto.index(), &body);
                (self.purged, self.keep_from) = (Some(upto), keep_from);
            }
            Change::Nothing => {}
            Change::Close => self.closed = true,
        }
        self.done.extend(job.done);
    }

    fn add_committed(&mut self, committed: Option<LogId>) {
        let Some(id) = committed else { return };
        let body = codec::write_log_id(&id);
        record::push(&mut self.records, Kind::Committed, SCHEMA, id.index(), &body);
        self.committed = Some(id);
    }
}
