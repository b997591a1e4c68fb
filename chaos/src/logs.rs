//! What tasks write, how agents hand it on, and clients that read it while it is written.
//!
//! Owns the lines (each says whose it is and which) and what of them was read: in order, none left
//! out, and where a log breaks off it says so. The files of a machine and how they are cut into
//! chunks are beneath this world.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use rowen_api::v1::{self, job_service_server::JobService as _};
use rowen_server::Shell;
use rowen_state::{JobId, Owner};
use tonic::Status;

use crate::{
    inbox::Arrived,
    invariant::Invariant,
    message::{Event, ReplicaAt, ToLeader},
    net::Host,
    rng::Rng,
    world::World,
};

/// A task writes a line this often.
const LINE_MS: u64 = 400;
/// Lines of one chunk.
const CHUNK_LINES: u64 = 30;
/// Attempts whose log somebody reads, of a hundred that run.
const READ_PERCENT: u64 = 50;
/// How often a log that broke off is read again.
const TRIES: u32 = 6;

/// Worker `rank` of attempt `attempt` of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Writer {
    pub(crate) job: JobId,
    pub(crate) attempt: u32,
    pub(crate) rank: u32,
}

impl Writer {
    fn line(self, number: u64) -> String {
        format!("{}.{}.{} line {number}", self.job, self.attempt, self.rank)
    }
}

/// The logs on a machine's disk, and those that its agent is reading.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    written: BTreeMap<Writer, Written>,
    reads: BTreeMap<u64, Reading>,
}

/// When its writer began, and ended.
#[derive(Clone, Copy, Debug)]
struct Written {
    from_ms: u64,
    until_ms: Option<u64>,
}

#[derive(Debug)]
struct Reading {
    writer: Writer,
    follow: bool,
    next: u64,
}

impl Written {
    fn lines(&self, now_ms: u64) -> u64 {
        (self.until_ms.unwrap_or(now_ms) - self.from_ms) / LINE_MS + 1
    }
}

impl Logs {
    /// A task begins to write.
    pub(crate) fn begin(&mut self, writer: Writer, now_ms: u64) {
        self.written.insert(writer, Written { from_ms: now_ms, until_ms: None });
    }

    /// It writes no more.
    pub(crate) fn end(&mut self, writer: Writer, now_ms: u64) {
        if let Some(written) = self.written.get_mut(&writer) {
            written.until_ms.get_or_insert(now_ms);
        }
    }

    /// The agent is asked for a log.
    pub(crate) fn read(&mut self, read: u64, writer: Writer, follow: bool) {
        self.reads.insert(read, Reading { writer, follow, next: 0 });
    }

    /// Nobody wants it any more.
    pub(crate) fn stop(&mut self, read: u64) {
        self.reads.remove(&read);
    }

    /// The stream that asked for them is gone.
    pub(crate) fn hang_up(&mut self) {
        self.reads.clear();
    }

    /// What is new in the logs that are being read.
    pub(crate) fn chunks(&mut self, now_ms: u64) -> Vec<ToLeader> {
        let mut chunks = Vec::new();
        let Logs { written, reads } = self;
        reads.retain(|read, reading| {
            let read = *read;
            let Some(written) = written.get(&reading.writer) else {
                let error = "no such task on this node".to_owned();
                chunks.push(ToLeader::Log { read, data: String::new(), end: true, error });
                return false;
            };
            let lines = written.lines(now_ms);
            while reading.next < lines {
                let upto = lines.min(reading.next + CHUNK_LINES);
                let data = (reading.next..upto).map(|number| reading.writer.line(number) + "\n");
                let data = data.collect();
                chunks.push(ToLeader::Log { read, data, end: false, error: String::new() });
                reading.next = upto;
            }
            let over = written.until_ms.is_some() || !reading.follow;
            if over {
                let (data, error) = (String::new(), String::new());
                chunks.push(ToLeader::Log { read, data, end: true, error });
            }
            !over
        });
        chunks
    }

    /// How many lines a writer that has ended left here.
    fn left(&self, writer: Writer) -> Option<u64> {
        let written = self.written.get(&writer)?;
        written.until_ms.map(|until_ms| written.lines(until_ms))
    }
}

