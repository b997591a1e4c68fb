//! The shim alone, with real processes: what it launches, how it ends it.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use rowen_agent::spec::{
    self, NOTICE_FILE, Notice, OwnerKind, OwnerSpec, SOCKET, SPEC_FILE, STATUS_FILE, ShimPhase,
    Spec, Status, StopLine,
};
use tempfile::TempDir;

const SHIM: &str = env!("CARGO_BIN_EXE_rowen-agent-shim");

struct Task {
    folder: TempDir,
    child: Child,
    started: Instant,
}

/// A task of one process a script, with a node lease that lasts `lease_ms`.
fn start(script: &str, lease_ms: u64, change: impl FnOnce(&mut Spec)) -> Task {
    let folder = TempDir::new().unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut spec = Spec {
        boot_id: String::new(),
        allocation: 1,
        rank: 0,
        incarnation: 1,
        index: 1,
        owner: OwnerSpec { kind: OwnerKind::Job, id: 1, name: String::new(), part: 1 },
        gpus: Vec::new(),
        command: ["sh", "-c", script].map(str::to_string).to_vec(),
        working_dir: String::new(),
        processes: vec![BTreeMap::from([("PATH".to_string(), path)])],
        notice_ms: 300,
        lease_file: folder.path().join("lease"),
        cgroup: None,
        cpus: 0,
        memory_mib: 0,
        port: 0,
        probe: None,
        log_max_bytes: 1 << 20,
        log_keep: 2,
    };
    change(&mut spec);
    for (local, env) in spec.processes.iter_mut().enumerate() {
        env.insert("LOCAL_RANK".to_string(), local.to_string());
    }
    renew(folder.path(), lease_ms);
    spec::write(&folder.path().join(SPEC_FILE), &spec).unwrap();
    let mut command = Command::new(SHIM);
    command.arg("shim").arg(folder.path()).stdin(Stdio::null());
    Task { child: command.spawn().unwrap(), folder, started: Instant::now() }
}

fn renew(dir: &Path, lease_ms: u64) {
    let expires_ms = boottime_ms() + lease_ms;
    let bytes = [expires_ms.to_le_bytes(), (!expires_ms).to_le_bytes()].concat();
    fs::write(dir.join("lease"), bytes).unwrap();
}

fn boottime_ms() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap();
    (time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000).try_into().unwrap()
}

const LONG_MS: u64 = 60_000;

