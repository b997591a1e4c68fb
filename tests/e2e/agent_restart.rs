//! An agent that dies takes nothing with it: the next one adopts what runs.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::rig::{Dev, alone, lives, wait};

#[test]
fn a_task_outlives_its_agent() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(&folder.path().join("data"), 1);
    let file = dev.data.join("pid");
    let script = format!("echo $$ >> {}; exec sleep 600", file.display());
    let id = dev.submit(0, &["--name", "lasting", "-g", "8", "--", "sh", "-c", &script]);
    let before = dev.wait_state(&id, "running");
    let node = before["nodes"][0].as_str().unwrap().to_string();
    let pid: u32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
    let agent = dev.ready["agent_pids"][&node].as_u64().unwrap() as u32;
    // An agent younger than two seconds counts as one that cannot start.
    std::thread::sleep(Duration::from_secs(2));
    kill(Pid::from_raw(agent as i32), Signal::SIGKILL).unwrap();
    wait("the agent to be gone", 5, || (!lives(agent)).then_some(()));
    // Longer than the node lease, after which a task without an agent would have been ended.
    std::thread::sleep(Duration::from_secs(5));
    let after = dev.json(&["job", "show", &id]);
    assert_eq!(after["state"], "running", "{after:#}");
    assert_eq!(after["attempt"], before["attempt"]);
    assert!(lives(pid), "the task is gone");
    assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 1, "it was started again");
    assert!(dev.rowen(&["cancel", &id]).status.success());
    dev.wait_state(&id, "cancelled");
    assert!(!lives(pid), "the adopted task was not ended");
    dev.stop();
}