/// All clients that read logs.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    list: Vec<Reader>,
    streams: u64,
    closed: bool,
}

impl Readers {
    /// Nothing is read any more: after a restore other attempts have the same numbers.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.list.iter_mut().for_each(|reader| (reader.open, reader.tries) = (None, TRIES));
    }
}

#[derive(Debug)]
struct Reader {
    job: JobId,
    attempt: u32,
    /// Of this attempt, which may have fewer than the job asks for.
    workers: u32,
    tries: u32,
    leader: Option<ReplicaAt>,
    open: Option<Open>,
}

/// A log being read.
#[derive(Debug)]
struct Open {
    stream: u64,
    replica: ReplicaAt,
    /// The job had not ended: what is written meanwhile belongs to it too.
    follows: bool,
    ranks: BTreeMap<u32, Progress>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    next: u64,
    broke: bool,
}

impl World {
    /// An attempt runs, and somebody may read what it says.
    pub(crate) fn may_read_log(&mut self, job: JobId, attempt: u32) {
        let read = Rng::new(job.0.rotate_left(32) ^ u64::from(attempt)).chance(READ_PERCENT);
        let mut readers = self.readers.list.iter();
        if read
            && !self.readers.closed
            && !readers.any(|reader| (reader.job, reader.attempt) == (job, attempt))
        {
            let cluster = self.control.core.cluster();
            let own = cluster.jobs().get(job).and_then(|job| job.allocation);
            let own = own.and_then(|id| cluster.allocations().get(id));
            let own = own.filter(|own| own.owner == Owner::Gang { job, attempt });
            let Some(workers) = own.map(|own| own.tasks.len() as u32) else { return };
            let reader = Reader { job, attempt, workers, tries: 0, leader: None, open: None };
            self.readers.list.push(reader);
            self.context.later(10, Event::ReadLog { reader: self.readers.list.len() - 1 });
        }
    }

    /// Opens the stream, where the leader is thought to be.
    pub(crate) fn read_log(&mut self, reader: usize) {
        let active = self.group.active();
        let drawn = self.context.rng.pick(&active).expect("a group is never empty");
        let known = &mut self.readers.list[reader];
        if known.open.is_some() || known.tries == TRIES {
            return;
        }
        known.tries += 1;
        let replica = known.leader.take().unwrap_or(drawn);
        let seat = &self.group.seats[replica];
        let reached = self.group.net().is_open(Host::Client, Host::Replica(seat.id));
        let (Some(shell), Some(process), true) = (&seat.shell, &seat.process, reached) else {
            return self.read_again(reader);
        };
        self.readers.streams += 1;
        let stream = self.readers.streams;
        let (job, attempt) = (known.job, known.attempt);
        let row = self.control.core.cluster().jobs().get(job);
        let follows = row.is_some_and(|row| !row.state.ended());
        known.open = Some(Open { stream, replica, follows, ranks: BTreeMap::new() });
        let id = job.to_string();
        let request = v1::ReadLogsRequest { id, attempt, follow: true, ..Default::default() };
        let (jobs, inbox) = (shell.jobs(), self.inbox.clone());
        process.spawn(async move {
            let say = |line| inbox.push(Arrived::LogLine { reader, stream, line });
            let mut lines = match jobs.read_logs(Shell::authorized(request)).await {
                Ok(answer) => Box::pin(answer.into_inner()),
                Err(status) => return say(Some(Err(status))),
            };
            drop(jobs);
            while let Some(line) = lines.next().await {
                say(Some(line));
            }
            say(None);
        });
    }

    fn read_again(&mut self, reader: usize) {
        self.readers.list[reader].open = None;
        let in_ms = self.context.rng.between(200, 4_000);
        self.context.later(in_ms, Event::ReadLog { reader });
    }

