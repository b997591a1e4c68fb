//! The shim: one small process beside each task, which outlives the agent.
//!
//! Owns the task's processes from launch to the last of them gone: logs, stop,
//! node lease, exit code. Synchronous, no tokio, ready in about a millisecond.
//! It never decides that a task should end, except when the node lease runs
//! out or the task falls apart by itself; it never talks to a server. Once a
//! process of the task lives, its loop waits for no disk: `files` and `pump`
//! do, and the `guard` ends what the shim no longer can.

mod cgroup;
mod children;
mod clients;
mod files;
mod guard;
mod log_file;
mod pump;

use std::{
    fs, io,
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

use self::{
    children::Children,
    clients::Clients,
    files::{File, Files, Ticket},
    guard::Side,
};
use crate::{
    clock,
    core::LAUNCH_FAILED,
    lease::{LeaseReader, LeaseWatch},
    process,
    spec::{self, Notice, ProcessId, ShimPhase, Spec, Status, StopLine},
};

/// The clock is looked at this often, at least.
const LOOK_MS: u64 = 100;
/// SIGTERM waits so long for the notice to be on a disk that hangs. SIGKILL does not.
const NOTICE_WAIT_MS: u64 = 200;
/// Whoever listens is told so long before a disk that hangs has the status.
const STATUS_WAIT_MS: u64 = 1000;
/// While processes are being killed, /proc is looked at this often.
const KILL_CHECK_MS: u64 = 5;
/// What is left of a task that falls apart by itself gets no longer than this,
/// however long its notice: its GPUs are paid for.
const FALL_APART_MS: u64 = 5000;

/// Runs the task of `task_dir` to its end. The exit code says whether the shim
/// did its work; the task's own is in `status.json`.
pub fn run(task_dir: &Path) -> ExitCode {
    // Nobody reads a shim's stderr: the agent sees it gone.
    run_task(task_dir).unwrap_or(ExitCode::FAILURE)
}

fn run_task(task_dir: &Path) -> io::Result<ExitCode> {
    // A terminal that goes away must not take tasks with it. Fails only where a
    // person's shell made this the leader of a group.
    let _ = unistd::setsid();
    std::env::set_current_dir(task_dir)?;
    let spec: Spec = spec::read(Path::new(spec::SPEC_FILE))?;
    // Read here, where nothing lives yet that a disk that hangs could keep alive.
    let mut lease = LeaseReader::open(&spec.lease_file);
    lease.expires_ms();
    match guard::split(lease, spec.notice_ms)? {
        Side::Guard(code) => Ok(code),
        Side::Shim(guard, lease) => run_shim(spec, guard, lease).map(|()| ExitCode::SUCCESS),
    }
}

fn run_shim(spec: Spec, guard: ProcessId, mut lease: LeaseReader) -> io::Result<()> {
    let _ = unistd::setsid();
    prctl::set_child_subreaper(true)?;
    let clients = Clients::from_stdin()?;
    unistd::dup2_stdin(fs::File::open("/dev/null")?)?;
    let held = clock::boottime_ms() < lease.expires_ms();
    let signals = take_over_signals()?;
    let mut children = Children::default();
    let lost = !held;
    let launched = match held {
        true => launch(&mut children, &spec),
        false => Err("the node lease had run out before the task could start".to_string()),
    };
    // After the launch, which must be quick. If there is no thread to be had,
    // the guard ends what was launched.
    let (lease, files) = (LeaseWatch::start(lease)?, Files::start()?);
    let mut shim = Shim::new(spec, guard, lease, clients, files, children);
    match launched {
        Ok(()) => shim.watch(&signals),
        Err(message) => {
            shim.lost = lost;
            shim.finish(LAUNCH_FAILED, message);
        }
    }
    Ok(())
}

/// All processes, or none: if one cannot start the others are killed.
fn launch(children: &mut Children, spec: &Spec) -> Result<(), String> {
    let launched = children.launch(spec);
    if launched.is_err() {
        while children.kill_all() {
            let _ = children.reap();
            std::thread::sleep(std::time::Duration::from_millis(KILL_CHECK_MS));
        }
    }
    launched
}

/// From here on they are read. Before any thread starts: one that has them
/// unblocked would be ended by them.
fn take_over_signals() -> io::Result<SignalFd> {
    let mut signals = SigSet::empty();
    let others = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, guard::GUARD_GONE];
    for signal in [Signal::SIGCHLD].into_iter().chain(others) {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?)
}

