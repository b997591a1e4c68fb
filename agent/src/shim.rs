//! The shim: one small process beside each task, which outlives the agent.
//!
//! Owns the task's processes from launch to the last of them gone: logs, stop,
//! node lease, exit code. Synchronous, no tokio, ready in about a millisecond.
//! It never decides that a task should end, except when the node lease runs
//! out or the task falls apart by itself; it never talks to a server.

mod cgroup;
mod children;
mod clients;
mod log_file;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::ExitCode,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
    unistd,
};

pub(crate) use cgroup::task_parent;
pub(crate) use log_file::segments;

use self::{children::Children, clients::Clients};
use crate::{
    clock,
    core::LAUNCH_FAILED,
    lease::LeaseReader,
    process,
    spec::{self, Notice, ProcessId, ShimPhase, Spec, Status, StopLine},
};

/// The node lease is looked at this often.
const LEASE_CHECK_MS: u64 = 100;
/// While processes are being killed, /proc is looked at this often.
const KILL_CHECK_MS: u64 = 5;
/// What is left of a task that falls apart by itself gets no longer than this,
/// however long its notice: its GPUs are paid for.
const FALL_APART_MS: u64 = 5000;

/// Runs the task of `task_dir` to its end. The exit code says whether the shim
/// did its work; the task's own is in `status.json`.
pub fn run(task_dir: &Path) -> ExitCode {
    match run_task(task_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE, // Nobody reads a shim's stderr: the agent sees it gone.
    }
}

fn run_task(task_dir: &Path) -> io::Result<()> {
    // A terminal that goes away must not take tasks with it. Fails only where a
    // person's shell made this the leader of a group.
    let _ = unistd::setsid();
    prctl::set_child_subreaper(true)?;
    std::env::set_current_dir(task_dir)?;
    let clients = Clients::from_stdin()?;
    unistd::dup2_stdin(File::open("/dev/null")?)?;
    let spec: Spec = spec::read(Path::new(spec::SPEC_FILE))?;
    let lease = LeaseReader::open(&spec.lease_file);
    let mut shim = Shim::new(spec, lease, clients);
    match shim.launch() {
        Ok(()) => shim.watch(),
        Err(message) => shim.finish(LAUNCH_FAILED, message),
    }
}

/// A stop in force.
struct End {
    line: StopLine,
    /// SIGTERM was sent.
    terminated: bool,
}

struct Shim {
    spec: Spec,
    lease: LeaseReader,
    clients: Clients,
    children: Children,
    end: Option<End>,
    /// Of the first process that failed.
    failure: Option<(i32, String)>,
    /// The node lease ran out or the machine shuts down: no order ends it, and it is no end of its own.
    losing: bool,
    /// It was cut off for that: nobody must count it as its failure, nor as its success.
    lost: bool,
}

impl Shim {
    fn new(spec: Spec, lease: LeaseReader, clients: Clients) -> Self {
        Shim {
            spec,
            lease,
            clients,
            children: Children::default(),
            end: None,
            failure: None,
            losing: false,
            lost: false,
        }
    }

    /// All processes, or none: if one cannot start the others are killed.
    fn launch(&mut self) -> Result<(), String> {
        if clock::boottime_ms() >= self.lease.expires_ms() {
            self.lost = true;
            return Err("the node lease had run out before the task could start".to_string());
        }
        if let Err(message) = self.children.launch(&self.spec) {
            while self.children.kill_all() {
                let _ = self.children.reap();
                std::thread::sleep(std::time::Duration::from_millis(KILL_CHECK_MS));
            }
            return Err(message);
        }
        Ok(())
    }

    fn watch(&mut self) -> io::Result<()> {
        // Blocked only now: a mask is inherited by what is launched.
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let signals =
            SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        self.publish(&self.status(ShimPhase::Running, 0, String::new()))?;
        loop {
            self.take_signals(&signals);
            if !self.reap() {
                break;
            }
            self.check_lease();
            self.advance();
            self.children.pump_logs();
            for line in self.clients.serve() {
                self.stop(line);
            }
            self.wait(&signals)?;
        }
        self.children.drain_logs();
        let (code, message) = self.failure.take().unwrap_or_default();
        self.finish(code, message)
    }

    /// Sleeps until something happens or the next deadline.
    fn wait(&self, signals: &SignalFd) -> io::Result<()> {
        let now = clock::boottime_ms();
        let next_ms = match &self.end {
            Some(end) if end.terminated && now >= end.line.kill_at_ms => now + KILL_CHECK_MS,
            Some(end) if end.terminated => end.line.kill_at_ms,
            Some(end) => end.line.term_at_ms.min(end.line.kill_at_ms),
            None => u64::MAX,
        };
        let timeout_ms = next_ms.saturating_sub(now).min(LEASE_CHECK_MS);
        let fds = [signals.as_fd()].into_iter();
        let fds: Vec<BorrowedFd<'_>> =
            fds.chain(self.clients.fds()).chain(self.children.fds()).collect();
        let mut polled: Vec<PollFd<'_>> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(timeout_ms).expect("at most 100 ms");
        match poll(&mut polled, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(signal)) = signals.read_signal() {
            if i32::try_from(signal.ssi_signo) != Ok(Signal::SIGCHLD as i32) {
                let now = clock::boottime_ms();
                self.losing = true;
                self.stop(StopLine {
                    term_at_ms: now,
                    kill_at_ms: now + self.spec.notice_ms,
                    reason: "the machine is shutting down".to_string(),
                });
            }
        }
    }

