//! `rowen dev --data` keeps what it was told, whichever way it ended.

use serde_json::{Value, json};

use crate::rig::{Dev, alone};

#[test]
fn dev_resumes_after_ctrl_c_and_after_sigkill() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let dev = Dev::start(&data, 2);
    let done = dev.submit(0, &["--name", "done", "--gpus", "1", "--", "true"]);
    dev.wait_state(&done, "completed");
    // More than there is: it can only wait, and `submit` says so by its exit code.
    let waits = dev.submit(3, &["--name", "waits", "--workers", "5", "--gpus", "8", "--", "true"]);
    let before = jobs(&dev);
    assert_eq!(before, json!([[done, "done", "completed"], [waits, "waits", "queued"]]));
    dev.stop();

    let dev = Dev::start(&data, 2);
    assert_eq!(jobs(&dev), before, "after Ctrl-C");
    let more = dev.submit(0, &["--name", "more", "--gpus", "1", "--", "true"]);
    dev.wait_state(&more, "completed");
    assert!(more.parse::<u64>().unwrap() > waits.parse().unwrap(), "ids go on");
    let before = jobs(&dev);
    dev.kill();

    let dev = Dev::start(&data, 2);
    assert_eq!(jobs(&dev), before, "after SIGKILL");
    let status = dev.json(&["status"]);
    assert_eq!(status["violations"], json!([]), "{status:#}");
    dev.stop();
}

/// Id, name and state of every job.
fn jobs(dev: &Dev) -> Value {
    let list = dev.json(&["queue", "--all"]);
    let mut jobs: Vec<&Value> = list["jobs"].as_array().unwrap().iter().collect();
    jobs.sort_by_key(|job| job["id"].as_u64());
    let short = |job: &&Value| json!([job["id"].to_string(), job["spec"]["name"], job["state"]]);
    jobs.iter().map(short).collect()
}