/// A stop in force.
struct End {
    line: StopLine,
    /// The notice of it. It is there before any signal.
    notice: Option<Ticket>,
    /// SIGTERM was sent.
    terminated: bool,
}

/// A status on its way to the disk. The file first: whoever hears of it on the
/// socket may read it.
struct Saying {
    status: Status,
    file: Option<Ticket>,
    told: bool,
    tell_by_ms: u64,
}

struct Shim {
    spec: Spec,
    guard: ProcessId,
    lease: LeaseWatch,
    clients: Clients,
    children: Children,
    files: Files,
    saying: Option<Saying>,
    end: Option<End>,
    /// Of the first process that failed.
    failure: Option<(i32, String)>,
    /// The node lease ran out or the machine shuts down: no order ends it, and it is no end of its own.
    losing: bool,
    /// It was cut off for that: nobody must count it as its failure, nor as its success.
    lost: bool,
}

impl Shim {
    fn new(
        spec: Spec,
        guard: ProcessId,
        lease: LeaseWatch,
        clients: Clients,
        files: Files,
        children: Children,
    ) -> Self {
        Shim {
            spec,
            guard,
            lease,
            clients,
            children,
            files,
            saying: None,
            end: None,
            failure: None,
            losing: false,
            lost: false,
        }
    }

    fn watch(&mut self, signals: &SignalFd) {
        self.say(self.status(ShimPhase::Running, 0, String::new()));
        loop {
            self.take_signals(signals);
            if !self.reap() {
                break;
            }
            self.check_lease();
            self.advance();
            self.tell();
            for line in self.clients.serve() {
                self.stop(line);
            }
            self.wait(Some(signals));
        }
        self.children.drain_logs();
        let (code, message) = self.failure.take().unwrap_or_default();
        self.finish(code, message);
    }

    /// Sleeps until something happens or the next deadline.
    fn wait(&mut self, signals: Option<&SignalFd>) {
        let now = clock::boottime_ms();
        let next_ms = match &self.end {
            Some(end) if end.terminated && now >= end.line.kill_at_ms => now + KILL_CHECK_MS,
            Some(end) if end.terminated => end.line.kill_at_ms,
            Some(end) if now >= end.line.term_at_ms => now + KILL_CHECK_MS,
            Some(end) => end.line.term_at_ms.min(end.line.kill_at_ms),
            None => u64::MAX,
        };
        let lease_ms = if self.losing { u64::MAX } else { self.lease.expires_ms() };
        let next_ms = next_ms.min(lease_ms.max(now + KILL_CHECK_MS));
        let timeout_ms = next_ms.saturating_sub(now).min(LOOK_MS);
        let fds = signals.map(|signals| signals.as_fd()).into_iter().chain([self.files.fd()]);
        let fds: Vec<BorrowedFd<'_>> = fds.chain(self.clients.fds()).collect();
        let mut polled: Vec<PollFd<'_>> =
            fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(timeout_ms).expect("at most 100 ms");
        if poll(&mut polled, timeout).is_err() {
            // Out of memory, at worst. To leave now would leave the task.
            std::thread::sleep(std::time::Duration::from_millis(KILL_CHECK_MS));
        }
        self.files.clear();
    }

    fn take_signals(&mut self, signals: &SignalFd) {
        while let Ok(Some(signal)) = signals.read_signal() {
            let reason = match i32::try_from(signal.ssi_signo) {
                Ok(number) if number == Signal::SIGCHLD as i32 => continue,
                Ok(number) if number == guard::GUARD_GONE as i32 => "its guard died",
                _ => "the machine is shutting down",
            };
            let now = clock::boottime_ms();
            self.losing = true;
            self.stop(StopLine {
                term_at_ms: now,
                kill_at_ms: now + self.spec.notice_ms,
                reason: reason.to_string(),
            });
        }
    }