impl Task {
    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir().join(name)).unwrap_or_default()
    }

    /// Waits until a file holds `text`.
    fn says(&self, name: &str, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !self.read(name).contains(text) {
            assert!(Instant::now() < deadline, "{name} never said {text:?}: {:?}", self.read(name));
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn stop(&self, withdraw_ms: u64, grace_ms: u64) {
        let term_at_ms = boottime_ms() + withdraw_ms;
        let kill_at_ms = term_at_ms + grace_ms;
        let line = StopLine { term_at_ms, kill_at_ms, reason: "a test".to_string() };
        let mut stream = self.connect();
        writeln!(stream, "{}", serde_json::to_string(&line).unwrap()).unwrap();
        // Read one line back, or the shim might see us gone before the order.
        BufReader::new(stream).read_line(&mut String::new()).unwrap();
    }

    fn connect(&self) -> UnixStream {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match UnixStream::connect(self.dir().join(SOCKET)) {
                Ok(stream) => return stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits for the end: status, and how long the task took.
    fn end(&mut self) -> (Status, Duration) {
        assert!(self.child.wait().unwrap().success());
        let status: Status = spec::read(&self.dir().join(STATUS_FILE)).unwrap();
        assert_eq!(status.phase, ShimPhase::Exited);
        (status, self.started.elapsed())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn alive(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

#[test]
fn passes_on_output_and_exit_code() {
    let mut task = start("echo out; echo err >&2; exit 7", LONG_MS, |_| {});
    let (status, took) = task.end();
    assert_eq!((status.exit_code, status.message.as_str()), (7, ""));
    assert_eq!(
        (task.read("stdout.log").as_str(), task.read("stderr.log").as_str()),
        ("out\n", "err\n")
    );
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[test]
fn tells_status_on_its_socket_at_once() {
    let mut task = start("sleep 0.3", LONG_MS, |_| {});
    let mut lines = BufReader::new(task.connect()).lines();
    let mut next = || serde_json::from_str::<Status>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next().phase, ShimPhase::Running);
    assert_eq!(next().phase, ShimPhase::Exited);
    assert_eq!(task.end().0.exit_code, 0);
}

#[test]
fn says_why_it_cannot_launch() {
    let check = |change: fn(&mut Spec), expect: &str| {
        let (status, _) = start("", LONG_MS, change).end();
        assert_eq!(status.exit_code, 125);
        assert!(status.message.contains(expect), "{}", status.message);
    };
    check(|spec| spec.command = vec!["no-such-thing".to_string()], "no-such-thing not found");
    check(|spec| spec.command = vec!["/no/such".to_string()], "/no/such does not exist");
    check(|spec| spec.working_dir = "/no/dir".to_string(), "working_dir: /no/dir does not exist");
    check(|spec| spec.command = Vec::new(), "command: empty");
    let (status, _) = start("true", 0, |_| {}).end();
    assert_eq!(status.exit_code, 125);
    assert!(status.message.contains("node lease"), "{}", status.message);
}

#[test]
fn rotates_logs_by_size_and_keeps_lines_whole() {
    let script = "i=0; while [ $i -lt 4000 ]; do echo line-$i; i=$((i+1)); done";
    let mut task = start(script, LONG_MS, |spec| spec.log_max_bytes = 8000);
    task.end();
    let mut logs: Vec<(u64, PathBuf)> = Vec::new();
    for entry in fs::read_dir(task.dir()).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if let Some(number) = name.strip_prefix("stdout.log.") {
            logs.push((number.parse().unwrap(), entry.path()));
        }
    }
    logs.sort();
    assert_eq!(logs.len(), 2, "two older segments are kept");
    logs.push((u64::MAX, task.dir().join("stdout.log")));
    let texts: Vec<String> =
        logs.iter().map(|(_, path)| fs::read_to_string(path).unwrap()).collect();
    let lines: Vec<&str> = texts.iter().flat_map(|text| text.lines()).collect();
    let first: usize = lines[0].strip_prefix("line-").unwrap().parse().unwrap();
    let expect: Vec<String> = (first..4000).map(|number| format!("line-{number}")).collect();
    assert_eq!(lines, expect, "whole lines, none missing since the oldest kept");
}

#[test]
fn kills_after_the_grace_what_ignores_sigterm() {
    let mut task = start("trap '' TERM; echo up; while :; do sleep 0.1; done", LONG_MS, |_| {});
    task.says("stdout.log", "up");
    let stopped = Instant::now();
    task.stop(0, 400);
    let (status, _) = task.end();
    let took = stopped.elapsed();
    assert_eq!((status.exit_code, status.message.as_str()), (137, "killed by SIGKILL: a test"));
    assert!((380..5000).contains(&took.as_millis()), "{took:?}");
}

#[test]
fn the_notice_is_there_before_sigterm() {
    let script =
        "trap 'cat notice.json; date +%s%3N; exit 0' TERM; echo up; while :; do sleep 0.02; done";
    let mut task = start(script, LONG_MS, |_| {});
    task.says("stdout.log", "up");
    task.stop(300, 2000);
    task.says(NOTICE_FILE, "a test");
    let notice: Notice = spec::read(&task.dir().join(NOTICE_FILE)).unwrap();
    assert_eq!((notice.action.as_str(), notice.reason.as_str()), ("stop", "a test"));
    assert_eq!(notice.deadline_unix_ms - notice.not_before_unix_ms, 2000);
    assert_eq!(task.read("stdout.log"), "up\n", "no signal while it withdraws");
    let (status, _) = task.end();
    assert_eq!((status.exit_code, status.message.as_str()), (0, "a test"));
    let out = task.read("stdout.log");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(serde_json::from_str::<Notice>(lines[1]).unwrap(), notice);
    let signalled: u64 = lines[2].parse().unwrap();
    assert!(signalled + 5 >= notice.not_before_unix_ms, "{signalled} {notice:?}");
}

#[test]
fn kills_a_daemon_that_the_task_left() {
    // Its own session, its parent gone: neither group nor parent lead to it.
    let script = "setsid sh -c 'trap \"\" TERM; echo $$ > daemon; exec sleep 300' & \
                  while [ ! -s daemon ]; do sleep 0.01; done; echo up; sleep 0.2; exit 3";
    let mut task = start(script, LONG_MS, |_| {});
    task.says("stdout.log", "up");
    let daemon = task.read("daemon");
    assert!(alive(&daemon));
    let (status, _) = task.end();
    assert_eq!(status.exit_code, 3);
    assert!(!alive(&daemon), "gone when the exit is reported");
}

#[test]
fn a_wrapper_that_dies_of_sigterm_does_not_cut_the_grace_short() {
    // The child saves its work for longer than a task that fell apart gets.
    let script = "sh -c 'trap \"sleep 0.6; echo saved; exit 0\" TERM; echo up; \
                  while :; do sleep 0.02; done' & wait";
    let mut task = start(script, LONG_MS, |spec| spec.notice_ms = 100);
    task.says("stdout.log", "up");
    task.stop(0, 3000);
    let (status, _) = task.end();
    assert_eq!(status.exit_code, 143);
    assert_eq!(task.read("stdout.log"), "up\nsaved\n");
}

#[test]
fn one_failing_process_ends_the_others() {
    let script = "if [ $LOCAL_RANK = 1 ]; then sleep 0.1; exit 9; fi; sleep 300";
    let mut task = start(script, LONG_MS, |spec| {
        spec.processes = vec![spec.processes[0].clone(); 3];
    });
    let (status, took) = task.end();
    assert_eq!((status.exit_code, status.message.as_str()), (9, "process 1 exited with 9"));
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(task.dir().join("stdout.2.log").exists());
}

#[test]
fn ends_the_task_when_the_node_lease_runs_out() {
    let mut task = start("trap '' TERM; echo up; while :; do sleep 0.05; done", 500, |_| {});
    task.says("stdout.log", "up");
    let (status, took) = task.end();
    assert_eq!(status.exit_code, 137);
    // Lease 500, notice 300.
    assert!((780..5000).contains(&took.as_millis()), "{took:?}");
    let notice: Notice = spec::read(&task.dir().join(NOTICE_FILE)).unwrap();
    assert_eq!(notice.reason, "the node lease ran out");
    assert!(status.lost);
}

/// A program that writes its checkpoint on SIGTERM and ends well has not run to its end.
#[test]
fn what_the_lease_cut_off_is_lost_even_if_it_ends_well() {
    let mut task = start("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done", 500, |_| {});
    task.says("stdout.log", "up");
    let (status, _) = task.end();
    assert_eq!((status.exit_code, status.lost), (0, true));
}

#[test]
fn what_ended_by_itself_or_by_order_is_not_lost() {
    let (status, _) = start("exit 7", 60_000, |_| {}).end();
    assert_eq!((status.exit_code, status.lost), (7, false));
    let mut task = start("echo up; sleep 60", 60_000, |_| {});
    task.says("stdout.log", "up");
    task.stop(0, 300);
    let (status, _) = task.end();
    assert!(!status.lost);
}

#[test]
fn goes_on_while_the_node_lease_is_renewed() {
    let mut task = start("sleep 1.5; exit 4", 1000, |_| {});
    for _ in 0..9 {
        std::thread::sleep(Duration::from_millis(150));
        renew(task.dir(), 1000);
    }
    assert_eq!(task.end().0.exit_code, 4);
}

#[test]
fn a_task_has_an_empty_signal_mask_and_its_own_group() {
    let script = "grep SigBlk /proc/self/status; cut -d' ' -f5 /proc/$$/stat; echo $$";
    let mut task = start(script, LONG_MS, |_| {});
    task.end();
    let out = task.read("stdout.log");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0].split_whitespace().last(), Some("0000000000000000"));
    assert_eq!(lines[1], lines[2]);
}
