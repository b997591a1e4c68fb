//! From the processes' pipes to their logs, by a thread of its own.
//!
//! Owns pipes and log files. A disk that hangs stops this thread, and then the
//! processes that write, but no signal to them. Never decides when it ends.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

use super::log_file::LogFile;

/// Read at most this much of one log before looking at the others.
const PUMP_BYTES: usize = 64 * 1024;
/// Rounds over what is left in the pipes. One that was passed to a process
/// outside the task could stay open.
const DRAIN_ROUNDS: u32 = 1024;

/// A pipe from a process to its log.
pub(super) struct Pipe {
    reader: File,
    log: LogFile,
}

impl Pipe {
    pub(super) fn new(reader: OwnedFd, log: LogFile) -> io::Result<Self> {
        fcntl(reader.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Pipe { reader: File::from(reader), log })
    }

    /// Moves a bit. `None` at its end, or how much it was.
    fn step(&mut self, buffer: &mut [u8]) -> Option<usize> {
        match self.reader.read(buffer) {
            Ok(0) => None,
            Ok(length) => {
                self.log.append(&buffer[..length]);
                Some(length)
            }
            Err(error) => (error.kind() == io::ErrorKind::WouldBlock).then_some(0),
        }
    }
}

/// The thread at work.
pub(super) struct Pump {
    /// Dropped when no process is left to write more.
    go_on: UnixStream,
    thread: JoinHandle<()>,
}

impl Pump {
    pub(super) fn start(pipes: Vec<Pipe>) -> io::Result<Self> {
        let (go_on, end) = UnixStream::pair()?;
        let thread =
            thread::Builder::new().stack_size(128 * 1024).spawn(move || work(pipes, &end))?;
        Ok(Pump { go_on, thread })
    }

    /// No process is left: waits until the rest is in the logs, or `limit`.
    pub(super) fn finish(self, limit: Duration) {
        let deadline = Instant::now() + limit;
        drop(self.go_on);
        while !self.thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

fn work(mut pipes: Vec<Pipe>, end: &UnixStream) {
    let mut buffer = vec![0; PUMP_BYTES];
    while !pipes.is_empty() {
        let fds = pipes.iter().map(|pipe| pipe.reader.as_fd()).chain([end.as_fd()]);
        let fds: Vec<BorrowedFd<'_>> = fds.collect();
        let mut polled: Vec<PollFd<'_>> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut polled, PollTimeout::NONE);
        let ended = polled.last().is_some_and(|end| end.any().unwrap_or(false));
        pipes.retain_mut(|pipe| pipe.step(&mut buffer).is_some());
        if ended {
            return drain(pipes, &mut buffer);
        }
    }
}

fn drain(mut pipes: Vec<Pipe>, buffer: &mut [u8]) {
    for _ in 0..DRAIN_ROUNDS {
        let mut moved = 0;
        pipes.retain_mut(|pipe| match pipe.step(buffer) {
            None => false,
            Some(length) => {
                moved += length;
                true
            }
        });
        if moved == 0 {
            return;
        }
    }
}
