//! SIGKILL to the leader and to all replicas, under load: nothing acknowledged is lost.

use std::process::Command;

use serde_json::Value;

use crate::rig::{ROWEN, alone, text};

#[test]
fn nothing_acknowledged_is_lost_or_doubled() {
    let _alone = alone();
    let output = Command::new(ROWEN)
        .args(["bench", "failover", "--kills", "5", "--all-kills", "5", "--json"])
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.success(), "{said}\n{}", text(&output.stdout));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() >= 4 && checks.iter().all(|check| check["ok"] == true), "{report:#}");
    let figure = |name: &str| {
        let figures = report["figures"].as_array().unwrap();
        let found = figures.iter().find(|figure| figure["name"] == name);
        found.unwrap_or_else(|| panic!("no {name}: {report:#}"))["value"].as_f64().unwrap()
    };
    assert!(figure("acknowledged") > 50.0, "there was no load: {report:#}");
    // The bars are the bench's, for a release build alone on its machine; here only that it goes on.
    assert!(figure("failover_write_max") < 60_000.0, "{report:#}");
    assert!(figure("next_placement_max") < 60_000.0, "{report:#}");
}