    /// Takes in what ended. False when no process of the task is left.
    fn reap(&mut self) -> bool {
        let (ended, any_left) = self.children.reap();
        if !ended.is_empty() {
            self.check_lease(); // The guard may have been first to see it run out.
        }
        let now = clock::boottime_ms();
        let overdue = self.end.as_ref().is_some_and(|end| now >= end.line.kill_at_ms);
        for exit in ended {
            self.lost |= self.losing && overdue && exit.killed() && self.failure.is_none();
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
        let line = earlier(self.end.as_ref(), line);
        self.end = Some(End { line, notice: None, terminated: true });
        self.children.terminate_all();
    }

    fn check_lease(&mut self) {
        if let Some(expires_ms) = self.lease.ran_out(clock::boottime_ms()) {
            self.losing = true;
            self.stop(StopLine {
                term_at_ms: expires_ms,
                kill_at_ms: expires_ms + self.spec.notice_ms,
                reason: "the node lease ran out".to_string(),
            });
        }
    }

    /// A stop, or an earlier time for the one in force.
    fn stop(&mut self, line: StopLine) {
        let known = self.end.as_ref();
        let line = earlier(known, line);
        if known.is_some_and(|end| end.line == line) {
            return;
        }
        let terminated = known.is_some_and(|end| end.terminated);
        let notice = self.files.write(File::Notice(notice(&line)));
        self.end = Some(End { line, notice, terminated });
    }

    /// SIGTERM and SIGKILL when they are due.
    fn advance(&mut self) {
        let now = clock::boottime_ms();
        let Some(end) = &mut self.end else { return };
        let killing = now >= end.line.kill_at_ms;
        let noticed = end.notice.is_none_or(|notice| self.files.is_done(notice))
            || now >= end.line.term_at_ms + NOTICE_WAIT_MS;
        // The agent may order it at the very end of the lease, before we know that
        // this was not renewed: whose end it is must not depend on who was first.
        let doubt = !self.losing && now >= self.lease.expires_ms();
        if !end.terminated && (killing || now >= end.line.term_at_ms && noticed && !doubt) {
            end.terminated = true;
            self.lost |= (self.losing || doubt) && self.failure.is_none();
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
        let guard = Some(self.guard);
        Status { phase, shim, processes, exit_code, message, lost: self.lost, guard }
    }

    fn say(&mut self, status: Status) {
        let file = self.files.write(File::Status(status.clone()));
        let tell_by_ms = clock::boottime_ms() + STATUS_WAIT_MS;
        self.saying = Some(Saying { status, file, told: false, tell_by_ms });
    }

    /// Passes on a status that is on disk, or should be by now. True once both is done.
    fn tell(&mut self) -> bool {
        let Some(saying) = &mut self.saying else { return true };
        let written = saying.file.is_none_or(|file| self.files.is_done(file));
        if !saying.told && (written || clock::boottime_ms() >= saying.tell_by_ms) {
            saying.told = true;
            self.clients.push(&saying.status);
        }
        if written {
            self.saying = None;
        }
        written
    }

    /// No process of the task lives: say so, and go, once it is on disk. While
    /// that hangs, an agent that starts hears it from us.
    fn finish(&mut self, code: i32, message: String) {
        self.children.remove_cgroup();
        let reason = self.end.as_ref().map_or("", |end| end.line.reason.as_str());
        let message = match (message.is_empty(), reason.is_empty()) {
            (true, _) => reason.to_string(),
            (false, true) => message,
            (false, false) => format!("{message}: {reason}"),
        };
        self.end = None;
        self.say(self.status(ShimPhase::Exited, code, message));
        // Who connected meanwhile hears it too.
        let _ = self.clients.serve();
        while !self.tell() {
            self.wait(None);
            let _ = self.clients.serve();
        }
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
