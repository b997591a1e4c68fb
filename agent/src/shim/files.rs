//! Notice and status, written by a thread of its own.
//!
//! Owns the order of these files: one after another, as asked. A disk that
//! hangs or is full stops this thread and no signal. Never decides what they say.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use crate::spec::{self, Notice, ShimPhase, Status};

/// Orders that wait. Each is a change of the task's end: few in a life.
const ORDERS_MAX: usize = 16;
/// How a task ended is tried so often, one second apart: a full disk may get room.
const END_TRIES: u32 = 60;

/// What can be written.
pub(super) enum File {
    Notice(Notice),
    Status(Status),
}

/// The asking end.
pub(super) struct Files {
    orders: SyncSender<File>,
    asked: u64,
    done: Arc<AtomicU64>,
    woken: UnixStream,
}

/// Names an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

impl Files {
    /// Writes into the current folder.
    pub(super) fn start() -> io::Result<Self> {
        let (orders, taken) = sync_channel(ORDERS_MAX);
        let (woken, wake) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        wake.set_nonblocking(true)?;
        let done = Arc::new(AtomicU64::new(0));
        let counter = done.clone();
        thread::Builder::new()
            .stack_size(128 * 1024)
            .spawn(move || work(&taken, &counter, &wake))?;
        Ok(Files { orders, asked: 0, done, woken })
    }

    /// Asks for a file. `None` when too much waits already: the disk hangs.
    pub(super) fn write(&mut self, file: File) -> Option<Ticket> {
        self.orders.try_send(file).ok()?;
        self.asked += 1;
        Some(Ticket(self.asked))
    }

    /// Whether it was written, or given up.
    pub(super) fn is_done(&self, ticket: Ticket) -> bool {
        self.done.load(Ordering::Acquire) >= ticket.0
    }

    /// To wait on.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.woken.as_fd()
    }

    /// After waiting.
    pub(super) fn clear(&mut self) {
        let mut bytes = [0; ORDERS_MAX];
        let _ = self.woken.read(&mut bytes);
    }
}

fn work(orders: &Receiver<File>, done: &AtomicU64, mut wake: &UnixStream) {
    for file in orders {
        match file {
            File::Notice(notice) => {
                let _ = spec::write(Path::new(spec::NOTICE_FILE), &notice);
            }
            File::Status(status) => write_status(&status),
        }
        done.fetch_add(1, Ordering::Release);
        let _ = wake.write(&[0]);
    }
}

fn write_status(status: &Status) {
    let tries = if status.phase == ShimPhase::Exited { END_TRIES } else { 1 };
    for _ in 0..tries {
        if spec::write(Path::new(spec::STATUS_FILE), status).is_ok() {
            return;
        }
        thread::sleep(Duration::from_secs(1));
    }
}
