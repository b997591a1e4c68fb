//! A node whose every process is stopped for longer than its lease and margin, and wakes up.

use std::fs;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::group::Group;
use crate::rig::{ROWEN, alone, lives, processes_of, wait};

#[test]
fn a_frozen_node_wakes_up_and_its_old_tasks_are_gone_at_once() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 3);
    group.start_agents(2);
    let journal = group.folder.join("journal");
    let first = submit(&group, "first", &journal);
    let before = group.wait_state(&first, "running");
    let frozen = before["nodes"][0].as_str().unwrap().to_owned();
    let old = wait("the job to start", 20, || start_of(&journal, &first, 1));
    let old_pid = old["who"]["pid"].as_u64().unwrap() as u32;

    signal_node(&group, &frozen, Signal::SIGSTOP);
    // Lease 4 s, notice 0 s, kill 0.5 s, and the drift.
    let after = wait("the job to run elsewhere", 30, || {
        let job = group.json(&["job", "show", &first]);
        (job["state"] == "running" && job["attempt"] == 2).then_some(job)
    });
    assert_ne!(after["nodes"][0], frozen.as_str());
    wait("the second attempt to start", 20, || start_of(&journal, &first, 2));
    assert!(lives(old_pid), "it was frozen, not killed");
    // Wants the GPUs that the frozen process still holds; the node is not up, so it waits.
    let second = submit(&group, "second", &journal);
    assert_eq!(group.json(&["job", "show", &second])["state"], "queued");

    signal_node(&group, &frozen, Signal::SIGCONT);
    wait("the old task to be killed", 20, || (!lives(old_pid)).then_some(()));
    let placed = group.wait_state(&second, "running");
    assert_eq!(placed["nodes"][0], frozen.as_str());
    wait("the second job to start", 20, || start_of(&journal, &second, 1));
    no_gpu_was_shared(&journal, &first);
    let job = group.json(&["job", "show", &first]);
    assert_eq!((&job["state"], &job["attempt"]), (&"running".into(), &2.into()), "{job:#}");
    let status = group.json(&["status"]);
    assert_eq!(status["violations"], serde_json::json!([]), "{status:#}");
}

/// A job that takes a whole node and holds a kernel lock on each of its GPUs while it lives.
pub(super) fn submit(group: &Group, name: &str, journal: &std::path::Path) -> String {
    let env = format!("env.ROWEN_DEMO_JOURNAL={}", journal.display());
    let args = ["--name", name, "-g", "8", "--set", "notice=0s", "--set", &env, "--", ROWEN];
    let work = ["demo-worker", "--mib", "1", "--pause-ms", "100", "--until", "/never"];
    group.submit(&[&args[..], &work].concat())
}

/// The agent, its shims, their tasks.
fn signal_node(group: &Group, node: &str, signal: Signal) {
    let processes = processes_of(&group.node_dir(node));
    assert!(processes.len() >= 3, "agent, shim and task are not all there: {processes:?}");
    for process in processes {
        let pid = process.split_once(' ').unwrap().0.parse().unwrap();
        match kill(Pid::from_raw(pid), signal) {
            // Whoever woke up first has ended it: that is what is tested.
            Err(Errno::ESRCH) if signal == Signal::SIGCONT => {}
            sent => sent.unwrap(),
        }
    }
}

pub(super) fn lines(journal: &std::path::Path) -> Vec<Value> {
    let text = fs::read_to_string(journal).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

pub(super) fn start_of(journal: &std::path::Path, job: &str, attempt: u64) -> Option<Value> {
    lines(journal).into_iter().find(|line| {
        line["what"] == "start" && line["who"]["owner"] == job && line["who"]["part"] == attempt
    })
}

/// The kernel's locks say so. The one thing that was held when its successor came is the frozen
/// process's own attempt: frozen, and on another node.
fn no_gpu_was_shared(journal: &std::path::Path, first: &str) {
    let lines = lines(journal);
    let clashes: Vec<&str> = lines
        .iter()
        .filter(|line| line["what"] == "clash")
        .map(|line| line["note"].as_str().unwrap())
        .collect();
    assert_eq!(clashes, [format!("job-{first}-attempt-1-rank-0")], "{lines:#?}");
}
