//! What ends a task when its shim cannot: killed, stopped, or behind a disk that hangs.

#![expect(clippy::unwrap_used, reason = "a test")]

mod task;

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rowen_agent::spec::{NOTICE_FILE, STATUS_FILE, ShimPhase, Status};

use crate::task::{LONG_MS, PATIENCE, Task, alive, send, start};

/// A process, its child, and a daemon of another session with an empty environment, which
/// nothing but the process tree leads to.
const FAMILY: &str = "trap '' TERM; sleep 300 & echo $! > child; \
     (setsid env -i sh -c 'trap \"\" TERM; echo $$ > daemon; exec sleep 300' &) ; \
     while [ ! -s daemon ]; do sleep 0.01; done; echo up; wait";

/// Pids of the whole family, once it is up.
fn family(task: &Task) -> [String; 3] {
    task.says("stdout.log", "up");
    let main = task.status().processes[0].pid.to_string();
    [main, task.read("child"), task.read("daemon")]
}

/// Waits until all are gone. Whatever is not ended would live for 300 s.
fn gone(pids: &[String]) {
    let begun = Instant::now();
    while let Some(pid) = pids.iter().find(|pid| alive(pid)) {
        assert!(begun.elapsed() < PATIENCE, "{pid} of {pids:?} lives after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_shim_leaves_nothing_though_no_agent_lives() {
    let task = start(FAMILY, LONG_MS, |_| {});
    let pids = family(&task);
    send(task.status().shim, Signal::SIGKILL);
    gone(&pids);
}

#[test]
fn a_killed_guard_ends_the_task_by_its_shim() {
    let mut task = start(FAMILY, LONG_MS, |spec| spec.notice_ms = 200);
    let pids = family(&task);
    let shim = task.status().shim;
    send(task.status().guard.unwrap(), Signal::SIGKILL);
    gone(&pids);
    task.says(STATUS_FILE, "exited");
    let status = task.status();
    assert!(status.lost, "{status:?}");
    assert_eq!(status.message, "killed by SIGKILL: its guard died");
    task.says(NOTICE_FILE, "its guard died");
    assert!(!task.child.wait().unwrap().success());
    gone(&[shim.pid.to_string()]);
}

/// Nobody is left that could look further than the kernel does: the processes that the shim
/// started die with it. Its daemons wait for the next agent (`agent.rs` has that).
#[test]
fn shim_and_guard_killed_at_once_take_the_first_processes_along() {
    let task = start("echo up; exec sleep 300", LONG_MS, |_| {});
    task.says("stdout.log", "up");
    let status = task.status();
    // Stopped first, so that neither sees the other's end.
    send(status.guard.unwrap(), Signal::SIGSTOP);
    send(status.shim, Signal::SIGSTOP);
    send(status.guard.unwrap(), Signal::SIGKILL);
    send(status.shim, Signal::SIGKILL);
    gone(&[status.processes[0].pid.to_string()]);
}

#[test]
fn a_stopped_shim_does_not_keep_its_task_past_the_lease() {
    let mut task = start(FAMILY, 3000, |spec| spec.notice_ms = 200);
    let deadline = task.started + Duration::from_millis(3200);
    let pids = family(&task);
    let shim = task.status().shim;
    send(shim, Signal::SIGSTOP);
    assert!(pids.iter().all(|pid| alive(pid)));
    gone(&pids);
    assert!(Instant::now() + Duration::from_millis(20) >= deadline, "killed before its time");
    send(shim, Signal::SIGCONT);
    let (status, _) = task.end();
    assert!(status.lost, "{status:?}");
}

#[test]
fn a_stopped_shim_whose_lease_is_renewed_keeps_its_task() {
    let task = start(FAMILY, 2000, |spec| spec.notice_ms = 0);
    let pids = family(&task);
    send(task.status().shim, Signal::SIGSTOP);
    for _ in 0..20 {
        task.renew(2000);
        std::thread::sleep(Duration::from_millis(150));
    }
    assert!(pids.iter().all(|pid| alive(pid)), "the guard is no judge of shims");
    send(task.status().shim, Signal::SIGCONT);
}

/// A pipe in the place of a file, of which the far end is open and never read: whoever writes
/// more than it holds is blocked in the kernel, as on a disk that hangs.
fn hang(dir: &Path, name: &str) -> File {
    make_pipe(dir, name);
    File::options().read(true).write(true).open(dir.join(name)).unwrap()
}

/// The same, without a far end: opening it blocks already.
fn make_pipe(dir: &Path, name: &str) {
    let made = Command::new("mkfifo").arg(dir.join(name)).status().unwrap();
    assert!(made.success());
}

/// Whether a thread of the process waits in the kernel for room in a pipe, or for its reader.
fn blocked(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    tasks.into_iter().any(|thread| {
        let waits = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
        let call = fs::read_to_string(thread.path().join("syscall")).unwrap_or_default();
        // write(2) or openat(2); where the kernel tells neither, the name of what it waits in.
        call.starts_with("1 ") || call.starts_with("257 ") || waits.contains("pipe")
    })
}

fn wait_blocked(pid: i32) {
    let deadline = Instant::now() + PATIENCE;
    while !blocked(pid) {
        assert!(Instant::now() < deadline, "nothing of the shim is blocked");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes more than pipe and shim hold, ignores SIGTERM, and never ends.
const FLOOD: &str = "trap '' TERM; yes | head -c 2000000 & while :; do sleep 0.02; done";

#[test]
fn a_log_that_hangs_delays_neither_sigterm_nor_sigkill() {
    let script = format!("trap 'echo > termed' TERM; {}", &FLOOD["trap '' TERM; ".len()..]);
    let mut held = None;
    let mut task = start(&script, LONG_MS, |spec| {
        held = Some(hang(spec.lease_file.parent().unwrap(), "stdout.log"));
    });
    task.says(STATUS_FILE, "running");
    let status = task.status();
    wait_blocked(status.shim.pid);
    let stopped = Instant::now();
    task.stop(0, 400);
    task.says("termed", "\n");
    gone(&[status.processes[0].pid.to_string()]);
    let took = stopped.elapsed();
    assert!(took.as_millis() >= 380, "{took:?}");
    let (status, _) = task.end();
    assert_eq!(status.message, "killed by SIGKILL: a test");
}

#[test]
fn a_log_that_hangs_does_not_outlast_the_lease() {
    let mut held = None;
    let mut task = start(FLOOD, 3000, |spec| {
        held = Some(hang(spec.lease_file.parent().unwrap(), "stdout.log"));
    });
    task.says(STATUS_FILE, "running");
    let status = task.status();
    wait_blocked(status.shim.pid);
    gone(&[status.processes[0].pid.to_string()]);
    let took = task.started.elapsed();
    // Lease 3000, notice 300.
    assert!(took.as_millis() >= 3280, "{took:?}");
    assert!(task.end().0.lost);
}

#[test]
fn a_notice_that_hangs_delays_no_signal() {
    let script = "trap 'echo termed; exit 3' TERM; echo up; while :; do sleep 0.02; done";
    let mut task = start(script, LONG_MS, |spec| {
        make_pipe(spec.lease_file.parent().unwrap(), "notice.tmp");
    });
    task.says("stdout.log", "up");
    let shim = task.status().shim.pid;
    let mut lines = BufReader::new(task.connect()).lines();
    let mut next = || serde_json::from_str::<Status>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next().phase, ShimPhase::Running);
    let stopped = Instant::now();
    task.stop(0, 60_000);
    wait_blocked(shim);
    task.says("stdout.log", "termed");
    // The end waits behind the notice on the same disk; whoever listens does not.
    let status = next();
    assert_eq!((status.phase, status.exit_code), (ShimPhase::Exited, 3));
    assert!(stopped.elapsed() < Duration::from_secs(60), "by SIGTERM, not by SIGKILL");
    assert_eq!(task.status().phase, ShimPhase::Running, "the disk hangs");
    // An agent that comes now hears it too.
    let mut late = BufReader::new(task.connect()).lines();
    let status: Status = serde_json::from_str(&late.next().unwrap().unwrap()).unwrap();
    assert_eq!(status.phase, ShimPhase::Exited);
    // The disk is back.
    drop(File::open(task.dir().join("notice.tmp")).unwrap());
    assert_eq!(task.end().0.exit_code, 3);
}
