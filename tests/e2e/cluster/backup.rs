//! A backup taken while jobs run becomes a cluster that goes on.

use std::fs;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::group::Group;
use crate::rig::{alone, lives, wait};

#[test]
fn a_cluster_goes_on_from_its_backup() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let mut group = Group::start(folder.path(), 3);
    group.start_agents(2);
    let done = group.submit(&["--name", "done", "-g", "1", "--", "true"]);
    group.wait_state(&done, "completed");
    let pids = group.folder.join("pids");
    let script = format!("echo $$ >> {}; exec sleep 600", pids.display());
    let long = ["--name", "long", "-n", "2", "-g", "8", "--set", "notice=1s"];
    let long = group.submit(&[&long[..], &["--", "sh", "-c", &script]].concat());
    group.wait_state(&long, "running");
    let waits = group.submit(&["--name", "waits", "-n", "2", "-g", "8", "--", "true"]);

    let file = take(&group);
    let before = jobs(&group);
    let later = group.submit(&["--name", "too-late", "-g", "1", "--", "true"]);
    for number in 1..=3 {
        group.end(number, Signal::SIGKILL);
    }
    let config = group.write_config(1, "restored");
    refuses_a_damaged_one(&group, &file, &config);
    let restore = ["cluster", "restore", &file, "--config", &config, "--longest-lease"];
    let said = group.refused(1, &[&restore[..], &["2h"]].concat());
    assert!(said.contains("longest-lease: is 7200000 ms"), "{said}");
    group.ok(&[&restore[..], &["10m"]].concat());
    group.serve(1);
    group.wait_up(2);

    let status = group.json(&["status"]);
    // The second of the restore, so that another one of the same backup is another.
    let now_s = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let incarnation = status["incarnation"].as_u64().unwrap();
    assert!((now_s - 600..=now_s).contains(&incarnation), "{status:#}");
    assert_eq!(status["violations"], json!([]), "{status:#}");
    let cluster = group.status();
    assert_eq!(cluster["replicas"].as_array().unwrap().len(), 1);
    // Leases that were granted after the backup may be longer than those it knows of.
    assert_eq!(cluster["timing"]["settling"], true, "{cluster:#}");
    assert_eq!(cluster["cluster_version"], 2, "{cluster:#}");
    assert_eq!(jobs(&group), before);
    assert!(!group.rowen(&["job", "show", &later]).status.success(), "it is not in the backup");
    // Every process of before is accounted for: it runs on for its job, or it is gone.
    group.wait_state(&long, "running");
    let alive = wait("two processes of the long job", 20, || {
        let text = fs::read_to_string(&pids).unwrap();
        let alive = text.lines().filter(|pid| lives(pid.parse().unwrap())).count();
        (alive == 2).then_some(alive)
    });
    assert_eq!(alive, 2);
    group.ok(&["cancel", &long]);
    group.wait_state(&waits, "completed");
}

fn take(group: &Group) -> String {
    let file = group.folder.join("rowen.backup").to_str().unwrap().to_owned();
    let taken = group.json(&["cluster", "backup", &file]);
    assert_eq!(taken["bytes"], fs::metadata(&file).unwrap().len());
    assert!(taken["index"].as_u64().unwrap() > 0 && taken["archive_records"].as_u64().unwrap() > 0);
    let said = group.refused(2, &["cluster", "backup", &file]);
    assert!(said.contains("--force"), "{said}");
    group.ok(&["cluster", "backup", &file, "--force"]);
    assert!(!group.folder.join("rowen.backup.new").exists());
    file
}

fn refuses_a_damaged_one(group: &Group, file: &str, config: &str) {
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    let damaged = format!("{file}.damaged");
    fs::write(&damaged, bytes).unwrap();
    let said = group.refused(1, &["cluster", "restore", &damaged, "--config", config]);
    assert!(said.contains("the backup is damaged at byte"), "{said}");
    assert!(!group.folder.join("restored").exists(), "nothing of it may be used");
}

/// Id, name and spec of every job.
fn jobs(group: &Group) -> Value {
    let list = group.json(&["queue", "--all"]);
    let mut jobs: Vec<&Value> = list["jobs"].as_array().unwrap().iter().collect();
    jobs.sort_by_key(|job| job["id"].as_u64());
    jobs.iter().map(|job| json!([job["id"], job["spec"]])).collect()
}
