//! `rowen bench jobs` with few agents: what it checks must hold, also when the leader is killed.

use std::process::Command;

use serde_json::Value;

use crate::rig::{ROWEN, alone, text};

#[test]
fn jobs_run_once_through_three_replicas_and_a_leader_that_dies() {
    let _alone = alone();
    let arguments = ["--agents", "24", "--clients", "2", "--seconds", "2", "--kills", "1"];
    let output =
        Command::new(ROWEN).args(["bench", "jobs", "--json"]).args(arguments).output().unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", text(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 6 && checks.iter().all(|check| check["ok"] == true), "{report:#}");
    let figure = |name: &str| {
        let figures = report["figures"].as_array().unwrap();
        let found = figures.iter().find(|figure| figure["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}: {report:#}"))["value"].as_f64().unwrap()
    };
    // The bars of the release build are in the bench; here only that there was a load.
    assert!(figure("jobs_per_s") > 1.0, "{report:#}");
    assert!(figure("reattached_all_max") < 60_000.0, "{report:#}");
    // A report costs no entry of its own: submission, plan and two reports would be four. On a busy
    // machine nothing comes at once, and nothing is combined.
    let is_loaded = figure("jobs_per_s") > 200.0;
    assert!(!is_loaded || figure("entries_per_job") < 4.0, "{report:#}");
}
