//! Replicas come and go, and the leadership with them, while writes go on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::group::Group;
use crate::rig::{alone, text};

/// Less than a client waits before it gives up; a debug build on a busy machine is no measure.
const LONGEST_WRITE: Duration = Duration::from_secs(20);

#[test]
fn replicas_come_and_go_while_jobs_are_submitted() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 3);
    group.start_agents(4);
    let job = group.submit(&["--name", "wide", "-n", "4", "-g", "8", "--", "true"]);
    group.wait_state(&job, "completed");
    refuses_nonsense(&group);
    leadership_is_handed_over(&mut group);
    a_wiped_replica_comes_back_under_a_new_id(&mut group);
}

fn refuses_nonsense(group: &Group) {
    let said = group.refused(1, &["cluster", "transfer-leader", "--to", "9"]);
    assert!(said.contains("replica 9 has no vote"), "{said}");
    let said = group.refused(1, &["cluster", "remove", "9"]);
    assert!(said.contains('9'), "{said}");
    let said = group.refused(1, &["cluster", "init", "--config", &group.config(1)]);
    assert!(said.contains("is not empty"), "{said}");
    let said = group.refused(2, &["node", "forget", "n1"]);
    assert!(said.contains("--i-checked"), "{said}");
}

/// By word and by SIGTERM: no write waits for the others to find out by silence.
fn leadership_is_handed_over(group: &mut Group) {
    let before = group.leader();
    let slowest = slowest_write_during(group, |group| {
        std::thread::sleep(Duration::from_millis(300));
        group.ok(&["cluster", "transfer-leader"]);
        std::thread::sleep(Duration::from_millis(700));
    });
    let after = group.leader();
    assert_ne!(before, after, "the leadership was not handed over");
    assert!(slowest < LONGEST_WRITE, "a write took {slowest:?} during a transfer");

    // The process is taken out first: the writer below needs the group too.
    let slowest = {
        let stop = AtomicBool::new(false);
        let addrs = group.addrs.join(",");
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| write_until(&addrs, &stop));
            std::thread::sleep(Duration::from_millis(300));
            group.end(after, Signal::SIGTERM);
            std::thread::sleep(Duration::from_millis(700));
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        })
    };
    assert_ne!(group.leader(), after);
    assert!(slowest < LONGEST_WRITE, "a write took {slowest:?} when the leader was stopped");
    group.serve(after);
    group.wait_voters(&[1, 2, 3]);
}

fn a_wiped_replica_comes_back_under_a_new_id(group: &mut Group) {
    let wiped = 1 + group.leader() % 3;
    let id = wiped.to_string();
    group.end(wiped, Signal::SIGKILL);
    std::fs::remove_dir_all(group.folder.join(format!("replica-{wiped}"))).unwrap();
    let config = group.config(wiped);
    let peers = group.addrs.join(",");
    let join = ["cluster", "join", "--config", &config, "--peer", &peers];
    let said = group.refused(1, &join);
    assert!(said.contains(&format!("rowen cluster remove {id}")), "{said}");
    group.ok(&["cluster", "remove", &id]);
    let joined = group.json(&join);
    assert_eq!(joined["replica"], 4, "an id is never given twice");
    group.serve(wiped);
    let mut ids: Vec<u64> = (1..=4).filter(|id| *id != wiped as u64).collect();
    ids.sort_unstable();
    group.wait_voters(&ids);
    let job = group.submit(&["--name", "after", "-n", "4", "-g", "8", "--", "true"]);
    group.wait_state(&job, "completed");
    let status = group.json(&["status"]);
    assert_eq!(status["violations"], serde_json::json!([]), "{status:#}");
}

fn slowest_write_during(group: &Group, act: impl FnOnce(&Group)) -> Duration {
    let stop = AtomicBool::new(false);
    let addrs = group.addrs.join(",");
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(&addrs, &stop));
        act(group);
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    })
}

/// Submits one job after the other, each of which must be accepted; how long the slowest took.
fn write_until(addrs: &str, stop: &AtomicBool) -> Duration {
    let mut slowest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let output = std::process::Command::new(crate::rig::ROWEN)
            .args(["submit", "--parsable", "--name", "stream", "-g", "1", "--", "true"])
            .env("ROWEN_ADDR", addrs)
            .output()
            .unwrap();
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 3)), "a write failed: {}", text(&output.stderr));
        slowest = slowest.max(begun.elapsed());
    }
    slowest
}
