//! `rowen demo` holds all that it checks, and leaves nothing behind.

use std::process::{Command, Stdio};

use serde_json::Value;

use crate::rig::{ROWEN, alone, processes_of, text};

#[test]
fn demo_holds() {
    let report = demo(&["demo", "--json"]);
    assert_eq!(report["command"], "demo");
    let figures = names(&report, "figures");
    for name in [
        "submit_to_running",
        "gang_start_delay",
        "requeue_after_node_loss",
        "utilisation_without_fillers",
        "utilisation_with_fillers",
        "harvested",
        "evictions",
        "violations",
    ] {
        assert!(figures.iter().any(|have| have == name), "no figure {name} in {figures:?}");
    }
    assert!(names(&report, "checks").len() >= 20);
}

#[test]
fn demo_with_a_short_crash_holds() {
    let checks = crash("1");
    assert!(checks.iter().any(|have| have == "the gang runs on without a control plane"));
}

#[test]
fn demo_with_a_crash_longer_than_the_node_lease_holds() {
    let checks = crash("2");
    assert!(checks.iter().any(|have| have == "no task outlives its node lease"));
}

fn crash(seed: &str) -> Vec<String> {
    let report = demo(&["demo", "--crash", "--json", "--seed", seed]);
    let checks = names(&report, "checks");
    for name in [
        "no acknowledged job is lost, none is there twice",
        "a retried submission happens once",
        "the gang goes on, or requeues whole",
        "no GPU had two owners, no job two attempts",
    ] {
        assert!(checks.iter().any(|have| have == name), "no check {name:?} in {checks:?}");
    }
    checks
}

/// Runs it in a temporary folder of its own; all its checks must hold.
fn demo(args: &[&str]) -> Value {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(ROWEN)
        .args(args)
        .env("TMPDIR", folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(stdout.lines().count(), 1, "one object and nothing else: {stdout}\n{stderr}");
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let failed: Vec<&Value> =
        report["checks"].as_array().unwrap().iter().filter(|check| check["ok"] != true).collect();
    assert!(failed.is_empty(), "{failed:#?}\n{stderr}");
    assert!(output.status.success() && report["ok"] == true);
    assert!(report["state_hash"].as_str().unwrap().chars().all(|c| c.is_ascii_hexdigit()));
    assert_eq!(processes_of(folder.path()), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the folder is cleaned up");
    report
}

fn names(report: &Value, list: &str) -> Vec<String> {
    let list = report[list].as_array().unwrap();
    list.iter().map(|entry| entry["name"].as_str().unwrap().to_string()).collect()
}