    /// Takes in what ended. False when no process of the task is left.
    fn reap(&mut self) -> bool {
        let (ended, any_left) = self.children.reap();
        for exit in ended {
            if exit.code != 0 && self.failure.is_none() {
                self.failure = Some((exit.code, exit.message(self.spec.processes.len())));
            }
            if exit.code != 0 || self.children.mains() == 0 {
                self.fall_apart();
            }
        }
        any_left
    }

    /// A process failed, or all are gone but for what they left behind: the
    /// rest ends too. Under a stop its own times hold: a wrapper that dies of
    /// SIGTERM must not cut short the checkpoint its child is writing.
    fn fall_apart(&mut self) {
        if self.end.as_ref().is_some_and(|end| end.terminated) {
            return;
        }
        let now = clock::boottime_ms();
        let line = StopLine {
            term_at_ms: now,
            kill_at_ms: now + self.spec.notice_ms.min(FALL_APART_MS),
            reason: String::new(),
        };
        self.end = Some(End { line: earlier(self.end.as_ref(), line), terminated: true });
        self.children.terminate_all();
    }

    fn check_lease(&mut self) {
        let expires_ms = self.lease.expires_ms();
        if clock::boottime_ms() >= expires_ms {
            self.losing = true;
            self.stop(StopLine {
                term_at_ms: expires_ms,
                kill_at_ms: expires_ms + self.spec.notice_ms,
                reason: "the node lease ran out".to_string(),
            });
        }
    }

    /// A stop, or an earlier time for the one in force. The notice file is
    /// there before any signal.
    fn stop(&mut self, line: StopLine) {
        let known = self.end.as_ref();
        let line = earlier(known, line);
        if known.is_some_and(|end| end.line == line) {
            return;
        }
        let notice = notice(&line);
        // A full disk must not keep the task from being ended.
        let _ = spec::write(Path::new(spec::NOTICE_FILE), &notice);
        let terminated = known.is_some_and(|end| end.terminated);
        self.end = Some(End { line, terminated });
    }

    /// SIGTERM and SIGKILL when they are due.
    fn advance(&mut self) {
        let now = clock::boottime_ms();
        let Some(end) = &mut self.end else { return };
        let killing = now >= end.line.kill_at_ms;
        if !end.terminated && (killing || now >= end.line.term_at_ms) {
            end.terminated = true;
            self.lost |= self.losing && self.failure.is_none();
            self.children.terminate_group();
        }
        if killing {
            self.children.kill_all();
        }
    }

    fn status(&self, phase: ShimPhase, exit_code: i32, message: String) -> Status {
        let own = i32::try_from(std::process::id()).expect("pids fit");
        let shim: ProcessId = process::identify(own);
        let processes = self.children.launched().to_vec();
        Status { phase, shim, processes, exit_code, message, lost: self.lost }
    }

    /// The file first: whoever hears of it on the socket may read it.
    fn publish(&mut self, status: &Status) -> io::Result<()> {
        let written = spec::write(Path::new(spec::STATUS_FILE), status);
        self.clients.push(status);
        written
    }

    /// No process of the task lives: say so, and go.
    fn finish(&mut self, code: i32, message: String) -> io::Result<()> {
        self.children.remove_cgroup();
        let reason = self.end.as_ref().map_or("", |end| end.line.reason.as_str());
        let message = match (message.is_empty(), reason.is_empty()) {
            (true, _) => reason.to_string(),
            (false, true) => message,
            (false, false) => format!("{message}: {reason}"),
        };
        let status = self.status(ShimPhase::Exited, code, message);
        // Who connected meanwhile hears it too.
        let _ = self.clients.serve();
        self.publish(&status)
    }
}

fn earlier(known: Option<&End>, line: StopLine) -> StopLine {
    let Some(End { line: known, .. }) = known else { return line };
    let newer = line.kill_at_ms < known.kill_at_ms && !line.reason.is_empty();
    let reason = if newer { line.reason } else { known.reason.clone() };
    StopLine {
        term_at_ms: known.term_at_ms.min(line.term_at_ms),
        kill_at_ms: known.kill_at_ms.min(line.kill_at_ms),
        reason,
    }
}

fn notice(line: &StopLine) -> Notice {
    let (now, unix) = (clock::boottime_ms(), clock::unix_ms());
    Notice {
        action: "stop".to_string(),
        not_before_unix_ms: unix + line.term_at_ms.saturating_sub(now),
        deadline_unix_ms: unix + line.kill_at_ms.saturating_sub(now),
        reason: line.reason.clone(),
    }
}
