//! The second process of a task: it ends what its shim no longer can.
//!
//! Owns nothing but its watch. It is the shim's parent and a subreaper, so all
//! of the task falls to it when the shim dies (killed, out of memory, crashed),
//! daemons with an empty environment included. It touches no disk but to read
//! the node lease, talks to nobody, and never ends a task whose shim is at work
//! and whose lease holds.
//!
//! Rejected: a watchdog of the node, which would be one more thing that can
//! die for all tasks at once; PR_SET_PDEATHSIG alone, which a grandchild does
//! not have; two processes that watch each other through pidfds, neither of
//! which would be above the task and find what forked itself away.

use std::{io, os::fd::AsFd, process::ExitCode};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        prctl,
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{self, ForkResult, Pid},
};

use crate::{
    clock,
    lease::{LeaseReader, LeaseWatch},
    process,
    spec::ProcessId,
};

/// After the moment at which the shim itself kills: it tells how it ended.
const SLACK_MS: u64 = 100;
/// Between two looks at the clock.
const LOOK_MS: u64 = 100;
/// The same, while processes are being killed.
const KILL_LOOK_MS: u64 = 5;

/// What the shim hears when its guard is gone.
pub(super) const GUARD_GONE: Signal = Signal::SIGUSR1;

/// Which of the two this process is from here on.
pub(super) enum Side {
    /// The shim, and who guards it.
    Shim(ProcessId, LeaseReader),
    /// The guard has done its work.
    Guard(ExitCode),
}

/// Splits the process in two. The caller has one thread, and has read the lease.
pub(super) fn split(lease: LeaseReader, notice_ms: u64) -> io::Result<Side> {
    prctl::set_child_subreaper(true)?;
    let guard = unistd::getpid();
    #[expect(unsafe_code, reason = "one thread: the child may do whatever the parent may")]
    let fork = unsafe { unistd::fork() }?;
    match fork {
        ForkResult::Child => {
            prctl::set_pdeathsig(GUARD_GONE)?;
            if unistd::getppid() != guard {
                return Err(io::Error::other("the guard is gone"));
            }
            Ok(Side::Shim(process::identify(guard.as_raw()), lease))
        }
        ForkResult::Parent { child } => {
            // Whoever connects must find the shim or nobody.
            unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
            Ok(Side::Guard(watch(child, lease, notice_ms)?))
        }
    }
}

/// Until shim and task are gone. An error ends the guard before it began, and
/// by that, through the shim, the task.
fn watch(shim: Pid, lease: LeaseReader, notice_ms: u64) -> io::Result<ExitCode> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?; // All but the first are the shim's business.
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    let ended = SignalFd::with_flags(&ended, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    let lease = LeaseWatch::start(lease)?;
    let mut code = None;
    loop {
        while let Ok(Some(_)) = ended.read_signal() {}
        let alone = reap(shim, &mut code);
        let now = clock::boottime_ms();
        let patience_ms = notice_ms + SLACK_MS;
        let overdue = lease.ran_out(now).is_some_and(|expires| now >= expires + patience_ms);
        if alone {
            return Ok(code.unwrap_or(ExitCode::FAILURE));
        }
        let killing = code.is_some() || overdue;
        let left = if killing { kill_below(shim) } else { 0 };
        let timeout_ms = match left {
            0 => {
                let next_ms = lease.expires_ms() + patience_ms;
                next_ms.saturating_sub(now).clamp(KILL_LOOK_MS, LOOK_MS)
            }
            _ => KILL_LOOK_MS,
        };
        let mut polled = [PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout_ms).expect("at most 100 ms");
        let _ = poll(&mut polled, timeout);
    }
}

/// Whether nothing is below us any more; `code` is the shim's once it ended.
fn reap(shim: Pid, code: &mut Option<ExitCode>) -> bool {
    loop {
        let (pid, exit) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, 0)) => (pid, ExitCode::SUCCESS),
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) => {
                (pid, ExitCode::FAILURE)
            }
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(_) => return true, // ECHILD
        };
        if pid == shim {
            *code = Some(exit);
        }
    }
}

/// SIGKILL to all that is left of the task. Never to the shim: one that was
/// stopped or blocked still tells how it ended, when it can.
fn kill_below(shim: Pid) -> usize {
    let mut left = process::descendants(unistd::getpid().as_raw());
    left.retain(|pid| *pid != shim.as_raw());
    left.iter().copied().for_each(process::kill_now);
    left.len()
}