    /// A replica hands a line to a reader; none: that was all.
    pub(crate) fn log_line(
        &mut self,
        reader: usize,
        stream: u64,
        line: Option<Result<v1::LogLine, Status>>,
    ) {
        let known = &mut self.readers.list[reader];
        let Reader { job, attempt, .. } = *known;
        let Some(open) = known.open.as_mut().filter(|open| open.stream == stream) else { return };
        let ranks = &mut open.ranks;
        match line {
            Some(Ok(line)) if line.stream == "rowen" => {
                ranks.entry(line.rank).or_default().broke = true;
            }
            Some(Ok(line)) => {
                let progress = ranks.entry(line.rank).or_default();
                let expected = Writer { job, attempt, rank: line.rank }.line(progress.next);
                progress.next += 1;
                let text = String::from_utf8_lossy(&line.text);
                let wrong = progress.broke || text != expected;
                let found =
                    wrong.then(|| format!("the log goes on with {text:?}, not {expected:?}"));
                self.context.check(Invariant::StreamsOrdered, found);
            }
            Some(Err(status)) => {
                let leader = status.metadata().get("rowen-leader");
                let leader = leader.and_then(|addr| addr.to_str().ok());
                known.leader = leader.and_then(|addr| self.group.at_addr(addr));
                self.read_again(reader);
            }
            None => self.log_ended(reader),
        }
    }

    /// What did not break off must be whole.
    fn log_ended(&mut self, reader: usize) {
        let known = &mut self.readers.list[reader];
        let Reader { job, attempt, workers, .. } = *known;
        let Some(Open { follows, ranks, .. }) = known.open.take() else { return };
        let cluster = self.control.core.cluster();
        let Some(row) = cluster.jobs().get(job) else { return };
        // Of an attempt that is over the state knows only as many workers as the newest one has.
        let now = row.allocation.and_then(|id| cluster.allocations().get(id));
        let known = now.map_or(row.last_tasks.len(), |now| now.tasks.len());
        let (workers, mut broke) = (workers.min(known as u32), false);
        for rank in 0..workers {
            let writer = Writer { job, attempt, rank };
            let Progress { next, broke: this } = ranks.get(&rank).copied().unwrap_or_default();
            broke |= this;
            let left = self.machines.iter().find_map(|machine| machine.logs.left(writer));
            // Of a job that had ended already, what there is so far is all.
            let whole = match left {
                Some(lines) => next == lines || (!follows && next < lines),
                None => !follows,
            };
            let whole = this || whole;
            let found = (!whole)
                .then(|| format!("the log of {writer:?} ended at {next} of {left:?} lines"));
            self.context.check(Invariant::StreamsOrdered, found);
        }
        match broke {
            true => self.read_again(reader),
            false => self.readers.list[reader].tries = TRIES,
        }
    }

    /// A replica's process is gone: so are its streams.
    pub(crate) fn readers_end(&mut self, replica: ReplicaAt) {
        for reader in 0..self.readers.list.len() {
            let open = self.readers.list[reader].open.as_ref();
            if open.is_some_and(|open| open.replica == replica) {
                self.read_again(reader);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_handed_on_as_it_grows_and_ends_with_its_writer() {
        let writer = Writer { job: JobId(7), attempt: 2, rank: 1 };
        let mut logs = Logs::default();
        logs.begin(writer, 1_000);
        logs.read(5, writer, true);
        let lines = |chunks: &[ToLeader]| -> (usize, bool) {
            let all = chunks.iter().map(|chunk| match chunk {
                ToLeader::Log { data, end, .. } => (data.lines().count(), *end),
                other => panic!("{other:?}"),
            });
            all.fold((0, false), |(lines, end), (more, ended)| (lines + more, end | ended))
        };
        assert_eq!(lines(&logs.chunks(1_000)), (1, false));
        assert_eq!(lines(&logs.chunks(1_000 + 50 * LINE_MS)), (50, false));
        logs.end(writer, 1_000 + 51 * LINE_MS);
        assert_eq!(lines(&logs.chunks(90_000)), (1, true));
        assert_eq!(lines(&logs.chunks(90_000)), (0, false), "nobody reads any more");
        assert_eq!(logs.left(writer), Some(52));
        logs.read(6, Writer { rank: 9, ..writer }, true);
        assert_eq!(lines(&logs.chunks(90_000)), (0, true), "there is no such task");
    }
}
