//! The shim alone, with real processes: what it launches, how it ends it.

#[expect(dead_code, reason = "other test files use the rest")]
mod task;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    time::{Duration, Instant},
};

use rowen_agent::spec::{self, NOTICE_FILE, Notice, ShimPhase, Spec, Status};

use crate::task::{LONG_MS, alive, start};

#[test]
fn passes_on_output_and_exit_code() {
    let mut task = start("echo out; echo err >&2; exit 7", LONG_MS, |_| {});
    let (status, _) = task.end();
    assert_eq!((status.exit_code, status.message.as_str()), (7, ""));
    assert_eq!(
        (task.read("stdout.log").as_str(), task.read("stderr.log").as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn tells_status_on_its_socket_at_once() {
    let mut task = start("while [ ! -e go ]; do sleep 0.02; done", LONG_MS, |_| {});
    let mut lines = BufReader::new(task.connect()).lines();
    let mut next = || serde_json::from_str::<Status>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next().phase, ShimPhase::Running);
    fs::write(task.dir().join("go"), "").unwrap();
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
    task.stop(0, 60_000);
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
    assert!(took < Duration::from_secs(200), "they would sleep for 300 s: {took:?}");
    assert!(task.dir().join("stdout.2.log").exists());
}

#[test]
fn ends_the_task_when_the_node_lease_runs_out() {
    let mut task = start("trap '' TERM; echo up; while :; do sleep 0.05; done", 3000, |_| {});
    task.says("stdout.log", "up");
    let (status, took) = task.end();
    assert_eq!(status.exit_code, 137);
    // Lease 3000, notice 300.
    assert!(took.as_millis() >= 3280, "{took:?}");
    let notice: Notice = spec::read(&task.dir().join(NOTICE_FILE)).unwrap();
    assert_eq!(notice.reason, "the node lease ran out");
    assert!(status.lost);
}

/// A program that writes its checkpoint on SIGTERM and ends well has not run to its end.
#[test]
fn what_the_lease_cut_off_is_lost_even_if_it_ends_well() {
    let mut task = start("trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done", 3000, |_| {});
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
    let mut task = start("sleep 3; exit 4", 2000, |_| {});
    for _ in 0..19 {
        std::thread::sleep(Duration::from_millis(150));
        task.renew(2000);
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
